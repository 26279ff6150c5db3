"""Both ends of the relay's stream: two lanes each way, acknowledgements, how much may be under way. Pure.

What goes out, how often, and what another process hears again: outbox.py.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from .outbox import KEPT_SECONDS, Outbox, Queue, Sent, Store
from .wire import (
    ACK,
    DATA,
    LANE,
    LANES,
    MORE,
    ORDERED,
    QUICK,
    Buffer,
    Frame,
    WireError,
    acknowledged,
    acknowledgement,
    head,
)

KIB = 1024
MIB = 1024 * KIB

# Bytes under way: what the line delivers in QUEUE_SECONDS, or in ROUND_TRIPS (more than one, so that the rate seen can
# grow) but no more than BEYOND_SECONDS beyond one, between these bounds. A reply on the quick lane waits for that.
LEAST_WINDOW_BYTES = 256 * KIB
MOST_WINDOW_BYTES = 16 * MIB
# What may be under way before anything was measured: a far host costs fewer round trips to get going.
FIRST_WINDOW_BYTES = 1 * MIB
QUEUE_SECONDS = 0.1
ROUND_TRIPS = 4
BEYOND_SECONDS = 0.15
# A full line never shows its round trip, only its queue: the least that was seen counts, and every so often the queue
# is drained for a moment to see it anew.
RENEW_SECONDS = 30.0
DRAIN_SECONDS = 0.3
# An acknowledgement goes out after so many bytes, though not again before the shorter time has passed, and after the
# longer time in any case: each one costs a round of system calls in five processes.
ACKNOWLEDGE_BYTES = 128 * KIB
ACKNOWLEDGE_SOON_SECONDS = 0.005
ACKNOWLEDGE_SECONDS = 0.25


class Inbox:
    """One lane's frames coming in: each number once and in order."""

    def __init__(self) -> None:
        self.received = 0
        self._pieces: List[Buffer] = []

    def accept(self, frame: Frame) -> Optional[Buffer]:
        """Return the message that `frame` completes, if it does. Raises WireError over a hole in the numbers."""
        if frame.number <= self.received:
            return None
        if frame.number != self.received + 1:
            raise WireError("frame %d after %d" % (frame.number, self.received))
        self.received = frame.number
        if not self._pieces and not frame.flags & MORE:
            return frame.payload
        self._pieces.append(frame.payload)
        if frame.flags & MORE:
            return None
        whole = b"".join(self._pieces)
        self._pieces = []
        return whole


class Window:
    """How many bytes may be under way, from the rate and the round trip seen."""

    def __init__(self) -> None:
        self.limit_bytes = FIRST_WINDOW_BYTES
        self._rate = 0.0
        self._since_seconds = 0.0
        # The best rate of the period before this one, so that a period's start forgets nothing.
        self._rate_before = 0.0
        self._round_trip_seconds = float("inf")
        # When the round trip was last looked for; and since when it is looked for now, with the least of it so far.
        self._renewed_at = float("-inf")
        self._draining_since: Optional[float] = None
        self._least_seconds = float("inf")

    def __repr__(self) -> str:
        return "<Window %d KiB>" % (self.limit_bytes // KIB)

    def observe(self, sent: Sent, delivered_bytes: int, now: float) -> None:
        """Take the acknowledgement of `sent` at `now` into account; `delivered_bytes` is the total delivered."""
        took = now - sent.at_seconds
        if took <= 0:
            return
        if now - self._since_seconds > 5:
            self._rate_before, self._rate, self._since_seconds = self._rate, 0.0, now
        self._rate = max(self._rate, (delivered_bytes - sent.delivered_bytes) / took)
        self._round_trip_seconds = min(self._round_trip_seconds, took)
        self._renew(sent, took, now)
        rate = max(self._rate, self._rate_before)
        queued_seconds = min(ROUND_TRIPS * self._round_trip_seconds, self._round_trip_seconds + BEYOND_SECONDS)
        wanted = rate * max(QUEUE_SECONDS, queued_seconds)
        if self._draining_since is not None:
            wanted = LEAST_WINDOW_BYTES
        self.limit_bytes = int(min(MOST_WINDOW_BYTES, max(LEAST_WINDOW_BYTES, wanted)))

    def _renew(self, sent: Sent, took: float, now: float) -> None:
        """Look for the round trip anew, now and then: it grows when a laptop goes from one network to another."""
        if self._renewed_at == float("-inf"):
            self._renewed_at = now
        if self._draining_since is None and now - self._renewed_at > RENEW_SECONDS:
            self._draining_since, self._least_seconds = now, float("inf")
        elif self._draining_since is not None:
            if sent.at_seconds >= self._draining_since:
                self._least_seconds = min(self._least_seconds, took)
            if now - self._draining_since > DRAIN_SECONDS and self._least_seconds < float("inf"):
                self._round_trip_seconds, self._draining_since, self._renewed_at = self._least_seconds, None, now


class Peer:
    """One end of the stream: two lanes out, two lanes in, over any number of lines one after the other."""

    def __init__(self, journal: Optional[Store] = None) -> None:
        """The kernel's end has a journal, in which its output waits, and keeps what was acknowledged for a while."""
        keeps = journal is not None
        self.outboxes = (
            Outbox(QUICK, Queue(), keeps=keeps),
            Outbox(ORDERED, Queue() if journal is None else journal, keeps=keeps),
        )
        self._start()

    def _start(self) -> None:
        self.inboxes = tuple(Inbox() for _ in LANES)
        self.window = Window()
        self._delivered_bytes = 0
        # Received and not yet acknowledged by us; the newest of the ordered lane that is; what this line heard of it.
        self._unacknowledged_bytes = 0
        self._acknowledged_ordered = 0
        self._told: Optional[Tuple[int, int]] = None
        # When it is to be looked whether one can be sent; None while none is owed. And when that was done last.
        self.acknowledge_at: Optional[float] = None
        self._acknowledged_at = float("-inf")

    def __repr__(self) -> str:
        return "<Peer out %r, in %r, %r>" % (self.outboxes, self.received, self.window)

    @property
    def received(self) -> List[int]:
        """The newest number received in each lane; what HELLO and WELCOME carry."""
        return [inbox.received for inbox in self.inboxes]

    @property
    def undelivered_bytes(self) -> int:
        """How much of the ordered lane waits or is not acknowledged."""
        return self.outboxes[ORDERED].undelivered_bytes

    @property
    def is_delivered(self) -> bool:
        """Whether the other end has acknowledged all of the ordered lane."""
        outbox = self.outboxes[ORDERED]
        return not outbox.sent_bytes and not outbox.has_work

    def add(self, lane: int, packed: bytes) -> None:
        """Queue a packed message for the other end."""
        self.outboxes[lane].waiting.add(packed)

    def resume(self, received: Sequence[int]) -> None:
        """A new line is there; `received` is what the other end says it has of each lane."""
        for outbox, number in zip(self.outboxes, received):
            outbox.rewind(number)
        self.window = Window()
        if any(self.received):
            # The last acknowledgement may have been lost with the line.
            self._told, self.acknowledge_at = None, 0.0

    def alive(self, now: float) -> None:
        """The other end lives: what it has had for KEPT_SECONDS is safe there."""
        for outbox in self.outboxes:
            outbox.forget_kept(now - KEPT_SECONDS)

    def forget_kept(self) -> None:
        """The other end has left in good order: it lacks nothing that it acknowledged."""
        for outbox in self.outboxes:
            outbox.forget_kept()

    def hand_over(self) -> None:
        """Another process takes over: all numbers start anew, and what it may lack goes out again."""
        for outbox in self.outboxes:
            outbox.hand_over()
        self._start()

    def forget_waiting(self) -> None:
        """Drop every message that has no number yet, except one that is partly on the wire."""
        for outbox in self.outboxes:
            outbox.forget_waiting()

    def accept(self, frame: Frame, now: float) -> Optional[Buffer]:
        """Take a DATA or ACK frame in; return the message that it completes, if any."""
        if frame.kind == ACK:
            for outbox, number in zip(self.outboxes, acknowledged(frame.payload)):
                done_bytes, last = outbox.acknowledge(number, now)
                self._delivered_bytes += done_bytes
                if last is not None:
                    self.window.observe(last, self._delivered_bytes, now)
            return None
        if frame.kind != DATA:
            raise WireError("frame of kind %d" % frame.kind)
        self._unacknowledged_bytes += len(frame.payload)
        if self.acknowledge_at is None:
            self.acknowledge_at = now + ACKNOWLEDGE_SECONDS
        if self._unacknowledged_bytes >= ACKNOWLEDGE_BYTES:
            self.acknowledge_at = min(self.acknowledge_at, self._acknowledged_at + ACKNOWLEDGE_SOON_SECONDS)
        return self.inboxes[frame.flags & LANE].accept(frame)

    def has_work(self, now: float) -> bool:
        """Whether `outgoing` may have something to say."""
        if self.acknowledge_at is not None and now >= self.acknowledge_at:
            return True
        return any(outbox.has_work for outbox in self.outboxes)

    def outgoing(self, now: float, *, may_acknowledge: bool = True) -> List[Buffer]:
        """Return what may go on the wire now.

        Without `may_acknowledge` the ordered lane is not acknowledged: what came in it cannot be handed on yet.
        """
        buffers: List[Buffer] = []
        if self.acknowledge_at is not None and now >= self.acknowledge_at:
            buffers += self._acknowledgement(now, may_acknowledge)
        for outbox in self.outboxes:
            if not outbox.has_work:
                continue
            under_way = sum(other.sent_bytes for other in self.outboxes)
            # The quick lane always has room of its own: it must not wait for the ordered one.
            room = self.window.limit_bytes - (under_way if outbox.lane else outbox.sent_bytes)
            if room > 0:
                for sent in outbox.take(room, now, self._delivered_bytes):
                    buffers.append(head(DATA, len(sent.payload), sent.flags, sent.number))
                    buffers.append(sent.payload)
        return buffers

    def _acknowledgement(self, now: float, may_acknowledge: bool) -> List[Buffer]:
        """Return the acknowledgement that is due, if there is anything that may be said."""
        quick, ordered = self.received
        self.acknowledge_at, self._acknowledged_at = None, now
        if may_acknowledge:
            self._unacknowledged_bytes, self._acknowledged_ordered = 0, ordered
        elif ordered > self._acknowledged_ordered:
            self.acknowledge_at = now + ACKNOWLEDGE_SOON_SECONDS
        before, self._told = self._told, (quick, self._acknowledged_ordered)
        return [acknowledgement(*self._told)] if may_acknowledge or self._told != before else []
