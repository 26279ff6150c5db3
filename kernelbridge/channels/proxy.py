"""Stand in for one kernel on this machine: check its clients' requests, pass them on or answer them here, send output.

`Waiting` answers while the kernel is away, `OutputQueue` decides when its output may go, `KernelSockets` has the
sockets, `ZmqPoller` the thread. It is one thing: the kernel's state decides what becomes of each message, either way.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVarTuple

import zmq

from kernelbridge.channels import interrupts, messages
from kernelbridge.channels.cell_questions import CellQuestion, CellQuestions
from kernelbridge.channels.debug_paths import DebugPaths
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.interrupts import Interrupts
from kernelbridge.channels.messages import Outgoing, Request, SessionName, Signer
from kernelbridge.channels.output_queue import BACKLOG_BYTES, OutputQueue
from kernelbridge.channels.poller import IDLE_MS, PolledSockets, Reader, ZmqPoller
from kernelbridge.channels.rate_limit import Limits
from kernelbridge.channels.sockets import KernelSockets
from kernelbridge.channels.user_cells import CellAsked, LeftOutputCell, UserCells
from kernelbridge.channels.vscode import EarlyAnswers
from kernelbridge.channels.waiting import ShutdownIntent, Waiting, failure_answers, shutdown_answer, without_subshells
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.mailbox import LoopMailbox
from kernelbridge.protocol import frames, requests
from kernelbridge.protocol.session import LEAST_COUNTED_BYTES

_LOG = logging.getLogger(__name__)
_PROGRESS_MS = 250
# Messages from one socket, and of one kernel, before the others have their turn.
_TURN = 100
_Args = TypeVarTuple("_Args")

# A message for the kernel: (lane, packed message).
Packed = tuple[int, bytes]


class Mode(enum.Enum):
    """The destination of requests."""

    WAITING = "waiting"  # queued here, urgent ones answered here
    OPEN = "open"  # to the kernel
    LOST = "lost"  # to the journal, urgent ones answered here
    ENDED = "ended"  # answered with the reason


class _Failure(NamedTuple):
    """Why there is no kernel: it has not come (`is_start`), or has ended."""

    error: KernelBridgeError
    is_start: bool


@dataclass(frozen=True, kw_only=True)
class ProxyOwner:
    """The owner of the kernel behind a proxy: its loop, and the calls that it gets there in order."""

    mailbox: LoopMailbox
    # Messages for the kernel, in their order.
    requested: Callable[[list[Packed]], None]
    # A client wants no kernel, or a fresh one, and the kernel itself cannot be asked.
    shutdown_requested: Callable[[ShutdownIntent], None]
    # VS Code's own probe has found the image's ipywidgets version; empty if it has none.
    widgets_learned: Callable[[str], None]
    # A client runs a cell, its own or a user's, and says of which notebook (a path, or empty).
    cell_asked: Callable[[CellAsked], None]
    # A user's cell waits for the kernel, or for the link to it.
    cell_waits: Callable[[], None] = lambda: None
    # Whether the clients drop what answers none of their own requests: VS Code does, whose own kernels these are.
    only_own: bool = False
    # How files here are called over there; None where they are called the same, or are not there.
    paths: DebugPaths | None = None


class KernelProxy:
    """The sockets of one kernel, bound and waiting from the start; its methods may be called from any thread."""

    def __init__(
        self,
        poller: ZmqPoller,
        endpoints: Endpoints,
        *,
        session: str,
        info: dict[str, Any],
        owner: ProxyOwner,
        limits: Limits | None = None,
    ) -> None:
        """Bind the endpoints. Raises OSError if an address is taken. `limits`: the front-end drops what is faster."""
        self._poller = poller
        self._signer = Signer(endpoints.key)
        self._session = SessionName(session)
        self._owner = owner
        # The last kernel_info content known; the answer while waiting and while the link is lost.
        self._info = info
        # Whether `_info` is the default, which no kernel of this image has sent; cleared by set_kernel_info and open.
        self._is_guess = True
        self.endpoints = endpoints
        # When a cell was told of the kernel's end, monotonic; -inf once a client asked for it. Read by any thread.
        self.end_heard_at: float | None = None
        # Whether any client has asked for anything; set on the ZMQ thread, read by any.
        self.has_client = False
        # What was delivered ever, changed by who delivers; and what of it was taken, changed on the ZMQ thread.
        self._delivered_bytes = self._taken_bytes = 0
        # Below: only the ZMQ thread reads or changes it.
        self._mode, self._launch = Mode.WAITING, 0
        self._waiting = Waiting(info, is_guess=True)
        self._waiting_since = time.monotonic()
        self._link_lost = LinkLost(host="")
        self._failure: _Failure | None = None
        # Requests passed on and not answered yet, by id: their clients must get the reason for the kernel's end.
        self._outstanding: dict[str, Request] = {}
        self._interrupts = Interrupts()
        # Requests answered here: the kernel's own messages for them are dropped.
        self._early = EarlyAnswers()
        # The clients' cells, what one asks for a login, and the one that shows output of before, if clients cannot.
        self._cells, self._questions = UserCells(), CellQuestions()
        self._left = LeftOutputCell() if owner.only_own else None
        # Whether it was logged that the kernel says what cannot be passed on.
        self._has_bad_messages = False
        # Why debugging is refused; empty where it is not.
        self._refuse_debug = ""
        self._sockets = KernelSockets(self._signer)
        self._output = OutputQueue(
            sign=self._sockets.sign, send=self._sockets.send, set_lossy=self._sockets.set_lossy, limits=limits
        )
        self._polled = PolledSockets(bind=self._bind, patience_ms=self._patience_ms, tick=self._tick)
        self._open()

    def _open(self) -> None:
        given = self.endpoints
        try:
            self._poller.add(self._polled)
        except zmq.ZMQError as exc:
            raise OSError(exc.errno, f"cannot bind {given.transport} endpoints at {given.ip}: {exc}") from exc
        self.endpoints.publish()

    def __repr__(self) -> str:
        return (
            f"<KernelProxy {self._mode.value}, {len(self._outstanding)} outstanding, {self._output.bytes} bytes held>"
        )

    # -- called from any thread

    @property
    def is_end_asked_for(self) -> bool:
        """Whether a client has asked for the end of the kernel."""
        return self.end_heard_at == -math.inf

    @property
    def acknowledged_lanes(self) -> Sequence[int]:
        """The lanes of which what was delivered is, or soon will be, out of here: others are not to be acknowledged."""
        if self._delivered_bytes - self._taken_bytes > BACKLOG_BYTES:
            return ()
        return (frames.QUICK,) if self._output.is_congested else frames.LANES

    def deliver(self, packed: Sequence[frames.Buffer]) -> None:
        """Pass the kernel's messages on to the clients. One thread calls this."""
        for at in range(0, len(packed), _TURN):
            some = packed[at : at + _TURN]
            size_bytes = sum(max(len(one), LEAST_COUNTED_BYTES) for one in some)
            self._delivered_bytes += size_bytes
            self._post(self._deliver, some, size_bytes)

    def progress(self, text: str) -> None:
        """Show in the waiting cell what the start is doing."""
        self._post(self._show_progress, text)

    def set_kernel_info(self, info: dict[str, Any], widgets: str | None) -> None:
        """Answer with this kernel_info, and this ipywidgets version if it is known: the image is settled."""
        self._post(self._set_kernel_info, info, widgets)

    def guess_widgets(self, widgets: str | None) -> None:
        """Tell VS Code this ipywidgets version, if there is one, where it would wait too long for the right one."""
        if widgets is not None:
            self._post(self._guess_widgets, widgets)

    def restarting(self, progress: str = "", error: KernelBridgeError | None = None) -> None:
        """Queue requests from here on: the kernel is gone for a while. `error` answers those it was working on."""
        self._post(self._enter_waiting, progress, error)

    def open(
        self, *, launch: int, info: dict[str, Any], refuse_debug: str = "", busy: Mapping[str, Any] | None = None
    ) -> None:
        """Pass the queue, and all that comes, on to the kernel of this launch.

        `busy`: the header of the request that it has been working on since before this process came.
        """
        self._post(self._enter_open, launch, info, refuse_debug)
        if busy is not None:
            self._post(self._recall, messages.recalled(busy))

    def hold_output(self) -> None:
        """Hold all output until a client is there that hears it. Call before the first `deliver`."""
        self._post(self._output.gate.close)

    def print_notice(self, parent: Mapping[str, Any], text: str) -> None:
        """Print something to stderr in the cell of a request, after all that was delivered."""
        self._post(self._print_notice, parent, text)

    def tell_next_cell(self, text: str) -> None:
        """Print a line at the top of the user's next cell."""
        self._post(self._cells.add_news, text)

    def expect_left_output(self) -> None:
        """Have the user's next cell show output of cells of before, where clients cannot themselves."""
        self._post(self._expect_left)

    def learn_titles(self, cells: Mapping[str, Sequence[Any]]) -> None:
        """Learn what people know cells by: number and first line, by the ids of their requests."""
        if self._left is not None:
            self._post(self._left.learn, cells)

    def rename_session(self, session: str) -> None:
        """Pass on the messages of a kernel that names its session so under the session that clients know."""
        self._post(self._session.rename, session)

    def explain_wait(self, text: str) -> None:
        """Say in the cell that runs why nothing happens, once; without a text it is over, and may be said again."""
        self._post(self._explain_wait, text)

    def ask(self, question: CellQuestion) -> None:
        """Ask the user in a cell that waits; `question.answered` is called on the ZMQ thread, at once if none can."""
        self._post(self._ask, question)

    def cancel_question(self) -> None:
        """Ask no more what a cell asks."""
        self._post(self._cancel_question)

    def can_ask(self) -> Future[bool | None]:
        """Return whether a user's cell that waits can ask; None where no cell waits, and one is needed."""
        return self._poller.call(self._can_ask, of=self)

    def interrupt(self) -> None:
        """Interrupt the cell that runs, or those that wait for the kernel."""
        self._post(self._interrupt_own)

    def link_lost(self, error: LinkLost) -> None:
        """Leave requests to the journal, and answer urgent ones here, until the link is back."""
        self._post(self._enter_lost, error)

    def link_restored(self) -> None:
        """Leave urgent requests to the kernel again."""
        self._post(self._enter_restored)

    def fail(self, error: KernelBridgeError) -> None:
        """Answer all that wait, and all that ask from now on, with the reason why there is no kernel."""
        self._post(self._enter_failed, error)

    def settled(self) -> Future[bool]:
        """Return whether all that was delivered until now is sent, as a future."""
        return self._poller.call(lambda: not self._output.bytes, of=self)

    def close(self) -> Future[None]:
        """Close the sockets; the future is done when they are."""
        return self._poller.call(self._close, of=self)

    def _post(self, function: Callable[[*_Args], object], *args: *_Args) -> None:
        self._poller.post(function, *args, of=self)

    # -- called by the poller, and like all below on the ZMQ thread

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> dict[zmq.Socket[bytes], Reader]:
        """Bind the five sockets; return each with what reads it. Raises zmq.ZMQError; none is left open then."""
        try:
            self.endpoints = self._sockets.bind(context, self.endpoints)
        except zmq.ZMQError:
            self.endpoints.remove()
            raise
        readers = {"iopub": self._read_subscriptions, "hb": self._echo}
        return {sock: readers.get(name, self._read) for name, sock in self._sockets.by_name.items()}

    def _patience_ms(self) -> int:
        """Return how long the poll may sleep for this kernel: until the next thing is due by time, and no less."""
        longest_ms = _PROGRESS_MS if self._mode is Mode.WAITING else IDLE_MS
        times = (self._output.due_at, self._sockets.retry_at, self._interrupts.due_at, self._questions.due_at)
        due = [at for at in times if at is not None]
        return max(0, min(longest_ms, math.ceil((min(due) - time.monotonic()) * 1000))) if due else longest_ms

    def _tick(self) -> None:
        """Do what is due by time: show progress, send what waited, try clients again that were not connected."""
        if self._mode is Mode.WAITING:
            self._send_own(self._waiting.show(time.monotonic() - self._waiting_since))
        self._send_own(self._interrupts.late(time.monotonic()))
        self._send_own(self._questions.due(time.monotonic()))
        self._output.offer()
        self._sockets.retry_pending()
        for parent, (count, size_bytes) in self._sockets.take_lost().items():
            what = "1 message" if count == 1 else f"{count:,} messages"
            lost = f"dropped {what} of this output ({size_bytes / 1e6:.1f} MB): a client has read nothing for a minute"
            try:
                header = json.loads(parent)
            except (ValueError, RecursionError):
                continue  # A kernel may say anything, and nobody has such a cell.
            if isinstance(header, dict):
                self._print_notice(header, f"[kernelbridge: {lost}]\n")

    def _read_subscriptions(self, sock: zmq.Socket[bytes]) -> None:
        if self._sockets.drain_subscriptions():
            self._output.gate.subscribed(time.monotonic())

    def _echo(self, sock: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                beat = sock.recv_multipart(zmq.NOBLOCK)
                if self._mode is not Mode.ENDED:
                    sock.send_multipart(beat)

    def _read(self, sock: zmq.Socket[bytes]) -> None:
        channel = self._sockets.channel_of(sock)
        passed: list[Packed] = []
        with contextlib.suppress(zmq.Again):
            for _ in range(_TURN):
                parts = sock.recv_multipart(zmq.NOBLOCK)
                try:
                    self._sockets.send_pending((channel, parts[0]))
                    request = messages.parse(channel, parts, self._signer)
                    self.has_client = True
                    if channel == frames.SHELL:
                        self._output.gate.asked(request.identities, time.monotonic())
                    passed += self._receive(request)
                except messages.MessageInvalid as exc:
                    _LOG.warning("a message on channel %d is dropped: %s", channel, exc)
                except frames.MessageTooLong as exc:
                    self._send_own(messages.error_answer(request, "MessageTooLong", str(exc), shown=True))
                except Exception:
                    # Anybody may send anything: the messages around it must not suffer.
                    _LOG.exception("a message on channel %d is dropped", channel)
        if passed:
            self._owner.mailbox.post(self._owner.requested, passed)

    def _receive(self, request: Request) -> list[Packed]:
        """Answer a request here, keep it, or return it packed for the kernel."""
        if self._is_answer(request):
            return []
        if request.kind == "execute_request" and self._cells.note(request):
            self._owner.mailbox.post(self._owner.cell_asked, self._cells.asked)
        match self._mode:
            case Mode.WAITING:
                self._receive_waiting(request)
                return []
            case Mode.ENDED:
                self._answer_failed(request)
                return []
            case Mode.LOST if self._answered_while_lost(request):
                return []
            case Mode.OPEN if self._output.gate.is_closed and request.kind == "kernel_info_request":
                # The kernel's own answer would be held: no websocket would come up, and no client ever be heard.
                self._answer_info(request, self._info)
                return []
        if request.kind == requests.INTERRUPT:
            return self._interrupt(request)
        if self._refuse_debug and request.kind == "debug_request":
            self._send_own(messages.error_answer(request, "DebuggerOff", self._refuse_debug, shown=False))
            return []
        if self._owner.paths is not None:
            request = self._owner.paths.rewritten(request)
        return [*self._asked_for_left(request), self._pack(request)]

    def _ask(self, question: CellQuestion) -> None:
        cell = next(filter(self._questions.can_ask, self._waiting_cells()), None)
        if cell is None or self._questions.cell is not None:
            question.answered(None)
            return
        if self._mode is Mode.WAITING:
            self._send_own(self._waiting.ask_in(cell, question.notes))
        elif question.notes:
            stream = {"name": "stderr", "text": "".join(f"{note}\n" for note in question.notes)}
            self._send_own([Outgoing(channel=frames.IOPUB, kind="stream", content=stream, parent=cell)])
        self._questions.ask(question, cell, now=time.monotonic())

    def _waiting_cells(self) -> list[Request]:
        """Return the users' cells that wait for the kernel, or for the link to it; where there is a link, none does."""
        if self._mode is Mode.WAITING:
            return self._waiting.cells
        return [one for one in self._outstanding.values() if one.is_cell] if self._mode is Mode.LOST else []

    def _can_ask(self) -> bool | None:
        cells = self._waiting_cells()
        if not cells and self._mode is Mode.WAITING:
            self._send_own(self._waiting.need_cell())
        return any(map(self._questions.can_ask, cells)) if cells else None

    def _cancel_question(self) -> None:
        self._questions.cancel()
        self._waiting.asked()

    def _is_answer(self, request: Request) -> bool:
        """Whether a message answers a question of ours: then it goes no further."""
        if request.channel != frames.STDIN or not self._questions.takes(request):
            return False
        if self._questions.cell is None:
            self._waiting.asked()
        return True

    def _receive_waiting(self, request: Request) -> None:
        """Answer a request while there is no kernel, or keep it."""
        answers, intent = self._waiting.receive(request)
        if self._questions.cell not in self._waiting.queue:
            self._cancel_question()  # The cell is over: interrupted, or no kernel is wanted any more.
        self._send_own(answers)
        if request in self._waiting.cells:
            self._owner.mailbox.post(self._owner.cell_waits)
        if intent is not None:
            self._shutdown_requested(intent)

    def _interrupt(self, request: Request) -> list[Packed]:
        """Pass an interrupt on, named for the cell that runs; with the link lost it is answered here."""
        self._cancel_question()
        cell = self._running_cell()
        if cell is None and self._mode is Mode.LOST:
            self._send_own(interrupts.done(request))
            return []
        packed = self._interrupts.pass_on(request, cell, launch=self._launch, now=time.monotonic())
        if self._mode is Mode.LOST:
            self._postpone_interrupts()
        return [packed]

    def _running_cell(self) -> Request | None:
        """The oldest cell without a reply, of the main shell: an interrupt reaches no other."""
        cells = [one for one in self._outstanding.values() if one.kind == "execute_request"]
        return next((one for one in cells if not one.header.get("subshell_id")), None)

    def _explain_wait(self, text: str) -> None:
        cell = self._running_cell()
        if cell is not None and self._cells.explain(cell.id, text):
            self._send_own([interrupts.notice(cell, text)])

    def _postpone_interrupts(self) -> None:
        why = f"the link to {self._link_lost.host} is lost; the interrupt is sent when it is back"
        self._send_own(self._interrupts.postpone(why))

    def _interrupt_own(self) -> None:
        request = interrupts.own(uuid.uuid4().hex)
        match self._mode:
            case Mode.WAITING:
                self._cancel_question()
                self._send_own(self._waiting.interrupt())
            case Mode.OPEN | Mode.LOST:
                self._early.answered.add(request.id)
                self._owner.mailbox.post(self._owner.requested, self._interrupt(request))

    def _pack(self, request: Request) -> Packed:
        if request.kind.endswith("_request"):
            self._early.expect(request)
            if request.id not in self._early.answered:
                self._outstanding[request.id] = request
            if self._mode is Mode.LOST and request.is_cell:
                self._owner.mailbox.post(self._owner.cell_waits)
        if text := self._cells.take_news(request):
            self._tell_news(request, text)
        packed = frames.pack(frames.Message(request.channel, self._launch, request.parts))
        return frames.LANE_OF[request.channel], packed

    def _tell_news(self, request: Request, text: str) -> None:
        """Print what is new in a cell that is about to run."""
        self._begin_cell(request)
        stream = {"name": "stderr", "text": text}
        self._send_own([Outgoing(channel=frames.IOPUB, kind="stream", content=stream, parent=request)])

    def _begin_cell(self, request: Request) -> None:
        """Tell that a cell runs, for what it shows before the kernel has begun with it."""
        if request.id != self._early.had_busy:
            self._send_own([messages.status("busy", request)])
            self._early.had_busy = self._early.had_busy or request.id

    def _expect_left(self) -> None:
        if self._left is not None:
            self._left.is_expected = True

    def _asked_for_left(self, request: Request) -> list[Packed]:
        """Return what asks the relay for output of before, where a cell can show it from now on."""
        if self._left is None:
            return []
        self._left.note(request)
        if not self._left.is_asked_by(request):
            return []
        self._begin_cell(request)
        if self._left.running:
            self._cells.add_news("a cell from before is still running; this one runs after it")
        return [self._left_order(show=True)]

    def _left_order(self, *, show: bool) -> Packed:
        order = json.dumps({"do": "output", "show": show}).encode()
        return frames.LANE_OF[frames.COMMAND], frames.pack(frames.Message(frames.COMMAND, self._launch, [order]))

    def _print_notice(self, parent: Mapping[str, Any], text: str) -> None:
        recalled = messages.recalled(parent)
        if self._left is not None and self._left.has_cell and self._left.is_foreign(bytes(recalled.parts[2])):
            self._left.add_text(recalled.id, text)
            self._send_own(self._left.flush())
            return
        stream = {"name": "stderr", "text": text}
        self._send_own([Outgoing(channel=frames.IOPUB, kind="stream", content=stream, parent=recalled)])

    def _answer_failed(self, request: Request) -> None:
        assert self._failure is not None
        match request.kind:
            case "kernel_info_request":
                self._send_own(messages.between_busy_and_idle(request, messages.reply(request, self._info)))
            case "interrupt_request":
                self._send_own(messages.between_busy_and_idle(request, messages.reply(request, {"status": "ok"})))
            case "shutdown_request":
                answers, intent = shutdown_answer(request)
                self._send_own(answers)
                self._shutdown_requested(intent)
            case _:
                self._send_own(failure_answers([request], self._failure.error, is_start=self._failure.is_start))
                self._note_end_heard([request])

    def _shutdown_requested(self, intent: ShutdownIntent) -> None:
        if intent is ShutdownIntent.CANCEL or self._mode is Mode.ENDED:
            self.end_heard_at = -math.inf
        self._owner.mailbox.post(self._owner.shutdown_requested, intent)

    def _note_end_heard(self, requests: Iterable[Request]) -> None:
        if self.end_heard_at is None and any(request.is_cell for request in requests):
            self.end_heard_at = time.monotonic()

    def _answered_while_lost(self, request: Request) -> bool:
        match request.kind:
            case "kernel_info_request":
                self._answer_info(request, without_subshells(self._info))
            case "shutdown_request":
                self._send_own(shutdown_answer(request)[0])
            case _:
                return False
        return True

    def _answer_info(self, request: Request, info: Mapping[str, Any]) -> None:
        self._send_own(messages.between_busy_and_idle(request, messages.reply(request, info)))
        # The idle must not hide that a cell is running there.
        running = [other for other in self._outstanding.values() if other.kind == "execute_request"]
        self._send_own([messages.status("busy", other) for other in running[:1]], at_once=True)

    def _send_own(self, own: list[Outgoing], *, at_once: bool = False) -> None:
        """Send messages of our own, in their place after the kernel's, or at once.

        An answer to kernel_info never waits: clients connect only then, and it depends on nothing the kernel did.
        """
        for message in own:
            parts = messages.build(message, self._session.own)
            if at_once or (message.parent is not None and message.parent.kind == "kernel_info_request"):
                self._output.overtake(message.channel, parts)
            else:
                self._send(message.channel, parts)

    def _deliver(self, packed: Sequence[frames.Buffer], size_bytes: int) -> None:
        self._taken_bytes += size_bytes
        for one in packed:
            try:
                message = frames.unpack(one)
                messages.check(message.parts)
                if self._left is not None and self._was_left(message):
                    continue
                if self._passes(message):
                    self._send(message.channel, self._session.renamed(self._linked(message)))
                if message.channel == frames.SHELL and self._interrupts:
                    self._send_own(self._interrupts.cell_replied(messages.parent_id(message.parts)))
            except Exception as exc:
                # A kernel may say anything: the messages around it must not suffer.
                level = logging.DEBUG if self._has_bad_messages else logging.ERROR
                self._has_bad_messages = True
                _LOG.log(level, "a message of the kernel is dropped: %s: %s", type(exc).__name__, exc)
        if self._left is not None:
            self._send_own(self._left.flush())

    def _linked(self, message: frames.Message) -> Sequence[frames.Buffer]:
        """Return a message's parts with the paths by which the client knows its files."""
        paths, parts = self._owner.paths, message.parts
        if paths is None:
            return parts
        if message.channel == frames.CONTROL:
            return paths.replied(messages.parent_id(parts), parts)
        topic = bytes(parts[0]) if message.channel == frames.IOPUB else b""
        if topic.endswith(b"debug_event"):
            return paths.with_cell_paths(parts)
        return paths.with_local_links(parts) if self._owner.only_own and topic.endswith(b"error") else parts

    def _was_left(self, message: frames.Message) -> bool:
        """Take in a message that answers a request of before; False if it is none, or nothing can show it.

        Its replies are nobody's, and its statuses none of a cell that anybody sees.
        """
        assert self._left is not None
        parts = message.parts
        at = messages.delimiter_index(parts)
        parent = bytes(parts[at + 3])
        is_output = message.channel == frames.IOPUB
        if message.channel not in (frames.IOPUB, frames.SHELL) or not self._left.is_foreign(parent):
            # What came before it is shown before it.
            self._send_own(self._left.flush())
            return False
        if is_output and bytes(parts[0]).endswith(b"status"):
            self._left.note_status(parent, bytes(parts[at + 5]))
            return True
        if is_output and self._left.has_cell:
            self._left.add(parts)
        return self._left.has_cell

    def _passes(self, message: frames.Message) -> bool:
        """Whether a message of the kernel's goes on to the clients."""
        if message.channel == frames.IOPUB:
            if self._interrupts:
                self._send_own(self._interrupts.heard(messages.parent_id(message.parts), message.parts))
            return not self._early or self._early.passes(message.parts)
        parent = messages.parent_id(message.parts)
        if message.channel == frames.STDIN:
            # It asks, and has not replied.
            to = message.parts[: messages.delimiter_index(message.parts)]
            self._questions.kernel_asks(tuple(map(bytes, to)))
            return parent not in self._early.answered
        interrupt, answers = self._interrupts.replied(parent, message.parts, now=time.monotonic())
        if interrupt is not None:
            self._send_own(answers)
            return False
        if self._early.is_second_answer(parent):
            return False
        self._outstanding.pop(parent, None)
        if self._left is not None and self._left.is_over_with(parent):
            self._owner.mailbox.post(self._owner.requested, [self._left_order(show=False)])
        widgets = self._early.finish(parent)
        if widgets is not None:
            self._guess_widgets(widgets)
            self._owner.mailbox.post(self._owner.widgets_learned, widgets)
        return parent not in self._early.answered

    def _send(self, channel: int, parts: Sequence[frames.Buffer]) -> None:
        if channel in (frames.IOPUB, frames.SHELL):
            self._output.put(channel, parts)
        else:
            if not self._sockets.send(channel, self._sockets.sign(parts)):
                _LOG.info("a message on channel %d is dropped: its client does not read", channel)

    def _set_kernel_info(self, info: dict[str, Any], widgets: str | None) -> None:
        self._info, self._is_guess = info, False
        if widgets is not None:
            self._guess_widgets(widgets)
        if self._mode is Mode.WAITING:
            self._send_own(self._waiting.set_kernel_info(info, widgets))

    def _guess_widgets(self, widgets: str) -> None:
        self._waiting.guessed_widgets = widgets

    def _show_progress(self, text: str) -> None:
        self._waiting.progress(text)

    def _enter_waiting(self, progress: str, error: KernelBridgeError | None) -> None:
        if error is not None:
            self._send_own(failure_answers(list(self._outstanding.values()), error))
            self._early.failed.update(self._outstanding)
        self._early.failed.update(self._interrupts.ids)
        self._send_own(self._interrupts.end())
        self._outstanding.clear()
        self._cancel_question()
        self._questions.forget_kernel()
        self._early.had_busy = ""
        self._failure = self.end_heard_at = None
        if self._mode is not Mode.WAITING:
            self._waiting = Waiting(self._info, is_guess=self._is_guess, guessed_widgets=self._waiting.guessed_widgets)
            self._waiting_since = time.monotonic()
            self._mode = Mode.WAITING
        self._waiting.progress(progress)

    def _enter_open(self, launch: int, info: dict[str, Any], refuse_debug: str) -> None:
        self._launch, self._refuse_debug = launch, refuse_debug
        self._info, self._is_guess = info, False
        self._cancel_question()
        answers, queue, self._early.had_busy = self._waiting.release()
        self._early.answered = self._waiting.answered
        self._mode = Mode.OPEN
        self._send_own(answers)
        passed = [packed for request in queue for packed in self._receive(request)]
        if passed:
            self._owner.mailbox.post(self._owner.requested, passed)

    def _recall(self, running: Request) -> None:
        """Note, and tell the clients, that the kernel works on a request of before this process came.

        Not those who have no cell that runs: VS Code waits for an idle kernel, and gives up after a minute.
        """
        if self._left is not None:
            self._left.running = running.id
            return
        self._outstanding[running.id] = running
        self._send_own([messages.status("busy", running)], at_once=True)

    def _enter_lost(self, error: LinkLost) -> None:
        if self._mode is Mode.OPEN:
            self._mode, self._link_lost = Mode.LOST, error
            self._postpone_interrupts()

    def _enter_restored(self) -> None:
        if self._mode is Mode.LOST:
            self._mode = Mode.OPEN
            self._cancel_question()
            self._explain_wait("")

    def _enter_failed(self, error: KernelBridgeError) -> None:
        if self._mode is Mode.ENDED:
            return
        self._cancel_question()
        waited = self._waiting.unanswered if self._mode is Mode.WAITING else []
        outstanding, self._outstanding = list(self._outstanding.values()), {}
        self._early.failed.update([*(one.id for one in outstanding), *self._interrupts.ids])
        answers = self._waiting.fail(error) if self._mode is Mode.WAITING else []
        self._mode, self._failure = Mode.ENDED, _Failure(error, is_start=self._mode is Mode.WAITING)
        self._send_own(answers + self._interrupts.end() + failure_answers(outstanding, error))
        self._note_end_heard([*waited, *outstanding])

    def _close(self) -> None:
        self._cancel_question()
        self._poller.remove(self._polled)
        self._sockets.close()
        self.endpoints.remove()
