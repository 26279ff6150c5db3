"""Run a command of the user's in a container for as long as somebody here wants it; on the fleet's loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Workload
from kernelbridge.hosts.transport.stream import Stream
from kernelbridge.plain_text import last_lines, printable
from kernelbridge.protocol.frames import WireError
from kernelbridge.protocol.json_object import JsonObject, parse_object

# How much of its output is kept, for the sentence on why it ended.
_TAIL_BYTES = 16 * 1024
_ENDED = re.compile(rb"\0ended (-?[0-9]{1,5})\n\Z")


class ContainerCommand:
    """One command that runs; made by run_command()."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        # The port that it was given.
        self.port: asyncio.Future[int] = loop.create_future()
        # Its exit code; None where the way to it was lost.
        self.ended: asyncio.Future[int | None] = loop.create_future()
        # The last that it wrote.
        self._tail = b""
        self._stream: Stream | None = None

    def __repr__(self) -> str:
        return f"<ContainerCommand {'ended' if self.ended.done() else 'runs'}>"

    def begin(self, stream: Stream, line: bytes) -> None:
        """Called by run_command() when the program that runs it is there."""
        self._stream = stream
        stream.write(line)

    @property
    def last_words(self) -> str:
        """What it said last, on one line."""
        text = _ENDED.sub(b"", self._tail).decode("utf-8", "replace")
        return printable(" ".join(last_lines(text.strip(), 3).split()))

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        self._tail += data
        if not self.port.done() and b"\n" in self._tail:
            line, _, self._tail = self._tail.partition(b"\n")
            try:
                self.port.set_result(JsonObject(parse_object(line)).count("port", least=1))
            except WireError:
                # A Python that does not start says so.
                self._tail = line + b"\n" + self._tail
                self.port.cancel()
        self._tail = self._tail[-_TAIL_BYTES:]

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        found = _ENDED.search(self._tail)
        if not self.ended.done():
            self.ended.set_result(int(found[1]) if found else None)
        self.port.cancel()

    def close(self) -> None:
        """End it, with all that it started. Safe to call twice."""
        if self._stream is not None:
            self._stream.close()


async def run_command(workload: Workload, words: Sequence[str], *, port: int, folder: str) -> ContainerCommand:
    """Run a command beside a relay; see bootstrap.command_line(). Raises: as Workload.open_command()."""
    command = ContainerCommand()
    stream = await workload.open_command(bootstrap.run_argv(workload.python), command)
    command.begin(stream, bootstrap.command_line(words, port=port, folder=folder))
    return command
