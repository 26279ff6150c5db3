"""Choose which messages of a journal that is too long may go, and write what stands in their place. Pure."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Deque, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ..protocol import frames
from ..protocol.handshake import DroppedEvent
from ..protocol.json_object import TABLE_BYTES, parse_object

# How far a journal is trimmed. A message goes over the bound, over twice the bound, over four times (cells then miss
# their end: no kernel in order comes that far), or never: what the relay itself says.
FRESH, OVER, FAR_OVER, LAST, NEVER = range(5)

_LEVELS = {"stream": OVER, "display_data": OVER, "update_display_data": OVER, "status": LAST, "error": LAST}
_COMMS = ("comm_open", "comm_msg", "comm_close")
# First byte of what holds a notice's place among packed messages: no channel has this number.
PLACE = 255


class Seen(NamedTuple):
    """What decides about one message."""

    level: int
    size_bytes: int
    launch: int = 0
    # The parent header as JSON, as it came.
    parent: bytes = b""
    # The comm that it is for, if any; and whether it does nothing but set that widget's state.
    comm: str = ""
    is_update: bool = False


def look(packed: bytes) -> Seen:
    """Find out what a message is. One that cannot be read stays as long as can be."""
    launch = 0
    try:
        channel, launch, parts = frames.unpack(packed)
        if channel != frames.IOPUB:
            return Seen(NEVER if channel == frames.EVENT else LAST, len(packed), launch)
        at = parts.index(frames.DELIMITER)
        kind = json.loads(bytes(parts[at + 2]))["msg_type"]
        seen = Seen(_LEVELS.get(kind, FAR_OVER), len(packed), launch, bytes(parts[at + 3]))
        if kind not in _COMMS:
            return seen
        content = json.loads(bytes(parts[at + 5]))
        has_buffers = len(parts) > at + 6
        is_update = kind == "comm_msg" and not has_buffers and _is_update(content.get("data"))
        return seen._replace(comm=str(content["comm_id"]), is_update=is_update)
    except frames.WireError:
        return Seen(NEVER, len(packed))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Seen(LAST, len(packed), launch)


def _is_update(said: Any) -> bool:
    if not isinstance(said, dict):
        return False
    return said.get("method") == "update" and isinstance(said.get("state"), dict) and not said.get("buffer_paths")


def merged(updates: Sequence[bytes]) -> bytes:
    """Return the newest of some updates of one comm, with all that they set together."""
    state: Dict[str, Any] = {}
    for packed in updates:
        channel, launch, parts = frames.unpack(packed)
        at = parts.index(frames.DELIMITER)
        content = json.loads(bytes(parts[at + 5]))
        state.update(content["data"]["state"])
    content["data"]["state"] = state
    said = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    try:
        content_bytes = said.encode()
    except UnicodeEncodeError:  # Half a character: that has to be written as \ud83d.
        content_bytes = json.dumps(content, separators=(",", ":")).encode()
    return frames.pack(frames.Message(channel, launch, [*parts[: at + 5], content_bytes]))


class _Notice:
    """How much of one request's output was dropped since the last notice of it went out."""

    __slots__ = ("launch", "messages", "parent", "size_bytes")

    def __init__(self, launch: int, parent: bytes) -> None:
        self.launch = launch
        self.parent = parent
        self.messages = 0
        self.size_bytes = 0


class Notices:
    """What was dropped, by request; each notice has a place in the queue, which survives a file."""

    def __init__(self) -> None:
        self._by_place: Dict[bytes, _Notice] = {}
        # The place of the notice that still waits, by launch and parent.
        self._places: Dict[Tuple[int, bytes], bytes] = {}
        self._newest = 0
        # All that was dropped ever.
        self.dropped = 0

    def __repr__(self) -> str:
        return "<Notices %d waiting, %d dropped>" % (len(self._places), self.dropped)

    def count(self, dropped: Seen, messages: int = 1) -> bytes:
        """Count what was dropped. Return the place to put in the queue if this request has none there yet, else b""."""
        key = (dropped.launch, dropped.parent)
        place, new = self._places.get(key, b""), b""
        if not place:
            self._newest += 1
            place = new = bytes([PLACE]) + self._newest.to_bytes(8, "big")
            self._places[key] = place
            self._by_place[place] = _Notice(*key)
        notice = self._by_place[place]
        notice.messages += messages
        notice.size_bytes += dropped.size_bytes
        self.dropped += messages
        return new

    def take_out(self, place: bytes) -> bytes:
        """Return the event that goes out in a place; what is dropped later begins a notice of its own."""
        notice = self._by_place.pop(place)
        del self._places[(notice.launch, notice.parent)]
        try:
            parent = parse_object(notice.parent) if len(notice.parent) <= TABLE_BYTES else {}
        except frames.WireError:
            parent = {}
        event = DroppedEvent(notice.launch, parent, notice.messages, notice.size_bytes)
        return frames.pack(frames.Message(frames.EVENT, notice.launch, [json.dumps(event.to_dict()).encode()]))


class Batch:
    """Messages in order, which leave at the front; what the spool writes as one block."""

    __slots__ = ("_folds", "held_bytes", "left", "messages")

    def __init__(self, messages: Iterable[bytes] = ()) -> None:
        self.messages: Deque[bytes] = deque(messages)
        self.held_bytes = sum(map(len, self.messages))
        # How many have left: the first one's number.
        self.left = 0
        # By launch and comm: the number of the update that takes in later ones, and the newest of those.
        self._folds: Dict[Tuple[int, str], Tuple[int, Seen]] = {}

    def __repr__(self) -> str:
        return "<Batch %d messages, %d bytes>" % (len(self.messages), self.held_bytes)

    def add(self, packed: bytes) -> None:
        """Put a message at the end."""
        self.messages.append(packed)
        self.held_bytes += len(packed)

    def pop(self) -> bytes:
        """Take the first message out."""
        packed = self.messages.popleft()
        self.held_bytes -= len(packed)
        self.left += 1
        return packed

    def outline(self) -> Tuple[Seen, int]:
        """Return what is known of all messages together, should they be lost, and how many they are."""
        count, newest = 0, b""
        for packed in self.messages:
            if packed[0] != PLACE:
                count, newest = count + 1, packed
        return Seen(OVER, self.held_bytes, look(newest).launch if newest else 0, b"{}"), count

    def evict(self, messages: Iterable[bytes], level: int, notices: Notices) -> None:
        """Put those of the messages at the end that do not go at `level`; the others are counted."""
        newer: Dict[int, List[bytes]] = {}
        for packed in messages:
            seen = look(packed)
            if seen.comm and level == OVER:
                dropped = self._coalesce(packed, seen, newer)
            else:
                dropped = seen if seen.level <= level else None
                if dropped is None:
                    self.add(packed)
            place = notices.count(dropped) if dropped is not None else b""
            if place:
                self.add(place)
        for number, updates in newer.items():
            at = number - self.left
            whole = merged([self.messages[at], *updates])
            self.held_bytes += len(whole) - len(self.messages[at])
            self.messages[at] = whole

    def _coalesce(self, packed: bytes, seen: Seen, newer: Dict[int, List[bytes]]) -> Optional[Seen]:
        """Put a comm's message at the end, or an update with its earlier ones; return the one that is then no more."""
        key = (seen.launch, seen.comm)
        number, before = self._folds.get(key, (-1, seen))
        if seen.is_update and number >= self.left:
            newer.setdefault(number, []).append(packed)
            self._folds[key] = (number, seen)
            return before
        self._folds.pop(key, None)
        if seen.is_update:
            self._folds[key] = (self.left + len(self.messages), seen)
        self.add(packed)
        return None
