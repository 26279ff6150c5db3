"""A clock that tests move: who sleeps on the loop sleeps as long as it says, and the test does not wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

# Of the engine: neither this machine's, nor near it.
ENGINES_START = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
# A test that lives for longer waits for what never comes.
LONGEST_SECONDS = 1_000_000.0


class MadeClock:
    """The monotonic clock and the running loop's time, as one. For tests without threads and sockets."""

    def __init__(self) -> None:
        # Moved by skip, and by the loop when there is nothing to do.
        self.now = 1000.0

    def skip(self, seconds: float) -> None:
        """So much time has passed, and nobody was awake: a laptop that slept."""
        self.now += seconds

    @property
    def engines(self) -> datetime:
        """The same moment by an engine's clock."""
        return ENGINES_START + timedelta(seconds=self.now - 1000.0)


@contextlib.contextmanager
def made_clock() -> Iterator[MadeClock]:
    """On a running loop: its timers are due as soon as nothing else is."""
    clock = MadeClock()
    selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    waits = selector.select

    def select(timeout: float | None = None) -> Any:
        ready = waits(0)
        if timeout is None and not ready:
            raise AssertionError("all wait, and nothing is to come")
        if not ready and timeout:
            clock.skip(timeout)
            assert clock.now < LONGEST_SECONDS, "waited for what never comes"
        return ready

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selector, "select", select)
        patch.setattr(time, "monotonic", lambda: clock.now)
        yield clock


class StillClock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
