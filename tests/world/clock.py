"""The time of a world: events in a heap, an event loop that never waits, and which machine's clock code reads now."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from asyncio import events
from collections.abc import Callable
from typing import Any, Protocol

FIRST_MOMENT = 1000.0


class Clock(Protocol):
    """What a machine's clocks show: one that stands still while it sleeps, one that goes on."""

    def monotonic(self) -> float: ...
    def boottime(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class Agenda:
    """What is to happen, in order: of one moment, what was noted first comes first."""

    def __init__(self) -> None:
        self.now = FIRST_MOMENT
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, moment: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(moment, self.now), next(self._count), happens))

    def after(self, seconds: float, happens: Callable[[], None]) -> None:
        self.at(self.now + seconds, happens)

    @property
    def next_at(self) -> float:
        return self._events[0][0] if self._events else float("inf")

    def run_next(self) -> None:
        moment, _, happens = heapq.heappop(self._events)
        self.now = max(self.now, moment)
        happens()


class _NoSelector:
    """There are no sockets in a world."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class WorldLoop(asyncio.BaseEventLoop):
    """asyncio's own loop, a turn at a time: who looks after it moves the clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._reads = clock
        self._selector = _NoSelector()
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._reads()

    def close(self) -> None:
        """Never: what a killed process has left runs to its end, where nobody hears it."""

    def __del__(self) -> None:
        pass

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    @property
    def due_at(self) -> float:
        """When it has something to do, by its own clock."""
        inner: Any = self
        if inner._ready:
            return self._reads()
        while inner._scheduled and inner._scheduled[0]._cancelled:
            inner._timer_cancelled_count -= 1
            handle = heapq.heappop(inner._scheduled)
            handle._scheduled = False
        return float(inner._scheduled[0]._when) if inner._scheduled else float("inf")

    def turn(self) -> None:
        """Do what is due."""
        inner: Any = self
        events._set_running_loop(self)
        try:
            inner._run_once()
        finally:
            events._set_running_loop(None)

    def abandon(self) -> None:
        """Its process was killed: what its coroutines would clean up is done now, where nothing comes of it."""
        inner: Any = self
        inner._ready.clear()
        inner._scheduled.clear()
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for task in asyncio.all_tasks(self):
                inner_task: Any = task
                inner_task._log_destroy_pending = False
                _close(task.get_coro())
        finally:
            events._set_running_loop(before)
        for task in asyncio.all_tasks(self):
            inner_task = task
            inner_task._log_destroy_pending = False
            _close(task.get_coro())
        inner._ready.clear()
        inner._scheduled.clear()


def _close(coroutine: Any) -> None:
    """End a coroutine, also one that waits for something as it ends."""
    for _ in range(10):
        try:
            coroutine.close()
        except RuntimeError:
            continue
        except Exception:
            return
        return
