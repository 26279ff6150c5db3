"""hosts/transport/openssh/control_master.py: an ssh that asks nobody, in a closed folder, which ends with its owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.hosts.transport.openssh.control_master import ControlMaster

# Tells its words, makes its control socket's file and stays as long as its stdin.
SSH = '#!/bin/sh\nprintf "%s\\n" "$@" >"$HERE/words"\n: >"$3"\nexec cat\n'


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A login with an ssh of ours."""
    program = tmp_path / "ssh"
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("HERE", str(tmp_path))
    return {"PATH": f"relative:{tmp_path}:{os.defpath}", "XDG_RUNTIME_DIR": "relative", "TMPDIR": "/" + "x" * 90}


@pytest.fixture
def master(environ: dict[str, str]) -> Iterator[ControlMaster]:
    """One that has begun."""
    master = ControlMaster(["-F", "none", "--", "lab"], environ=environ)
    yield master
    master.close()


def test_it_asks_nobody_checks_keys_and_opens_nothing_else(master: ControlMaster, tmp_path: Path) -> None:
    assert master.process.stdin is not None
    assert master.process.stdout is not None
    master.process.stdin.write(b"ready\n")
    master.process.stdin.flush()
    assert master.process.stdout.readline() == b"ready\n"
    words = (tmp_path / "words").read_text().splitlines()
    for wanted in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ClearAllForwardings=yes", "UpdateHostKeys=no"):
        assert wanted in words
    assert words[-5:] == ["-F", "none", "--", "lab", "/bin/sh -s"]


def test_its_folder_is_closed_to_others_and_goes_with_it(master: ControlMaster) -> None:
    folder = Path(master.folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(master.control_path) < 80
    assert "running" in repr(master)
    master.close()
    master.close()
    assert not folder.exists()
    assert master.process.returncode is not None
    assert "ended" in repr(master)


def test_it_ends_with_its_stdin(master: ControlMaster) -> None:
    assert master.process.stdin is not None
    master.process.stdin.close()
    assert master.process.wait(20) == 0


def test_where_there_is_no_ssh_nothing_is_left(environ: dict[str, str], tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    with pytest.raises(OSError, match="ssh"):
        ControlMaster(["--", "lab"], environ={**environ, "PATH": str(runtime), "XDG_RUNTIME_DIR": str(runtime)})
    assert list(runtime.iterdir()) == []
