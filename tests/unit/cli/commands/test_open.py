"""cli/commands/open.py: JupyterLab is started, or the one that runs is opened, without its token in any argv."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli import lab
from kernelbridge.cli.commands import open as opening
from kernelbridge.cli.lab import LabServer
from tests.unit.cli.conftest import Call


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[list[str], Path, dict[str, str]]]:
    """What was started in the place of the command, where to and with which variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    found: list[tuple[list[str], Path, dict[str, str]]] = []
    monkeypatch.setattr(opening, "run_in_place", lambda *words: found.append(words))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return found


def test_jupyterlab_is_started_here_with_this_config(call: Call, started: list[Any], config_path: Path) -> None:
    assert call("open", "pytorch", "--no-browser").code == 0
    ((words, folder, variables),) = started
    spec = "--MultiKernelManager.default_kernel_name=kernelbridge-pytorch"
    assert words == [sys.executable, "-m", "jupyterlab", "--no-browser", spec]
    assert (folder, variables["KERNELBRIDGE_CONFIG"]) == (config_path.parent, str(config_path))


def test_where_jupyterlab_is_missing_it_is_said_how_to_get_it(
    call: Call, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ended = call("open")
    assert ended.code == 1
    assert f"JupyterLab is not installed beside kernelbridge, for {sys.executable}." in ended.err
    assert "pipx inject kernelbridge jupyterlab" in ended.err
    assert started == []


def test_a_jupyterlab_that_runs_is_opened_without_its_token_in_an_argv(
    call: Call, started: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = LabServer(url="http://127.0.0.1:1/", token="secret", root=tmp_path)
    monkeypatch.setattr(lab, "server_for", lambda page, folder: server)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda *words: opened.append(*words))
    ended = call("open", "pytorch")
    assert (ended.code, ended.out) == (0, "Opens http://127.0.0.1:1/lab\n")
    assert "choose kernelbridge-pytorch" in ended.err
    (address,) = opened
    assert address.startswith("file://")
    assert "secret" not in address
    assert "token=secret" in (tmp_path / "kernelbridge-open.html").read_text()
    # Who prints the address is to have all of it.
    assert call("open", "--no-browser").out == "http://127.0.0.1:1/lab?token=secret\n"
    assert started == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows puts no program in the place of another")
def test_the_program_has_the_folder_the_variables_and_the_place_of_the_command(tmp_path: Path) -> None:
    printed = "import json, os; print(json.dumps([os.getpid(), os.getcwd(), os.environ['SAID']]))"
    program = (
        "import os, sys; from pathlib import Path; from kernelbridge.cli.commands.open import run_in_place\n"
        "run_in_place([sys.executable, '-c', sys.argv[1]], Path(sys.argv[2]), {**os.environ, 'SAID': 'yes'})"
    )
    words = [sys.executable, "-c", program, printed, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.read()) == [process.pid, str(tmp_path), "yes"]
    assert process.returncode == 0
