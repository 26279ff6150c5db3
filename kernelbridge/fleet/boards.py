"""Run TensorBoard in a kernel's container, and bring its port here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kernelbridge.config.schema import Forward
from kernelbridge.errors import BoardFailed, KernelBridgeError
from kernelbridge.hosts.backend import Workload
from kernelbridge.hosts.forwards.container_command import ContainerCommand, run_command
from kernelbridge.hosts.forwards.mux_stream import PortRefused
from kernelbridge.hosts.forwards.port_forwards import PortForwards
from kernelbridge.hosts.transport.retry import delays, is_transient

BOARD_PORT = 6006
# TensorBoard loads for long where its image is on a slow disk.
_ANSWER_SECONDS = 180.0
_LOOK_SECONDS = 0.3


class Board:
    """One TensorBoard, for as long as run() runs."""

    def __init__(
        self, kernel: str, workload: Callable[[], Awaitable[Workload]], *, folder: str, workdir: str = ""
    ) -> None:
        """`folder` has what it shows; where that is no whole path it begins in `workdir`, or the image's own."""
        self._kernel = kernel
        self._workload = workload
        self._forwards = PortForwards(kernel, workload)
        self._workdir = workdir
        # The first two words are the container's own, and what is the user's comes over stdin.
        options = [f"--logdir={folder}", "--host=127.0.0.1", "--port", "{port}"]
        self._words = ["{python}", "-m", "tensorboard.main", *options]

    def __repr__(self) -> str:
        return f"<Board of {self._kernel}, {self._forwards!r}>"

    async def run(self, port: int, ready: Callable[[str], None]) -> None:
        """Run it until cancelled, again after a lost link; `ready` gets its address whenever that is another.

        Raises BoardFailed where it ends by itself; KernelBridgeError where the container cannot be reached at first.
        """
        told = ""
        try:
            for delay in delays(is_waited_for=lambda: True):
                try:
                    command = await run_command(await self._workload(), self._words, port=port, folder=self._workdir)
                except KernelBridgeError as exc:
                    if not told or not is_transient(exc):
                        raise
                else:
                    try:
                        address = await self._answering(command, port)
                        if address and address != told:
                            told = address
                            ready(address)
                        self._refuse_end(command, await command.ended)
                    finally:
                        command.close()
                await asyncio.sleep(delay)
        finally:
            await self._forwards.aclose()

    async def _answering(self, command: ContainerCommand, port: int) -> str:
        """Return its address here as soon as it answers; empty where the way to it is lost before."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await asyncio.wait([command.port])
                if command.port.cancelled():
                    return ""
                there = command.port.result()
                asked = Forward(here=port, there=there)
                self._forwards.listen([asked])
                while not command.ended.done():
                    try:
                        (await self._forwards.connect(there)).close()
                    except PortRefused:
                        await asyncio.sleep(_LOOK_SECONDS)
                    else:
                        return self._forwards.ports[0].address
        except TimeoutError as exc:
            raise BoardFailed(kernel=self._kernel, reason=f"no answer in {_ANSWER_SECONDS:g} s") from exc
        return ""

    def _refuse_end(self, command: ContainerCommand, code: int | None) -> None:
        """Raise BoardFailed where it has ended, and not only the way to it; or where it never began."""
        if code is None and not (command.port.cancelled() and command.last_words):
            return
        reason = command.last_words or f"exit code {code}"
        raise BoardFailed(kernel=self._kernel, reason=reason)
