"""Messages from the ZMQ thread to the event loop, in batches: one wake-up for all that came meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable


class Handover:
    """Packed messages on their way from one thread to the loop that made this."""

    def __init__(self, forward: Callable[[list[tuple[int, bytes]]], None]) -> None:
        """`forward` gets them on the loop: (lane, packed)."""
        self._loop = asyncio.get_running_loop()
        self._forward = forward
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._is_under_way = False

    def __repr__(self) -> str:
        return f"<Handover {len(self._waiting)} waiting>"

    def put(self, packed: list[tuple[int, bytes]]) -> None:
        """Called on any one thread."""
        self._waiting.extend(packed)
        if not self._is_under_way:
            self._is_under_way = True
            self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._is_under_way = False
        packed: list[tuple[int, bytes]] = []
        with contextlib.suppress(IndexError):
            while True:
                packed.append(self._waiting.popleft())
        if packed:
            self._forward(packed)
