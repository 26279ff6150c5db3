"""This machine's five ZMQ sockets of each kernel: checks and signs with the client's key, moves messages.

The thread that polls them: switchboard.py. What to answer while the kernel is away: waiting.py.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import zmq

from kernelbridge.channels import hidden_cells, messages
from kernelbridge.channels.endpoints import NAMES, Endpoints
from kernelbridge.channels.messages import Request, Say, Signer
from kernelbridge.channels.switchboard import IDLE_MS, Reader, Switchboard
from kernelbridge.channels.waiting import Waiting, Wish, failure_answers, shutdown_answer, without_subshells
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.relay import wire

_LOG = logging.getLogger(__name__)
_CHANNEL = {"shell": wire.SHELL, "iopub": wire.IOPUB, "stdin": wire.STDIN, "control": wire.CONTROL}
_NAME = {number: name for name, number in _CHANNEL.items()}
# A subscriber that does not read is held back by so many messages; the rest stays in the journal.
_SUBSCRIBER_MESSAGES = 1000
_RETRY_MS, _PROGRESS_MS = 5, 250
STUCK_SECONDS = 60
# Messages from one socket before the others have their turn.
_TURN = 100
# iopub parts that wait for a slow subscriber; above this the owner stops acknowledging.
BACKLOG_BYTES = 16 * 1024 * 1024


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

    def __init__(self, board: Switchboard, endpoints: Endpoints, *, session: str, info: dict[str, Any], owner: Owner):
        """Bind the endpoints. Raises OSError if an address is taken."""
        self._board = board
        self._signer = Signer(endpoints.key)
        self._session = session
        self._owner = owner
        # The last kernel_info content known; said while waiting and while the link is lost.
        self._info = info
        # Whether no kernel of this very image has said it.
        self._is_guess = True
        self.endpoints = endpoints
        # Below: only the ZMQ thread reads or changes it.
        self._mode = Mode.WAITING
        self._waiting = Waiting(info, is_guess=True)
        self._since = time.monotonic()
        self._launch = 0
        self._lost = LinkLost(host="")
        self._ended: KernelBridgeError | None = None
        # Requests passed on and not answered yet, by id: who must hear of the kernel's end.
        self._outstanding: dict[str, Request] = {}
        # The request whose busy was said here already: the kernel's own is swallowed.
        self._had_busy = ""
        # Requests that were answered here already: what the kernel says to them is discarded.
        self._answered: set[str] = set()
        # VS Code's ipywidgets probe, passed on: its id, its prefix, what it has printed.
        self._probe: tuple[str, str, list[str]] | None = None
        # Why debugging is refused; empty where it is not.
        self._refuse_debug = ""
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        # iopub messages that a slow subscriber has no room for, oldest first.
        self._backlog: deque[list[wire.Buffer]] = deque()
        self._backlog_bytes = 0
        # When the backlog last moved, or began.
        self._moved_at = 0.0
        try:
            board.add(self)
        except zmq.ZMQError as exc:
            raise OSError(exc.errno, f"cannot bind {endpoints.transport} endpoints at {endpoints.ip}: {exc}") from exc
        self.endpoints.publish()

    def __repr__(self) -> str:
        return f"<Channels {self._mode.value}, {len(self._outstanding)} outstanding, {self._backlog_bytes} bytes held>"

    # -- called from any thread

    @property
    def is_congested(self) -> bool:
        """Whether a slow subscriber holds so much back that nothing more should be acknowledged."""
        return self._backlog_bytes > BACKLOG_BYTES

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

    def open(self, *, launch: int, info: dict[str, Any], refuse_debug: str = "") -> None:
        """The kernel of this launch is there: pass the queue on, and all that comes."""
        self._board.post(lambda: self._enter_open(launch, info, refuse_debug))

    def lose(self, error: LinkLost) -> None:
        """The link is lost: requests wait in the journal, urgent ones are answered here."""
        self._board.post(lambda: self._enter_lost(error))

    def find(self) -> None:
        """The link is back."""
        self._board.post(self._enter_found)

    def end(self, error: KernelBridgeError) -> None:
        """The kernel will not come, or has ended: say why to all who wait, and to all who ask from now on."""
        self._board.post(lambda: self._enter_ended(error))

    def close(self) -> Future[None]:
        """Close the sockets; the future is done when they are."""
        return self._board.call(self._close)

    # -- on the ZMQ thread

    def bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Bind the five sockets. Raises zmq.ZMQError when an address is taken; none is left open then."""
        try:
            self.endpoints = self.endpoints.bound({name: self._bind(name, context) for name in NAMES})
        except zmq.ZMQError:
            self._close_sockets()
            raise

    def _bind(self, name: str, context: zmq.Context[zmq.Socket[bytes]]) -> int:
        sock = context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
        self._sockets[name] = sock
        sock.linger = 1000
        if name == "iopub":
            sock.setsockopt(zmq.XPUB_NODROP, 1)
            sock.sndhwm = _SUBSCRIBER_MESSAGES
        else:
            # A client that comes back under its routing id takes it over; replies wait for it without bound.
            sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
            sock.sndhwm = 0
        sock.bind(self.endpoints.address(name))
        return self.endpoints.ports[NAMES.index(name)] or _bound_port(sock)

    def sockets(self) -> dict[zmq.Socket[bytes], Reader]:
        """Return the sockets to poll, each with what reads it."""
        readers = {"iopub": self._read_subscriptions, "hb": self._echo}
        return {sock: readers.get(name, self._read) for name, sock in self._sockets.items()}

    @property
    def patience_ms(self) -> int:
        """How long the poll loop may sleep for this kernel."""
        if self._backlog:
            return _RETRY_MS
        return _PROGRESS_MS if self._mode is Mode.WAITING else IDLE_MS

    def tick(self) -> None:
        """Do what is due by time: show progress, offer held messages again."""
        if self._mode is Mode.WAITING:
            self._say(self._waiting.show(time.monotonic() - self._since))
        self._offer_backlog()

    def _read_subscriptions(self, sock: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                sock.recv(zmq.NOBLOCK)

    def _echo(self, sock: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                beat = sock.recv_multipart(zmq.NOBLOCK)
                if self._mode is not Mode.ENDED:
                    sock.send_multipart(beat)

    def _read(self, sock: zmq.Socket[bytes]) -> None:
        channel = next(_CHANNEL[name] for name, mine in self._sockets.items() if mine is sock)
        passed: list[tuple[int, bytes]] = []
        with contextlib.suppress(zmq.Again):
            for _ in range(_TURN):
                parts = sock.recv_multipart(zmq.NOBLOCK)
                try:
                    request = messages.parse(channel, parts, self._signer)
                except messages.MessageInvalid as exc:
                    _LOG.warning("a message on channel %d is dropped: %s", channel, exc)
                    continue
                passed += self._receive(request)
        if passed:
            self._owner.requests(passed)

    def _receive(self, request: Request) -> list[tuple[int, bytes]]:
        """Answer a request here, keep it, or return it packed for the kernel."""
        match self._mode:
            case Mode.WAITING:
                says, wish = self._waiting.receive(request)
                self._say(says)
                if wish is not None:
                    self._owner.wished(wish)
                return []
            case Mode.ENDED:
                self._answer_ended(request)
                return []
            case Mode.LOST if self._answered_lost(request):
                return []
        if self._refuse_debug and request.kind == "debug_request":
            self._say(messages.error_answer(request, "DebuggerOff", self._refuse_debug, shown=False))
            return []
        return [self._pack(request)]

    def _pack(self, request: Request) -> tuple[int, bytes]:
        if request.id not in self._answered and request.kind.endswith("_request"):
            self._outstanding[request.id] = request
            prefix = hidden_cells.probe_prefix(request)
            if prefix is not None:
                self._probe = (request.id, prefix, [])
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
                self._owner.wished(wish)
            case _:
                self._say(failure_answers([request], self._ended))

    def _answered_lost(self, request: Request) -> bool:
        match request.kind:
            case "kernel_info_request":
                says = messages.between_busy_and_idle(request, messages.reply(request, without_subshells(self._info)))
                # The idle must not hide that a cell is running there.
                running = [other for other in self._outstanding.values() if other.kind == "execute_request"]
                self._say(says + [messages.status("busy", other) for other in running[:1]])
            case "interrupt_request":
                self._say(messages.error_answer(request, type(self._lost).__name__, str(self._lost), shown=False))
            case "shutdown_request":
                self._say(shutdown_answer(request)[0])
            case _:
                return False
        return True

    def _say(self, says: list[Say]) -> None:
        for say in says:
            self._send(say.channel, messages.build(say, self._session))

    def _deliver(self, packed: Sequence[wire.Buffer]) -> None:
        for one in packed:
            message = wire.unpack(one)
            if message.channel == wire.IOPUB:
                watches = self._had_busy or self._answered or self._probe
                if watches and not self._passes(message.parts):
                    continue
            else:
                parent = messages.parent_id(message.parts)
                self._outstanding.pop(parent, None)
                if parent in self._answered:
                    continue
                if self._probe is not None and parent == self._probe[0]:
                    self._owner.learned(hidden_cells.printed_version(*self._probe[1:]))
                    self._probe = None
            self._send(message.channel, message.parts)

    def _passes(self, parts: Sequence[wire.Buffer]) -> bool:
        """Whether an iopub message goes on to the clients; some were said here already."""
        parent, content = messages.parent_id(parts), bytes(parts[messages.delimiter_index(parts) + 5])
        if parent in self._answered:
            if b'"idle"' in content:
                self._answered.discard(parent)
            return False
        if self._probe is not None and parent == self._probe[0] and b'"stdout"' in content:
            self._probe[2].append(str(json.loads(content).get("text", "")))
        if parent == self._had_busy and b'"busy"' in content:
            self._had_busy = ""
            return False
        return True

    def _send(self, channel: int, parts: Sequence[wire.Buffer]) -> None:
        signed = messages.signed(parts, self._signer)
        if channel == wire.IOPUB:
            if not self._backlog:
                self._moved_at = time.monotonic()
            self._backlog.append(signed)
            self._backlog_bytes += sum(map(len, signed))
            if len(self._backlog) == 1:
                self._offer_backlog()
            return
        self._sockets[_NAME[channel]].send_multipart(signed)

    def _offer_backlog(self) -> None:
        try:
            while self._backlog:
                self._sockets["iopub"].send_multipart(self._backlog[0], zmq.NOBLOCK)
                self._backlog_bytes -= sum(map(len, self._backlog.popleft()))
                self._moved_at = time.monotonic()
        except zmq.Again:
            if time.monotonic() - self._moved_at > STUCK_SECONDS:
                # One client that sleeps must not hold the output of all others for ever: from now on it misses some.
                _LOG.warning("a client has read nothing for %d s; it will miss output", STUCK_SECONDS)
                self._sockets["iopub"].setsockopt(zmq.XPUB_NODROP, 0)

    def _learn_image(self, info: dict[str, Any], widgets: str | None) -> None:
        self._info, self._is_guess = info, False
        if self._mode is Mode.WAITING:
            self._say(self._waiting.know(info, widgets))

    def _enter_waiting(self, why: str, told: KernelBridgeError | None) -> None:
        if told is not None:
            self._say(failure_answers(list(self._outstanding.values()), told))
        self._outstanding.clear()
        self._had_busy = ""
        self._ended = None
        if self._mode is not Mode.WAITING:
            self._waiting = Waiting(self._info, is_guess=self._is_guess)
            self._since = time.monotonic()
            self._mode = Mode.WAITING
        self._waiting.progress(why)

    def _enter_open(self, launch: int, info: dict[str, Any], refuse_debug: str) -> None:
        self._launch, self._refuse_debug = launch, refuse_debug
        self._info, self._is_guess = info, False
        says, queue, self._had_busy = self._waiting.release()
        self._answered = self._waiting.answered
        self._mode = Mode.OPEN
        self._say(says)
        passed = [packed for request in queue for packed in self._receive(request)]
        if passed:
            self._owner.requests(passed)

    def _enter_lost(self, error: LinkLost) -> None:
        if self._mode is Mode.OPEN:
            self._mode, self._lost = Mode.LOST, error

    def _enter_found(self) -> None:
        if self._mode is Mode.LOST:
            self._mode = Mode.OPEN

    def _enter_ended(self, error: KernelBridgeError) -> None:
        if self._mode is Mode.ENDED:
            return
        says = self._waiting.fail(error) if self._mode is Mode.WAITING else []
        outstanding, self._outstanding = list(self._outstanding.values()), {}
        self._mode, self._ended = Mode.ENDED, error
        self._say(says + failure_answers(outstanding, error))

    def _close(self) -> None:
        self._board.forget(self)
        self._close_sockets()

    def _close_sockets(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self.endpoints.remove()


def _bound_port(sock: zmq.Socket[bytes]) -> int:
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rsplit(b":", 1)[1])
