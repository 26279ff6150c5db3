"""Tell why a kernel process ended: the host's count of kills, its last words, the folders without room."""

from __future__ import annotations

import os
import re
from typing import Iterable, List, Optional, Sequence

_CGROUPS = "/sys/fs/cgroup"
SHARED_MEMORY = "/dev/shm"  # noqa: S108
# A file system with less room than this is full for whoever writes a page, or a line.
_FULL_BYTES = 256 * 1024
_LONGEST_WORDS = 300
# faulthandler's words: the first line, then the newest frame first.
_FATAL = re.compile(r"^Fatal Python error: .*$", re.MULTILINE)
_ABORT = "Aborted"
_CURRENT = re.compile(r"^Current thread .*$", re.MULTILINE)
_FRAME = re.compile(r'^  (File "(?P<file>.*)", line (?P<line>\d+) in .*)$', re.MULTILINE)
_CELL = re.compile(r"/ipykernel_\d+/|<ipython-input-")


def oom_files(told: str) -> List[str]:
    """Return where kills may be counted; `told` is /proc/self/cgroup.

    The top is an engine's container itself. In a job of a cluster it may be the whole machine, and ours is below it.
    """
    paths: List[str] = []
    for line in told.splitlines():
        number, _, rest = line.partition(":")
        kinds, _, own = rest.partition(":")
        if number == "0" and not kinds:
            paths.append(_CGROUPS + own.rstrip("/") + "/memory.events")
        elif "memory" in kinds.split(","):
            paths.append(_CGROUPS + "/memory" + own.rstrip("/") + "/memory.oom_control")
    return [*paths, _CGROUPS + "/memory.events", _CGROUPS + "/memory/memory.oom_control"]


def _own_oom_files() -> List[str]:
    try:
        with open("/proc/self/cgroup") as file:
            return oom_files(file.read())
    except OSError:
        return oom_files("")


def oom_kills(paths: Optional[Sequence[str]] = None) -> int:
    """Count the processes of this container or job that the host ended for lack of memory (cgroup v2 or v1)."""
    for path in _own_oom_files() if paths is None else paths:
        try:
            with open(path) as file:
                for line in file:
                    word, _, count = line.partition(" ")
                    if word == "oom_kill":
                        return int(count)
        except OSError:
            continue
    return 0


def last_words(text: str) -> str:
    """Return the last line that says something; where Python itself crashed, the crash and the line that led to it."""
    crashes = list(_FATAL.finditer(text))
    if not crashes:
        return _last_line(text)[:_LONGEST_WORDS]
    crash = crashes[-1]
    # Who aborts has said why just before; other crashes come without a word.
    line = _last_line(text[: crash.start()]) if _ABORT in crash[0] else ""
    words = _crash_words(text[crash.start() :])
    return ("%s (%s)" % (line, words) if line else words)[:_LONGEST_WORDS]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _crash_words(text: str) -> str:
    words = text.splitlines()[0].strip()
    current = _CURRENT.search(text)
    # Up to an empty line, after which come other threads, or the list of modules.
    stack = text[current.end() :].split("\n\n")[0] if current else ""
    frames = list(_FRAME.finditer(stack))
    if not frames:
        return words
    words += ", " + frames[0][1]
    cell = next((frame for frame in frames if _CELL.search(frame["file"])), None)
    if cell is not None and cell is not frames[0]:
        words += ", called in line %s of the cell" % cell["line"]
    return words


def without_room(folders: Iterable[str]) -> List[str]:
    """Return those of the folders whose file systems are full."""
    found: List[str] = []
    for folder in folders:
        try:
            there = os.statvfs(folder)
        except OSError:
            continue
        if there.f_blocks and there.f_bavail * there.f_frsize < _FULL_BYTES and folder not in found:
            found.append(folder)
    return found


def size_of(folder: str) -> int:
    """Return the size of a folder's file system in bytes; 0 where there is none."""
    try:
        there = os.statvfs(folder)
    except OSError:
        return 0
    return there.f_blocks * there.f_frsize
