"""kernel/command/terminal.py: one command beside a kernel, over a made-up stream, from its order to its exit code."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from kernelbridge.errors import CommandNotRun, HostRefused, LinkLost
from kernelbridge.hosts import bootstrap
from kernelbridge.kernel.command.terminal import (
    SILENT_SECONDS,
    START_SECONDS,
    TERMINAL_MODULE,
    CommandRequest,
    Terminal,
    open_terminal,
)
from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.frames import frame
from kernelbridge.protocol.terminal import CommandEnd, CommandOrder, WindowSize
from tests.made_clock import MadeClock

STARTED = frame(terminal.STARTED)


class MadeWorkload:
    """A container in which the program runs, and the stream to it; says what a test wants it to say."""

    python = "/opt/py"

    def __init__(self, *answers: bytes) -> None:
        # What comes in the next turn after the order; then whatever a test says.
        self.answers = list(answers)
        self.argv: Sequence[str] = ()
        self.failure: Exception | None = None
        self.heard: Any = None
        self._decoder = frames.Decoder()
        self.frames: list[tuple[int, Any]] = []
        # Of the stream: closed, or paused; set when there is room for more.
        self.is_closed = self.is_paused = False
        self.has_room = asyncio.Event()
        self.has_room.set()

    async def open_command(self, argv: Sequence[str], receiver: Any) -> Any:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.argv, self.heard = argv, receiver
        return self

    # -- the stream

    def write(self, data: bytes) -> None:
        for one in self._decoder.feed(data):
            self.frames.append((one.kind, bytes(one.payload)))
            if one.kind == terminal.START and self.answers:
                self.say(*self.answers)

    async def drain(self) -> None:
        await self.has_room.wait()

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.end()

    # -- what a test says

    def say(self, *framed: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.heard.data_received, b"".join(framed))

    def end(self, exc: Exception | None = None) -> None:
        asyncio.get_running_loop().call_soon(self.heard.closed, exc)

    def count(self, kind: int) -> int:
        return [one for one, _ in self.frames].count(kind)


class Scene:
    """A command that runs, and what it wrote."""

    def __init__(self, *answers: bytes) -> None:
        self.workload = MadeWorkload(*answers)
        self.wrote: list[tuple[int, bytes]] = []

    async def open(self, **asked: Any) -> Terminal:
        workload: Any = self.workload
        return await open_terminal(
            workload,
            CommandRequest(**asked),
            host="lab",
            output=lambda kind, data: self.wrote.append((kind, data)),
        )


@pytest.fixture
async def scene(clock: MadeClock) -> AsyncIterator[Scene]:
    yield Scene(STARTED)


@pytest.fixture
async def opened(scene: Scene) -> AsyncIterator[Terminal]:
    made = await scene.open(argv=("cat",))
    scene.workload.frames.clear()
    yield made
    await made.aclose()


async def test_a_command_is_ordered_of_the_program_beside_the_relay_and_runs(scene: Scene) -> None:
    window = WindowSize(80, 24)
    opened = await scene.open(argv=("ls", "-l"), folder="/w", window=window, env={"TERM": "xterm"})
    assert scene.workload.argv == bootstrap.beside_argv("/opt/py", TERMINAL_MODULE)
    assert "ls" not in scene.workload.argv, "the host can see these words"
    ((kind, said),) = scene.workload.frames
    assert kind == terminal.START
    order = CommandOrder.from_dict(json.loads(said))
    assert order == CommandOrder(["ls", "-l"], {"TERM": "xterm"}, "/w", window)
    assert repr(opened) == "<Terminal on lab open>"
    await opened.aclose()


async def test_both_outputs_come_in_order_and_then_the_exit_code(scene: Scene, opened: Terminal) -> None:
    output = [frame(terminal.OUTPUT, b"a"), frame(terminal.ERRORS, b"b"), frame(terminal.OUTPUT, b"c")]
    scene.workload.say(*output, CommandEnd(3).frame())
    assert await opened.wait() == 3
    assert await opened.wait() == 3
    assert scene.wrote == [(terminal.OUTPUT, b"a"), (terminal.ERRORS, b"b"), (terminal.OUTPUT, b"c")]
    scene.workload.end()
    await asyncio.sleep(1)
    assert await opened.wait() == 3, "the line's end is nothing new"
    assert repr(opened) == "<Terminal on lab ended>"


async def test_a_command_that_a_signal_ended_has_the_number_that_shells_make_of_it(
    scene: Scene, opened: Terminal
) -> None:
    scene.workload.say(CommandEnd(0, 9).frame())
    assert await opened.wait() == 137


async def test_what_is_given_and_told_goes_as_frames(scene: Scene, opened: Terminal) -> None:
    await opened.send(b"x" * (terminal.TERMINAL_PIECE_BYTES + 1))
    await opened.send(b"")
    opened.resize(WindowSize(90, 30))
    opened.signal(2)
    kinds = [kind for kind, _ in scene.workload.frames]
    assert kinds == [terminal.INPUT, terminal.INPUT, terminal.INPUT_END, terminal.RESIZE, terminal.SIGNAL]
    assert sum(len(payload) for kind, payload in scene.workload.frames if kind == terminal.INPUT) == 65537
    assert [json.loads(payload) for _, payload in scene.workload.frames[-2:]] == [{"columns": 90, "rows": 30}, 2]


async def test_who_sends_waits_while_much_is_on_its_way(scene: Scene, opened: Terminal) -> None:
    scene.workload.has_room.clear()
    sending = asyncio.create_task(opened.send(b"x"))
    await asyncio.sleep(1)
    assert not sending.done()
    scene.workload.has_room.set()
    await sending


# -- what does not run


async def test_a_command_that_cannot_be_run_says_why_and_its_line_is_closed(clock: MadeClock) -> None:
    scene = Scene(frame(terminal.FAILED, b"no-such: No such file\x1b[0m \xff"))
    with pytest.raises(CommandNotRun, match="could not be run: no-such: No such file"):
        await scene.open(argv=("no-such",))
    assert scene.workload.is_closed


async def test_a_relay_of_an_older_release_that_knows_no_such_program_is_named(scene: Scene) -> None:
    scene.workload.answers = []
    opening = asyncio.create_task(scene.open(argv=("ls",)))
    await asyncio.sleep(0.1)
    scene.workload.end()
    with pytest.raises(CommandNotRun, match="older kernelbridge"):
        await opening


async def test_the_engines_own_words_are_no_command(clock: MadeClock) -> None:
    scene = Scene(b"OCI runtime exec failed: exec failed: unable to start container process")
    with pytest.raises(CommandNotRun, match="cannot be understood"):
        await scene.open(argv=("ls",))
    assert scene.workload.is_closed


async def test_a_program_that_says_nothing_is_given_up(scene: Scene, clock: MadeClock) -> None:
    scene.workload.answers, began = [], clock.now
    with pytest.raises(CommandNotRun, match="did not start within 30 s"):
        await scene.open(argv=("ls",))
    assert clock.now - began == pytest.approx(START_SECONDS)
    assert scene.workload.is_closed


async def test_a_host_that_refuses_says_so_itself(scene: Scene) -> None:
    scene.workload.failure = HostRefused(host="lab", address="lab:22")
    with pytest.raises(HostRefused):
        await scene.open(argv=("ls",))


async def test_a_start_that_is_given_up_closes_its_line(scene: Scene) -> None:
    scene.workload.answers = []
    opening = asyncio.create_task(scene.open(argv=("ls",)))
    await asyncio.sleep(1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert scene.workload.is_closed


# -- what ends


@pytest.mark.parametrize("exc", [None, OSError("reset"), LinkLost(host="lab")])
async def test_a_line_that_ends_before_the_command_is_a_lost_link(
    scene: Scene, opened: Terminal, exc: Exception | None
) -> None:
    scene.workload.end(exc)
    with pytest.raises(LinkLost):
        await opened.wait()


async def test_what_cannot_be_understood_ends_the_command_here(scene: Scene, opened: Terminal) -> None:
    scene.workload.say(frame(terminal.EXIT, b'{"code": "zero"}'))
    with pytest.raises(CommandNotRun):
        await opened.wait()


async def test_who_waits_twice_hears_twice_that_the_link_is_lost(scene: Scene, opened: Terminal) -> None:
    scene.workload.end()
    await asyncio.sleep(1)
    for _ in range(2):
        with pytest.raises(LinkLost):
            await opened.wait()


async def test_a_quiet_command_is_asked_whether_it_lives_and_one_that_answers_does(
    scene: Scene, opened: Terminal
) -> None:
    for _ in range(10):
        await asyncio.sleep(terminal.KEEP_ALIVE_SECONDS)
        scene.workload.say(frame(terminal.KEEP_ALIVE))
    assert scene.workload.count(terminal.KEEP_ALIVE) in (9, 10)
    assert not scene.workload.is_closed


async def test_a_line_without_a_word_for_long_is_lost(scene: Scene, opened: Terminal, clock: MadeClock) -> None:
    began = clock.now
    with pytest.raises(LinkLost):
        await opened.wait()
    assert SILENT_SECONDS < clock.now - began <= SILENT_SECONDS + terminal.KEEP_ALIVE_SECONDS
    assert scene.workload.is_closed


async def test_a_line_that_nobody_reads_is_not_lost_for_its_silence(scene: Scene, opened: Terminal) -> None:
    opened.pause()
    assert scene.workload.is_paused
    await asyncio.sleep(10 * SILENT_SECONDS)
    assert not scene.workload.is_closed
    assert scene.workload.count(terminal.KEEP_ALIVE) >= 2 * SILENT_SECONDS / terminal.KEEP_ALIVE_SECONDS
    opened.resume()
    assert not scene.workload.is_paused
    await asyncio.sleep(SILENT_SECONDS - 1)
    scene.workload.say(CommandEnd(0).frame())
    assert await opened.wait() == 0


async def test_who_closes_twice_has_closed_once_and_asks_nothing_more(scene: Scene, opened: Terminal) -> None:
    await opened.aclose()
    await opened.aclose()
    assert scene.workload.is_closed
    await asyncio.sleep(100)
    assert scene.workload.frames == []
    with pytest.raises(LinkLost):
        await opened.wait()
