"""The relay: the container's main process under init. Supervises the kernel process; its ZMQ channels <-> frames.

One thread, one poll loop. What starts and ends the kernel process: child.py; numbers and acknowledgements: replay.py;
the thin process that joins a link to our socket: bridge.py.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from . import wire
from .child import Child, Ring
from .line import Line, PlainPoller
from .replay import Peer

RUN_FOLDER = "/run/kernelbridge"
SOCKET_NAME = "relay.sock"
ACKNOWLEDGE_SECONDS = 0.25
# The bridge pings; a line without a sign of life for so long is given up (design, decision 8).
SILENCE_SECONDS = 15.0
NUDGE_SECONDS = 0.25
# After the kernel's end its last messages are read until nothing came for so long.
DRAIN_SECONDS = 0.1
_NUDGE = b"kernelbridge-nudge"
_DELIMITER = b"<IDS|MSG>"
_DROPPABLE = (b"stream", b"display_data", b"update_display_data")
_PR_SET_DUMPABLE = 4


class Relay:
    """The kernel process, its channels, and the line to whoever holds it."""

    def __init__(self, kernel: str, folder: str) -> None:
        self.kernel = kernel
        self.folder = folder
        self.ring = Ring()
        self.child: Optional[Child] = None
        # Set when the kernel cannot run here at all: what the image lacks.
        self.lacks = ""
        # Channel -> ZMQ socket of this launch; empty until pyzmq is imported and after the kernel's end.
        self.sockets: Dict[int, Any] = {}
        self.ready = False
        # Both frames of a kernel_info answer must have come: the reply and something on iopub.
        self._nudge_at = 0.0
        self._iopub_seen = False
        self._info: Optional[Dict[str, Any]] = None
        self.line: Optional[Line] = None
        # Lines that said no HELLO yet.
        self.strangers: List[Line] = []
        self.peer = Peer()
        self._peer_stream = ""
        self._acknowledge_at = 0.0
        self._drained_at = 0.0
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(os.path.join(folder, SOCKET_NAME))
        self.listener.listen(8)
        self.listener.setblocking(False)
        self.zmq: Any = None
        self.poller: Any = None
        # What the poller looks at.
        self._polled: List[Tuple[Any, int]] = []
        self.context: Any = None

    # -- the kernel process

    def spawn(self, order: Dict[str, Any]) -> None:
        """Start the kernel process of a launch; an older one is ended first."""
        self._end_child()
        self.lacks = next((name for name in order["needs"] if importlib.util.find_spec(name) is None), "")
        if self.lacks:
            self.tell({"event": "failed", "launch": order["launch"], "lacks": self.lacks})
            return
        try:
            self.child = Child(order["launch"], self.folder, order, self.ring)
        except OSError as exc:
            self.tell({"event": "failed", "launch": order["launch"], "reason": str(exc)})
            return
        if self.zmq is not None:
            self.connect()

    def _end_child(self) -> None:
        if self.child is not None:
            self.child.end()
            self.child.process.wait()
            self._forget_child(self.child.outcome())

    def _forget_child(self, outcome: Optional[Dict[str, Any]]) -> None:
        self._close_sockets()
        if self.child is not None:
            os.close(self.child.output)
        self.child = None
        if outcome is not None:
            self.tell(outcome)

    def import_zmq(self) -> None:
        """Load pyzmq, after the kernel was started: both take their time at once."""
        if importlib.util.find_spec("zmq") is None:
            return
        import zmq

        self.zmq = zmq
        self.context = zmq.Context()
        if self.child is not None:
            self.connect()

    def connect(self) -> None:
        """Connect to the kernel's sockets; they may not be there yet."""
        zmq, child = self.zmq, self.child
        assert child is not None
        for port, channel in enumerate((wire.SHELL, wire.IOPUB, wire.STDIN, wire.CONTROL), 1):
            sock = self.context.socket(zmq.SUB if channel == wire.IOPUB else zmq.DEALER)
            sock.linger = 0
            sock.reconnect_ivl = 10
            sock.rcvhwm = 0
            sock.sndhwm = 0
            if channel == wire.IOPUB:
                sock.subscribe(b"")
            else:
                # One identity on all three: the kernel addresses input requests with the shell's.
                sock.routing_id = b"kernelbridge-%d" % child.launch
            sock.connect(child.address(port))
            self.sockets[channel] = sock
        self.ready, self._iopub_seen, self._info, self._nudge_at = False, False, None, 0.0

    def _close_sockets(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.sockets = {}
        self.ready = False

    def nudge(self, now: float) -> None:
        """Ask the kernel for its info until it answers on shell and iopub: then nothing it says is missed."""
        if self.ready or not self.sockets or now < self._nudge_at:
            return
        self._nudge_at = now + NUDGE_SECONDS
        header = {"msg_id": _NUDGE.decode(), "session": _NUDGE.decode(), "username": "kernelbridge", "version": "5.3"}
        header.update(msg_type="kernel_info_request", date="2000-01-01T00:00:00Z")
        parts = [_NUDGE, _DELIMITER, b"", json.dumps(header).encode(), b"{}", b"{}", b"{}"]
        self.sockets[wire.SHELL].send_multipart(parts)

    # -- messages of the kernel

    def drain(self, channel: int, limit: int = 200) -> int:
        """Move what the kernel said on `channel` into the journal; return how many messages that were."""
        sock, child = self.sockets[channel], self.child
        assert child is not None
        for count in range(limit):
            try:
                parts = sock.recv_multipart(self.zmq.NOBLOCK)
            except self.zmq.Again:
                return count
            if self._is_ours(channel, parts):
                continue
            packed = wire.pack(wire.Message(channel, child.launch, parts))
            may_drop = channel == wire.IOPUB and parts[0].endswith(_DROPPABLE)
            self.peer.add(wire.LANE_OF[channel], packed, may_drop=may_drop)
        return limit

    def _is_ours(self, channel: int, parts: List[bytes]) -> bool:
        """Whether the message answers our nudge, or comes before the kernel is ready."""
        if channel == wire.SHELL and parts[0] == _NUDGE:
            if self._info is None:
                self._info = json.loads(parts[6])
            self._check_ready()
            return True
        if channel != wire.IOPUB:
            return False
        if not self.ready:
            self._iopub_seen = True
            self._check_ready()
            return True
        at = parts.index(_DELIMITER)
        # The kernel's own `starting` comes late or not at all: the client has been told long before.
        is_starting = parts[0].endswith(b".status") and b'"starting"' in parts[at + 5]
        return is_starting or _NUDGE in parts[at + 3] or b"iopub_welcome" in parts[at + 2]

    def _check_ready(self) -> None:
        if self._iopub_seen and self._info is not None and not self.ready:
            assert self.child is not None
            self.ready = True
            self.tell({"event": "ready", "launch": self.child.launch, "info": self._info})

    def tell(self, event: Dict[str, Any]) -> None:
        """Queue an event, behind all output so far."""
        packed = wire.pack(wire.Message(wire.EVENT, event["launch"], [json.dumps(event).encode()]))
        self.peer.add(wire.LANE_OF[wire.EVENT], packed)

    # -- messages for the kernel

    def obey(self, message: wire.Message) -> None:
        """Pass a client's message to the kernel, or do what a command says."""
        if message.channel == wire.COMMAND:
            command = json.loads(bytes(message.parts[0]))
            if command["do"] == "spawn":
                self.spawn(command)
            elif command["do"] == "signal" and self.child is not None:
                if command["number"] in (signal.SIGKILL, signal.SIGTERM):
                    self.child.end(command["number"])
                else:
                    self.child.signal_group(command["number"])
        elif self.child is not None and message.launch == self.child.launch and message.channel in self.sockets:
            self.sockets[message.channel].send_multipart(message.parts)

    # -- lines

    def greet(self, line: Line, hello: Dict[str, Any]) -> None:
        """Answer a HELLO: a question is answered and done; an owner gets the stream, or hears who has it."""
        ask = hello.get("ask", "attach")
        if hello.get("kernel") != self.kernel or hello.get("version") != wire.VERSION:
            line.write([wire.frame(wire.BUSY, json.dumps({"reason": "other kernel or version"}).encode())])
        elif ask != "attach":
            answer = {"text": self.ring.text()} if ask == "logs" else self.status()
            line.write([wire.frame(wire.ANSWER, json.dumps(answer).encode())])
        elif self.line is not None and self.line.owner != hello["owner"] and not hello.get("take"):
            line.write([wire.frame(wire.BUSY, json.dumps({"owner": self.line.owner}).encode())])
        else:
            self.close_line()
            self.strangers.remove(line)
            line.owner = hello["owner"]
            if hello["stream"] != self._peer_stream:
                # Another process, or the first: it starts both lanes anew.
                waiting, self.peer = self.peer, Peer()
                if not self._peer_stream:
                    self.peer = waiting
                self._peer_stream = hello["stream"]
            self.line = line
            welcome = dict(self.status(), received=self.peer.received)
            line.write([wire.frame(wire.WELCOME, json.dumps(welcome).encode())])
            self.peer.resume(hello["received"])

    def status(self) -> Dict[str, Any]:
        """What a WELCOME and an answer say of the kernel."""
        return {
            "version": wire.VERSION,
            "launch": self.child.launch if self.child else 0,
            "ready": self.ready,
            "lacks": self.lacks,
            "owner": self.line.owner if self.line else None,
        }

    def close_line(self) -> None:
        """Give up the line in use, if there is one."""
        if self.line is not None:
            self.line.close()
            self.line = None

    def read_line(self, line: Line, now: float) -> None:
        """Take in what came over a line; it is given up when it ends or is not our protocol."""
        try:
            if not line.is_adopted:
                line.adopt()
                return
            piece = line.read()
            line.heard = now
            for frame in line.decoder.feed(piece):
                self._take_frame(line, frame, now)
        except BlockingIOError:
            return
        except (OSError, wire.WireError, ValueError, KeyError):
            self.lose(line)

    def _take_frame(self, line: Line, frame: wire.Frame, now: float) -> None:
        if frame.kind == wire.HELLO:
            self.greet(line, json.loads(bytes(frame.payload)))
        elif frame.kind == wire.PING:
            line.write([wire.frame(wire.PONG, bytes(frame.payload))])
        elif line is self.line:
            packed = self.peer.accept(frame, now)
            if packed is not None:
                self.obey(wire.unpack(packed))

    def lose(self, line: Line) -> None:
        """Forget a line that ended."""
        if line is self.line:
            self.close_line()
        elif line in self.strangers:
            self.strangers.remove(line)
            line.close()

    def flush(self, now: float) -> None:
        """Put on the line what may go."""
        line = self.line
        if line is None:
            return
        due = self.peer.owes_acknowledgement and now >= self._acknowledge_at
        if due or not self.peer.owes_acknowledgement:
            self._acknowledge_at = now + ACKNOWLEDGE_SECONDS
        try:
            if not line.unsent:
                line.write(self.peer.outgoing(now, acknowledge=due))
            else:
                line.write([])
        except OSError:
            self.lose(line)

    # -- the loop

    def step(self) -> None:
        """Wait for something to do, and do it."""
        ready = dict(self._poller().poll(self._patience_ms()))
        now = time.monotonic()
        self._serve_kernel(ready)
        self._serve_lines(ready, now)
        self.nudge(now)
        self.flush(now)

    def _poller(self) -> Any:
        """The poller of all that may happen; made anew only when that changed."""
        zmq = self.zmq
        read, write = (zmq.POLLIN, zmq.POLLOUT) if zmq is not None else (1, 4)
        wanted: List[Tuple[Any, int]] = [(sock, read) for sock in self.sockets.values()]
        wanted.append((self.listener.fileno(), read))
        for line in [*self.strangers, *([self.line] if self.line else [])]:
            wanted.append((line.sock.fileno(), read))
            if line.is_adopted:
                wanted.append((line.source, read))
            if line.unsent:
                wanted.append((line.sink, write))
        if self.child is not None:
            wanted.append((self.child.output, read))
        if wanted != self._polled:
            self._polled = wanted
            self.poller = zmq.Poller() if zmq is not None else PlainPoller()
            for source, mask in wanted:
                self.poller.register(source, mask)
        return self.poller

    def _patience_ms(self) -> int:
        if self.sockets and not self.ready:
            return 50
        return int(ACKNOWLEDGE_SECONDS * 1000) if self.peer.owes_acknowledgement else 200

    def _serve_kernel(self, ready: Dict[Any, int]) -> None:
        if any(sock in ready for sock in self.sockets.values()):
            # Control first: a debugger waits for it. Then iopub before shell: a reply never overtakes its output.
            for channel in (wire.CONTROL, wire.STDIN, wire.IOPUB, wire.SHELL):
                if self.sockets[channel] in ready or channel == wire.IOPUB:
                    self.drain(channel)
        child = self.child
        if child is None:
            return
        if child.output in ready and not child.read_output() and child.process.poll() is None:
            time.sleep(0.01)  # It closed its output and lives on: no busy loop.
        if child.process.poll() is not None:
            self._drain_last()
            self._forget_child(child.outcome())

    def _drain_last(self) -> None:
        """Read what an ended kernel left in its sockets."""
        until = time.monotonic() + DRAIN_SECONDS
        while self.sockets and time.monotonic() < until:
            if sum(self.drain(channel) for channel in (wire.IOPUB, wire.CONTROL, wire.STDIN, wire.SHELL)):
                until = time.monotonic() + DRAIN_SECONDS
            else:
                time.sleep(0.005)

    def _serve_lines(self, ready: Dict[Any, int], now: float) -> None:
        if self.listener.fileno() in ready:
            self.strangers.append(Line(self.listener.accept()[0]))
        for line in [*self.strangers, *([self.line] if self.line else [])]:
            if line.is_adopted and line.source in ready:
                self.read_line(line, now)
            elif line.sock.fileno() in ready:
                if line.is_adopted:
                    self.lose(line)  # The bridge says nothing more: it has gone.
                else:
                    self.read_line(line, now)
            elif now - line.heard > SILENCE_SECONDS:
                self.lose(line)


def main(order: Dict[str, Any]) -> None:
    """Run the relay until the container is stopped. `order` is the first line of stdin: kernel id and first launch."""
    try:
        # Nobody of our own login may read the memory that a secret passed through.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        pass
    relay = Relay(order["kernel"], order["folder"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    relay.spawn(order["spawn"])
    order.clear()
    relay.import_zmq()
    try:
        while True:
            relay.step()
    finally:
        if relay.child is not None:
            relay.child.end()
