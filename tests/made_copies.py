"""A container whose files are a folder of this machine, made up for the tests of `cp`: it packs and unpacks there."""

from __future__ import annotations

import asyncio
import io
import queue
import tarfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelbridge.hosts.relay_query import RelayAddress
from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.json_object import parse_object
from kernelbridge.protocol.terminal import CommandEnd, CommandOrder
from kernelbridge.relay.beside import archive
from tests.made_runs import RunFleet

KERNEL = "aabb1111-0000-4000-8000-000000000001"


class CopyStream:
    """The exec stream to the program, which runs on a thread; what waits for the other end waits."""

    def __init__(self, container: MadeContainer, receiver: Any) -> None:
        self._container = container
        self._receiver = receiver
        self._decoder = frames.Decoder()
        self._loop = asyncio.get_running_loop()
        self._input: queue.Queue[bytes] = queue.Queue()
        self._may_say = threading.Event()
        self._may_say.set()
        self.is_closed = False
        # What it was given and has not taken.
        self._rest = b""

    # -- the stream

    def write(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.kind == terminal.START:
                order = CommandOrder.from_dict(parse_object(frame.payload))
                self._container.orders.append(order)
                threading.Thread(target=self._serve, args=order.argv[-2:], daemon=True).start()
            elif frame.kind == terminal.INPUT:
                self._container.taken_bytes += len(frame.payload)
                self._input.put(bytes(frame.payload))
            elif frame.kind == terminal.INPUT_END:
                self._input.put(b"")

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def pause_reading(self) -> None:
        self._container.pauses += 1
        self._may_say.clear()

    def resume_reading(self) -> None:
        self._may_say.set()

    def close(self) -> None:
        self.is_closed = True
        self._may_say.set()
        self._input.put(b"")
        self._loop.call_soon(self._receiver.closed, None)

    # -- the program

    def _say(self, framed: bytes) -> None:
        self._may_say.wait()
        if not self.is_closed:
            self._loop.call_soon_threadsafe(self._receiver.data_received, framed)

    def _serve(self, what: str, path: str) -> None:
        self._say(frames.frame(terminal.STARTED))
        try:
            self._container.act(self, what, path)
        except (OSError, tarfile.TarError) as exc:
            self._say(frames.frame(terminal.ERRORS, f"{path}: {exc}\n".encode()))
            self._say(CommandEnd(1).frame())
        else:
            self._say(CommandEnd(0).frame())

    def read(self, size: int) -> bytes:
        """The program's stdin, for tarfile."""
        while len(self._rest) < size and (piece := self._input.get()):
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def output(self, data: bytes) -> int:
        """The program's stdout."""
        for framed in terminal.pieces(terminal.OUTPUT, data):
            self._say(framed)
        return len(data)


class _Out(io.RawIOBase):
    def __init__(self, stream: CopyStream) -> None:
        self._stream = stream

    def write(self, data: Any) -> int:
        return self._stream.output(bytes(data))


@dataclass(kw_only=True)
class MadeContainer:
    """Where the program runs. Paths of the container begin at `root`."""

    root: Path
    python: str = "/opt/py"
    orders: list[CommandOrder] = field(default_factory=list)
    streams: list[CopyStream] = field(default_factory=list)
    taken_bytes: int = 0
    pauses: int = 0

    async def open_command(self, argv: Sequence[str], receiver: Any) -> CopyStream:
        self.streams.append(CopyStream(self, receiver))
        return self.streams[-1]

    def act(self, stream: CopyStream, what: str, path: str) -> None:
        """Do what the program does; a test may have it do something else."""
        place = str(self.root / path.lstrip("/"))
        source: Any = stream
        if what == "pack":
            sink: Any = _Out(stream)
            archive.pack(place, sink)
        else:
            archive.unpack(place, source)


@dataclass(kw_only=True)
class CopyFleet(RunFleet):
    """A fleet with one kernel, whose container is a folder."""

    container: MadeContainer
    names: list[str] = field(default_factory=list)

    async def address_of(self, name: str) -> RelayAddress:
        self.names.append(name)

        async def workload() -> Any:
            return self.container

        rest: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep
        return RelayAddress(
            kernel=KERNEL, host="lab", image="x", python=self.container.python, workload=workload, rest=rest
        )
