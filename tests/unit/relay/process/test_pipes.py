"""relay/process/pipes.py: a real process on pipes, or on a terminal, is fed and read without ever blocking."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import WindowSize
from kernelbridge.relay.process.pipes import Pipes
from tests.rig.daemon import SLOW

WINDOW = WindowSize(111, 33)


class Run:
    """A process with its pipes, and what it wrote, by kind of frame."""

    def __init__(self, script: str, window: WindowSize | None = None) -> None:
        self.pipes = Pipes(window)
        self.popen: Any = subprocess.Popen(["sh", "-c", script], start_new_session=True, **self.pipes.arguments())
        self.pipes.opened(self.popen)
        self.wrote = {terminal.OUTPUT: b"", terminal.ERRORS: b""}

    def turn(self) -> None:
        """Read and write what can be, as the relay's loop does."""
        writes = [self.pipes.input] if self.pipes.input is not None else []
        ready, may_write, _ = select.select(list(self.pipes.outputs), writes, [], 0.01)
        for descriptor in ready:
            self.wrote[self.pipes.outputs[descriptor]] += self.pipes.read(descriptor)
        if may_write:
            self.pipes.push()

    def until(self, claim: Callable[[], bool]) -> None:
        end = time.monotonic() + 20 * SLOW
        while not claim():
            assert time.monotonic() < end, self.wrote
            self.turn()

    def finish(self) -> int:
        """Go on to the end of its output, and return its exit code."""
        self.until(lambda: not self.pipes.outputs and self.popen.poll() is not None)
        return int(self.popen.returncode)

    @property
    def out(self) -> bytes:
        return self.wrote[terminal.OUTPUT]


Make = Callable[..., Run]


@pytest.fixture
def make() -> Iterator[Make]:
    before = set(Path("/proc/self/fd").iterdir())
    runs: list[Run] = []

    def made(*words: Any) -> Run:
        runs.append(Run(*words))
        return runs[-1]

    yield made
    for run in runs:
        run.popen.kill()
        run.popen.wait()
        run.pipes.close()
        run.pipes.close()  # Safe to do twice.
    assert set(Path("/proc/self/fd").iterdir()) == before, "each descriptor is closed"


def test_a_command_on_pipes_has_an_input_with_an_end_and_two_outputs(make: Make) -> None:
    run = make("cat; echo trouble >&2; exit 3")
    run.pipes.feed(b"one ")
    run.pipes.feed(b"two")
    run.pipes.end_input()
    assert run.finish() == 3
    assert run.wrote == {terminal.OUTPUT: b"one two", terminal.ERRORS: b"trouble\n"}
    assert run.pipes.taken_bytes == 7


def test_input_that_is_not_taken_waits_and_comes_whole_before_its_end(make: Make, tmp_path: Path) -> None:
    run = make(f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; sha256sum")
    data = os.urandom(300_000)
    run.pipes.feed(data)
    run.pipes.end_input()
    assert run.pipes.input is not None
    waiting = run.pipes.waiting_bytes
    assert 0 < waiting < len(data)
    assert run.pipes.taken_bytes == len(data) - waiting
    (tmp_path / "go").touch()
    assert run.finish() == 0
    assert (run.pipes.waiting_bytes, run.pipes.taken_bytes) == (0, len(data))
    assert run.out == subprocess.run(["sha256sum"], input=data, capture_output=True, check=True).stdout


def test_input_of_a_command_that_reads_no_more_counts_as_taken(make: Make) -> None:
    run = make("exec <&-; echo closed; sleep 60")
    run.until(lambda: run.out == b"closed\n")
    run.pipes.feed(b"x" * 300_000)
    run.until(lambda: run.pipes.input is None)
    assert run.pipes.taken_bytes == 300_000


def test_nothing_is_fed_behind_the_end(make: Make) -> None:
    run = make("cat")
    run.pipes.end_input()
    run.pipes.feed(b"late")
    assert run.finish() == 0
    assert run.out == b""


def test_a_command_on_a_terminal_has_that_as_its_own_in_its_size(make: Make) -> None:
    run = make("stty size; echo >/dev/tty mine; test -t 0 && test -t 1 && test -t 2", WINDOW)
    assert run.finish() == 0, "what nobody has any more (EIO) is an end"
    assert run.out == b"33 111\r\nmine\r\n"
    assert run.wrote[terminal.ERRORS] == b"", "a terminal has one output"


def test_a_command_hears_that_its_terminal_has_another_size(make: Make) -> None:
    run = make("trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.01; done", WINDOW)
    run.until(lambda: run.out == b"up\r\n")
    run.pipes.resize(WindowSize(50, 20))
    assert run.finish() == 0
    assert run.out == b"up\r\n20 50\r\n"


def test_a_size_is_nothing_to_pipes(make: Make) -> None:
    run = make("cat")
    run.pipes.resize(WINDOW)
    run.pipes.end_input()
    assert run.finish() == 0


def test_the_end_of_a_terminals_input_is_a_key_and_more_may_follow(make: Make) -> None:
    run = make("stty -echo; echo up; cat; cat; echo over", WINDOW)
    run.until(lambda: run.out == b"up\r\n")
    run.pipes.feed(b"first\n")
    run.pipes.end_input()
    run.until(lambda: b"first" in run.out)
    run.pipes.feed(b"second\n")
    run.pipes.end_input()
    assert run.finish() == 0
    assert run.out == b"up\r\nfirst\r\nsecond\r\nover\r\n"


def test_ctrl_c_in_a_terminal_is_a_signal(make: Make) -> None:
    run = make("trap 'echo heard; exit 7' INT; echo up; while :; do sleep 0.01; done", WINDOW)
    run.until(lambda: run.out == b"up\r\n")
    run.pipes.feed(b"\x03")
    assert run.finish() == 7
    assert run.out.endswith(b"heard\r\n")


def test_nothing_to_read_is_no_end(make: Make) -> None:
    run = make("sleep 60")
    descriptor = next(iter(run.pipes.outputs))
    assert run.pipes.read(descriptor) == b""
    assert len(run.pipes.outputs) == 2


def test_a_terminal_whose_command_was_never_started_is_closed() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    pipes = Pipes(WINDOW)
    with pytest.raises(FileNotFoundError):
        subprocess.Popen(["/nowhere/command"], start_new_session=True, **pipes.arguments())
    pipes.close()
    assert set(Path("/proc/self/fd").iterdir()) == before
