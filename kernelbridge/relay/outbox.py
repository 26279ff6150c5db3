"""One lane's messages on their way out: numbered, kept until acknowledged, sent again, handed over. Pure.

Both lanes and both ends: replay.py. Where the kernel's output waits before it has a number: journal.py.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, List, NamedTuple, Optional, Protocol, Tuple

from .wire import FRAME_BYTES, MORE, Buffer

# What was acknowledged is kept so much longer by the kernel's end: the process that has it may be killed before it
# handed it on. In each lane.
KEPT_SECONDS = 2.0
KEPT_BYTES = 16 * 1024 * 1024


class Sent(NamedTuple):
    """A frame on the wire and not acknowledged yet."""

    number: int
    flags: int
    payload: Buffer
    at_seconds: float
    delivered_bytes: int
    # The message that it is a piece of.
    packed: bytes = b""


class Store(Protocol):
    """Where messages wait for their number: a Queue, or a Journal."""

    held_bytes: int

    def add(self, packed: bytes) -> None:
        """Put a message at the end."""

    def pop(self) -> Optional[bytes]:
        """Take the oldest message out; None if nothing waits."""

    def clear(self) -> None:
        """Forget everything."""


class Queue:
    """Messages in memory."""

    def __init__(self) -> None:
        self._messages: Deque[bytes] = deque()
        self.held_bytes = 0

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


class Outbox:
    """One lane's messages on their way out: numbered when they go on the wire, kept until acknowledged."""

    def __init__(self, lane: int, waiting: Store, *, keeps: bool = False) -> None:
        """`keeps` if what was acknowledged stays KEPT_SECONDS longer."""
        self.lane = lane
        # Messages without a number yet: before all others, those that another process had or was about to get; then
        # the rest of the message that is partly sent, up to _offset.
        self.waiting = waiting
        self._lacking = Queue()
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
        return "<Outbox %d..%d, %d bytes unacknowledged, %d bytes waiting, %d bytes kept>" % (
            self.acknowledged + 1, self.newest, self.sent_bytes, self.waiting_bytes, self._kept_bytes,
        )  # fmt: skip

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
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        return done_bytes, last

    def forget_kept(self, before: float = float("inf")) -> None:
        """Forget what was acknowledged before that time."""
        while self._kept and self._kept[0][0] < before:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def rewind(self, number: int) -> None:
        """A new line is there and the other end has everything up to `number`: the rest goes out again.

        What it has stays until it is acknowledged: the other end may not have handed it on yet.
        """
        frames = sorted([*self._sent, *self._again])
        self._sent = deque(sent for sent in frames if sent.number <= number)
        self._again = deque(sent for sent in frames if sent.number > number)
        self.sent_bytes = sum(len(sent.payload) for sent in self._sent)

    def hand_over(self) -> None:
        """Another process takes over: what it may lack goes out again, as whole messages, before what waits."""
        frames = sorted([*self._sent, *self._again])
        lacking = Queue()
        for packed in [*(kept[1] for kept in self._kept), *(sent.packed for sent in frames if not sent.flags & MORE)]:
            lacking.add(packed)
        if self._begun:
            lacking.add(self._begun)
        packed_before = self._lacking.pop()
        while packed_before is not None:
            lacking.add(packed_before)
            packed_before = self._lacking.pop()
        self.forget_kept()
        self._sent.clear()
        self._again.clear()
        self._lacking, self._begun, self._offset = lacking, b"", 0
        self.sent_bytes = self.newest = self.acknowledged = 0

    def forget_waiting(self) -> None:
        """Drop the messages that have no number yet, except one that is partly on the wire."""
        self._lacking.clear()
        self.waiting.clear()
