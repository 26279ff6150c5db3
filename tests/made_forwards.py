"""A container made up for the tests of forwards: the real forwarder beside the test, and a small web program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from kernelbridge.errors import EngineDown
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import ContainerState, Missing, Running, Workload
from kernelbridge.hosts.transport.stream import Receiver, Stream

FORWARDER = "from kernelbridge.relay.beside.port_forwarder import main; main()"

TERMINAL = """
from kernelbridge.relay.beside import terminal
terminal.relay_folder = lambda: %r
terminal.main()
"""


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

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(data)

    async def drain(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            await self._process.stdin.drain()

    def close(self) -> None:
        """End its stdin; what runs ends by that."""
        assert self._process.stdin is not None
        self._process.stdin.close()


class MadeContainer:
    """Runs the forwarder and commands here, so that the ports of the container are this machine's."""

    python = sys.executable

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` stands for the relay's, where commands are run."""
        self._folder = folder
        # What runs instead of the forwarder; and whether the link is away.
        self.program = FORWARDER
        self.is_away = False
        self.streams: list[MadeStream] = []
        # Of commands; and how it is.
        self.environ: dict[str, str] = dict(os.environ)
        self.is_gone = False

    async def workload(self) -> Workload:
        """What a kernel's forwards ask for it."""
        if self.is_away:
            raise EngineDown(host="lab", socket="/run/docker.sock")
        return cast(Workload, self)

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run the forwarder from here, or the program that runs commands."""
        is_forwarder = list(argv) == bootstrap.forward_argv(self.python)
        program = self.program if is_forwarder else TERMINAL % str(self._folder)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environ
        )
        self.streams.append(MadeStream(process, receiver))
        return cast(Stream, self.streams[-1])

    async def state(self) -> ContainerState:
        return Missing() if self.is_gone else Running()

    def cut(self) -> None:
        """End what runs, as a lost link does."""
        for stream in self.streams:
            stream.close()

    async def aclose(self) -> None:
        self.cut()
        # At its end each ends what it has started.
        tasks = [stream.task for stream in self.streams]
        if tasks:
            await asyncio.wait(tasks, timeout=10)
        for stream in self.streams:
            stream.kill()
        await asyncio.gather(*tasks)


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
