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
from .talk import Talk

RUN_FOLDER = "/run/kernelbridge"
SOCKET_NAME = "relay.sock"
# The bridge pings; a line without a sign of life for so long is given up (design, decision 8).
SILENCE_SECONDS = 15.0
LOOK_SECONDS = 0.1
# Output alone waits so long for more to go with it; a reply takes it along at once.
GATHER_SECONDS = 0.001
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
        self.talk = Talk(self._heard, self._ready)
        self.line: Optional[Line] = None
        # Lines that said no HELLO yet.
        self.strangers: List[Line] = []
        self.peer = Peer()
        self._peer_stream = ""
        # When to look next whether the kernel process still lives; its output's end mostly says so before.
        self._look_at = 0.0
        # Since when output waits for more of it; None when it does not. And whether anything waits at all.
        self._gathering_since: Optional[float] = None
        self._has_news = False
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(os.path.join(folder, SOCKET_NAME))
        self.listener.listen(8)
        self.listener.setblocking(False)
        self.poller: Any = None
        # What the poller looks at.
        self._polled: List[Tuple[Any, int]] = []

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
        self.talk.connect(self.child)

    def _end_child(self) -> None:
        if self.child is not None:
            self.child.end()
            self.child.process.wait()
            self._forget_child(self.child.outcome())

    def _forget_child(self, outcome: Optional[Dict[str, Any]]) -> None:
        self.talk.close()
        if self.child is not None:
            self.child.close()
        self.child = None
        if outcome is not None:
            self.tell(outcome)

    def load(self) -> None:
        """Load pyzmq, after the kernel was started: both take their time at once."""
        self.talk.load()
        if self.child is not None:
            self.talk.connect(self.child)

    # -- messages of the kernel

    def _heard(self, channel: int, parts: List[bytes]) -> None:
        assert self.child is not None
        packed = wire.pack(wire.Message(channel, self.child.launch, parts))
        if channel != wire.IOPUB:
            self._gathering_since = None
        elif self._gathering_since is None and not self._has_news:
            self._gathering_since = time.monotonic()
        self._has_news = True
        may_drop = channel == wire.IOPUB and parts[0].endswith(_DROPPABLE)
        self.peer.add(wire.LANE_OF[channel], packed, may_drop=may_drop)

    def _ready(self, info: Dict[str, Any]) -> None:
        assert self.child is not None
        self.tell({"event": "ready", "launch": self.child.launch, "info": info})

    def tell(self, event: Dict[str, Any]) -> None:
        """Queue an event, behind all output so far."""
        packed = wire.pack(wire.Message(wire.EVENT, event["launch"], [json.dumps(event).encode()]))
        self._gathering_since, self._has_news = None, True
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
        elif self.child is not None and message.launch == self.child.launch:
            self.talk.say(message.channel, list(message.parts))

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
            "ready": self.talk.is_ready,
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
        if line is None or self._is_gathering(now):
            return
        self._gathering_since, self._has_news = None, False
        try:
            if not line.unsent:
                line.write(self.peer.outgoing(now))
            else:
                line.write([])
        except OSError:
            self.lose(line)

    def _is_gathering(self, now: float) -> bool:
        """Whether output waits a moment for more: each piece costs work in five processes up to the client."""
        if self._gathering_since is None or self.peer.outboxes[wire.ORDERED].waiting_bytes >= wire.FRAME_BYTES:
            return False
        return now - self._gathering_since < GATHER_SECONDS

    # -- the loop

    def step(self) -> None:
        """Wait for something to do, and do it."""
        ready = dict(self._poller().poll(self._patience_ms()))
        now = time.monotonic()
        self._serve_kernel(ready, now)
        self._serve_lines(ready, now)
        self.talk.nudge(now)
        self.flush(now)

    def _poller(self) -> Any:
        """The poller of all that may happen; made anew only when that changed."""
        zmq = self.talk.zmq
        read, write = (zmq.POLLIN, zmq.POLLOUT) if zmq is not None else (1, 4)
        wanted: List[Tuple[Any, int]] = [(sock, read) for sock in self.talk.sockets.values()]
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
        if self._gathering_since is not None:
            return 1
        if self.talk.is_asking:
            return 50
        if self.peer.acknowledge_at is not None:
            return max(1, min(200, int(1000 * (self.peer.acknowledge_at - time.monotonic()))))
        return 200

    def _serve_kernel(self, ready: Dict[Any, int], now: float) -> None:
        self.talk.listen(ready)
        child = self.child
        if child is None:
            return
        has_output = child.output in ready
        if has_output and not child.read_output() and child.process.poll() is None:
            time.sleep(0.01)  # It closed its output and lives on: no busy loop.
        if (has_output or now >= self._look_at) and child.process.poll() is not None:
            self.talk.listen_to_the_end()
            self._forget_child(child.outcome())
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS

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
    relay.load()
    try:
        while True:
            relay.step()
    finally:
        if relay.child is not None:
            relay.child.end()
