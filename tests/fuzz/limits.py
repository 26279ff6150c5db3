"""Bound what one example may take: processor time, so that a busy machine does not matter, and memory."""

from __future__ import annotations

import contextlib
import signal
import time
import tracemalloc
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

# Each example takes milliseconds; what takes so long would take minutes for an input ten times as long.
CPU_SECONDS: Final = 3.0
# Of memory, at the worst moment: so much for each byte of the example, and so much in any case.
_TIMES, _LEAST_BYTES = 100, 4 << 20
# Python counts memory slowly: every so many examples are counted.
COUNTED_EVERY: Final = 40


class TooSlow(Exception):
    """An example took too long."""


class TooLarge(Exception):
    """An example took too much memory."""


def _end(number: int, frame: FrameType | None) -> None:
    raise TooSlow("no end in the processor time that it may take")


@contextlib.contextmanager
def bounded(example: Any, *, counts_memory: bool, seconds: float = CPU_SECONDS) -> Iterator[None]:
    """Raise TooSlow or TooLarge if what is done with an example takes more than it may."""
    before = signal.signal(signal.SIGVTALRM, _end)
    began = time.process_time()
    # It comes again, should somebody have swallowed it.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    if counts_memory:
        tracemalloc.start()
    try:
        yield
        peak_bytes = tracemalloc.get_traced_memory()[1] if counts_memory else 0
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        if counts_memory:
            tracemalloc.stop()
    if time.process_time() - began > 2 * seconds + 1:
        raise TooSlow(f"{time.process_time() - began:.1f} s of processor time")
    if peak_bytes > _LEAST_BYTES + _TIMES * size_of(example):
        raise TooLarge(f"{peak_bytes:,} bytes of memory for an example of {size_of(example):,}")


def size_of(example: Any) -> int:
    """Return about how many bytes an example has."""
    if isinstance(example, bytes | str):
        return len(example)
    if isinstance(example, dict):
        return sum(size_of(key) + size_of(value) for key, value in example.items()) + 1
    if isinstance(example, list | tuple):
        return sum(map(size_of, example)) + 1
    return 8
