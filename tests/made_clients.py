"""Clients made up for the tests of the queue: take what is handed out, at a clock that a test moves."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from kernelbridge.channels.output_queue import OutputQueue
from kernelbridge.channels.rate_limit import Limits
from kernelbridge.protocol.frames import DELIMITER, IOPUB, SHELL, Buffer


class MadeClients:
    """What stands in front of the queue."""

    def __init__(self) -> None:
        self.now = 1000.0
        # When, on which channel, what.
        self.taken: list[tuple[float, int, list[Buffer]]] = []
        # Whether a subscriber takes nothing; whether it may lose messages then.
        self.is_full = False
        self.is_lossy = False
        self.wakes = 0

    def clock(self) -> float:
        return self.now

    def sign(self, parts: Sequence[Buffer]) -> list[Buffer]:
        at = list(parts).index(DELIMITER)
        assert parts[at + 1] == b"", "signed twice"
        return [*parts[: at + 1], b"signature", *parts[at + 2 :]]

    def send(self, channel: int, parts: list[Buffer]) -> bool:
        if channel == IOPUB and self.is_full and not self.is_lossy:
            return False
        self.taken.append((self.now, channel, parts))
        return True

    def set_lossy(self, is_lossy: bool) -> None:
        self.is_lossy = is_lossy

    def queue(self, limits: Limits | None = None) -> OutputQueue:
        """A queue towards these clients."""
        return OutputQueue(
            sign=self.sign,
            # Looked up at each call: a test may put another in its place.
            send=lambda channel, parts: self.send(channel, parts),
            set_lossy=self.set_lossy,
            limits=limits,
            clock=self.clock,
        )

    def live(self, queue: OutputQueue, seconds: float) -> None:
        """Let time pass as the poll loop does: it wakes when something is due."""
        end = self.now + seconds
        while (due := queue.due_at) is not None and due <= end:
            # The poll loop counts in ms, and never wakes early.
            self.now = min(end, max(self.now, due) + 0.001)
            self.wakes += 1
            queue.offer()
        self.now = end

    @property
    def heard(self) -> list[str]:
        """What came, in short: the text of a stream, the state of a status, else the type."""
        return [in_short(parts) for _, _, parts in self.taken]


def made(kind: str, content: Any = None, *, parent: str = "cell", to: Sequence[bytes] = (b"topic",)) -> list[bytes]:
    """A message of the kernel's, unsigned."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "kernel", "version": "5.3"}
    parts: list[Any] = [header, {"msg_id": parent, "msg_type": "execute_request"}, {}, content or {}]
    return [*to, DELIMITER, b"", *(json.dumps(part).encode() for part in parts)]


def stream(text: str, *, name: str = "stdout", parent: str = "cell") -> list[bytes]:
    return made("stream", {"name": name, "text": text}, parent=parent)


def status(state: str, *, parent: str = "cell") -> list[bytes]:
    return made("status", {"execution_state": state}, parent=parent)


def reply(to: bytes = b"me") -> list[bytes]:
    return made("execute_reply", {"status": "ok"}, to=(to,))


def part_of(parts: Sequence[Buffer], number: int) -> Any:
    """Header (0), parent header (1), metadata (2) or content (3)."""
    return json.loads(bytes(parts[list(parts).index(DELIMITER) + 2 + number]))


def in_short(parts: Sequence[Buffer]) -> str:
    kind, content = part_of(parts, 0)["msg_type"], part_of(parts, 3)
    return str(content.get("text") or content.get("execution_state") or kind)


def put(queue: OutputQueue, *messages: list[bytes]) -> None:
    """The kernel says something; a reply goes to shell."""
    for parts in messages:
        queue.put(SHELL if part_of(parts, 0)["msg_type"].endswith("_reply") else IOPUB, parts)
