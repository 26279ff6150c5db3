"""Pack frames and messages into bytes and read them back. Pure: no socket, no clock.

A frame is a head (payload length, kind, flags, number) and its payload. A message is one multipart ZMQ message of one
channel; messages over FRAME_BYTES travel as several frames, so that the other lane never waits for a large one.
"""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Sequence, Tuple, Union

Buffer = Union[bytes, memoryview]

# Of a Jupyter message: stands between the routing ids and the signature.
DELIMITER = b"<IDS|MSG>"

# A relay outlives the release that made it. The head of a frame, and HELLO, BUSY and ANSWER as far as they go, are the
# same in all versions, so that each release can ask each relay and say which one may join it.
VERSION = 2
# The version of questions, for good: the first release's relay answers no other.
ASK_VERSION = 2
# The first release that speaks a version; of those that came later their relays say it themselves.
FIRST_RELEASES = {2: "0.1.0"}
FRAME_BYTES = 64 * 1024

# Kinds of frames.
HELLO, WELCOME, BUSY, DATA, ACK, PING, PONG, ANSWER, GOODBYE = range(1, 10)

# Flags of a DATA frame: its lane (0 or 1), and whether more frames of the same message follow.
LANE, MORE = 1, 2

# Lane 0 overtakes lane 1; within a lane order is kept.
QUICK, ORDERED = 0, 1
LANES = (QUICK, ORDERED)

# Channels of a message. COMMAND goes to the relay itself, EVENT comes from it.
SHELL, IOPUB, STDIN, CONTROL, COMMAND, EVENT = range(6)
LANE_OF = {SHELL: ORDERED, IOPUB: ORDERED, EVENT: ORDERED, STDIN: QUICK, CONTROL: QUICK, COMMAND: QUICK}

_HEAD = struct.Struct("!IBBQ")
_ACK = struct.Struct("!QQ")
_MESSAGE = struct.Struct("!BIH")
# One message is in memory as a whole, more than once for a moment, here and there.
MESSAGE_BYTES = 256_000_000
MOST_PARTS = 65535
# Larger than any frame of ours: a longer one is not our protocol.
_LONGEST_BYTES = 16 * 1024 * 1024


class WireError(Exception):
    """The bytes are not our protocol."""


class MessageTooLong(WireError):
    """A message has more than MESSAGE_BYTES."""


class Frame(NamedTuple):
    """One frame as it came in."""

    kind: int
    flags: int
    number: int
    payload: Buffer


class Message(NamedTuple):
    """One multipart ZMQ message: its channel, the launch of the kernel process it belongs to, its parts."""

    channel: int
    launch: int
    parts: Sequence[Buffer]


def head(kind: int, length: int, flags: int = 0, number: int = 0) -> bytes:
    """Return the head of a frame whose payload has `length` bytes."""
    return _HEAD.pack(length, kind, flags, number)


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Return a whole unnumbered frame."""
    return _HEAD.pack(len(payload), kind, 0, 0) + payload


def acknowledgement(quick: int, ordered: int) -> bytes:
    """Return a frame that says: everything up to these numbers has arrived."""
    return frame(ACK, _ACK.pack(quick, ordered))


def acknowledged(payload: Buffer) -> Tuple[int, int]:
    """Return the two numbers of an acknowledgement's payload. Raises WireError."""
    if len(payload) != _ACK.size:
        raise WireError("acknowledgement of %d bytes" % len(payload))
    quick, ordered = _ACK.unpack(payload)
    return quick, ordered


def pack(message: Message) -> bytes:
    """Return a message as bytes. Raises MessageTooLong; WireError if it has too many parts."""
    parts = message.parts
    sizes = [len(part) for part in parts]
    if sum(sizes) > MESSAGE_BYTES:
        raise MessageTooLong("message of %d bytes" % sum(sizes))
    if len(parts) > MOST_PARTS:
        raise WireError("message of %d parts" % len(parts))
    head = _MESSAGE.pack(message.channel, message.launch, len(parts))
    return b"".join([head, struct.pack("!%dI" % len(parts), *sizes), *parts])


def unpack(packed: Buffer) -> Message:
    """Return the message in `packed`; its parts are views on it, not copies. Raises WireError if it is none."""
    view = memoryview(packed)
    try:
        channel, launch, count = _MESSAGE.unpack_from(view, 0)
        sizes = struct.unpack_from("!%dI" % count, view, _MESSAGE.size)
    except struct.error as exc:
        raise WireError("message too short") from exc
    start = _MESSAGE.size + 4 * count
    if start + sum(sizes) != len(view):
        raise WireError("message of a wrong length")
    parts: List[Buffer] = []
    for size in sizes:
        parts.append(view[start : start + size])
        start += size
    return Message(channel, launch, parts)


class Decoder:
    """Turns the bytes of a stream, in pieces of any size, into frames."""

    def __init__(self) -> None:
        # What came in and is not a whole frame yet, and how many bytes that is.
        self._pieces: List[bytes] = []
        self._held_bytes = 0
        # How many bytes the first frame not returned yet needs; unknown (a head) at first.
        self._needed_bytes = _HEAD.size

    def __repr__(self) -> str:
        return "<Decoder %d of %d bytes>" % (self._held_bytes, self._needed_bytes)

    def feed(self, piece: bytes) -> List[Frame]:
        """Return the frames that `piece` completes. Raises WireError if the bytes are not our protocol."""
        self._held_bytes += len(piece)
        if self._held_bytes < self._needed_bytes:
            self._pieces.append(piece)
            return []
        if self._pieces:
            self._pieces.append(piece)
            piece = b"".join(self._pieces)
            self._pieces = []
        view = memoryview(piece)
        frames: List[Frame] = []
        at, end = 0, len(piece)
        self._needed_bytes = _HEAD.size
        while end - at >= _HEAD.size:
            length, kind, flags, number = _HEAD.unpack_from(piece, at)
            if length > _LONGEST_BYTES:
                raise WireError("frame of %d bytes" % length)
            if end - at < _HEAD.size + length:
                self._needed_bytes = _HEAD.size + length
                break
            start = at + _HEAD.size
            at = start + length
            frames.append(Frame(kind, flags, number, view[start:at]))
        if at < end:
            self._pieces.append(bytes(view[at:]))
        self._held_bytes = end - at
        return frames
