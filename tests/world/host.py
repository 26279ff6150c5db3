"""The host of a world: a container in which a real Supervisor runs, on made-up system calls, with a made-up kernel."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kernelbridge.protocol import frames
from kernelbridge.protocol.exit_codes import EXIT_CODES
from kernelbridge.protocol.handshake import Goodbye, Hello
from kernelbridge.protocol.session import REPLAY_BYTES
from kernelbridge.relay.gpus.gpu_lock import GpuLocks
from kernelbridge.relay.supervisor import Supervisor
from tests.world.clock import Agenda
from tests.world.kernel import MadeProcess
from tests.world.line import Line
from tests.world.system import Bell, BridgeSocket, Descriptors, Disk, Listener, ZmqModule

KERNEL_ID = "aaaa1111-0000-4000-8000-000000000001"
# Small, so that little output fills them.
MEMORY_BYTES = 16 * 1024
# Most relays here are starved, and in the end all: they look at their deadlines so seldom, while those are far away.
STARVED_SECONDS, JOINED_SECONDS = 600.0, 4.0
TURN_SECONDS = 0.00005
KILLED = 137
RIVAL = "eve:1@1.00:x"


class _Relay(Supervisor):
    """A Supervisor that tells its host what oracles want to know."""

    host: Host

    def goodbye(self, said: Goodbye) -> None:
        self.host.counts["goodbye"] += 1
        self.host.goodbye_at = self.host.agenda.now
        super().goodbye(said)


class Host:
    """One container, from its start to its end."""

    def __init__(
        self,
        agenda: Agenda,
        chance: random.Random,
        *,
        terms: Mapping[str, Any],
        journal_bytes: int,
        counts: Counter[str],
    ) -> None:
        self.agenda = agenda
        self.chance = chance
        self.counts = counts
        self.descriptors = Descriptors()
        self.disk = Disk(self)
        self.listener: Listener | None = None
        self.kernels: dict[int, MadeProcess] = {}
        # How often each request was run; every output, in order: launch and number.
        self.ran: Counter[str] = Counter()
        self.printed: list[tuple[int, int]] = []
        self._names = 0
        # How far it has slept, by time.sleep; for how long the machine has, in all.
        self._reached = 0.0
        self.slept_seconds = 0.0
        self.stopped_until = 0.0
        self._due_at = agenda.now
        self._is_starved, self._starves_at = chance.random() < 0.8, agenda.now + 200.0
        self._is_rung = True
        # The exit code of the container; None while it runs. And the deadline's word, for oracles.
        self.exit_code: int | None = None
        self.ended_at = self.goodbye_at = 0.0
        self.end_word = ""
        # Output that was in a kernel's sockets as its process was ended by order.
        self.unread: set[tuple[int, int]] = set()
        self.is_removed = False
        self.terms = terms
        self._journal_bytes = journal_bytes

    def start(self) -> None:
        """Within the world's patches."""
        spawn = {"do": "spawn", "launch": 1, "session": "s", "argv": [], "env": {}, "cwd": "", "needs": []}
        order = {
            "kernel": KERNEL_ID,
            "folder": "/nowhere",
            "spawn": spawn,
            "terms": dict(self.terms),
            "journal": {"folder": "/spool", "bytes": self._journal_bytes},
            "release": "0",
        }
        self.supervisor = _Relay(order, GpuLocks([]))
        self.supervisor.host = self
        self.supervisor.monitor.is_settled = True
        self._watch_admission()
        client: Any = self.supervisor.client
        client.zmq = client._context = ZmqModule(self)
        self.supervisor.spawn(spawn)

    def _watch_admission(self) -> None:
        """No owner loses the kernel to another one that does not take it."""
        server: Any = self.supervisor.server
        admit = server._admit

        def admitted(connection: Any, hello: Any, now: float) -> None:
            is_held = server.connection is not None and server.connection.owner != hello.owner
            assert hello.take or not is_held, "another owner was let in, and did not take the kernel"
            if hello.owner == RIVAL:
                server.disconnect(connection)  # Nobody held it at this moment; it dies before it has it.
            else:
                admit(connection, hello, now)

        server._admit = admitted

    def rival_knocks(self, line: Line) -> None:
        """Somebody else wants the kernel, and does not take it."""
        hello = Hello(KERNEL_ID, owner=RIVAL, who="eve@desk", stream="rival", received=[0, 0])
        line.source += hello.frame()
        self.knock(line)

    def name_one(self) -> str:
        self._names += 1
        return f"m{self._names}"

    def made_process(self, launch: int, folder: str, order: Any, ring: Any, **more: Any) -> MadeProcess:
        """In the place of KernelProcess."""
        assert launch not in self.kernels, "a launch has the number of another one"
        self.kernels[launch] = MadeProcess(self, launch, order)
        return self.kernels[launch]

    @property
    def kernel(self) -> MadeProcess:
        """The newest."""
        return next(reversed(self.kernels.values()))

    # -- its clocks

    def boottime(self) -> float:
        return max(self.agenda.now, self._reached)

    def monotonic(self) -> float:
        return self.boottime() - self.slept_seconds

    def sleep(self, seconds: float) -> None:
        self._reached = self.boottime() + seconds

    # -- its life

    def ring(self) -> None:
        """Something is to be read or can be written."""
        self._is_rung = True

    def bell_rings(self) -> None:
        ringer: Bell = self.supervisor.ringer  # type: ignore[assignment]
        ringer.send(b"\0")

    @property
    def is_running(self) -> bool:
        return self.exit_code is None

    @property
    def due_at(self) -> float:
        """When the relay has a turn."""
        if not self.is_running:
            return float("inf")
        at = self.agenda.now + TURN_SECONDS if self._is_rung else self._due_at
        return max(at, self.stopped_until, self._reached)

    def turn(self) -> None:
        """Let the relay's loop run once."""
        relay: Any = self.supervisor
        relay.step()
        self._check_memory()
        if relay.exit_code is not None:
            self._end(relay.exit_code)
            return
        self._is_rung = bool(relay._poller().poll(0))
        seconds = relay._patience_ms() / 1000
        if relay.batcher.nap_seconds:
            self.sleep(relay.batcher.nap_seconds)
        if (
            (self._is_starved or self.boottime() > self._starves_at)
            and seconds > 0.5
            and relay.client.due_at == float("inf")
        ):
            left = relay.deadline.at - self.boottime() if relay.deadline is not None else float("inf")
            seconds = max(seconds, min(JOINED_SECONDS if relay.server.connections else STARVED_SECONDS, left / 3))
        self._due_at = self.boottime() + seconds

    def _end(self, code: int) -> None:
        self.exit_code, self.ended_at = code, self.agenda.now
        self.end_word = next((word for word, known in EXIT_CODES.items() if known == code), "killed")
        self.supervisor.server.close()
        for kernel in self.kernels.values():
            kernel.code = -9 if kernel.code is None else kernel.code

    def remove(self) -> None:
        """The engine was told to."""
        self.kill()
        self.is_removed = True

    def kill(self) -> None:
        """The relay ends without a word, and all with it."""
        if self.is_running:
            self._end(KILLED)

    def knock(self, line: Line) -> None:
        """A bridge connects."""
        if self.listener is None or not self.is_running:
            line.close_there()
            return
        self.listener.waiting.append(BridgeSocket(self, line))
        self.ring()

    # -- what holds at each step

    def _check_memory(self) -> None:
        stream = self.supervisor.stream
        lane: Any = stream.send_lanes[frames.ORDERED]
        assert lane._kept_bytes <= REPLAY_BYTES, "more is kept than REPLAY_BYTES"
        for segment in self.supervisor.spool._segments:
            size = len(self.disk.files.get(segment.file, b""))
            assert size == segment.end, "a segment's file is longer than what is in it"
        assert lane._kept_bytes == sum(len(one) for _, one in lane._kept), "what is kept is counted wrongly"
        assert lane.sent_bytes == sum(len(one.payload) for one in lane._sent), "what is under way is counted wrongly"
        journal: Any = lane.waiting
        if hasattr(journal, "memory_bytes"):
            in_memory = sum(b.batch.held_bytes for r in journal._regions for b in r if b.batch is not None)
            assert journal.memory_bytes == in_memory, "the journal counts its memory wrongly"
            bound = 5 * journal._limit_bytes + 20 * journal._block_bytes + 8 * frames.FRAME_BYTES
            assert journal.held_bytes <= bound, "the journal holds more than it may"
            if not self.disk.is_full and not self.disk.has_been_full:
                bound = journal._memory_limit_bytes + 20 * journal._block_bytes + 2 * frames.FRAME_BYTES
                assert journal.memory_bytes <= bound, "the journal takes more memory than it may"
