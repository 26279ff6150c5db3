"""cli/app.py, session.py and hosts.py: how every call and every error ends, and the commands on hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.cli.session import Session
from kernelbridge.errors import HostKeyUnknown, HostRefused, HostUnreachable
from tests.fakes import FakeFleet, host_key
from tests.unit.cli.conftest import Call, Ended

FIRST, SECOND = "aabb1111-0000-4000-8000-000000000001", "ccdd2222-0000-4000-8000-000000000002"
REFUSED = HostRefused(host="two", address="two:22")
DOWN = HostUnreachable(host="lab", address="lab:22", reason="timed out")


# -- the call itself


def test_without_a_command_the_help_is_shown(call: Call) -> None:
    ended = call()
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
        "Write it, or name another with KERNELBRIDGE_CONFIG.",
    ]


def test_with_debug_an_error_shows_its_traceback_too(call: Call) -> None:
    ended = call("--debug", "--config", "/nowhere/x.toml", "ps")
    assert ended.code == 11
    assert "Traceback (most recent call last)" in ended.err


def test_a_bug_of_ours_is_one_line_and_the_way_to_see_more(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [None]  # type: ignore[list-item]
    ended = call("ps")
    assert ended.code == 1
    assert ended.err.startswith("kernelbridge has a bug here: AttributeError")
    assert "kernelbridge --debug" in ended.err
    assert "Traceback" not in ended.err
    assert fleet.is_closed
    assert "Traceback" in call("--debug", "ps").err


def test_what_takes_too_long_is_said(call: Call, fleet: FakeFleet) -> None:
    fleet.is_stuck = True
    ended = call("ps")
    assert (ended.code, ended.err.splitlines()[0]) == (1, "No answer within 60 s.")


def test_a_session_says_which_config_it_is_about(fleet: FakeFleet, tmp_path: Path) -> None:
    session = Session(open_fleet=fleet.open, environ={"KERNELBRIDGE_CONFIG": str(tmp_path)})  # type: ignore[arg-type]
    assert repr(session) == f"<Session config={tmp_path}>"


def test_all_problems_of_a_config_are_printed_at_once(call: Call, config_path: Path) -> None:
    config_path.write_text('[hosts.lab]\nssh = "lab"\ngpu = 1\n[environments.a]\nimage = "x"\nshm_size = "8q"\n')
    ended = call("config")
    assert ended.code == 10
    assert ended.err.splitlines() == [
        f"{config_path}: hosts.lab.gpu: unknown key; did you mean `gpus` of an environment?",
        f'{config_path}: environments.a.shm_size: must be a size like "8g" or "512m"',
        "Mend the file; `kernelbridge config` checks it.",
    ]


# -- trust


def test_trust_remembers_a_key_that_was_compared(call: Call, fleet: FakeFleet) -> None:
    jump, key = host_key(name="jump"), host_key(fingerprint="SHA256:xyz")
    fleet.keys = [jump, key]
    ended = call("trust", "lab", "--yes")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "jump shows the key ssh-ed25519 SHA256:abc",
        "lab.example shows the key ssh-ed25519 SHA256:xyz",
        "lab is trusted: ssh-ed25519 SHA256:abc",
    ]
    assert fleet.trusted == [("lab", jump), ("lab", key)]


@pytest.mark.parametrize(("answer", "trusted"), [("y\n", 1), ("n\n", 0), ("\n", 0), ("", 0)])
def test_trust_asks_first_and_no_is_the_default(
    call: Call, fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, trusted: int
) -> None:
    fleet.keys = [host_key()]
    (tmp_path / "answer").write_text(answer)
    with (tmp_path / "answer").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        ended = call("trust", "lab")
    assert len(fleet.trusted) == trusted
    assert (ended.code == 0) is bool(trusted)
    assert "Traceback" not in ended.err


def test_trust_never_takes_a_changed_key(call: Call, fleet: FakeFleet) -> None:
    fleet.keys = [host_key(is_changed=True)]
    ended = call("trust", "lab", "--yes")
    assert ended.code == 25
    assert "has CHANGED" in ended.err
    assert "ssh-keygen -R 'lab.example'" in ended.err
    assert fleet.trusted == []


def test_trust_of_this_machine_needs_no_key(call: Call) -> None:
    assert call("trust", "here").out == "here is this machine: there is no key to trust.\n"


def test_trust_of_an_unknown_host_names_the_nearest(call: Call) -> None:
    ended = call("trust", "lap")
    assert ended.code == 13
    assert "Did you mean `lab`?" in ended.err


def test_trust_that_does_not_take_ends(call: Call, fleet: FakeFleet) -> None:
    fleet.keys, fleet.is_forgetful = [host_key()], True
    ended = call("trust", "lab", "--yes")
    unknown = HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc")
    assert (ended.code, ended.err.splitlines()[0]) == (unknown.exit_code, unknown.sentence)


def test_python_m_kernelbridge_is_the_same_program(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "kernelbridge", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.startswith("kernelbridge 0.")
