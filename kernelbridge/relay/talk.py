"""The kernel's ZMQ channels, seen from its own container: connected, asked until it answers, read in order.

Which process it is: child.py. Where its messages go: __main__.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from typing import Any, Callable, Dict, List, Optional

from . import wire
from .child import Child

NUDGE_SECONDS = 0.25
# After the kernel's end its last messages are read until nothing came for so long.
DRAIN_SECONDS = 0.1
# Control first: a debugger waits for it. Then iopub before shell: a reply never overtakes its output.
ORDER = (wire.CONTROL, wire.STDIN, wire.IOPUB, wire.SHELL)
_MOST_MESSAGES = 200
_NUDGE = b"kernelbridge-nudge"
_DELIMITER = b"<IDS|MSG>"


class Talk:
    """The sockets to one launch after the other; silent between them, and until pyzmq is loaded."""

    def __init__(self, heard: Callable[[int, List[bytes]], None], ready: Callable[[Dict[str, Any]], None]) -> None:
        # Called with each message (channel, parts), and once for each launch with its kernel_info.
        self._heard = heard
        self._told_ready = ready
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
        # Whose header.session our own messages carry.
        self._session = ""

    def load(self) -> None:
        """Load pyzmq; without it in the image nothing is ever heard, and the relay says what is missing."""
        if importlib.util.find_spec("zmq") is None:
            return
        import zmq

        self.zmq = zmq
        self._context = zmq.Context()

    def connect(self, child: Child) -> None:
        """Connect to a launch's sockets; they may not be there yet."""
        if self.zmq is None:
            return
        zmq = self.zmq
        for port, channel in enumerate((wire.SHELL, wire.IOPUB, wire.STDIN, wire.CONTROL), 1):
            sock = self._context.socket(zmq.SUB if channel == wire.IOPUB else zmq.DEALER)
            sock.linger = 0
            sock.reconnect_ivl = 10
            # Output is never left to the kernel's own bounded queue: what does not fit there is lost.
            sock.rcvhwm = 0
            sock.sndhwm = 0
            if channel == wire.IOPUB:
                sock.subscribe(b"")
            else:
                # One identity on all three: the kernel addresses input requests with the shell's.
                sock.routing_id = b"kernelbridge-%d" % child.launch
            sock.connect(child.address(port))
            self.sockets[channel] = sock
        self._iopub_seen, self.info, self._nudge_at = False, None, 0.0
        self._session = child.session

    def close(self) -> None:
        """Talk to nobody."""
        for sock in self.sockets.values():
            sock.close()
        self.sockets = {}
        self.is_ready = False
        self._at_work = {}

    @property
    def is_busy(self) -> bool:
        """Whether the kernel works on a request."""
        return bool(self._at_work)

    @property
    def running(self) -> Optional[Dict[str, Any]]:
        """The header of the cell that runs; None while none does."""
        cells = (parent for parent in self._at_work.values() if parent.get("msg_type") == "execute_request")
        return next(cells, None)

    def refusal(self, message: wire.Message) -> Optional[wire.Message]:
        """Return the answer to a request for a kernel process that is no more; None where none is wanted."""
        parts = [bytes(part) for part in message.parts]
        try:
            at = parts.index(_DELIMITER)
            header = json.loads(parts[at + 2])
            kind = str(header["msg_type"])
        except (ValueError, LookupError, TypeError):
            return None
        if not kind.endswith("_request"):
            return None
        own = {"msg_id": os.urandom(16).hex(), "session": self._session, "username": "kernel", "version": "5.3"}
        own.update(
            msg_type=kind[: -len("_request")] + "_reply", date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        )
        content = {"status": "aborted", "execution_count": 0}
        said = [json.dumps(own).encode(), parts[at + 2], b"{}", json.dumps(content).encode()]
        return wire.Message(message.channel, message.launch, [*parts[:at], _DELIMITER, b"", *said])

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
        parts = [_NUDGE, _DELIMITER, b"", json.dumps(header).encode(), b"{}", b"{}", b"{}"]
        self.sockets[wire.SHELL].send_multipart(parts)

    def release(self) -> None:
        """Let the kernel be ready as soon as it has answered, which it may have."""
        self.is_held = False
        if self.sockets:
            self._check_ready()

    def say(self, channel: int, parts: List[wire.Buffer]) -> None:
        """Pass a client's message to the kernel."""
        if channel in self.sockets:
            self.sockets[channel].send_multipart(parts)

    def listen(self, ready: Dict[Any, int]) -> None:
        """Take in what came; `ready` is what the poll found."""
        if any(sock in ready for sock in self.sockets.values()):
            for channel in ORDER:
                if self.sockets[channel] in ready or channel == wire.IOPUB:
                    self._drain(channel)

    def listen_to_the_end(self) -> None:
        """Take in what an ended kernel left in its sockets."""
        until = time.monotonic() + DRAIN_SECONDS
        while self.sockets and time.monotonic() < until:
            if sum(self._drain(channel) for channel in ORDER):
                until = time.monotonic() + DRAIN_SECONDS
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
            if not self._is_ours(channel, parts):
                self._heard(channel, parts)
        return _MOST_MESSAGES

    def _is_ours(self, channel: int, parts: List[bytes]) -> bool:
        """Whether the message answers our nudge, or comes before the kernel is ready."""
        if channel == wire.SHELL and parts[0] == _NUDGE:
            if self.info is None:
                self.info = json.loads(parts[6])
            self._check_ready()
            return True
        if channel != wire.IOPUB:
            return False
        if not self.is_ready:
            self._iopub_seen = True
            self._check_ready()
            return True
        at = parts.index(_DELIMITER)
        # The kernel's own `starting` comes late or not at all: the client has been told long before.
        if parts[0].endswith(b".status"):
            self._note(parts[at + 3], parts[at + 5])
            if b'"starting"' in parts[at + 5]:
                return True
        return _NUDGE in parts[at + 3] or b"iopub_welcome" in parts[at + 2]

    def _note(self, parent: bytes, content: bytes) -> None:
        """Take in a status of the kernel's: which requests it works on."""
        header = json.loads(parent)
        if b'"busy"' in content:
            self._at_work[header.get("msg_id", "")] = header
        elif b'"idle"' in content:
            self._at_work.pop(header.get("msg_id", ""), None)

    def _check_ready(self) -> None:
        if self._iopub_seen and self.info is not None and not (self.is_ready or self.is_held):
            self.is_ready = True
            self._told_ready(self.info)
