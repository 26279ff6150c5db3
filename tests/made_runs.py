"""Commands that run elsewhere, made up for the tests of the command line: on a loop of their own, as a fleet's are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from kernelbridge.config.schema import Config, Host
from kernelbridge.fleet.loop import LoopThread
from kernelbridge.kernel.command.run import RunOutput
from kernelbridge.kernel.command.terminal import CommandRequest
from kernelbridge.kernel.records import KernelRecord
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.protocol.terminal import WindowSize
from tests.fakes import FakeFleet

T = TypeVar("T")


@dataclass(kw_only=True)
class Script:
    """What a command does, and what happened to it."""

    # Written as soon as it runs: kind and bytes.
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    # The same, of a command beside a kernel, before who opens it knows that it runs.
    writes_at_once: list[tuple[int, bytes]] = field(default_factory=list)
    # What is said of it, and that it starts.
    tells: list[str] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)
    # What it ends with; None: it runs until its input or a signal ends it, or until end() is called.
    code: int | None = 0
    # What its start, and its whole run, fail with; whether its start goes on for ever.
    start_failure: Exception | None = None
    failure: Exception | None = None
    never_starts: bool = False
    # How long its last results take.
    finishes_after_seconds: float = 0.0
    # Whether nobody hears its goodbye.
    detaches_never: bool = False
    # Called while it starts.
    on_start: Callable[[], None] = lambda: None
    # Whether the end of its input ends it, with the number of bytes that came as its exit code; which signal does.
    ends_with_input: bool = False
    # What happened, in order; and its input.
    log: list[str] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def steps(self) -> list[str]:
        """What happened to it, but for its input, which comes on a thread of its own."""
        return [step for step in self.log if step != "end of input"]

    async def outcome(self, write: Callable[[int, bytes], None]) -> int:
        """Run, and return the exit code."""
        for kind, data in self.writes:
            write(kind, data)
        self.log.append("runs")
        if self.failure is not None:
            raise self.failure
        if self.code is None:
            await self.is_over.wait()
        return self.code or 0

    def take(self, data: bytes) -> None:
        if data:
            self.inputs.append(data)
        else:
            self.log.append("end of input")
            if self.ends_with_input:
                self.end(sum(map(len, self.inputs)))

    def end(self, code: int) -> None:
        self.code = code
        self.is_over.set()


class MadeTerminal:
    """Stands where kernel.command.terminal.Terminal stands."""

    def __init__(self, script: Script, output: Callable[[int, bytes], None]) -> None:
        self._script = script
        self._output = output

    async def wait(self) -> int:
        return await self._script.outcome(self._output)

    async def send(self, data: bytes) -> None:
        self._script.take(data)

    def resize(self, window: WindowSize) -> None:
        self._script.log.append(f"resize {window.columns} {window.rows}")

    def signal(self, number: int) -> None:
        self._script.log.append(f"signal {number}")
        self._script.end(128 + number)

    def pause(self) -> None:
        self._script.log.append("pause")

    def resume(self) -> None:
        self._script.log.append("resume")

    async def aclose(self) -> None:
        self._script.log.append("closed")


class MadeRun(MadeTerminal):
    """Stands where kernel.command.run.CommandRun stands."""

    def __init__(self, request: LaunchRequest, script: Script, output: RunOutput) -> None:
        super().__init__(script, output.write)
        self.request = request
        self.host = request.hosts[0]
        self._said = output

    async def start(self) -> None:
        self._script.log.append("start")
        self._script.on_start()
        for text in self._script.progress:
            self._said.progress(text)
        if self._script.never_starts:
            await asyncio.Event().wait()
        await self.began()

    async def began(self) -> None:
        for text in self._script.tells:
            self._said.tell(text)
        if self._script.start_failure is not None:
            raise self._script.start_failure

    def join_running(self, host: Host, *, takes: bool) -> None:
        self.host = host
        self._script.log.append(f"join on {host.name}{', taking it' if takes else ''}")

    async def detach(self) -> None:
        self._script.log.append("detach")
        if self._script.detaches_never:
            await asyncio.Event().wait()

    @property
    def unfetched_text(self) -> str:
        return f"the others stay on {self.host.name}"

    async def finish(self) -> None:
        self._script.log.append("finish")
        await asyncio.sleep(self._script.finishes_after_seconds)

    async def remove(self) -> bool:
        self._script.log.append("remove")
        return True


@dataclass(kw_only=True)
class RunFleet(FakeFleet):
    """A fleet in memory that runs commands, all by one script."""

    script: Script = field(default_factory=Script)
    # What was asked for last.
    asked: CommandRequest | None = None
    request: LaunchRequest | None = None
    # A log that is followed, piece by piece; whether it ends with them, and whether all were told.
    followed: list[str] = field(default_factory=list)
    follows_for_ever: bool = False
    is_followed: bool = False
    _loop: LoopThread | None = None

    def open(self, config: Config, asked: Sequence[Host] = ()) -> RunFleet:
        super().open(config)
        self._loop = LoopThread("made-up fleet")
        return self

    def submit(self, coro: Coroutine[Any, Any, T]) -> Future[T]:
        assert self._loop is not None
        return self._loop.submit(coro)

    def run(self, coro: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """A command has no limit, nor has the input that it takes."""
        return self.submit(coro).result(seconds)

    def close(self) -> None:
        super().close()
        assert self._loop is not None
        self._loop.close()

    async def open_terminal(
        self, prefix: str, request: CommandRequest, output: Callable[[int, bytes], None]
    ) -> MadeTerminal:
        self._find(prefix)
        self.asked = request
        if self.script.start_failure is not None:
            raise self.script.start_failure
        for kind, data in self.script.writes_at_once:
            output(kind, data)
        # What was told of that on the loop comes before who waits.
        await asyncio.sleep(0.01)
        return MadeTerminal(self.script, output)

    def with_project_of(self, request: LaunchRequest, record: KernelRecord) -> LaunchRequest:
        return replace(request, folder=record.folder)

    async def follow_log(self, prefix: str, heard: Callable[[str], None]) -> None:
        self._find(prefix)
        for text in self.followed:
            heard(text)
        self.is_followed = True
        if self.follows_for_ever:
            await asyncio.Event().wait()

    async def make_run(self, request: LaunchRequest, output: RunOutput) -> MadeRun:
        self.request = request
        return MadeRun(request, self.script, output)
