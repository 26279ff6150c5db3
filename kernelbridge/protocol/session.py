"""Keep the relay's stream whole over any number of lines: two lanes each way, numbered, acknowledged, sent again. Pure.

Theory of operation. Each end has a Session with two lanes out and two lanes in (control and stdin; shell and iopub). A
message waits without a number until it goes on the wire; from then on each of its frames has a number of its lane,
which the other end takes once and in order. An acknowledgement names the newest number of each lane. A new line starts
with what each end has received (HELLO and WELCOME): the rest goes out again. Where another process takes over, all that
the one before may not have handed on goes out again as whole messages, under new numbers.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Iterable, List, Optional, Protocol, Sequence, Tuple

from .flow_control import KIB, MOST_WINDOW_BYTES, SendWindow, Sent
from .frames import (
    ACK,
    DATA,
    FRAME_BYTES,
    LANE,
    LANES,
    MESSAGE_BYTES,
    MORE,
    MOST_PARTS,
    ORDERED,
    QUICK,
    Buffer,
    Frame,
    MessageTooLong,
    WireError,
    acknowledged,
    acknowledgement,
    head,
)

# A line without a sign of life for so long is given up; this machine's end pings (decisions.md, 8).
SILENCE_SECONDS = 15.0
# An acknowledgement goes out after so many bytes, though not again before the shorter time has passed, and after the
# longer time in any case: each one costs a round of system calls in five processes.
ACKNOWLEDGE_BYTES = 128 * KIB
ACKNOWLEDGE_SOON_SECONDS = 0.005
ACKNOWLEDGE_SECONDS = 0.25
# What was acknowledged is kept so much longer by the kernel's end: the process that has it may be killed before it
# handed it on. What comes twice is that and what is not acknowledged yet, 2 s of a steady output in all: the oldest
# that is kept was acknowledged as late as the newest may be. In each lane.
REPLAY_SECONDS = 2.0 - 2 * ACKNOWLEDGE_SECONDS
# An acknowledgement after which nothing more comes is repeated after this; the end that keeps forgets upon it.
REPEAT_SECONDS = REPLAY_SECONDS + ACKNOWLEDGE_SECONDS / 2
REPLAY_BYTES = 16 * 1024 * KIB


# The longest message with its head.
PACKED_BYTES = MESSAGE_BYTES + 4 * MOST_PARTS + 64
# Messages that have begun and not ended, of both lanes together: a long one, and what overtakes it.
UNFINISHED_BYTES = PACKED_BYTES + 8 * 1024 * KIB
# In a lane, without an acknowledgement: the other end's window never lets it come so far. A frame counts as no less
# than what it takes of this end's memory.
MOST_UNACKNOWLEDGED_BYTES = 2 * MOST_WINDOW_BYTES
LEAST_COUNTED_BYTES = 256


class Store(Protocol):
    """Keeps messages until they get their number: a Queue, or a Journal."""

    held_bytes: int
    # A longer message is dropped at once.
    most_bytes: float

    def add(self, packed: bytes) -> None:
        """Put a message at the end."""

    def pop(self) -> Optional[bytes]:
        """Take the oldest message out; None if nothing waits."""

    def clear(self) -> None:
        """Forget everything."""

    def peek(self, limit_bytes: int) -> List[bytes]:
        """Return the newest messages, up to about so many bytes, in order; they stay."""


class Queue:
    """Messages in memory."""

    def __init__(self) -> None:
        self._messages: Deque[bytes] = deque()
        self.held_bytes = 0
        self.most_bytes = float("inf")

    def __repr__(self) -> str:
        return "<Queue %d bytes>" % self.held_bytes

    def add(self, packed: bytes) -> None:
        """Put a message at the end."""
        self._messages.append(packed)
        self.held_bytes += len(packed)

    def pop(self) -> Optional[bytes]:
        """Take the oldest message out; None if nothing waits."""
        if not self._messages:
            return None
        packed = self._messages.popleft()
        self.held_bytes -= len(packed)
        return packed

    def clear(self) -> None:
        """Forget everything."""
        self._messages.clear()
        self.held_bytes = 0

    def peek(self, limit_bytes: int) -> List[bytes]:
        """Return the newest messages, up to about so many bytes, in order; they stay."""
        found: List[bytes] = []
        for packed in reversed(self._messages):
            limit_bytes -= len(packed)
            if limit_bytes < 0:
                break
            found.append(packed)
        return found[::-1]


class Chain:
    """Stores one behind the other; empty ones fall off at the front."""

    def __init__(self, stores: Iterable[Store] = ()) -> None:
        self.stores: Deque[Store] = deque(stores)

    def __repr__(self) -> str:
        return "<Chain %r>" % list(self.stores)

    @property
    def held_bytes(self) -> int:
        """How much is in all of them."""
        return sum(store.held_bytes for store in self.stores)

    def add(self, packed: bytes) -> None:
        """Put a message at the end of the last one."""
        self.stores[-1].add(packed)

    def pop(self) -> Optional[bytes]:
        """Take the oldest message out; None if nothing waits."""
        while self.stores:
            packed = self.stores[0].pop()
            if packed is not None:
                return packed
            self.stores.popleft()
        return None

    def clear(self) -> None:
        """Forget everything."""
        for store in self.stores:
            store.clear()
        self.stores.clear()

    def peek(self, limit_bytes: int) -> List[bytes]:
        """Return the newest messages, up to about so many bytes, in order; they stay."""
        found: List[bytes] = []
        for store in reversed(self.stores):
            some = store.peek(limit_bytes)
            found = some + found
            limit_bytes -= sum(map(len, some))
        return found


class SendLane:
    """One lane's messages on their way out: numbered when they go on the wire, kept until acknowledged.

    What a new line lacks goes out again; where another process takes over, whole messages do.
    """

    def __init__(self, lane: int, waiting: Store, *, keeps: bool = False) -> None:
        """`keeps` if what was acknowledged stays REPLAY_SECONDS longer."""
        self.lane = lane
        # Messages without a number yet: before all others, those that another process had or was about to get; then
        # the rest of the message that is partly sent, up to _offset.
        self.waiting = waiting
        self._lacking = Chain()
        self._begun = b""
        self._offset = 0
        # On the wire, oldest first; and those of them that a new line has to carry again.
        self._sent: Deque[Sent] = deque()
        self._again: Deque[Sent] = deque()
        self.sent_bytes = 0
        # Messages that were acknowledged, and when.
        self._keeps = keeps
        self._kept: Deque[Tuple[float, bytes]] = deque()
        self._kept_bytes = 0
        # Number of the newest frame that was numbered, and of the newest that the other end has.
        self.newest = 0
        self.acknowledged = 0

    def __repr__(self) -> str:
        return "<SendLane %d..%d, %d bytes unacknowledged, %d bytes waiting, %d bytes kept>" % (
            self.acknowledged + 1, self.newest, self.sent_bytes, self.waiting_bytes, self._kept_bytes,
        )  # fmt: skip

    def add(self, packed: bytes, *, is_heard: bool = False) -> None:
        """Queue a message. While somebody hears, one that is too long for the store goes beside it, behind the rest."""
        if not is_heard or len(packed) <= self.waiting.most_bytes:
            self.waiting.add(packed)
            return
        beside = Queue()
        before = self.waiting.pop()
        while before is not None:
            beside.add(before)
            before = self.waiting.pop()
        beside.add(packed)
        self._lacking.stores.append(beside)

    @property
    def waiting_bytes(self) -> int:
        """How much has no number yet."""
        return self.waiting.held_bytes + self._lacking.held_bytes + len(self._begun) - self._offset

    @property
    def undelivered_bytes(self) -> int:
        """How much the other end does not have, as far as we know."""
        return self.waiting_bytes + self.sent_bytes + sum(len(sent.payload) for sent in self._again)

    @property
    def has_work(self) -> bool:
        """Whether something waits to be put on the wire."""
        return bool(self.waiting.held_bytes or self._again or self._begun or self._lacking.held_bytes)

    def take(self, limit_bytes: int, now: float, delivered_bytes: int) -> List[Sent]:
        """Put up to `limit_bytes` on the wire (a last frame may go over) and return them."""
        taken: List[Sent] = []
        taken_bytes = 0
        while self._again and taken_bytes < limit_bytes:
            sent = self._again.popleft()._replace(at_seconds=now, delivered_bytes=delivered_bytes)
            taken.append(sent)
            taken_bytes += len(sent.payload)
        while taken_bytes < limit_bytes:
            packed: Optional[bytes] = self._begun or (
                self._lacking.pop() if self._lacking.held_bytes else self.waiting.pop()
            )
            if packed is None:
                break
            piece: Buffer = packed
            flags = self.lane
            if len(packed) > FRAME_BYTES:
                piece = memoryview(packed)[self._offset : self._offset + FRAME_BYTES]
                self._offset += len(piece)
                if self._offset < len(packed):
                    flags |= MORE
                    self._begun = packed
                else:
                    self._begun, self._offset = b"", 0
            self.newest += 1
            taken.append(Sent(self.newest, flags, piece, now, delivered_bytes, packed))
            taken_bytes += len(piece)
        self._sent.extend(taken)
        self.sent_bytes += taken_bytes
        return taken

    def acknowledge(self, number: int, now: float) -> Tuple[int, Optional[Sent]]:
        """Forget frames up to `number`; return how many bytes that were and the newest of them."""
        done_bytes, last = 0, None
        while self._sent and self._sent[0].number <= number:
            last = self._sent.popleft()
            done_bytes += len(last.payload)
            if self._keeps and not last.flags & MORE:
                self._kept.append((now, last.packed))
                self._kept_bytes += len(last.packed)
        self.sent_bytes -= done_bytes
        self.acknowledged = max(self.acknowledged, number)
        while self._kept_bytes > REPLAY_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        return done_bytes, last

    def forget_kept(self, before: float = float("inf")) -> None:
        """Forget what was acknowledged before that time."""
        while self._kept and self._kept[0][0] < before:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def rewind(self, number: int) -> None:
        """Send again what the other end lacks: a new line is there, and it has everything up to `number`.

        What it has stays until it is acknowledged: the other end may not have handed it on yet.
        """
        frames = sorted([*self._sent, *self._again])
        self._sent = deque(sent for sent in frames if sent.number <= number)
        self._again = deque(sent for sent in frames if sent.number > number)
        self.sent_bytes = sum(len(sent.payload) for sent in self._sent)

    def hand_over(self) -> None:
        """Send again, as whole messages and before what waits, all that the process which takes over may lack."""
        frames = sorted([*self._sent, *self._again])
        lacking = Queue()
        for packed in [*(kept[1] for kept in self._kept), *(sent.packed for sent in frames if not sent.flags & MORE)]:
            lacking.add(packed)
        if self._begun:
            lacking.add(self._begun)
        self.forget_kept()
        self._sent.clear()
        self._again.clear()
        self.put_before([lacking])
        self._begun, self._offset = b"", 0
        self.sent_bytes = self.newest = self.acknowledged = 0

    def put_before(self, stores: Iterable[Store]) -> None:
        """Let what is in these go out before all that has no number yet."""
        self._lacking = Chain([*stores, *self._lacking.stores])

    def take_out(self, waiting: Store) -> List[Store]:
        """Return all that has no number yet, in order, and put what comes into another store; for `hand_over`."""
        taken = [*self._lacking.stores, self.waiting]
        self._lacking, self.waiting = Chain(), waiting
        return taken

    def peek(self, limit_bytes: int) -> List[bytes]:
        """Return the newest messages that the other end may not have, up to about so many bytes, in order."""
        sent = Queue()
        for one in sorted([*self._sent, *self._again]):
            if not one.flags & MORE:
                sent.add(one.packed)
        return Chain([sent, *self._lacking.stores, self.waiting]).peek(limit_bytes)

    def drop_waiting(self) -> None:
        """Drop the messages that have no number yet, except one that is partly on the wire."""
        self._lacking.clear()
        self.waiting.clear()


class ReceiveLane:
    """One lane's frames coming in: each number once and in order."""

    def __init__(self) -> None:
        self.received = 0
        # The newest number that was acknowledged, and how much has come since; set by acknowledge().
        self.acknowledged = 0
        self._unacknowledged_bytes = 0
        # The beginning of a message whose end is to come. One piece of memory: views would keep all that came beside.
        self._begun = bytearray()

    def __repr__(self) -> str:
        return "<ReceiveLane %d..%d, %d bytes begun>" % (self.acknowledged + 1, self.received, len(self._begun))

    @property
    def begun_bytes(self) -> int:
        """How much there is of a message whose end is to come."""
        return len(self._begun)

    def acknowledge(self) -> None:
        """Know that the other end is told of all that has come."""
        self.acknowledged, self._unacknowledged_bytes = self.received, 0

    def accept(self, frame: Frame) -> Optional[Buffer]:
        """Return the message that `frame` completes, if it does.

        Raises WireError over a hole in the numbers, and over more than the other end may send; MessageTooLong over a
        message without an end.
        """
        if frame.number <= self.received:
            return None
        if frame.number != self.received + 1:
            raise WireError("frame %d after %d" % (frame.number, self.received))
        if self._unacknowledged_bytes > MOST_UNACKNOWLEDGED_BYTES:
            raise WireError("more than %d bytes that were not acknowledged" % MOST_UNACKNOWLEDGED_BYTES)
        self.received = frame.number
        self._unacknowledged_bytes += max(len(frame.payload), LEAST_COUNTED_BYTES)
        if not self._begun and not frame.flags & MORE:
            return frame.payload
        self._begun += frame.payload
        if len(self._begun) > PACKED_BYTES:
            self._begun = bytearray()
            raise MessageTooLong("message of more than %d bytes" % MESSAGE_BYTES)
        if frame.flags & MORE:
            return None
        whole, self._begun = self._begun, bytearray()
        return memoryview(whole).toreadonly()


class Session:
    """One end of the stream: two lanes out, two lanes in, over any number of lines one after the other."""

    def __init__(self, journal: Optional[Store] = None) -> None:
        """Begin with nothing sent; the kernel's end has a journal, and keeps what was acknowledged for a while."""
        self._keeps = keeps = journal is not None
        self.send_lanes = (
            SendLane(QUICK, Queue(), keeps=keeps),
            SendLane(ORDERED, Queue() if journal is None else journal, keeps=keeps),
        )
        self._start()

    def _start(self) -> None:
        self.receive_lanes = tuple(ReceiveLane() for _ in LANES)
        self.window = SendWindow()
        self._delivered_bytes = 0
        # Received and not yet acknowledged by us; what this line heard of it.
        self._unacknowledged_bytes = 0
        self._told: Optional[Tuple[int, int]] = None
        # When it is to be looked whether one can be sent; None while none is owed. And when that was done last.
        self.acknowledge_at: Optional[float] = None
        # When the last one is to be said again, as a sign that we live; None while the other end keeps nothing.
        self.repeat_at: Optional[float] = None
        self._acknowledged_at = float("-inf")

    def __repr__(self) -> str:
        return "<Session out %r, in %r, %r>" % (self.send_lanes, self.received, self.window)

    @property
    def received(self) -> List[int]:
        """The newest number received in each lane; what HELLO and WELCOME carry."""
        return [lane_in.received for lane_in in self.receive_lanes]

    @property
    def undelivered_bytes(self) -> int:
        """How much of the ordered lane waits or is not acknowledged."""
        return self.send_lanes[ORDERED].undelivered_bytes

    @property
    def is_delivered(self) -> bool:
        """Whether the other end has acknowledged all of the ordered lane."""
        lane_out = self.send_lanes[ORDERED]
        return not lane_out.sent_bytes and not lane_out.has_work

    def add(self, lane: int, packed: bytes, *, is_heard: bool = False) -> None:
        """Queue a packed message for the other end; whether that is there makes a difference for a very long one."""
        self.send_lanes[lane].add(packed, is_heard=is_heard)

    def is_forgotten(self, received: Sequence[int]) -> bool:
        """Whether the other end, which says that it has so much, began anew since it acknowledged more: for another."""
        return any(number < lane_out.acknowledged for lane_out, number in zip(self.send_lanes, received))

    def resume(self, received: Sequence[int]) -> None:
        """Go on over a new line; `received` is what the other end says it has of each lane."""
        for lane_out, number in zip(self.send_lanes, received):
            lane_out.rewind(number)
        self.window = SendWindow()
        if any(self.received):
            # The last acknowledgement may have been lost with the line.
            self._told, self.acknowledge_at, self.repeat_at = None, 0.0, None

    def alive(self, now: float) -> None:
        """Know that the other end lives: what it has had for REPLAY_SECONDS is safe there."""
        for lane_out in self.send_lanes:
            lane_out.forget_kept(now - REPLAY_SECONDS)

    def forget_kept(self) -> None:
        """Forget what was kept: the other end has left in good order and lacks nothing that it acknowledged."""
        for lane_out in self.send_lanes:
            lane_out.forget_kept()

    def hand_over(self) -> None:
        """Start all numbers anew for the process which takes over, and send again what it may lack."""
        for lane_out in self.send_lanes:
            lane_out.hand_over()
        self._start()

    def drop_waiting(self) -> None:
        """Drop every message that has no number yet, except one that is partly on the wire."""
        for lane_out in self.send_lanes:
            lane_out.drop_waiting()

    def accept(self, frame: Frame, now: float) -> Optional[Buffer]:
        """Take a DATA or ACK frame in; return the message that it completes, if any."""
        if frame.kind == ACK:
            for lane_out, number in zip(self.send_lanes, acknowledged(frame.payload)):
                done_bytes, last = lane_out.acknowledge(number, now)
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
        packed = self.receive_lanes[frame.flags & LANE].accept(frame)
        if sum(lane_in.begun_bytes for lane_in in self.receive_lanes) > UNFINISHED_BYTES:
            raise MessageTooLong("two messages of more than %d bytes" % UNFINISHED_BYTES)
        return packed

    def has_work(self, now: float) -> bool:
        """Whether `outgoing` may have something to say."""
        if self.acknowledge_at is not None and now >= self.acknowledge_at:
            return True
        return any(lane_out.has_work for lane_out in self.send_lanes)

    def outgoing(self, now: float, *, acknowledges: Sequence[int] = LANES) -> List[Buffer]:
        """Return what may go on the wire now.

        A lane that it does not acknowledge brings what cannot be handed on yet.
        """
        buffers: List[Buffer] = []
        if self.acknowledge_at is not None and now >= self.acknowledge_at:
            buffers += self._acknowledgement(now, acknowledges)
        if self.repeat_at is not None and now >= self.repeat_at and self._told is not None:
            self.repeat_at = None
            buffers.append(acknowledgement(*self._told))
        for lane_out in self.send_lanes:
            if not lane_out.has_work:
                continue
            under_way = sum(other.sent_bytes for other in self.send_lanes)
            # The quick lane always has room of its own: it must not wait for the ordered one.
            room = self.window.limit_bytes - (under_way if lane_out.lane else lane_out.sent_bytes)
            if room > 0:
                for sent in lane_out.take(room, now, self._delivered_bytes):
                    buffers.append(head(DATA, len(sent.payload), sent.flags, sent.number))
                    buffers.append(sent.payload)
        return buffers

    def _acknowledgement(self, now: float, lanes: Sequence[int]) -> List[Buffer]:
        """Return the acknowledgement that is due, if there is anything that may be said."""
        self.acknowledge_at, self._acknowledged_at = None, now
        for lane in lanes:
            self.receive_lanes[lane].acknowledge()
        is_whole = len(lanes) == len(LANES)
        if is_whole:
            self._unacknowledged_bytes = 0
        elif any(lane_in.received > lane_in.acknowledged for lane_in in self.receive_lanes):
            self.acknowledge_at = now + ACKNOWLEDGE_SOON_SECONDS
        quick, ordered = self.receive_lanes
        before, self._told = self._told, (quick.acknowledged, ordered.acknowledged)
        if self._told != before and not self._keeps:
            self.repeat_at = now + REPEAT_SECONDS
        return [acknowledgement(*self._told)] if is_whole or self._told != before else []
