"""relay/process/kernel_process.py: a kernel process is started, signalled, watched and ended with all it started."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.protocol import terminal
from kernelbridge.protocol.handshake import ExitedEvent
from kernelbridge.relay.process import kernel_process
from kernelbridge.relay.process.kernel_process import KernelProcess, Ring
from tests.rig.daemon import wait_until


def order(code: str, **facts: Any) -> dict[str, Any]:
    return {"argv": ["{python}", "-c", code, "{connection_file}", "--s={session}"], "session": "s1", **facts}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


def ended(process: KernelProcess) -> ExitedEvent:
    """How it ended; the relay's loop reads its output meanwhile."""
    while process.popen.poll() is None:
        select.select(process.outputs, [], [], 1 if process.outputs else 0.01)
        process.read_output()
    outcome = process.outcome()
    process.close()
    assert outcome is not None
    return outcome


def test_a_kernel_process_gets_its_words_its_folder_and_nothing_of_jupyters_own(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setenv("HOME", folder)
    told = "import os, sys, json; print(json.dumps([sys.argv[1:], dict(os.environ), os.getsid(0) == os.getpid()]))"
    process = KernelProcess(1, folder, order(told, env={"TOKEN": "secret"}), Ring(), scratch=folder)
    assert repr(process) == f"<KernelProcess launch 1 pid {process.popen.pid} None>"
    assert process.address(3) == f"ipc://{folder}/1/k-3"
    connection = json.loads(Path(process.connection).read_text())
    assert ended(process).code == 0
    words, environment, has_session = json.loads(process.ring.text())
    assert words == [process.connection, "--s=s1"]
    assert has_session
    assert environment["TOKEN"] == "secret"
    assert environment["PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING"] == "1"
    assert (environment["TMPDIR"], environment["HOME"]) == (f"{folder}/tmp", folder)
    assert "JPY_PARENT_PID" not in environment
    assert process.moved is None
    assert (connection["transport"], connection["key"], connection["shell_port"]) == ("ipc", "", 1)
    assert Path(process.connection).parent.stat().st_mode & 0o077 == 0


def test_what_a_launch_leaves_in_its_folders_is_there_at_the_next(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/" and has_access(path, mode))
    leave = "import os, pathlib, tempfile; [pathlib.Path(one, 'left').touch() for one in PLACES]"
    places = "(tempfile.gettempdir(), os.path.expanduser('~'))"
    ended(KernelProcess(1, folder, order(leave.replace("PLACES", places)), Ring(), scratch=folder))
    find = f"import os, tempfile; print([os.path.exists(one + '/left') for one in {places}])"
    process = KernelProcess(2, folder, order(find), Ring(), scratch=folder)
    ended(process)
    assert process.ring.text() == "[True, True]\n"


has_access = os.access


def test_last_words_are_this_launchs_own(folder: str) -> None:
    ring = Ring()
    assert ended(KernelProcess(1, folder, order("print('old')"), ring, scratch=folder)).last_words == "old"
    assert ended(KernelProcess(2, folder, order("pass"), ring, scratch=folder)).last_words == ""
    assert ended(KernelProcess(3, folder, order("print('new')"), ring, scratch=folder)).last_words == "new"
    assert ring.text() == "old\nnew\n"


@pytest.mark.parametrize(
    ("code", "number", "words"),
    [
        (
            "import ctypes\ndef f():\n ctypes.string_at(0)\nf()",
            signal.SIGSEGV,
            "Fatal Python error: Segmentation fault, File ",
        ),
        ("import os; os.abort()", signal.SIGABRT, 'Fatal Python error: Aborted, File "<string>", line 1 in <module>'),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGBUS)",
            signal.SIGBUS,
            "Fatal Python error: Bus error, File ",
        ),
        ("import os; print('all is well', flush=True); os._exit(9)", -9, "all is well"),
    ],
)
def test_a_crash_says_which_line_of_python_led_to_it(folder: str, code: str, number: int, words: str) -> None:
    code = "import faulthandler; faulthandler.enable(2); " + code
    outcome = ended(KernelProcess(1, folder, order(code), Ring(), scratch=folder))
    assert outcome.code == -number
    assert outcome.last_words.startswith(words)
    assert (outcome.shm_bytes > 0) == (number == signal.SIGBUS)


def test_a_kernel_says_which_requests_it_has_handlers_for(folder: str) -> None:
    process = KernelProcess(1, folder, order("pass"), Ring(), scratch=folder)
    assert process.handlers is None
    path = Path(process.connection).with_name("kernel.json")
    for text in ("no json", "[1]"):
        path.write_text(text)
        assert process.handlers is None
    path.write_text('{"control": ["a_request"]}')
    assert process.handlers == {"a_request"}
    ended(process)
    assert (process.interrupt_mode, order("pass", interrupt_mode="message")["interrupt_mode"]) == ("signal", "message")


def test_an_end_by_itself_is_told_with_its_last_words(folder: str) -> None:
    outcome = ended(
        KernelProcess(
            7, folder, order("import sys; print('one'); print('two\\n\\n'); sys.exit(3)"), Ring(), scratch=folder
        )
    )
    assert outcome.to_dict() == {
        "event": "exited",
        "launch": 7,
        "code": 3,
        "out_of_memory": False,
        "wanted": False,
        "last_words": "two",
        "why": "",
        "full": (),
        "shm_bytes": 0,
    }


def test_an_end_that_was_asked_for_takes_along_what_the_kernel_started(folder: str) -> None:
    code = (
        "import subprocess, time\n"
        "print(subprocess.Popen(['sleep', '60'], process_group=0).pid, flush=True)\n"
        "time.sleep(60)"
    )
    process = KernelProcess(1, folder, order(code), Ring(), scratch=folder)
    assert process.outcome() is None
    wait_until(lambda: process.read_output() and process.ring.text().endswith("\n"), "the worker's number", 10)
    worker = int(process.ring.text())
    process.stop()
    outcome = ended(process)
    assert (outcome.code, outcome.wanted) == (-signal.SIGKILL, True)
    wait_until(lambda: is_over(worker), "the worker to end", 5)
    process.signal_group(signal.SIGINT)  # All of it has ended: no error.


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_signal_reaches_the_kernels_group(folder: str) -> None:
    code = "import time\ntry:\n print('up', flush=True)\n time.sleep(60)\nexcept KeyboardInterrupt:\n print('heard')"
    process = KernelProcess(1, folder, order(code), Ring(), scratch=folder)
    wait_until(lambda: process.read_output() and "up" in process.ring.text(), "the process", 10)
    process.signal_group(signal.SIGINT)
    assert (ended(process).code, process.ring.text()) == (0, "up\nheard\n")


def test_a_kernel_begins_where_the_environment_says(folder: str, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    process = KernelProcess(
        1, folder, order("import os; print(os.getcwd())", cwd=str(tmp_path / "work")), Ring(), scratch=folder
    )
    ended(process)
    assert process.ring.text().strip() == str(tmp_path / "work")


def test_the_ring_keeps_the_last_bytes_and_never_cuts_a_piece() -> None:
    ring = Ring()
    for number in range(10):
        ring.add(str(number).encode() * (kernel_process.RING_BYTES // 4))
    assert set(ring.text()) == set("6789")
    ring.add(b"x" * (2 * kernel_process.RING_BYTES))
    assert ring.text() == "x" * (2 * kernel_process.RING_BYTES)
    ring.add("é".encode()[:1])
    assert ring.text() == "\N{REPLACEMENT CHARACTER}"


def test_a_folder_that_its_user_may_not_enter_is_named_and_the_home_is_instead(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", folder)
    where = "import os; print(os.getcwd())"
    process = KernelProcess(1, folder, {**order(where), "cwd": f"{folder}/gone"}, Ring(), scratch=folder)
    ended(process)
    assert process.ring.text().strip() == os.path.realpath(folder)
    assert process.moved == (f"{folder}/gone", folder)


# -- a user's command in a kernel's place


def command(text: str, *, window: dict[str, int] | None = None, **facts: Any) -> dict[str, Any]:
    return {"argv": ["sh", "-c", text, "{python}"], "session": "s1", "command": {"window": window}, **facts}


def written(process: KernelProcess) -> dict[int, bytes]:
    """What it writes from now on, by kind."""
    pieces = {terminal.OUTPUT: b"", terminal.ERRORS: b""}

    def take(kind: int, piece: bytes) -> None:
        pieces[kind] += piece

    process.written = take
    return pieces


def test_a_commands_words_are_its_users_and_its_outputs_are_told_apart(folder: str) -> None:
    process = KernelProcess(1, folder, command('echo "$0"; echo trouble >&2; exit 3'), Ring(), scratch=folder)
    pieces = written(process)
    assert ended(process).code == 3
    assert pieces == {terminal.OUTPUT: b"{python}\n", terminal.ERRORS: b"trouble\n"}
    assert sorted(process.ring.text().split()) == ["trouble", "{python}"]


def test_what_waits_is_a_command_of_ours_whose_words_are_filled_in(folder: str) -> None:
    argv = ["{python}", "-c", "print('waits')"]
    order = {"argv": argv, "session": "s1", "command": {"window": None, "waits": True}}
    process = KernelProcess(1, folder, order, Ring(), scratch=folder)
    assert ended(process).code == 0
    assert process.ring.text() == "waits\n"


def test_a_command_has_a_terminal_where_one_is_asked_for(folder: str) -> None:
    window = {"columns": 100, "rows": 40}
    process = KernelProcess(1, folder, command("stty size", window=window), Ring(), scratch=folder)
    pieces = written(process)
    assert ended(process).code == 0
    assert pieces[terminal.OUTPUT] == b"40 100\r\n"


def test_a_setup_comes_before_a_command_and_takes_neither_its_input_nor_its_output(folder: str) -> None:
    order = command("cat", setup=["echo making", "cat"])
    process = KernelProcess(1, folder, order, Ring(), scratch=folder)
    pieces = written(process)
    assert process.pipes is not None
    process.pipes.feed(b"input")
    process.pipes.end_input()
    assert ended(process).code == 0
    assert pieces == {terminal.OUTPUT: b"input", terminal.ERRORS: b"making\n"}


def test_other_programs_find_the_process_by_its_number(folder: str, tmp_path: Path) -> None:
    for order_of in (command, order):
        process = KernelProcess(len(list(tmp_path.iterdir())), folder, order_of("exit"), Ring(), scratch=folder)
        assert (tmp_path / "kernel.pid").read_text() == str(process.popen.pid)
        ended(process)


def test_the_end_of_a_command_is_known_although_what_it_left_writes_for_ever(folder: str) -> None:
    process = KernelProcess(1, folder, command("yes & exit 4"), Ring(), scratch=folder)
    # Whoever takes its output has something to do with it: meanwhile there is more.
    process.written = lambda kind, piece: time.sleep(0.002)
    process.popen.wait()
    wait_until(lambda: process.read_output() and process.ring.added_bytes > 0, "what it left behind", 10)
    before_bytes = process.ring.added_bytes
    outcome = process.outcome()
    assert process.ring.added_bytes - before_bytes < kernel_process.MOST_LAST_BYTES + 2 * 65536
    process.close()
    assert outcome is not None
    assert outcome.code == 4


def test_a_command_that_cannot_be_started_leaves_nothing_open(folder: str) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    order = {**command("", window={"columns": 80, "rows": 24}), "argv": ["/nowhere/command"]}
    with pytest.raises(FileNotFoundError):
        KernelProcess(1, folder, order, Ring(), scratch=folder)
    assert set(Path("/proc/self/fd").iterdir()) == before
