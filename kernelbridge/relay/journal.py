"""Keep the kernel's output while nobody takes it, or can show it: in memory, then in a file, then less of it."""

from __future__ import annotations

import json
from collections import deque
from typing import Callable, Deque, List, Optional, Sequence, Set, Tuple

from ..protocol import frames
from ..protocol.session import Chain, Queue, SendLane
from .eviction import FAR_OVER, FRESH, LAST, OVER, PLACE, Batch, Notices, Seen
from .spool import Slot, Spool

LIMIT_BYTES = 256 * 1024 * 1024
MEMORY_BYTES = 8 * 1024 * 1024
BLOCK_BYTES = 128 * 1024
# Survivors are gathered in larger blocks: as long as one grows, a widget's updates become one.
_SURVIVOR_BLOCKS = 8
# For each block that comes, so many are trimmed: more than one, as not all get shorter by it; not all at once, as an
# interrupt waits meanwhile. Behind much that must stay, the bound is passed by a part of that.
_MOST_TRIMS = 8


class _Block:
    """Messages next to each other: in memory, or in the spool."""

    __slots__ = ("batch", "count", "outline", "places", "slot")

    def __init__(self) -> None:
        # None while they are in the spool, or after they were sifted into another block.
        self.batch: Optional[Batch] = Batch()
        # In the spool: where; and, should it not be readable, what is lost then and which notices were among it.
        self.slot: Optional[Slot] = None
        self.outline = Seen(OVER, 0)
        self.count = 0
        self.places: List[bytes] = []


class Journal:
    """Messages in order: those that were trimmed furthest over the bound come first, those that are fresh last.

    Only whole blocks are trimmed, the oldest first, and each once at each level: that costs the same for each message,
    however many there are and whatever they are. A block is in memory while there is room for it, else in the spool.
    """

    def __init__(self, spool: Spool, *, limit_bytes: int = LIMIT_BYTES, memory_bytes: int = MEMORY_BYTES) -> None:
        self._spool = spool
        self.most_bytes: float = limit_bytes
        self._limit_bytes = limit_bytes
        self._memory_limit_bytes = memory_bytes
        self._block_bytes = max(1, min(BLOCK_BYTES, limit_bytes // 16, memory_bytes // 16))
        self._regions: Tuple[Deque[_Block], ...] = ()
        self.clear()

    def __repr__(self) -> str:
        return "<Journal %d bytes, %d of them in memory, %r>" % (self.held_bytes, self.memory_bytes, self.notices)

    def clear(self) -> None:
        """Forget everything."""
        for region in self._regions:
            for block in region:
                if block.slot is not None:
                    self._spool.free(block.slot)
        # The block that grows, the last of the fresh ones. No other is empty.
        self._tail = _Block()
        # By level: FRESH, OVER, FAR_OVER, LAST. The oldest messages are in the last.
        self._regions = (deque([self._tail]), deque(), deque(), deque())
        self.notices = Notices()
        self.held_bytes = 0
        self.memory_bytes = 0

    def add(self, packed: bytes) -> None:
        """Put a message at the end. Never fails: without room for it others go, or it stays in memory."""
        batch = self._tail.batch
        assert batch is not None
        size_bytes = len(packed)
        batch.messages.append(packed)
        batch.held_bytes += size_bytes
        self.held_bytes += size_bytes
        self.memory_bytes += size_bytes
        if batch.held_bytes >= self._block_bytes:
            self._close_tail()

    def pop(self) -> Optional[bytes]:
        """Take the oldest message out; None if nothing waits."""
        while True:
            region = self._oldest_region()
            block = region[0]
            batch = block.batch or self._load(block)
            if batch.messages:
                break
            if block is self._tail:
                return None
            region.popleft()  # It was lost with its file, and another notice counts it.
        packed = batch.pop()
        size_bytes = len(packed)
        self.held_bytes -= size_bytes
        self.memory_bytes -= size_bytes
        if not batch.messages and block is not self._tail:
            region.popleft()
        return self.notices.take_out(packed) if packed[0] == PLACE else packed

    def _oldest_region(self) -> Deque[_Block]:
        return next(region for region in reversed(self._regions) if region)

    def peek(self, limit_bytes: int) -> List[bytes]:
        """Return the newest messages, up to about so many bytes, in order; they stay. What cannot be read is left out.

        Whole blocks: the oldest of them may go over.
        """
        found: List[bytes] = []
        for region in self._regions:  # The fresh ones are the newest.
            for block in reversed(region):
                if limit_bytes <= 0:
                    return found
                messages = self._read(block)
                limit_bytes -= sum(map(len, messages))
                found = [packed for packed in messages if packed[0] != PLACE] + found
        return found

    def _read(self, block: _Block) -> List[bytes]:
        if block.batch is not None:
            return list(block.batch.messages)
        try:
            return [] if block.slot is None else self._spool.read(block.slot)
        except OSError:
            return []

    def _close_tail(self) -> None:
        """Begin a new block, and see to it that there is not too much in memory, nor at all."""
        closed = self._tail
        self._tail = _Block()
        self._regions[FRESH].append(self._tail)
        for _ in range(_MOST_TRIMS):
            # Full: neither in memory nor on the disk is there room for the block, so that some is made in both.
            is_full = self.memory_bytes > self._memory_limit_bytes and not self._spill(closed, FRESH)
            is_over = is_full or self.held_bytes > self._limit_bytes
            times = max(
                self.held_bytes / self._limit_bytes, self.memory_bytes / self._memory_limit_bytes if is_full else 0
            )
            wanted = ((is_over, OVER), (times > 2, FAR_OVER), (times > 4, LAST))
            if not any(is_wanted and self._trim(level) for is_wanted, level in wanted):
                break

    def _trim(self, level: int) -> bool:
        """Move the oldest block that was not trimmed at this level, or what is left of it; False if there is none."""
        source, region = self._regions[level - 1], self._regions[level]
        if not source or source[0] is self._tail:
            return False
        block = source.popleft()
        batch = block.batch or self._load(block)
        block.batch = None
        most_bytes = _SURVIVOR_BLOCKS * self._block_bytes
        grows = region[-1].batch if region else None
        if grows is None or grows.held_bytes >= most_bytes:
            region.append(_Block())
            grows = region[-1].batch
        assert grows is not None
        before_bytes = grows.held_bytes
        grows.evict(batch.messages, level, self.notices)
        self._count(grows.held_bytes - before_bytes - batch.held_bytes)
        if not grows.messages:
            region.pop()
        elif grows.held_bytes >= most_bytes and self.memory_bytes > self._memory_limit_bytes:
            self._spill(region[-1], level)
        return True

    def _count(self, delta_bytes: int) -> None:
        self.held_bytes += delta_bytes
        self.memory_bytes += delta_bytes

    def _spill(self, block: _Block, level: int) -> bool:
        """Move a block out of memory; False if it cannot be. The first block stays: it goes out next."""
        batch = block.batch
        if batch is None:
            return block.slot is not None
        if block is self._oldest_region()[0]:
            return True
        try:
            block.slot = self._spool.write(batch.messages, level)
        except OSError:
            return False
        block.places = [packed for packed in batch.messages if packed[0] == PLACE]
        block.outline, block.count = batch.outline()
        block.batch = None
        self.memory_bytes -= batch.held_bytes
        return True

    def _load(self, block: _Block) -> Batch:
        """Move a block into memory."""
        slot, block.slot = block.slot, None
        assert slot is not None
        try:
            messages = self._spool.read(slot)
        except OSError:
            # The disk is broken. That is told, in a notice of no request.
            place = self.notices.count(block.outline, block.count)
            messages = [*block.places, place] if place else block.places
        self._spool.free(slot)
        block.batch = Batch(messages)
        self.held_bytes += block.batch.held_bytes - block.outline.size_bytes
        self.memory_bytes += block.batch.held_bytes
        return block.batch


class Shelf:
    """What the kernel says of requests whose client is gone, while whoever is joined can show only its own.

    Told apart by the header.session of the request: each client has one. Statuses are for everybody.
    """

    def __init__(self, lane: SendLane, make_journal: Callable[[], Journal]) -> None:
        """`lane` is the one in which output goes out."""
        self._lane = lane
        self._make_journal = make_journal
        self._kept = Chain()
        # Whether whoever is joined can show only its own; and whether it shows the others' at this moment all the same.
        self.is_wanted = self._is_open = False
        # Whether anybody had the kernel before, and whether whoever is joined was told the titles of cells.
        self._had_owner = self._has_titles = False
        # Of the clients of whoever is joined.
        self._sessions: Set[bytes] = set()

    def __repr__(self) -> str:
        return "<Shelf %d bytes%s>" % (self.held_bytes, ", open" * self._is_open)

    @property
    def held_bytes(self) -> int:
        """How much is on it."""
        return self._kept.held_bytes

    def hand_over(self, *, only_own: bool) -> None:
        """Begin for another owner: all that has no number yet comes here, or all that is here goes out first."""
        is_first, self._had_owner = not self._had_owner, True
        self.is_wanted, self._is_open, self._has_titles = only_own, False, False
        self._sessions.clear()
        if not only_own:
            self._lane.put_before(self._kept.stores)
            self._kept = Chain()
        if not only_own or is_first:
            return
        taken = Chain(self._lane.take_out(self._make_journal()))
        if not self._kept.stores:
            self._kept = taken
            return
        packed = taken.pop()
        while packed is not None:
            self._kept.add(packed)
            packed = taken.pop()

    def asked(self, session: str) -> None:
        """Note that a client with this session has asked something."""
        self._sessions.add(json.dumps(session).encode())

    def takes(self, parts: Sequence[frames.Buffer]) -> bool:
        """Whether a message of the kernel's belongs here."""
        if not self.is_wanted or self._is_open or bytes(parts[0]).endswith(b"status"):
            return False
        try:
            parent = bytes(parts[parts.index(frames.DELIMITER) + 3])
        except (ValueError, IndexError):
            return False
        return b'"session"' in parent and not any(session in parent for session in self._sessions)

    def add(self, packed: bytes) -> None:
        """Put a message here."""
        if not self._kept.stores:
            self._kept = Chain([self._make_journal()])
        self._kept.add(packed)

    def open(self, titles: Callable[[], bytes]) -> None:
        """Send all that is here before anything else, behind the titles; what would come here from now on goes out."""
        self._is_open = True
        if self._kept.held_bytes or not self._has_titles:
            self._has_titles = True
            before = Queue()
            before.add(titles())
            self._lane.put_before([before, *self._kept.stores])
            self._kept = Chain()

    def close(self) -> None:
        """Keep such messages here again."""
        self._is_open = False

    def peek(self, limit_bytes: int) -> List[bytes]:
        """Return the newest messages, up to about so many bytes, in order; they stay."""
        return self._kept.peek(limit_bytes)
