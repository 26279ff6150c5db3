"""Lock GPUs for a kernel: a lock of the host's kernel on each card, which no clock and no laptop has to give back.

Each card has a folder in a volume that all our containers of an engine share, read-only; whoever has the lock on the
folder has the card. A folder, because making it once more never replaces it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ...protocol.exit_codes import EXIT_NO_LOCK, EXIT_TAKEN


class Refused(Exception):
    """A card cannot be had; `exit_code` is what a relay ends with that has not started anything yet."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def lock_path(folder: str, uuid: str) -> str:
    """Return a card's folder. Raises ValueError for a name that could be that of another folder."""
    if not uuid or "/" in uuid or ".." in uuid or uuid == ".":
        raise ValueError("%r is no GPU's name" % uuid)
    return os.path.join(folder, uuid)


class GpuLocks:
    """The locks on some cards: all of them or none. Without a folder (`gpu_lock = "advisory"`) nothing is locked."""

    def __init__(self, ids: Sequence[str], folder: str = "") -> None:
        self._ids = list(ids)
        # In one order for all, so that of two who want the same cards one gets them. Nobody waits, nobody locks twice.
        self._paths = {uuid: lock_path(folder, uuid) for uuid in sorted(set(ids))} if folder else {}
        # Card -> open folder; the kernel processes inherit it, and the lock lasts until the last of them has ended.
        self._locks: Dict[str, int] = {}
        # Set by take, cleared by give_back.
        self._is_taken = False

    def __repr__(self) -> str:
        return "<GpuLocks %s%s>" % (",".join(self._ids) or "of none", "" if self._is_taken else ", given back")

    @property
    def ids(self) -> List[str]:
        """The cards that are held at this moment."""
        return list(self._ids) if self._is_taken else []

    @property
    def descriptors(self) -> Tuple[int, ...]:
        """What a kernel process has to inherit."""
        return tuple(self._locks.values())

    def take(self) -> None:
        """Hold all cards from now on. Safe to call twice. Raises Refused; none is held then."""
        if self._is_taken:
            return
        try:
            for uuid, path in self._paths.items():
                self._locks[uuid] = _locked(uuid, path)
        except Refused:
            self.give_back()
            raise
        self._is_taken = True

    def give_back(self) -> None:
        """Hold none from now on. Safe to call twice; a kernel process that is still there keeps its locks."""
        while self._locks:
            # It is closed, whatever is said of that.
            with suppress(OSError):
                os.close(self._locks.popitem()[1])
        self._is_taken = False


def granted(environ: Mapping[str, str]) -> List[str]:
    """Return the cards that whoever made this container says it has."""
    names = environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",")
    return [name for name in names if name not in ("", "void", "none")]


def taken(cards: Mapping[str, Any]) -> GpuLocks:
    """Return the fence around the cards of an order (ids, locks), taken; end this process where it cannot be."""
    fence = GpuLocks(cards.get("ids", ()), cards.get("locks", ""))
    try:
        fence.take()
    except Refused as exc:
        print(exc, file=sys.stderr)
        sys.exit(exc.exit_code)
    return fence


def _locked(uuid: str, path: str) -> int:
    """Return a card's folder, open and locked. Raises Refused."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise Refused("no lock for %s: %s" % (uuid, exc), EXIT_NO_LOCK) from exc
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(folder)
        if isinstance(exc, BlockingIOError):
            raise Refused("another kernel has %s" % uuid, EXIT_TAKEN) from exc
        # A file system that knows no locks on folders, as NFS.
        raise Refused("no lock for %s: %s" % (uuid, exc), EXIT_NO_LOCK) from exc
    return folder
