"""Both ends of the relay's stream: number, acknowledge, send again; how much may be under way. Pure.

The journal is in memory here and bounded: over the bound, output that may be dropped goes, oldest first.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, List, NamedTuple, Optional, Sequence, Tuple

from .wire import (
    ACK,
    DATA,
    FRAME_BYTES,
    LANE,
    LANES,
    MORE,
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
# grow), between these bounds. A reply on the quick lane waits behind at most that much.
LEAST_WINDOW_BYTES = 256 * KIB
MOST_WINDOW_BYTES = 16 * MIB
# What may be under way before anything was measured: a far host costs fewer round trips to get going.
FIRST_WINDOW_BYTES = 1 * MIB
QUEUE_SECONDS = 0.1
ROUND_TRIPS = 3
# An acknowledgement goes out after so many bytes, though not again before the shorter time has passed, and after the
# longer time in any case: each one costs a round of system calls in five processes.
ACKNOWLEDGE_BYTES = 128 * KIB
ACKNOWLEDGE_SOON_SECONDS = 0.005
ACKNOWLEDGE_SECONDS = 0.25


class Sent(NamedTuple):
    """A frame on the wire and not acknowledged yet."""

    number: int
    flags: int
    payload: memoryview
    at_seconds: float
    delivered_bytes: int


class Outbox:
    """One lane's messages on their way out: numbered when they go on the wire, kept until acknowledged."""

    def __init__(self, lane: int, limit_bytes: int) -> None:
        self.lane = lane
        self._limit_bytes = limit_bytes
        # Messages without a number yet: (packed, may be dropped). The first may be partly sent, up to _offset.
        self._waiting: Deque[Tuple[memoryview, bool]] = deque()
        self._offset = 0
        self.waiting_bytes = 0
        # On the wire, oldest first; and those of them that a new line has to carry again.
        self._sent: Deque[Sent] = deque()
        self._again: Deque[Sent] = deque()
        self.sent_bytes = 0
        # Number of the newest frame that was numbered, and of the newest that the other end has.
        self.newest = 0
        self.acknowledged = 0
        self.dropped = 0

    def __repr__(self) -> str:
        return "<Outbox %d..%d, %d bytes unacknowledged, %d bytes waiting, %d dropped>" % (
            self.acknowledged + 1, self.newest, self.sent_bytes, self.waiting_bytes, self.dropped,
        )  # fmt: skip

    def add(self, packed: bytes, *, may_drop: bool = False) -> None:
        """Queue a message. Over the bound the oldest messages that may be dropped go."""
        self._waiting.append((memoryview(packed), may_drop))
        self.waiting_bytes += len(packed)
        if self.waiting_bytes > self._limit_bytes:
            self._drop()

    def _drop(self) -> None:
        kept: Deque[Tuple[memoryview, bool]] = deque()
        partly_sent = self._offset > 0
        while self._waiting and self.waiting_bytes > self._limit_bytes:
            packed, may_drop = self._waiting.popleft()
            if may_drop and not partly_sent:
                self.waiting_bytes -= len(packed)
                self.dropped += 1
            else:
                kept.append((packed, may_drop))
            partly_sent = False
        self._waiting.extendleft(reversed(kept))

    def take(self, limit_bytes: int, now: float, delivered_bytes: int) -> List[Sent]:
        """Put up to `limit_bytes` on the wire (a last frame may go over) and return them."""
        taken: List[Sent] = []
        taken_bytes = 0
        while self._again and taken_bytes < limit_bytes:
            sent = self._again.popleft()._replace(at_seconds=now, delivered_bytes=delivered_bytes)
            taken.append(sent)
            taken_bytes += len(sent.payload)
        while self._waiting and taken_bytes < limit_bytes:
            packed, _ = self._waiting[0]
            piece = packed[self._offset : self._offset + FRAME_BYTES]
            self._offset += len(piece)
            more = self._offset < len(packed)
            if not more:
                self._waiting.popleft()
                self._offset = 0
            self.newest += 1
            self.waiting_bytes -= len(piece)
            taken.append(Sent(self.newest, self.lane | (MORE if more else 0), piece, now, delivered_bytes))
            taken_bytes += len(piece)
        self._sent.extend(taken)
        self.sent_bytes += taken_bytes
        return taken

    def acknowledge(self, number: int) -> Tuple[int, Optional[Sent]]:
        """Forget frames up to `number`; return how many bytes that were and the newest of them."""
        done_bytes, last = 0, None
        while self._sent and self._sent[0].number <= number:
            last = self._sent.popleft()
            done_bytes += len(last.payload)
        self.sent_bytes -= done_bytes
        self.acknowledged = max(self.acknowledged, number)
        return done_bytes, last

    def rewind(self, number: int) -> None:
        """A new line is there and the other end has everything up to `number`: the rest goes out again."""
        self.acknowledge(number)
        while self._again and self._again[0].number <= number:
            self._again.popleft()
        self._again = deque(sorted([*self._sent, *self._again]))
        self._sent.clear()
        self.sent_bytes = 0

    def forget_waiting(self) -> None:
        """Drop the messages that have no number yet, except one that is partly on the wire."""
        kept = [self._waiting[0]] if self._offset else []
        self._waiting = deque(kept)
        self.waiting_bytes = sum(len(packed) for packed, _ in kept) - self._offset

    @property
    def has_work(self) -> bool:
        """Whether something waits to be put on the wire."""
        return bool(self._waiting or self._again)


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
        self._round_trip_seconds = float("inf")
        self._since_seconds = 0.0
        # The best figures of the period before this one, so that a period's start forgets nothing.
        self._rate_before = 0.0
        self._round_trip_before = float("inf")

    def __repr__(self) -> str:
        return "<Window %d KiB>" % (self.limit_bytes // KIB)

    def observe(self, sent: Sent, delivered_bytes: int, now: float) -> None:
        """Take the acknowledgement of `sent` at `now` into account; `delivered_bytes` is the total delivered."""
        took = now - sent.at_seconds
        if took <= 0:
            return
        if now - self._since_seconds > 5:
            self._rate_before, self._round_trip_before = self._rate, self._round_trip_seconds
            self._rate, self._round_trip_seconds, self._since_seconds = 0.0, float("inf"), now
        self._rate = max(self._rate, (delivered_bytes - sent.delivered_bytes) / took)
        self._round_trip_seconds = min(self._round_trip_seconds, took)
        rate = max(self._rate, self._rate_before)
        round_trip = min(self._round_trip_seconds, self._round_trip_before)
        wanted = rate * max(QUEUE_SECONDS, ROUND_TRIPS * round_trip)
        self.limit_bytes = int(min(MOST_WINDOW_BYTES, max(LEAST_WINDOW_BYTES, wanted)))


class Peer:
    """One end of the stream: two lanes out, two lanes in, over any number of lines one after the other."""

    def __init__(self, *, limit_bytes: int = 256 * MIB) -> None:
        self.outboxes = tuple(Outbox(lane, limit_bytes) for lane in LANES)
        self.inboxes = tuple(Inbox() for _ in LANES)
        self.window = Window()
        self._delivered_bytes = 0
        # Received and not yet acknowledged by us.
        self._unacknowledged_bytes = 0
        # When an acknowledgement is due; None while none is owed. And when the last one went out.
        self.acknowledge_at: Optional[float] = None
        self._acknowledged_at = float("-inf")

    def __repr__(self) -> str:
        return "<Peer out %r, in %r, %r>" % (self.outboxes, self.received, self.window)

    @property
    def received(self) -> List[int]:
        """The newest number received in each lane; what HELLO and WELCOME carry."""
        return [inbox.received for inbox in self.inboxes]

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether frames arrived that were not acknowledged yet."""
        return self.acknowledge_at is not None

    def add(self, lane: int, packed: bytes, *, may_drop: bool = False) -> None:
        """Queue a packed message for the other end."""
        self.outboxes[lane].add(packed, may_drop=may_drop)

    def resume(self, received: Sequence[int]) -> None:
        """A new line is there; `received` is what the other end says it has of each lane."""
        for outbox, number in zip(self.outboxes, received):
            outbox.rewind(number)
        self.window = Window()

    def forget_waiting(self) -> None:
        """Drop every message that has no number yet, except one that is partly on the wire."""
        for outbox in self.outboxes:
            outbox.forget_waiting()

    def accept(self, frame: Frame, now: float) -> Optional[Buffer]:
        """Take a DATA or ACK frame in; return the message that it completes, if any."""
        if frame.kind == ACK:
            for outbox, number in zip(self.outboxes, acknowledged(frame.payload)):
                done_bytes, last = outbox.acknowledge(number)
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

    def outgoing(self, now: float, *, acknowledge: bool = False, may_acknowledge: bool = True) -> List[Buffer]:
        """Return what may go on the wire now.

        `acknowledge` wants an acknowledgement before its time; `may_acknowledge` holds it back while what came in
        cannot be handed on.
        """
        buffers: List[Buffer] = []
        if self.acknowledge_at is not None and may_acknowledge and (acknowledge or now >= self.acknowledge_at):
            buffers.append(acknowledgement(*self.received))
            self._unacknowledged_bytes = 0
            self.acknowledge_at, self._acknowledged_at = None, now
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
