"""Names for processes of this machine that no later process has: which of ours still lives."""

from __future__ import annotations

import psutil

# The start of a process is told by the wall clock, which may be set meanwhile.
SAME_SECONDS = 2.0


def process_mark(process: psutil.Process | None = None) -> str:
    """Return a name for a process that no later one has: its number and when it started."""
    process = process or psutil.Process()
    return f"{process.pid}@{process.create_time():.2f}"


def is_alive(mark: str) -> bool:
    """Whether the process of a mark still runs on this machine."""
    number, _, started = mark.partition("@")
    try:
        return abs(psutil.Process(int(number)).create_time() - float(started)) < SAME_SECONDS
    except (ValueError, psutil.Error):
        return False
