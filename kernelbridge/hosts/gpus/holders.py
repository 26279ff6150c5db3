"""Say who has GPUs: containers of ours by their labels, and strangers by their processes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kernelbridge.hosts.gpus.nvidia_smi import GpuProcess
from kernelbridge.plain_text import printable

# Of a text in somebody else's label or process: more is cut off.
_MOST_MARKS: Final = 80


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A container of ours, of whomever, that has GPUs: what its labels say."""

    gpus: tuple[str, ...]
    kernel_id: str
    environment: str
    who: str
    since: datetime


def stranger(computing: Sequence[GpuProcess]) -> str:
    """Say in words which process is the largest, whose and since when, and how many others there are."""
    first = max(computing, key=lambda process: process.memory_mib)
    text = f"process {first.pid}" + (f" ({plain_name(first.name)})" if first.name else "")
    text += f" of {plain_name(first.user)}" if first.user else ""
    text += f" since {_age(first.seconds)}" if first.seconds is not None else ""
    others = len({process.pid for process in computing} - {first.pid})
    return text + (f" and {others} more" if others else "")


def _age(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def plain_name(text: str) -> str:
    """Return a name that a host has given, as it may be shown."""
    return printable(text[:_MOST_MARKS])
