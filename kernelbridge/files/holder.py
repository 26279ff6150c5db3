"""Let one process of this machine at a time keep a workspace in step, and tell the others how far it is."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


# What a holder writes once the copy is in step, and takes away while it is not; or behind it, why it will not be.
_IN_STEP: Final = "in step\n"
_FAILED: Final = "failed\n"


class Holder:
    """A place for one; who has it loses it with its process at the latest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state_path = path.with_suffix(".state")
        # The open lock file while it is held here; changed by take() and release().
        self._descriptor: int | None = None

    def __repr__(self) -> str:
        return f"<Holder {self._path.name} {'here' if self.is_held else 'not here'}>"

    @property
    def is_held(self) -> bool:
        """Whether this object has the place."""
        return self._descriptor is not None

    def take(self) -> bool:
        """Take the place if nobody has it; whether it is had now. Raises: OSError: there can be no locked file."""
        if self._descriptor is not None:
            return True
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _try_lock(descriptor)
        except (BlockingIOError, PermissionError):  # The second is Windows' word for it.
            os.close(descriptor)
            return False
        except OSError:
            # Nobody has it, and nobody can: a file system without locks, or a broken one.
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self.tell_state(is_in_step=False)
        return True

    def release(self) -> None:
        """Give the place back. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def tell_state(self, *, is_in_step: bool, failure: str = "") -> None:
        """Tell those who wait whether the copy is in step, or why it will not be; they hear what can be written."""
        with contextlib.suppress(OSError):
            said = f"{_FAILED}{failure}" if failure else _IN_STEP if is_in_step else ""
            self._state_path.write_text(said, "utf-8", "replace")

    def is_in_step(self) -> bool:
        """Whether the holder, whoever it is, has said that the copy is in step."""
        return self._said() == _IN_STEP

    def failure(self) -> str:
        """Return why the copy will not be in step, as the holder has said; empty: it has not."""
        said = self._said()
        return said.removeprefix(_FAILED) if said.startswith(_FAILED) else ""

    def _said(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return self._state_path.read_text("utf-8")
        return ""
