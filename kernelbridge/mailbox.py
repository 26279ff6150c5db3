"""Carry calls from any thread to an event loop, in their order.

One of the two ways across threads in this package; the other leads into the ZMQ thread: `ZmqPoller.post` and `call`.
On a loop, `await asyncio.wrap_future(...)` waits for the future of a call into another thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")


class LoopMailbox:
    """The calls on their way to one loop; `post` and `call` from any thread, the loop's own too.

    What one thread posts runs in its order, and one wake-up of the loop serves all that came meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Deliver to this loop, which need not run yet, or to the one that runs now."""
        self._loop = loop or asyncio.get_running_loop()
        # Appended to by callers, emptied on the loop.
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        # Whether a wake-up is under way; set by callers, cleared on the loop before it takes the calls.
        self._is_woken = False

    def __repr__(self) -> str:
        return f"<LoopMailbox {len(self._calls)} waiting>"

    def post(self, function: Callable[[*_Args], object], *args: *_Args) -> None:
        """Run a function on the loop, after all that was posted before.

        Its result is dropped, its errors are logged. Once the loop is closed this does nothing.
        """
        self._put(function, args)

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a coroutine on the loop, begun after all that was posted before; cancelling the future cancels it.

        The future fails with RuntimeError once the loop is closed. Only other threads may block on it.
        """
        future: Future[_T] = Future()
        if not self._put(self._begin, (coroutine, future)):
            coroutine.close()
            future.set_exception(RuntimeError("the event loop is closed"))
        return future

    def _put(self, function: Callable[..., object], args: tuple[Any, ...]) -> bool:
        """Queue a call; False if the loop is closed."""
        if self._loop.is_closed():
            self._calls.clear()
            return False
        self._calls.append((function, args))
        if not self._is_woken:
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._run_calls)
            except RuntimeError:  # Closed at this moment.
                return False
        return True

    def _run_calls(self) -> None:
        # In this order: the other way no wake-up would follow a call that is posted in between.
        self._is_woken = False
        # Not what comes from here on: that wakes the loop again, which has others to serve before.
        for _ in range(len(self._calls)):
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception:
                _LOG.exception("a call to the loop failed")

    def _begin(self, coroutine: Coroutine[Any, Any, _T], future: Future[_T]) -> None:
        task = self._loop.create_task(coroutine)
        future.add_done_callback(lambda done: self.post(task.cancel) if done.cancelled() else None)
        task.add_done_callback(partial(_settle, future))


def _settle(future: Future[_T], task: asyncio.Task[_T]) -> None:
    """Pass the outcome of a task on to the future of its caller."""
    if task.cancelled():
        future.cancel()
    if not future.set_running_or_notify_cancel():
        return
    if (exc := task.exception()) is not None:
        future.set_exception(exc)
    else:
        future.set_result(task.result())
