"""cli/output.py: which line goes where, what is said of an error, and that nobody's text steers a terminal."""

from __future__ import annotations

import errno
import sys

import pytest

from kernelbridge import errors, plain_text
from kernelbridge.cli import output
from kernelbridge.errors import ConfigInvalid, HostRefused, KernelBridgeError, Problem
from tests.printed import docs_line

REFUSED = HostRefused(host="lab", address="lab:22")
ESCAPE = "\x1b[31mred\x07\x00\x9b\u202e"

Capture = pytest.CaptureFixture[str]


def test_an_answer_goes_to_stdout_and_all_else_to_stderr(capsys: Capture) -> None:
    output.say("an answer")
    output.complain("a complaint")
    assert capsys.readouterr() == ("an answer\n", "a complaint\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("Größe 3 · 4, 日本", "Größe 3 · 4, 日本"),
        (ESCAPE, "?[31mred????"),
        ("one\ntwo\r\tthree", "one?two??three"),
        ("", ""),
    ],
)
def test_no_control_character_reaches_a_terminal(text: str, shown: str, capsys: Capture) -> None:
    assert plain_text.printable(text) == shown
    output.say(text)
    output.complain(text)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")


def test_an_error_is_its_sentence_what_to_do_and_where_it_is_explained(capsys: Capture) -> None:
    output.complain_of(REFUSED)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [REFUSED.sentence, REFUSED.remedy, docs_line(20)]


def test_what_was_done_already_stands_before_the_page(capsys: Capture) -> None:
    error = HostRefused(host="lab", address="lab:22")
    error.add_note("The kernel on two runs on.")
    output.complain_of(error)
    assert capsys.readouterr().err.splitlines()[2:] == ["The kernel on two runs on.", docs_line(20)]


def test_an_error_without_a_remedy_and_a_code_of_its_own_is_one_line(capsys: Capture) -> None:
    output.complain_of(KernelBridgeError("It failed.", ""))
    assert capsys.readouterr().err == "It failed.\n"


def test_a_configs_problems_come_line_by_line_each_with_the_file(capsys: Capture) -> None:
    error = ConfigInvalid(
        path="/k.toml", problems=[Problem(key="a", sentence="unknown key"), Problem(key="b", sentence="not a number")]
    )
    output.complain_of(error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["/k.toml: a: unknown key", "/k.toml: b: not a number"]
    assert lines[-1] == docs_line(error.exit_code)
    assert error.sentence not in lines


def test_on_a_terminal_an_errors_lines_break_between_words(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    output.complain_of(REFUSED)
    *lines, docs = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 30
    assert " ".join(lines) == str(REFUSED)
    assert docs_line(REFUSED.exit_code) in docs  # An address is for a click or a copy.


def test_an_errors_own_text_steers_no_terminal(capsys: Capture) -> None:
    output.complain_of(HostRefused(host=ESCAPE, address="x"))
    err = capsys.readouterr().err
    assert "?[31mred????" in err
    assert "\x1b[31m" not in err


def test_the_page_of_an_error_is_below_the_documentations_newest_version() -> None:
    assert errors.error_page(20) == f"{errors.DOCUMENTATION}/page/reference/errors.html#exit-20"


@pytest.mark.parametrize(
    ("number", "is_gone"), [(errno.EPIPE, True), (errno.EIO, True), (errno.ENOSPC, False), (errno.EINVAL, False)]
)
def test_who_read_is_gone_where_a_pipe_or_a_terminal_was_closed(number: int, is_gone: bool) -> None:
    assert output.is_reader_gone(OSError(number, "no")) is is_gone


def test_on_windows_a_closed_pipe_has_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert output.is_reader_gone(OSError(errno.EINVAL, "no"))
