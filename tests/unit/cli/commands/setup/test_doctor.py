"""cli/commands/setup/doctor.py: what `doctor` prints, of which hosts, and its exit code."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from kernelbridge.config import load
from kernelbridge.config.schema import Config
from kernelbridge.errors import HostKeyUnknown, HostUnreachable
from kernelbridge.fleet.doctor import Finding, LinkState, Tell
from kernelbridge.hosts.transport.host_keys import HostKey
from kernelbridge.jupyter import installation
from tests.fakes import FakeFleet, host_key
from tests.unit.cli.conftest import Call

UNREACHABLE = HostUnreachable(host="two", address="two:22", reason="timed out")
WHOLE = Finding(link="Python", found="3.11")


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What is found of this machine: it is whole unless a test says otherwise."""
    found = [WHOLE]

    def examine(config_path: Path, tell: Tell, *, root: Path, launcher: Path) -> Config | None:
        for one in found:
            tell(one)
        return load.load(config_path) if found == [WHOLE] else None

    monkeypatch.setattr(installation, "examine", examine)
    return found


def test_each_host_is_told_with_its_environments_and_all_holds(call: Call, fleet: FakeFleet) -> None:
    ended = call("doctor")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "This machine",
        "  ok       Python             3.11",
        "",
        "lab",
        "  ok       login              for pytorch (0.2 s)",
        "",
        "two",
        "  ok       login              for nobody (0.2 s)",
        "",
        "here",
        "  ok       login              for nobody (0.2 s)",
        "",
        "All links hold.",
    ]


@pytest.mark.parametrize("name", ["lab", "pytorch"])
def test_one_host_or_those_of_one_environment_are_looked_at(call: Call, name: str) -> None:
    hosts = [one["host"] for one in json.loads(call("doctor", name, "--json").out)]
    assert hosts == ["", "lab"]


def test_a_name_of_neither_is_refused_with_the_nearest(call: Call) -> None:
    ended = call("doctor", "labb")
    assert ended.code == 13
    assert "Did you mean `lab`?" in ended.err


def test_the_first_broken_link_is_the_last_line_and_its_exit_code_the_commands(call: Call, fleet: FakeFleet) -> None:
    fleet.findings["two"] = Finding.of_error("login", UNREACHABLE)
    ended = call("doctor")
    assert ended.code == UNREACHABLE.exit_code
    lines = ended.out.splitlines()
    assert f"  broken   login              {UNREACHABLE.sentence}" in lines
    assert f"{' ' * 30}{UNREACHABLE.remedy}" in lines
    assert lines[-1] == f"Broken: login of two. {UNREACHABLE.remedy}"
    told = json.loads(call("doctor", "--json").out)
    assert [one["state"] for one in told] == ["ok", "ok", "broken", "ok"]


def test_without_a_config_no_host_is_looked_at(call: Call, this_machine: list[Finding]) -> None:
    this_machine[:] = [Finding.of_error("config", UNREACHABLE)]
    ended = call("doctor")
    assert ended.code == UNREACHABLE.exit_code
    assert ended.out.splitlines()[-1].startswith("Broken: config of this machine.")


def test_fix_writes_specs_and_asks_about_a_new_key_and_looks_again(
    call: Call,
    fleet: FakeFleet,
    this_machine: list[Finding],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = Finding(link="kernel specs", state=LinkState.BROKEN, found="old", exit_code=1)
    unknown = HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc")
    fleet.keys, fleet.findings["lab"] = [host_key()], Finding.of_error("login", unknown)
    trust = fleet.trust

    async def trusted(host: str, key: HostKey) -> None:
        fleet.findings.clear()
        await trust(host, key)

    def examine(path: Path, tell: Tell, *, root: Path, launcher: Path) -> Config:
        tell(old if fleet.findings else WHOLE)
        return load.load(path)

    monkeypatch.setattr(fleet, "trust", trusted)
    monkeypatch.setattr(installation, "examine", examine)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    ended = call("doctor", "lab", "--fix")
    assert ended.code == 0
    assert ended.out.count("This machine") == 2
    assert "Wrote kernelbridge-pytorch" in ended.out
    assert [host for host, _ in fleet.trusted] == ["lab"]
    assert ended.out.splitlines()[-1] == "All links hold."


def test_fix_of_a_machine_that_is_whole_does_nothing_and_is_for_people(call: Call) -> None:
    assert call("doctor", "--fix").out.count("This machine") == 1
    assert call("doctor", "--fix", "--json").code == 2
