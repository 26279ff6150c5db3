"""relay/process/entrypoint.py: scripts as images have them; what they set up is taken over, or it is said why not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kernelbridge.relay.process.entrypoint import EntrypointRun, Setup
from tests.rig.daemon import SLOW

GIVEN = {"PATH": os.environ["PATH"], "HOME": "/home/given", "KEPT": "1", "GONE": "1", "NVIDIA_VISIBLE_DEVICES": "void"}


def ran(folder: Path, script: str, *, limit_seconds: float = 20 * SLOW, first: tuple[str, ...] = ()) -> EntrypointRun:
    path = folder / "entry.sh"
    path.write_text(script)
    path.chmod(0o755)
    return EntrypointRun([*first, str(path)], GIVEN, str(folder), limit_seconds=limit_seconds)


def setup_of(run: EntrypointRun) -> Setup:
    until = time.monotonic() + 30 * SLOW
    while True:
        setup = run.poll()
        if setup is not None:
            return setup
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_a_script_sets_up_is_what_has_changed(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "setup.bash").write_text(
        "export ROS=/opt/ros PYTHONPATH=/opt/ros/lib\nexport PATH=/opt/ros/bin:$PATH\n"
    )
    script = f"""#!/bin/sh
set -e
. {tmp_path}/setup.bash
unset GONE
export NVIDIA_VISIBLE_DEVICES=all TMPDIR=/nowhere MANY="a
b"
umask 027
cd {tmp_path}/work
echo ready
exec "$@"
"""
    run = ran(tmp_path, script)
    setup = setup_of(run)
    assert setup == Setup(
        variables={
            "ROS": "/opt/ros",
            "PYTHONPATH": "/opt/ros/lib",
            "PATH": f"/opt/ros/bin:{GIVEN['PATH']}",
            "MANY": "a\nb",
            "GONE": None,
        },
        cwd=str(tmp_path / "work"),
        umask=0o027,
    )
    assert run.output == b"ready\n"
    assert list(tmp_path.glob("entrypoint-*")) == []
    environment = dict(GIVEN)
    before, folder = os.umask(0o022), Path.cwd()
    try:
        setup.apply(environment)
        assert (environment["ROS"], "GONE" in environment, environment["KEPT"]) == ("/opt/ros", False, "1")
        assert (Path.cwd(), os.umask(0)) == (tmp_path / "work", 0o027)
    finally:
        os.umask(before)
        os.chdir(folder)


def test_one_that_only_starts_its_command_changes_nothing(tmp_path: Path) -> None:
    setup = setup_of(ran(tmp_path, '#!/bin/sh\nexec "$@"\n', first=("env",)))
    assert (setup.variables, setup.cwd, setup.failure) == ({}, "", "")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho one; echo two >&2; exit 3\n", "ended with exit code 3 and has not run its command: two"),
        ("#!/bin/sh\nexit 0\n", "ended with exit code 0 and has not run its command"),
        ("#!/bin/sh\nkill -9 $$\n", "ended with signal 9 and has not run its command"),
        ("#!/nowhere/sh\n", "cannot be run (No such file or directory)"),
    ],
)
def test_one_that_fails_is_told_with_its_last_words(tmp_path: Path, script: str, words: str) -> None:
    assert setup_of(ran(tmp_path, script)) == Setup(failure=words)


def test_one_that_prints_and_never_starts_its_command_is_ended_in_time(tmp_path: Path) -> None:
    run = ran(tmp_path, "#!/bin/sh\nwhile :; do echo serving; done\n", limit_seconds=0.5)
    began = time.monotonic()
    assert setup_of(run).failure == "has not run its command within 0.5 s: serving"
    assert time.monotonic() - began < 5 * SLOW
    assert len(run.output) <= 8192
    (pid,) = run.pids
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_what_it_leaves_running_neither_delays_it_nor_lives_on(tmp_path: Path) -> None:
    run = ran(tmp_path, f'#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/pid\nexport A=1\n"$@"\nsleep 600\n')
    assert setup_of(run).variables == {"A": "1"}
    pid = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10 * SLOW
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_one_that_becomes_another_user_takes_nobody_elses_name_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ran(tmp_path, '#!/bin/sh\nexport HOME=/home/other USER=other A=1\nunset KEPT\nexec "$@"\n')
    uid = os.getuid()
    monkeypatch.setattr("kernelbridge.relay.process.entrypoint.os.getuid", lambda: uid + 1)
    assert setup_of(run).variables == {"A": "1"}
