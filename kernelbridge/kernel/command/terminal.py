"""Run a command beside a kernel, in its container, joined to somebody's input and output over one exec stream.

The stream is of no use after a cut: the command then hears SIGHUP, as from a terminal that was closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kernelbridge.errors import CommandNotRun, KernelBridgeError, LinkLost
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Workload
from kernelbridge.hosts.transport.stream import Stream
from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.json_object import parse_object, plain
from kernelbridge.protocol.terminal import CommandEnd, CommandOrder, WindowSize

# The program's module in the relay's code.
TERMINAL_MODULE = "beside.terminal"
# How long it may take to say that the command runs.
START_SECONDS = 30.0
# So long without a word the line counts as gone.
SILENT_SECONDS = 3 * terminal.KEEP_ALIVE_SECONDS


@dataclass(frozen=True, kw_only=True)
class CommandRequest:
    """A command as a user wants it run beside a kernel."""

    # Empty: a shell.
    argv: tuple[str, ...] = ()
    # Where it starts; `~`: at home; empty: where the kernel is.
    folder: str = ""
    # Of the terminal that it gets; None: pipes.
    window: WindowSize | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def order(self) -> CommandOrder:
        """Return it as the program over there takes it."""
        return CommandOrder(list(self.argv), dict(self.env), self.folder, self.window)


class Terminal:
    """One command that runs beside a kernel. Made by open_terminal(); everything runs on the link's loop."""

    def __init__(self, host: str, output: Callable[[int, bytes], None]) -> None:
        """`output` takes what the command writes: terminal.OUTPUT or ERRORS, and bytes. It must not block."""
        self._host = host
        self._output = output
        self._decoder = frames.Decoder()
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[CommandEnd] = loop.create_future()
        self._heard_at = loop.time()
        # Whether nothing is taken, by pause() and resume(): then silence is no sign.
        self._is_paused = False
        # Set by open_terminal() before anybody else sees it.
        self.stream: Stream
        self._pulse: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Terminal on {self._host} {'ended' if self._ended.done() else 'open'}>"

    # -- called by the stream

    def data_received(self, data: bytes) -> None:
        """Take what the program says."""
        self._heard_at = asyncio.get_running_loop().time()
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except frames.WireError as exc:
            # The engine's own words, mostly: it could not run the program.
            self._fail(CommandNotRun(host=self._host, reason=f"what the container says cannot be understood: {exc}"))

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind in (terminal.OUTPUT, terminal.ERRORS):
            self._output(frame.kind, bytes(frame.payload))
        elif frame.kind == terminal.STARTED and not self._started.done():
            self._started.set_result(None)
        elif frame.kind == terminal.FAILED:
            self._fail(CommandNotRun(host=self._host, reason=plain(bytes(frame.payload).decode("utf-8", "replace"))))
        elif frame.kind == terminal.EXIT and not self._ended.done():
            self._ended.set_result(CommandEnd.from_dict(parse_object(frame.payload)))

    def closed(self, exc: Exception | None) -> None:
        """Know that nothing more comes."""
        if not self._started.done():
            self._fail(CommandNotRun.of_old_relay(host=self._host))
        self._fail(exc if isinstance(exc, KernelBridgeError) else LinkLost(host=self._host))

    def _fail(self, error: KernelBridgeError) -> None:
        for waited in (self._started, self._ended):
            if not waited.done():
                waited.set_exception(error)
                waited.exception()  # Whoever waits gets it; nobody may.

    # -- called by whoever opened it

    async def started(self) -> None:
        """Return when the command runs. Raises CommandNotRun and others."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await asyncio.shield(self._started)
        except TimeoutError as exc:
            raise CommandNotRun(host=self._host, reason=f"it did not start within {START_SECONDS:g} s") from exc
        self._pulse = asyncio.create_task(self._keep_alive())

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(terminal.KEEP_ALIVE_SECONDS)
            if not self._is_paused and loop.time() - self._heard_at > SILENT_SECONDS:
                self._fail(LinkLost(host=self._host))
                self.stream.close()
                return
            self.stream.write(frames.frame(terminal.KEEP_ALIVE))

    async def wait(self) -> int:
        """Return the command's exit code: 128 and the signal's number, where one ended it. Raises LinkLost."""
        return (await self.wait_end()).exit_code

    async def wait_end(self) -> CommandEnd:
        """Return how the command has ended. Raises LinkLost."""
        return await asyncio.shield(self._ended)

    async def send(self, data: bytes) -> None:
        """Give the command input, which it takes when it likes; returns when little waits here. Empty: its end."""
        for one in terminal.pieces(terminal.INPUT, data) if data else [frames.frame(terminal.INPUT_END)]:
            self.stream.write(one)
        await self.stream.drain()

    def resize(self, window: WindowSize) -> None:
        """Tell the command how large its terminal is by now."""
        self.stream.write(frames.frame(terminal.RESIZE, json.dumps(window.to_dict()).encode()))

    def signal(self, number: int) -> None:
        """Send a signal to the command and its process group."""
        self.stream.write(frames.frame(terminal.SIGNAL, json.dumps(number).encode()))

    def pause(self) -> None:
        """Take nothing of what it writes until resume()."""
        self._is_paused = True
        self.stream.pause_reading()

    def resume(self) -> None:
        """Take what it writes again."""
        self._is_paused, self._heard_at = False, asyncio.get_running_loop().time()
        self.stream.resume_reading()

    async def aclose(self) -> None:
        """End the line; a command that runs hears SIGHUP. Safe to call twice."""
        if self._pulse is not None:
            self._pulse.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pulse
        self.stream.close()


async def open_terminal(
    workload: Workload, request: CommandRequest, *, host: str, output: Callable[[int, bytes], None]
) -> Terminal:
    """Run a command beside the relay of a workload, and return when it runs. Raises CommandNotRun and others."""
    opened = Terminal(host, output)
    opened.stream = await workload.open_command(bootstrap.beside_argv(workload.python, TERMINAL_MODULE), opened)
    try:
        opened.stream.write(request.order().frame())
        await opened.started()
    except BaseException:
        await opened.aclose()
        raise
    return opened
