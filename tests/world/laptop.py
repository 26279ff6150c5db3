"""A process of the user's machine: a real Kernel with its channels and its stream, on a loop and sockets of a world."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

from kernelbridge.channels import endpoints
from kernelbridge.channels.poller import PolledSockets, ZmqPoller
from kernelbridge.channels.rate_limit import Limits
from kernelbridge.errors import EngineFailed, HostUnreachable
from kernelbridge.hosts.backend import ContainerState, Exited, Missing, Running
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.process_mark import Liveness, ProcessMark
from kernelbridge.kernel.records import ImageRecord, KernelRecord, Records
from kernelbridge.kernel.request import KernelServices
from kernelbridge.protocol.handshake import Owner
from tests.made_engines import LAB, launch_request
from tests.world.clock import Agenda, WorldLoop
from tests.world.host import KERNEL_ID, Host
from tests.world.line import Line, Network

if TYPE_CHECKING:
    from tests.world.clients import Client

_CLIENT_MESSAGES = 100
KEY = b"k"


class MadeRecords(Records):
    """Records in memory, as one process sees them; a dead one writes none."""

    def __init__(self, kept: dict[str, KernelRecord], may_write: Callable[[], bool]) -> None:
        super().__init__(Path("/nowhere"))
        self._kept = kept
        self._may_write = may_write

    def kernel(self, kernel_id: str) -> KernelRecord | None:
        return self._kept.get(kernel_id)

    def keep(self, record: KernelRecord) -> None:
        if self._may_write():
            self._kept[record.kernel_id] = record

    def image(self, image: str) -> ImageRecord | None:
        return None

    def keep_image(self, *, name: str, image_id: str, record: ImageRecord) -> None: ...

    def forget(self, kernel_id: str, *, of: ProcessMark | None = None) -> None:
        if not self._may_write():
            return
        if of is None or (known := self._kept.get(kernel_id)) is None or known.holder == of:
            self._kept.pop(kernel_id, None)

    def holder_liveness(self, record: KernelRecord) -> Liveness:
        return Liveness.UNKNOWN


class _Tracker:
    """Tells when all subscribers have read a large message."""

    def __init__(self) -> None:
        self.waiting = 0

    @property
    def done(self) -> bool:
        return self.waiting <= 0


class ProxySocket:
    """A socket that a KernelProxy binds: ROUTER, or XPUB with a queue for each subscriber."""

    def __init__(self, process: Process, kind: int) -> None:
        self._process = process
        self.kind = kind
        self.linger = self.sndhwm = 0
        self.arrived: deque[list[bytes]] = deque()
        self._is_lossy = False
        self.name = ""

    def setsockopt(self, option: int, value: int) -> None:
        if option == zmq.XPUB_NODROP:
            self._is_lossy = not value

    def bind(self, address: str) -> None:
        self.name = endpoints.NAMES[int(address.rpartition(":")[2]) - 1]

    def close(self) -> None:
        self.arrived.clear()

    def recv(self, flags: int) -> bytes:
        return self.recv_multipart(flags)[0]

    def recv_multipart(self, flags: int) -> list[bytes]:
        if not self.arrived:
            raise zmq.Again
        return self.arrived.popleft()

    def send_multipart(self, parts: Sequence[Any], flags: int = 0, **how: Any) -> Any:
        tracker = _Tracker()
        whole = [bytes(part) for part in parts]
        if self.kind == zmq.XPUB:
            clients = [one for one in self._process.clients if one.is_subscribed]
            full = [one for one in clients if len(one.published) >= _CLIENT_MESSAGES]
            if full and not self._is_lossy:
                raise zmq.Again
            for client in clients:
                if client not in full:
                    tracker.waiting += 1
                    client.publish(whole, tracker)
                else:
                    client.missed += 1
                    self._process.counts["a stuck client has lost output"] += 1
            return tracker
        asker = next((one for one in self._process.clients if one.identity == whole[0]), None)
        if asker is None:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        asker.reply(self.name, whole[1:])
        return tracker


class _Waker:
    """Both ends of what wakes the poll."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def send(self, data: bytes) -> int:
        self._process.ring()
        return 1

    def recv(self, size: int) -> bytes:
        raise BlockingIOError


class WorldPoller(ZmqPoller):
    """The poller of one process without its thread: a world gives it its turns."""

    def __init__(self, process: Process) -> None:
        made: Any = self
        made._context = self
        made._poller = self
        made._polled, made._readers, made._calls = {}, {}, {}
        made._lock = threading.Lock()
        made._wake_in = made._wake_out = _Waker(process)
        made._is_woken = made._closing = False
        self._process = process

    def add(self, sockets: PolledSockets) -> None:
        self._add(sockets)

    # -- in the place of zmq.Context and zmq.Poller

    def socket(self, kind: int) -> ProxySocket:
        return ProxySocket(self._process, kind)

    def register(self, sock: Any, mask: int) -> None: ...
    def unregister(self, sock: Any) -> None: ...

    def poll(self, patience_ms: int) -> list[tuple[Any, int]]:
        made: Any = self
        return [(sock, zmq.POLLIN) for sock in made._readers if sock.arrived]

    # -- a turn

    def turn(self) -> float:
        """Run once; return for how long there is nothing to do."""
        made: Any = self
        made._turn()
        if made._calls or self.poll(0):
            return 0.0
        return min((one.patience_ms() for one in made._polled), default=60_000) / 1000


class Process:
    """One process with one kernel: it joins the relay that is there."""

    def __init__(
        self,
        agenda: Agenda,
        chance: random.Random,
        network: Network,
        host: Host,
        machine: Machine,
        *,
        number: int,
        limits: Limits | None,
        takes: bool,
        counts: Counter[str],
    ) -> None:
        self.agenda = agenda
        self.chance = chance
        self.network = network
        self.host = host
        self.machine = machine
        self.number = number
        self.counts = counts
        self.clients: list[Client] = []
        self.lines: list[Line] = []
        self.is_alive = True
        self.worst_delay = network.delay_seconds
        # How late its ZMQ thread is: a busy machine.
        self.lag_seconds = self.worst_lag = 0.0
        self.mark = f"m:{number}@1.00:x"
        self.loop = WorldLoop(self.machine.monotonic)
        self.loop.set_exception_handler(self._broken)
        self._poll_at = 0.0
        self.poller = WorldPoller(self)
        self.limits = limits
        # What its kernel could not do: a bug of ours.
        self.bugs: list[str] = []
        self.states: list[str] = []
        self.kernel: Kernel
        self.loop.call_soon(self._begin, takes)

    def _broken(self, loop: Any, context: Mapping[str, Any]) -> None:
        self.bugs.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _begin(self, takes: bool) -> None:
        nothing: Any = None
        services = KernelServices(
            poller=self.poller,
            records=MadeRecords(self.machine.records, lambda: self.is_alive),
            owner=Owner(mark=self.mark, who="ada@laptop"),
            mark=ProcessMark(f"{self.number}@1.00"),
            config="/kernelbridge.toml",
            limits=self.limits,
            labels=nothing,
            engine=nothing,
            cluster=nothing,
            backend=self._reach,
            rest=self._rest,
            observe=lambda kernel, state, text: self.states.append(f"{state}: {text}"),
        )
        given = endpoints.Endpoints(transport="tcp", ip=endpoints.LOOPBACK, ports=(1, 2, 3, 4, 5), key=KEY)
        self.kernel = Kernel(launch_request(KERNEL_ID, gpus=0), given, services)
        self.kernel.come_back(LAB, takes=takes)

    async def _rest(self, seconds: float) -> None:
        """As the pool's: a wake-up ends it."""
        future = self.loop.create_future()
        self.machine.resting.append(future)
        await asyncio.wait([future], timeout=seconds)

    async def _reach(self, host: Any) -> Any:
        await asyncio.sleep(self.network.delay_seconds)
        if self.network.is_away:
            raise HostUnreachable(host="lab", address="lab:22", reason="made up")
        return self

    # -- in the place of a Backend and a Workload

    link: Any = None
    python = "python3"

    def workload(self, name: str, environment: Any) -> Any:
        return self

    async def attach(self, receiver: Any) -> Line:
        await asyncio.sleep(4 * self.network.delay_seconds)
        self.worst_delay = max(self.worst_delay, self.network.delay_seconds)
        if self.network.is_away:
            raise HostUnreachable(host="lab", address="lab:22", reason="made up")
        if not self.host.is_running:
            raise EngineFailed(host="lab", action="exec", reason="the container is not running")
        line = Line(self.network, receiver, post=self.post, ring=self.host.ring)
        self.lines.append(line)
        self.agenda.after(self.network.delay_seconds, lambda: self.host.knock(line))
        return line

    async def state(self) -> ContainerState:
        await asyncio.sleep(2 * self.network.delay_seconds)
        if self.network.is_away:
            raise HostUnreachable(host="lab", address="lab:22", reason="made up")
        if self.host.is_removed:
            return Missing()
        if self.host.exit_code is not None:
            return Exited(code=self.host.exit_code, oom_killed=False, error="", finished_at="")
        return Running()

    async def logs(self, tail: int) -> str:
        return ""

    async def architectures(self, image: str) -> tuple[str, str]:
        return "", ""

    async def stop(self) -> None:
        await self.state()
        self.host.remove()

    # -- its turns

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Run something in its loop: bytes that came."""
        if self.is_alive:
            self.loop.call_soon(function, *args)

    def ring(self) -> None:
        self._poll_at = min(self._poll_at, self.agenda.now + self.lag_seconds)

    @property
    def due_at(self) -> float:
        """By the world's clock; a machine that sleeps does nothing."""
        if not self.is_alive:
            return float("inf")
        due, polls_at, wakes_at = self.machine.in_world(self.loop.due_at), self._poll_at, self.machine.asleep_until
        due = due if due < polls_at else polls_at
        return due if due > wakes_at else wakes_at

    def turn(self) -> None:
        # Time goes on while code runs: what waits for "a moment later" must come to its end.
        self.agenda.now += 1e-6
        if self._poll_at <= self.agenda.now:
            self._poll_at = self.agenda.now + self.poller.turn()
        if self.machine.in_world(self.loop.due_at) <= self.agenda.now + 1e-7:
            self.loop.turn()

    def connect(self, client: Client) -> None:
        self.clients.append(client)
        self.arrive("iopub", [b"\1"])

    def arrive(self, name: str, parts: list[bytes]) -> None:
        """A client has sent something."""
        made: Any = self.poller
        for sock in made._readers:
            if sock.name == name:
                sock.arrived.append(parts)
        self.ring()

    def kill(self, *, is_seen: bool) -> None:
        """It ends without a word, and its clients with it."""
        if self.is_alive:
            self.is_alive = False
            for line in self.lines:
                if not line.is_closed_here:
                    line.abandon(is_seen=is_seen)
            self.loop.abandon()
            for client in self.clients:
                client.leave()


class Machine:
    """The user's machine: its clocks, its records, and whether it sleeps."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self.records: dict[str, KernelRecord] = {}
        self.asleep_until = 0.0
        self._slept_seconds = 0.0
        self.resting: list[asyncio.Future[None]] = []

    def monotonic(self) -> float:
        return self._agenda.now - self._slept_seconds

    boottime = monotonic

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here blocks the loop")

    def in_world(self, moment: float) -> float:
        return moment + self._slept_seconds

    def fall_asleep(self, seconds: float) -> None:
        now = self._agenda.now
        if self.asleep_until > now:
            return
        self.asleep_until = now + seconds
        # At once: nobody here reads a clock before it wakes.
        self._slept_seconds += seconds
        self._agenda.at(self.asleep_until, self._wake)

    def _wake(self) -> None:
        resting, self.resting = self.resting, []
        for future in resting:
            if not future.done() and not future.get_loop().is_closed():
                future.get_loop().call_soon(_settle, future)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
