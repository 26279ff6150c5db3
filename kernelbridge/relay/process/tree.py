"""Find and end what the kernel process has started, whatever session or parent it has now.

The relay is the parent of all whose own has ended (a subreaper), so nothing that was started here leaves its tree:
daemons, `nohup`, workers of torchrun. What others start in the container, as `docker exec` does, is not in it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Container, Dict, List, NamedTuple, Optional

_PR_SET_CHILD_SUBREAPER = 36
# How long it is tried: a process that hangs in a driver ends when it lets go, and not before.
END_SECONDS = 2.0


class Process(NamedTuple):
    """One process: its number, its parent's, its name, and whether it has ended and is only not collected yet."""

    pid: int
    parent: int
    name: str
    is_over: bool


def adopt_orphans() -> bool:
    """Make this process the parent of every descendant whose own parent ends; whether it is."""
    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False  # Then the container's init is, and only what stays in the kernel's session is ended.


def descendants(of: int) -> List[Process]:
    """Return all processes below this one."""
    children: Dict[int, List[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = _read(int(name))
            if process is not None:
                children.setdefault(process.parent, []).append(process)
    found: List[Process] = []
    below = children.pop(of, [])
    while below:
        found += below
        below = [child for process in below for child in children.pop(process.pid, [])]
    return found


def _read(pid: int) -> Optional[Process]:
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            before, _, after = file.read().rpartition(")")
    except OSError:
        return None  # It has ended.
    words = after.split()
    return Process(pid, int(words[1]), before.partition("(")[2], words[0] in "ZX")


def end_descendants(*, keep: Container[int]) -> List[Process]:
    """End all processes below this one but those to keep; return those that did not end."""
    until = time.monotonic() + END_SECONDS
    while True:
        left = [one for one in descendants(os.getpid()) if one.pid not in keep and not one.is_over]
        for process in left:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except OSError:
                continue  # It has ended, or is another user's.
        if not left or time.monotonic() > until:
            return left
        # A round sees what was started during the one before.
        time.sleep(0.01)


def collect_orphans(own: Container[int]) -> None:
    """Collect the processes that have ended and are nobody's else; those in `own` are collected by who started them."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in own:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)
