"""Supervise the kernel process and pass its ZMQ messages on as frames: the container's main process under init.

One thread, one poll loop.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sys
import time
import uuid
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

from ..protocol import frames
from ..protocol.cells import is_cell
from ..protocol.exit_codes import EXIT_BY_SIGNAL, EXIT_CODES, terms_of
from ..protocol.handshake import (
    DroppedEvent,
    ExitedEvent,
    FailedEvent,
    Goodbye,
    GpuLostEvent,
    GpuStatus,
    LeftOutputEvent,
    NoticeEvent,
    ReadyEvent,
    RelayEvent,
    Status,
    TimeLeft,
)
from ..protocol.left_output import CellTitles, LeftOutput, plain
from ..protocol.session import Session
from ..protocol.terminal import WindowSize
from .batching import Batcher
from .beside import terminal
from .gpus import gpu_lock
from .gpus.gpu_monitor import GpuMonitor
from .journal import LIMIT_BYTES, MEMORY_BYTES, Journal, Shelf
from .kernel_client import KernelClient
from .lifetime import Deadline, Lifetime
from .process import tree
from .process.command_client import CommandClient
from .process.entrypoint import EntrypointRun, EntrypointState
from .process.environment import scratch_folder
from .process.kernel_process import KernelProcess, Ring
from .process.mount_probe import MountProbe
from .server import PlainPoller, Server, ServerHolder, door_of
from .spool import Spool

SOCKET_NAME = "relay.sock"
# What output may take of the container's memory where no file can be had.
MEMORY_WITHOUT_FILE_BYTES = 64 * 1024 * 1024
# How much output is shown to whoever asks for it and does not take it: it is read and sent at once.
MOST_SHOWN_BYTES = 2 * 1024 * 1024
# How often deadlines are looked at, and the kernel process, whose end mostly says so itself.
DEADLINE_LOOK_SECONDS = 1.0
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


def _journals(order: Dict[str, Any]) -> Tuple[Spool, Callable[[], Journal]]:
    """Return the file that journals share, and what makes one."""
    folder = _made(order.get("folder"))
    spool = Spool(folder)
    memory_bytes = MEMORY_BYTES if folder else MEMORY_WITHOUT_FILE_BYTES
    limit_bytes = int(order.get("bytes", LIMIT_BYTES))
    return spool, partial(Journal, spool, limit_bytes=limit_bytes, memory_bytes=memory_bytes)


def _bell() -> Tuple[socket.socket, socket.socket]:
    """Return the two ends of what wakes the loop; neither ever waits."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends


def _packed(event: RelayEvent) -> bytes:
    return frames.pack(frames.Message(frames.EVENT, event.launch, [json.dumps(event.to_dict()).encode()]))


def _session_of(parts: Sequence[frames.Buffer]) -> str:
    """Return the header.session of a client's message; empty if it cannot be read."""
    try:
        at = next(index for index, part in enumerate(parts) if part == frames.DELIMITER)
        return str(json.loads(bytes(parts[at + 2])).get("session", ""))
    except (StopIteration, ValueError, LookupError, AttributeError, RecursionError):
        return ""


def _is_cell(parts: Sequence[frames.Buffer]) -> bool:
    """Whether a client's request runs a user's cell. One that cannot be read might."""
    try:
        at = next(index for index, part in enumerate(parts) if part == frames.DELIMITER)
        kind = json.loads(bytes(parts[at + 2]))["msg_type"]
        return kind == "execute_request" and is_cell(kind, json.loads(bytes(parts[at + 5])))
    except (StopIteration, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return True


def _setup_failure(process: KernelProcess) -> Optional[FailedEvent]:
    """Return that the setup before a kernel has failed; None where it has not, or was ended."""
    state = process.setup_state()
    if state is None or state.code is None:
        return None
    how = "signal %d" % -state.code if state.code < 0 else "exit code %d" % state.code
    reason = ": ".join(filter(None, (how, " | ".join(state.last_lines))))
    return FailedEvent(process.launch, reason=reason, setup=state.command)


class Supervisor:
    """The kernel process, its channels, and the door to whoever holds it."""

    def __init__(self, order: Dict[str, Any], locks: gpu_lock.GpuLocks, *, adopts: bool = False) -> None:
        """Listen for an owner. `adopts`: whatever is below this process is the kernel's, and ends before the next."""
        self._adopts = adopts
        self.kernel, self.folder = str(order["kernel"]), str(order["folder"])
        self.release = str(order.get("release", ""))
        self.scratch = scratch_folder(self.folder)
        self.ring = Ring()
        self.process: Optional[KernelProcess] = None
        self._entrypoint = EntrypointState()
        self.locks = locks
        cards = order.get("gpus", {})
        self.monitor = GpuMonitor(cards.get("ids", ()), self.ring.add, look_seconds=cards.get("look_seconds"))
        # The launch that was told that it lost its GPUs.
        self._lost_launch = 0
        # Whether the end of stdin is ours too: so a job ends what it has started.
        self._ends_with_stdin = bool(order.get("ends_with_stdin"))
        # Set when the kernel cannot run here at all: what the image lacks.
        self.lacks = ""
        self.client = self._make_client(order["spawn"])
        self.lifetime = Lifetime(terms_of(order.get("terms", {})), awake_seconds())
        # What its owner said as it left; "" when it did not, or came back.
        self.claim = ""
        # What ends it all, and the outcome of the last kernel process; for those who ask.
        self.deadline: Optional[Deadline] = None
        self.outcome: Optional[ExitedEvent] = None
        # Set when the container should end: its exit code.
        self.exit_code: Optional[int] = None
        # The deadline that ended the kernel process while there was output to deliver; "" if none has.
        self._ended_by = ""
        self.spool, make_journal = _journals(order.get("journal", {}))
        self.stream = Session(make_journal())
        # What whoever is joined cannot show, and how people know the cells that it is of.
        self.shelf = Shelf(self.stream.send_lanes[frames.ORDERED], make_journal)
        self.titles = CellTitles()
        path, epoch = os.path.join(self.folder, SOCKET_NAME), uuid.uuid4().hex
        self.server = Server(path, epoch, self.stream, self._holder(), door=door_of(order))
        self._look_at = 0.0
        # A byte comes in when a child process has ended: see main.
        self.bell, self.ringer = _bell()
        # Whether the setup has succeeded in this container; and what was told of it last.
        self._is_set_up = False
        self._told_setup = ("", "")
        self._probe = MountProbe(order.get("probe", ()), partial(self.ringer.send, b"m"))
        self.batcher = Batcher(time.monotonic)
        # Whether some of what is not delivered yet is for people to see: only that keeps a lost kernel alive.
        self._has_output = False
        self.poller: Any = None
        # What the poller looks at.
        self._polled: List[Tuple[Any, int]] = []

    def _make_client(self, spawn: Dict[str, Any]) -> Union[KernelClient, CommandClient]:
        """Return what speaks to what is started first: all that follows it here is of its kind."""
        if "command" not in spawn:
            return KernelClient(self._heard, self._ready, self._interrupt, self._heard_bad)
        return CommandClient(self._heard, self._ready, self.tell, waits=bool(spawn["command"].get("waits")))

    @property
    def _is_command(self) -> bool:
        return isinstance(self.client, CommandClient)

    def _holder(self) -> ServerHolder:
        return ServerHolder(
            kernel=self.kernel,
            obey=self.obey,
            status=self.status,
            log_text=self.log_text,
            output_text=self.output_text,
            joined=self.joined,
            handed_over=lambda only_own: self.shelf.hand_over(only_own=only_own),
            left=self.left,
            goodbye=self.goodbye,
            may_claim=self.may_claim,
        )

    # -- the kernel process

    def spawn(self, order: Dict[str, Any]) -> None:
        """Start the kernel process of a launch; an older one is ended first."""
        self._stop_process()
        self.outcome, self._ended_by = None, ""
        self.lacks = next((name for name in order["needs"] if importlib.util.find_spec(name) is None), "")
        if self.lacks:
            self.tell(FailedEvent(order["launch"], lacks=self.lacks))
            return
        if self.monitor.mismatch is not None:
            self.tell(FailedEvent(order["launch"], gpus=self.monitor.mismatch))
            return
        entrypoint = self._entrypoint.order = order.get("entrypoint") or self._entrypoint.order
        if entrypoint is None:
            self._launch(order)
            return
        environment = {**os.environ, **entrypoint["env"]}
        argv, seconds = entrypoint["argv"], entrypoint["seconds"]
        # The relay's own folder is closed to whoever an ENTRYPOINT may become.
        open_folder = os.path.dirname(self.folder)
        try:
            self._entrypoint.run = EntrypointRun(argv, environment, open_folder, limit_seconds=seconds)
        except OSError as exc:
            self.tell(FailedEvent(order["launch"], reason=str(exc)))
            return
        self._entrypoint.launch = order

    def _check_entrypoint(self) -> None:
        """Launch what waits for the image's ENTRYPOINT, once that has set up all."""
        run, launch = self._entrypoint.run, self._entrypoint.launch
        setup = None if run is None else run.poll()
        if run is None or launch is None or setup is None:
            return
        self._entrypoint = EntrypointState(failure=setup.failure)
        setup.apply(os.environ)
        self.ring.add(run.output)
        self._end_descendants()
        self._launch(launch)

    def _launch(self, order: Dict[str, Any]) -> None:
        """Start a kernel process. Before it there is none."""
        if self._is_set_up and order.get("setup_every") != "restart":
            order = {**order, "setup": ()}
        try:
            self.locks.take()  # They may have been given back.
            self.process = KernelProcess(
                order["launch"], self.folder, order, self.ring, scratch=self.scratch, locks=self.locks.descriptors
            )
        except (OSError, gpu_lock.Refused) as exc:
            self.tell(FailedEvent(order["launch"], reason=str(exc)))
            return
        if self.process.moved is not None and not self._probe.has_begun:
            self.tell(NoticeEvent(order["launch"], "moved", *self.process.moved))
        self._probe.begin()
        self.monitor.begin(time.monotonic())
        self.client.is_held = not self.monitor.is_settled
        self.lifetime.launched(awake_seconds())
        # Its command is all that it is for.
        self.lifetime.has_run_cell = self.lifetime.has_run_cell or self._is_command
        self.client.connect(self.process)

    def _stop_process(self, why: str = "", *, failure: Optional[FailedEvent] = None) -> None:
        """End the kernel process, and all that it or one before has left here: it may hold GPU memory."""
        self._entrypoint.stop()
        if self.process is not None:
            self.process.stop()
            self.process.popen.wait()
            if why:
                self.client.listen_to_the_end()
            self._forget_process(why, failure)
        self._end_descendants()

    def _end_descendants(self) -> None:
        """End what is below this process and nobody waits for."""
        if self._adopts:
            for one in tree.end_descendants(keep=self._own_children()):
                self.ring.add(b"[kernelbridge] process %d (%s) could not be ended\n" % (one.pid, one.name.encode()))
            self._collect_orphans()

    def _collect_orphans(self) -> None:
        if self._adopts:
            tree.collect_orphans(self._own_children())

    def _own_children(self) -> List[int]:
        """Return the processes that are waited for by who has started them."""
        kernel = [self.process.popen.pid] if self.process is not None else []
        entrypoint = self._entrypoint.run.pids if self._entrypoint.run is not None else []
        return [*self.monitor.pids, *kernel, *entrypoint]

    def _forget_process(self, why: str = "", failure: Optional[FailedEvent] = None) -> None:
        """The kernel process has ended; `why` names the deadline that ended it, `failure` is told in its place."""
        self.client.close()
        process, self.process = self.process, None
        if process is not None:
            self.outcome = process.outcome()
            process.close()
            failure = failure or _setup_failure(process)
        self.lifetime.ended(awake_seconds())
        if self.outcome is not None:
            self.outcome = self.outcome._replace(why=why)
            # How a command ended is what it was run for.
            self._has_output = self._has_output or self._is_command
            self.tell(failure or self.outcome)

    def load(self) -> None:
        """Load pyzmq, after the kernel was started: both take their time at once."""
        self.client.load()
        if self.process is not None:
            self.client.connect(self.process)

    # -- messages of the kernel

    def _heard(self, channel: int, parts: List[frames.Buffer]) -> None:
        assert self.process is not None
        packed = frames.pack(frames.Message(channel, self.process.launch, parts))
        if channel == frames.IOPUB:
            self.batcher.output()
        else:
            self.batcher.other()
        self._has_output = self._has_output or (channel == frames.IOPUB and not bytes(parts[0]).endswith(_NO_OUTPUT))
        if channel == frames.IOPUB and bytes(parts[0]).endswith(b"execute_input"):
            self.titles.note(parts)
        if channel in (frames.IOPUB, frames.SHELL) and self.shelf.takes(parts):
            self.shelf.add(packed)
        else:
            self.stream.add(frames.LANE_OF[channel], packed, is_heard=self.server.connection is not None)

    def _heard_bad(self, messages: int, size_bytes: int, why: str) -> None:
        """Say that the kernel sent what cannot be passed on."""
        if self.process is not None:
            parent = self.client.running or {}
            self.tell(DroppedEvent(self.process.launch, parent, messages, size_bytes, why))

    def _ready(self, info: Dict[str, Any]) -> None:
        assert self.process is not None
        self._is_set_up = True
        self.tell(ReadyEvent(self.process.launch, info, self._entrypoint.failure))
        self._entrypoint.failure = ""

    def _interrupt(self) -> None:
        if self.process is not None:
            self.process.signal_group(signal.SIGINT)

    def tell(self, event: RelayEvent) -> None:
        """Queue an event, behind all output so far."""
        self.batcher.other()
        self.stream.add(frames.LANE_OF[frames.EVENT], _packed(event))

    # -- what the door asks

    def obey(self, message: frames.Message) -> None:
        """Pass a client's message to the kernel, or do what a command says."""
        self.lifetime.used()
        if message.channel == frames.COMMAND:
            self._command(json.loads(bytes(message.parts[0])))
            return
        if self.shelf.is_wanted:
            self.shelf.asked(_session_of(message.parts))
        if self.process is not None and message.launch == self.process.launch:
            self.client.say(message.channel, list(message.parts))
            if message.channel == frames.SHELL and not self.lifetime.has_run_cell:
                self.lifetime.has_run_cell = _is_cell(message.parts)
        else:
            # It was meant for a kernel process that is no more.
            for refused in self.client.refusal(message):
                self.stream.add(frames.LANE_OF[refused.channel], frames.pack(refused))

    def _command(self, command: Dict[str, Any]) -> None:
        if command["do"] == "spawn":
            self.spawn(command)
        elif command["do"] == "signal" and self.process is not None:
            if command["number"] in (signal.SIGKILL, signal.SIGTERM):
                self.process.stop(command["number"])
            elif command["number"] != signal.SIGINT or self.client.is_ready:  # A start would end by an interrupt.
                self.process.signal_group(command["number"])
        elif command["do"] == "resize" and self.process is not None and self.process.pipes is not None:
            self.process.pipes.resize(WindowSize.from_dict(command["window"]))
        elif command["do"] == "output":
            self._show_left(bool(command["show"]))

    def log_text(self) -> str:
        """Return the last that the kernel process wrote to its own stdout and stderr."""
        return self.ring.text()

    def output_text(self) -> str:
        """Return the output of cells that nobody has shown yet, the newest of it."""
        packed = self.shelf.peek(MOST_SHOWN_BYTES)
        if self.server.connection is None:
            packed += self.stream.send_lanes[frames.ORDERED].peek(MOST_SHOWN_BYTES)
        left = LeftOutput(self.titles)
        for message in map(frames.unpack, packed):
            if message.channel == frames.IOPUB:
                left.add(message.parts)
        text = plain(left.flush())
        return text if len(text) <= MOST_SHOWN_BYTES else "[...]\n" + text[-MOST_SHOWN_BYTES:]

    def _show_left(self, wanted: bool) -> None:
        """Send what is on the shelf to whoever can show it now, and what would come there; or keep it again."""
        if not wanted:
            self.shelf.close()
            return
        launch = self.process.launch if self.process is not None else 0
        self.shelf.open(lambda: _packed(LeftOutputEvent(launch, self.titles.to_dict())))
        self.batcher.other()

    def status(self) -> Status:
        """Return what a WELCOME and an answer say of the kernel."""
        awake, deadline, detached_since = awake_seconds(), self.deadline, self.lifetime.detached_since
        return Status(
            version=frames.VERSION,
            release=self.release,
            way=self.server.way,
            launch=self.process.launch if self.process else 0,
            session=self.process.session if self.process else "",
            ready=self.client.is_ready,
            info=self.client.info if self.client.is_ready else None,
            running=self.client.running,
            lacks=self.lacks,
            outcome=self.outcome,
            state=self._state(),
            quiet_seconds=awake - self.lifetime.idle_since,
            alone_seconds=None if detached_since is None else awake - detached_since,
            undelivered_bytes=self.stream.undelivered_bytes + self.shelf.held_bytes if self._has_output else 0,
            deadline=None if deadline is None else TimeLeft(deadline.at - awake, deadline.why),
            persist=self.lifetime.terms.persist,
            claim=bool(self.claim),
            used=self.lifetime.has_run_cell,
            gpus=GpuStatus(self.locks.ids, self.monitor.seen, self.monitor.is_lost),
            **self.server.held_by(time.monotonic())._asdict(),
        )

    def _state(self) -> str:
        if self.process is None:
            return "exited" if self.outcome is not None or self.lacks else "starting"
        if not self.client.is_ready:
            return "starting"
        return "busy" if self.client.is_busy else "idle"

    def joined(self) -> None:
        """Somebody holds the kernel from now on."""
        self.claim = ""
        self.lifetime.joined()
        if self._is_command:
            self.lifetime.used()  # It is never asked anything.
        # What it was does not hold any more; what it is now is seen in this turn of the loop.
        self.deadline, self._look_at = None, 0.0

    def left(self) -> None:
        """The line ended."""
        self.lifetime.left(awake_seconds())

    def goodbye(self, said: Goodbye) -> None:
        """The owner leaves in good order: it may end the kernel process, and come again under its claim."""
        if said.end:
            self._stop_process()
        self.claim = said.claim
        self.lifetime.goodbye(awake_seconds(), ends=said.end)

    def may_claim(self, claim: str) -> bool:
        """Whether the kernel was left under this claim, and nobody has taken it since."""
        return bool(self.claim) and claim == self.claim

    # -- the loop

    def step(self) -> None:
        """Wait for something to do, and do it."""
        if self.batcher.nap_seconds:
            time.sleep(self.batcher.nap_seconds)
        ready = dict(self._poller().poll(self._patience_ms()))
        now = time.monotonic()
        if self._ends_with_stdin and 0 in ready and not os.read(0, 4096):
            sys.exit(EXIT_BY_SIGNAL)
        self._serve_kernel(ready, now)
        self._check_entrypoint()
        self._check_gpus(now)
        for trouble in self._probe.take():
            self.tell(NoticeEvent(self.process.launch if self.process else 0, *trouble))
        self.server.serve(ready, now)
        if self._has_output and self.stream.is_delivered and not self.shelf.held_bytes:
            self._has_output = False
        self.client.nudge(now)
        self.client.do_due(now)
        if self.stream.send_lanes[frames.ORDERED].waiting_bytes >= frames.FRAME_BYTES or not self.batcher.waits(now):
            self.batcher.went()
            self.server.flush(now)
        if now >= self._look_at:
            self._look_at = now + DEADLINE_LOOK_SECONDS
            self._tell_setup()
            self._collect_orphans()
            self._check_deadline()

    def _tell_setup(self) -> None:
        """Tell how far the setup is, where that is new."""
        state = self.process.setup_state() if self.process is not None and not self.client.is_ready else None
        if self.process is None or state is None:
            return
        told = (state.command, state.last_lines[-1] if state.last_lines else "")
        if told != self._told_setup:
            self._told_setup = told
            self.tell(NoticeEvent(self.process.launch, "setup", *told))

    def _check_gpus(self, now: float) -> None:
        """End a launch that sees other GPUs than it should, let another one be ready, and say when they are lost."""
        if self.process is None and self.monitor.is_settled:
            return
        self.monitor.step(now)
        if self.process is None:
            return
        launch = self.process.launch
        if self.monitor.mismatch is not None:
            self._stop_process(failure=FailedEvent(launch, gpus=self.monitor.mismatch))
        elif self.client.is_held and self.monitor.is_settled:
            self.client.release()
        elif self.monitor.is_lost and self.client.is_ready and self._lost_launch != launch:
            self._lost_launch = launch
            self.tell(GpuLostEvent(launch, self.client.running))

    def _check_deadline(self) -> None:
        """End the kernel, and then the container, when their time has come."""
        awake = awake_seconds()
        is_busy = self.client.is_busy or self.client.is_asking or terminal.is_any_open(self.folder)
        self.deadline = self.lifetime.look(awake, is_busy=is_busy, is_delivered=not self._has_output)
        if self.deadline is None or awake < self.deadline.at:
            return
        why = self.deadline.why
        # Nobody knows of what a kernel said that nobody ever joined.
        is_more = self.process is not None and why not in ("goodbye", "unjoined", "unused")
        has_left = self.lifetime.detached_since is not None and not self._has_output
        self.lifetime.is_over = True
        self._stop_process(why)
        # What it said is delivered first; that it has ended is no output to wait for.
        if not is_more or has_left:
            self.exit_code = EXIT_CODES[self._ended_by or why]
        else:
            self._ended_by = why
            # The relay stays for its output alone, and that may take days.
            self.locks.give_back()

    def _poller(self) -> Any:
        """The poller of all that may happen; made anew only when that changed."""
        zmq = self.client.zmq
        read, write = (zmq.POLLIN, zmq.POLLOUT) if zmq is not None else (1, 4)
        wanted: List[Tuple[Any, int]] = [(sock, read) for sock in self.client.sockets.values()]
        wanted += [(one.fileno(), read) for one in (*self.server.listeners, self.bell)]
        for line in self.server.connections:
            wanted.append((line.sock.fileno(), read))
            wanted += [(line.source, read)] if line.is_adopted and not line.by_door else []
            wanted += [(line.sink, write)] if line.unsent else []
        for mask, descriptors in zip((read, write), self._process_descriptors()):
            wanted += [(one, mask) for one in descriptors]
        if self._ends_with_stdin:
            wanted.append((0, read))
        if wanted != self._polled:
            self._polled = wanted
            self.poller = zmq.Poller() if zmq is not None else PlainPoller()
            for source in dict(wanted):  # A terminal is one descriptor for both ways.
                self.poller.register(source, sum(mask for one, mask in wanted if one == source))
        return self.poller

    def _process_descriptors(self) -> Tuple[List[int], List[int]]:
        """Return what of the process is read, and written to, as soon as it can be."""
        if isinstance(self.client, CommandClient):
            is_joined = self.server.connection is not None
            return self.client.outputs(self.stream.undelivered_bytes, is_joined=is_joined)
        return (self.process.outputs if self.process is not None else []), []

    def _patience_ms(self) -> int:
        if self.batcher.is_on:
            return 1
        if self.client.is_asking or self._entrypoint.run is not None:
            return 50
        due = min(self._look_at, self.client.due_at)
        if self.stream.acknowledge_at is not None and self.server.takes_more:
            due = min(due, self.stream.acknowledge_at)
        return max(1, int(1000 * (due - time.monotonic())) + 1)

    def _serve_kernel(self, ready: Dict[Any, int], now: float) -> None:
        self.client.listen(ready)
        has_rung = self.bell.fileno() in ready
        if has_rung:
            self.bell.recv(4096)
        process = self.process
        if process is None:
            return
        has_output = any(one in ready for one in process.outputs)
        if has_output and not process.read_output() and process.popen.poll() is None:
            time.sleep(0.01)  # It closed its output and lives on: no busy loop.
        if (has_output or has_rung or now >= self._look_at) and process.popen.poll() is not None:
            self.client.listen_to_the_end()
            self._forget_process()
