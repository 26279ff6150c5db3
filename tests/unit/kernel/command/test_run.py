"""kernel/command/run.py: a user's command in a container of its own, from its start to its exit code, over cuts.

The engine and the relay are made up (tests/made_engines.py, made_relay_end.py), and so is the clock. Over 600 lines
because it is one thing: each test tells what becomes of a run in the same scene.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import (
    CommandNotRun,
    HostUnreachable,
    KernelBridgeError,
    KernelEnded,
    KernelExpired,
    KernelHeld,
    SetupFailed,
)
from kernelbridge.hosts.backend import Exited, Missing
from kernelbridge.hosts.labels import Labels
from kernelbridge.kernel.command import run
from kernelbridge.kernel.command.run import MOST_INPUT_BYTES, CommandRun, RunOutput
from kernelbridge.kernel.process_mark import ProcessMark, own_mark
from kernelbridge.kernel.records import KernelRecord, Records
from kernelbridge.kernel.request import KernelServices, LaunchRequest, RunCommand
from kernelbridge.kernel.start.kept_logs import KEPT_LOGS_FOLDER, KeptLogs
from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.frames import IOPUB, Message
from kernelbridge.protocol.handshake import (
    DroppedEvent,
    FailedEvent,
    GpuLostEvent,
    GpuStatus,
    InputEvent,
    LeftOutputEvent,
    NoticeEvent,
    Owner,
    ReadyEvent,
    Welcome,
)
from kernelbridge.protocol.terminal import WindowSize
from kernelbridge.relay.process.command_client import output_parts
from tests import made_events
from tests.made_clock import MadeClock
from tests.made_engines import LAB, MINE, MadeEngine, launch_request
from tests.made_events import exited
from tests.made_relay_end import Line, RelayEnd, refusing

NAME = f"kernelbridge-{MINE}"
READY = ReadyEvent(1, {})
AWAY = HostUnreachable(host="lab", address="lab:22", reason="no route")
OUT, ERR = terminal.OUTPUT, terminal.ERRORS


@dataclass(kw_only=True)
class Container(RelayEnd):
    """The container of a run, as its host has it."""

    engine: Engine

    async def stop(self) -> None:
        self.engine.log.append(f"stop {NAME}")

    def wrote(self, *pieces: tuple[int, bytes]) -> None:
        """The command's output."""
        for kind, piece in pieces:
            self.session.add(frames.LANE_OF[IOPUB], frames.pack(Message(IOPUB, 1, output_parts(kind, piece))))
        self.flush()

    def welcomes(self, **facts: Any) -> None:
        """What the next WELCOME says."""

        def answer(line: Line) -> None:
            line.say(Welcome(made_events.status(**facts), self.session.received, self.epoch).frame())
            self.session.resume(self.hellos[-1].received)
            self.flush()

        self.answers.append(answer)


@dataclass(kw_only=True)
class Engine(MadeEngine):
    """An engine whose container has a relay that a test speaks for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.relay = Container(engine=self)

    def workload(self, name: str, environment: Environment) -> Any:
        assert name == NAME
        return self.relay


class Scene:
    """A run, what it wrote and told, and the host that it is on."""

    def __init__(self, folder: Path, clock: MadeClock, command: RunCommand, **keys: Any) -> None:
        self.clock = clock
        self.engine = Engine(clock=clock)
        self.engine.has_image()
        self.relay = self.engine.relay
        # Why its host cannot be reached; set and cleared by tests.
        self.away: KernelBridgeError | None = None
        self.wrote: list[tuple[int, bytes]] = []
        self.said: list[str] = []
        self.told: list[str] = []
        self.is_congested = False
        self.records = Records(folder)
        asked = replace(launch_request(gpus=0, **keys), command=command)
        self.request = asked.changed(persist=True)
        nothing: Any = None
        self.services = KernelServices(
            poller=nothing,
            records=self.records,
            owner=Owner(mark="m:1@1.00:x", who="ada@laptop"),
            mark=ProcessMark("1@1.00"),
            config="/kernelbridge.toml",
            limits=None,
            labels=self._labels,
            engine=self._reach,
            cluster=nothing,
            backend=self._reach,
            rest=asyncio.sleep,
            observe=nothing,
        )
        output = RunOutput(
            write=lambda kind, data: self.wrote.append((kind, data)),
            is_congested=lambda: self.is_congested,
            progress=lambda news: self.said.append(str(news)),
            tell=self.told.append,
        )
        self.run = CommandRun(self.request, self.services, output)

    def _labels(self, request: LaunchRequest, gpu_ids: Sequence[str]) -> Labels:
        return Labels(kernel=request.kernel_id, environment="torch", owner="m", kind="run")

    async def _reach(self, host: Host) -> Any:
        await asyncio.sleep(0)
        if self.away is not None:
            raise self.away
        return self.engine

    @property
    def record(self) -> KernelRecord:
        found = self.records.kernel(MINE)
        assert found is not None
        return found

    async def started(self) -> CommandRun:
        starting = asyncio.create_task(self.run.start())
        await asyncio.sleep(0.1)
        assert not starting.done()
        self.relay.say(READY)
        await starting
        return self.run

    async def joined(self, *, takes: bool = False, **facts: Any) -> CommandRun:
        """Joined to one that runs already."""
        if facts:
            self.relay.welcomes(**facts)
        self.run.join_running(LAB, takes=takes)
        await asyncio.sleep(0.1)
        return self.run


@pytest.fixture
async def scene(clock: MadeClock, tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path, clock, RunCommand(argv=("train", "--fast")))
    yield made
    if made.run._client is not None:
        await made.run._client.aclose()


async def settle(seconds: float = 0.1) -> None:
    await asyncio.sleep(seconds)


# -- a start


async def test_a_start_makes_a_container_and_is_through_when_the_command_runs(scene: Scene) -> None:
    await scene.started()
    assert scene.engine.log == [f"create {NAME}", "order given", f"start {NAME}"]
    assert b'"argv": ["train", "--fast"]' in scene.engine.orders[0]
    assert scene.said[-1] == "lab: starting the container"
    assert scene.told == []
    assert (scene.record.kind, scene.record.persist, scene.record.host) == ("run", True, "lab")
    assert repr(scene.run) == "<CommandRun aaaa1111 on lab>"


async def test_a_command_that_cannot_be_started_says_why_and_leaves_nothing(scene: Scene) -> None:
    starting = asyncio.create_task(scene.run.start())
    await settle()
    scene.relay.say(FailedEvent(1, reason="[Errno 2] No such file or directory: 'train'"))
    with pytest.raises(CommandNotRun, match="No such file or directory: 'train'") as caught:
        await starting
    assert "`kernelbridge up torch`" in caught.value.remedy, "its own container is gone"
    assert scene.engine.log[-1] == f"stop {NAME}"
    assert scene.relay.line.is_closed
    assert scene.records.kernel(MINE) is None


async def test_a_setup_that_fails_is_the_starts_failure(scene: Scene) -> None:
    starting = asyncio.create_task(scene.run.start())
    await settle()
    scene.relay.say(NoticeEvent(1, "setup", "make it", "half"), FailedEvent(1, reason="exit code 2", setup="make it"))
    with pytest.raises(SetupFailed):
        await starting
    assert "lab: setup: make it: half" in scene.said


async def test_what_a_start_that_fails_wrote_is_kept_and_said_to_be(scene: Scene) -> None:
    scene.relay.log_text = "make: no rule\n"
    starting = asyncio.create_task(scene.run.start())
    await settle()
    scene.relay.say(FailedEvent(1, reason="exit code 2", setup="make it"))
    scene.relay.container = Exited(code=1, oom_killed=False, error="", finished_at="")
    with pytest.raises(SetupFailed) as caught:
        await starting
    kept = KeptLogs(scene.records.folder / KEPT_LOGS_FOLDER).find(MINE)
    assert kept is not None
    assert kept.text == "make: no rule\n"
    assert caught.value.remedy.endswith("`kernelbridge logs aaaa1111-000` shows what it wrote.")


async def test_a_start_that_is_given_up_leaves_nothing(scene: Scene) -> None:
    starting = asyncio.create_task(scene.run.start())
    await settle()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert scene.engine.log[-1] == f"stop {NAME}"
    assert scene.records.kernel(MINE) is None


async def test_a_failed_start_whose_host_is_gone_too_says_why_it_failed_and_is_removed_later(scene: Scene) -> None:
    starting = asyncio.create_task(scene.run.start())
    await settle()
    scene.away = AWAY
    scene.relay.say(FailedEvent(1, reason="nothing there"))
    with pytest.raises(CommandNotRun):
        await starting
    assert scene.record.stop_wanted


async def test_an_engine_that_never_answers_keeps_nobody_who_gives_up(scene: Scene, clock: MadeClock) -> None:
    async def hang(*_: object) -> str:
        await asyncio.sleep(10_000)
        return ""

    scene.engine.create = hang  # type: ignore[method-assign, assignment]
    starting = asyncio.create_task(scene.run.start())
    await settle()
    began = clock.now
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert clock.now - began == pytest.approx(run.UNDO_SECONDS)
    assert scene.told == [
        "The container of aaaa1111-000 is not removed yet (lab did not answer within 60 s). kernelbridge removes it "
        "when it is next in touch with lab; `kernelbridge ps` shows whether it is still there."
    ]


async def test_a_container_that_dies_before_its_command_runs_is_the_starts_failure(scene: Scene) -> None:
    starting = asyncio.create_task(scene.run.start())
    await settle()
    scene.relay.container = Exited(code=137, oom_killed=False, error="", finished_at="")
    scene.relay.line.cut()
    with pytest.raises(KernelEnded):
        await starting


async def test_a_command_that_was_over_before_it_was_ready_has_run(scene: Scene) -> None:
    starting = asyncio.create_task(scene.run.start())
    await settle()
    scene.relay.wrote((OUT, b"quick\n"))
    scene.relay.say(exited(0))
    await starting
    assert (await scene.run.wait(), scene.wrote) == (0, [(OUT, b"quick\n")])


# -- output and end


async def test_both_outputs_come_in_order_and_all_of_it_before_the_exit_code(scene: Scene) -> None:
    await scene.started()
    scene.relay.wrote((OUT, b"a"), (ERR, b"\xff"), (OUT, b"c"))
    scene.relay.say(exited(3))
    assert await scene.run.wait() == 3
    assert scene.wrote == [(OUT, b"a"), (ERR, b"\xff"), (OUT, b"c")]
    assert await scene.run.wait() == 3


@pytest.mark.parametrize(("code", "number"), [(0, 0), (7, 7), (-9, 137), (-2, 130)])
async def test_an_end_is_the_number_that_shells_make_of_it(scene: Scene, code: int, number: int) -> None:
    await scene.started()
    scene.relay.say(exited(code))
    assert await scene.run.wait() == number


async def test_what_is_no_output_of_a_command_is_not_written(scene: Scene) -> None:
    await scene.started()
    scene.relay.say("something else")
    scene.relay.session.add(frames.LANE_OF[IOPUB], frames.pack(Message(frames.SHELL, 1, [b"stream.stdout", b"x"])))
    scene.relay.say(exited(0))
    assert await scene.run.wait() == 0
    assert scene.wrote == []


async def test_an_end_by_lack_of_memory_or_room_says_so_beside_the_exit_code(scene: Scene) -> None:
    await scene.started()
    scene.relay.say(exited(-9, out_of_memory=True))
    assert await scene.run.wait() == 137
    (text,) = scene.told
    assert "memory" in text


async def test_a_limit_of_the_environment_that_ended_it_is_no_exit_code(scene: Scene) -> None:
    await scene.started()
    scene.relay.say(exited(-15, why="max_lifetime"))
    with pytest.raises(KernelExpired, match="max_lifetime"):
        await scene.run.wait()


async def test_a_container_that_is_gone_is_no_exit_code(scene: Scene) -> None:
    await scene.started()
    scene.relay.container = Missing()
    scene.relay.line.cut()
    with pytest.raises(KernelEnded, match="was removed by another program"):
        await scene.run.wait()


async def test_what_a_relay_tells_besides_is_said_in_lines(scene: Scene) -> None:
    await scene.started()
    scene.relay.say(
        GpuLostEvent(1, None),
        DroppedEvent(1, {}, 2, 3_000_000),
        NoticeEvent(1, "refused", "/data", "Permission denied"),
        NoticeEvent(1, "of tomorrow", "/data", "?"),
        LeftOutputEvent(1, {}),
        ReadyEvent(1, {}, "ended with exit code 4"),
    )
    await settle()
    lost, dropped, refused, entrypoint = scene.told
    assert "GPU" in lost
    assert dropped.startswith("dropped 2 messages")
    assert "/data" in refused
    assert "ENTRYPOINT ended with exit code 4" in entrypoint


async def test_output_that_nobody_reads_here_is_not_acknowledged(scene: Scene) -> None:
    await scene.started()
    scene.relay.wrote((OUT, b"first"))
    await settle(1)
    before = scene.relay.acknowledged[-1][1]
    scene.is_congested = True
    scene.relay.wrote((OUT, b"second"))
    await settle(5)
    assert [acknowledged for _, acknowledged in scene.relay.acknowledged if acknowledged > before] == []
    scene.is_congested = False
    await settle(5)
    assert scene.relay.acknowledged[-1][1] == before + 1


# -- input


async def test_input_orders_and_the_end_of_input_reach_the_relay(scene: Scene) -> None:
    await scene.started()
    await scene.run.send(b"words")
    await scene.run.send(b"")
    scene.run.resize(WindowSize(90, 30))
    scene.run.signal(2)
    await settle()
    assert scene.relay.requests == ["words", ""]
    assert scene.relay.orders == [
        {"do": "resize", "window": {"columns": 90, "rows": 30}},
        {"do": "signal", "number": 2},
    ]


async def test_who_sends_waits_until_the_relay_says_that_enough_was_taken(scene: Scene) -> None:
    await scene.started()
    piece = b"x" * (MOST_INPUT_BYTES // 2)
    await scene.run.send(piece)
    await scene.run.send(piece)
    sending = asyncio.create_task(scene.run.send(piece))
    await settle()
    assert not sending.done()
    scene.relay.say(InputEvent(1, len(piece) - 1))
    await settle()
    assert not sending.done()
    scene.relay.say(InputEvent(1, len(piece)))
    await settle()
    assert sending.done()


@pytest.mark.parametrize("way", ["its end", "its failure", "a goodbye", "a removal"])
async def test_who_waits_to_send_is_let_go_by(scene: Scene, way: str) -> None:
    await scene.started()
    sending = asyncio.create_task(scene.run.send(b"x" * (MOST_INPUT_BYTES + 1)))
    await settle()
    assert not sending.done()
    if way == "its end":
        scene.relay.say(exited(0))
    elif way == "its failure":
        scene.relay.say(exited(-15, why="max_lifetime"))
    elif way == "a goodbye":
        await scene.run.detach()
    else:
        await scene.run.remove()
    await settle()
    assert sending.done()
    await scene.run.send(b"late")  # For nobody: it waits for nothing.


async def test_what_another_process_gave_before_is_no_reason_to_send_more(scene: Scene) -> None:
    await scene.joined(ready=True)
    await scene.run.send(b"x" * MOST_INPUT_BYTES)
    scene.relay.say(InputEvent(1, 100 * MOST_INPUT_BYTES))
    await settle()
    await scene.run.send(b"x" * MOST_INPUT_BYTES)
    sending = asyncio.create_task(scene.run.send(b"x"))
    await settle()
    assert not sending.done()
    scene.relay.say(InputEvent(1, 101 * MOST_INPUT_BYTES))
    await settle()
    assert sending.done()


async def test_nothing_is_sent_before_there_is_a_relay(scene: Scene) -> None:
    await scene.run.send(b"x")
    scene.run.signal(2)
    scene.run.resize(WindowSize(1, 1))
    assert scene.relay.lines == []


# -- cuts


async def test_a_cut_is_told_once_and_so_is_its_end_and_the_output_comes_once(scene: Scene) -> None:
    await scene.started()
    scene.relay.wrote((OUT, b"a"))
    await settle()
    scene.away = AWAY
    scene.relay.line.cut()
    await settle(10)
    (lost,) = scene.told
    assert lost.endswith("The command runs on; its output comes when the host can be reached.")
    await scene.run.send(b"typed meanwhile")
    scene.relay.wrote((OUT, b"b"))
    scene.away = None
    await settle(10)
    assert scene.told == [lost, "lab can be reached again."]
    assert scene.wrote == [(OUT, b"a"), (OUT, b"b")]
    assert scene.relay.requests == ["typed meanwhile"]
    scene.relay.line.cut()
    await settle(10)
    assert len(scene.told) == 4


async def test_a_cut_behind_the_end_is_nothing_to_tell(scene: Scene) -> None:
    await scene.started()
    scene.relay.say(exited(0))
    await scene.run.wait()
    scene.relay.line.cut()
    await settle(1)
    assert scene.told == []


# -- leaving, and joining


async def test_a_goodbye_leaves_the_container_and_says_that_nobody_has_it(scene: Scene) -> None:
    await scene.started()
    await scene.run.detach()
    (said,) = scene.relay.goodbyes
    assert not said.end
    assert f"stop {NAME}" not in scene.engine.log
    assert (scene.record.process, scene.record.stop_wanted) == ("", False)
    assert scene.record.left is not None
    assert await scene.run.remove()
    assert f"stop {NAME}" not in scene.engine.log, "it is not ours to remove any more"


async def test_a_removal_ends_the_container_and_is_remembered_where_the_host_is_away(scene: Scene) -> None:
    await scene.started()
    scene.away = AWAY
    assert not await scene.run.remove()
    assert scene.record.stop_wanted
    assert "is not removed yet (lab cannot be reached)" in scene.told[-1]
    scene.away = None
    assert await scene.run.remove()
    assert scene.engine.log[-1] == f"stop {NAME}"
    assert scene.records.kernel(MINE) is None


async def test_one_that_runs_is_joined_and_its_container_can_be_removed(scene: Scene) -> None:
    await scene.joined(ready=True, gpus=GpuStatus(ids=("GPU-0",)))
    await scene.run.began()
    assert not scene.relay.hellos[0].take
    assert (scene.record.kind, scene.record.gpus) == ("run", ("GPU-0",))
    scene.relay.wrote((OUT, b"left"))
    scene.relay.say(exited(5))
    assert await scene.run.wait() == 5
    assert await scene.run.remove()
    assert scene.engine.log == [f"stop {NAME}"]


async def test_one_that_has_ended_gives_its_output_and_then_its_end(scene: Scene) -> None:
    # From before anybody was there.
    for piece in (b"one\n", b"two\n"):
        scene.relay.session.add(frames.LANE_OF[IOPUB], frames.pack(Message(IOPUB, 1, output_parts(OUT, piece))))
    await scene.joined(outcome=exited(5), undelivered_bytes=100)
    await settle()
    assert not scene.run._ended.done(), "its own word of it comes behind its output"
    scene.relay.say(exited(5))
    assert await scene.run.wait() == 5
    assert scene.wrote == [(OUT, b"one\n"), (OUT, b"two\n")]


async def test_one_whose_end_was_told_to_another_still_has_it(scene: Scene) -> None:
    await scene.joined(outcome=exited(5), undelivered_bytes=0)
    await scene.run.began()
    assert await scene.run.wait() == 5


async def test_one_that_another_holds_is_refused_and_stays_in_the_others_name(scene: Scene) -> None:
    scene.run.placement.remember()
    holder = own_mark()
    scene.records.change(MINE, process=holder.process, birth=holder.birth)
    scene.relay.answers = [refusing("held", who="bob@desk", held_seconds=60.0)]
    await scene.joined()
    with pytest.raises(KernelHeld, match="bob@desk"):
        await scene.run.began()
    await scene.run.detach()
    assert scene.record.holder == holder
    assert await scene.run.remove()
    assert scene.engine.log == []


async def test_one_that_another_takes_is_left_to_it(scene: Scene) -> None:
    await scene.started()
    scene.relay.line.say(frames.frame(frames.BUSY, b'{"reason": "taken", "who": "bob@desk"}'))
    scene.relay.line.cut()
    with pytest.raises(KernelHeld, match="bob@desk"):
        await scene.run.wait()
    assert await scene.run.remove()
    assert f"stop {NAME}" not in scene.engine.log


async def test_a_host_that_refuses_the_login_is_told_while_it_is_tried(scene: Scene) -> None:
    scene.away = KernelBridgeError("lab: ada may not log in.", "Ask its administrator.")
    scene.run.join_running(LAB, takes=True)
    await settle()
    assert scene.told == ["lab: ada may not log in. Ask its administrator."]
    scene.away = None
    await settle(200)
    assert scene.relay.hellos[-1].take


# -- the workspace


@dataclass
class MadeWorkspace:
    """Stands where KernelWorkspace stands."""

    log: list[str]
    # How long the last results take.
    seconds: float = 0.0

    async def watch(self, project: object, host: Host) -> None:
        self.log.append(f"watch on {host.name}")

    async def aclose(self, *, finishes: bool = False) -> None:
        self.log.append("finish" if finishes else "close")
        await asyncio.sleep(self.seconds if finishes else 0.0)


def workspace_of(scene: Scene, seconds: float = 0.0) -> list[str]:
    made: Any = MadeWorkspace([], seconds)
    scene.run._workspace = made
    log: list[str] = made.log
    return log


async def test_the_last_results_of_what_has_ended_may_take_hours(scene: Scene, clock: MadeClock) -> None:
    await scene.started()
    log = workspace_of(scene, seconds=2 * 3600)
    scene.relay.say(exited(0))
    await scene.run.wait()
    began = clock.now
    await scene.run.finish()
    assert clock.now - began >= 2 * 3600
    assert await scene.run.remove()
    assert log == ["finish", "close"]


async def test_of_what_runs_on_or_is_anothers_no_last_results_are_fetched(scene: Scene) -> None:
    await scene.started()
    log = workspace_of(scene)
    await scene.run.finish()
    scene.relay.line.say(frames.frame(frames.BUSY, b'{"reason": "taken", "who": "bob@desk"}'))
    scene.relay.line.cut()
    with pytest.raises(KernelHeld):
        await scene.run.wait()
    await scene.run.finish()
    assert log == ["close", "close"]


async def test_results_of_what_a_limit_ended_are_fetched(scene: Scene) -> None:
    await scene.started()
    log = workspace_of(scene)
    scene.relay.say(exited(-15, why="max_lifetime"))
    with pytest.raises(KernelExpired):
        await scene.run.wait()
    await scene.run.finish()
    assert log == ["finish"]


async def test_the_workspace_of_what_is_joined_is_kept_in_step_once_it_is_known_to_run(scene: Scene) -> None:
    log = workspace_of(scene)
    await scene.joined(ready=True)
    assert log == []
    await scene.run.began()
    assert log == ["watch on lab"]


async def test_results_that_never_come_are_given_up_and_told(scene: Scene, clock: MadeClock) -> None:
    await scene.started()
    workspace_of(scene, seconds=1e9)
    scene.relay.say(exited(0))
    await scene.run.wait()
    await scene.run.finish()
    assert scene.told == ["Not all results came within 12 h: the others stay in the workspace's copy on lab."]
