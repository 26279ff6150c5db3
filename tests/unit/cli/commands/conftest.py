"""For commands that run another: a fleet in memory that does, a call whose descriptors are read, and what stdin is."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.made_runs import RunFleet
from tests.unit.cli.conftest import Call, calls, set_terminal_size


@pytest.fixture
def run_fleet() -> RunFleet:
    return RunFleet()


@pytest.fixture
def run_call(run_fleet: RunFleet, config_path: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    return calls(run_fleet, config_path, capfd, TERM="made-up")


Feed = Callable[[bytes], None]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    """What stands on stdin from now on, to its end."""
    opened = []

    def give(data: bytes) -> None:
        source, sink = os.pipe()
        os.write(sink, data)
        os.close(sink)
        opened.append(os.fdopen(source))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield give
    for file in opened:
        file.close()


@contextlib.contextmanager
def unread_stdout() -> Iterator[None]:
    """Have this process's stdout be a pipe that nobody reads any more. No fixture: before a test it is pytest's."""
    source, sink = os.pipe()
    os.close(source)
    before, stream, file = os.dup(1), sys.stdout, os.fdopen(sink, "w")
    os.dup2(sink, 1)
    sys.stdout = file
    try:
        yield
    finally:
        sys.stdout = stream
        os.dup2(before, 1)
        os.close(before)
        with contextlib.suppress(BrokenPipeError):
            file.close()


class Shell:
    """The terminal that somebody sits at: this side of it, and the program's."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        self.file = os.fdopen(slave, "r+b", buffering=0)


@pytest.fixture
def sits_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Have stdin be a terminal, and stdout look like one: what is written there is captured all the same."""
    made = Shell()
    monkeypatch.setattr(sys, "stdin", made.file)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    set_terminal_size(monkeypatch, 111, 33)
    yield made
    made.file.close()
    os.close(made.master)
