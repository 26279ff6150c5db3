"""For commands that run another: a fleet in memory that does, a call whose descriptors are read, and what stdin is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernelbridge.cli import app
from tests.made_runs import RunFleet
from tests.unit.cli.conftest import Call, Ended, set_terminal_size


@pytest.fixture
def run_fleet() -> RunFleet:
    return RunFleet()


@pytest.fixture
def run_call(
    run_fleet: RunFleet,
    config_path: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> Ended:
        environ = {"KERNELBRIDGE_CONFIG": str(config_path), "TERM": "made-up"}
        code = app.run(arguments, open_fleet=run_fleet.open, environ=environ, version="1.2.3")  # type: ignore[arg-type]
        printed = capfd.readouterr()
        return Ended(code=code, out=printed.out, err=printed.err)

    return run


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
