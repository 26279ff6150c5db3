"""One call of the command line, on a fleet that lives in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernelbridge.cli import app
from tests.fakes import FakeFleet

CONFIG = """
[hosts.lab]
ssh = "lab"
[hosts.two]
ssh = "two"
[hosts.here]
ssh = "local"
[environments.pytorch]
image = "pytorch/pytorch:2"
hosts = ["lab"]
shm_size = "8g"
ulimits = { nofile = "3:4" }
mounts = ["/data:/data:ro"]
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one call ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Ended]


def set_terminal_size(monkeypatch: pytest.MonkeyPatch, columns: int, lines: int) -> None:
    """Have this process's terminal say that it is so large."""
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor=1: os.terminal_size((columns, lines)))


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "kernelbridge.toml"
    path.write_text(CONFIG, "utf-8")
    return path


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where records are: none of this login's own."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))


def calls(fleet: FakeFleet, config_path: Path, captured: pytest.CaptureFixture[str], **environ: str) -> Call:
    """Return what calls the command line on a fleet, with these variables."""

    def run(*arguments: str) -> Ended:
        variables = {"KERNELBRIDGE_CONFIG": str(config_path), **environ}
        code = app.run(arguments, open_fleet=fleet.open, environ=variables, version="1.2.3")  # type: ignore[arg-type]
        printed = captured.readouterr()
        return Ended(code=code, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def call(fleet: FakeFleet, config_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    return calls(fleet, config_path, capsys)
