"""Run coroutines on a thread of their own, for callers that have no loop or whose loop stands still between calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from kernelbridge.mailbox import LoopMailbox

# How long tasks that are cancelled at the end may take, and the thread after them.
CANCEL_SECONDS, JOIN_SECONDS = 1.0, 5.0

# A fleet's.
LOOP_NAME = "kernelbridge-loop"
# Hosts that do not answer are given up sooner; this is for whoever waits for all of them.
LIST_SECONDS = 60.0

_T = TypeVar("_T")


class LoopThread:
    """One event loop that never stands still, on a daemon thread that starts at once."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._mailbox = LoopMailbox(self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<LoopThread {self._thread.name}, {'running' if self.is_running else 'closed'}>"

    @property
    def is_running(self) -> bool:
        """Whether coroutines can be given to it: until it is closed."""
        return self._thread.is_alive()

    def submit(self, coro: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a coroutine on the loop; may be called on any thread, the loop's own too."""
        return self._mailbox.call(coro)

    def run(self, coro: Coroutine[Any, Any, _T], seconds: float | None = None) -> _T:
        """Run a coroutine to its end; not to be called on the loop. Raises TimeoutError after so many seconds."""
        return self.submit(coro).result(seconds)

    def close(self) -> None:
        """Cancel what is under way, so that whoever waits for it is told, and end the thread. Safe to call twice."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(TimeoutError):  # A loop that stands still ends with the process.
            self.run(_cancel_all(), 2 * CANCEL_SECONDS)
        self._mailbox.post(self._loop.stop)
        self._thread.join(JOIN_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=CANCEL_SECONDS)
