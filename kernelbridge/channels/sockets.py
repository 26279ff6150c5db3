"""This machine's end of one kernel: checks what clients ask, passes it on or answers it, hands out what comes.

The thread that polls: switchboard.py. The sockets themselves: bindings.py. What to answer while the kernel is away:
waiting.py. When what comes may go: handout.py.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import zmq

from kernelbridge.channels import messages
from kernelbridge.channels.bindings import Bindings
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.handout import Handout
from kernelbridge.channels.hidden_cells import Said
from kernelbridge.channels.messages import Request, Say, Signer
from kernelbridge.channels.pacing import Limits
from kernelbridge.channels.switchboard import IDLE_MS, Reader, Switchboard
from kernelbridge.channels.waiting import Waiting, Wish, failure_answers, shutdown_answer, without_subshells
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.relay import wire

_LOG = logging.getLogger(__name__)
_PROGRESS_MS = 250
# Messages from one socket before the others have their turn.
_TURN = 100


class Mode(enum.Enum):
    """Where requests go."""

    WAITING = "waiting"  # kept here, urgent ones answered here
    OPEN = "open"  # to the kernel
    LOST = "lost"  # to the journal; urgent ones answered here
    ENDED = "ended"  # answered with the reason


class Owner(Protocol):
    """Who has the kernel behind the sockets; called on the ZMQ thread, must not block."""

    def requests(self, packed: list[tuple[int, bytes]]) -> None:
        """Messages for the kernel: (lane, packed message)."""

    def wished(self, wish: Wish) -> None:
        """A client wants something of the start."""

    def learned(self, widgets: str) -> None:
        """VS Code's own probe has found the image's ipywidgets version; empty if it has none."""


class Channels:
    """The sockets of one kernel, bound and waiting from the start; its methods may be called from any thread."""

    def __init__(
        self,
        board: Switchboard,
        endpoints: Endpoints,
        *,
        session: str,
        info: dict[str, Any],
        owner: Owner,
        limits: Limits | None = None,
    ) -> None:
        """Bind the endpoints. Raises OSError if an address is taken. `limits`: the front-end drops what is faster."""
        self._board = board
        self._signer = Signer(endpoints.key)
        self._session = session
        self._owner = owner
        # The last kernel_info content known; said while waiting and while the link is lost.
        self._info = info
        # Whether no kernel of this very image has said it.
        self._is_guess = True
        self.endpoints = endpoints
        # When a cell heard why the kernel ended, or a client asked for the end; monotonic seconds, read by any thread.
        self.end_heard_at: float | None = None
        # Below: only the ZMQ thread reads or changes it.
        self._mode = Mode.WAITING
        self._waiting = Waiting(info, is_guess=True)
        self._since = time.monotonic()
        self._launch = 0
        self._lost = LinkLost(host="")
        self._ended: KernelBridgeError | None = None
        # Requests passed on and not answered yet, by id: who must hear of the kernel's end.
        self._outstanding: dict[str, Request] = {}
        # What the kernel says of requests that heard something here already.
        self._said = Said()
        # Why debugging is refused; empty where it is not.
        self._refuse_debug = ""
        self._bindings = Bindings(self._signer)
        self._handout = Handout(self._bindings, limits=limits)
        try:
            board.add(self)
        except zmq.ZMQError as exc:
            raise OSError(exc.errno, f"cannot bind {endpoints.transport} endpoints at {endpoints.ip}: {exc}") from exc
        self.endpoints.publish()

    def __repr__(self) -> str:
        return f"<Channels {self._mode.value}, {len(self._outstanding)} outstanding, {self._handout.bytes} bytes held>"

    # -- called from any thread

    @property
    def is_congested(self) -> bool:
        """Whether what was delivered is not sure to be out of here soon: nothing more should be acknowledged."""
        return self._handout.is_congested

    def deliver(self, packed: Sequence[wire.Buffer]) -> None:
        """Hand the kernel's messages to the clients."""
        self._board.post(lambda: self._deliver(packed))

    def progress(self, text: str) -> None:
        """Say what the start is doing; shown in the waiting cell."""
        self._board.post(lambda: self._waiting.progress(text))

    def know(self, info: dict[str, Any], widgets: str | None) -> None:
        """The image is known now: its kernel_info, and its ipywidgets version if that is known too."""
        self._board.post(lambda: self._learn_image(info, widgets))

    def wait(self, why: str = "", told: KernelBridgeError | None = None) -> None:
        """The kernel is gone for a while (a restart): queue from here on; `told` is what those hear who were served."""
        self._board.post(lambda: self._enter_waiting(why, told))

    def open(
        self, *, launch: int, info: dict[str, Any], refuse_debug: str = "", busy: Mapping[str, Any] | None = None
    ) -> None:
        """The kernel of this launch is there: pass the queue on, and all that comes.

        `busy`: the header of the request that it works on since before we came; it is said to be busy with that.
        """
        self._board.post(lambda: self._enter_open(launch, info, refuse_debug))
        if busy is not None:
            running = messages.recalled(busy)
            self._board.post(lambda: self._recall(running))

    def hold(self) -> None:
        """Hold all output until a client is there that hears it (hold.py). Call before the first `deliver`."""
        self._board.post(self._handout.hold.begin)

    def notice(self, parent: Mapping[str, Any], text: str) -> None:
        """Print something to stderr in the cell of a request, behind all that was delivered."""
        stream = {"name": "stderr", "text": text}
        say = Say(channel=wire.IOPUB, kind="stream", content=stream, parent=messages.recalled(parent))
        self._board.post(lambda: self._say([say]))

    def lose(self, error: LinkLost) -> None:
        """The link is lost: requests wait in the journal, urgent ones are answered here."""
        self._board.post(lambda: self._enter_lost(error))

    def find(self) -> None:
        """The link is back."""
        self._board.post(self._enter_found)

    def end(self, error: KernelBridgeError) -> None:
        """The kernel will not come, or has ended: say why to all who wait, and to all who ask from now on."""
        self._board.post(lambda: self._enter_ended(error))

    def settled(self) -> Future[bool]:
        """Whether all that was delivered until now is handed out; the future is done when that is known."""
        known: Future[bool] = Future()
        self._board.post(lambda: known.set_result(not self._handout.bytes))
        return known

    def close(self) -> Future[None]:
        """Close the sockets; the future is done when they are."""
        return self._board.call(self._close)

    # -- on the ZMQ thread

    def bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Bind the five sockets. Raises zmq.ZMQError when an address is taken; none is left open then."""
        try:
            self.endpoints = self._bindings.bind(context, self.endpoints)
        except zmq.ZMQError:
            self.endpoints.remove()
            raise

    def sockets(self) -> dict[zmq.Socket[bytes], Reader]:
        """Return the sockets to poll, each with what reads it."""
        readers = {"iopub": self._read_subscriptions, "hb": self._echo}
        return {sock: readers.get(name, self._read) for name, sock in self._bindings.by_name.items()}

    @property
    def patience_ms(self) -> int:
        """How long the poll loop may sleep for this kernel: until the next thing is due by time, and no less."""
        longest_ms = _PROGRESS_MS if self._mode is Mode.WAITING else IDLE_MS
        due = [at for at in (self._handout.due_at, self._bindings.retry_at) if at is not None]
        return max(0, min(longest_ms, math.ceil((min(due) - time.monotonic()) * 1000))) if due else longest_ms

    def tick(self) -> None:
        """Do what is due by time: show progress, hand out what waited, try those again who were not there."""
        if self._mode is Mode.WAITING:
            self._say(self._waiting.show(time.monotonic() - self._since))
        self._handout.offer()
        self._bindings.retry()

    def _read_subscriptions(self, sock: zmq.Socket[bytes]) -> None:
        if self._bindings.drain_subscriptions():
            self._handout.hold.subscribed(time.monotonic())

    def _echo(self, sock: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                beat = sock.recv_multipart(zmq.NOBLOCK)
                if self._mode is not Mode.ENDED:
                    sock.send_multipart(beat)

    def _read(self, sock: zmq.Socket[bytes]) -> None:
        channel = self._bindings.channel_of(sock)
        passed: list[tuple[int, bytes]] = []
        with contextlib.suppress(zmq.Again):
            for _ in range(_TURN):
                parts = sock.recv_multipart(zmq.NOBLOCK)
                try:
                    self._bindings.hear((channel, parts[0]))
                    request = messages.parse(channel, parts, self._signer)
                    if channel == wire.SHELL:
                        self._handout.hold.asked(request.identities, time.monotonic())
                    passed += self._receive(request)
                except messages.MessageInvalid as exc:
                    _LOG.warning("a message on channel %d is dropped: %s", channel, exc)
                except Exception:
                    # Anybody may send anything: the messages around it must not suffer.
                    _LOG.exception("a message on channel %d is dropped", channel)
        if passed:
            self._owner.requests(passed)

    def _receive(self, request: Request) -> list[tuple[int, bytes]]:
        """Answer a request here, keep it, or return it packed for the kernel."""
        match self._mode:
            case Mode.WAITING:
                says, wish = self._waiting.receive(request)
                self._say(says)
                if wish is not None:
                    self._wished(wish)
                return []
            case Mode.ENDED:
                self._answer_ended(request)
                return []
            case Mode.LOST if self._answered_lost(request):
                return []
            case Mode.OPEN if self._handout.hold.is_on and request.kind == "kernel_info_request":
                # The kernel's own answer would be held: no websocket would ever come up, and no client be heard.
                self._answer_info(request, self._info)
                return []
        if self._refuse_debug and request.kind == "debug_request":
            self._say(messages.error_answer(request, "DebuggerOff", self._refuse_debug, shown=False))
            return []
        return [self._pack(request)]

    def _pack(self, request: Request) -> tuple[int, bytes]:
        if request.id not in self._said.answered and request.kind.endswith("_request"):
            self._outstanding[request.id] = request
            self._said.expect(request)
        packed = wire.pack(wire.Message(request.channel, self._launch, request.parts))
        return wire.LANE_OF[request.channel], packed

    def _answer_ended(self, request: Request) -> None:
        assert self._ended is not None
        match request.kind:
            case "kernel_info_request":
                self._say(messages.between_busy_and_idle(request, messages.reply(request, self._info)))
            case "shutdown_request":
                says, wish = shutdown_answer(request)
                self._say(says)
                self._wished(wish)
            case _:
                self._say(failure_answers([request], self._ended))
                self._heard([request])

    def _wished(self, wish: Wish) -> None:
        if wish is Wish.CANCEL or self._mode is Mode.ENDED:
            self.end_heard_at = -math.inf
        self._owner.wished(wish)

    def _heard(self, requests: Iterable[Request]) -> None:
        if self.end_heard_at is None and any(request.kind == "execute_request" for request in requests):
            self.end_heard_at = time.monotonic()

    def _answered_lost(self, request: Request) -> bool:
        match request.kind:
            case "kernel_info_request":
                self._answer_info(request, without_subshells(self._info))
            case "interrupt_request":
                self._say(messages.error_answer(request, type(self._lost).__name__, str(self._lost), shown=False))
            case "shutdown_request":
                self._say(shutdown_answer(request)[0])
            case _:
                return False
        return True

    def _answer_info(self, request: Request, info: Mapping[str, Any]) -> None:
        self._say(messages.between_busy_and_idle(request, messages.reply(request, info)))
        # The idle must not hide that a cell is running there.
        running = [other for other in self._outstanding.values() if other.kind == "execute_request"]
        self._say([messages.status("busy", other) for other in running[:1]], at_once=True)

    def _say(self, says: list[Say], *, at_once: bool = False) -> None:
        """Say what is our own, in its place behind what the kernel said, or at once.

        An answer to kernel_info never waits: clients connect only then, and it tells nothing of what the kernel did.
        """
        for say in says:
            parts = messages.build(say, self._session)
            if at_once or (say.parent is not None and say.parent.kind == "kernel_info_request"):
                self._handout.overtake(say.channel, parts)
            else:
                self._send(say.channel, parts)

    def _deliver(self, packed: Sequence[wire.Buffer]) -> None:
        for one in packed:
            try:
                message = wire.unpack(one)
                if self._passes(message):
                    self._send(message.channel, message.parts)
            except Exception:
                # A kernel may say anything: the messages around it must not suffer.
                _LOG.exception("a message of the kernel is dropped")

    def _passes(self, message: wire.Message) -> bool:
        """Whether a message of the kernel's goes on to the clients."""
        if message.channel == wire.IOPUB:
            return not self._said or self._said.passes(message.parts)
        parent = messages.parent_id(message.parts)
        self._outstanding.pop(parent, None)
        widgets = self._said.finish(parent)
        if widgets is not None:
            self._owner.learned(widgets)
        return parent not in self._said.answered

    def _send(self, channel: int, parts: Sequence[wire.Buffer]) -> None:
        if channel in (wire.IOPUB, wire.SHELL):
            self._handout.put(channel, parts)
        else:
            self._bindings.send(channel, self._bindings.sign(parts))

    def _learn_image(self, info: dict[str, Any], widgets: str | None) -> None:
        self._info, self._is_guess = info, False
        if self._mode is Mode.WAITING:
            self._say(self._waiting.know(info, widgets))

    def _enter_waiting(self, why: str, told: KernelBridgeError | None) -> None:
        if told is not None:
            self._say(failure_answers(list(self._outstanding.values()), told))
        self._outstanding.clear()
        self._said.had_busy = ""
        self._ended = self.end_heard_at = None
        if self._mode is not Mode.WAITING:
            self._waiting = Waiting(self._info, is_guess=self._is_guess)
            self._since = time.monotonic()
            self._mode = Mode.WAITING
        self._waiting.progress(why)

    def _enter_open(self, launch: int, info: dict[str, Any], refuse_debug: str) -> None:
        self._launch, self._refuse_debug = launch, refuse_debug
        self._info, self._is_guess = info, False
        says, queue, self._said.had_busy = self._waiting.release()
        self._said.answered = self._waiting.answered
        self._mode = Mode.OPEN
        self._say(says)
        passed = [packed for request in queue for packed in self._receive(request)]
        if passed:
            self._owner.requests(passed)

    def _recall(self, running: Request) -> None:
        """A request of before we came is being worked on."""
        self._outstanding[running.id] = running
        self._say([messages.status("busy", running)], at_once=True)

    def _enter_lost(self, error: LinkLost) -> None:
        if self._mode is Mode.OPEN:
            self._mode, self._lost = Mode.LOST, error

    def _enter_found(self) -> None:
        if self._mode is Mode.LOST:
            self._mode = Mode.OPEN

    def _enter_ended(self, error: KernelBridgeError) -> None:
        if self._mode is Mode.ENDED:
            return
        waited = self._waiting.unanswered if self._mode is Mode.WAITING else []
        outstanding, self._outstanding = list(self._outstanding.values()), {}
        says = self._waiting.fail(error) if self._mode is Mode.WAITING else []
        self._mode, self._ended = Mode.ENDED, error
        self._say(says + failure_answers(outstanding, error))
        self._heard([*waited, *outstanding])

    def _close(self) -> None:
        self._board.forget(self)
        self._bindings.close()
        self.endpoints.remove()
