"""Commands in a container, made up for the tests of the SSH server: what they do, and when, a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kernelbridge.cli.ssh import server
from kernelbridge.kernel.command.terminal import CommandRequest
from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import CommandEnd, WindowSize

PYTHON = "/opt/python"
KEY = server.new_host_key()
SECONDS = 20


@dataclass(kw_only=True)
class MadeSession:
    """Stands where kernel.command.terminal.Terminal stands; writes and ends as a test says."""

    request: CommandRequest
    write: Callable[[int, bytes], None]
    # What happened to it, in order; and its input.
    log: list[str] = field(default_factory=list)
    input: bytearray = field(default_factory=bytearray)
    is_paused: bool = False
    # Whether it takes its input.
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: asyncio.Future[CommandEnd] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def _note(self, what: str) -> None:
        self.log.append(what)
        self.changed.set()

    async def wait_end(self) -> CommandEnd:
        return await asyncio.shield(self.outcome)

    async def send(self, data: bytes) -> None:
        if not data:
            self._note("end of input")
            return
        await self.takes.wait()
        self.input += data
        self.changed.set()

    def resize(self, window: WindowSize) -> None:
        self._note(f"resize {window.columns} {window.rows}")

    def signal(self, number: int) -> None:
        self._note(f"signal {number}")

    def pause(self) -> None:
        self.is_paused = True
        self._note("pause")

    def resume(self) -> None:
        self.is_paused = False
        self._note("resume")

    async def aclose(self) -> None:
        self._note("closed")

    # -- what a test says

    def out(self, data: bytes) -> None:
        self.write(terminal.OUTPUT, data)

    def err(self, data: bytes) -> None:
        self.write(terminal.ERRORS, data)

    def end(self, code: int, *, signal: int = 0) -> None:
        self.outcome.set_result(CommandEnd(code, signal))

    async def until(self, claim: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not claim():
                self.changed.clear()
                await self.changed.wait()


class Container:
    """Where commands run: each is a MadeSession, which a test takes from here."""

    def __init__(self) -> None:
        self.opened: asyncio.Queue[MadeSession] = asyncio.Queue()
        self.failure: Exception | None = None
        # Set as soon as commands may start.
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.requests: list[CommandRequest] = []

    async def open_beside(self, request: CommandRequest, output: Callable[[int, bytes], None]) -> Any:
        self.requests.append(request)
        await self.may_start.wait()
        if self.failure is not None:
            raise self.failure
        made = MadeSession(request=request, write=output)
        made.takes.set()
        self.opened.put_nowait(made)
        return made

    async def next(self) -> MadeSession:
        async with asyncio.timeout(SECONDS):
            return await self.opened.get()
