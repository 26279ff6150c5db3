"""Stand between our code and a folder: count the calls on its files, and let the k-th fail, in one of several ways.

What Python calls itself is caught as well: `open`, `pathlib`, `tempfile`, `shutil`, `logging` all end at `os` and `io`.
"""

from __future__ import annotations

import builtins
import contextlib
import enum
import errno
import fcntl
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock


class Fault(enum.Enum):
    """How a call fails. Python takes EINTR upon itself, and calls again; what is left of it is a signal that raises."""

    # The disk is broken for one call, or from that one on.
    BROKEN = "EIO"
    STAYS_BROKEN = "EIO from then on"
    # No room: half of what is written still fits. For one call, or from that one on.
    FULL = "ENOSPC"
    STAYS_FULL = "ENOSPC from then on"
    # No error: a write takes a half, and says so.
    SHORT = "short write"
    # Another machine has replaced the file, in a home that several share.
    STALE = "ESTALE"
    # Ctrl-C arrives.
    INTERRUPTED = "Ctrl-C"
    # The process ends there, in the middle of a write.
    KILLED = "SIGKILL"


_NUMBERS: Final = {
    Fault.BROKEN: errno.EIO,
    Fault.STAYS_BROKEN: errno.EIO,
    Fault.FULL: errno.ENOSPC,
    Fault.STAYS_FULL: errno.ENOSPC,
    Fault.STALE: errno.ESTALE,
}
_LASTING: Final = (Fault.STAYS_BROKEN, Fault.STAYS_FULL, Fault.KILLED)
# What needs room, and what a file's being replaced elsewhere can spoil.
_NEEDS_ROOM: Final = frozenset({"open", "write", "mkdir", "link", "symlink", "rename", "fsync", "close"})
_READS: Final = frozenset({"open", "read", "stat", "list"})
# In the place of os.NAME: what it is counted as.
# fmt: off
_BY_PATH: Final = {
    "open": "open", "mkdir": "mkdir", "rmdir": "rmdir", "unlink": "unlink", "remove": "unlink", "rename": "rename",
    "replace": "rename", "link": "link", "symlink": "symlink", "chmod": "chmod", "utime": "utime", "stat": "stat",
    "lstat": "stat", "listdir": "list", "scandir": "list", "truncate": "truncate", "readlink": "stat",
}
_BY_NUMBER: Final = {
    "close": "close", "read": "read", "pread": "read", "write": "write", "pwrite": "write", "pwritev": "write",
    "ftruncate": "truncate", "fsync": "fsync", "fchmod": "chmod",
}
# fmt: on


class Killed(BaseException):
    """The process is gone; nothing that it would do after that is done."""


class Faults:
    """The calls on the files of one folder."""

    def __init__(self, root: Path, *, at: int = 0, fault: Fault = Fault.BROKEN) -> None:
        self._root = os.path.realpath(root)
        self._at = at
        self._fault = fault
        self._real: dict[str, Callable[..., Any]] = {}
        # How many calls there were that could have failed so; by kind, how many were made, and which one failed.
        self.calls = 0
        self.made: Counter[str] = Counter()
        self.failed: list[str] = []
        # Files that are open, by number.
        self.open: dict[int, str] = {}
        # Those of them that can be written.
        self._written: set[int] = set()
        # Whether the process is gone.
        self.is_over = False

    def __repr__(self) -> str:
        return f"<Faults {self._fault.value} at call {self._at}: {', '.join(self.failed) or 'none yet'}>"

    # -- what decides

    def _may(self, kind: str, flags: int = 0) -> bool:
        match self._fault:
            case Fault.SHORT:
                return kind == "write"
            case Fault.FULL | Fault.STAYS_FULL:
                return kind in _NEEDS_ROOM and (kind != "open" or bool(flags & os.O_CREAT))
            case Fault.STALE:
                return kind in _READS
            case _:
                return True

    def _fails(self, kind: str, path: str, flags: int = 0) -> bool:
        """Count a call; whether it fails."""
        self.made[kind] += 1
        if self.is_over:
            raise Killed
        if not self._may(kind, flags):
            return False
        self.calls += 1
        lasts = bool(self.failed) and self._fault in _LASTING
        if self.calls != self._at and not lasts:
            return False
        self.failed.append(f"{kind} {os.path.relpath(path, self._root)}")
        return True

    def _fail(self, kind: str, path: str) -> None:
        if self._fault is Fault.KILLED:
            self.is_over = True
            raise Killed
        if self._fault is Fault.INTERRUPTED:
            raise KeyboardInterrupt
        number = _NUMBERS[self._fault]
        raise OSError(number, os.strerror(number), path)

    def call(self, kind: str, path: str, real: Callable[[], Any], flags: int = 0) -> Any:
        """Make a call, or fail."""
        fails = self._fails(kind, path, flags)
        if fails and kind == "close":
            real()
        if fails:
            self._fail(kind, path)
        return real()

    def write(self, path: str, data: bytes, real: Callable[[bytes], int]) -> int:
        """Write, or a half of it, and fail then."""
        if not self._fails("write", path):
            return real(data)
        half = data[: len(data) // 2]
        if self._fault is Fault.SHORT:
            return real(half) if half else real(data)
        if half and self._fault is not Fault.INTERRUPTED:
            real(half)
        self._fail("write", path)
        raise AssertionError

    # -- what stands in the place of os and io

    def _place(self, path: Any, folder: int | None = None) -> str | None:
        """Return where a path leads, if that is in the folder."""
        if isinstance(path, int):
            return self.open.get(path)
        name = os.fsdecode(path)
        if folder is not None and folder in self.open:
            return f"{self.open[folder]}{os.sep}{name}"
        # It asks the disk for nothing, as a Path would.
        whole = os.path.abspath(name)  # noqa: PTH100
        return whole if whole == self._root or whole.startswith(self._root + os.sep) else None

    def _by_path(self, name: str) -> Callable[..., Any]:
        real = self._real[name] = getattr(os, name)
        kind = _BY_PATH[name]

        def made(path: Any = ".", *args: Any, **how: Any) -> Any:
            # Of a link it is its own place that counts, and not where it leads.
            own = args[0] if name == "symlink" else path
            place = self._place(own, how.get("dir_fd", how.get("src_dir_fd")))
            if place is None:
                return real(path, *args, **how)
            flags = args[0] if name == "open" else 0
            done = self.call(kind, place, lambda: real(path, *args, **how), flags)
            if name == "open":
                self.open[done] = place
                if flags & (os.O_WRONLY | os.O_RDWR):
                    self._written.add(done)
            return done

        return made

    def _by_number(self, name: str) -> Callable[..., Any]:
        real = self._real[name] = getattr(os, name)
        kind = _BY_NUMBER[name]

        def made(number: int, *args: Any, **how: Any) -> Any:
            place = self.open.get(number)
            if place is None:
                return real(number, *args, **how)
            if name == "close":
                return self._closed(number, real)
            if kind != "write":
                return self.call(kind, place, lambda: real(number, *args, **how))
            data = b"".join(args[0]) if name == "pwritev" else bytes(args[0])
            write = self._real["pwrite" if name == "pwritev" else name]
            return self.write(place, data, lambda some: write(number, some, *args[1:], **how))

        return made

    def _closed(self, number: int, real: Callable[[int], None]) -> None:
        """Close a file, which is closed whatever is said; only of one that was written does a disk say anything."""
        place, is_written = self.open.pop(number), number in self._written
        self._written.discard(number)
        if self.is_over:
            real(number)
            raise Killed
        if is_written:
            self.call("close", place, lambda: real(number))
        else:
            real(number)

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **how: Any) -> Any:
        """In the place of `open`."""
        place = self._place(file)
        if place is None:
            return self._real["io.open"](file, mode, buffering, *args, **how)
        names = ("encoding", "errors", "newline", "closefd", "opener")
        how = {**dict(zip(names, args, strict=False)), **how}
        plain = mode.replace("b", "").replace("t", "")
        raw = _File(self, file, plain, closefd=how.get("closefd", True), opener=how.get("opener"), place=place)
        if "b" in mode and buffering == 0:
            return raw
        if "+" in mode:
            buffered: Any = io.BufferedRandom(raw)
        else:
            buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, how.get("encoding"), how.get("errors"), how.get("newline"))

    def _lock(self, file: Any, operation: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        if number not in self.open:
            self._real["flock"](file, operation)
        else:
            self.call("flock", self.open[number], lambda: self._real["flock"](file, operation))

    @contextlib.contextmanager
    def injected(self) -> Iterator[Faults]:
        """Stand in between."""
        self._real["io.open"], self._real["flock"] = io.open, fcntl.flock
        with contextlib.ExitStack() as patches:
            for name in _BY_PATH:
                patches.enter_context(mock.patch.object(os, name, self._by_path(name)))
            for name in _BY_NUMBER:
                patches.enter_context(mock.patch.object(os, name, self._by_number(name)))
            for holder in (io, builtins):
                patches.enter_context(mock.patch.object(holder, "open", self._opened))
            patches.enter_context(mock.patch.object(fcntl, "flock", self._lock))
            try:
                yield self
            finally:
                # Garbage that is collected later closes files too.
                self.is_over, self._at, self._fault = False, 0, Fault.SHORT

    def leaked(self) -> list[str]:
        """Return which files are open still, and close them."""
        left = dict(self.open)
        for number in left:
            with contextlib.suppress(OSError):
                self._real["close"](number)
        self.open.clear()
        return sorted(os.path.relpath(path, self._root) for path in left.values())


class _File(io.FileIO):
    """What `open` makes, below its buffer."""

    def __init__(self, faults: Faults, file: Any, mode: str, *, closefd: bool, opener: Any, place: str) -> None:
        self._faults, self._place = faults, place
        if isinstance(file, int):
            super().__init__(file, mode, closefd)
            return
        flags = os.O_CREAT if mode[:1] in ("w", "x", "a") else 0
        if opener is None:
            faults.call("open", place, lambda: super(_File, self).__init__(file, mode), flags)
        else:
            super().__init__(file, mode, opener=opener)  # It calls os.open.
        faults.open[self.fileno()] = place
        if mode[:1] != "r" or "+" in mode:
            faults._written.add(self.fileno())

    def write(self, data: Any) -> int:
        """Called by the buffer."""
        if self._faults.is_over:
            return len(data)  # As Python unwinds: there is nobody who would write it.
        return self._faults.write(self._place, bytes(data), super().write)

    def readinto(self, buffer: Any) -> int:
        """Called by the buffer."""
        done: int = self._faults.call("read", self._place, lambda: super(_File, self).readinto(buffer))
        return done

    def readall(self) -> bytes:
        """Called by the buffer."""
        done: bytes = self._faults.call("read", self._place, super().readall)
        return done

    def truncate(self, size: int | None = None) -> int:
        """Called by the buffer."""
        done: int = self._faults.call("truncate", self._place, lambda: super(_File, self).truncate(size))
        return done

    def close(self) -> None:
        """Called by the buffer, and by whoever collects garbage."""
        if self.closed:
            return
        number = self.fileno()
        is_known, is_written = self._faults.open.pop(number, None), number in self._faults._written
        self._faults._written.discard(number)
        if is_known is None or self._faults.is_over or not is_written:
            super().close()
        else:
            self._faults.call("close", self._place, super().close)
