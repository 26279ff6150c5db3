"""Run work in tasks that survive a caller who gives up, and share one task among all who ask for the same thing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class ShieldedTasks(Generic[_T]):
    """Own tasks whose callers may give up: each one runs to its end unless aclose() cancels it."""

    def __init__(self) -> None:
        # Those that have not ended; each leaves by _ended().
        self._running: set[asyncio.Task[_T]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run the work in a task of its own; to be awaited under asyncio.shield()."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[_T]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Asked for, so that asyncio does not complain where all who waited have given up.
            task.exception()

    async def aclose(self) -> None:
        """Cancel what runs and wait for its end. Safe to call twice."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SingleFlight(Generic[_T]):
    """Share one run of some work among all who ask while it is under way."""

    def __init__(self) -> None:
        # The run that who asks now joins; replaced by join(), emptied by renew().
        self._current: asyncio.Task[_T] | None = None
        # That one, and those before it that renew() put aside.
        self._tasks: ShieldedTasks[_T] = ShieldedTasks()

    def __repr__(self) -> str:
        return f"<SingleFlight {'under way' if self.is_under_way else 'idle'}>"

    @property
    def is_under_way(self) -> bool:
        """Whether who asks now would join a run that has begun."""
        return self._current is not None and not self._current.done()

    @property
    def is_current(self) -> bool:
        """Asked by the work itself: whether renew() has not put this run aside."""
        return self._current is not None and self._current is asyncio.current_task()

    async def join(
        self, work: Callable[[], Coroutine[Any, Any, _T]], *, cancelled: Callable[[], Exception] | None = None
    ) -> _T:
        """Return what the run under way brings, or begin one. A caller who gives up does not end it for the others.

        `cancelled` makes the error for those who wait when the run itself is cancelled; else they are cancelled too.
        """
        if self._current is None or self._current.done():
            self._current = self._tasks.start(work())
        run = self._current
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if cancelled is None or not run.cancelled() or caller is None or caller.cancelling():
                raise
            raise cancelled() from None

    def renew(self) -> None:
        """Let the next who asks begin another run: the one under way is too old for them, and goes on for its own."""
        self._current = None

    def cancel(self) -> None:
        """Cancel the run under way."""
        if self._current is not None:
            self._current.cancel()

    async def aclose(self) -> None:
        """Cancel all runs and wait for their end. Safe to call twice."""
        self.renew()
        await self._tasks.aclose()
