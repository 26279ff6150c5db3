"""A kernel made up for the tests of the channels: keeps what it is sent, and how its answers look when packed."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kernelbridge.channels.proxy import ProxyOwner
from kernelbridge.channels.user_cells import CellAsked
from kernelbridge.channels.waiting import ShutdownIntent
from kernelbridge.mailbox import LoopMailbox
from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import IOPUB, SHELL, Message


class MadeKernel:
    """What stands behind a proxy, on a loop of its own: keeps what it is sent, says what a test wants it to say."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._mailbox = LoopMailbox(self._loop)
        self._events: list[Message | ShutdownIntent | str] = []
        # What was told of cells.
        self.cells: list[CellAsked] = []
        # One for each user's cell that came while there was no kernel for it.
        self.waiting: list[bool] = []
        self.owner = ProxyOwner(
            mailbox=self._mailbox,
            requested=self._requested,
            shutdown_requested=self._events.append,
            widgets_learned=self._events.append,
            cell_asked=self.cells.append,
            cell_waits=lambda: self.waiting.append(True),
        )

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _requested(self, packed: list[tuple[int, bytes]]) -> None:
        assert threading.current_thread() is self._thread
        for lane, one in packed:
            message = frames.unpack(one)
            is_interrupt = message.channel != frames.COMMAND and kind_of(message) == "interrupt_request"
            is_unnamed = is_interrupt and b"kernelbridge_cell" not in b"".join(message.parts)
            assert lane == (frames.ORDERED if is_unnamed else frames.LANE_OF[message.channel])
            self._events.append(message)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Let the loop stand still."""
        is_over = threading.Event()
        self._mailbox.post(is_over.wait, 30)
        try:
            yield
        finally:
            is_over.set()

    @property
    def events(self) -> list[Message | ShutdownIntent | str]:
        """All that has come up to now: requests, what clients wish, versions of ipywidgets."""
        self._mailbox.call(asyncio.sleep(0)).result(30)
        return list(self._events)

    @property
    def heard(self) -> list[Message]:
        """The requests."""
        return [event for event in self.events if isinstance(event, Message)]

    @property
    def wishes(self) -> list[ShutdownIntent]:
        """What clients wish."""
        return [event for event in self.events if isinstance(event, ShutdownIntent)]

    @property
    def widgets(self) -> list[str]:
        """Versions of ipywidgets."""
        return [event for event in self.events if isinstance(event, str)]

    def has_last(self, intent: ShutdownIntent) -> bool:
        return self.wishes[-1:] == [intent]


def header_of(message: Message) -> dict[str, Any]:
    parts = [bytes(part) for part in message.parts]
    header: dict[str, Any] = json.loads(parts[parts.index(frames.DELIMITER) + 2])
    return header


def kind_of(message: Message) -> str:
    return str(header_of(message)["msg_type"])


def answer_to(message: Message, channel: int, kind: str, content: Any, *, buffers: tuple[bytes, ...] = ()) -> bytes:
    """What the kernel says to a request, packed."""
    parts = [bytes(part) for part in message.parts]
    to = [kind.encode()] if channel == IOPUB else parts[: parts.index(frames.DELIMITER)]
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": "kernel", "version": "5.3"}
    rest = [json.dumps(part).encode() for part in (header, header_of(message), {}, content)]
    return frames.pack(Message(channel, message.launch, [*to, frames.DELIMITER, b"", *rest, *buffers]))


def cell_of(message: Message, text: str = "") -> list[bytes]:
    """A whole cell's life: busy, output, reply, idle."""
    return [
        answer_to(message, IOPUB, "status", {"execution_state": "busy"}),
        *([answer_to(message, IOPUB, "stream", {"name": "stdout", "text": text})] if text else []),
        answer_to(message, SHELL, "execute_reply", {"status": "ok", "execution_count": 1}),
        answer_to(message, IOPUB, "status", {"execution_state": "idle"}),
    ]
