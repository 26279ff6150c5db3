"""Keep blocks of messages in files: write at the end of a segment, read at an offset, free. The journal's disk."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from contextlib import suppress
from typing import Collection, Dict, List, NamedTuple, Optional, Sequence, Set

# Room is given back a segment at a time.
SEGMENT_BYTES = 8 * 1024 * 1024
# The most pieces that one call of the system takes.
_MOST_PIECES = 1024
_SIZE_BYTES = 8


class _Segment:
    """One file, which nobody but this login may read."""

    def __init__(self, folder: str) -> None:
        self.file, self.path = tempfile.mkstemp(prefix="journal-", dir=folder)  # mode 0600
        # Where the next block goes, and how many blocks are in use.
        self.end = 0
        self.blocks = 0

    def write(self, pieces: Sequence[bytes]) -> None:
        """Write at the end. Raises OSError; the end is then where it was."""
        at = self.end
        for start in range(0, len(pieces), _MOST_PIECES):
            some = pieces[start : start + _MOST_PIECES]
            done = os.pwritev(self.file, some, at)
            at += done
            if done < sum(map(len, some)):
                rest = memoryview(b"".join(some))[done:]
                while rest:
                    done = os.pwrite(self.file, rest, at)
                    at, rest = at + done, rest[done:]
        self.end = at

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes. Raises OSError if they are not all there."""
        pieces: List[bytes] = []
        while size_bytes:
            piece = os.pread(self.file, size_bytes, offset)
            if not piece:
                raise OSError(errno.EIO, os.strerror(errno.EIO), self.path)
            pieces.append(piece)
            offset, size_bytes = offset + len(piece), size_bytes - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Remove it."""
        # Somebody else has removed it, or the disk is broken: nothing else is to be done then.
        with suppress(OSError):
            os.unlink(self.path)
        with suppress(OSError):
            os.close(self.file)


class Slot(NamedTuple):
    """The place of a block."""

    segment: _Segment
    offset: int
    size_bytes: int
    messages: int


class Spool:
    """Blocks in files of one folder, which are made when they are needed; without a folder every write fails.

    Blocks are written in series. Those of one series are freed about in the order in which they were written, so that
    its old segments become empty: no more than one segment in each series is partly in use.
    """

    def __init__(self, folder: Optional[str]) -> None:
        self._folder = folder
        self._segments: Set[_Segment] = set()
        # The segment that each series writes to.
        self._newest: Dict[int, _Segment] = {}

    def __repr__(self) -> str:
        return "<Spool %d segments, %d bytes>" % (len(self._segments), sum(one.end for one in self._segments))

    def write(self, messages: Collection[bytes], series: int) -> Slot:
        """Keep a block. Raises OSError; nothing is kept then."""
        if self._folder is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sizes = struct.pack("!%dQ" % len(messages), *map(len, messages))
        size_bytes = len(sizes) + sum(map(len, messages))
        segment = self._newest.get(series)
        if segment is None or segment.end + size_bytes > SEGMENT_BYTES:
            segment = _Segment(self._folder)
        offset = segment.end
        try:
            segment.write([sizes, *messages])
        except OSError:
            if segment.blocks:
                os.ftruncate(segment.file, segment.end)
            else:
                segment.close()
            raise
        segment.blocks += 1
        self._segments.add(segment)
        self._newest[series] = segment
        return Slot(segment, offset, size_bytes, len(messages))

    def read(self, slot: Slot) -> List[bytes]:
        """Return a block's messages. Raises OSError."""
        start = slot.offset + _SIZE_BYTES * slot.messages
        sizes = struct.unpack("!%dQ" % slot.messages, slot.segment.read(slot.offset, start - slot.offset))
        whole = slot.segment.read(start, slot.offset + slot.size_bytes - start)
        if slot.messages == 1:
            return [whole]  # It may be large: no copy.
        messages: List[bytes] = []
        at = 0
        for size in sizes:
            messages.append(whole[at : at + size])
            at += size
        return messages

    def free(self, slot: Slot) -> None:
        """Forget a block."""
        segment = slot.segment
        segment.blocks -= 1
        if not segment.blocks:
            self._segments.discard(segment)
            self._newest = {series: one for series, one in self._newest.items() if one is not segment}
            segment.close()

    def close(self) -> None:
        """Remove all files."""
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        self._newest.clear()
