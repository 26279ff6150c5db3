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


# What a holder writes once the copy is in step, and takes away while it is not.
_IN_STEP: Final = "in step\n"


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
        """Take the place if nobody has it; whether it is had now. Raises: OSError: no file can be made there."""
        if self._descriptor is not None:
            return True
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _try_lock(descriptor)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self.tell_state(is_in_step=False)
        return True

    def release(self) -> None:
        """Give the place back. Safe to call twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def tell_state(self, *, is_in_step: bool) -> None:
        """Tell those who wait whether the copy is in step; what cannot be written they do not hear."""
        with contextlib.suppress(OSError):
            self._state_path.write_text(_IN_STEP if is_in_step else "", "utf-8")

    def is_in_step(self) -> bool:
        """Whether the holder, whoever it is, has said that the copy is in step."""
        with contextlib.suppress(OSError, ValueError):
            return self._state_path.read_text("utf-8") == _IN_STEP
        return False
