"""cli/commands/setup/trust.py: `kernelbridge trust`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import FakeFleet, host_key
from tests.unit.cli.conftest import Call


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
    assert ended.code == 28
    assert "was written to" in ended.err
    assert len(fleet.trusted) == 1, "what does not help once is not done again"
