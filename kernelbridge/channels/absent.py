"""Replies to clients that are not connected: kept for a while, in order, until they are back. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from kernelbridge.relay.wire import Buffer

KEPT_SECONDS = 600.0
KEPT_BYTES = 64 * 1024 * 1024
# A client may connect and not speak: it is tried so often.
RETRY_SECONDS = 1.0

# Where a reply goes: channel, routing id.
Whither = tuple[int, bytes]


class Absent:
    """What is kept for whom."""

    def __init__(self, *, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # For each client its replies, oldest first: (when it was kept, the signed message).
        self._kept: dict[Whither, deque[tuple[float, list[bytes]]]] = {}
        self.bytes = 0
        # When all are tried again.
        self.retry_at = 0.0

    def __repr__(self) -> str:
        return f"<Absent {len(self._kept)} clients, {self.bytes} bytes>"

    def __bool__(self) -> bool:
        return bool(self._kept)

    def __contains__(self, whither: Whither) -> bool:
        return whither in self._kept

    def keep(self, whither: Whither, parts: Sequence[Buffer], now: float) -> int:
        """Keep a reply; return how many older ones had to go for it."""
        if not self._kept:
            self.retry_at = now + RETRY_SECONDS
        # Copies: the parts may be views on much more.
        copied = [bytes(part) for part in parts]
        self._kept.setdefault(whither, deque()).append((now, copied))
        self.bytes += sum(map(len, copied))
        dropped = 0
        while self.bytes > self._limit_bytes:
            self._drop(min(self._kept, key=lambda one: self._kept[one][0][0]))
            dropped += 1
        return dropped

    def offer(self, whither: Whither, send: Callable[[list[bytes]], bool]) -> None:
        """Send what is kept for one client, until `send` says that it is not there."""
        while whither in self._kept and send(self._kept[whither][0][1]):
            self._drop(whither)

    def retry(self, now: float, send: Callable[[Whither, Sequence[Buffer]], bool]) -> int:
        """Offer to all what is kept for them, if it is time; return how many replies were too old."""
        if now < self.retry_at:
            return 0
        self.retry_at = now + RETRY_SECONDS
        dropped = 0
        for whither in list(self._kept):
            self.offer(whither, partial(send, whither))
            while whither in self._kept and self._kept[whither][0][0] + KEPT_SECONDS < now:
                self._drop(whither)
                dropped += 1
        return dropped

    def _drop(self, whither: Whither) -> None:
        replies = self._kept[whither]
        self.bytes -= sum(map(len, replies.popleft()[1]))
        if not replies:
            del self._kept[whither]
