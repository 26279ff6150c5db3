"""kernel/kernel.py: one kernel from start to end, with channels, a relay and an engine made up for it.

One kernel is one thing: each test tells what becomes of it in the same scene.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.channels import endpoints
from kernelbridge.channels.cell_questions import CellQuestion
from kernelbridge.channels.user_cells import CellAsked
from kernelbridge.channels.waiting import ShutdownIntent
from kernelbridge.config.schema import Forward, Host
from kernelbridge.errors import (
    ContainerFailed,
    EngineFailed,
    HostUnreachable,
    ImageUnusable,
    KernelBridgeError,
    KernelDied,
    KernelEnded,
    KernelExpired,
    KernelHeld,
    KernelTaken,
    LinkLost,
    LoginAttempt,
    LoginRefused,
    StartCancelled,
    StartTimeout,
    UnknownEnvironment,
)
from kernelbridge.hosts.backend import Exited, Missing
from kernelbridge.hosts.forwards.port_forwards import bound
from kernelbridge.hosts.labels import Labels, short_id
from kernelbridge.hosts.progress import WorkProgress
from kernelbridge.hosts.transport.login.questions import Ask, LoginQuestion
from kernelbridge.hosts.transport.login.stage import Hearer, LoginStage
from kernelbridge.kernel import failures
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.process_mark import ProcessMark
from kernelbridge.kernel.records import ImageRecord, Records
from kernelbridge.kernel.relay_client import RelayListener
from kernelbridge.kernel.request import KernelServices, LaunchRequest
from kernelbridge.kernel.start.kept_logs import KEPT_LOGS_FOLDER, KeptLogs
from kernelbridge.kernel.state import KernelState
from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import (
    DroppedEvent,
    FailedEvent,
    GpuLostEvent,
    GpuStatus,
    NoticeEvent,
    Owner,
    ReadyEvent,
    Welcome,
)
from tests.clients.ports import free_port
from tests.made_clock import MadeClock
from tests.made_engines import LAB, MINE, MadeEngine, cards, launch_request
from tests.made_events import exited, status
from tests.made_hosts import Box

NAME = f"kernelbridge-{MINE}"
INFO = {"banner": "hello"}
CELL = {"msg_id": "m1", "msg_type": "execute_request"}
LOST = LinkLost(host="lab")


class FakeProxy:
    """The channels of a kernel; `log` has what they were told."""

    def __init__(self, poller: Any, given: endpoints.Endpoints, **facts: Any) -> None:
        self.endpoints = given
        self.owner = facts["owner"]
        self.log: list[Any] = []
        self.progress_texts: list[str] = []
        self.failures: list[KernelBridgeError] = []
        self.delivered: list[Any] = []
        self.has_handed_on = True
        self.questions: list[CellQuestion] = []
        # Whether the cell that waits can ask; None: no cell waits.
        self.has_person: bool | None = None
        self.acknowledged_lanes = frames.LANES

    def set_kernel_info(self, info: dict[str, Any], widgets: str | None) -> None:
        self.log.append("know")

    def guess_widgets(self, widgets: str | None) -> None:
        assert widgets is None

    def hold_output(self) -> None:
        self.log.append("hold")

    def progress(self, text: str) -> None:
        self.progress_texts.append(text)

    def restarting(self, why: str = "", error: KernelBridgeError | None = None) -> None:
        self.log.append(("wait", why, type(error).__name__ if error else None))

    def open(self, *, launch: int, info: dict[str, Any], refuse_debug: str, busy: Mapping[str, Any] | None) -> None:
        assert info == INFO
        self.log.append(("open", launch, busy))

    def fail(self, error: KernelBridgeError) -> None:
        self.failures.append(error)
        self.log.append(("fail", type(error).__name__))

    def link_lost(self, error: LinkLost) -> None:
        self.log.append("link lost")

    def link_restored(self) -> None:
        self.log.append("link restored")

    def print_notice(self, parent: Mapping[str, Any], text: str) -> None:
        self.log.append(("notice", dict(parent), text))

    def explain_wait(self, text: str) -> None:
        self.log.append(("wait for", text))

    def interrupt(self) -> None:
        self.log.append("interrupt")

    def deliver(self, packed: Sequence[Any]) -> None:
        self.delivered += packed

    def tell_next_cell(self, text: str) -> None:
        self.log.append(("news", text))

    def ask(self, question: CellQuestion) -> None:
        self.log.append(("ask", question.prompt))
        self.questions.append(question)

    def cancel_question(self) -> None:
        self.log.append("cancel question")

    def can_ask(self) -> Future[bool | None]:
        known: Future[bool | None] = Future()
        known.set_result(self.has_person)
        return known

    def expect_left_output(self) -> None:
        self.log.append("expect left output")

    def learn_titles(self, cells: Mapping[str, Sequence[Any]]) -> None:
        self.log.append(("titles", cells))

    def rename_session(self, session: str) -> None:
        self.log.append(("session", session))

    def settled(self) -> Future[bool]:
        known: Future[bool] = Future()
        known.set_result(self.has_handed_on)
        return known

    def close(self) -> None:
        self.log.append("close")


class FakeClient:
    """The stream to a relay, which says what a test wants it to say."""

    def __init__(self, scene: Scene, address: Any, listener: RelayListener, *, takes: bool, claim: str) -> None:
        self.scene = scene
        self.kernel_id = address.kernel
        self.listener = listener
        self.wish = (takes, claim)
        self.is_joined = self.is_silent = False
        self.log: list[Any] = []

    async def join(self) -> None:
        await asyncio.sleep(0)
        comes_to = self.scene.joins.pop(0) if self.scene.joins else None
        if isinstance(comes_to, Exception):
            raise comes_to
        self.welcome(**(comes_to or {}))

    def keep_joining(self) -> None:
        self.log.append("keep joining")

    def welcome(self, **facts: Any) -> None:
        self.is_joined = True
        said = status(gpus=GpuStatus(ids=("GPU-0",)), **facts)
        self.listener.joined(Welcome(status=said, received=(0, 0), epoch="e"))

    def lose(self) -> None:
        self.is_joined = False
        self.listener.lost(LOST)

    def stop_receiving(self) -> None:
        self.log.append("stop receiving")

    async def goodbye(self, *, end: bool, claim: str, acknowledge: bool) -> bool:
        self.log.append(("goodbye", end, claim, acknowledge))
        return self.is_joined

    async def aclose(self) -> None:
        self.is_joined = False
        self.log.append("closed")

    def send(self, packed: list[tuple[int, bytes]]) -> None:
        self.log.append(("send", packed))

    def hurry(self) -> None:
        self.log.append("hurry")

    def drop_waiting(self) -> None:
        self.log.append("drop waiting")

    def command(self, order: dict[str, Any]) -> None:
        self.log.append((order["do"], order.get("launch", order.get("number"))))


class Scene:
    """A kernel with all that it needs, on one engine."""

    def __init__(self, folder: Path, clock: MadeClock, **keys: Any) -> None:
        self.clock = clock
        self.engine = MadeEngine(clock=clock, facts_of_gpus=cards(2))
        self.engine.has_image()
        # Why its host cannot be reached; set and cleared by tests.
        self.away: KernelBridgeError | None = None
        # What joining a relay comes to, time after time: facts of its welcome, or an error; else it starts.
        self.joins: list[Any] = []
        self.clients: list[FakeClient] = []
        self.told: list[tuple[str, str | WorkProgress]] = []
        self.records = Records(folder)
        self.request: LaunchRequest = launch_request(**keys)
        # Who answers what logins need; and the hosts whose logins may be tried again.
        self.answerers: list[Ask] = []
        self.retried: list[str] = []
        nothing: Any = None
        services = KernelServices(
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
            rest=nothing,
            observe=self._observe,
            watch_login=self._watch_login,
            answer_logins=self._answer_logins,
            retry_login=lambda host: self.retried.append(host.name),
        )
        # Who hears what a login is doing.
        self.hearers: list[Hearer] = []
        made = endpoints.Endpoints(transport="tcp", ip=endpoints.LOOPBACK, ports=(1, 2, 3, 4, 5), key=b"k")
        self.kernel = Kernel(self.request, made, services, proxy=self._proxy, client=self._client)

    def _labels(self, request: LaunchRequest, gpu_ids: Sequence[str]) -> Labels:
        return Labels(kernel=request.kernel_id, environment="torch", owner="m", gpus=",".join(gpu_ids))

    async def _reach(self, host: Host) -> Any:
        await asyncio.sleep(0)
        if self.away is not None:
            raise self.away
        return self.engine

    @contextmanager
    def _watch_login(self, host: Host, hearer: Hearer) -> Iterator[None]:
        self.hearers.append(hearer)
        yield
        self.hearers.remove(hearer)

    @contextmanager
    def _answer_logins(self, host: Host, ask: Ask) -> Iterator[None]:
        self.answerers.append(ask)
        yield
        self.answerers.remove(ask)

    def _observe(self, kernel_id: str, state: str, news: str | WorkProgress) -> None:
        assert isinstance(state, KernelState)
        self.told.append((str(state), news))

    def _proxy(self, poller: Any, given: endpoints.Endpoints, **facts: Any) -> Any:
        self.channels = FakeProxy(poller, given, **facts)
        return self.channels

    @property
    def relay(self) -> RelayListener:
        """What the newest stream calls with all that comes from the relay."""
        listener: RelayListener = self.clients[-1].listener
        return listener

    def _client(
        self, address: Any, listener: RelayListener, *, owner: Owner, takes: bool, claim: str, only_own: bool
    ) -> Any:
        assert only_own == self.kernel.request.only_own
        self.clients.append(FakeClient(self, address, listener, takes=takes, claim=claim))
        return self.clients[-1]

    @property
    def client(self) -> FakeClient:
        return self.clients[-1]

    @property
    def states(self) -> list[str]:
        """What people were told, without the progress."""
        return [state for state, text in self.told if state != "starting"]

    async def started(self, *, launch: int = 1) -> None:
        """The relay was joined, and its kernel answers."""
        self.kernel.begin()
        await self.settle()
        self.relay.event_received(ReadyEvent(launch=launch, info=INFO))
        await self.settle()
        assert self.kernel.state is KernelState.RUNNING

    async def settle(self, seconds: float = 0.1) -> None:
        """Let what can happen at once happen."""
        await asyncio.sleep(seconds)


@pytest.fixture
async def scene(clock: MadeClock, tmp_path: Path) -> Scene:
    return Scene(tmp_path, clock)


# -- logins that need a person


def needing_person() -> LoginRefused:
    return LoginRefused(host="lab", user="ada", attempt=LoginAttempt(unanswered="(ada@lab) Code:"))


async def test_a_start_that_needs_a_person_goes_on_with_the_first_cell_that_can_ask(scene: Scene) -> None:
    scene.away = needing_person()
    with pytest.raises(LoginRefused):
        await scene.kernel.check()
    scene.retried.clear()
    scene.kernel.check_and_begin()
    await scene.settle(600)
    # Nothing is tried meanwhile.
    assert scene.retried == []
    assert scene.told[-1][0] == KernelState.STARTING
    assert "run a cell" in scene.channels.progress_texts[-1]
    scene.away, scene.channels.has_person = None, True
    scene.channels.owner.cell_waits()
    await scene.settle()
    assert scene.retried == ["lab"]
    scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
    assert scene.kernel.state is KernelState.RUNNING


async def test_a_start_that_needs_a_person_fails_with_a_cell_that_cannot_ask(scene: Scene) -> None:
    scene.away = needing_person()
    scene.channels.has_person = False
    scene.kernel.check_and_begin()
    await scene.settle()
    assert scene.kernel.failure is scene.away


async def test_a_claim_that_needs_a_person_waits_for_a_cell_too(scene: Scene) -> None:
    scene.joins = [needing_person()]
    scene.kernel.begin_claimed(LAB)
    await scene.settle(60)
    assert len(scene.clients) == 1
    scene.channels.has_person = True
    scene.channels.owner.cell_waits()
    await scene.settle()
    assert scene.client.is_joined


async def test_a_cell_that_waits_for_the_link_has_the_login_tried_at_once(scene: Scene) -> None:
    await scene.started()
    scene.channels.owner.cell_waits()
    assert "hurry" not in scene.client.log
    scene.client.lose()
    scene.retried.clear()
    scene.channels.owner.cell_waits()
    assert scene.retried == ["lab"]
    assert scene.client.log[-1] == "hurry"


async def test_what_a_login_needs_is_asked_in_a_cell_one_question_at_a_time(scene: Scene) -> None:
    [ask] = scene.answerers
    question = LoginQuestion(prompt="Code: ", notes=("lab: Welcome",), echo=True)
    both = [asyncio.create_task(ask(question)) for _ in range(2)]
    await scene.settle()
    [asked] = scene.channels.questions
    assert (asked.prompt, asked.notes, asked.echo) == ("Code: ", ("lab: Welcome",), True)
    asked.answered("sesame")
    await scene.settle()
    scene.channels.questions[1].answered(None)
    assert await asyncio.gather(*both) == ["sesame", None]
    given_up = asyncio.create_task(ask(question))
    await scene.settle()
    given_up.cancel()
    await scene.settle()
    assert scene.channels.log[-1] == "cancel question"
    scene.channels.questions[-1].answered("late")
    await scene.kernel.stop()
    assert scene.answerers == []
    assert await ask(question) is None


# -- ports of the container on this machine


def connects(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def test_forwards_listen_once_the_kernel_answers_over_a_cut_and_a_restart_until_it_is_stopped(
    clock: MadeClock, tmp_path: Path
) -> None:
    port = free_port()
    scene = Scene(tmp_path, clock, forwards=(Forward(here=port, there=6006),))
    assert not connects(port)
    await scene.started()
    assert connects(port)
    assert scene.kernel.forwards.port_of(6006) == port
    scene.client.lose()
    assert connects(port)
    scene.client.welcome()
    await scene.kernel.relaunch(lambda: scene.request)
    scene.relay.event_received(ReadyEvent(launch=2, info=INFO))
    assert connects(port)
    assert [one for one in scene.channels.log if one[0] == "news"] == []
    await scene.kernel.stop()
    assert not connects(port)


async def test_forwards_end_with_a_kernel_that_another_has_and_with_its_container(
    clock: MadeClock, tmp_path: Path
) -> None:
    port = free_port()
    for end in (
        lambda scene: scene.relay.taken(KernelHeld(kernel=MINE, host="lab", who="bob", since="now")),
        lambda scene: scene.relay.ended(Missing()),
    ):
        scene = Scene(tmp_path, clock, forwards=(Forward(here=port, there=6006),))
        await scene.started()
        assert connects(port)
        end(scene)
        assert not connects(port)


async def test_ports_of_a_container_on_this_machines_own_network_are_here_already(
    clock: MadeClock, tmp_path: Path
) -> None:
    here, other = free_port(), free_port()
    forwards = (
        Forward(here=here, there=here),
        Forward(here=other, there=6006),
        Forward(here=7007, there=7007, is_raw=True),
    )
    request = {"hosts": (Host(name="local", ssh="local"),), "network": "host", "forwards": forwards}
    scene = Scene(tmp_path, clock, **request)
    await scene.started()
    assert not connects(here), "it is the program's own"
    assert connects(other)
    assert [scene.kernel.port_here(port) for port in (here, 6006, 7007, 1)] == [here, other, None, None]
    await scene.kernel.stop()


async def test_a_port_that_is_taken_here_is_told_in_the_next_cell(clock: MadeClock, tmp_path: Path) -> None:
    with bound(free_port()) as taken:
        asked = taken.getsockname()[1]
        scene = Scene(tmp_path, clock, forwards=(Forward(here=asked, there=6006),))
        await scene.started()
        (one,) = scene.kernel.forwards.ports
        told = f"port 6006 is at http://127.0.0.1:{one.here}/, because {asked} is taken on this machine"
        # Before the channels open, so that a cell that waits says it.
        assert [entry for entry in scene.channels.log if entry[0] in ("news", "open")] == [
            ("news", told),
            ("open", 1, None),
        ]
        await scene.kernel.stop()


# -- a start


async def test_a_start_makes_a_container_joins_its_relay_and_opens_when_the_kernel_answers(scene: Scene) -> None:
    scene.kernel.begin()
    await scene.settle()
    assert scene.engine.log == [f"create {NAME}", "order given", f"start {NAME}"]
    assert (scene.kernel.state, repr(scene.kernel)) == (KernelState.STARTING, "<Kernel aaaa1111 starting on lab>")
    assert scene.told[-1] == ("starting", "starting the kernel")
    scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
    assert scene.channels.log[-1] == ("open", 1, None)
    assert (scene.kernel.state, scene.kernel.exit_code, scene.kernel.failure) == (KernelState.RUNNING, None, None)
    assert scene.states == ["idle"]
    assert scene.kernel.placement.gpu_ids == ("GPU-0",)
    # The wait for an answer is over.
    await scene.settle(10_000)
    assert scene.kernel.state is KernelState.RUNNING
    scene.kernel.requested([(0, b"x")])
    assert scene.client.log == [("send", [(0, b"x")])]


async def test_a_check_behind_the_channels_goes_on_to_a_start_or_fails_as_one(scene: Scene) -> None:
    scene.away = HostUnreachable(host="lab", address="lab:22", reason="no route")
    scene.kernel.check_and_begin()
    assert scene.kernel.state is KernelState.STARTING
    await scene.settle()
    assert scene.channels.failures == [scene.away]
    assert (scene.kernel.state, scene.engine.log) == (KernelState.FAILED, [])
    await scene.kernel.detach(end=True)
    assert scene.records.kernel(MINE) is None


async def test_a_check_behind_the_channels_is_given_up_when_the_editor_goes(scene: Scene) -> None:
    scene.kernel.check_and_begin()
    await scene.kernel.detach(end=True, claim="c")
    await scene.settle()
    assert (scene.kernel.state, scene.engine.log) == (KernelState.STOPPED, [])


async def test_what_a_failed_restart_has_left_can_be_discarded_while_its_channels_answer(scene: Scene) -> None:
    scene.kernel.check_and_begin()
    await scene.settle()
    scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
    await scene.kernel.relaunch(lambda: scene.request)
    scene.relay.event_received(FailedEvent(launch=2, lacks="ipykernel"))
    await scene.settle()
    assert f"remove {NAME}" not in scene.engine.log
    for _ in range(2):
        scene.kernel.discard()
        await scene.settle()
    assert scene.engine.log.count(f"remove {NAME}") == 1
    assert "close" not in scene.channels.log
    assert isinstance(scene.kernel.failure, ImageUnusable)


async def test_a_start_that_the_engine_refuses_is_undone_told_and_seen_3_s_later(scene: Scene) -> None:
    scene.joins = [ContainerFailed(host="lab", image="torch:2", reason="no")]
    scene.kernel.begin()
    await scene.settle()
    assert scene.engine.log[-1] == f"remove {NAME}"
    assert isinstance(scene.kernel.failure, ContainerFailed)
    assert (scene.kernel.state, scene.kernel.is_final) == (KernelState.FAILED, True)
    assert scene.channels.log == [("fail", "ContainerFailed")]
    assert scene.records.kernel(MINE) is None
    assert scene.kernel.exit_code is None
    await scene.settle(3)
    assert scene.kernel.exit_code == ContainerFailed.exit_code


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (FailedEvent(launch=1, lacks="ipykernel"), ImageUnusable),
        (exited(-9, last_words="no"), KernelDied),
        (exited(0, wanted=True), KernelDied),
    ],
)
async def test_a_start_whose_kernel_does_not_come_is_undone(
    scene: Scene, event: Any, kind: type[KernelBridgeError]
) -> None:
    scene.kernel.begin()
    await scene.settle()
    scene.relay.event_received(event)
    await scene.settle()
    assert type(scene.kernel.failure) is kind
    assert scene.engine.log[-1] == f"remove {NAME}"
    assert scene.client.log == ["closed"]


async def _ended_state(name: str) -> Exited:
    return Exited(code=1, oom_killed=False, error="", finished_at="")


@pytest.mark.parametrize("way", ["it does not join", "its process ends", "it never answers"])
async def test_what_a_start_that_fails_wrote_is_kept_and_said_to_be(scene: Scene, way: str) -> None:
    scene.engine.log_text = "Traceback\nModuleNotFoundError: torch\n"
    scene.engine.state = _ended_state  # type: ignore[method-assign]
    is_refused = way == "it does not join"
    scene.joins = [ContainerFailed(host="lab", image="torch:2", reason="no") if is_refused else {"used": False}]
    scene.kernel.begin()
    await scene.settle()
    if way == "its process ends":
        scene.relay.event_received(exited(1, last_words="ModuleNotFoundError: torch"))
    await scene.settle(scene.request.environment.start_seconds + 1)
    kept = KeptLogs(scene.records.folder / KEPT_LOGS_FOLDER).find(MINE)
    assert kept is not None
    assert kept.text == scene.engine.log_text
    assert scene.kernel.failure is not None
    is_said = f"`kernelbridge logs {short_id(MINE)}` shows what it wrote." in scene.kernel.failure.remedy
    assert is_said == (way != "it never answers"), "by then its container is there still"


@pytest.mark.parametrize("way", ["it wrote nothing", "its user gave it up", "it came"])
async def test_nothing_is_kept_where_there_is_nothing_to_be_read(scene: Scene, way: str) -> None:
    scene.engine.state = _ended_state  # type: ignore[method-assign]
    scene.engine.log_text = "" if way == "it wrote nothing" else "words"
    is_refused = way == "it wrote nothing"
    scene.joins = [ContainerFailed(host="lab", image="torch:2", reason="no") if is_refused else {"used": False}]
    scene.kernel.begin()
    await scene.settle()
    if way == "its user gave it up":
        scene.kernel.shutdown_requested(ShutdownIntent.CANCEL)
    if way == "it came":
        scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
        scene.relay.event_received(exited(-9, last_words="secret of a cell"))
        await scene.settle()
        await scene.kernel.stop()
    await scene.settle(1)
    assert scene.engine.log[-1] == f"remove {NAME}"
    assert KeptLogs(scene.records.folder / KEPT_LOGS_FOLDER).find(MINE) is None
    if scene.kernel.failure is not None:
        assert "kernelbridge logs" not in scene.kernel.failure.remedy


async def test_a_log_gets_no_words_of_the_users_own_programs(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    scene.kernel.begin()
    await scene.settle()
    scene.relay.event_received(NoticeEvent(1, "setup", "export TOKEN=MARKER", "MARKER"))
    scene.kernel._say(WorkProgress(what="building the image", detail="RUN MARKER"))
    assert any("MARKER" in text for text in scene.channels.progress_texts)
    scene.relay.event_received(exited(1, last_words="MARKER"))
    await scene.settle()
    assert "MARKER" in str(scene.kernel.failure)
    assert "exit code 1" in caplog.text
    assert "building the image" in caplog.text
    assert "MARKER" not in caplog.text


async def test_numbers_of_progress_reach_those_who_watch_the_fleet(scene: Scene) -> None:
    scene.kernel.begin()
    await scene.settle()
    pull = WorkProgress(what="pulling torch:2", done=1e9, total=2e9)
    scene.kernel._say(pull)
    assert scene.told[-1] == ("starting", pull)
    assert scene.channels.progress_texts[-1].endswith(" on lab: pulling torch:2: 50 %, 1.00 of 2.00 GB")


async def test_a_start_whose_container_ends_says_how(scene: Scene) -> None:
    scene.kernel.begin()
    await scene.settle()
    scene.relay.ended(Missing())
    await scene.settle()
    assert isinstance(scene.kernel.failure, KernelEnded)
    assert "was removed by another program" in scene.kernel.failure.sentence


async def test_a_kernel_that_never_answers_is_given_up(scene: Scene) -> None:
    scene.kernel.begin()
    await scene.settle(scene.request.environment.start_seconds + 1)
    assert isinstance(scene.kernel.failure, StartTimeout)
    assert "the start of the kernel" in scene.kernel.failure.sentence
    assert scene.engine.log[-1] == f"remove {NAME}"


async def test_a_bug_of_ours_in_a_start_is_heard(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.joins = [ZeroDivisionError("oh")]
    scene.kernel.begin()
    await scene.settle()
    assert isinstance(scene.kernel.failure, ContainerFailed)
    assert "the start failed" in caplog.text


async def test_a_client_that_shuts_down_cancels_the_start_at_once(scene: Scene) -> None:
    scene.kernel.begin()
    await asyncio.sleep(0)
    scene.kernel.shutdown_requested(ShutdownIntent.CANCEL)
    await scene.settle()
    assert isinstance(scene.kernel.failure, StartCancelled)
    assert scene.kernel.exit_code == StartCancelled.exit_code
    assert scene.engine.log == []
    assert scene.channels.log[-1] == ("fail", "StartCancelled")


async def test_a_start_that_is_cancelled_while_its_kernel_is_awaited_is_undone(scene: Scene) -> None:
    scene.kernel.begin()
    await scene.settle()
    scene.kernel.shutdown_requested(ShutdownIntent.CANCEL)
    await scene.settle()
    assert scene.engine.log[-1] == f"remove {NAME}"
    await scene.settle(10_000)
    assert isinstance(scene.kernel.failure, StartCancelled)


async def test_a_client_that_restarts_a_start_sees_an_end_and_joins_it(scene: Scene) -> None:
    scene.kernel.begin()
    scene.kernel.shutdown_requested(ShutdownIntent.RESTART)
    await scene.settle()
    assert scene.kernel.exit_code == 0
    await scene.kernel.relaunch(lambda: scene.request)
    assert scene.kernel.exit_code is None
    scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
    assert scene.channels.log[-1] == ("open", 1, None)


# -- an end by itself


async def test_a_kernel_that_dies_is_told_first_and_seen_to_be_dead_3_s_later(scene: Scene) -> None:
    await scene.started()
    scene.relay.event_received(exited(-11))
    assert (scene.kernel.state, scene.kernel.is_final) == (KernelState.EXITED, False)
    assert isinstance(scene.kernel.failure, KernelDied)
    assert scene.channels.log[-1] == ("fail", "KernelDied")
    assert scene.states[-1] == "exited"
    assert scene.kernel.exit_code is None
    await scene.settle(3)
    assert scene.kernel.exit_code == -11


@pytest.mark.parametrize(
    ("facts", "told"), [({"code": -15, "wanted": True}, None), ({"code": 0}, "KernelDied")], ids=["asked", "by itself"]
)
async def test_a_kernel_that_ends_in_order_is_seen_to_be_so_at_once(scene: Scene, facts: Any, told: str | None) -> None:
    await scene.started()
    scene.relay.event_received(exited(**facts))
    assert (scene.kernel.state, scene.kernel.exit_code) == (KernelState.EXITED, facts["code"])
    assert scene.channels.log[-1] == ("wait", "the kernel has ended", told)


async def test_a_kernel_that_its_user_limited_fails_for_good(scene: Scene) -> None:
    await scene.started()
    scene.relay.event_received(exited(-9, wanted=True, why="idle_timeout"))
    assert isinstance(scene.kernel.failure, KernelExpired)
    assert scene.kernel.is_final


async def test_a_container_that_is_removed_from_elsewhere_is_told_and_forgotten(scene: Scene) -> None:
    await scene.started()
    scene.relay.ended(Missing())
    await scene.settle()
    assert isinstance(scene.kernel.failure, KernelEnded)
    assert (scene.records.kernel(MINE), scene.kernel.is_joined) == (None, False)
    assert scene.client.log == ["closed"]


async def test_a_kernel_that_another_takes_is_left_alone(scene: Scene) -> None:
    await scene.started()
    scene.relay.taken(KernelHeld(kernel=MINE, host="lab", who="bob@desk", since="now"))
    assert isinstance(scene.kernel.failure, KernelTaken)
    assert await scene.kernel.stop()
    assert f"remove {NAME}" not in scene.engine.log


async def test_a_restart_of_a_kernel_that_another_took_is_refused_and_leaves_it_alone(scene: Scene) -> None:
    await scene.started()
    scene.relay.taken(KernelHeld(kernel=MINE, host="lab", who="bob@desk", since="now"))
    made = list(scene.engine.log)
    for _ in range(2):
        with pytest.raises(KernelTaken, match="taken over by bob@desk"):
            await scene.kernel.relaunch(lambda: scene.request)
    assert (scene.engine.log, scene.kernel.state) == (made, KernelState.FAILED)
    assert await scene.kernel.stop()
    assert scene.engine.log == made


async def test_what_the_relay_had_no_room_for_and_lost_gpus_are_printed_in_their_cell(scene: Scene) -> None:
    await scene.started()
    scene.relay.event_received(DroppedEvent(launch=1, parent=CELL, messages=2, size_bytes=1000))
    assert scene.channels.log[-1][:2] == ("notice", CELL)
    scene.relay.event_received(GpuLostEvent(launch=1, parent=None))
    assert scene.channels.log[-1][:2] == ("notice", {})
    assert scene.told[-1][0] == "idle"


# -- a restart


async def test_a_restart_is_in_place(scene: Scene) -> None:
    await scene.started()
    scene.kernel.signal(signal.SIGTERM)
    scene.relay.event_received(exited(-15, wanted=True))
    assert scene.kernel.exit_code == -15
    await scene.kernel.relaunch(lambda: scene.request)
    assert scene.kernel.state is KernelState.STARTING
    assert scene.kernel.exit_code is None
    assert scene.client.log == [("signal", 15), "drop waiting", ("spawn", 2)]
    assert scene.told[-1] == ("starting", "restarting the kernel")
    scene.relay.event_received(exited(-15))
    scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
    assert scene.kernel.state is KernelState.STARTING
    scene.relay.event_received(ReadyEvent(launch=2, info=INFO))
    assert scene.channels.log[-1] == ("open", 2, None)
    assert f"remove {NAME}" not in scene.engine.log


async def test_a_restart_while_the_link_is_down_waits_for_it(scene: Scene) -> None:
    await scene.started()
    scene.client.lose()
    scene.kernel.signal(signal.SIGKILL)
    assert scene.kernel.exit_code == -9
    await scene.kernel.relaunch(lambda: scene.request)
    assert scene.told[-1] == ("starting", "waiting for the link")
    assert scene.client.log == [("signal", 9), "drop waiting", ("spawn", 2)]
    scene.relay.join_failed(HostUnreachable(host="lab", address="lab:22", reason="no route"), True)
    assert "cannot be reached" in scene.channels.progress_texts[-1]
    scene.client.welcome(launch=2)
    scene.relay.event_received(ReadyEvent(launch=2, info=INFO))
    assert scene.kernel.state is KernelState.RUNNING


async def test_a_restart_while_our_relay_is_silent_makes_another_container_at_once(scene: Scene) -> None:
    await scene.started()
    first = scene.client
    first.lose()
    first.is_silent = True
    await scene.kernel.relaunch(lambda: scene.request)
    assert f"remove {NAME}" in scene.engine.log
    assert ("spawn", 2) not in first.log
    await scene.settle()
    assert scene.client is not first


async def test_a_restart_in_place_takes_what_each_process_reads_anew_and_no_more(scene: Scene) -> None:
    await scene.started()
    made = scene.kernel.request
    now = made.environment.model_copy(update={"env": {"A": "new"}, "workdir": "/elsewhere", "image": "other:1"})
    scene.kernel.renew_process(replace(made, environment=now, environ={"TZ": "UTC"}))
    renewed = scene.kernel.request
    assert (renewed.environment.env, renewed.environment.workdir) == ({"A": "new"}, "/elsewhere")
    assert (renewed.environment.image, renewed.environ, renewed.kernel_id) == (
        made.environment.image,
        {"TZ": "UTC"},
        made.kernel_id,
    )


async def test_a_restart_of_an_outdated_container_makes_another_of_what_is_wanted_by_then(scene: Scene) -> None:
    await scene.started()
    first = scene.client
    await scene.kernel.relaunch(lambda: replace(scene.request, title="renewed"), is_outdated=True)
    assert f"remove {NAME}" in scene.engine.log
    await scene.settle()
    assert scene.client is not first
    assert scene.kernel.request.title == "renewed"


async def test_a_cell_says_why_nothing_happens_and_what_is_to_be_done(scene: Scene) -> None:
    await scene.started()
    scene.kernel.signal(signal.SIGINT)
    assert scene.channels.log[-1] == "interrupt"
    scene.relay.paused(True)
    assert scene.channels.log[-1] == ("wait for", failures.pause_text(scene.request.kernel_id, scene.kernel.host))
    scene.relay.paused(False)
    assert scene.channels.log[-1] == ("wait for", "")
    refused = HostUnreachable(host="lab", address="lab:22", reason="no route")
    scene.relay.join_failed(refused, True)
    assert scene.channels.log[-1] == ("wait for", "")
    scene.relay.join_failed(refused, False)
    assert scene.channels.log[-1] == ("wait for", "\n".join(refused.parts))


async def test_a_restart_that_fails_keeps_its_container_for_the_next(scene: Scene) -> None:
    await scene.started()
    await scene.kernel.relaunch(lambda: scene.request)
    scene.relay.event_received(FailedEvent(launch=2, reason="no folder"))
    assert scene.kernel.state is KernelState.FAILED
    await scene.kernel.relaunch(lambda: scene.request)
    assert scene.client.log[-1] == ("spawn", 3)


async def test_a_restart_after_the_gpus_were_lost_makes_another_container(scene: Scene) -> None:
    await scene.started()
    scene.relay.event_received(GpuLostEvent(launch=1, parent=CELL))
    renewed = replace(scene.request, arguments=("--new",))
    await scene.kernel.relaunch(lambda: renewed)
    await scene.settle()
    made = [f"create {NAME}", "order given", f"start {NAME}"]
    assert scene.engine.log == [*made, f"remove {NAME}", *made]
    assert scene.kernel.request == renewed
    assert scene.clients[0].log == ["closed"]
    scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
    assert scene.kernel.state is KernelState.RUNNING


async def test_a_restart_that_finds_nothing_to_start_says_so_to_its_caller(scene: Scene) -> None:
    await scene.started()
    scene.relay.ended(Missing())

    def gone() -> LaunchRequest:
        raise UnknownEnvironment(name="torch", path="/kernelbridge.toml")

    with pytest.raises(UnknownEnvironment):
        await scene.kernel.relaunch(gone)
    assert isinstance(scene.kernel.failure, UnknownEnvironment)
    assert scene.kernel.state is KernelState.FAILED


async def test_a_stop_while_a_restart_checks_again_is_a_stop(scene: Scene) -> None:
    await scene.started()
    scene.relay.ended(Missing())
    restart = asyncio.create_task(scene.kernel.relaunch(lambda: scene.request))
    await asyncio.sleep(0)
    assert await scene.kernel.stop()
    await restart
    await scene.settle()
    assert scene.kernel.state is KernelState.STOPPED
    assert scene.engine.log.count(f"create {NAME}") == 1


# -- the link


async def test_a_link_that_is_lost_and_back_changes_nothing_but_what_is_told(scene: Scene) -> None:
    await scene.started()
    scene.client.lose()
    assert (scene.kernel.state, scene.kernel.exit_code, scene.kernel.is_joined) == (KernelState.RUNNING, None, False)
    scene.client.welcome(ready=True, info=INFO)
    assert scene.states[-2:] == ["link lost", "idle"]
    assert scene.channels.log[-2:] == ["link lost", "link restored"]


async def test_a_login_that_waits_for_its_user_is_told_in_the_running_cell(scene: Scene) -> None:
    await scene.started()
    scene.client.lose()
    [hearer] = scene.hearers
    hearer(LoginStage(text="connecting to lab:22"))
    hearer(LoginStage(text="touch the key", needs_user=True))
    assert scene.channels.log[-2:] == ["link lost", ("wait for", "touch the key")]
    assert ("link lost", "touch the key") in scene.told
    scene.client.welcome(ready=True, info=INFO)
    assert scene.hearers == []


async def test_progress_is_a_short_line_of_plain_text_whoever_said_it(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    scene.hearers[0](LoginStage(text="\x1b[2Jtouch\nit" + "x" * 100_000, needs_user=True))
    told = scene.channels.progress_texts[-1]
    assert " on lab: ?[2Jtouch?itxxx" in told
    assert len(told) < 1100


async def test_a_kernel_that_comes_back_says_how_far_its_login_is(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    scene.hearers[0](LoginStage(text="touch the key", needs_user=True))
    assert scene.channels.progress_texts[-1].endswith(" on lab: touch the key")
    scene.client.welcome(ready=True, info=INFO)
    assert scene.hearers == []


async def test_output_goes_to_the_clients_until_the_kernel_is_not_ours(scene: Scene) -> None:
    await scene.started()
    scene.relay.delivered([b"\1x"])
    await scene.kernel.stop()
    scene.relay.delivered([b"\1y"])
    assert scene.channels.delivered == [b"\1x"]


# -- the end of our part


async def test_a_stop_removes_the_container_and_the_record(scene: Scene) -> None:
    await scene.started()
    assert await scene.kernel.stop()
    assert (scene.kernel.state, scene.kernel.exit_code) == (KernelState.STOPPED, 0)
    assert scene.channels.log[-1] == "close"
    assert (scene.engine.log[-1], scene.client.log) == (f"remove {NAME}", ["closed"])
    assert scene.records.kernel(MINE) is None
    assert scene.states[-1] == "stopped"
    assert await scene.kernel.stop()
    assert scene.engine.log.count(f"remove {NAME}") == 1


async def test_a_stop_while_the_start_is_under_way_cancels_it_and_leaves_nothing(scene: Scene) -> None:
    scene.kernel.begin()
    await scene.settle()
    assert await scene.kernel.stop()
    assert (scene.kernel.state, scene.states) == (KernelState.STOPPED, ["failed", "stopped"])
    assert scene.engine.log[-1] == f"remove {NAME}"
    assert scene.kernel.exit_code == StartCancelled.exit_code


async def test_a_stop_on_a_host_that_is_away_is_noted_and_tried_again(scene: Scene) -> None:
    await scene.started()
    scene.away = HostUnreachable(host="lab", address="lab:22", reason="no route")
    assert not await scene.kernel.stop()
    assert scene.told[-1] == ("stopping", "lab cannot be reached")
    record = scene.records.kernel(MINE)
    assert record is not None and record.stop_wanted
    # Where an engine says no, its words count.
    renamed = EngineFailed(host="lab", action="remove it", reason="it was renamed")
    scene.away = renamed
    assert not await scene.kernel.stop()
    assert scene.told[-1] == ("stopping", str(renamed))
    scene.away = None
    assert await scene.kernel.stop()
    assert scene.records.kernel(MINE) is None


@pytest.mark.parametrize("claim", ["", "c"])
async def test_a_kernel_that_is_left_runs_on(scene: Scene, claim: str) -> None:
    await scene.started()
    await scene.kernel.detach(end=bool(claim), claim=claim)
    assert scene.client.log == ["stop receiving", ("goodbye", bool(claim), claim, True)]
    assert (scene.kernel.state, scene.states[-1]) == (KernelState.STOPPED, "detached")
    assert f"remove {NAME}" not in scene.engine.log
    record = scene.records.kernel(MINE)
    assert record is not None
    assert (record.claim, record.process, record.stop_wanted, record.is_ending) == (claim, "", False, bool(claim))
    assert record.left is not None


async def test_a_kernel_that_does_not_hear_the_goodbye_is_ended_by_whoever_reaches_it(scene: Scene) -> None:
    await scene.started()
    scene.channels.has_handed_on = False
    scene.client.lose()
    await scene.kernel.detach(end=True)
    assert scene.client.log[-1] == ("goodbye", True, "", False)
    record = scene.records.kernel(MINE)
    assert record is not None and record.stop_wanted


async def test_a_kernel_that_was_only_about_to_come_is_not_left_but_stopped(scene: Scene) -> None:
    scene.kernel.begin()
    await scene.settle()
    await scene.kernel.detach(end=False)
    assert scene.engine.log[-1] == f"remove {NAME}"
    assert scene.states[-1] == "stopped"


async def test_what_a_failed_start_has_left_is_removed_before_its_kernel_is_left(scene: Scene) -> None:
    scene.joins = [ContainerFailed(host="lab", image="torch:2", reason="no")]
    scene.kernel.begin()
    await asyncio.sleep(0.01)
    await scene.kernel.detach(end=True)
    assert scene.engine.log[-1] == f"remove {NAME}"


async def test_a_kernel_that_was_never_begun_can_be_stopped(scene: Scene) -> None:
    assert await scene.kernel.stop()
    assert scene.engine.log == []


# -- its cells


async def test_a_kernel_is_named_for_the_notebook_that_its_cells_tell_of(scene: Scene) -> None:
    await scene.started()
    scene.kernel.cell_asked(CellAsked(notebook="c:\\work\\train.ipynb"))
    record = scene.records.kernel(MINE)
    assert record is not None and (record.title, record.notebook) == ("train.ipynb", "c:\\work\\train.ipynb")
    assert await scene.kernel.notebook(5) == "c:\\work\\train.ipynb"


async def test_a_server_knows_its_notebooks_better(scene: Scene) -> None:
    scene.kernel.request = replace(scene.request, server="/home/ada", title="a.ipynb")
    await scene.started()
    scene.kernel.cell_asked(CellAsked(notebook="/a-jvsc-3f2a.ipynb"))
    assert (scene.kernel.request.title, scene.kernel.request.notebook) == ("a.ipynb", "")


@pytest.mark.parametrize("told", [CellAsked(notebook="/work/a.ipynb"), CellAsked(is_users=True), None])
async def test_a_notebook_is_waited_for_until_it_is_told_or_will_not_be(scene: Scene, told: CellAsked | None) -> None:
    known = ImageRecord(kernel_info=INFO, widgets="8.1")
    scene.records.keep_image(name="torch:2 python3", image_id="sha256:1 python3", record=known)
    scene.kernel.placement.reset(scene.request)
    began = scene.clock.now
    asking = asyncio.create_task(scene.kernel.notebook(10))
    await scene.settle(1)
    assert scene.channels.log == ["know"], "VS Code tells it once its first hidden cell has an answer"
    if told is not None:
        scene.kernel.cell_asked(told)
    assert await asking == (told.notebook if told else "")
    assert (scene.clock.now - began < 9) == (told is not None)


async def test_no_notebook_is_waited_for_where_nothing_is_known_of_the_image(scene: Scene) -> None:
    assert await scene.kernel.notebook(1e9) == ""


async def test_a_kernel_is_used_once_a_user_has_run_a_cell_in_it(scene: Scene) -> None:
    await scene.started()
    scene.client.welcome(used=False)
    assert not scene.kernel.is_used
    scene.kernel.cell_asked(CellAsked(notebook="/work/a.ipynb"))
    assert not scene.kernel.is_used
    scene.kernel.cell_asked(CellAsked(is_users=True))
    assert scene.kernel.is_used
    scene.client.welcome(used=False)
    assert scene.kernel.is_used, "its cell is on the way"


async def test_a_kernel_that_is_found_is_taken_for_used_until_its_relay_says_that_it_was_not(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    assert scene.kernel.is_used
    scene.client.welcome(launch=4, ready=True, info=INFO, used=False, session="its own")
    assert not scene.kernel.is_used
    assert ("session", "its own") in scene.channels.log


async def test_a_kernel_that_was_bound_stands_for_another_one_and_falls_back_to_its_own(scene: Scene) -> None:
    scene.kernel.cell_asked(CellAsked(notebook="/work/a.ipynb"))
    other = replace(
        scene.request, kernel_id="left", title="old", environment=launch_request(image="torch:1").environment
    )
    scene.kernel.retarget(other)
    assert (scene.kernel.request.kernel_id, scene.kernel.request.title) == ("left", "a.ipynb")
    scene.joins = [ContainerFailed(host="lab", image="torch:1", reason="it is gone")]
    scene.kernel.begin_claimed(LAB)
    await scene.settle()
    assert scene.clients[0].kernel_id == "left"
    assert scene.kernel.request.kernel_id not in ("left", MINE)
    assert scene.kernel.request.environment.image == "torch:2"


# -- a kernel that was there before


async def test_coming_back_to_a_kernel_that_works(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=True)
    assert scene.client.wish == (True, "")
    assert scene.client.log == ["keep joining"]
    scene.client.welcome(launch=4, ready=True, info=INFO, running=CELL)
    assert scene.channels.log == ["expect left output", "hold", "link restored", ("open", 4, CELL)]
    assert scene.states == ["busy"]
    record = scene.records.kernel(MINE)
    assert record is not None and record.gpus == ("GPU-0",)


async def test_coming_back_to_a_kernel_that_starts(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    scene.client.welcome(launch=4)
    assert scene.kernel.state is KernelState.STARTING
    scene.relay.event_received(ReadyEvent(launch=4, info=INFO))
    assert scene.channels.log[-1] == ("open", 4, None)


async def test_coming_back_to_a_kernel_that_has_ended(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    scene.client.welcome(launch=0, outcome=exited(-9, launch=4))
    assert (scene.kernel.state, scene.channels.log[-1]) == (KernelState.EXITED, ("fail", "KernelDied"))
    await scene.kernel.relaunch(lambda: scene.request)
    assert scene.client.log[-1] == ("spawn", 5)


async def test_coming_back_to_a_kernel_that_another_holds(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    scene.relay.taken(KernelHeld(kernel=MINE, host="lab", who="bob@desk", since="now"))
    assert isinstance(scene.kernel.failure, KernelHeld)
    with pytest.raises(KernelHeld, match="held by bob@desk"):
        await scene.kernel.relaunch(lambda: scene.request)
    await scene.kernel.detach(end=False)
    assert scene.engine.log == []


@pytest.mark.parametrize(
    ("owner", "is_removed"), [("m:1@1.00:x", True), (None, True), ("m:2@2.00:y", False), ("silent", True)]
)
async def test_stopping_a_kernel_that_could_not_be_joined_yet_leaves_it_to_whom_its_relay_hears(
    scene: Scene, owner: str | None, is_removed: bool
) -> None:
    said = None if owner == "silent" else status(owner=owner).to_dict()
    scene.engine.boxes[MINE] = Box(labels={}, status=said)
    scene.kernel.come_back(LAB, takes=False)
    assert await scene.kernel.stop()
    assert scene.engine.log == ([f"remove {NAME}"] if is_removed else [])


async def test_a_kernel_that_was_joined_once_is_removed_without_a_question(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    scene.client.welcome(launch=4, ready=True, info=INFO)
    assert await scene.kernel.stop()
    assert scene.engine.log == [f"remove {NAME}"]


async def test_leaving_a_kernel_that_could_not_be_joined_yet(scene: Scene) -> None:
    scene.kernel.come_back(LAB, takes=False)
    await scene.kernel.detach(end=False)
    assert scene.client.log == ["keep joining", "stop receiving", ("goodbye", False, "", True)]
    assert scene.states == ["failed", "detached"]
    assert scene.engine.log == []


# -- a kernel that was left under a claim


async def test_a_claimed_start_is_a_restart_in_the_container_that_was_left(scene: Scene) -> None:
    scene.joins = [{"launch": 3, "ready": True, "info": INFO}]
    scene.kernel.begin_claimed(LAB)
    await scene.settle()
    assert scene.client.log == ["drop waiting", ("spawn", 4)]
    assert scene.kernel.state is KernelState.STARTING
    scene.relay.event_received(ReadyEvent(launch=4, info=INFO))
    assert scene.channels.log[-1] == ("open", 4, None)
    assert scene.engine.log == []
    assert await scene.kernel.stop()
    assert scene.engine.log == [f"remove {NAME}"]


async def test_a_claimed_start_that_is_refused_is_a_start_of_its_own(scene: Scene) -> None:
    scene.joins = [ContainerFailed(host="lab", image="torch:2", reason="its relay refused")]
    scene.kernel.begin_claimed(LAB)
    await scene.settle()
    assert scene.clients[0].log == ["closed"]
    kernel_id = scene.kernel.request.kernel_id
    assert kernel_id != MINE
    assert scene.engine.log == [f"create kernelbridge-{kernel_id}", "order given", f"start kernelbridge-{kernel_id}"]
    scene.relay.event_received(ReadyEvent(launch=1, info=INFO))
    assert scene.kernel.state is KernelState.RUNNING


async def test_a_claimed_start_whose_kernel_does_not_come_has_failed(scene: Scene) -> None:
    scene.kernel.begin_claimed(LAB)
    await scene.settle()
    scene.relay.event_received(exited(1, launch=2))
    assert isinstance(scene.kernel.failure, KernelDied)
    assert scene.engine.log == []
