"""Decide what follows from each thing that happens to one kernel. Pure: no I/O, no clock, no task.

Theory of operation. Whatever happens to a kernel is an `Event`: a request, the end of a launch, news of the relay or
the link, a timer. `Lifecycle.feed` takes the first row of `TRANSITIONS` for phase and event whose condition holds; its
steps note what is to be known later and return `Action`s, to be carried out in order before the next event is fed. An
event without a row changes nothing: it came too late, or means nothing in that phase. Nothing else changes a phase.
* A start is under way: LAUNCHING owns the container that it makes, so its failure removes that. CLAIMING, JOINING and
  AWAITING work with a container that is there, and their failure leaves it. CHECKING removes the old container where
  there is one, and asks the hosts what they can give.
* The kernel is there: RUNNING; or its process has ended and its container waits for a restart: EXITED.
* It has failed: FAILED with its relay still joined, GONE when its container has ended, TAKEN when another owner has it
  (a restart is refused: what runs there is theirs), UNDONE while what its start has left is removed.
* This process's part ends: DETACHING until the clients have all that came, STOPPED for good.
Launches of the kernel process are numbered; what the relay says of another than the newest is no news. Where a sentence
explains an exit its code is published later, so that clients read that first. While the link is lost nothing is known
to have ended, and no phase changes. Events, actions and table are one thing: none is read without the others.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kernelbridge.errors import KernelBridgeError, LinkLost, wrapped
from kernelbridge.kernel.state import KernelState
from kernelbridge.protocol import frames
from kernelbridge.protocol.json_object import parse_object

# Clients ask whether a kernel is alive every 1 to 3 s and drop their wait for an answer when it is not.
PUBLISHED_AFTER_SECONDS = 3.0
# A shorter cell is no news for events and REST, where each one costs a validation.
LASTING_SECONDS = 0.5
# A status message is small; larger ones need not be searched.
_LONGEST_STATUS_BYTES = 4096
_STATUS_MARK = b'"execution_state"'
_UNHEARD = ""
# A kernel that says no more than `busy` takes no more memory than for these.
_MOST_AT_WORK = 1000


class Phase(enum.Enum):
    """Where a kernel is in its life."""

    BOUND = "bound"  # its endpoints answer; nothing is started
    LAUNCHING = "launching"  # its container is made, its relay joined, its kernel awaited
    CLAIMING = "claiming"  # its relay is there, left under our claim, and not joined yet
    JOINING = "joining"  # its relay is there, with a kernel, and not joined yet
    AWAITING = "awaiting"  # its relay was joined, and the newest launch has not answered
    CHECKING = "checking"  # what was before is removed or given up, and the hosts are checked
    RUNNING = "running"  # it answers
    EXITED = "exited"  # the kernel process; its container and relay are there
    FAILED = "failed"  # it has a relay still
    GONE = "gone"  # failed: its container has ended
    TAKEN = "taken"  # failed: another owner has it, container and all
    UNDONE = "undone"  # failed: what its start has left is being removed
    DETACHING = "detaching"  # it is left running, once clients have all that came from it
    STOPPED = "stopped"  # this process has no part in it any more

    @property
    def state(self) -> KernelState:
        """What people are told of it."""
        return _STATES.get(self, KernelState.STARTING)


_STATES = {
    Phase.RUNNING: KernelState.RUNNING,
    Phase.EXITED: KernelState.EXITED,
    Phase.FAILED: KernelState.FAILED,
    Phase.GONE: KernelState.FAILED,
    Phase.TAKEN: KernelState.FAILED,
    Phase.UNDONE: KernelState.FAILED,
    Phase.DETACHING: KernelState.STOPPED,
    Phase.STOPPED: KernelState.STOPPED,
}
# A start is under way: a client's shutdown cancels it, a restart joins it.
STARTING = (Phase.LAUNCHING, Phase.CLAIMING, Phase.JOINING, Phase.AWAITING, Phase.CHECKING)
# There is a relay, joined at this moment or not, and no start under way.
HELD = (Phase.RUNNING, Phase.EXITED, Phase.FAILED)
# This process has a part in it.
OURS = tuple(phase for phase in Phase if phase not in (Phase.DETACHING, Phase.STOPPED))


# -- events


@dataclass(frozen=True, kw_only=True)
class Begin:
    """The checks are over: start it in a new container."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Check the hosts behind the waiting channels, then start it in a new container."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Start it in the container that was left under our claim."""


@dataclass(frozen=True, kw_only=True)
class ComeBack:
    """Join the relay of a kernel that runs already; `takes` it from another owner."""

    takes: bool


@dataclass(frozen=True, kw_only=True)
class Relaunch:
    """Start the kernel process again; `is_silent`: our relay runs, and said nothing however often it was asked.

    `is_outdated`: the config asks for another container than the one that is there.
    """

    is_joined: bool
    is_silent: bool = False
    is_outdated: bool = False


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Send a signal to the kernel's process group."""

    number: int
    is_joined: bool


@dataclass(frozen=True, kw_only=True)
class ShutdownAsked:
    """A client asked for the end, or a restart, of a kernel that cannot be asked; `cancelled` is the sentence."""

    restart: bool
    cancelled: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class Discard:
    """Remove what a failed kernel has left; who asks for it goes on to hear why it is not there."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """End the kernel and remove its container; `cancelled` is the sentence for those who wait for its start."""

    cancelled: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class Detach:
    """End this process's part in it; with `end` its process ends too, and may be taken up under a claim."""

    end: bool
    cancelled: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class OutputDelivered:
    """Clients have all that came before the kernel was detached."""


@dataclass(frozen=True, kw_only=True)
class Launched:
    """The container is there, and its relay joined."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was before is gone, and a host can give what is wanted now."""


@dataclass(frozen=True, kw_only=True)
class StartFailed:
    """The launch, the claim, the check or the wait for an answer came to nothing; on request, or by itself."""

    error: KernelBridgeError
    on_request: bool = False


@dataclass(frozen=True, kw_only=True)
class Removed:
    """The container is removed, or there was none."""


@dataclass(frozen=True, kw_only=True)
class NotRemoved:
    """The container is there still, mostly because its host cannot be reached; `text` says why."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A launch answers: the content of its kernel_info."""

    launch: int
    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StartRefused:
    """The relay could not start the kernel process of a launch."""

    launch: int
    error: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class ProcessEnded:
    """The kernel process of a launch has ended; `why` is the limit of the user's that ended it, or empty."""

    launch: int
    code: int
    why: str
    # Whether it was ended on request.
    on_request: bool
    error: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The relay's stream is there, or there again. The rest is the relay's word on its newest launch."""

    gpu_ids: tuple[str, ...]
    launch: int
    # Content of its kernel_info, once it answers.
    info: dict[str, Any] | None = None
    # Header of the request that it works on.
    running: Mapping[str, Any] | None = None
    ended: ProcessEnded | None = None


@dataclass(frozen=True, kw_only=True)
class LinkDown:
    """The stream is not there at the moment; it is being joined again."""

    error: LinkLost


@dataclass(frozen=True, kw_only=True)
class JoinFailed:
    """The stream could not be joined at this time; unless it `may_pass`, somebody has to do something."""

    error: KernelBridgeError
    may_pass: bool = True


@dataclass(frozen=True, kw_only=True)
class LoginReported:
    """A login to the host is so far; it `needs_user` where it waits for a person."""

    text: str
    needs_user: bool


@dataclass(frozen=True, kw_only=True)
class Paused:
    """The container is paused, and `text` says so; or, where that is empty, it goes on."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Another has the kernel: `held` is the sentence for a start, `taken` for a kernel that we had."""

    held: KernelBridgeError
    taken: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class ContainerGone:
    """The container has ended, or was removed by another program."""

    error: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class GpusGone:
    """The container of a launch cannot reach its GPUs any more; `parent` is the header of the running cell."""

    launch: int
    parent: Mapping[str, Any]
    error: KernelBridgeError


@dataclass(frozen=True, kw_only=True)
class Output:
    """The kernel said something: packed messages."""

    packed: Sequence[frames.Buffer]


@dataclass(frozen=True, kw_only=True)
class ExitDue:
    """The time has come to publish the exit."""


@dataclass(frozen=True, kw_only=True)
class ExecutionLasted:
    """The time has come to look whether the kernel is still busy, or idle."""


Event = (
    Begin | Check | Claim | ComeBack | Relaunch | Signal | ShutdownAsked | Discard | Stop | Detach | OutputDelivered
    | Launched | Checked | StartFailed | Removed | NotRemoved
    | Answered | StartRefused | ProcessEnded | Joined | LinkDown | JoinFailed | LoginReported | Paused | Taken
    | ContainerGone | GpusGone | Output | ExitDue | ExecutionLasted
)  # fmt: skip


# -- actions: for people and clients


@dataclass(frozen=True)
class Report:
    """Tell those who watch the fleet what has become of the kernel."""

    state: KernelState
    text: str = ""


@dataclass(frozen=True)
class Progress:
    """Say what the start is doing: to the waiting cell, to those who watch the fleet, to the log."""

    text: str


@dataclass(frozen=True)
class LogFailure:
    """Log why the kernel is not there."""

    error: KernelBridgeError
    on_request: bool


@dataclass(frozen=True)
class HoldOutput:
    """Hold all output until a client is there that hears it."""


@dataclass(frozen=True)
class QueueRequests:
    """Queue what clients ask from here on; `error` answers what the kernel has not answered."""

    why: str
    error: KernelBridgeError | None = None


@dataclass(frozen=True)
class OpenChannels:
    """Pass the queue on to this launch, and all that comes; `busy` is the header of the request it works on."""

    launch: int
    info: dict[str, Any]
    busy: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FailWaiting:
    """Answer all who wait, and all who ask from now on, with the error."""

    error: KernelBridgeError


@dataclass(frozen=True)
class SuspendChannels:
    """Answer what is urgent here, and let the rest wait in the journal."""

    error: LinkLost


@dataclass(frozen=True)
class ResumeChannels:
    """Let the kernel answer again."""


@dataclass(frozen=True)
class PrintNotice:
    """Print a line to stderr in the cell of a request."""

    parent: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class ExplainWait:
    """Say in the cell that runs why nothing happens; without a text it is over."""

    text: str


@dataclass(frozen=True)
class Interrupt:
    """Interrupt the cell that runs, or those that wait for the kernel."""


@dataclass(frozen=True)
class CloseChannels:
    """Close the endpoints."""


# -- actions: timers


@dataclass(frozen=True)
class PublishExit:
    """Feed ExitDue after so many seconds; at 0 the exit is published already, and nothing is due."""

    after_seconds: float


@dataclass(frozen=True)
class RetractExit:
    """Feed no ExitDue: a kernel is to come."""


@dataclass(frozen=True)
class WatchExecution:
    """Feed ExecutionLasted after LASTING_SECONDS, unless that is under way."""


@dataclass(frozen=True)
class UnwatchExecution:
    """Feed no ExecutionLasted."""


@dataclass(frozen=True)
class AwaitAnswer:
    """Feed StartFailed when `what` has taken longer than the environment allows."""

    what: str


@dataclass(frozen=True)
class StopAwaitingAnswer:
    """Do not feed StartFailed: the answer is there."""


# -- actions: starts


@dataclass(frozen=True)
class Launch:
    """Make a container and join its relay; feed Launched or StartFailed."""


@dataclass(frozen=True)
class JoinClaimed:
    """Join the relay that was left under our claim; feed StartFailed where that cannot be."""


@dataclass(frozen=True)
class JoinRelay:
    """Join the relay as soon as that can be, and again whenever the link is lost."""

    takes: bool


@dataclass(frozen=True)
class CheckHosts:
    """Check what is wanted; feed Checked or StartFailed."""


@dataclass(frozen=True)
class Replace:
    """Remove the container, then check what is wanted by now; feed Checked or StartFailed."""


@dataclass(frozen=True)
class FallBack:
    """Give up what was claimed, and check for a start under an id of its own; feed Checked or StartFailed."""

    error: KernelBridgeError


@dataclass(frozen=True)
class CancelStart:
    """Cancel the launch, claim or check under way, and the wait for an answer."""


# -- actions: on the host


@dataclass(frozen=True)
class OrderLaunch:
    """Drop the requests for the launch before, and order this one from the relay."""

    launch: int


@dataclass(frozen=True)
class SendSignal:
    """Have the relay send a signal to the kernel's process group."""

    number: int


@dataclass(frozen=True)
class StopReceiving:
    """Receive nothing more: what comes from now on is for whoever joins next."""


@dataclass(frozen=True)
class Disconnect:
    """Close the stream."""


@dataclass(frozen=True)
class AdoptContainer:
    """Have Remove remove a container that another process made."""


@dataclass(frozen=True)
class ForgetContainer:
    """Leave the container to whoever has it: Remove does nothing to it."""


@dataclass(frozen=True)
class Remove:
    """Disconnect, then remove the container where there is one; feed Removed or NotRemoved."""


# -- actions: on the record of this machine


@dataclass(frozen=True)
class SetGpus:
    """Set which GPUs it has."""

    gpu_ids: tuple[str, ...]


@dataclass(frozen=True)
class Remember:
    """Record that this process has the kernel; `unless_held` by another that lives."""

    unless_held: bool = False


@dataclass(frozen=True)
class RecordDetached:
    """Record the claim, if there is one, under which the kernel may be taken up."""


@dataclass(frozen=True)
class RecordStopWanted:
    """Record that whoever reaches the host should remove the container."""


@dataclass(frozen=True)
class Forget:
    """Forget the kernel's record: ours, or whoever has written it."""

    whoever_has_it: bool = False


ForPeople = Report | Progress | LogFailure
ForClients = (
    HoldOutput | QueueRequests | OpenChannels | FailWaiting | SuspendChannels | ResumeChannels | PrintNotice
    | ExplainWait | Interrupt | CloseChannels
)  # fmt: skip
ForTimers = PublishExit | RetractExit | WatchExecution | UnwatchExecution | AwaitAnswer | StopAwaitingAnswer
ForStart = Launch | CheckHosts | JoinClaimed | JoinRelay | Replace | FallBack | CancelStart
ForHost = OrderLaunch | SendSignal | StopReceiving | Disconnect | AdoptContainer | ForgetContainer | Remove
ForRecord = SetGpus | Remember | RecordDetached | RecordStopWanted | Forget
Action = ForPeople | ForClients | ForTimers | ForStart | ForHost | ForRecord


# -- what is to be known besides the phase


class PublishedExit:
    """A kernel's exit code as clients may see it: not before they can have read the messages that explain it.

    `code` may be read from any thread.
    """

    def __init__(self) -> None:
        # None while the kernel lives, or nobody knows otherwise.
        self.code: int | None = None
        # What is published when ExitDue comes; None while nothing is due.
        self.due: int | None = None

    def __repr__(self) -> str:
        return f"<PublishedExit {self.code}{' soon' if self.due is not None else ''}>"

    def publish(self, code: int, *, after_seconds: float = 0) -> list[Action]:
        """Publish an exit; one that is published already stays, and one that is due comes first."""
        if after_seconds:
            self.due = code
            return [PublishExit(after_seconds)]
        if self.due is not None:
            code, self.due = self.due, None
        if self.code is None:
            self.code = code
        return [PublishExit(0)]

    def hasten(self) -> list[Action]:
        """Publish now what is due: somebody asked for the end."""
        return [] if self.due is None else self.publish(self.due)

    def retract(self) -> list[Action]:
        """Take the exit back."""
        self.code = self.due = None
        return [RetractExit()]


class ExecutionState:
    """Whether a kernel is busy, read off its own status messages; news once it has lasted a moment.

    Clients get every status themselves; this is for events and REST.
    """

    def __init__(self) -> None:
        self.state = KernelState.IDLE
        # The requests that it works on: a debugger's is over long before the cell beside it. _UNHEARD is one whose
        # beginning nobody here has heard.
        self._at_work: set[str] = set()
        # Whether somebody asked it to end, by its own word; reset by the next launch.
        self.is_ending = False
        # What was reported last.
        self._reported = KernelState.IDLE

    def __repr__(self) -> str:
        return f"<ExecutionState {self.state}>"

    def read(self, packed: Sequence[frames.Buffer]) -> list[Action]:
        """Take in what the kernel said; what is no message says nothing."""
        found = [action for one in packed if _may_be_status(one) for action in self._read(one)]
        return found[:1]

    def _read(self, packed: frames.Buffer) -> list[Action]:
        try:
            parts = frames.unpack(packed).parts
            at = parts.index(frames.DELIMITER)
            if parse_object(parts[at + 2]).get("msg_type") != "status":
                return []
            parent, content = parse_object(parts[at + 3]), parse_object(parts[at + 5])
        except (frames.WireError, LookupError, ValueError):
            return []
        if parent.get("msg_type") == "shutdown_request":
            self.is_ending = True  # No work, and its process may be gone before it says idle.
            return []
        request = str(parent.get("msg_id") or _UNHEARD)
        match content.get("execution_state"):
            case KernelState.BUSY:
                self._at_work.add(request if len(self._at_work) < _MOST_AT_WORK else _UNHEARD)
            case KernelState.IDLE:
                self._at_work.discard(request if request in self._at_work else _UNHEARD)
            case _:
                return []
        state = KernelState.BUSY if self._at_work else KernelState.IDLE
        return [] if state is self.state else self._note(state)

    def set(self, state: KernelState, request: str = _UNHEARD) -> list[Action]:
        """Note that the kernel is busy, with a request, or idle now; told unless it changes again at once."""
        self._at_work = {request} if state is KernelState.BUSY else set()
        return self._note(state)

    def _note(self, state: KernelState) -> list[Action]:
        self.state = state
        return [WatchExecution()]

    def lasted(self) -> list[Action]:
        """Tell the state where it is news."""
        if self.state == self._reported:
            return []
        self._reported = self.state
        return [Report(self.state)]


def _may_be_status(packed: frames.Buffer) -> bool:
    return len(packed) < _LONGEST_STATUS_BYTES and packed[:1] == bytes([frames.IOPUB]) and _STATUS_MARK in bytes(packed)


class Lifecycle:
    """One kernel's phase, and what `TRANSITIONS` makes of events in it; changed by `feed` alone."""

    def __init__(self) -> None:
        self.phase = Phase.BOUND
        # Number of the newest launch of the kernel process; 0 before the first is known.
        self.launch = 0
        # Why the kernel is not there, as a sentence for people. Set when it fails or dies, cleared when it runs.
        self.failure: KernelBridgeError | None = None
        # Whether the relay was there before us, and has welcomed us.
        self.is_found = False
        # Whether its container has lost its GPUs: a restart makes another one then.
        self.has_lost_gpus = False
        self.exit = PublishedExit()
        self.execution = ExecutionState()

    def __repr__(self) -> str:
        return f"<Lifecycle {self.phase.value}, launch {self.launch}, {self.exit!r}>"

    @property
    def state(self) -> KernelState:
        """What people are told of the phase."""
        return self.phase.state

    def feed(self, event: Event) -> list[Action]:
        """Take in what happened; return what is to be done, in order."""
        for row in _ROWS.get((self.phase, type(event)), ()):
            if row.condition is None or row.condition(self, event):
                actions = [action for step in row.steps for action in step(self, event)]
                self.phase = row.to or self.phase
                return actions
        return []


# -- conditions and steps: their first line is the table's text. An event is of the type that their rows name.

Condition = Callable[[Lifecycle, Any], bool]
Step = Callable[[Lifecycle, Any], Iterable[Action]]


def is_newest(life: Lifecycle, event: Answered | StartRefused | ProcessEnded | GpusGone) -> bool:
    """It is of the newest launch."""
    return event.launch == life.launch


def is_by_limit(life: Lifecycle, event: ProcessEnded | Joined) -> bool:
    """The newest launch was ended by a limit of the user's."""
    ended = _ended(event)
    return ended is not None and _is_news(life, event) and bool(ended.why)


def is_asked_for(life: Lifecycle, event: ProcessEnded | Joined) -> bool:
    """The newest launch has ended as it was asked to: on request, or with exit code 0.

    Asked to end by a client, it has answered all that it was asked; `os._exit(0)` in a cell has not.
    """
    ended = _ended(event)
    if ended is None or not _is_news(life, event):
        return False
    return ended.code == 0 or ended.on_request or life.execution.is_ending


def is_death(life: Lifecycle, event: ProcessEnded | Joined) -> bool:
    """The newest launch has ended by itself."""
    return _ended(event) is not None and _is_news(life, event)


def answers(life: Lifecycle, event: Joined) -> bool:
    """Its kernel answers."""
    return event.info is not None


def is_in_place(life: Lifecycle, event: Relaunch) -> bool:
    """Its container is what is wanted, has its GPUs still, and a relay that may answer."""
    return not (life.has_lost_gpus or event.is_silent or event.is_outdated)


def is_silent(life: Lifecycle, event: Relaunch) -> bool:
    """Its relay says nothing, however often it is asked."""
    return event.is_silent


def has_launched(life: Lifecycle, event: Joined) -> bool:
    """A launch is known."""
    return life.launch > 0


def is_interrupt(life: Lifecycle, event: Signal) -> bool:
    """It only interrupts."""
    return event.number == signal.SIGINT


def is_out_of_reach(life: Lifecycle, event: Signal) -> bool:
    """It ends the process, and the relay is out of reach at this moment."""
    return not event.is_joined


def needs_help(life: Lifecycle, event: JoinFailed) -> bool:
    """It will not pass by itself."""
    return not event.may_pass


def does_need_user(life: Lifecycle, event: LoginReported) -> bool:
    """It goes on only once somebody has done something."""
    return event.needs_user


def is_now(life: Lifecycle, event: Paused) -> bool:
    """It is paused, and does not go on."""
    return bool(event.text)


def is_cancel(life: Lifecycle, event: ShutdownAsked) -> bool:
    """Not for a restart."""
    return not event.restart


def runs_on(life: Lifecycle, event: Detach) -> bool:
    """It is to run on."""
    return not event.end


def was_found(life: Lifecycle, event: Detach) -> bool:
    """Its relay was there before us."""
    return life.is_found


def is_on_request(life: Lifecycle, event: StartFailed) -> bool:
    """It was cancelled on request."""
    return event.on_request


def _ended(event: ProcessEnded | Joined) -> ProcessEnded | None:
    return event.ended if isinstance(event, Joined) else event


def _is_news(life: Lifecycle, event: ProcessEnded | Joined) -> bool:
    return isinstance(event, Joined) or event.launch == life.launch


def expect_first(life: Lifecycle, event: Event) -> list[Action]:
    """Number the launch 1, in a container of its own."""
    life.launch, life.is_found, life.execution.is_ending = 1, False, False
    return [Launch()]


def expect_next(life: Lifecycle, event: Event) -> list[Action]:
    """Order the next launch from the relay."""
    life.launch += 1
    life.execution.is_ending = False
    return [OrderLaunch(life.launch)]


def note_relay(life: Lifecycle, event: Joined) -> list[Action]:
    """Take the launch from the relay that was found, and record that this process has it."""
    life.launch, life.is_found = event.launch, True
    return [Remember()]


def note_launch(life: Lifecycle, event: Joined) -> list[Action]:
    """Number the next launch behind all that the relay knows, also where the start was cancelled before it joined."""
    life.launch = max(life.launch, event.launch)
    return []


def open_channels(life: Lifecycle, event: Answered | Joined) -> list[Action]:
    """Let clients through to the kernel."""
    assert event.info is not None
    life.failure = None
    busy = event.running if isinstance(event, Joined) else None
    state = KernelState.BUSY if busy else KernelState.IDLE
    opened: list[Action] = [StopAwaitingAnswer(), OpenChannels(life.launch, event.info, busy)]
    return [*opened, *life.execution.set(state, str((busy or {}).get("msg_id") or _UNHEARD)), Report(state)]


def link_up(life: Lifecycle, event: Joined) -> list[Action]:
    """Let the kernel answer again, with the GPUs that its relay names."""
    return [ResumeChannels(), SetGpus(event.gpu_ids)]


def link_down(life: Lifecycle, event: LinkDown) -> list[Action]:
    """Let requests wait in the journal, and tell that the link is lost."""
    return [SuspendChannels(event.error), Report(KernelState.LINK_LOST, str(event.error))]


def say_sentence(life: Lifecycle, event: JoinFailed) -> list[Action]:
    """Say why the relay cannot be joined."""
    return [Progress(event.error.sentence)]


def explain_failure(life: Lifecycle, event: JoinFailed) -> list[Action]:
    """Say in the cell that runs what somebody has to do before the link is back."""
    return [ExplainWait(_in_lines(event.error))]


def _in_lines(error: KernelBridgeError) -> str:
    """Return an error as a cell shows it: VS Code wraps no line."""
    return "\n".join(line for part in error.parts for line in wrapped(part))


def say_stage(life: Lifecycle, event: LoginReported) -> list[Action]:
    """Say how far the login is."""
    return [Progress(event.text)]


def explain_stage(life: Lifecycle, event: LoginReported) -> list[Action]:
    """Say in the cell that runs, and to those who watch the fleet, whom the login waits for."""
    return [ExplainWait(event.text), Report(KernelState.LINK_LOST, event.text)]


def explain_pause(life: Lifecycle, event: Paused) -> list[Action]:
    """Say in the cell that runs that the container is paused."""
    return [ExplainWait(event.text)]


def say_pause(life: Lifecycle, event: Paused) -> list[Action]:
    """Say that the container is paused."""
    return [Progress(event.text)]


def report_execution(life: Lifecycle, event: Event) -> list[Action]:
    """Tell whether the kernel is busy."""
    return [Report(life.execution.state)]


def say_restart(life: Lifecycle, event: Relaunch) -> list[Action]:
    """Say what the restart waits for."""
    return [Progress("restarting the kernel" if event.is_joined else "waiting for the link")]


def refuse(life: Lifecycle, event: Relaunch) -> list[Action]:
    """Start nothing, and say again who has the kernel."""
    return [Report(KernelState.FAILED, str(life.failure))]


def fail(life: Lifecycle, event: Event) -> list[Action]:
    """Answer all who wait with the sentence, and publish an exit 3 s later; at once where it was on request."""
    error, on_request = _failure(life, event)
    life.failure = error
    failed: list[Action] = [LogFailure(error, on_request), FailWaiting(error), Report(KernelState.FAILED, str(error))]
    return [*failed, *life.exit.publish(error.exit_code, after_seconds=0 if on_request else PUBLISHED_AFTER_SECONDS)]


def _failure(life: Lifecycle, event: Event) -> tuple[KernelBridgeError, bool]:
    """Return why a kernel is not there, and whether that was on request."""
    match event:
        case StartFailed(error=error, on_request=on_request):
            return error, on_request
        case ShutdownAsked(cancelled=error) | Stop(cancelled=error) | Detach(cancelled=error):
            return error, True
        case Taken(held=held, taken=taken):
            return (held if life.phase in STARTING else taken), False
        case Joined(ended=ProcessEnded(error=error)):
            return error, False
        case StartRefused(error=error) | ProcessEnded(error=error) | ContainerGone(error=error):
            return error, False
    raise AssertionError(event)


def end_as_asked(life: Lifecycle, event: ProcessEnded | Joined) -> list[Action]:
    """Queue what clients ask for the next launch, and publish the exit code at once."""
    ended = _ended(event)
    assert ended is not None
    told = None if ended.on_request else ended.error
    return [StopAwaitingAnswer(), QueueRequests("the kernel has ended", told), *life.exit.publish(ended.code)]


def end_by_itself(life: Lifecycle, event: ProcessEnded | Joined) -> list[Action]:
    """Answer all who wait with its last words, and publish the exit code 3 s later."""
    ended = _ended(event)
    assert ended is not None
    life.failure = ended.error
    told: list[Action] = [StopAwaitingAnswer(), FailWaiting(ended.error), Report(KernelState.EXITED, str(ended.error))]
    return [*told, *life.exit.publish(ended.code, after_seconds=PUBLISHED_AFTER_SECONDS)]


def notice_gpus(life: Lifecycle, event: GpusGone) -> list[Action]:
    """Print in the running cell that the GPUs are lost; the next restart makes another container."""
    life.has_lost_gpus = True
    text = f"[kernelbridge: {_in_lines(event.error)}]\n"
    return [PrintNotice(event.parent, text), Report(life.execution.state, str(event.error))]


def reset_gpus(life: Lifecycle, event: Event) -> list[Action]:
    """Forget that the container before had lost its GPUs."""
    life.has_lost_gpus = False
    return []


def hasten_exit(life: Lifecycle, event: Event) -> list[Action]:
    """Publish now what was to be published soon."""
    return life.exit.hasten()


def publish_signal(life: Lifecycle, event: Signal) -> list[Action]:
    """Publish the exit that the signal means."""
    return life.exit.publish(-event.number)


def send_signal(life: Lifecycle, event: Signal) -> list[Action]:
    """Have the relay send the signal."""
    return [SendSignal(event.number)]


def publish_end(life: Lifecycle, event: Event) -> list[Action]:
    """Publish exit code 0, unless another is published or due."""
    return life.exit.publish(0)


def publish_due(life: Lifecycle, event: Event) -> list[Action]:
    """Publish what is due."""
    return life.exit.hasten()


def retract_exit(life: Lifecycle, event: Event) -> list[Action]:
    """Take the exit back: a kernel is to come."""
    return life.exit.retract()


def read_output(life: Lifecycle, event: Output) -> list[Action]:
    """Read off the kernel's messages whether it is busy, and whether a client asked it to end."""
    return life.execution.read(event.packed)


def report_lasting(life: Lifecycle, event: Event) -> list[Action]:
    """Tell whether the kernel is busy, where that is news."""
    return life.execution.lasted()


def close(life: Lifecycle, event: Event) -> list[Action]:
    """Close the endpoints."""
    stopped = KernelState.DETACHED if isinstance(event, OutputDelivered) else KernelState.STOPPED
    return [*life.exit.publish(life.exit.code or 0), UnwatchExecution(), Report(stopped), CloseChannels()]


def note_not_removed(life: Lifecycle, event: NotRemoved) -> list[Action]:
    """Record that the container is to be removed later, and tell so."""
    return [RecordStopWanted(), Report(KernelState.STOPPING, event.text)]


def fall_back(life: Lifecycle, event: StartFailed) -> list[Action]:
    """Give up what was claimed, and check for a start of its own."""
    return [Disconnect(), FallBack(event.error)]


def say(text: str) -> Step:
    """Return the step that says a text."""
    return do(Progress(text))


def do(*actions: Action) -> Step:
    """Return the step that only does something."""

    def step(life: Lifecycle, event: Event) -> list[Action]:
        return list(actions)

    step.__name__ = ", ".join(type(action).__name__ for action in actions)
    step.__doc__ = " ".join((type(action).__doc__ or "").splitlines()[0] for action in actions)
    return step


def join_relay(life: Lifecycle, event: ComeBack) -> list[Action]:
    """Join the relay that is there, as soon as that can be."""
    return [JoinRelay(event.takes)]


# -- the table


class Transition(NamedTuple):
    """One row: in these phases this event, under this condition, leads to that phase (None: the same) by these steps.

    Of several rows for one phase and event the first counts whose condition holds.
    """

    phases: tuple[Phase, ...]
    event: type[Any]
    condition: Condition | None
    to: Phase | None
    steps: tuple[Step, ...]


_EVERY = tuple(Phase)
(
    _BOUND,
    _LAUNCHING,
    _CLAIMING,
    _JOINING,
    _AWAITING,
    _CHECKING,
    _RUNNING,
    _EXITED,
    _FAILED,
    _GONE,
    _TAKEN,
    _UNDONE,
    _DETACHING,
    _STOPPED,
) = Phase
_FIRST, _NEXT = "the start of the kernel", "the restart of the kernel"
_undo = do(CancelStart(), RecordStopWanted(), Remove())
_stop = (close, do(CancelStart(), Remove()))
_detach = (do(RecordDetached(), StopReceiving()),)
_cancel = (do(CancelStart()), fail)
_wait = do(QueueRequests("restarting the kernel"))

TRANSITIONS: tuple[Transition, ...] = (
    # Ways in.
    Transition((_BOUND,), Begin, None, _LAUNCHING, (expect_first,)),
    Transition((_BOUND,), Check, None, _CHECKING, (do(CheckHosts()),)),
    Transition((_BOUND,), Claim, None, _CLAIMING, (say("reusing the container"), do(JoinClaimed()))),
    Transition(
        (_BOUND,),
        ComeBack,
        None,
        _JOINING,
        (
            do(HoldOutput(), AdoptContainer()),
            join_relay,
            say("reconnecting to the kernel"),
            do(Remember(unless_held=True)),
        ),
    ),
    Transition(
        (_AWAITING,),
        Relaunch,
        is_silent,
        _CHECKING,
        (do(CancelStart()), retract_exit, _wait, reset_gpus, do(Replace())),
    ),
    Transition(STARTING, Relaunch, None, None, (retract_exit,)),
    Transition(
        HELD, Relaunch, is_in_place, _AWAITING, (retract_exit, _wait, expect_next, say_restart, do(AwaitAnswer(_NEXT)))
    ),
    Transition((*HELD, _GONE, _UNDONE), Relaunch, None, _CHECKING, (retract_exit, _wait, reset_gpus, do(Replace()))),
    Transition((_TAKEN,), Relaunch, None, None, (refuse,)),
    Transition((_CHECKING,), Checked, None, _LAUNCHING, (expect_first,)),
    Transition((_CHECKING,), StartFailed, None, _UNDONE, (fail,)),
    # The start.
    Transition((_LAUNCHING,), Launched, None, None, (say("starting the kernel"), do(AwaitAnswer(_FIRST)))),
    Transition((_LAUNCHING,), Joined, None, None, (link_up,)),
    Transition((_CLAIMING,), StartFailed, is_on_request, _GONE, (do(CancelStart(), Disconnect()), fail)),
    Transition((_CLAIMING,), StartFailed, None, _CHECKING, (fall_back,)),
    Transition(
        (_CLAIMING,),
        Joined,
        None,
        _AWAITING,
        (link_up, do(AdoptContainer()), note_relay, expect_next, do(AwaitAnswer(_NEXT))),
    ),
    Transition((_JOINING,), Joined, answers, _RUNNING, (link_up, note_relay, open_channels)),
    Transition((_JOINING,), Joined, is_by_limit, _FAILED, (link_up, note_relay, fail)),
    Transition((_JOINING,), Joined, is_asked_for, _EXITED, (link_up, note_relay, end_as_asked)),
    Transition((_JOINING,), Joined, is_death, _EXITED, (link_up, note_relay, end_by_itself)),
    Transition(
        (_JOINING,), Joined, None, _AWAITING, (link_up, note_relay, say("starting the kernel"), do(AwaitAnswer(_FIRST)))
    ),
    Transition((_AWAITING,), Joined, None, None, (link_up,)),
    Transition((_LAUNCHING, _AWAITING), Answered, is_newest, _RUNNING, (open_channels,)),
    Transition((_LAUNCHING,), StartFailed, None, _UNDONE, (_undo, fail)),
    Transition((_LAUNCHING,), StartRefused, is_newest, _UNDONE, (_undo, fail)),
    Transition((_LAUNCHING,), ProcessEnded, is_newest, _UNDONE, (_undo, fail)),
    Transition((_AWAITING,), StartRefused, is_newest, _FAILED, _cancel),
    Transition((_AWAITING,), ProcessEnded, is_newest, _FAILED, _cancel),
    Transition((_AWAITING,), StartFailed, None, _FAILED, _cancel),
    # What becomes of it.
    Transition((_RUNNING, _FAILED), ProcessEnded, is_by_limit, _FAILED, (do(UnwatchExecution()), fail)),
    Transition((_RUNNING, _FAILED), ProcessEnded, is_asked_for, _EXITED, (do(UnwatchExecution()), end_as_asked)),
    Transition((_RUNNING, _FAILED), ProcessEnded, is_death, _EXITED, (do(UnwatchExecution()), end_by_itself)),
    Transition((_LAUNCHING, _AWAITING, *HELD), GpusGone, is_newest, None, (notice_gpus,)),
    Transition((_LAUNCHING,), ContainerGone, None, _UNDONE, (do(Forget(whoever_has_it=True)), _undo, fail)),
    # It has failed before, and that is why its container has ended.
    Transition((_FAILED,), ContainerGone, None, _GONE, (do(CancelStart(), Disconnect(), Forget(whoever_has_it=True)),)),
    Transition(
        (_JOINING, _AWAITING, _RUNNING, _EXITED),
        ContainerGone,
        None,
        _GONE,
        (do(CancelStart(), Disconnect(), Forget(whoever_has_it=True)), fail),
    ),
    Transition(
        (_LAUNCHING, _JOINING, _AWAITING, *HELD),
        Taken,
        None,
        _TAKEN,
        (do(CancelStart(), Disconnect(), ForgetContainer()), fail),
    ),
    # The link.
    Transition(HELD, Joined, has_launched, None, (link_up, note_launch, report_execution)),
    Transition(HELD, Joined, None, None, (link_up, note_launch)),
    Transition((_LAUNCHING, _JOINING, _AWAITING, *HELD), LinkDown, None, None, (link_down,)),
    Transition((_LAUNCHING, _JOINING, _AWAITING), JoinFailed, None, None, (say_sentence,)),
    Transition(HELD, JoinFailed, needs_help, None, (explain_failure,)),
    Transition((_LAUNCHING, _CLAIMING, _JOINING, _AWAITING), LoginReported, None, None, (say_stage,)),
    Transition(HELD, LoginReported, does_need_user, None, (explain_stage,)),
    Transition((_LAUNCHING, _JOINING, _AWAITING), Paused, is_now, None, (say_pause,)),
    Transition(HELD, Paused, None, None, (explain_pause,)),
    # What clients and their managers want of it.
    Transition(OURS, Signal, is_interrupt, None, (do(Interrupt()),)),
    Transition(STARTING, Signal, None, None, (hasten_exit, publish_signal)),
    Transition(HELD, Signal, is_out_of_reach, None, (hasten_exit, send_signal, publish_signal)),
    Transition(HELD, Signal, None, None, (hasten_exit, send_signal)),
    Transition((_BOUND, _GONE, _TAKEN, _UNDONE), Signal, None, None, (hasten_exit,)),
    Transition((_LAUNCHING, _CHECKING), ShutdownAsked, is_cancel, _UNDONE, (_undo, fail)),
    Transition((_CLAIMING,), ShutdownAsked, is_cancel, _GONE, (do(CancelStart(), Disconnect()), fail)),
    Transition((_JOINING, _AWAITING), ShutdownAsked, is_cancel, _FAILED, _cancel),
    Transition(OURS, ShutdownAsked, None, None, (publish_end,)),
    # The end of our part.
    Transition((_FAILED,), Discard, None, _UNDONE, (_undo,)),
    Transition((_LAUNCHING,), Stop, None, _STOPPED, (_undo, fail, close)),
    Transition((_CLAIMING, _JOINING, _AWAITING, _CHECKING), Stop, None, _STOPPED, (*_cancel, *_stop)),
    Transition((_STOPPED,), Stop, None, None, (do(Remove()),)),
    Transition(_EVERY, Stop, None, _STOPPED, _stop),
    Transition((_LAUNCHING,), Detach, None, _STOPPED, (_undo, fail, close)),
    Transition((_CLAIMING, _JOINING), Detach, runs_on, _DETACHING, (*_detach, *_cancel)),
    Transition((_AWAITING,), Detach, was_found, _DETACHING, (*_detach, *_cancel)),
    Transition((_CLAIMING, _JOINING, _AWAITING, _CHECKING), Detach, None, _STOPPED, (*_cancel, *_stop)),
    Transition((*HELD, _GONE, _TAKEN), Detach, None, _DETACHING, _detach),
    Transition((_BOUND, _UNDONE), Detach, None, _STOPPED, _stop),
    Transition((_DETACHING,), OutputDelivered, None, _STOPPED, (close,)),
    Transition(_EVERY, Removed, None, None, (do(Forget()),)),
    Transition(_EVERY, NotRemoved, None, None, (note_not_removed,)),
    # Timers and output.
    Transition(OURS, Output, None, None, (read_output,)),
    Transition(OURS, ExitDue, None, None, (publish_due,)),
    Transition(OURS, ExecutionLasted, None, None, (report_lasting,)),
)


def _by_phase_and_event() -> dict[tuple[Phase, type[Any]], list[Transition]]:
    found: dict[tuple[Phase, type[Any]], list[Transition]] = {}
    for row in TRANSITIONS:
        for phase in row.phases:
            found.setdefault((phase, row.event), []).append(row)
    return found


_ROWS = _by_phase_and_event()
