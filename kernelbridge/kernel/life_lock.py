"""Hold a lock for as long as this process lives, so that another container of this machine can tell when it has ended.

A container that was started anew, or a distribution of WSL, has the same boot and other process numbers than before.
Only a lock that the machine's own kernel keeps tells there that a process of before is gone: see process_mark.py, which
asks only where the files are on a disk of this machine's own. On NFS such locks may not hold between machines.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

if sys.platform == "win32":

    def _lock(descriptor: int, *, waits: bool) -> None:
        raise OSError("Windows has no pid namespaces, and nobody to tell.")

else:
    import fcntl

    def _lock(descriptor: int, *, waits: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)


# The locks of this process, by file; closed by its end alone.
_HELD: dict[Path, int] = {}


def is_held(folder: Path, name: str) -> bool:
    """Whether this process holds the lock of this name."""
    return folder / name in _HELD


def hold(folder: Path, name: str) -> None:
    """Lock this process's own file until its end. Raises OSError."""
    path = folder / name
    while path not in _HELD:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Who looks whether it is free has it for a moment only, and may have removed it then.
            _lock(descriptor, waits=True)
            if os.fstat(descriptor).st_nlink:
                _HELD[path] = descriptor
        except OSError:
            # A file without a lock would tell of an end.
            path.unlink(missing_ok=True)
            raise
        finally:
            if path not in _HELD:
                os.close(descriptor)


def is_free(folder: Path, name: str) -> bool:
    """Whether the process of this name has held its lock and does so no more; False where nobody knows."""
    return _when_free(folder / name, lambda path: None)


def sweep(folder: Path, names: Collection[str]) -> None:
    """Remove the files of processes that have ended, but not of these names."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name not in names:
                _when_free(path, Path.unlink)


def _when_free(path: Path, act: Callable[[Path], None]) -> bool:
    """Do something with a file that nobody has locked, while it is locked here; whether that was so."""
    if path in _HELD:
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor, waits=False)
        act(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
