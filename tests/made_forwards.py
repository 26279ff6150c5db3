"""A container made up for the tests of forwards: the real forwarder beside the test, and a small web program."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from kernelbridge.errors import EngineDown
from kernelbridge.hosts.backend import Workload
from kernelbridge.hosts.transport.stream import Receiver, Stream

FORWARDER = "from kernelbridge.relay.execs.port_forwarder import main; main()"


class MadeStream:
    """A process's stdin and stdout as a stream."""

    def __init__(self, process: asyncio.subprocess.Process, receiver: Receiver) -> None:
        self._process = process
        self._receiver = receiver
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(1 << 16):
            self._receiver.data_received(piece)
        await self._process.wait()
        self._receiver.closed(None)

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(data)

    async def drain(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            await self._process.stdin.drain()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class MadeContainer:
    """Runs the forwarder here, so that the ports of the container are this machine's."""

    python = "python3"

    def __init__(self) -> None:
        # What runs instead of the forwarder; and whether the link is away.
        self.program = FORWARDER
        self.is_away = False
        self.streams: list[MadeStream] = []

    async def workload(self) -> Workload:
        """What a kernel's forwards ask for it."""
        if self.is_away:
            raise EngineDown(host="lab", socket="/run/docker.sock")
        return cast(Workload, self)

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run the forwarder, whatever the command's words are."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self.program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self.streams.append(MadeStream(process, receiver))
        return cast(Stream, self.streams[-1])

    def cut(self) -> None:
        """End what runs, as a lost link does."""
        for stream in self.streams:
            stream.close()

    async def aclose(self) -> None:
        self.cut()
        await asyncio.gather(*(stream.task for stream in self.streams))


@asynccontextmanager
async def program(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[int]:
    """A program of the container that listens; its port."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Give all back, and end when the other end does."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()
