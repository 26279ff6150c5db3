"""The kernel's output on its way out, while nobody takes it: in memory, then in a file, then less of it.

What may go when there is too much: trimming.py. The file: spool.py. Who takes the messages out: replay.py.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Collection, Deque, List, Optional, Protocol, Tuple

from .trimming import FAR_OVER, FRESH, OVER, PLACE, Batch, Notices, Seen

LIMIT_BYTES = 256 * 1024 * 1024
MEMORY_BYTES = 8 * 1024 * 1024
BLOCK_BYTES = 128 * 1024
# Survivors are gathered in larger blocks: as long as one grows, a widget's updates become one.
_SURVIVOR_BLOCKS = 8
# For each block that comes, so many are trimmed: more than one, as not all get shorter by it; not all at once, as an
# interrupt waits meanwhile. Behind much that must stay, the bound is passed by a part of that.
_MOST_TRIMS = 8


class Blocks(Protocol):
    """Keeps blocks of messages; Spool does so in a file. All but `free` may raise OSError."""

    def write(self, messages: Collection[bytes], series: int) -> Any:
        """Keep a block; return its slot."""

    def read(self, slot: Any) -> List[bytes]:
        """Return a block's messages."""

    def free(self, slot: Any) -> None:
        """Forget a block."""


class _Block:
    """Messages next to each other: in memory, or in the spool."""

    __slots__ = ("batch", "count", "outline", "places", "slot")

    def __init__(self) -> None:
        # None while they are in the spool, or after they were sifted into another block.
        self.batch: Optional[Batch] = Batch()
        # In the spool: where; and, should it not be readable, what is lost then and which notices were among it.
        self.slot: Any = None
        self.outline = Seen(OVER, 0)
        self.count = 0
        self.places: List[bytes] = []


class Journal:
    """Messages in order: those that were trimmed far over the bound, those trimmed over it, those that are fresh.

    Only whole blocks are trimmed, the oldest first, and each once at each level: that costs the same for each message,
    however many there are and whatever they are. A block is in memory while there is room for it, else in the spool.
    """

    def __init__(self, spool: Blocks, *, limit_bytes: int = LIMIT_BYTES, memory_bytes: int = MEMORY_BYTES) -> None:
        self._spool = spool
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
        # By level: FRESH, OVER, FAR_OVER. The oldest messages are in the last.
        self._regions = (deque([self._tail]), deque(), deque())
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
            fresh, over, far_over = self._regions
            region = far_over or over or fresh
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
        return self.notices.redeem(packed) if packed[0] == PLACE else packed

    def _close_tail(self) -> None:
        """Begin a new block, and see to it that there is not too much in memory, nor at all."""
        closed = self._tail
        self._tail = _Block()
        self._regions[FRESH].append(self._tail)
        for _ in range(_MOST_TRIMS):
            # Full: neither in memory nor on the disk is there room for the block, so that some is made in both.
            is_full = self.memory_bytes > self._memory_limit_bytes and not self._spill(closed, FRESH)
            is_over = is_full or self.held_bytes > self._limit_bytes
            is_far_over = (is_full and self.memory_bytes > 2 * self._memory_limit_bytes) or (
                self.held_bytes > 2 * self._limit_bytes
            )
            if not (is_over and self._trim(OVER)) and not (is_far_over and self._trim(FAR_OVER)):
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
        grows.sift(batch.messages, level, self.notices)
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
        fresh, over, far_over = self._regions
        batch = block.batch
        if batch is None:
            return block.slot is not None
        if block is (far_over or over or fresh)[0]:
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
