"""What a kernel needs of its fleet, and the states it can be in."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernelbridge import container
from kernelbridge.attachment import Owner
from kernelbridge.channels.pacing import Limits
from kernelbridge.channels.switchboard import Switchboard
from kernelbridge.config import Host
from kernelbridge.host.site import Site
from kernelbridge.records import Records
from kernelbridge.wanted import Wanted

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py
    from kernelbridge.host.slurm import Cluster


class KernelState(enum.Enum):
    """What is known of the kernel process."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"  # the process; a restart starts another in the same container
    FAILED = "failed"  # it will not come, and nothing should try by itself
    STOPPED = "stopped"  # not ours any more: removed, or left


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a kernel needs of its fleet."""

    switchboard: Switchboard
    records: Records
    owner: Owner
    # The process's own mark, and the config's path: what a record says of a kernel.
    process: str
    config: str
    # What Jupyter Server lets through; None where nobody limits.
    limits: Limits | None
    labels: Callable[[Wanted, tuple[str, ...]], container.Labels]
    # The engine of a host; the cluster of a login node; whichever it is.
    reach: Callable[[Host], Awaitable[Engine]]
    cluster: Callable[[Host], Awaitable[Cluster]]
    site: Callable[[Host], Awaitable[Site]]
    rest: Callable[[float], Coroutine[Any, Any, None]]
    # Told of every state and progress text: (kernel id, state, text).
    observe: Callable[[str, str, str], None]
