"""cli/status_line.py: one line on a terminal that is gone at the end, however narrow; elsewhere nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from kernelbridge.cli.status_line import News, StatusLine, bar_of, line_of
from kernelbridge.hosts.progress import WorkProgress

PULL = WorkProgress(what="pulling torch:2", done=1.72e9, total=4e9, per_second=31e6)
# What a command is: it waits, says something meanwhile on both, and ends.
PROGRAM = """
import sys, time
from kernelbridge.cli.status_line import status_line
from kernelbridge.hosts.progress import WorkProgress
news = WorkProgress(what="pulling torch:2", done=1.72e9, total=4e9, per_second=31e6)
with status_line(lambda: news, after_seconds=0.1):
    time.sleep({seconds})
    print("told", file=sys.stderr)
    time.sleep(0.3)
print("answer")
"""
# One that asks something, on another thread than its own.
ASKS = """
import sys, threading, time
from kernelbridge.cli.status_line import hidden, status_line
from kernelbridge.hosts.progress import WorkProgress
news = WorkProgress(what="pulling torch:2", done=1.72e9, total=4e9, per_second=31e6)
def ask():
    with hidden():
        print("question?", file=sys.stderr, flush=True)
        time.sleep(0.8)
        print("answered", file=sys.stderr, flush=True)
with status_line(lambda: news, after_seconds=0.2):
    time.sleep({before})
    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    time.sleep(1)
print("answer")
"""
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize(
    ("news", "columns", "line"),
    [
        ("asking lab", 80, "asking lab (12 s)"),
        ("asking lab and two and three", 20, "asking lab and two …"),
        (PULL, 80, "pulling torch:2: 43 %, 1.72 of 4.00 GB, 31 MB/s, about 1 min left (12 s)"),
        (PULL, 40, "pulling torch:2: 43 % (12 s)"),
        (PULL, 20, "43 % pulling torch:2"),
        ("title \x1b]0;x\x07", 80, "title ?]0;x? (12 s)"),
        (PULL, 0, ""),
    ],
)
def test_a_line_has_what_there_is_room_for(news: str | WorkProgress, columns: int, line: str) -> None:
    assert line_of(news, waited_seconds=12.7, columns=columns) == line


@pytest.mark.parametrize(
    ("percent", "columns", "is_ascii", "bar"),
    [
        (50, 24, False, ("━" * 11, "─" * 11)),
        (50, 24, True, ("#" * 11, "-" * 11)),
        (100, 200, False, ("━" * 30, "")),
        (50, 13, False, ("", "")),
        (None, 80, False, ("", "")),
    ],
)
def test_a_bar_fills_what_is_left_of_the_line(
    percent: int | None, columns: int, is_ascii: bool, bar: tuple[str, str]
) -> None:
    assert bar_of(percent, columns=columns, is_ascii=is_ascii) == bar


def test_what_goes_on_is_what_was_said_last() -> None:
    news = News("connecting")
    news.say(PULL)
    assert news.newest() is PULL


def test_where_stderr_is_no_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    line = StatusLine(lambda: "asking", after_seconds=0.0)
    line.start()
    time.sleep(0.1)
    line.stop()
    assert capsys.readouterr() == ("", "")


def on_terminal(columns: int, *, seconds: float = 0.6, program: str = "", stdout: int | None = None, **env: str) -> str:
    """What the program prints on a terminal of so many columns; `stdout` goes elsewhere where it is given."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    names = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    variables = {name: text for name, text in os.environ.items() if name not in names}
    process = subprocess.Popen(
        [sys.executable, "-c", program or PROGRAM.format(seconds=seconds)],
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**variables, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **env},
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:  # The other side is closed.
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=30) == 0
    return said.decode()


def drawn(said: str) -> list[str]:
    """The lines that were on the screen at one time or another, without orders to the terminal."""
    return [line for line in re.split(r"[\r\n]+", SEQUENCE.sub("", said)) if line.strip()]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
@pytest.mark.parametrize("columns", [20, 80])
def test_the_line_is_never_longer_than_the_terminal_and_gone_at_the_end(columns: int) -> None:
    said = on_terminal(columns)
    lines = drawn(said)
    assert any("43 %" in line for line in lines)
    assert all(len(line) < columns for line in lines), lines
    # Erased, and the cursor shown again; what was told and the answer stay.
    after = said.rpartition("43 %")[2]
    assert "\x1b[2K" in after
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l") >= 0
    assert drawn(after.rpartition("\x1b[2K")[2]) == ["answer"]
    assert "told" in lines


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_without_colours_it_has_none() -> None:
    assert COLOUR.search(on_terminal(100))
    said = on_terminal(100, NO_COLOR="1")
    assert any("43 %" in line for line in drawn(said))
    assert not [code for code in COLOUR.findall(said) if re.search(r"3[0-9]|9[0-7]|38;", code)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_a_terminal_that_cannot_erase_is_told_by_lines_that_stay() -> None:
    said = on_terminal(80, TERM="dumb")
    assert "\x1b" not in said
    assert drawn(said) == ["pulling torch:2: 43 %, 1.72 of 4.00 GB, 31 MB/s, about 1 min left", "told", "answer"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_what_goes_into_a_file_is_the_answer_alone() -> None:
    read, write = os.pipe()
    said = on_terminal(80, stdout=write)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == "answer\n"
    assert "43 %" in said
    assert "answer" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_what_is_over_soon_shows_nothing() -> None:
    assert "43 %" not in on_terminal(80, seconds=0.0).partition("told")[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
@pytest.mark.parametrize("before", [0.0, 0.5], ids=["before it is drawn", "while it is drawn"])
def test_a_question_has_the_terminal_for_itself(before: float) -> None:
    said = on_terminal(80, program=ASKS.format(before=before))
    first, _, rest = said.partition("question?")
    asking, _, after = rest.partition("answered")
    assert ("43 %" in first) == (before > 0)
    assert drawn(asking) == []
    assert "43 %" in after
    assert drawn(after.rpartition("\x1b[2K")[2]) == ["answer"]
