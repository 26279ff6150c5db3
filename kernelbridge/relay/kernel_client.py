"""Connect to the kernel's ZMQ channels from inside its container, ask until it answers, read its messages in order.

What the kernel cannot do itself is done here: interrupts, also while it is busy, and answers to what it has no handler
for. Clients wait for those, some without an end.
"""

from __future__ import annotations

import importlib.util
import json
import time
from typing import Any, Callable, Dict, List, Optional, Set

from ..protocol import frames, requests
from ..protocol.handshake import kernel_info
from ..protocol.json_object import TABLE_BYTES, parse_object
from .process.kernel_process import KernelProcess

NUDGE_SECONDS = 0.25
# After the kernel's end its last messages are read until nothing came for so long.
LAST_MESSAGES_SECONDS = 0.1
# Control first: a debugger waits for it. Then iopub before shell: a reply never overtakes its output.
ORDER = (frames.CONTROL, frames.STDIN, frames.IOPUB, frames.SHELL)
_MOST_MESSAGES = 200
# What reading a message raises that is none, or too large to be packed.
_NO_MESSAGE = (frames.WireError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
TELL_BAD_SECONDS = 10.0
_NUDGE = b"kernelbridge-nudge"
# An interrupt before a cell's own code runs is ignored, or ends the cell without a reply (ipykernel 7.4: "caught in
# kernel"). It comes so much later than the start, or, where no start is told (a silent cell), than the busy.
BEGIN_SECONDS, UNTOLD_BEGIN_SECONDS = 0.1, 0.5
# A cell that is over gets a reply after so long if the kernel sent none, as for one that was interrupted, or that
# it could not read. Without a reply a client waits for ever, and takes the cell for the one that runs.
INTERRUPTED_REPLY_SECONDS, REPLY_SECONDS = 1.0, 5.0
# Interrupts of cells that have not begun; older ones are forgotten.
_MOST_DUE = 100
# Requests that came after the first kernels, and the feature in kernel_info that stands for them.
_FEATURES = {
    "debug_request": "debugger",
    "create_subshell_request": "kernel subshells",
    "delete_subshell_request": "kernel subshells",
    "list_subshell_request": "kernel subshells",
}
# Nothing in kernel_info tells of these; they are known where the kernel's own list of handlers is.
_UNTOLD = ("usage_request",)


class KernelClient:
    """The sockets to one launch after the other; silent between them, and until pyzmq is loaded."""

    def __init__(
        self,
        heard: Callable[[int, List[frames.Buffer]], None],
        ready: Callable[[Dict[str, Any]], None],
        interrupt: Callable[[], None],
        bad: Callable[[int, int, str], None],
    ) -> None:
        # Called with each message (channel, parts), and once for each launch with its kernel_info; to interrupt; with
        # how many messages were dropped, their bytes, and why; see DroppedEvent.
        self._heard = heard
        self._told_ready = ready
        self._signal = interrupt
        self.zmq: Any = None
        self._context: Any = None
        # Channel -> socket; empty while there is nobody to talk to.
        self.sockets: Dict[int, Any] = {}
        self.is_ready = False
        # Whether an answer of the kernel's is not enough yet; set by the relay while it looks for the GPUs.
        self.is_held = False
        # Both parts of a kernel_info answer must have come: the reply and something on iopub.
        self._nudge_at = 0.0
        self._iopub_seen = False
        self.info: Optional[Dict[str, Any]] = None
        # Requests that the kernel works on: id -> parent header as it came; changed by its own busy and idle.
        self._at_work: Dict[str, Dict[str, Any]] = {}
        # From when on each of them can be interrupted.
        self._runs_from: Dict[str, float] = {}
        # Cells to be interrupted as soon as they can be.
        self._due: Dict[str, None] = {}
        # Cells that were at work as the kernel was interrupted.
        self._interrupted: Set[str] = set()
        # Cells that the kernel has not replied to; and those of them that were interrupted and are over, until when.
        self._unreplied: Dict[str, requests.Asked] = {}
        self._owed: Dict[str, float] = {}
        # Writes our own messages under the kernel's header.session.
        self._voice = requests.Voice("")
        # Messages that are none and were not told of yet, and when others were.
        self._told_bad = bad
        self._bad_messages = self._bad_bytes = 0
        self._told_bad_at = float("-inf")
        # The launch that is talked to.
        self._process: Optional[KernelProcess] = None

    def load(self) -> None:
        """Load pyzmq; without it in the image nothing is ever heard, and the relay says what is missing."""
        if importlib.util.find_spec("zmq") is None:
            return
        import zmq

        self.zmq = zmq
        self._context = zmq.Context()

    def connect(self, process: KernelProcess) -> None:
        """Connect to a launch's sockets; they may not be there yet."""
        if self.zmq is None:
            return
        zmq = self.zmq
        for port, channel in enumerate((frames.SHELL, frames.IOPUB, frames.STDIN, frames.CONTROL), 1):
            sock = self._context.socket(zmq.SUB if channel == frames.IOPUB else zmq.DEALER)
            sock.linger = 0
            sock.reconnect_ivl = 10
            # Output is never left to the kernel's own bounded queue: what does not fit there is lost.
            sock.rcvhwm = 0
            sock.sndhwm = 0
            if channel == frames.IOPUB:
                sock.subscribe(b"")
            else:
                # One identity on all three: the kernel addresses input requests with the shell's.
                sock.routing_id = b"kernelbridge-%d" % process.launch
            sock.connect(process.address(port))
            self.sockets[channel] = sock
        self._iopub_seen, self.info, self._nudge_at = False, None, 0.0
        self._process, self._voice = process, requests.Voice(process.session)

    def close(self) -> None:
        """Disconnect from the kernel's sockets."""
        for sock in self.sockets.values():
            sock.close()
        self.sockets = {}
        self.is_ready = False
        self._process = None
        for kept in (self._at_work, self._runs_from, self._due, self._interrupted, self._unreplied, self._owed):
            kept.clear()

    @property
    def is_busy(self) -> bool:
        """Whether the kernel works on a request."""
        return bool(self._at_work)

    @property
    def running(self) -> Optional[Dict[str, Any]]:
        """The header of the cell that runs; None while none does."""
        cells = (parent for parent in self._at_work.values() if parent.get("msg_type") == "execute_request")
        return next(cells, None)

    def refusal(self, message: frames.Message) -> List[frames.Message]:
        """Return the whole answer to a request for a kernel process that is no more; empty where none is wanted."""
        asked = requests.read(message.parts)
        if asked is None:
            return []
        content = {"status": "aborted", "execution_count": 0}
        answers = self._voice.answer(message.channel, asked, content)
        return [frames.Message(channel, message.launch, parts) for channel, parts in answers]

    @property
    def is_asking(self) -> bool:
        """Whether the kernel has not answered yet."""
        return bool(self.sockets) and not self.is_ready

    def nudge(self, now: float) -> None:
        """Ask the kernel for its info until it answers on shell and iopub: then nothing it says is missed."""
        if not self.is_asking or now < self._nudge_at:
            return
        self._nudge_at = now + NUDGE_SECONDS
        header = {"msg_id": _NUDGE.decode(), "session": _NUDGE.decode(), "username": "kernelbridge", "version": "5.3"}
        header.update(msg_type="kernel_info_request", date="2000-01-01T00:00:00Z")
        parts = [_NUDGE, frames.DELIMITER, b"", json.dumps(header).encode(), b"{}", b"{}", b"{}"]
        self.sockets[frames.SHELL].send_multipart(parts)

    def release(self) -> None:
        """Let the kernel be ready as soon as it has answered, which it may have."""
        self.is_held = False
        if self.sockets:
            self._check_ready()

    def say(self, channel: int, parts: List[frames.Buffer]) -> None:
        """Pass a client's message to the kernel, unless it is one that the relay answers in its place."""
        asked = requests.read(parts)
        if asked is not None and asked.kind == requests.INTERRUPT and self._interrupts_by_signal:
            is_sent = self._interrupt(asked.cell, time.monotonic())
            self._answer(channel, asked, {"status": "ok", requests.SENT_KEY: is_sent})
        elif asked is not None and not self._has_handler(asked.kind):
            self._answer(channel, asked, requests.unknown(asked))
        elif channel in self.sockets:
            if asked is not None and asked.kind == "execute_request":
                self._unreplied[asked.id] = asked
            self.sockets[channel].send_multipart(parts)

    def _answer(self, channel: int, asked: requests.Asked, content: Dict[str, Any]) -> None:
        for to, parts in self._voice.answer(channel, asked, content):
            self._heard(to, parts)

    def _has_handler(self, kind: str) -> bool:
        """Whether the kernel answers requests of this kind, as far as can be known."""
        if (kind not in _FEATURES and kind not in _UNTOLD) or self._process is None or self.info is None:
            return True
        handlers = self._process.handlers
        if handlers is not None:
            return kind in handlers
        features = self.info.get("supported_features") or ()
        return (
            kind in _UNTOLD
            or _FEATURES[kind] in features
            or (kind == "debug_request" and bool(self.info.get("debugger")))
        )

    # -- interrupts

    @property
    def _interrupts_by_signal(self) -> bool:
        """Whether SIGINT interrupts this kernel, as it does all of ipykernel's; others may want the message."""
        return self._process is None or self._process.interrupt_mode != "message"

    def _interrupt(self, cell: Optional[str], now: float) -> bool:
        """Interrupt the kernel, or, where a cell is named, that one alone, as soon as it runs; whether it was now."""
        if not self.is_ready:
            return False  # It would end by it.
        if cell is None:
            self._signal_now()
            return True
        if cell in self._due:
            return False
        self._due[cell] = None
        self.do_due(now)
        while len(self._due) > _MOST_DUE:
            del self._due[next(iter(self._due))]
        return cell not in self._due

    def _signal_now(self) -> None:
        self._interrupted.update(cell for cell in self._at_work if cell in self._unreplied)
        self._signal()

    @property
    def due_at(self) -> float:
        """When `do_due` has something to do; infinite while nothing waits for a time."""
        waits = [self._runs_from[cell] for cell in self._due if cell in self._runs_from]
        return min([*waits, *self._owed.values()], default=float("inf"))

    def do_due(self, now: float) -> None:
        """Interrupt the cells that were to be, now that they run; answer those that ended by it and were not."""
        for cell in [cell for cell in self._due if now >= self._runs_from.get(cell, float("inf"))]:
            del self._due[cell]
            self._signal_now()
        for cell in [cell for cell, until in self._owed.items() if now >= until]:
            del self._owed[cell]
            self._reply_for(self._unreplied.pop(cell), is_interrupted=cell in self._interrupted)
            self._interrupted.discard(cell)

    def _reply_for(self, asked: requests.Asked, *, is_interrupted: bool) -> None:
        """Answer a cell that the kernel has ended without a reply."""
        name, text = "NoReply", "The kernel ended this cell without a reply."
        if is_interrupted:
            name, text = "KeyboardInterrupt", ""
        error = {"ename": name, "evalue": text, "traceback": ["%s: %s" % (name, text) if text else name]}
        self._heard(frames.IOPUB, self._voice.error(asked, error))
        reply = dict(error, status="error", execution_count=0, user_expressions={}, payload=[])
        self._heard(frames.SHELL, self._voice.reply(asked, reply))

    def listen(self, ready: Dict[Any, int]) -> None:
        """Take in what came; `ready` is what the poll found."""
        if any(sock in ready for sock in self.sockets.values()):
            for channel in ORDER:
                if self.sockets[channel] in ready or channel == frames.IOPUB:
                    self._drain(channel)

    def listen_to_the_end(self) -> None:
        """Take in what an ended kernel left in its sockets."""
        until = time.monotonic() + LAST_MESSAGES_SECONDS
        while self.sockets and time.monotonic() < until:
            if sum(self._drain(channel) for channel in ORDER):
                until = time.monotonic() + LAST_MESSAGES_SECONDS
            else:
                time.sleep(0.005)

    def _drain(self, channel: int) -> int:
        """Hand on what the kernel said on a channel; return how many messages that were."""
        sock = self.sockets[channel]
        for count in range(_MOST_MESSAGES):
            try:
                parts = sock.recv_multipart(self.zmq.NOBLOCK)
            except self.zmq.Again:
                return count
            try:
                if not self._is_ours(channel, parts):
                    self._heard(channel, parts)
            except frames.MessageTooLong:
                self._told_bad(1, sum(map(len, parts)), "size")
            except _NO_MESSAGE:
                # A kernel may say anything: what it says around this must not suffer.
                self._drop(parts)
        return _MOST_MESSAGES

    def _drop(self, parts: List[bytes]) -> None:
        """Count a message that is none, and tell of them, at most once in a while."""
        self._bad_messages += 1
        self._bad_bytes += sum(map(len, parts))
        now = time.monotonic()
        if now - self._told_bad_at >= TELL_BAD_SECONDS:
            self._told_bad_at = now
            self._told_bad(self._bad_messages, self._bad_bytes, "invalid")
            self._bad_messages = self._bad_bytes = 0

    def _is_ours(self, channel: int, parts: List[bytes]) -> bool:
        """Whether the message answers our nudge, or comes before the kernel is ready."""
        if channel == frames.SHELL and self._unreplied:
            self._note_reply(parts)
        if channel == frames.SHELL and parts[0] == _NUDGE:
            if self.info is None:
                self.info = kernel_info(parse_object(parts[6]))
            self._check_ready()
            return True
        if channel != frames.IOPUB:
            return False
        if not self.is_ready:
            self._iopub_seen = True
            self._check_ready()
            return True
        at = parts.index(frames.DELIMITER)
        # The kernel's own `starting` comes late or not at all: the client has been told long before.
        if parts[0].endswith(b".status"):
            self._note(parts[at + 3], parts[at + 5])
            if b'"starting"' in parts[at + 5]:
                return True
        elif parts[0].endswith(b"execute_input"):
            self._runs_from[_parent_id(parts[at + 3])] = time.monotonic() + BEGIN_SECONDS
        return _NUDGE in parts[at + 3] or b"iopub_welcome" in parts[at + 2]

    def _note_reply(self, parts: List[bytes]) -> None:
        if frames.DELIMITER in parts[:-3]:
            replied = _parent_id(parts[parts.index(frames.DELIMITER) + 3])
            self._unreplied.pop(replied, None)
            self._owed.pop(replied, None)
            self._interrupted.discard(replied)

    def _note(self, parent: bytes, content: bytes) -> None:
        """Take in a status of the kernel's: which requests it works on."""
        header = parse_object(parent)
        if len(parent) > TABLE_BYTES:
            header = {key: header[key] for key in ("msg_id", "msg_type") if len(str(header.get(key, ""))) < 1000}
        request = str(header.get("msg_id", ""))
        if b'"busy"' in content:
            self._at_work[request] = header
            self._runs_from[request] = time.monotonic() + UNTOLD_BEGIN_SECONDS
        elif b'"idle"' in content:
            self._at_work.pop(request, None)
            self._runs_from.pop(request, None)
            self._due.pop(request, None)
            if request in self._unreplied:
                is_interrupted = request in self._interrupted
                seconds = INTERRUPTED_REPLY_SECONDS if is_interrupted else REPLY_SECONDS
                self._owed[request] = time.monotonic() + seconds

    def _check_ready(self) -> None:
        if self._iopub_seen and self.info is not None and not (self.is_ready or self.is_held):
            self.is_ready = True
            self._told_ready(self.info)


def _parent_id(header: bytes) -> str:
    try:
        return str(json.loads(header).get("msg_id", ""))
    except (ValueError, AttributeError, RecursionError):
        return ""  # A kernel may say anything.
