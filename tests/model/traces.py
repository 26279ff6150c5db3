"""What the real code does, as events of protocol.pml: the relay's Server and Session, and RelayClients, in one process.

Between them are lines whose frames a seeded script moves one by one, cuts, and loses. Around them it says messages and
requests, hands on, kills processes here, has them leave, and starts others that wait or take the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import random
import subprocess
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kernelbridge.hosts.backend import ContainerState, Running
from kernelbridge.hosts.relay_query import RelayAddress
from kernelbridge.kernel import process_mark
from kernelbridge.kernel.relay_client import RelayClient, RelayListener
from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import IOPUB, ORDERED, SHELL, Message
from kernelbridge.protocol.handshake import Busy, Goodbye, HeldBy, Hello, Owner, Status
from kernelbridge.protocol.json_object import parse_object
from kernelbridge.protocol.session import REPLAY_SECONDS, Session
from kernelbridge.relay.journal import Journal
from kernelbridge.relay.server import Connection, Server, ServerHolder
from kernelbridge.relay.spool import Spool
from tests.made_clock import MadeClock
from tests.made_events import status
from tests.model import spin
from tests.unit.relay.test_server import Bridge

KERNEL = "k1"
EVENTS = {name: number for number, name in spin.event_names("protocol").items()}
# As in the model, where there is one more for the end.
LINES, CLIENTS, MESSAGES = 3, 6, 70
BUSY_REASONS = {"held": 1, "taken": 2}
# How long something may lie in a process's hands or on its line while the clock goes on: half of what the model takes
# for granted, as one may follow the other.
LONGEST_SECONDS = 0.7
# Two frames.
_LONG = b"x" * (frames.FRAME_BYTES + 10)
_F_SETPIPE_SZ = 1031


def is_long(message: int) -> bool:
    return message % 3 == 2


def number_in(packed: frames.Buffer) -> int:
    """Which message of the kernel's, or request, this is."""
    return int(bytes(frames.unpack(packed).parts[0]).split()[0])


def to_bytes(frame: frames.Frame) -> bytes:
    return frames.head(frame.kind, len(frame.payload), frame.flags, frame.number) + bytes(frame.payload)


class Line:
    """One exec stream: what its two ends say lies in it until it is moved."""

    def __init__(self, world: World, process: Process, slot: int, receiver: Any) -> None:
        self.world, self.process, self.slot, self.receiver = world, process, slot, receiver
        self._decoder = frames.Decoder()
        # With the moment at which it was said.
        self.to_relay: deque[tuple[float, frames.Frame]] = deque()
        self.to_client: deque[frames.Frame] = deque()
        self.is_cut = False
        # For the client itself; it has gone from the model's line as soon as it is refused.
        self.client_end = self.is_open = True
        self.relay_end = True
        self.bridge = Bridge(str(world.path))
        fcntl.fcntl(self.bridge.from_relay, _F_SETPIPE_SZ, 1 << 20)
        fcntl.fcntl(self.bridge.to_relay, _F_SETPIPE_SZ, 1 << 20)
        world.server.accept()
        self.connection: Connection = world.server.pending[-1]
        world.server.read(self.connection, world.now)
        self.has_eof = False

    # -- the client's end

    def write(self, data: bytes) -> None:
        for frame in self._decoder.feed(bytes(data)):
            if not self.client_end or self.process.is_over:
                continue
            if not self.is_cut and self.relay_end:
                self.to_relay.append((self.world.now, frame._replace(payload=bytes(frame.payload))))
            self._told(frame)

    def _told(self, frame: frames.Frame) -> None:
        note, client = self.world.note, self.process.number
        if frame.kind == frames.HELLO:
            note("HELLO", client, self.slot, Hello.from_dict(parse_object(frame.payload)).received[ORDERED])
        elif frame.kind == frames.ACK:
            note("CLIENT_ACKS", client, frames.acknowledged(frame.payload)[ORDERED])
        elif frame.kind == frames.DATA:
            note("CLIENT_SENDS", client, frame.number)
        elif frame.kind == frames.PING:
            note("PING", client)
        elif frame.kind == frames.GOODBYE:
            note("BYE", client, int(Goodbye.from_dict(parse_object(frame.payload)).lacks))
            self.process.is_over = True
            self._leave()

    def close(self) -> None:
        """Called by the client: it gives the line up."""
        if self.client_end and not self.process.is_over:
            if not self.is_cut and self.relay_end:
                self.cut()  # The other end is silent: that is as good as a cut.
            self.world.note("CLIENT_CLOSES", self.process.number, self.slot)
        self._leave()
        self.is_open = False

    def _leave(self) -> None:
        self.client_end = False
        self.to_client.clear()
        self.world.tidy()

    def end_for_client(self) -> None:
        """It hears that the line has ended."""
        self.receiver.closed(None)

    def hear_one(self) -> None:
        """The client gets the next frame."""
        frame = self.to_client.popleft()
        note, client = self.world.note, self.process.number
        event: list[int] = []
        if frame.kind == frames.WELCOME:
            note("WELCOMED", client, parse_object(frame.payload)["received"][ORDERED])
        elif frame.kind == frames.BUSY:
            note("REFUSED", client, BUSY_REASONS[Busy.from_dict(parse_object(frame.payload)).reason])
            self._leave()
        elif frame.kind == frames.ACK:
            note("CLIENT_HEARS_ACK", client, frames.acknowledged(frame.payload)[ORDERED])
        elif frame.kind == frames.DATA:
            event = note("CLIENT_TAKES", client, frame.number)
        self.receiver.data_received(to_bytes(frame))
        if event:
            event[3] = self.process.got

    # -- the relay's end

    def cut(self) -> None:
        self.is_cut = True
        self.world.note("CUT", self.slot)

    def take_one(self) -> None:
        """The relay gets the next frame."""
        frame = self.to_relay.popleft()[1]
        world = self.world
        if frame.kind != frames.HELLO and world.server.connection is self.connection:
            world.note_ages()
        was_in = world.server.connection
        self.bridge.say(to_bytes(frame))
        world.server.read(self.connection, world.now)
        event = world.note("RELAY_TAKES", self.slot, frame.number)
        if frame.kind == frames.HELLO:
            event[:] = [EVENTS["GREET"], self.slot, 0, 0]
            self._note_greeting(event)
            return
        if was_in is not self.connection:
            world.events.pop()  # Of a line that is not in, nothing counts.
            return
        if frame.kind == frames.ACK:
            number = frames.acknowledged(frame.payload)[ORDERED]
            event[:] = [EVENTS["RELAY_HEARS_ACK"], self.slot, number, 0]
            world.note_acknowledged(number)
        elif frame.kind == frames.PING:
            event[:] = [EVENTS["RELAY_HEARS_PING"], self.slot, world.first_kept(), 0]
            return
        elif frame.kind == frames.GOODBYE:
            lacks = Goodbye.from_dict(parse_object(frame.payload)).lacks
            event[:] = [EVENTS["RELAY_HEARS_BYE"], self.slot, int(lacks), 0]
        event[3] = world.first_kept()
        world.collect()

    def _note_greeting(self, event: list[int]) -> None:
        self.world.collect()
        answer = next(one for one in self.to_client) if self.to_client else None
        if self.world.server.connection is self.connection:
            event[3] = self.world.server.session.received[ORDERED]
            self.world.note_stream(self.process)
        else:
            # Who waits for the answer no more does not get it.
            busy = self.world.last_busy if answer is None else Busy.from_dict(parse_object(answer.payload))
            assert busy is not None
            event[2] = BUSY_REASONS[busy.reason]

    def end_for_relay(self) -> None:
        """The relay hears that the line has ended."""
        self.to_relay.clear()
        self.bridge.close()
        self.has_eof = True
        self.world.server.read(self.connection, self.world.now)
        self.relay_end = False
        self.world.note("RELAY_CLOSES", self.slot)
        self.world.tidy()

    @property
    def is_free(self) -> bool:
        return not self.client_end and not self.relay_end


class Process:
    """A process here: a client of the relay, what it has in its hands, and its lines."""

    def __init__(self, world: World, number: int, *, takes: bool) -> None:
        self.world, self.number = world, number
        # A real one, so that its name is one, and so is its end.
        self._child = subprocess.Popen(["sleep", "600"])
        mark = process_mark.mark_of(self._child.pid)
        listener = RelayListener(
            delivered=self._delivered,
            event_received=lambda event: None,
            joined=lambda welcome: None,
            lost=lambda error: None,
            ended=lambda state: None,
            join_failed=lambda error, may_pass: None,
            paused=lambda is_paused: None,
            taken=self._taken,
            acknowledges=lambda: (frames.QUICK,) if self.holds_back else frames.LANES,
        )
        address = RelayAddress(
            kernel=KERNEL, host="lab", image="torch:2", python="python3", workload=self._workload, rest=asyncio.sleep
        )
        owner = Owner(mark=f"m:{mark.process}:0~{mark.birth}", who=f"p{number}")
        self.client = RelayClient(address, listener, owner=owner, takes=takes)
        # Whether it is killed or has left; whether another has the kernel now.
        self.is_over = self.is_out = False
        self.asked = 0
        # Messages that came, and how many of them were handed on; when those came that were not.
        self.came: list[int] = []
        self.handed_on = 0
        self.since: deque[float] = deque()
        self.holds_back = False
        self._leaving: asyncio.Task[Any] | None = None
        self.client.keep_joining()

    @property
    def got(self) -> int:
        return self.came[-1] if self.came else 0

    @property
    def has_waiting(self) -> bool:
        return self.handed_on < len(self.came) and not self.is_over

    async def _workload(self) -> Any:
        return self

    async def attach(self, receiver: Any) -> Any:
        while (slot := self.world.free_slot()) is None:  # noqa: ASYNC110 - the clock is made, and this is all
            await asyncio.sleep(0.05)
        line = Line(self.world, self, slot, receiver)
        self.world.lines[slot] = line
        return line

    async def state(self) -> ContainerState:
        await asyncio.sleep(0)
        return Running()

    def _delivered(self, packed: list[frames.Buffer]) -> None:
        self.came += map(number_in, packed)
        self.since += [self.world.now] * len(packed)

    def _taken(self, error: Exception) -> None:
        self.is_out = True

    def hand_on(self) -> None:
        message = self.came[self.handed_on]
        self.handed_on += 1
        self.since.popleft()
        self.world.handed_on.append((self.number, message))
        self.world.note("HAND_ON", self.number, message)

    def ask(self) -> None:
        self.asked += 1
        self.world.note("ASK", self.number, self.asked)
        self.client.send([(ORDERED, frames.pack(Message(SHELL, 1, [b"%d" % self.asked])))])

    def kill(self) -> None:
        self.world.note("KILL", self.number)
        self.is_over = True
        for line in self.lines:
            line._leave()
        self._end()
        self._leaving = asyncio.create_task(self.client.aclose())

    def leave(self) -> None:
        """A GOODBYE, also where not all was handed on."""
        self._leaving = asyncio.create_task(self.client.goodbye(end=False, acknowledge=not self.has_waiting))

    @property
    def lines(self) -> list[Line]:
        return [line for line in self.world.lines if line is not None and line.process is self]

    def _end(self) -> None:
        self._child.kill()
        self._child.wait()

    async def aclose(self) -> None:
        self.is_over = True
        if self._leaving is not None:
            await asyncio.wait([self._leaving])
        await self.client.aclose()
        self._end()


class World:
    """The relay, the processes here, the lines between them; and what has happened, as events."""

    def __init__(self, folder: Path, clock: MadeClock, seed: int) -> None:
        self._clock = clock
        self._random = random.Random(seed)
        self.path = folder / "s"
        self.path.unlink(missing_ok=True)
        self.events: list[list[int]] = []
        holder = ServerHolder(
            kernel=KERNEL,
            obey=lambda message: self.obeyed.append((self.stream, int(bytes(message.parts[0])))),
            status=self._status,
            log_text=str,
            output_text=str,
            joined=lambda: None,
            handed_over=lambda only_own: None,
            left=lambda: None,
            goodbye=lambda said: None,
            may_claim=lambda claim: False,
        )
        self.server = Server(str(self.path), "epoch", Session(Journal(Spool(None))), holder)
        self.lines: list[Line | None] = [None] * LINES
        self.processes: list[Process] = []
        self.emitted = 0
        # Who had it last, by number; what came of requests; what was handed on, and by whom.
        self.stream = -1
        self.obeyed: list[tuple[int, int]] = []
        self.handed_on: list[tuple[int, int]] = []
        self.last_busy: Busy | None = None
        # What the relay has said under which number since the last hand-over, and when it was acknowledged.
        self._said: dict[int, tuple[int, bool]] = {}
        self._acknowledged_at: dict[int, float] = {}
        self._newest_acknowledged = 0

    @property
    def now(self) -> float:
        return self._clock.now

    def _status(self) -> Status:
        return status(**HeldBy()._asdict())

    def note(self, name: str, *numbers: int) -> list[int]:
        event = [EVENTS[name], *numbers, 0, 0, 0][:4]
        self.events.append(event)
        return event

    # -- lines

    def free_slot(self) -> int | None:
        return next((slot for slot, line in enumerate(self.lines) if line is None), None)

    def tidy(self) -> None:
        """A line with no end is no more."""
        for slot, line in enumerate(self.lines):
            if line is not None and line.is_free:
                self.lines[slot] = None
                if not line.has_eof:
                    line.bridge.close()

    def collect(self) -> None:
        """Move what the relay has written on to its lines; those that it has closed end there."""
        for line in [one for one in self.lines if one is not None and one.relay_end]:
            for frame in line.bridge.heard():
                if frame.kind == frames.BUSY:
                    self.last_busy = Busy.from_dict(parse_object(frame.payload))
                if frame.kind == frames.DATA:
                    message = self._message_of(frame)
                    self._said[frame.number] = (message, bool(frame.flags & frames.MORE))
                    self.note("RELAY_SENDS", frame.number, message, int(bool(frame.flags & frames.MORE)))
                elif frame.kind == frames.ACK:
                    self.note("RELAY_ACKS", frames.acknowledged(frame.payload)[ORDERED])
                if line.client_end and not line.is_cut and frame.kind not in (frames.PONG, frames.GOODBYE):
                    line.to_client.append(frame._replace(payload=bytes(frame.payload)))
            if line.connection.source < 0:
                line.relay_end = False
                line.to_relay.clear()
        self.tidy()

    def _message_of(self, frame: frames.Frame) -> int:
        if frame.number in self._said:
            return self._said[frame.number][0]
        before = self._said.get(frame.number - 1)
        if before is not None and before[1]:
            return before[0]
        head = bytes(frame.payload[:4096])
        return int(head[head.index(b"<") + 1 : head.index(b">")])

    # -- what the relay keeps

    def note_stream(self, process: Process) -> None:
        if process.number != self.stream:
            self.stream = process.number
            self._said.clear()
            self._acknowledged_at.clear()
            self._newest_acknowledged = 0

    def note_acknowledged(self, number: int) -> None:
        for one in range(self._newest_acknowledged + 1, number + 1):
            message, is_more = self._said[one]
            if not is_more:
                self._acknowledged_at[message] = self.now
        self._newest_acknowledged = max(number, self._newest_acknowledged)

    def note_ages(self) -> None:
        """Of what was acknowledged so long ago the relay may forget all, if it hears anything."""
        for message, at in list(self._acknowledged_at.items()):
            if at < self.now - REPLAY_SECONDS:
                del self._acknowledged_at[message]
                self.note("AGE", message)

    def first_kept(self) -> int:
        """The oldest message that a process which takes over would get."""
        lane: Any = self.server.session.send_lanes[ORDERED]
        packed = [kept[1] for kept in lane._kept] + lane.peek(1 << 30) + ([lane._begun] if lane._begun else [])
        return min(map(self._number_of_output, packed), default=self.emitted + 1)

    @staticmethod
    def _number_of_output(packed: bytes) -> int:
        return number_in(packed)

    # -- what happens

    def emit(self) -> None:
        self.emitted += 1
        self.note("EMIT", self.emitted)
        text = b"%d <%d>" % (self.emitted, self.emitted) + _LONG * is_long(self.emitted)
        self.server.session.add(ORDERED, frames.pack(Message(IOPUB, 1, [text])))

    def start(self, *, takes: bool) -> None:
        self.note("START", len(self.processes), int(takes))
        self.processes.append(Process(self, len(self.processes), takes=takes))

    def flush(self) -> None:
        self.server.flush(self.now)
        self.collect()

    async def sleep(self, seconds: float) -> None:
        """Time passes; nothing lies about for longer than is taken for granted."""
        until = self.now + seconds
        while self.now < until:
            for process in self.processes:
                while process.has_waiting and self.now - process.since[0] > LONGEST_SECONDS - 0.2:
                    process.hand_on()
            for line in self.open_lines():
                while line.to_relay and line.process.is_over and self.now - line.to_relay[0][0] > LONGEST_SECONDS - 0.2:
                    line.take_one()
            await asyncio.sleep(min(0.1, until - self.now) or 0.001)

    def open_lines(self) -> list[Line]:
        return [line for line in self.lines if line is not None]

    async def step(self) -> None:
        """One thing that may happen now."""
        chosen = self._random.choice(self._choices())
        result = chosen()
        if asyncio.iscoroutine(result):
            await result
        for _ in range(8):
            await asyncio.sleep(0)

    def _choices(self) -> list[Any]:
        alive = [one for one in self.processes if not one.is_over]
        joining = [one for one in alive if not one.is_out]
        choices: list[Any] = [functools.partial(self.sleep, self._random.choice((0.05, 0.3, 2.0)))]
        choices += [self.flush] * 3
        if self.emitted < MESSAGES:
            choices.append(self.emit)
        for line in self.open_lines():
            choices += self._of_line(line)
        for process in joining:
            if process.asked < 50:
                choices.append(process.ask)
            choices.append(functools.partial(self._hold_back, process))
        choices += [process.hand_on for process in alive if process.has_waiting] * 2
        if len(self.processes) < CLIENTS and (not joining or self._random.random() < 0.12):
            choices.append(functools.partial(self.start, takes=self._random.random() < 0.5))
        if joining and self._random.random() < 0.15:
            process = self._random.choice(joining)
            choices.append(process.kill if self._random.random() < 0.6 else functools.partial(self._leave, process))
        return choices

    def _of_line(self, line: Line) -> list[Any]:
        choices: list[Any] = []
        if line.relay_end and line.to_relay:
            choices += [line.take_one] * 3
        if line.client_end and line.to_client:
            choices += [line.hear_one] * 3
        if line.relay_end and (line.is_cut or (not line.client_end and not line.to_relay)):
            choices.append(line.end_for_relay)
        if line.is_open and (line.is_cut or not (line.relay_end or line.to_client)):
            choices.append(line.end_for_client)
        if not line.is_cut and self._random.random() < 0.25:
            choices.append(line.cut)
        return choices

    def _hold_back(self, process: Process) -> None:
        process.holds_back = not process.holds_back

    def _leave(self, process: Process) -> None:
        if process.client.is_joined and any(line.client_end for line in process.lines):
            process.leave()

    async def settle(self) -> None:
        """Let all come to rest, with a process that takes the kernel if nobody else has it."""
        for process in self.processes:
            process.holds_back = False
        if not any(not one.is_over and not one.is_out for one in self.processes):
            self.start(takes=True)
        for _ in range(300):
            for line in self.open_lines():
                choices = [one for one in self._of_line(line) if one != line.cut]
                if choices:
                    choices[0]()
            for process in self.processes:
                if process.has_waiting:
                    process.hand_on()
            self.flush()
            await self.sleep(0.02)
        await self.sleep(0.3)

    async def aclose(self) -> None:
        for process in self.processes:
            await process.aclose()
        self.server.close()
        for line in self.open_lines():
            if not line.has_eof:
                line.bridge.close()


@contextlib.asynccontextmanager
async def made_world(folder: Path, clock: MadeClock, seed: int) -> AsyncIterator[World]:
    world = World(folder, clock, seed)
    try:
        yield world
    finally:
        await world.aclose()
