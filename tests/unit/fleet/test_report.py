"""fleet/report.py: what a bug report has, and that nothing secret is in it wherever it stood."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kernelbridge.config import load
from kernelbridge.errors import HostRefused
from kernelbridge.fleet import log_files, report
from kernelbridge.fleet.doctor.finding import Finding, LinkName, LinkState
from kernelbridge.fleet.report import BugReport

CONFIG = '[hosts.lab]\nssh = "lab"\n[environments.a]\nimage = "x"\nenv = { EDITOR = "MARKER" }\n'
MADE = datetime(2031, 5, 6, 7, 8, tzinfo=UTC)


@pytest.fixture
def whole(tmp_path: Path) -> BugReport:
    broken = replace(Finding.of_error(LinkName.LOGIN, HostRefused(host="lab", address="lab:22")), host="lab")
    return BugReport(
        made=MADE,
        versions=[("Python", "3.11.7"), ("kernelbridge", "1.2.3")],
        config=load.parse(CONFIG, tmp_path / "kernelbridge.toml"),
        findings=[Finding(link=LinkName.PYTHON, found="3.11.7"), broken],
        errors=["2031-05-06T07:08:09.000Z ERROR a: it failed"],
        logs=[("server-1-2.log", ["2031-05-06T07:08:09.000Z INFO a: one", "two"])],
        failed_starts=["3f2a91c0 at 2031-05-06 07:08 +0000"],
    )


def test_it_has_all_and_says_so(whole: BugReport) -> None:
    text = whole.text()
    assert text.startswith("# kernelbridge report\n\nMade 2031-05-06 07:08 UTC. In it: versions of 2 programs")
    for part in (
        "Python 3.11.7",
        '[environments.a]\nimage = "x"\nenv = { EDITOR = *** }',
        "lab: broken login: lab: lab:22 refused the connection. Is sshd running there, and is the port right?",
        '"exit_code": 20',
        "ERROR a: it failed",
        "INFO a: one",
        "3f2a91c0 at",
    ):
        assert part in text
    assert "MARKER" not in text
    assert whole.contents == [
        "versions of 2 programs and packages",
        "your config, without values of secrets",
        "what `kernelbridge doctor` found: 2 links",
        "the last errors: 1",
        "the ends of 1 log files",
        "which starts failed: 1, without what they wrote",
    ]


def test_what_looks_like_a_secret_is_taken_out_of_every_part(whole: BugReport) -> None:
    secret = "HF_TOKEN=s3cr3t"
    planted = replace(
        whole,
        versions=[("proxy", "http://ada:s3cr3t@proxy:1")],
        config=None,
        config_failure=HostRefused(host=secret, address="x"),
        findings=[Finding(link=LinkName.CONFIG, state=LinkState.BROKEN, found=secret, remedy=secret)],
        errors=[secret],
        logs=[("a.log", [secret])],
        failed_starts=[secret],
    )
    text = planted.text()
    assert "s3cr3t" not in text
    assert text.count("***") >= 8


def test_names_are_replaced_in_every_part(whole: BugReport) -> None:
    text = replace(whole, masked=lambda text: text.replace("lab", "HOST-1")).text()
    assert "lab" not in text.replace("available", "")


def test_nothing_in_a_log_ends_its_block_or_speaks_to_a_terminal(whole: BugReport) -> None:
    text = replace(whole, logs=[("a.log", ["```", "# a heading \x1b]0;x\x07", "y" * 5000])]).text()
    assert text.count("```") == 2 * text.count("```text")
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 1000


def test_what_nobody_looked_at_is_said(whole: BugReport) -> None:
    bare = replace(whole, findings=None, config=None, errors=(), logs=(), failed_starts=())
    assert "Nobody looked." in bare.text()
    assert bare.text().count("None.") == 3
    assert "no config: it cannot be read" in bare.contents


def test_errors_are_found_in_all_files_with_their_tracebacks_in_order_of_time(tmp_path: Path) -> None:
    folder = tmp_path / log_files.LOGS_FOLDER
    folder.mkdir()
    at = "2031-05-06T07:08:{}.000Z {} kernelbridge.x: {}"
    (folder / "server-1-2.log").write_text(
        "\n".join(
            [
                "rest of a line",
                at.format("02", "ERROR", "second"),
                "Traceback (most recent call last):",
                "ValueError: x",
                at.format("04", "INFO", "nothing"),
                "more of nothing",
            ]
        )
    )
    (folder / "commands.log").write_text(at.format("01", "WARNING", "first") + "\n")
    os.utime(folder / "commands.log", (1000, 1000))
    errors, logs = report.read_logs(tmp_path)
    assert [line.rpartition(": ")[2] for line in errors] == [
        "first",
        "second",
        "Traceback (most recent call last):",
        "x",
    ]
    assert [name for name, _ in logs] == ["server-1-2.log", "commands.log"]


def test_a_start_that_failed_is_named_without_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "failed-starts").mkdir()
    (tmp_path / "failed-starts" / "3f2a91c0-1111.log").write_text("MARKER")
    (found,) = report.failed_starts(tmp_path)
    assert found.startswith("3f2a91c0 at 20")


def test_versions_are_those_of_what_is_installed_and_of_vs_codes_extensions(tmp_path: Path) -> None:
    for folder in (".vscode/extensions/ms-toolsai.jupyter-2025.9.1-linux-x64", ".vscode-server/extensions/a.b-1.0"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".vscode/extensions/ms-vscode-remote.remote-ssh-0.120.0").mkdir()
    found = dict(report.versions(tmp_path))
    assert {"Python", "system", "OpenSSH", "kernelbridge", "asyncssh", "pyzmq", "jupyterlab"} <= set(found)
    assert found["vscode: ms-toolsai.jupyter"] == "2025.9.1-linux-x64"
    assert found["vscode: ms-vscode-remote.remote-ssh"] == "0.120.0"
    assert not [name for name in found if "a.b" in name]


def test_a_program_that_is_not_there_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert dict(report.versions(tmp_path))["OpenSSH"] == "not there"
