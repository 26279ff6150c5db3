"""The one queue towards the clients: what the kernel says on iopub and shell, in its order, when it may go.

It waits for a slow subscriber, for the pace of jupyter_server (pacing.py), or because nobody hears yet (hold.py). No
socket: who sends is passed in.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from kernelbridge.channels import pacing
from kernelbridge.channels.hold import Hold
from kernelbridge.channels.pacing import NO_COST, Cost, Limits, Pace, Text
from kernelbridge.relay.wire import IOPUB, Buffer

_LOG = logging.getLogger(__name__)

# When more waits than this, or for longer, or it will, the owner stops acknowledging. What was acknowledged must be
# gone from here before the relay forgets it, which is 2 s later.
BACKLOG_BYTES = 16 * 1024 * 1024
BACKLOG_SECONDS = 1.0
RETRY_SECONDS = 0.005
# One client that does not read holds up all others for so long; and while it still does not, for so long again.
STUCK_SECONDS = 60.0
STILL_STUCK_SECONDS = 1.0
# While a stuck client loses messages, so many go at a time: the others would lose some of a flood.
_LOSSY_TURN = 100


class Outlet(Protocol):
    """Who sends: the sockets, or a test."""

    def sign(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """Return a message as it is sent."""

    def send(self, channel: int, parts: list[Buffer]) -> bool:
        """Send a signed message on iopub or shell; False if a subscriber has no room for it."""

    def lose(self, may_lose: bool) -> None:
        """Whether a subscriber that has no room loses messages from now on."""


class _Entry:
    """A message that waits."""

    __slots__ = ("at", "channel", "cost", "is_signed", "parts", "size", "text")

    def __init__(self, channel: int, parts: list[Buffer], *, cost: Cost, at: float, text: Text | None = None) -> None:
        self.channel = channel
        # Empty while it is text that may still grow.
        self.parts = parts
        self.cost = cost
        self.at = at
        self.text = text
        self.is_signed = False
        self.size = text.text_bytes if text else sum(map(len, parts))


class Handout:
    """The queue of one kernel. Only `is_congested` may be read by another thread."""

    def __init__(
        self, outlet: Outlet, *, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._outlet = outlet
        self._clock = clock
        self._pace = Pace(limits) if limits is not None else None
        self.hold = Hold()
        # Oldest first.
        self._queue: deque[_Entry] = deque()
        self.bytes = 0
        # Of these, what counts for the pace.
        self._stream_bytes = 0
        # When the oldest that waits came; infinite when none does.
        self._oldest_at = math.inf
        # When the first may be tried, and, at the pace, when all should be gone.
        self._due_at = 0.0
        self._empty_at = 0.0
        # Since when a subscriber takes nothing; None when all do. How long that is borne; whether it loses messages.
        self._stuck_since: float | None = None
        self._patience_seconds = STUCK_SECONDS
        self._is_lossy = False

    def __repr__(self) -> str:
        return f"<Handout {len(self._queue)} waiting, {self.bytes} bytes, {self.hold!r}>"

    @property
    def is_congested(self) -> bool:
        """Whether so much is held back, or for so long, that nothing more should be acknowledged."""
        if self.hold.is_on or self.bytes > BACKLOG_BYTES:
            return True
        if self._oldest_at == math.inf:
            return False
        now = self._clock()
        return now - self._oldest_at > BACKLOG_SECONDS or self._empty_at - now > BACKLOG_SECONDS

    @property
    def due_at(self) -> float | None:
        """When `offer` has something to do; None while nothing waits for a time."""
        if self.hold.is_on:
            return self.hold.ends_at
        return self._due_at if self._queue else None

    def put(self, channel: int, parts: Sequence[Buffer]) -> None:
        """Hand out a message, unsigned; at once if nothing is in its way, else after all that waits."""
        is_free = not self._queue and not self.hold.is_on
        if self._pace is None:
            signed = self._outlet.sign(parts)
            if not is_free or not self._outlet.send(channel, signed):
                self._append_signed(channel, signed, NO_COST)
            return
        price = pacing.cost(parts) if channel == IOPUB else NO_COST
        if is_free and self._pace.has_room_for(price):
            now = self._clock()
            if self._pace.due(price, now) <= now:
                signed = self._outlet.sign(parts)
                if self._outlet.send(channel, signed):
                    self._pace.spend(price, now)
                else:
                    self._append_signed(channel, signed, price)
                return
        self._append(channel, parts, price)

    def overtake(self, channel: int, parts: Sequence[Buffer]) -> None:
        """Hand out a message before all that waits, held or not."""
        price = pacing.cost(parts) if self._pace is not None and channel == IOPUB else NO_COST
        signed = self._outlet.sign(parts)
        if not self._outlet.send(channel, signed):
            self._append_signed(channel, signed, price)
        elif self._pace is not None:
            self._pace.spend(price, self._clock())

    def offer(self) -> None:
        """Hand out what may go by now."""
        if not self._queue and not self.hold.is_on:
            return
        now = self._clock()
        if self.hold.is_on:
            if (at := self.hold.ends_at) is None or now < at:
                return
            self.hold.end()
        if now < self._due_at:
            return
        turn = _LOSSY_TURN if self._is_lossy else math.inf
        while self._queue and turn > 0:
            due_at = self._due(self._queue[0], now)
            if due_at > now:
                self._due_at = due_at
                break
            if not self._send_first(now):
                break
            turn -= 1
        else:
            self._due_at = now + RETRY_SECONDS if self._queue else 0.0
        if not self._queue:
            self._settle()
        self._estimate(now)

    # -- the queue

    def _append(self, channel: int, parts: Sequence[Buffer], price: Cost) -> None:
        assert self._pace is not None
        now = self._clock()
        text = pacing.text_of(parts) if price.stream_bytes else None
        if text is None:
            self._add(_Entry(channel, list(parts), cost=price, at=now))
        else:
            last = self._queue[-1].text if self._queue else None
            if last is not None and last.join(text, self._pace.piece_bytes):
                self._queue[-1].size += text.text_bytes
                self.bytes += text.text_bytes
                self._stream_bytes += text.text_bytes
            else:
                for piece in text.cut(self._pace.piece_bytes):
                    self._add(_Entry(channel, [], cost=price, at=now, text=piece))
        if len(self._queue) == 1:
            self._due_at = 0.0
            self.offer()
        else:
            self._estimate(now)

    def _append_signed(self, channel: int, parts: list[Buffer], price: Cost) -> None:
        now = self._clock()
        entry = _Entry(channel, parts, cost=price, at=now)
        entry.is_signed = True
        if not self._queue and not self.hold.is_on:
            self._stuck_since, self._due_at = now, now + RETRY_SECONDS
        self._add(entry)

    def _add(self, entry: _Entry) -> None:
        self._queue.append(entry)
        self._weigh(entry, 1)

    def _weigh(self, entry: _Entry, sign: int) -> None:
        """Count an entry that came (1) or went (-1)."""
        self.bytes += sign * entry.size
        if entry.cost.stream_bytes:
            self._stream_bytes += sign * entry.size
        self._oldest_at = self._queue[0].at if self._queue else math.inf

    def _due(self, entry: _Entry, now: float) -> float:
        if self._pace is None:
            return now
        if entry.text is not None:
            # It grows no more: what it costs must be known.
            entry.parts, entry.text = entry.text.parts(), None
            entry.cost = pacing.cost(entry.parts)
        return self._pace.due(entry.cost, now)

    def _send_first(self, now: float) -> bool:
        """Send the first; False if a subscriber has no room for it."""
        # It is gone from here when it is heard: who hears it may ask at once whether all is.
        entry = self._queue.popleft()
        self._weigh(entry, -1)
        if not entry.is_signed:
            entry.parts, entry.is_signed = self._outlet.sign(entry.parts), True
        if self._outlet.send(entry.channel, entry.parts):
            self._stuck_since = None
            if entry.channel == IOPUB and not self._is_lossy:
                self._patience_seconds = STUCK_SECONDS
            if self._pace is not None:
                self._pace.spend(entry.cost, now)
            return True
        self._queue.appendleft(entry)
        self._weigh(entry, 1)
        self._due_at = now + RETRY_SECONDS
        if self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > self._patience_seconds:
            # One client that sleeps must not hold the output of all others for ever: it misses some.
            if self._patience_seconds == STUCK_SECONDS:
                _LOG.warning("a client has read nothing for %d s; it will miss output", STUCK_SECONDS)
            self._is_lossy, self._patience_seconds = True, STILL_STUCK_SECONDS
            self._outlet.lose(True)
        return False

    def _settle(self) -> None:
        """Nothing waits any more."""
        if self._is_lossy:
            self._is_lossy = False
            self._outlet.lose(False)
        if self._pace is not None:
            self._pace.settle()

    def _estimate(self, now: float) -> None:
        if self._pace is not None:
            rest_seconds = self._pace.seconds_for(len(self._queue), self._stream_bytes)
            self._empty_at = max(self._due_at, now) + rest_seconds if self._queue else 0.0
