"""What a kernel says, packed, for tests of the journal; and a spool in memory with faults that have names."""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import EVENT, IOPUB, Message


def said(
    kind: str,
    content: dict[str, Any] | None = None,
    *,
    number: int = 0,
    parent: str = "cell",
    channel: int = IOPUB,
    launch: int = 1,
    buffers: Sequence[bytes] = (),
) -> bytes:
    """One message of a kernel; `number` is what a test knows it by."""
    dicts = [{"msg_type": kind, "number": number}, {"msg_id": parent} if parent else {}, {}, content or {}]
    parts = [b"kernel.topic", b"<IDS|MSG>", b"", *(json.dumps(one).encode() for one in dicts), *buffers]
    return frames.pack(Message(channel, launch, parts))


def update(comm: str, state: dict[str, Any], *, buffers: Sequence[bytes] = (), **facts: Any) -> bytes:
    """A widget's state, or part of it."""
    content = {"comm_id": comm, "data": {"method": "update", "state": state, "buffer_paths": []}}
    return said("comm_msg", content, buffers=buffers, **facts)


def event(packed: bytes) -> dict[str, Any] | None:
    """The relay's own event in a message; None if it is a kernel's."""
    message = frames.unpack(packed)
    if message.channel != EVENT:
        return None
    found: dict[str, Any] = json.loads(bytes(message.parts[0]))
    assert message.launch == found["launch"]
    return found


def read(packed: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]:
    """A message's header, parent header, content, and how many buffers it has."""
    parts = frames.unpack(packed).parts
    header, parent, _, content = (json.loads(bytes(part)) for part in parts[3:7])
    return header, parent, content, len(parts) - 7


class MemorySpool:
    """Blocks in memory."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[bytes]] = {}
        self.is_full = False
        self.is_broken = False
        # How many messages were written and read: the work.
        self.written = 0
        self.read_again = 0

    def write(self, messages: Collection[bytes], series: int) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.written += len(messages)
        self.blocks[self.written] = list(messages)
        return self.written

    def read(self, slot: int) -> list[bytes]:
        if self.is_broken:
            raise OSError(errno.EIO, "input/output error")
        self.read_again += len(self.blocks[slot])
        return self.blocks[slot]

    def free(self, slot: int) -> None:
        del self.blocks[slot]

    @contextmanager
    def full(self) -> Iterator[None]:
        self.is_full = True
        yield
        self.is_full = False

    @contextmanager
    def broken(self) -> Iterator[None]:
        self.is_broken = True
        yield
        self.is_broken = False
