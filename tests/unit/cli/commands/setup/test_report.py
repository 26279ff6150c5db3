"""`kernelbridge report`: one file, never over another, of which is said what is in it; no secret, and no name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kernelbridge.errors import HostRefused
from kernelbridge.fleet import log_files
from tests.fakes import FakeFleet
from tests.unit.cli.conftest import CONFIG, Call

SECRET = "s3cr3t-0123"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is called, with a log in which a secret was planted."""
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / "data" / "kernelbridge" / log_files.LOGS_FOLDER
    logs.mkdir(parents=True)
    (logs / "launcher-1-2.log").write_text(f"2031-05-06T07:08:09.000Z ERROR a: token={SECRET}\n")
    return tmp_path


def test_it_is_written_and_what_is_in_it_is_said(call: Call, fleet: FakeFleet, folder: Path, config_path: Path) -> None:
    config_path.write_text(f'{CONFIG}env = {{ EDITOR = "{SECRET}" }}\n')
    ended = call("report")
    assert (ended.code, ended.err) == (0, "")
    (path,) = folder.glob("kernelbridge-report-*.md")
    lines = ended.out.splitlines()
    assert lines[0] == f"Wrote {path}. In it:"
    assert "  your config, without values of secrets" in lines
    assert "Read it before you send it" in lines[-1]
    text = path.read_text()
    assert SECRET not in text
    assert "HOST-1: ok login: for pytorch" in text
    assert fleet.is_closed
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == 0o600


def test_names_stay_where_that_is_wanted(call: Call, folder: Path) -> None:
    assert call("report", "-o", "with.md", "--keep-names").code == 0
    assert call("report", "-o", "without.md").code == 0
    assert "[hosts.lab]" in Path("with.md").read_text()
    assert "[hosts.lab]" not in Path("without.md").read_text()


def test_no_host_is_asked_where_that_is_not_wanted(call: Call, folder: Path) -> None:
    assert call("report", "--offline", "-o", "-", "--keep-names").out.count("lab: ok login") == 0


def test_it_goes_to_stdout_alone(call: Call, folder: Path) -> None:
    ended = call("report", "-o", "-")
    assert ended.out.startswith("# kernelbridge report")
    assert "Wrote" not in ended.out
    assert list(folder.glob("*.md")) == []


def test_a_file_is_not_replaced_without_a_question(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "mine.md"
    path.write_text("mine")
    ended = call("report", "-o", "mine.md")
    assert (ended.code, ended.err.splitlines()[0]) == (1, "mine.md exists.")
    assert path.read_text() == "mine"


def test_a_place_that_cannot_be_written_is_said(call: Call, folder: Path) -> None:
    ended = call("report", "-o", "no/such/folder.md")
    assert (ended.code, ended.err.splitlines()[0]) == (
        1,
        "no/such/folder.md cannot be written: No such file or directory.",
    )


def test_a_broken_config_is_a_part_of_it(call: Call, config_path: Path, folder: Path) -> None:
    config_path.write_text(f'[hosts.lab]\nssh = 1\npassword = "{SECRET}"\n')
    ended = call("report", "-o", "-")
    assert ended.code == 0
    assert "hosts.lab.ssh" in ended.out
    assert SECRET not in ended.out
    assert "no config: it cannot be read" in ended.out


def test_how_a_command_failed_is_in_the_next_report(call: Call, fleet: FakeFleet, folder: Path) -> None:
    assert call("stop", "nobody").code != 0
    fleet.problems = (HostRefused(host="lab", address="x"),)
    assert call("ps").code == 0
    text = call("report", "-o", "-").out
    assert "ERROR command: stop: KernelNotFound (exit 52): " in text
    assert "ERROR command: ps: HostRefused (exit 20): " in text, "what was told and ended nothing"
