"""tests/disk: each call on a file fails once, in each way; and that this would tell.

Nothing that was there is lost or half written, nothing is left behind or kept open, and the next run does it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelbridge.kernel.records import Records
from tests.disk import runs
from tests.disk.cases import CASES
from tests.disk.faults import _BY_NUMBER, _BY_PATH, Fault, Faults
from tests.disk.runs import Case, Lost, State, files


@pytest.mark.parametrize("name", CASES)
def test_whichever_call_fails_nothing_is_lost_and_the_next_run_does_it(name: str, tmp_path: Path) -> None:
    figures = runs.run(CASES[name], tmp_path)
    assert figures.runs >= len(CASES[name].faults)


# -- that it would tell


def _old(folder: Path) -> None:
    (folder / "file").write_bytes(b"old" * 100)


def _file(folder: Path) -> State:
    return {"file": (folder / "file").read_bytes()}


def _sloppy(folder: Path) -> None:
    (folder / "file").write_bytes(b"new" * 100)


def _forgetful(folder: Path) -> None:
    fresh = folder / ".file.1.0123abcd"
    fresh.write_bytes(b"new" * 100)
    fresh.replace(folder / "file")


def _silent(folder: Path) -> None:
    try:
        _tidy(folder)
    except OSError:
        return


def _tidy(folder: Path) -> None:
    fresh = folder / ".file.1.0123abcd"
    try:
        fresh.write_bytes(b"new" * 100)
        fresh.replace(folder / "file")
    finally:
        fresh.unlink(missing_ok=True)


def _open_handed(folder: Path) -> None:
    descriptor = os.open(folder / "file", os.O_RDONLY)
    os.read(descriptor, 10)
    _tidy(folder)
    os.close(descriptor)


def _stubborn(folder: Path) -> None:
    """Does it once, and never again where that has failed."""
    if (folder / "begun").exists():
        return
    try:
        _tidy(folder)
    except OSError:
        (folder / "begun").touch()
        raise


def _presumptuous(folder: Path) -> None:
    """Takes a short write for a whole one."""
    descriptor = os.open(folder / ".file.1.0123abcd", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"new" * 100)
    os.close(descriptor)
    (folder / ".file.1.0123abcd").replace(folder / "file")


@pytest.mark.parametrize(
    ("act", "refusals", "fault", "told"),
    [
        (_sloppy, (OSError,), Fault.FULL, "file is neither as before nor as wanted: b'new"),
        (_sloppy, (OSError,), Fault.KILLED, "neither as before nor as wanted"),
        (_forgetful, (OSError,), Fault.FULL, "left behind: .file.1.0123abcd"),
        (_tidy, (), Fault.BROKEN, "it crashed"),
        (_silent, (OSError,), Fault.BROKEN, "it said nothing, and has not done it"),
        (_open_handed, (OSError,), Fault.BROKEN, "still open: file"),
        (_stubborn, (OSError,), Fault.FULL, "the next run does not do it either"),
        (_presumptuous, (OSError,), Fault.SHORT, "neither as before nor as wanted"),
    ],
)
def test_a_sloppy_writer_is_found(
    act: Callable[[Path], None], refusals: tuple[type[Exception], ...], fault: Fault, told: str, tmp_path: Path
) -> None:
    with pytest.raises(Lost, match=told):
        runs.run(Case(prepare=_old, act=act, look=_file, refusals=refusals), tmp_path, faults=[fault])


def test_a_tidy_writer_is_not(tmp_path: Path) -> None:
    assert runs.run(Case(prepare=_old, act=_tidy, look=files, refusals=(OSError,)), tmp_path).runs > 20


def test_calls_outside_the_folder_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    faults = Faults(tmp_path / "inside", at=1)
    with faults.injected():
        (tmp_path / "outside").write_text("x")
        assert list(tmp_path.iterdir())
    assert (faults.calls, faults.failed) == (0, [])


def test_what_cannot_be_read_at_the_moment_is_not_thrown_away_as_broken(tmp_path: Path) -> None:
    """`doctor --fix` throws away records that are of no use; a disk that fails for a moment makes none so."""
    CASES["records"].prepare(tmp_path)
    before = files(tmp_path)
    for at in range(1, 40):
        with Faults(tmp_path, at=at, fault=Fault.BROKEN).injected():
            Records(tmp_path / "kb").forget_unreadable()
        assert files(tmp_path) == before


def test_each_kind_of_call_has_failed(tmp_path: Path) -> None:
    """By one of these cases at least: else they would tell less than they say."""
    failed: Counter[str] = Counter()
    for name in ("kernel specs are removed", "a file comes from the host", "a host is trusted"):
        failed.update(runs.run(CASES[name], tmp_path / name, faults=[Fault.BROKEN]).failed)
    for name in ("a workspace is held", "a file is made", "a host's key is taken back"):
        failed.update(runs.run(CASES[name], tmp_path / name, faults=[Fault.BROKEN]).failed)
    failed.update(
        runs.run(CASES["a host is trusted, and a line is begun"], tmp_path, faults=[Fault.STAYS_BROKEN]).failed
    )
    assert set(failed) == {*_BY_PATH.values(), *_BY_NUMBER.values(), "flock"}
