"""Decide whether and when the way to a host is worth another try."""

from __future__ import annotations

import asyncio
import contextlib
import random as random_module
import time
from collections.abc import AsyncIterator, Callable, Iterator

from kernelbridge.errors import (
    EngineDown,
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    LinkLost,
    StartTimeout,
)

# A wall clock that went on by so much more than the monotonic one: this machine slept.
JUMP_SECONDS = 5.0
# Windows counts sleep in its monotonic clock: there only a tick that took far too long tells.
SLEEP_TICK_SECONDS = 30.0
FIRST_DELAY_SECONDS = 0.2
# For the first PATIENT_AFTER_SECONDS, and whenever a request waits.
EAGER_CAP_SECONDS = 2.0
PATIENT_CAP_SECONDS = 10.0
PATIENT_AFTER_SECONDS = 300.0


def delays(
    *,
    clock: Callable[[], float] = time.monotonic,
    random: Callable[[], float] = random_module.random,
    is_waited_for: Callable[[], bool] = lambda: False,
) -> Iterator[float]:
    """Yield the seconds to wait before each further attempt: short at first, never above the cap of the moment.

    The jitter (half to all of the delay) keeps the many launchers of one laptop from knocking in step.
    """
    began_at = clock()
    delay = FIRST_DELAY_SECONDS
    while True:
        is_eager = clock() - began_at < PATIENT_AFTER_SECONDS or is_waited_for()
        delay = min(delay, EAGER_CAP_SECONDS if is_eager else PATIENT_CAP_SECONDS)
        yield delay * (0.5 + 0.5 * random())
        delay *= 2


def is_resume(*, wall_seconds: float, monotonic_seconds: float) -> bool:
    """Whether this machine slept between two ticks: its wall clock went on, its monotonic clock did not."""
    return wall_seconds - monotonic_seconds > JUMP_SECONDS or monotonic_seconds > SLEEP_TICK_SECONDS


def is_transient(exc: BaseException) -> bool:
    """Whether the same attempt may succeed a little later. For what was open before; a first start fails at once.

    A name that is unknown counts: a laptop that has just woken up has no name service yet.
    """
    return isinstance(exc, HostRefused | HostUnreachable | HostNameUnknown | LinkLost | EngineDown)


@contextlib.asynccontextmanager
async def deadline(seconds: float, host: str, what: str, remedy: str = "") -> AsyncIterator[None]:
    """Give the block so many seconds. Raises StartTimeout with what was waited for."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise StartTimeout(host=host, what=what, seconds=seconds, remedy=remedy) from exc
