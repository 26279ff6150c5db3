"""kernel/life_lock.py: a lock that is held to the end of a process, and by nobody after it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from kernelbridge.kernel import life_lock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="no other system has pid namespaces")

HOLDER = """\
import sys
from pathlib import Path
from kernelbridge.kernel import life_lock
life_lock.hold(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
input()
"""


def test_a_lock_is_held_until_its_process_has_ended_however_that_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "other"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert not life_lock.is_free(tmp_path, "other")
        life_lock.sweep(tmp_path, set())
        assert (tmp_path / "other").exists()
        other.kill()
        other.wait(30)
        assert life_lock.is_free(tmp_path, "other")
    life_lock.sweep(tmp_path, {"other"})
    assert life_lock.is_free(tmp_path, "other")
    life_lock.sweep(tmp_path, set())
    assert not life_lock.is_free(tmp_path, "other"), "nobody knows any more"


def test_ones_own_lock_is_never_free_and_is_taken_once(tmp_path: Path) -> None:
    assert not life_lock.is_held(tmp_path, "mine")
    for _ in range(2):
        life_lock.hold(tmp_path, "mine")
    assert life_lock.is_held(tmp_path, "mine")
    life_lock.sweep(tmp_path, set())
    assert not life_lock.is_free(tmp_path, "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_swept_away_while_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, swept = fcntl.flock, [tmp_path / "mine"]

    def flock(descriptor: int, how: int) -> None:
        if swept:
            swept.pop().unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    life_lock.hold(tmp_path, "mine")
    assert (tmp_path / "mine").exists()


def test_where_there_are_no_locks_no_file_tells_of_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="no locks available"):
        life_lock.hold(tmp_path, "mine")
    assert list(tmp_path.iterdir()) == []
    assert not life_lock.is_free(tmp_path, "mine")
