"""Run TensorBoard in a kernel's container, and bring its port here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from kernelbridge.config.schema import Forward
from kernelbridge.errors import BoardFailed, LinkLost
from kernelbridge.hosts.forwards.mux_stream import PortRefused
from kernelbridge.hosts.forwards.port_forwards import PortForwards
from kernelbridge.hosts.relay_query import RelayAddress
from kernelbridge.hosts.transport.retry import delays, is_transient
from kernelbridge.kernel.command.terminal import CommandRequest, Terminal, open_terminal
from kernelbridge.plain_text import last_lines, printable

# TensorBoard loads for long where its image is on a slow disk.
_ANSWER_SECONDS = 180.0
_LOOK_SECONDS = 0.3
# How much of its output is kept, for the sentence on why it ended.
_TAIL_BYTES = 16 * 1024

# Takes the port, if it is free there, says which one it has, and becomes TensorBoard.
_PROGRAM = """\
import runpy, socket, sys
for port in (int(sys.argv[1]), 0):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        port = sock.getsockname()[1]
        break
print("kernelbridge-port %d." % port, flush=True)
sys.argv = ["tensorboard", "--logdir=" + sys.argv[2], "--host=127.0.0.1", "--port=%d" % port]
runpy.run_module("tensorboard.main", run_name="__main__", alter_sys=True)
"""
_PORT = re.compile(rb"kernelbridge-port ([0-9]{1,5})\.")


class Board:
    """One TensorBoard, for as long as run() runs."""

    def __init__(self, forwards: PortForwards, address: RelayAddress, *, folder: str) -> None:
        """`folder` of the container has what it shows; where that is no whole path it begins in the kernel's."""
        self._forwards = forwards
        self._address = address
        self._folder = folder

    def __repr__(self) -> str:
        return f"<Board of {self._forwards.kernel}>"

    async def run(self, port: int, ready: Callable[[str], None]) -> None:
        """Run it until cancelled, again after a lost link; `ready` gets its address whenever that is another.

        Raises BoardFailed where it ends by itself; as open_terminal() where the container cannot be reached at first.
        """
        told = ""
        try:
            for delay in delays(is_waited_for=lambda: True):
                try:
                    told = await self._run_once(port, told, ready)
                except Exception as exc:
                    if not told or not is_transient(exc):
                        raise
                await asyncio.sleep(delay)
        finally:
            await self._forwards.aclose()

    async def _run_once(self, port: int, told: str, ready: Callable[[str], None]) -> str:
        """Run it until the link is lost; return the address that was told. Raises BoardFailed and others."""
        output = _BoardOutput()
        workload = await self._address.workload()
        argv = (workload.python, "-c", _PROGRAM, str(port), self._folder)
        request = CommandRequest(argv=argv)
        command = await open_terminal(workload, request, host=self._address.host, output=output.take)
        ended = asyncio.create_task(_end_of(command))
        answering = asyncio.create_task(self._answering(output, port))
        try:
            await asyncio.wait([ended, answering], return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and answering.result() != told:
                told = answering.result()
                ready(told)
            answering.cancel()
            code = await ended
        finally:
            ended.cancel()
            answering.cancel()
            await asyncio.gather(ended, answering, return_exceptions=True)
            await command.aclose()
        if code is not None:
            raise BoardFailed(kernel=self._forwards.kernel, reason=output.last_words or f"exit code {code}")
        return told

    async def _answering(self, output: _BoardOutput, port: int) -> str:
        """Return its address here as soon as it answers. Raises BoardFailed where that takes too long."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                there = await output.port
                try:
                    self._forwards.listen([Forward(here=port, there=there)])
                except OSError as exc:
                    raise BoardFailed(kernel=self._forwards.kernel, reason=f"no port here: {exc}") from exc
                while True:
                    try:
                        (await self._forwards.connect(there)).close()
                    except PortRefused:
                        await asyncio.sleep(_LOOK_SECONDS)
                    else:
                        return self._forwards.ports[0].address
        except TimeoutError as exc:
            raise BoardFailed(kernel=self._forwards.kernel, reason=f"no answer in {_ANSWER_SECONDS:g} s") from exc


async def _end_of(command: Terminal) -> int | None:
    """Return a command's exit code; None where the way to it was lost."""
    try:
        return await command.wait()
    except LinkLost:
        return None


class _BoardOutput:
    """What it writes: its port, and its last words."""

    def __init__(self) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tail = b""

    def take(self, kind: int, data: bytes) -> None:
        """Called with all that it writes, to stdout or stderr."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        found = None if self.port.done() else _PORT.search(self._tail)
        # A program of the container may write what looks like it.
        if found is not None and 0 < int(found[1]) < 65536:
            self.port.set_result(int(found[1]))

    @property
    def last_words(self) -> str:
        text = _PORT.sub(b"", self._tail).decode("utf-8", "replace").strip()
        return printable(" ".join(last_lines(text, 2).split()))
