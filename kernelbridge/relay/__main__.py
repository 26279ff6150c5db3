"""The relay: the container's main process under init. Supervises the kernel process; its ZMQ channels <-> frames.

One thread, one poll loop. What starts and ends the kernel process: child.py; who holds it: door.py; how long it lives
alone: lifetime.py; its GPUs: fence.py and sight.py; numbers and acknowledgements: replay.py; the process that joins a
link to our socket: bridge.py.
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
import uuid
from typing import Any, Dict, List, Optional, Tuple

from . import fence, wire
from .child import Child, Ring
from .door import Door
from .gathering import Gathering
from .journal import LIMIT_BYTES, MEMORY_BYTES, Journal
from .lifetime import EXIT_CODES, Deadline, Lifetime, terms_of
from .line import PlainPoller
from .replay import Peer
from .sight import Sight
from .spool import Spool
from .talk import Talk

SOCKET_NAME = "relay.sock"
# What output may take of the container's memory where no file can be had.
MEMORY_WITHOUT_FILE_BYTES = 64 * 1024 * 1024
# How often deadlines are looked at, and the kernel process, whose end mostly says so itself.
LOOK_SECONDS = 1.0
# What the container exits with when the engine stops it; else see lifetime.EXIT_CODES.
EXIT_BY_SIGNAL = 143
_PR_SET_DUMPABLE = 4
# Topics of iopub messages that show nobody anything.
_NO_OUTPUT = (b"status", b"execute_input")


def awake_seconds() -> float:
    """A clock that goes on while the machine sleeps, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _made(folder: Optional[str]) -> Optional[str]:
    """Return the journal's folder, made where it is missing; None where none may be made."""
    if folder is None:
        return None
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


class Relay:
    """The kernel process, its channels, and the door to whoever holds it."""

    def __init__(self, order: Dict[str, Any], locks: fence.Fence) -> None:
        self.kernel: str = order["kernel"]
        self.folder: str = order["folder"]
        self.ring = Ring()
        self.child: Optional[Child] = None
        self.fence = locks
        cards = order.get("gpus", {})
        self.sight = Sight(cards.get("ids", ()), self.ring.add, look_seconds=cards.get("look_seconds"))
        # The launch that was told that it lost its GPUs.
        self._lost_launch = 0
        # Whether the end of stdin is ours too: so a job ends what it has started.
        self._ends_with_stdin = bool(order.get("ends_with_stdin"))
        # Set when the kernel cannot run here at all: what the image lacks.
        self.lacks = ""
        self.talk = Talk(self._heard, self._ready)
        self.lifetime = Lifetime(terms_of(order.get("terms", {})), awake_seconds())
        # What its owner said as it left; "" when it did not, or came back.
        self.claim = ""
        # What ends it all, and the outcome of the last kernel process; for those who ask.
        self.deadline: Optional[Deadline] = None
        self.outcome: Optional[Dict[str, Any]] = None
        # Set when the container should end: its exit code.
        self.exit_code: Optional[int] = None
        # The deadline that ended the kernel process while there was output to deliver; "" if none has.
        self._ended_by = ""
        journal = order.get("journal", {})
        folder = _made(journal.get("folder"))
        self.spool = Spool(folder)
        memory_bytes = MEMORY_BYTES if folder else MEMORY_WITHOUT_FILE_BYTES
        limit_bytes = int(journal.get("bytes", LIMIT_BYTES))
        self.peer = Peer(Journal(self.spool, limit_bytes=limit_bytes, memory_bytes=memory_bytes))
        self.door = Door(os.path.join(self.folder, SOCKET_NAME), uuid.uuid4().hex, self.peer, self)
        self._look_at = 0.0
        # A byte comes in when a child process has ended: see main.
        self.bell, self.ringer = socket.socketpair()
        self.bell.setblocking(False)
        self.ringer.setblocking(False)
        self.gathering = Gathering(time.monotonic)
        # Whether some of what is not delivered yet is for people to see: only that keeps a lost kernel alive.
        self._has_output = False
        self.poller: Any = None
        # What the poller looks at.
        self._polled: List[Tuple[Any, int]] = []

    # -- the kernel process

    def spawn(self, order: Dict[str, Any]) -> None:
        """Start the kernel process of a launch; an older one is ended first."""
        self._end_child()
        self.outcome, self._ended_by = None, ""
        self.lacks = next((name for name in order["needs"] if importlib.util.find_spec(name) is None), "")
        if self.lacks:
            self.tell({"event": "failed", "launch": order["launch"], "lacks": self.lacks})
            return
        if self.sight.mismatch is not None:
            self.tell({"event": "failed", "launch": order["launch"], "gpus": self.sight.mismatch})
            return
        try:
            self.fence.take()  # They may have been given back.
            self.child = Child(order["launch"], self.folder, order, self.ring, locks=self.fence.descriptors)
        except (OSError, fence.Refused) as exc:
            self.tell({"event": "failed", "launch": order["launch"], "reason": str(exc)})
            return
        self.sight.begin(time.monotonic())
        self.talk.is_held = not self.sight.is_settled
        self.lifetime.launched(awake_seconds())
        self.talk.connect(self.child)

    def _end_child(self, why: str = "", *, failure: Optional[Dict[str, Any]] = None) -> None:
        if self.child is not None:
            self.child.end()
            self.child.process.wait()
            if why:
                self.talk.listen_to_the_end()
            self._forget_child(why, failure)

    def _forget_child(self, why: str = "", failure: Optional[Dict[str, Any]] = None) -> None:
        """The kernel process has ended; `why` names the deadline that ended it, `failure` is told in its place."""
        self.talk.close()
        child, self.child = self.child, None
        if child is not None:
            self.outcome = child.outcome()
            child.close()
        self.lifetime.ended(awake_seconds())
        if self.outcome is not None:
            self.outcome["why"] = why
            self.tell(failure or self.outcome)

    def load(self) -> None:
        """Load pyzmq, after the kernel was started: both take their time at once."""
        self.talk.load()
        if self.child is not None:
            self.talk.connect(self.child)

    # -- messages of the kernel

    def _heard(self, channel: int, parts: List[bytes]) -> None:
        assert self.child is not None
        packed = wire.pack(wire.Message(channel, self.child.launch, parts))
        if channel == wire.IOPUB:
            self.gathering.output()
        else:
            self.gathering.other()
        self._has_output = self._has_output or (channel == wire.IOPUB and not parts[0].endswith(_NO_OUTPUT))
        self.peer.add(wire.LANE_OF[channel], packed)

    def _ready(self, info: Dict[str, Any]) -> None:
        assert self.child is not None
        self.tell({"event": "ready", "launch": self.child.launch, "info": info})

    def tell(self, event: Dict[str, Any]) -> None:
        """Queue an event, behind all output so far."""
        packed = wire.pack(wire.Message(wire.EVENT, event["launch"], [json.dumps(event).encode()]))
        self.gathering.other()
        self.peer.add(wire.LANE_OF[wire.EVENT], packed)

    # -- what the door asks

    def obey(self, message: wire.Message) -> None:
        """Pass a client's message to the kernel, or do what a command says."""
        self.lifetime.used()
        if message.channel == wire.COMMAND:
            self._command(json.loads(bytes(message.parts[0])))
        elif self.child is not None and message.launch == self.child.launch:
            self.talk.say(message.channel, list(message.parts))
        else:
            # It was meant for a kernel process that is no more.
            refused = self.talk.refusal(message)
            if refused is not None:
                self.peer.add(wire.LANE_OF[message.channel], wire.pack(refused))

    def _command(self, command: Dict[str, Any]) -> None:
        if command["do"] == "spawn":
            self.spawn(command)
        elif command["do"] == "signal" and self.child is not None:
            if command["number"] in (signal.SIGKILL, signal.SIGTERM):
                self.child.end(command["number"])
            else:
                self.child.signal_group(command["number"])

    def answer(self, ask: str) -> Dict[str, Any]:
        """Return what a WELCOME and an answer say: the log, or the state of the kernel."""
        if ask == "logs":
            return {"text": self.ring.text()}
        now, awake = time.monotonic(), awake_seconds()
        deadline = self.deadline
        return {
            "version": wire.VERSION,
            "launch": self.child.launch if self.child else 0,
            "session": self.child.session if self.child else "",
            "ready": self.talk.is_ready,
            "info": self.talk.info if self.talk.is_ready else None,
            "running": self.talk.running,
            "lacks": self.lacks,
            "outcome": self.outcome,
            "state": self._state(),
            "quiet_seconds": awake - self.lifetime.quiet_since,
            "alone_seconds": None if self.lifetime.alone_since is None else awake - self.lifetime.alone_since,
            "undelivered_bytes": self.peer.undelivered_bytes if self._has_output else 0,
            "deadline": None if deadline is None else {"seconds": deadline.at - awake, "why": deadline.why},
            "persist": self.lifetime.terms.persist,
            "claim": bool(self.claim),
            "gpus": {"ids": self.fence.ids, "seen": self.sight.seen, "lost": self.sight.is_lost},
            **self.door.holder_facts(now),
        }

    def _state(self) -> str:
        if self.child is None:
            return "exited" if self.outcome is not None or self.lacks else "starting"
        if not self.talk.is_ready:
            return "starting"
        return "busy" if self.talk.is_busy else "idle"

    def joined(self) -> None:
        """Somebody holds the kernel from now on."""
        self.claim = ""
        self.lifetime.joined()
        # What it was does not hold any more; what it is now is seen in this turn of the loop.
        self.deadline, self._look_at = None, 0.0

    def left(self) -> None:
        """The line ended."""
        self.lifetime.left(awake_seconds())

    def goodbye(self, said: Dict[str, Any]) -> None:
        """The owner leaves in good order: it may end the kernel process, and come again under its claim."""
        if said.get("end"):
            self._end_child()
        self.claim = str(said.get("claim", ""))
        self.lifetime.goodbye(awake_seconds(), ends=bool(said.get("end")))

    def may_claim(self, claim: str) -> bool:
        """Whether the kernel was left under this claim, and nobody has taken it since."""
        return bool(self.claim) and claim == self.claim

    # -- the loop

    def step(self) -> None:
        """Wait for something to do, and do it."""
        if self.gathering.nap_seconds:
            time.sleep(self.gathering.nap_seconds)
        ready = dict(self._poller().poll(self._patience_ms()))
        now = time.monotonic()
        if self._ends_with_stdin and 0 in ready and not os.read(0, 4096):
            sys.exit(EXIT_BY_SIGNAL)
        self._serve_kernel(ready, now)
        self._look_at_the_cards(now)
        self.door.serve(ready, now)
        if self._has_output and self.peer.is_delivered:
            self._has_output = False
        self.talk.nudge(now)
        if self.peer.outboxes[wire.ORDERED].waiting_bytes >= wire.FRAME_BYTES or not self.gathering.waits(now):
            self.gathering.went()
            self.door.flush(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look_at_the_clock()

    def _look_at_the_cards(self, now: float) -> None:
        """End a launch that sees other GPUs than it should, let another one be ready, and say when they are lost."""
        if self.child is None and self.sight.is_settled:
            return
        self.sight.step(now)
        if self.child is None:
            return
        launch = self.child.launch
        if self.sight.mismatch is not None:
            self._end_child(failure={"event": "failed", "launch": launch, "gpus": self.sight.mismatch})
        elif self.talk.is_held and self.sight.is_settled:
            self.talk.release()
        elif self.sight.is_lost and self.talk.is_ready and self._lost_launch != launch:
            self._lost_launch = launch
            self.tell({"event": "gpu_lost", "launch": launch, "parent": self.talk.running})

    def _look_at_the_clock(self) -> None:
        """End the kernel, and then the container, when their time has come."""
        awake = awake_seconds()
        self.deadline = self.lifetime.look(
            awake, is_busy=self.talk.is_busy or self.talk.is_asking, is_delivered=not self._has_output
        )
        if self.deadline is None or awake < self.deadline.at:
            return
        why = self.deadline.why
        # Nobody knows of what a kernel said that nobody ever joined.
        is_more = self.child is not None and why not in ("goodbye", "unjoined")
        has_left = self.lifetime.alone_since is not None and not self._has_output
        self.lifetime.is_over = True
        self._end_child(why)
        # What it said is delivered first; that it has ended is no output to wait for.
        if not is_more or has_left:
            self.exit_code = EXIT_CODES[self._ended_by or why]
        else:
            self._ended_by = why
            # The relay stays for its output alone, and that may take days.
            self.fence.give_back()

    def _poller(self) -> Any:
        """The poller of all that may happen; made anew only when that changed."""
        zmq = self.talk.zmq
        read, write = (zmq.POLLIN, zmq.POLLOUT) if zmq is not None else (1, 4)
        wanted: List[Tuple[Any, int]] = [(sock, read) for sock in self.talk.sockets.values()]
        wanted += [(self.door.listener.fileno(), read), (self.bell.fileno(), read)]
        for line in self.door.lines:
            wanted.append((line.sock.fileno(), read))
            if line.is_adopted:
                wanted.append((line.source, read))
            if line.unsent:
                wanted.append((line.sink, write))
        if self.child is not None:
            wanted.append((self.child.output, read))
        if self._ends_with_stdin:
            wanted.append((0, read))
        if wanted != self._polled:
            self._polled = wanted
            self.poller = zmq.Poller() if zmq is not None else PlainPoller()
            for source, mask in wanted:
                self.poller.register(source, mask)
        return self.poller

    def _patience_ms(self) -> int:
        if self.gathering.is_on:
            return 1
        if self.talk.is_asking:
            return 50
        due = self._look_at if self.peer.acknowledge_at is None else min(self._look_at, self.peer.acknowledge_at)
        return max(1, int(1000 * (due - time.monotonic())) + 1)

    def _serve_kernel(self, ready: Dict[Any, int], now: float) -> None:
        self.talk.listen(ready)
        has_rung = self.bell.fileno() in ready
        if has_rung:
            self.bell.recv(4096)
        child = self.child
        if child is None:
            return
        has_output = child.output in ready
        if has_output and not child.read_output() and child.process.poll() is None:
            time.sleep(0.01)  # It closed its output and lives on: no busy loop.
        if (has_output or has_rung or now >= self._look_at) and child.process.poll() is not None:
            self.talk.listen_to_the_end()
            self._forget_child()


def main(order: Dict[str, Any]) -> None:
    """Run the relay until the container is stopped. `order` is the first line of stdin: kernel id and first launch."""
    try:
        # Nobody of our own login may read the memory that a secret passed through.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        pass
    cards = order.setdefault("gpus", {})
    if cards.get("ids", ()) is None:
        # In a job it is its script that knows them.
        cards["ids"] = fence.granted(os.environ)
    relay = Relay(order, fence.taken(cards))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_BY_SIGNAL))
    # A handler of any kind, so that the end of a child rings.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(relay.ringer.fileno(), warn_on_full_buffer=False)
    relay.spawn(order["spawn"])
    order.clear()
    relay.load()
    try:
        while relay.exit_code is None:
            relay.step()
        relay.door.close()
        sys.exit(relay.exit_code)
    finally:
        if relay.child is not None:
            relay.child.end()
        relay.sight.close()
        relay.spool.close()
