"""kernel/lifecycle.py: what follows from each event in each phase, and that no order of events leads nowhere.

The rows and what holds for all of them are one thing: a new row is seen by both.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelbridge.errors import ContainerFailed, KernelBridgeError, KernelHeld, KernelTaken, LinkLost, StartCancelled
from kernelbridge.kernel import lifecycle
from kernelbridge.kernel.lifecycle import (
    OURS,
    STARTING,
    TRANSITIONS,
    Action,
    AdoptContainer,
    Answered,
    AwaitAnswer,
    Begin,
    CancelStart,
    Check,
    Checked,
    CheckHosts,
    Claim,
    CloseChannels,
    ComeBack,
    ContainerGone,
    Detach,
    Discard,
    Disconnect,
    Event,
    ExecutionLasted,
    ExecutionState,
    ExitDue,
    ExplainWait,
    FailWaiting,
    FallBack,
    Forget,
    ForgetContainer,
    GpusGone,
    HoldOutput,
    Interrupt,
    JoinClaimed,
    Joined,
    JoinFailed,
    JoinRelay,
    Launch,
    Launched,
    Lifecycle,
    LinkDown,
    LogFailure,
    LoginReported,
    NotRemoved,
    OpenChannels,
    OrderLaunch,
    Output,
    OutputDelivered,
    Paused,
    Phase,
    PrintNotice,
    ProcessEnded,
    Progress,
    PublishedExit,
    PublishExit,
    QueueRequests,
    RecordDetached,
    RecordStopWanted,
    Relaunch,
    Remember,
    Remove,
    Removed,
    Replace,
    Report,
    ResumeChannels,
    RetractExit,
    SendSignal,
    SetGpus,
    ShutdownAsked,
    Signal,
    StartFailed,
    StartRefused,
    Stop,
    StopAwaitingAnswer,
    StopReceiving,
    SuspendChannels,
    Taken,
    Transition,
    UnwatchExecution,
    WatchExecution,
)
from kernelbridge.kernel.state import KernelState
from kernelbridge.protocol import frames

WHY = ContainerFailed(host="lab", image="torch:2", reason="it broke")
IN_LINES = "\n".join(WHY.parts)
CANCELLED = StartCancelled(environment="Torch")
HELD_BY = KernelHeld(kernel="k1", host="lab", who="ada@laptop", since="10:00")
TAKEN_BY = KernelTaken(environment="Torch", host="lab", who="ada@laptop")
LOST = LinkLost(host="lab")
INFO = {"banner": "hello"}
CELL = {"msg_id": "m1"}
LINK: list[Action] = [ResumeChannels(), SetGpus(("GPU-0",))]
# What a failure comes to: by itself, and by somebody's wish.
FAILED: list[Action] = [
    LogFailure(WHY, False),
    FailWaiting(WHY),
    Report(KernelState.FAILED, str(WHY)),
    PublishExit(3.0),
]
WISHED: list[Action] = [
    LogFailure(CANCELLED, True),
    FailWaiting(CANCELLED),
    Report(KernelState.FAILED, str(CANCELLED)),
    PublishExit(0),
]
UNDO: list[Action] = [CancelStart(), RecordStopWanted(), Remove()]
CLOSED: list[Action] = [PublishExit(0), UnwatchExecution(), Report(KernelState.STOPPED), CloseChannels()]
STOP: list[Action] = [*CLOSED, CancelStart(), Remove()]
OPENED: list[Action] = [StopAwaitingAnswer(), OpenChannels(2, INFO), WatchExecution(), Report(KernelState.IDLE)]
RESTART: list[Action] = [RetractExit(), QueueRequests("restarting the kernel")]


def ended(code: int = 3, *, launch: int = 2, why: str = "", on_request: bool = False) -> ProcessEnded:
    return ProcessEnded(launch=launch, code=code, why=why, on_request=on_request, error=WHY)


def joined(launch: int = 2, **facts: Any) -> Joined:
    return Joined(gpu_ids=("GPU-0",), launch=launch, **facts)


def killed(*, is_joined: bool = True) -> Signal:
    return Signal(number=signal.SIGKILL, is_joined=is_joined)


def shutdown(*, restart: bool = False) -> ShutdownAsked:
    return ShutdownAsked(restart=restart, cancelled=CANCELLED)


def detach(*, end: bool = False) -> Detach:
    return Detach(end=end, cancelled=CANCELLED)


def at(phase: Phase, **facts: Any) -> Lifecycle:
    """A kernel in a phase, at its second launch."""
    life = Lifecycle()
    life.phase, life.launch = phase, 2
    for name, value in facts.items():
        owner, _, field = name.rpartition("__")
        setattr(getattr(life, owner) if owner else life, field, value)
    return life


B, L, C, J, A, R = Phase.BOUND, Phase.LAUNCHING, Phase.CLAIMING, Phase.JOINING, Phase.AWAITING, Phase.CHECKING
RUNNING, EXITED, FAIL, GONE, UNDONE = Phase.RUNNING, Phase.EXITED, Phase.FAILED, Phase.GONE, Phase.UNDONE
LOST_TO_ANOTHER = Phase.TAKEN
DETACHING, STOPPED = Phase.DETACHING, Phase.STOPPED
SIGINT = Signal(number=signal.SIGINT, is_joined=True)
STOPS = Stop(cancelled=CANCELLED)
DETACHED: list[Action] = [RecordDetached(), StopReceiving()]
BY_LIMIT: list[Action] = [UnwatchExecution(), *FAILED]
QUIET_END: list[Action] = [StopAwaitingAnswer(), QueueRequests("the kernel has ended", WHY), PublishExit(0)]
WISHED_END: list[Action] = [StopAwaitingAnswer(), QueueRequests("the kernel has ended", None), PublishExit(0)]
DEATH: list[Action] = [StopAwaitingAnswer(), FailWaiting(WHY), Report(KernelState.EXITED, str(WHY)), PublishExit(3.0)]
LOST_GPUS = GpusGone(launch=2, parent=CELL, error=WHY)
NOTICED: list[Action] = [PrintNotice(CELL, f"[kernelbridge: {IN_LINES}]\n"), Report(KernelState.IDLE, str(WHY))]
TAKEN = Taken(held=HELD_BY, taken=TAKEN_BY)
FOUND: list[Action] = [*LINK, Remember()]


def taken_by(error: KernelBridgeError) -> list[Action]:
    failed: list[Action] = [LogFailure(error, False), FailWaiting(error), Report(KernelState.FAILED, str(error))]
    return [CancelStart(), Disconnect(), ForgetContainer(), *failed, PublishExit(3.0)]


# Each row: the phase, what else is known, what happens, the next phase, what is to be done.
ROWS: list[Any] = [
    # Ways in.
    (B, {}, Begin(), L, [Launch()]),
    (B, {}, Check(), R, [CheckHosts()]),
    (B, {}, Claim(), C, [Progress("reusing the container"), JoinClaimed()]),
    (
        B,
        {},
        ComeBack(takes=True),
        J,
        [
            HoldOutput(),
            AdoptContainer(),
            JoinRelay(True),
            Progress("reconnecting to the kernel"),
            Remember(unless_held=True),
        ],
    ),
    *((phase, {}, Relaunch(is_joined=True), phase, [RetractExit()]) for phase in STARTING),
    *(
        (
            phase,
            {},
            Relaunch(is_joined=is_joined),
            A,
            [*RESTART, OrderLaunch(3), Progress(text), AwaitAnswer("the restart of the kernel")],
        )
        for phase in (RUNNING, EXITED, FAIL)
        for is_joined, text in ((True, "restarting the kernel"), (False, "waiting for the link"))
    ),
    (RUNNING, {"has_lost_gpus": True}, Relaunch(is_joined=True), R, [*RESTART, Replace()]),
    *(
        (phase, {}, event, R, [*RESTART, Replace()])
        for phase in (RUNNING, EXITED, FAIL)
        for event in (Relaunch(is_joined=False, is_silent=True), Relaunch(is_joined=True, is_outdated=True))
    ),
    # A restart that waits already: who asks again has read why.
    (A, {}, Relaunch(is_joined=False, is_silent=True), R, [CancelStart(), *RESTART, Replace()]),
    *((phase, {}, Relaunch(is_joined=False, is_silent=True), phase, [RetractExit()]) for phase in (L, C, J, R)),
    *((phase, {}, Relaunch(is_joined=False), R, [*RESTART, Replace()]) for phase in (GONE, UNDONE)),
    *(
        (
            LOST_TO_ANOTHER,
            {"failure": why},
            Relaunch(is_joined=False),
            LOST_TO_ANOTHER,
            [Report(KernelState.FAILED, str(why))],
        )
        for why in (TAKEN_BY, HELD_BY)
    ),
    (R, {}, Checked(), L, [Launch()]),
    (R, {}, StartFailed(error=WHY), UNDONE, FAILED),
    # The start.
    (L, {}, Launched(), L, [Progress("starting the kernel"), AwaitAnswer("the start of the kernel")]),
    (RUNNING, {}, Launched(), RUNNING, []),
    (L, {}, joined(), L, LINK),
    (C, {}, StartFailed(error=CANCELLED, on_request=True), GONE, [CancelStart(), Disconnect(), *WISHED]),
    (C, {}, StartFailed(error=WHY), R, [Disconnect(), FallBack(WHY)]),
    (
        C,
        {"launch": 0},
        joined(7, info=INFO),
        A,
        [*LINK, AdoptContainer(), Remember(), OrderLaunch(8), AwaitAnswer("the restart of the kernel")],
    ),
    (J, {"launch": 0}, joined(info=INFO), RUNNING, [*FOUND, *OPENED]),
    (
        J,
        {"launch": 0},
        joined(info=INFO, running=CELL),
        RUNNING,
        [*FOUND, StopAwaitingAnswer(), OpenChannels(2, INFO, CELL), WatchExecution(), Report(KernelState.BUSY)],
    ),
    (J, {"launch": 0}, joined(ended=ended(why="max_lifetime")), FAIL, [*FOUND, *FAILED]),
    (J, {"launch": 0}, joined(ended=ended(-9, on_request=True)), EXITED, [*FOUND, *WISHED_END]),
    (J, {"launch": 0}, joined(ended=ended(0)), EXITED, [*FOUND, *QUIET_END]),
    (J, {"launch": 0}, joined(ended=ended(3)), EXITED, [*FOUND, *DEATH]),
    (
        J,
        {"launch": 0},
        joined(),
        A,
        [*FOUND, Progress("starting the kernel"), AwaitAnswer("the start of the kernel")],
    ),
    (A, {}, joined(), A, LINK),
    *((phase, {}, Answered(launch=2, info=INFO), RUNNING, OPENED) for phase in (L, A)),
    *((phase, {}, Answered(launch=1, info=INFO), phase, []) for phase in (L, A, RUNNING)),
    (L, {}, StartFailed(error=WHY), UNDONE, [*UNDO, *FAILED]),
    (L, {}, StartFailed(error=CANCELLED, on_request=True), UNDONE, [*UNDO, *WISHED]),
    (L, {}, StartRefused(launch=2, error=WHY), UNDONE, [*UNDO, *FAILED]),
    (L, {}, ended(0, on_request=True), UNDONE, [*UNDO, *FAILED]),
    (A, {}, StartRefused(launch=2, error=WHY), FAIL, [CancelStart(), *FAILED]),
    (A, {}, StartRefused(launch=1, error=WHY), A, []),
    (A, {}, ended(0, on_request=True), FAIL, [CancelStart(), *FAILED]),
    (A, {}, ended(launch=1), A, []),
    (A, {}, StartFailed(error=WHY), FAIL, [CancelStart(), *FAILED]),
    (RUNNING, {}, StartFailed(error=WHY), RUNNING, []),
    # What becomes of it.
    (RUNNING, {}, ended(-9, on_request=True, why="idle_timeout"), FAIL, BY_LIMIT),
    (RUNNING, {}, ended(0), EXITED, [UnwatchExecution(), *QUIET_END]),
    (RUNNING, {}, ended(-15, on_request=True), EXITED, [UnwatchExecution(), *WISHED_END]),
    (RUNNING, {"execution__is_ending": True}, ended(1), EXITED, [UnwatchExecution(), *QUIET_END]),
    (RUNNING, {}, ended(1), EXITED, [UnwatchExecution(), *DEATH]),
    (RUNNING, {}, ended(1, launch=1), RUNNING, []),
    # A restart that took too long may end after all.
    (FAIL, {}, ended(1), EXITED, [UnwatchExecution(), *DEATH]),
    (EXITED, {}, ended(1), EXITED, []),
    (STOPPED, {}, ended(1), STOPPED, []),
    *((phase, {}, LOST_GPUS, phase, NOTICED) for phase in (L, A, RUNNING, EXITED, FAIL)),
    (RUNNING, {"launch": 3}, LOST_GPUS, RUNNING, []),
    (L, {}, ContainerGone(error=WHY), UNDONE, [Forget(whoever_has_it=True), *UNDO, *FAILED]),
    *(
        (
            phase,
            {},
            ContainerGone(error=WHY),
            GONE,
            [CancelStart(), Disconnect(), Forget(whoever_has_it=True), *FAILED],
        )
        for phase in (J, A, RUNNING, EXITED)
    ),
    # It was told why before its container ended; that is not logged and told again.
    (FAIL, {}, ContainerGone(error=WHY), GONE, [CancelStart(), Disconnect(), Forget(whoever_has_it=True)]),
    *((phase, {}, TAKEN, LOST_TO_ANOTHER, taken_by(HELD_BY)) for phase in (L, J, A)),
    *((phase, {}, TAKEN, LOST_TO_ANOTHER, taken_by(TAKEN_BY)) for phase in (RUNNING, EXITED, FAIL)),
    # The link.
    *((phase, {}, joined(), phase, [*LINK, Report(KernelState.IDLE)]) for phase in (RUNNING, EXITED, FAIL)),
    (RUNNING, {"execution__state": KernelState.BUSY}, joined(), RUNNING, [*LINK, Report(KernelState.BUSY)]),
    (FAIL, {"launch": 0}, joined(), FAIL, LINK),
    *(
        (phase, {}, LinkDown(error=LOST), phase, [SuspendChannels(LOST), Report(KernelState.LINK_LOST, str(LOST))])
        for phase in (L, J, A, RUNNING, EXITED, FAIL)
    ),
    *((phase, {}, JoinFailed(error=WHY), phase, [Progress(WHY.sentence)]) for phase in (L, J, A)),
    *((phase, {}, JoinFailed(error=WHY), phase, []) for phase in (RUNNING, EXITED, FAIL)),
    (
        RUNNING,
        {},
        JoinFailed(error=WHY, may_pass=False),
        RUNNING,
        [ExplainWait(IN_LINES)],
    ),
    *(
        (phase, {}, LoginReported(text="touch it", needs_user=True), phase, [Progress("touch it")])
        for phase in (L, C, J, A)
    ),
    (
        RUNNING,
        {},
        LoginReported(text="touch it", needs_user=True),
        RUNNING,
        [ExplainWait("touch it"), Report(KernelState.LINK_LOST, "touch it")],
    ),
    (RUNNING, {}, LoginReported(text="connecting", needs_user=False), RUNNING, []),
    *((phase, {}, Paused(text="paused"), phase, [ExplainWait("paused")]) for phase in (RUNNING, EXITED, FAIL)),
    (RUNNING, {}, Paused(text=""), RUNNING, [ExplainWait("")]),
    *((phase, {}, Paused(text="paused"), phase, [Progress("paused")]) for phase in (L, J, A)),
    *((phase, {}, Paused(text=""), phase, []) for phase in (L, J, A)),
    # What clients and their managers want of it.
    *((phase, {}, SIGINT, phase, [Interrupt()]) for phase in (L, A, RUNNING, EXITED)),
    *((phase, {}, killed(), phase, [PublishExit(0)]) for phase in STARTING),
    *((phase, {}, killed(), phase, [SendSignal(9)]) for phase in (RUNNING, EXITED, FAIL)),
    (EXITED, {"exit__due": 3}, killed(), EXITED, [PublishExit(0), SendSignal(9)]),
    (RUNNING, {}, killed(is_joined=False), RUNNING, [SendSignal(9), PublishExit(0)]),
    *((phase, {}, killed(), phase, []) for phase in (GONE, LOST_TO_ANOTHER)),
    (GONE, {"exit__due": 3}, killed(), GONE, [PublishExit(0)]),
    (STOPPED, {}, killed(), STOPPED, []),
    *((phase, {}, shutdown(), UNDONE, [*UNDO, *WISHED]) for phase in (L, R)),
    (C, {}, shutdown(), GONE, [CancelStart(), Disconnect(), *WISHED]),
    *((phase, {}, shutdown(), FAIL, [CancelStart(), *WISHED]) for phase in (J, A)),
    *(
        (phase, {}, shutdown(), phase, [PublishExit(0)])
        for phase in (B, RUNNING, EXITED, FAIL, GONE, LOST_TO_ANOTHER, UNDONE)
    ),
    *((phase, {}, shutdown(restart=True), phase, [PublishExit(0)]) for phase in OURS),
    # The end of our part.
    (FAIL, {}, Discard(), UNDONE, UNDO),
    *((phase, {}, Discard(), phase, []) for phase in Phase if phase is not FAIL),
    *(
        (phase, {}, STOPS, STOPPED, STOP)
        for phase in (B, RUNNING, EXITED, FAIL, GONE, LOST_TO_ANOTHER, UNDONE, DETACHING)
    ),
    (L, {}, STOPS, STOPPED, [*UNDO, *WISHED, *CLOSED]),
    *((phase, {}, STOPS, STOPPED, [CancelStart(), *WISHED, *STOP]) for phase in (C, J, A, R)),
    (STOPPED, {}, STOPS, STOPPED, [Remove()]),
    (L, {}, detach(), STOPPED, [*UNDO, *WISHED, *CLOSED]),
    *((phase, {}, detach(), DETACHING, [*DETACHED, CancelStart(), *WISHED]) for phase in (C, J)),
    *((phase, {}, detach(end=True), STOPPED, [CancelStart(), *WISHED, *STOP]) for phase in (C, J)),
    (A, {"is_found": True}, detach(end=True), DETACHING, [*DETACHED, CancelStart(), *WISHED]),
    (A, {}, detach(), STOPPED, [CancelStart(), *WISHED, *STOP]),
    (R, {}, detach(), STOPPED, [CancelStart(), *WISHED, *STOP]),
    *((phase, {}, detach(end=True), DETACHING, DETACHED) for phase in (RUNNING, EXITED, FAIL, GONE, LOST_TO_ANOTHER)),
    *((phase, {}, detach(), STOPPED, STOP) for phase in (B, UNDONE)),
    *((phase, {}, detach(), phase, []) for phase in (DETACHING, STOPPED)),
    (
        DETACHING,
        {},
        OutputDelivered(),
        STOPPED,
        [PublishExit(0), UnwatchExecution(), Report(KernelState.DETACHED), CloseChannels()],
    ),
    *((phase, {}, Removed(), phase, [Forget()]) for phase in (UNDONE, R, STOPPED)),
    *(
        (phase, {}, NotRemoved(text="away"), phase, [RecordStopWanted(), Report(KernelState.STOPPING, "away")])
        for phase in (UNDONE, R, STOPPED)
    ),
    # Timers and output.
    (RUNNING, {}, Output(packed=[]), RUNNING, []),
    (FAIL, {"exit__due": 3}, ExitDue(), FAIL, [PublishExit(0)]),
    (FAIL, {}, ExitDue(), FAIL, []),
    (RUNNING, {"execution__state": KernelState.BUSY}, ExecutionLasted(), RUNNING, [Report(KernelState.BUSY)]),
    (RUNNING, {}, ExecutionLasted(), RUNNING, []),
]


@pytest.mark.parametrize(
    ("phase", "facts", "event", "to", "actions"),
    ROWS,
    ids=[f"{phase.value}-{type(event).__name__}-{index}" for index, (phase, _, event, *_) in enumerate(ROWS)],
)
def test_what_follows_from_an_event(
    phase: Phase, facts: Mapping[str, Any], event: Event, to: Phase, actions: list[Action]
) -> None:
    life = at(phase, **facts)
    assert life.feed(event) == actions
    assert life.phase is to


def _row_of(phase: Phase, facts: Mapping[str, Any], event: Event) -> Transition | None:
    found = lifecycle._ROWS.get((phase, type(event)), [])
    return next((row for row in found if row.condition is None or row.condition(at(phase, **facts), event)), None)


def test_each_row_of_the_table_is_tested() -> None:
    tested = {id(_row_of(phase, facts, event)) for phase, facts, event, *_ in ROWS}
    assert [row for row in TRANSITIONS if id(row) not in tested] == []


def test_each_row_can_be_printed() -> None:
    for row in TRANSITIONS:
        assert row.phases and row.event.__doc__
        assert row.condition is None or row.condition.__doc__
        assert row.steps and all(step.__doc__ and step.__name__ for step in row.steps), row


def test_what_is_known_besides_the_phase() -> None:
    life = Lifecycle()
    assert repr(life) == "<Lifecycle bound, launch 0, <PublishedExit None>>"
    life.feed(ComeBack(takes=False))
    life.feed(joined(7, info=INFO))
    assert (life.launch, life.is_found, life.state) == (7, True, KernelState.RUNNING)
    life.feed(GpusGone(launch=7, parent={}, error=WHY))
    life.feed(ended(1, launch=7))
    assert (life.has_lost_gpus, life.failure, life.exit.code) == (True, WHY, None)
    life.feed(ExitDue())
    assert life.exit.code == 1
    life.feed(Relaunch(is_joined=True))
    assert not life.has_lost_gpus
    assert life.exit.code is None
    life.feed(Checked())
    assert life.launch == 1
    assert not life.is_found
    life.feed(Answered(launch=1, info=INFO))
    assert (life.failure, life.state) == (None, KernelState.RUNNING)
    life.feed(STOPS)
    assert (life.state, life.exit.code) == (KernelState.STOPPED, 0)


def test_who_cancelled_before_it_heard_of_the_newest_launch_orders_the_one_behind_it() -> None:
    """Else what is on its way of the launch with that number would be taken for the new one's."""
    life = Lifecycle()
    life.feed(ComeBack(takes=True))
    life.feed(ShutdownAsked(restart=False, cancelled=StartCancelled(environment="e")))
    life.feed(joined(2))
    assert OrderLaunch(3) in life.feed(Relaunch(is_joined=True))
    # Ours is on its way: the relay does not know of it yet.
    life.feed(StartFailed(error=WHY))
    life.feed(joined(2))
    assert life.launch == 3


def test_a_kernel_in_a_new_container_was_asked_by_nobody_to_end() -> None:
    life = at(L)
    life.phase, life.execution.is_ending = Phase.CHECKING, True
    life.feed(Checked())
    assert not life.execution.is_ending


def test_a_failure_is_published_with_its_exit_code_once_it_was_read() -> None:
    life = at(L)
    life.feed(StartFailed(error=WHY))
    assert (life.exit.code, life.failure, life.state) == (None, WHY, KernelState.FAILED)
    life.feed(ExitDue())
    assert life.exit.code == WHY.exit_code


# -- no order of events leads nowhere

EVENTS: list[Event] = [
    *(LoginReported(text="touch it", needs_user=needs) for needs in (True, False)),
    Begin(),
    Check(),
    Discard(),
    Claim(),
    ComeBack(takes=False),
    *(Relaunch(is_joined=is_joined) for is_joined in (True, False)),
    Relaunch(is_joined=False, is_silent=True),
    Relaunch(is_joined=True, is_outdated=True),
    *(Signal(number=number, is_joined=is_joined) for number in (2, 9, 15) for is_joined in (True, False)),
    *(shutdown(restart=restart) for restart in (True, False)),
    STOPS,
    *(detach(end=end) for end in (True, False)),
    OutputDelivered(),
    Launched(),
    Checked(),
    *(StartFailed(error=WHY, on_request=on_request) for on_request in (True, False)),
    Removed(),
    NotRemoved(text="away"),
    *(Answered(launch=launch, info=INFO) for launch in (1, 2)),
    *(StartRefused(launch=launch, error=WHY) for launch in (1, 2)),
    *(
        ended(code, launch=launch, why=why, on_request=on_request)
        for launch in (1, 2)
        for code in (0, 3)
        for why in ("", "idle_timeout")
        for on_request in (True, False)
    ),
    *(joined(launch, info=info) for launch in (0, 1) for info in (None, INFO)),
    *(joined(1, ended=ended(code, launch=1, why=why)) for code in (0, 3) for why in ("", "max_lifetime")),
    LinkDown(error=LOST),
    JoinFailed(error=WHY),
    Paused(text="paused"),
    TAKEN,
    ContainerGone(error=WHY),
    *(GpusGone(launch=launch, parent=CELL, error=WHY) for launch in (1, 2)),
    Output(packed=[]),
    ExitDue(),
    ExecutionLasted(),
]
# What is done for a kernel that is not ours any more.
AFTERWARDS = (Remove, Forget, RecordStopWanted)


class Followed:
    """A lifecycle, and what carrying out its actions comes to: which ends of a start are still to come."""

    def __init__(self) -> None:
        self.life = Lifecycle()
        self.is_awaited = False
        self.is_exit_due = False

    def feed(self, event: Event) -> None:
        before = self.life.phase
        actions = self.life.feed(event)
        for action in actions:
            self._carry_out(action)
        self._check(before, actions)

    def _carry_out(self, action: Action) -> None:
        match action:
            case Launch() | CheckHosts() | JoinClaimed() | JoinRelay() | Replace() | FallBack() | AwaitAnswer():
                self.is_awaited = True
            case CancelStart() | StopAwaitingAnswer():
                self.is_awaited = False
            case PublishExit(after_seconds=after_seconds):
                self.is_exit_due = after_seconds > 0
            case RetractExit():
                self.is_exit_due = False

    def _check(self, before: Phase, actions: list[Action]) -> None:
        life = self.life
        if life.phase in STARTING:
            assert self.is_awaited, "a start that nothing ends"
        if life.state in (KernelState.FAILED, KernelState.EXITED):
            assert life.exit.code is not None or self.is_exit_due, "an end that nobody sees"
        if life.phase is STOPPED:
            assert life.exit.code is not None
        assert self.is_exit_due == (life.exit.due is not None)
        if life.state is KernelState.FAILED:
            assert life.failure is not None
        if life.state is KernelState.RUNNING:
            assert life.failure is None
        if before is STOPPED:
            assert life.phase is STOPPED, "no way back"
            told = [action for action in actions if not isinstance(action, AFTERWARDS)]
            assert all(isinstance(action, Report) and action.state is KernelState.STOPPING for action in told)


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
@settings(max_examples=500)
def test_no_order_of_events_breaks_what_holds(events: list[Event]) -> None:
    followed = Followed()
    for event in events:
        followed.feed(event)


@given(st.lists(st.sampled_from(EVENTS), max_size=20))
def test_nothing_that_follows_touches_the_container_of_a_kernel_that_another_took(events: list[Event]) -> None:
    life = at(RUNNING)
    assert ForgetContainer() in life.feed(TAKEN)
    done = [action for event in events for action in life.feed(event)]
    assert not [one for one in done if isinstance(one, AdoptContainer | Launch | JoinRelay | Replace | FallBack)]


def _reached() -> dict[Phase, set[Phase]]:
    """Where each phase that can be reached leads in one step."""
    ways: dict[Phase, set[Phase]] = {}
    waiting = [Phase.BOUND]
    while waiting:
        phase = waiting.pop()
        if phase in ways:
            continue
        ways[phase] = set()
        for event in EVENTS:
            for facts in ({}, {"has_lost_gpus": True}, {"is_found": True}, {"launch": 1}):
                life = at(phase, **facts)
                life.feed(event)
                ways[phase].add(life.phase)
        waiting += ways[phase]
    return ways


def test_each_phase_is_reached_and_leads_on() -> None:
    ways = _reached()
    assert set(ways) == set(Phase)
    for phase, to in ways.items():
        assert to - {phase} or phase is STOPPED, phase
        assert STOPPED in to or phase is STOPPED, phase


def test_each_start_may_come_to_a_kernel_and_may_fail() -> None:
    ways = _reached()
    for phase in STARTING:
        reached, waiting = set[Phase](), [phase]
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += ways[one] & {*STARTING, RUNNING, FAIL, GONE, UNDONE}
        assert RUNNING in reached, phase
        assert reached & {FAIL, GONE, UNDONE}, phase


def test_whatever_has_begun_a_start_a_failure_of_it_ends_it() -> None:
    for phase in (L, A, R):
        life = at(phase)
        life.feed(StartFailed(error=WHY))
        assert life.state is KernelState.FAILED
    life = at(C)
    life.feed(StartFailed(error=WHY))
    life.feed(StartFailed(error=WHY))
    assert life.state is KernelState.FAILED


# -- the exit as clients may see it


def test_an_exit_is_seen_after_its_time_and_not_before() -> None:
    end = PublishedExit()
    assert end.publish(3, after_seconds=0.05) == [PublishExit(0.05)]
    assert end.code is None
    assert repr(end) == "<PublishedExit None soon>"
    assert end.hasten() == [PublishExit(0)]
    assert end.code == 3
    end.publish(4)
    assert end.code == 3


def test_an_exit_that_somebody_asks_for_is_seen_at_once() -> None:
    end = PublishedExit()
    end.hasten()
    assert end.code is None
    end.publish(3, after_seconds=60)
    end.hasten()
    assert end.code == 3
    other = PublishedExit()
    other.publish(3, after_seconds=60)
    other.publish(0)
    assert other.code == 3


def test_an_exit_that_is_taken_back_is_never_seen() -> None:
    end = PublishedExit()
    end.publish(3, after_seconds=0.05)
    assert end.retract() == [RetractExit()]
    end.hasten()
    assert end.code is None
    end.publish(0)
    end.retract()
    assert end.code is None


# -- busy and idle


def said(
    kind: str, content: Any, channel: int = frames.IOPUB, parent: str = "execute_request", request: str = "cell"
) -> bytes:
    asked = {"msg_type": parent, "msg_id": request} if request else {}
    rest = [json.dumps(part).encode() for part in ({"msg_type": kind}, asked, {}, content)]
    return frames.pack(frames.Message(channel, 1, [b"topic", b"<IDS|MSG>", b"", *rest]))


def status(state: str, request: str = "cell") -> bytes:
    return said("status", {"execution_state": state}, request=request)


def test_a_state_that_lasts_is_told_once() -> None:
    watched = ExecutionState()
    assert watched.read([status("busy"), said("stream", {"text": "x"})]) == [WatchExecution()]
    assert (watched.state, repr(watched)) == (KernelState.BUSY, "<ExecutionState busy>")
    assert watched.lasted() == [Report(KernelState.BUSY)]
    assert watched.read([status("busy")]) == []
    assert watched.lasted() == []
    assert watched.read([status("idle")]) == [WatchExecution()]
    assert watched.lasted() == [Report(KernelState.IDLE)]


def test_a_kernel_is_busy_until_the_last_of_its_requests_is_answered() -> None:
    watched = ExecutionState()
    watched.read([status("busy", "cell"), status("busy", "debug")])
    assert watched.read([status("idle", "debug")]) == []
    assert str(watched.state) == "busy"
    assert watched.read([status("idle", "")]) == []
    assert watched.read([status("idle", "cell")]) == [WatchExecution()]
    assert str(watched.state) == "idle"


def test_a_kernel_that_was_found_busy_is_idle_after_what_it_was_busy_with() -> None:
    watched = ExecutionState()
    watched.set(KernelState.BUSY)
    watched.read([status("busy", "debug"), status("idle", "debug")])
    assert str(watched.state) == "busy"
    watched.read([status("idle", "cell from before")])
    assert str(watched.state) == "idle"


def test_a_kernel_that_was_found_busy_with_a_request_hears_its_beginning_again_and_is_idle_after_its_end() -> None:
    watched = ExecutionState()
    watched.set(KernelState.BUSY, "cell")
    watched.read([status("busy", "cell"), status("busy", "interrupt"), status("idle", "interrupt")])
    assert str(watched.state) == "busy"
    watched.read([status("idle", "cell")])
    assert str(watched.state) == "idle"


def test_requests_that_never_end_take_no_more_memory_than_a_thousand() -> None:
    watched = ExecutionState()
    watched.read([status("busy", f"{n}") for n in range(1500)])
    assert len(watched._at_work) <= 1001
    watched.set(KernelState.IDLE)
    assert (watched.state, watched._at_work) == (KernelState.IDLE, set())


def test_a_kernel_that_is_asked_to_end_is_ending_and_not_busy() -> None:
    watched = ExecutionState()
    watched.read([status("busy"), status("idle")])
    assert not watched.is_ending
    watched.read([said("status", {"execution_state": "busy"}, parent="shutdown_request")])
    assert (watched.is_ending, watched.state, watched.lasted()) == (True, KernelState.IDLE, [])


def test_a_short_cell_is_not_told() -> None:
    watched = ExecutionState()
    assert watched.read([status("busy"), status("idle")]) == [WatchExecution()]
    assert watched.lasted() == []


def test_what_is_known_otherwise_is_told_as_well() -> None:
    watched = ExecutionState()
    assert watched.set(KernelState.BUSY) == [WatchExecution()]
    assert watched.lasted() == [Report(KernelState.BUSY)]


@pytest.mark.parametrize(
    "message",
    [
        said("stream", {"text": '"execution_state": "busy"'}),
        said("status", {"execution_state": "starting"}),
        said("status", {"execution_state": "busy"}, frames.SHELL),
        said("status", {"execution_state": "busy", "more": "x" * 5000}),
        frames.pack(frames.Message(frames.IOPUB, 1, [b'"execution_state"'])),
    ],
)
def test_nothing_else_counts(message: bytes) -> None:
    watched = ExecutionState()
    assert watched.read([message]) == []
    assert watched.state == "idle"


def test_a_kernel_that_is_not_ours_any_more_is_not_told_of() -> None:
    life = at(RUNNING)
    assert life.feed(Output(packed=[status("busy")])) == [WatchExecution()]
    assert CloseChannels() in life.feed(STOPS)
    assert life.feed(ExecutionLasted()) == []


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"stream"],
        [b"stream", frames.DELIMITER, b"", b"nojson", b"{}", b"{}", b'"execution_state"'],
        [b"status", frames.DELIMITER, b"", b'{"msg_type": "status"}'],
        [b"status", frames.DELIMITER, b"", b'{"msg_type": "status"}', b"[]", b"{}", b'{"execution_state": "busy"}'],
        [b"status", frames.DELIMITER, b"", b'{"msg_type": "status"}', b"{}", b"{}", b'["execution_state"]'],
        [b"status", frames.DELIMITER, b"", b'{"msg_type": "status"}', b"{}", b"{}", b'{"execution_state": []}'],
        [b"status", frames.DELIMITER, b"", b"[" * 900, b"{}", b"{}", b'"execution_state"'],
        [b'"execution_state"', b"\xff"],
    ],
)
def test_what_is_no_status_message_says_nothing(parts: list[bytes]) -> None:
    execution = ExecutionState()
    busy = [b"status", frames.DELIMITER, b"", b'{"msg_type": "status"}', b"{}", b"{}", b'{"execution_state": "busy"}']
    bad = frames.pack(frames.Message(frames.IOPUB, 1, parts))
    assert execution.read([bad, b"", bytes([frames.IOPUB]) + b'"execution_state"']) == []
    assert execution.read([bad, frames.pack(frames.Message(frames.IOPUB, 1, busy))]) != []
    assert execution.state is KernelState.BUSY
