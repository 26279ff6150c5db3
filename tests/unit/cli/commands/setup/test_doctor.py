"""cli/commands/setup/doctor.py: what `doctor` prints, of which hosts, and its exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from kernelbridge.cli.commands.setup import doctor
from kernelbridge.config import load
from kernelbridge.config.schema import Config
from kernelbridge.errors import HostKeyUnknown, HostUnreachable
from kernelbridge.fleet.doctor.finding import Finding, LinkName, LinkState, Tell
from kernelbridge.hosts.transport.host_keys import HostKey
from kernelbridge.jupyter.checks import installation
from tests.fakes import FakeFleet, host_key
from tests.unit.cli.conftest import Call, calls, set_terminal_size

UNREACHABLE = HostUnreachable(host="two", address="two:22", reason="timed out")
WHOLE = Finding(link=LinkName.PYTHON, found="3.11")


@pytest.fixture(autouse=True)
def this_machine(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What is found of this machine: it is whole unless a test says otherwise."""
    found = [WHOLE]

    def examine(config_path: Path, tell: Tell, **more: object) -> Config | None:
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
        "  ok       Python                    3.11",
        "",
        "lab",
        "  ok       login             200 ms  for pytorch",
        "",
        "two",
        "  ok       login             200 ms  for nobody",
        "",
        "here",
        "  ok       login             200 ms  for nobody",
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
    fleet.findings["two"] = Finding.of_error(LinkName.LOGIN, UNREACHABLE)
    ended = call("doctor")
    assert ended.code == UNREACHABLE.exit_code
    lines = ended.out.splitlines()
    assert f"  broken   login                     {UNREACHABLE.sentence}" in lines
    assert f"{' ' * 37}{UNREACHABLE.remedy}" in lines
    assert lines[-1] == f"Broken: login of two. {UNREACHABLE.remedy}"
    told = json.loads(call("doctor", "--json").out)
    assert [one["state"] for one in told] == ["ok", "ok", "broken", "ok"]


def test_without_a_config_no_host_is_looked_at(call: Call, this_machine: list[Finding]) -> None:
    this_machine[:] = [Finding.of_error(LinkName.CONFIG, UNREACHABLE)]
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
    old = Finding(link=LinkName.SPECS, state=LinkState.BROKEN, found="old", exit_code=1)
    unknown = HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc")
    fleet.keys, fleet.findings["lab"] = [host_key()], Finding.of_error(LinkName.LOGIN, unknown)
    trust = fleet.trust

    async def trusted(host: str, key: HostKey) -> None:
        fleet.findings.clear()
        await trust(host, key)

    def examine(path: Path, tell: Tell, **more: object) -> Config:
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


def test_an_environment_that_is_named_is_tried(call: Call) -> None:
    said = {name: call("doctor", *name, "--json").out for name in ((), ("lab",), ("pytorch",))}
    assert [name for name, out in said.items() if "and tried" in out] == [("pytorch",)]


def test_who_waits_is_told_what_is_looked_at_or_tried(
    call: Call, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []

    @contextmanager
    def watched(ask: Callable[[], object]) -> Iterator[None]:
        def hide() -> AbstractContextManager[None]:
            shown.append(ask())
            return nullcontext()

        shown.append(ask())
        monkeypatch.setattr(doctor, "hidden", hide)
        yield

    monkeypatch.setattr(doctor, "status_line", watched)
    python = Finding(link=LinkName.IMAGE_PYTHON, found="3.11", environment="pytorch")
    fleet.findings["lab"] = [python, replace(python, link=LinkName.CONTAINER), replace(python, link=LinkName.KERNEL)]
    call("doctor", "pytorch")
    assert shown == ["looking at lab", "lab: trying a container", "lab: trying a kernel", "looking at lab"]
    shown.clear()
    call("doctor", "lab")
    assert set(shown) == {"looking at lab"}


def test_an_environments_links_stand_under_its_name(call: Call, fleet: FakeFleet) -> None:
    login = Finding(link=LinkName.LOGIN, found="in")
    image = Finding(link=LinkName.IMAGE, found="old", environment="pytorch", state=LinkState.WARNING, remedy="Pull it.")
    fleet.findings["lab"] = [login, image]
    lines = call("doctor", "lab").out.splitlines()
    assert lines[lines.index("pytorch on lab") :] == [
        "pytorch on lab",
        "  warning  image                     old",
        f"{' ' * 37}Pull it.",
        "",
        "All links hold; 1 of them with a warning.",
    ]
    told = json.loads(call("doctor", "lab", "--json").out)
    assert list(told[-1]) == ["host", "environment", "link", "state", "found", "remedy", "exit_code", "seconds"]


def test_the_exit_code_is_that_of_the_nearest_broken_link(call: Call, fleet: FakeFleet) -> None:
    image = Finding(link=LinkName.IMAGE, found="x", environment="pytorch", state=LinkState.BROKEN, exit_code=40)
    fleet.findings["lab"] = image
    fleet.findings["two"] = Finding.of_error(LinkName.LOGIN, UNREACHABLE)
    ended = call("doctor")
    assert ended.code == 40
    assert ended.out.splitlines()[-1] == "Broken: image of pytorch on lab."


def test_fix_throws_away_what_cannot_be_read(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "data/kernelbridge"
    folder.mkdir(parents=True)
    (folder / "images.json").write_text("[")
    ended = call("doctor", "--fix")
    assert "Threw away from the cache: images.json." in ended.out
    assert json.loads((folder / "images.json").read_text())["images"] == {}


def test_on_a_terminal_long_lines_break_within_their_column(
    call: Call, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    set_terminal_size(monkeypatch, 80, 24)
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setenv("COLUMNS", "80")
    fleet.findings["lab"] = Finding(link=LinkName.LOGIN, found="word " * 20)
    call("doctor", "lab")
    lines = [line for line in shown.getvalue().splitlines() if "word" in line]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert all(line.startswith(" " * 37 + "word") for line in lines[1:])


def test_what_is_skipped_for_one_reason_shares_a_row(call: Call, fleet: FakeFleet) -> None:
    behind = [
        Finding(link=link, state=LinkState.SKIPPED, found="behind engine") for link in (LinkName.API, LinkName.STORAGE)
    ]
    fleet.findings["lab"] = [
        *behind,
        Finding(link=LinkName.DRIVER, found="no GPU"),
        Finding(link=LinkName.TOOLKIT, state=LinkState.SKIPPED, found="behind engine"),
        Finding(link=LinkName.IMAGE, environment="pytorch", state=LinkState.SKIPPED, found="behind engine"),
    ]
    lines = call("doctor", "lab").out.splitlines()
    assert lines[lines.index("lab") + 1 : -2] == [
        f"  skipped {' ' * 27}API version, storage: behind engine",
        "  ok       NVIDIA driver             no GPU",
        "  skipped  toolkit                   behind engine",
        "",
        "pytorch on lab",
        "  skipped  image                     behind engine",
    ]


def test_where_nobody_has_begun_no_host_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    none_there = Config(path=tmp_path / "none.toml").with_local()
    monkeypatch.setattr(installation, "examine", lambda path, tell, **more: none_there)
    ended = calls(fleet, tmp_path / "none.toml", capsys)("doctor")
    assert (ended.code, ended.out) == (0, "\nAll links hold.\n")
