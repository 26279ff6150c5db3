"""A kernel made up for the tests of the channels: keeps what it is sent, and how its answers look when packed."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from kernelbridge.channels import messages
from kernelbridge.channels.waiting import Wish
from kernelbridge.relay import wire
from kernelbridge.relay.wire import IOPUB, SHELL, Message


@dataclass
class MadeKernel:
    """What stands behind the channels: keeps what it is sent, says what a test wants it to say."""

    heard: list[Message] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    widgets: list[str] = field(default_factory=list)

    def requests(self, packed: list[tuple[int, bytes]]) -> None:
        for lane, one in packed:
            message = wire.unpack(one)
            assert lane == wire.LANE_OF[message.channel]
            self.heard.append(message)

    def wished(self, wish: Wish) -> None:
        self.wishes.append(wish)

    def has_last(self, wish: Wish) -> bool:
        return self.wishes[-1:] == [wish]

    def learned(self, widgets: str) -> None:
        self.widgets.append(widgets)


def header_of(message: Message) -> dict[str, Any]:
    parts = [bytes(part) for part in message.parts]
    header: dict[str, Any] = json.loads(parts[parts.index(messages.DELIMITER) + 2])
    return header


def kind_of(message: Message) -> str:
    return str(header_of(message)["msg_type"])


def answer_to(message: Message, channel: int, kind: str, content: Any, *, buffers: tuple[bytes, ...] = ()) -> bytes:
    """What the kernel says to a request, packed."""
    parts = [bytes(part) for part in message.parts]
    to = [kind.encode()] if channel == IOPUB else parts[: parts.index(messages.DELIMITER)]
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "kernel", "version": "5.3"}
    rest = [json.dumps(part).encode() for part in (header, header_of(message), {}, content)]
    return wire.pack(Message(channel, message.launch, [*to, messages.DELIMITER, b"", *rest, *buffers]))


def cell_of(message: Message, text: str = "") -> list[bytes]:
    """A whole cell's life: busy, output, reply, idle."""
    return [
        answer_to(message, IOPUB, "status", {"execution_state": "busy"}),
        *([answer_to(message, IOPUB, "stream", {"name": "stdout", "text": text})] if text else []),
        answer_to(message, SHELL, "execute_reply", {"status": "ok", "execution_count": 1}),
        answer_to(message, IOPUB, "status", {"execution_state": "idle"}),
    ]
