"""Send the kernel's iopub and shell messages to the clients in their order, as soon as each may go.

A message waits in one of three places: here for a subscriber that is slow or for the rate that jupyter_server lets
through; here too while SubscriberGate is closed, because no client hears yet; and in PendingReplies where the client
that it answers is not connected. No socket: what signs and sends is passed in.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from kernelbridge.channels import rate_limit
from kernelbridge.channels.poller import TURN_SECONDS
from kernelbridge.channels.rate_limit import NO_COST, Cost, Limits, RateLimiter, Text
from kernelbridge.protocol.frames import IOPUB, Buffer

_LOG = logging.getLogger(__name__)

# When more waits than this, or for longer, or it will, the owner stops acknowledging. What was acknowledged must be
# gone from here before the relay forgets it, which is 1.5 s later.
BACKLOG_BYTES = 16 * 1024 * 1024
BACKLOG_SECONDS = 1.0
SEND_RETRY_SECONDS = 0.005
# One client that does not read holds up all others for so long; and while it still does not, for so long again.
STUCK_SECONDS = 60.0
STILL_STUCK_SECONDS = 1.0
# While a stuck client loses messages, so many go at a time: the others would lose some of a flood.
_LOSSY_TURN = 100


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


class OutputQueue:
    """The queue of one kernel. Only `is_congested` may be read by another thread."""

    def __init__(
        self,
        *,
        sign: Callable[[Sequence[Buffer]], list[Buffer]],
        send: Callable[[int, list[Buffer]], bool],
        set_lossy: Callable[[bool], None],
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`send` takes a channel and a signed message; it returns False if a subscriber has no room for it.

        `set_lossy` decides whether such a subscriber loses messages from then on.
        """
        self._sign = sign
        self._send = send
        self._set_lossy = set_lossy
        self._clock = clock
        # None where the front-end drops nothing.
        self._limiter = RateLimiter(limits) if limits is not None else None
        self.gate = SubscriberGate()
        # Oldest first.
        self._queue: deque[_Entry] = deque()
        self.bytes = 0
        # Of these, what the limiter counts.
        self._stream_bytes = 0
        # When the oldest that waits came; infinite when none does.
        self._oldest_at = math.inf
        # When the first may be tried; when all should be gone at the limiter's rate.
        self._due_at = 0.0
        self._empty_at = 0.0
        # Since when a subscriber takes nothing; None when all do. How long that is borne; whether it loses messages.
        self._stuck_since: float | None = None
        self._patience_seconds = STUCK_SECONDS
        self._is_lossy = False

    def __repr__(self) -> str:
        return f"<OutputQueue {len(self._queue)} waiting, {self.bytes} bytes, {self.gate!r}>"

    @property
    def is_congested(self) -> bool:
        """Whether so much is held back, or for so long, that nothing more should be acknowledged."""
        if self.gate.is_closed or self.bytes > BACKLOG_BYTES:
            return True
        if self._oldest_at == math.inf:
            return False
        now = self._clock()
        return now - self._oldest_at > BACKLOG_SECONDS or self._empty_at - now > BACKLOG_SECONDS

    @property
    def due_at(self) -> float | None:
        """When `offer` has something to do; None while nothing waits for a time."""
        if self.gate.is_closed:
            return self.gate.opens_at
        return self._due_at if self._queue else None

    def put(self, channel: int, parts: Sequence[Buffer]) -> None:
        """Send an unsigned message; at once if nothing is in its way, else after all that waits."""
        is_free = not self._queue and not self.gate.is_closed
        if self._limiter is None:
            signed = self._sign(parts)
            if not is_free or not self._send(channel, signed):
                self._append_signed(channel, signed, NO_COST)
            return
        price = rate_limit.cost(parts) if channel == IOPUB else NO_COST
        if is_free and self._limiter.has_room_for(price):
            now = self._clock()
            if self._limiter.due(price, now) <= now:
                signed = self._sign(parts)
                if self._send(channel, signed):
                    self._limiter.spend(price, now)
                else:
                    self._append_signed(channel, signed, price)
                return
        self._append(channel, parts, price)

    def overtake(self, channel: int, parts: Sequence[Buffer]) -> None:
        """Send an unsigned message before all that waits, even while the gate is closed."""
        price = rate_limit.cost(parts) if self._limiter is not None and channel == IOPUB else NO_COST
        signed = self._sign(parts)
        if not self._send(channel, signed):
            self._append_signed(channel, signed, price)
        elif self._limiter is not None:
            self._limiter.spend(price, self._clock())

    def offer(self) -> None:
        """Send what may go by now."""
        if not self._queue and not self.gate.is_closed:
            return
        now = self._clock()
        if self.gate.is_closed:
            if (at := self.gate.opens_at) is None or now < at:
                return
            self.gate.open()
        if now < self._due_at:
            return
        turn = _LOSSY_TURN if self._is_lossy else math.inf
        ends_at = now + TURN_SECONDS
        while self._queue and turn > 0:
            due_at = self._due(self._queue[0], now)
            if due_at > now:
                self._due_at = due_at
                break
            if not self._send_first(now):
                break
            turn -= 1
            if self._clock() >= ends_at:
                self._due_at = now
                break
        else:
            self._due_at = now + SEND_RETRY_SECONDS if self._queue else 0.0
        if not self._queue:
            self._settle()
        self._estimate(now)

    # -- the queue

    def _append(self, channel: int, parts: Sequence[Buffer], price: Cost) -> None:
        assert self._limiter is not None
        now = self._clock()
        text = rate_limit.text_of(parts) if price.stream_bytes else None
        if text is None:
            self._add(_Entry(channel, list(parts), cost=price, at=now))
        else:
            last = self._queue[-1].text if self._queue else None
            if last is not None and last.join(text, self._limiter.piece_bytes):
                self._queue[-1].size += text.text_bytes
                self.bytes += text.text_bytes
                self._stream_bytes += text.text_bytes
            else:
                for piece in text.cut(self._limiter.piece_bytes):
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
        if not self._queue and not self.gate.is_closed:
            self._stuck_since, self._due_at = now, now + SEND_RETRY_SECONDS
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
        if self._limiter is None:
            return now
        if entry.text is not None:
            # It grows no more: what it costs must be known.
            entry.parts, entry.text = entry.text.parts(), None
            entry.cost = rate_limit.cost(entry.parts)
        return self._limiter.due(entry.cost, now)

    def _send_first(self, now: float) -> bool:
        """Send the first that waits; False if a subscriber has no room for it."""
        # Removed before it is sent: whoever gets it may ask at once whether all is.
        entry = self._queue.popleft()
        self._weigh(entry, -1)
        if not entry.is_signed:
            entry.parts, entry.is_signed = self._sign(entry.parts), True
        if self._send(entry.channel, entry.parts):
            self._stuck_since = None
            if entry.channel == IOPUB and not self._is_lossy:
                self._patience_seconds = STUCK_SECONDS
            if self._limiter is not None:
                self._limiter.spend(entry.cost, now)
            return True
        self._queue.appendleft(entry)
        self._weigh(entry, 1)
        self._due_at = now + SEND_RETRY_SECONDS
        if self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > self._patience_seconds:
            # One client that sleeps must not hold the output of all others for ever: it misses some.
            if self._patience_seconds == STUCK_SECONDS:
                _LOG.warning("a client has read nothing for %d s; it will miss output", STUCK_SECONDS)
            self._is_lossy, self._patience_seconds = True, STILL_STUCK_SECONDS
            self._set_lossy(True)
        return False

    def _settle(self) -> None:
        """Return to normal, because nothing waits any more."""
        if self._is_lossy:
            self._is_lossy = False
            self._set_lossy(False)
        if self._limiter is not None:
            self._limiter.settle()

    def _estimate(self, now: float) -> None:
        if self._limiter is not None:
            rest_seconds = self._limiter.seconds_for(len(self._queue), self._stream_bytes)
            self._empty_at = max(self._due_at, now) + rest_seconds if self._queue else 0.0


# A client's connections to shell and iopub are made within a few ms of each other.
SETTLE_SECONDS = 0.1


class SubscriberGate:
    """Hold output back, after a re-attach, until a client is there that hears it. Pure; open from the start.

    At the start of a Jupyter server its own sockets come first, and output would go to them alone: each page loads
    seconds later. They are anonymous; a page's websocket, and every plain jupyter_client, has a routing id of its own,
    and its first request is kernel_info on shell.

    The request does not prove that the same client's subscription has arrived: that is another connection.
    jupyter_server opens iopub before shell and forwards requests only when it has heard something on iopub (it skips
    that for busy kernels); a plain client opens shell first, a moment earlier. XPUB does not say whose a subscription
    is. So output goes once a client has subscribed at all, and SETTLE_SECONDS after the newest subscription and the
    request, whichever was later.
    """

    def __init__(self) -> None:
        # Set by close, cleared by open.
        self.is_closed = False
        # When the newest subscription came; None before the first.
        self._subscribed_at: float | None = None
        # When a client with an identity of its own asked first, also before the gate was closed: its endpoints answer
        # before the kernel is known to run already, and a client that connects at once asks once.
        self._asked_at: float | None = None

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<SubscriberGate {state}{', asked' if self._asked_at is not None else ''}>"

    def close(self) -> None:
        """Hold output back from here on."""
        self.is_closed = True

    def open(self) -> None:
        """Let output pass."""
        self.is_closed = False

    def subscribed(self, now: float) -> None:
        """Note that a subscription came on iopub."""
        self._subscribed_at = now

    def asked(self, identities: tuple[bytes, ...], now: float) -> None:
        """Note that a request came on shell."""
        # The first byte of an identity that libzmq chose is 0.
        if self._asked_at is None and identities and identities[0][:1] not in (b"", b"\0"):
            self._asked_at = now

    @property
    def opens_at(self) -> float | None:
        """When output may go; None while that is not known."""
        if not self.is_closed or self._asked_at is None or self._subscribed_at is None:
            return None
        return max(self._asked_at, self._subscribed_at) + SETTLE_SECONDS
