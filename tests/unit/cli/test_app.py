"""cli/app.py: how every call and every error ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.cli import app
from kernelbridge.errors import HostRefused, HostUnreachable
from tests.fakes import FakeFleet
from tests.printed import docs_line
from tests.unit.cli.conftest import Call, Ended

FIRST, SECOND = "aabb1111-0000-4000-8000-000000000001", "ccdd2222-0000-4000-8000-000000000002"
REFUSED = HostRefused(host="two", address="two:22")
DOWN = HostUnreachable(host="lab", address="lab:22", reason="timed out")


# -- the call itself


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_without_a_command_the_help_is_shown(call: Call, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    for command in ("config", "trust", "install", "uninstall", "ps", "stop", "logs", "attach", "clean"):
        assert command in ended.out + ended.err


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version") == Ended(code=0, out="kernelbridge 1.2.3\n", err="")


@pytest.mark.parametrize("arguments", [("stpo",), ("ps", "--jsno"), ("logs",), ("logs", "a", "--tail", "x"), ("stop",)])
def test_a_call_that_makes_no_sense_ends_with_code_2(call: Call, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "Usage: kernelbridge" in ended.err


def test_only_what_runs_another_command_leaves_its_options_to_it(call: Call) -> None:
    assert [name for name, command in app.COMMANDS.items() if command.runs_another] == ["run", "exec"]
    assert call("stop", "zz", "--no-such-option").code == 2
    for name in ("run", "exec", "shell", "up"):
        assert f"Usage: kernelbridge {name} [OPTIONS]" in call(name, "--help").out


def test_the_config_can_be_named_before_the_command(call: Call, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('[environments.other]\nimage = "x"\n')
    ended = call("--config", str(tmp_path / "other.toml"), "config", "--json")
    assert list(json.loads(ended.out)["environments"]) == ["other"]


def test_an_error_is_its_sentence_its_remedy_and_its_code(call: Call) -> None:
    ended = call("--config", "/nowhere/x.toml", "ps")
    assert ended.code == 11
    assert ended.out == ""
    assert ended.err.splitlines() == [
        f"{Path('/nowhere/x.toml').absolute()}: the config file cannot be read (there is no such file).",
        "Create it, or name another one in KERNELBRIDGE_CONFIG.",
        docs_line(11),
    ]


def test_with_debug_an_error_shows_its_traceback_too(call: Call) -> None:
    ended = call("--debug", "--config", "/nowhere/x.toml", "ps")
    assert ended.code == 11
    assert "Traceback (most recent call last)" in ended.err


def test_an_error_without_a_code_of_its_own_names_no_page(call: Call, fleet: FakeFleet) -> None:
    fleet.is_stuck = True
    assert "docs:" not in call("ps").err


def test_a_bug_of_ours_is_one_line_and_the_way_to_see_more(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [None]  # type: ignore[list-item]
    ended = call("ps")
    assert ended.code == 1
    assert ended.err.startswith("kernelbridge has a bug here: AttributeError")
    assert "kernelbridge --debug" in ended.err
    assert "Traceback" not in ended.err
    assert fleet.is_closed
    assert "Traceback" in call("--debug", "ps").err


# -- trust


def test_python_m_kernelbridge_is_the_same_program(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "kernelbridge", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.startswith("kernelbridge 0.")
