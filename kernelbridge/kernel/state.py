"""Name what people and programs are told of a kernel: a word for its state, the same in events, REST and terminal."""

from __future__ import annotations

import enum


class KernelState(enum.StrEnum):
    """What people and programs are told of a kernel and its link: in events, over REST, in the terminal."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"  # the process; a restart starts another in the same container
    FAILED = "failed"  # it will not come, and nothing should try by itself
    STOPPED = "stopped"  # not ours any more: removed, or left
    # While it runs.
    BUSY = "busy"
    IDLE = "idle"
    # Of its link.
    HELD = "held"
    LINK_LOST = "link lost"
    DETACHED = "detached"
    # Of its container.
    STOPPING = "stopping"
    UNKNOWN = "unknown"
