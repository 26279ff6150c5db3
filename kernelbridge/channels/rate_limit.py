"""Pace output so that jupyter_server drops none of it, and merge and cut `stream` messages that wait. Pure.

jupyter_server counts iopub messages and `stream` bytes of each websocket in a sliding window, drops without a word to
the kernel what is too much, and counts from zero again at a status idle. Source: jupyter_server 2.21,
services/kernels/connection/channels.py, `_limit_rate`.
"""

from __future__ import annotations

import json
import math
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kernelbridge.channels.messages import MessageInvalid, delimiter_index
from kernelbridge.protocol.frames import DELIMITER, Buffer

# How much of what the limiter allows is used.
SHARE = 0.8
# It counts when a message arrives. After its loop stood still, what we sent over so long arrives at once: what we send
# within its window and so long before is what it may see within its window.
STALL_SECONDS = 0.5
# Text of `stream` messages that wait is merged up to so much, and longer text is cut.
PIECE_BYTES = 64 * 1024
# What goes out within this is counted as one.
_SLOT_SECONDS = 0.05
_EXEMPT = frozenset({"status", "comm_open", "execute_input"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The rate that jupyter_server lets through; 0 is no limit."""

    messages_per_second: float
    stream_bytes_per_second: float
    window_seconds: float


class Cost(NamedTuple):
    """The sum that the limiter will count for a message, and whether it counts from zero after it."""

    messages: int
    stream_bytes: int
    is_reset: bool = False


NO_COST = Cost(0, 0)


def cost(parts: Sequence[Buffer]) -> Cost:
    """Return the cost of an iopub message. Raises MessageInvalid if it is none."""
    at = delimiter_index(parts)
    try:
        kind = str(json.loads(bytes(parts[at + 2]))["msg_type"])
        if kind == "stream":
            return Cost(1, sum(map(len, parts[at + 2 :])))
        if kind == "status" and json.loads(bytes(parts[at + 5])).get("execution_state") == "idle":
            return Cost(0, 0, is_reset=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise MessageInvalid("not a Jupyter message") from exc
    return NO_COST if kind in _EXEMPT else Cost(1, 0)


def _budget(allowed: float) -> float:
    return max(allowed, 1.0) if allowed > 0 else math.inf


class RateLimiter:
    """Compute when the next message may go, by the limiter's own arithmetic. `spend` counts each one that went."""

    def __init__(self, limits: Limits) -> None:
        self._span_seconds = limits.window_seconds + STALL_SECONDS
        share = SHARE * limits.window_seconds
        # What may be in the window.
        self._messages = _budget(share * limits.messages_per_second)
        self._bytes = _budget(share * limits.stream_bytes_per_second)
        # What went: (when it is out of the window, messages, bytes), oldest first, and the sums.
        self._sent: deque[tuple[float, int, int]] = deque()
        self._sent_messages = 0
        self._sent_bytes = 0
        # Once something had to wait, the rest goes evenly: not before this. None while nothing had to.
        self._even_at: float | None = None

    def __repr__(self) -> str:
        return f"<RateLimiter {self._sent_messages} messages, {self._sent_bytes} bytes in the window>"

    @property
    def piece_bytes(self) -> int:
        """How long the text of one message may be: two fit in the window."""
        return int(max(16, min(PIECE_BYTES, self._bytes / 2 - 1024)))

    def has_room_for(self, one: Cost) -> bool:
        """Whether a message can ever go as it is; else it must be cut."""
        return one.stream_bytes <= self._bytes

    def due(self, one: Cost, now: float) -> float:
        """Return when a message may go: `now` or later. What is larger than the whole window goes in an empty one."""
        self._forget(now)
        if not one.messages or not self._sent:
            return now
        messages, size = self._sent_messages + one.messages, self._sent_bytes + one.stream_bytes
        at = now
        for gone_at, gone_messages, gone_bytes in self._sent:
            if messages <= self._messages and size <= self._bytes:
                break
            at, messages, size = gone_at, messages - gone_messages, size - gone_bytes
        if self._even_at is None:
            if at > now:
                self._even_at = at
            return at
        # A little ahead is no harm to an even flow, and saves as many wakings of the thread.
        return max(at, self._even_at if self._even_at > now + _SLOT_SECONDS else now)

    def spend(self, one: Cost, now: float) -> None:
        """Count a message that went."""
        if one.is_reset:
            self._sent.clear()
            self._sent_messages = self._sent_bytes = 0
            self._even_at = None
        if not one.messages:
            return
        self._sent_messages += one.messages
        self._sent_bytes += one.stream_bytes
        gone_at = math.ceil((now + self._span_seconds) / _SLOT_SECONDS) * _SLOT_SECONDS
        messages, size = one.messages, one.stream_bytes
        if self._sent and self._sent[-1][0] == gone_at:
            _, other_messages, other_bytes = self._sent.pop()
            messages, size = messages + other_messages, size + other_bytes
        self._sent.append((gone_at, messages, size))
        if self._even_at is not None:
            self._even_at = max(self._even_at, now) + self.seconds_for(one.messages, one.stream_bytes)

    def settle(self) -> None:
        """Stop spreading messages evenly, because nothing waits any more."""
        self._even_at = None

    def seconds_for(self, messages: int, stream_bytes: int) -> float:
        """Return how long so much takes in an even flow."""
        return self._span_seconds * max(messages / self._messages, stream_bytes / self._bytes)

    def _forget(self, now: float) -> None:
        while self._sent and self._sent[0][0] <= now:
            _, messages, size = self._sent.popleft()
            self._sent_messages -= messages
            self._sent_bytes -= size


class Text:
    """`stream` messages of one parent and one name while they wait: text that may grow at its end."""

    def __init__(self, parts: Sequence[Buffer], name: str, text: str) -> None:
        """`parts` are those of the first message, without buffers."""
        at = delimiter_index(parts)
        self._topic = [bytes(part) for part in parts[:at]]
        self._header = bytes(parts[at + 2])
        # Parent header and metadata, as they came.
        self._belongs = (bytes(parts[at + 3]), bytes(parts[at + 4]))
        self._name = name
        self._pieces = [text]
        # As JSON; at most so much after a merge.
        self.text_bytes = len(parts[at + 5])

    def __repr__(self) -> str:
        return f"<Text of {self._name}, {len(self._pieces)} pieces, {self.text_bytes} bytes>"

    def join(self, other: Text, most_bytes: int) -> bool:
        """Take the text of the message that follows, if it belongs to this one and there is room for it."""
        mine, its = (self._name, self._belongs, self._topic), (other._name, other._belongs, other._topic)
        if mine != its or self.text_bytes + other.text_bytes > most_bytes:
            return False
        self._pieces += other._pieces
        self.text_bytes += other.text_bytes
        return True

    def cut(self, most_bytes: int) -> Iterator[Text]:
        """Yield the text in pieces of at most so many bytes; itself where it is not longer."""
        if self.text_bytes <= most_bytes:
            yield self
            return
        text, at = "".join(self._pieces), 0
        header = json.loads(self._header)
        while at < len(text):
            # Most text needs few escapes; else pieces are made smaller until they fit.
            size = max(1, most_bytes * 3 // 4)
            while size > 1 and len(self._content(text[at : at + size])) > most_bytes:
                size //= 2
            # Each with a name of its own: clients refuse a signature that they have seen.
            new_header = json.dumps({**header, "msg_id": uuid.uuid4().hex}).encode() if at else self._header
            piece = text[at : at + size]
            parts = [*self._topic, DELIMITER, b"", new_header, *self._belongs, self._content(piece)]
            yield Text(parts, self._name, piece)
            at += size

    def parts(self) -> list[Buffer]:
        """Return the message, unsigned: the first one's header over the text of all."""
        content = self._content("".join(self._pieces))
        return [*self._topic, DELIMITER, b"", self._header, *self._belongs, content]

    def _content(self, text: str) -> bytes:
        content = {"name": self._name, "text": text}
        try:
            return json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # Half a surrogate pair.
            return json.dumps(content).encode()


def text_of(parts: Sequence[Buffer]) -> Text | None:
    """Return a `stream` message as text to merge or cut; None where it holds more than that."""
    at = delimiter_index(parts)
    try:
        content = json.loads(bytes(parts[at + 5]))
    except (ValueError, RecursionError):
        return None
    if len(parts) > at + 6 or not isinstance(content, dict) or content.keys() != {"name", "text"}:
        return None
    if not isinstance(content["name"], str) or not isinstance(content["text"], str):
        return None
    return Text(parts, content["name"], content["text"])
