"""One world: a laptop, a network, a host, and what must hold of them whatever happens.

It is one thing: each fault and each look at the end touches all parts of it.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

from kernelbridge.channels import proxy
from kernelbridge.channels.output_queue import OutputQueue
from kernelbridge.channels.rate_limit import Limits
from kernelbridge.hosts.transport import retry
from kernelbridge.kernel import relay_client
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.state import KernelState
from kernelbridge.protocol.session import SILENCE_SECONDS
from kernelbridge.relay import server, spool, supervisor
from tests.world.clients import Client
from tests.world.clock import FIRST_MOMENT, Agenda, Clock
from tests.world.host import MEMORY_BYTES, STARVED_SECONDS, Host
from tests.world.kernel import Plan
from tests.world.laptop import Machine, Process
from tests.world.line import Line, Network
from tests.world.schedule import Happening, Schedule
from tests.world.system import OsModule, SocketModule

# What the docs promise: after a kill no more comes twice than this.
TWICE_SECONDS = 2.0
# Once all faults are over and the kernel has done its work, everything has arrived and is answered within this.
PROGRESS_SECONDS, WORK_SECONDS = 120.0, 2000.0
# A world that takes more turns than this goes in circles.
MOST_TURNS, MOST_TURNS_A_SECOND = 50_000, 50
# Within which what was acknowledged is handed on, on the busiest machine.
MOST_LAG_SECONDS = 1.0
# How long a poll of channels sleeps that knows of nothing to do: it looks at nothing then. In a process, a minute.
IDLE_MS = 10**8
_LIMITS = Limits(messages_per_second=100.0, stream_bytes_per_second=200_000.0, window_seconds=3.0)


# What needs a machine that is awake.
_BY_PEOPLE = frozenset(
    ["cell", "interrupt", "kill", "take", "detach", "restart", "shutdown", "slow client", "stuck client", "reload"]
)

# Besides what only a process's end does, these keep no acknowledgement from the relay.
_NO_FAULTS = frozenset(
    ["cell", "interrupt", "kill", "take", "detach", "reload", "slow client", "kernel dies", "busy laptop", "rival"]
)


class Broken(AssertionError):
    """Something that must always hold does not."""


class _Calls:
    """Who makes system calls at this moment."""

    clock: Clock
    host: Host
    world: World


@contextlib.contextmanager
def system_calls() -> Iterator[_Calls]:
    """Let all that reads a clock, or makes a system call for a relay, ask the world that runs."""
    calls = _Calls()
    os_of: Any = _Ask(lambda: OsModule(calls.host))
    socket_of: Any = _Ask(lambda: SocketModule(calls.host))
    with contextlib.ExitStack() as stack:
        patch = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
        patch(time, "monotonic", lambda: calls.clock.monotonic())
        patch(time, "sleep", lambda seconds: calls.clock.sleep(seconds))
        patch(time, "clock_gettime", lambda clock: calls.clock.boottime())
        patch(proxy, "OutputQueue", lambda **how: OutputQueue(**how, clock=lambda: calls.clock.monotonic()))
        stack.enter_context(mock.patch.dict(retry.delays.__kwdefaults__, clock=lambda: calls.clock.monotonic()))
        for module in (server, supervisor, spool):
            patch(module, "os", os_of)
        for module in (server, supervisor):
            patch(module, "socket", socket_of)
        patch(spool, "tempfile", _Ask(lambda: calls.host.disk))
        patch(proxy, "IDLE_MS", IDLE_MS)
        patch(supervisor, "KernelProcess", lambda *args, **more: calls.host.made_process(*args, **more))
        patch(supervisor, "MEMORY_BYTES", MEMORY_BYTES)
        patch(supervisor, "scratch_folder", lambda folder: folder)
        patch(relay_client, "owner_process", lambda owner: owner)
        patch(relay_client, "liveness", lambda owner: calls.world.liveness(owner))
        yield calls


class _Ask:
    """A module's stand-in that looks up what stands in for it now."""

    def __init__(self, find: Any) -> None:
        self._find = find

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)


class World:
    """Runs one schedule."""

    def __init__(self, schedule: Schedule, calls: _Calls) -> None:
        self.schedule = schedule
        self._calls = calls
        random.seed(schedule.seed)
        self.chance = random.Random(schedule.seed + 1)
        self.counts: Counter[str] = Counter()
        self.agenda = Agenda()
        self.network = Network(self.agenda, self.chance)
        self.network.delay_seconds = schedule.delay_seconds
        self.network.bytes_per_second = schedule.bytes_per_second
        self.machine = Machine(self.agenda)
        terms = {
            "lost_grace": schedule.lost_grace,
            "idle_timeout": schedule.idle_timeout,
            "max_lifetime": schedule.max_lifetime,
            "persist": schedule.persist,
        }
        self.host = Host(
            self.agenda, self.chance, terms=terms, journal_bytes=schedule.journal_bytes, counts=self.counts
        )
        self.processes: list[Process] = []
        # Of each process the client that reads all at once; and how and when it went.
        self.mains: list[Client] = []
        self.clients: list[Client] = []
        self.gone: dict[int, tuple[str, float]] = {}
        # From when to when something was wrong.
        self._faults: list[tuple[float, float]] = []
        # When the kernel was last told to be another one: what was asked before may stay without an answer.
        self.restarted_at = float("-inf")
        self._is_over = False
        calls.world, calls.host, calls.clock = self, self.host, self.host

    def liveness(self, owner: str) -> Liveness:
        alive = any(one.mark == owner and one.is_alive for one in self.processes)
        return Liveness.ALIVE if alive else Liveness.ENDED

    # -- the course

    @property
    def seconds(self) -> float:
        """How much time has passed in it."""
        return self.agenda.now - FIRST_MOMENT

    def run(self) -> None:
        """Raises Broken, and whatever the code raises that is looked at."""
        try:
            self._run()
        finally:
            for process in self.processes:
                process.kill(is_seen=True)

    def _run(self) -> None:
        began = self.agenda.now
        self.host.start()
        self._begin_process(takes=False)
        for happening in self.schedule.happenings:
            self.agenda.at(began + happening.at, lambda one=happening: self._happen(one))  # type: ignore[misc]
        last = max((one.at for one in self.schedule.happenings), default=0.0)
        self._run_until(began + last + 1.0)
        self._heal()
        self._run_until(self.agenda.now + WORK_SECONDS, stops=self._is_idle)
        self._run_until(self.agenda.now + PROGRESS_SECONDS, stops=self._is_quiet)
        self._run_until(self.agenda.now + 1.0)
        self._check_all()
        self._leave()

    def _run_until(self, end: float, *, stops: Any = None) -> None:
        agenda, host = self.agenda, self.host
        turns = 0
        looks_at = agenda.now + 1.0
        while True:
            due, who = host.due_at, None
            for process in self.processes:
                if process.is_alive and process.due_at < due:
                    due, who = process.due_at, process
            if agenda.next_at <= due:
                if agenda.next_at > end:
                    break
                self._calls.clock = host
                agenda.run_next()
            else:
                if due > end:
                    break
                agenda.now = max(agenda.now, due)
                if who is None:
                    self._calls.clock = host
                    host.turn()
                else:
                    self._calls.clock = self.machine
                    who.turn()
            turns += 1
            if turns > MOST_TURNS + MOST_TURNS_A_SECOND * (agenda.now - FIRST_MOMENT):
                raise Broken("it goes in circles")
            if stops is not None and agenda.now >= looks_at:
                looks_at = agenda.now + 1.0
                if stops():
                    return
        agenda.now = max(agenda.now, end)

    def _begin_process(self, *, takes: bool) -> Process:
        process = Process(
            self.agenda,
            self.chance,
            self.network,
            self.host,
            self.machine,
            number=len(self.processes) + 1,
            limits=_LIMITS if self.schedule.is_limited else None,
            takes=takes,
            counts=self.counts,
        )
        self.processes.append(process)
        self.agenda.after(self.chance.choice((0.05, 0.05, 2.0)), lambda: self._open_client(process, is_main=True))
        return process

    def _open_client(self, process: Process, *, is_main: bool, pace: float = 0.0) -> None:
        if process.is_alive and not self._is_up(process):
            wakes_at = max(self.agenda.now + 0.05, self.machine.asleep_until + 0.01)
            self.agenda.at(wakes_at, lambda: self._open_client(process, is_main=is_main, pace=pace))
        elif process.is_alive:
            client = Client(process, f"c{len(self.clients) + 1}", pace=pace)
            self.clients.append(client)
            if is_main:
                self.mains.append(client)

    @property
    def _process(self) -> Process | None:
        """The one that people use."""
        last = self.processes[-1]
        return last if last.is_alive and last.number not in self.gone else None

    @property
    def _main(self) -> Client | None:
        process = self._process
        return next((one for one in self.mains if one.process is process and one.is_here), None)

    # -- what happens

    def _happen(self, one: Happening) -> None:
        if one.kind in _BY_PEOPLE and self.agenda.now < self.machine.asleep_until:
            self.agenda.at(self.machine.asleep_until + 0.01, lambda: self._happen(one))
            return
        self.counts[one.kind] += 1
        if one.kind not in _NO_FAULTS:
            # A line that swallows all is noticed after a while.
            lasts = one.number + (3 * SILENCE_SECONDS if one.kind in ("cut", "swallow", "offline") else 0.0)
            self._faults.append((self.agenda.now, self.agenda.now + lasts))
        getattr(self, "_" + one.kind.replace(" ", "_"))(one)

    def _cell(self, one: Happening) -> None:
        if self._main is not None:
            assert one.plan is not None
            self._main.execute(one.plan)

    def _interrupt(self, one: Happening) -> None:
        if self._main is not None:
            self._main.interrupt()

    def _lines(self) -> list[Any]:
        return [line for process in self.processes for line in process.lines if not line.is_closed_here]

    def _cut(self, one: Happening) -> None:
        for line in self._lines():
            chance = self.chance.random
            seen = self.chance.choice(((True, True), (True, True), (True, False), (False, True)))
            line.cut(up=chance(), down=chance(), is_seen_here=seen[0], is_seen_there=seen[1])

    def _swallow(self, one: Happening) -> None:
        for line in self._lines():
            ways = self.chance.choice(((True, True), (True, False), (False, True)))
            line.swallow(up=ways[0], down=ways[1])

    def _stall(self, one: Happening) -> None:
        self.network.stalled_until = self.agenda.now + one.number

    def _offline(self, one: Happening) -> None:
        self.network.away_until = self.agenda.now + one.number
        self._cut(one)

    def _slow_line(self, one: Happening) -> None:
        self.network.bytes_per_second = 50_000.0 if one.flag else 1e7
        self.network.delay_seconds = 0.5 if one.flag else self.schedule.delay_seconds

    def _sleep(self, one: Happening) -> None:
        self.machine.fall_asleep(one.number)

    def _host_sleeps(self, one: Happening) -> None:
        if self.host.stopped_until <= self.agenda.now:
            self.host.stopped_until = self.agenda.now + one.number
            self.host.slept_seconds += one.number

    def _relay_stopped(self, one: Happening) -> None:
        self.host.stopped_until = max(self.host.stopped_until, self.agenda.now + one.number)

    def _kill(self, one: Happening) -> None:
        process = self._process
        if process is None or not self._is_up(process):
            return
        self._go(process, "kill")
        process.kill(is_seen=one.flag)
        self.agenda.after(one.number, self._come_back)

    def _come_back(self) -> None:
        if self._process is None and not self._is_over:
            self._begin_process(takes=False)

    def _take(self, one: Happening) -> None:
        process = self._process
        if process is not None and self._is_up(process):
            self._go(process, "take")
            self._begin_process(takes=True)

    def _is_up(self, process: Process) -> bool:
        """Whether it has begun: a process that was not there yet loses nothing."""
        return hasattr(process, "kernel") and self.machine.asleep_until <= self.agenda.now

    def _go(self, process: Process, how: str) -> None:
        self.gone[process.number] = (how, self.agenda.now)

    def _detach(self, one: Happening) -> None:
        process = self._process
        if process is None or not self._is_up(process):
            return
        self._go(process, "detach")

        def ended(task: Any) -> None:
            self._go(process, "detached")
            self.agenda.after(0.5, lambda: process.kill(is_seen=True))
            self.agenda.after(0.6 + one.number, self._come_back)

        process.loop.call_soon(
            lambda: process.loop.create_task(process.kernel.detach(end=False)).add_done_callback(ended)
        )

    def _busy_laptop(self, one: Happening) -> None:
        if self._process is not None:
            self._process.lag_seconds = min(one.number, MOST_LAG_SECONDS)
            self._process.worst_lag = max(self._process.worst_lag, self._process.lag_seconds)

    def _restart(self, one: Happening) -> None:
        process = self._process
        if process is not None and self._is_up(process):
            self.restarted_at = self.agenda.now
            request = process.kernel.request
            process.loop.call_soon(lambda: process.loop.create_task(_quietly(process.kernel.relaunch(lambda: request))))

    def _shutdown(self, one: Happening) -> None:
        """Its front-end asks it to end, or to begin anew; one that waits for a kernel too. Then it is started again."""
        process, main = self._process, self._main
        if process is None or main is None or not self._is_up(process):
            return
        if not process.kernel.is_joined or process.kernel.state is not KernelState.RUNNING:
            self.counts["a shutdown was asked while the kernel could not be asked"] += 1
        main.shutdown(restart=one.flag)
        # What is asked from here on may end with the kernel.
        self.restarted_at = float("inf")
        self.agenda.after(max(0.3, one.number), lambda: self._restart(one))

    def _rival(self, one: Happening) -> None:
        if self.host.supervisor.server.connection is not None and self.host.is_running:
            nobody: Any = mock.MagicMock()
            self.host.rival_knocks(Line(self.network, nobody, post=lambda *_: None, ring=self.host.ring))

    def _kernel_dies(self, one: Happening) -> None:
        self.host.kernel.end(1)

    def _relay_dies(self, one: Happening) -> None:
        self.host.kill()

    def _disk_full(self, one: Happening) -> None:
        disk = self.host.disk
        disk.is_full = disk.has_been_full = True

        def is_mended() -> None:
            disk.is_full = False

        self.agenda.after(one.number, is_mended)

    def _full_at_write(self, one: Happening) -> None:
        self.host.disk.full_at_write = self.host.disk.writes + 1 + int(one.number) % 3

    def _disk_broken(self, one: Happening) -> None:
        self.host.disk.is_broken = True

    def _slow_client(self, one: Happening) -> None:
        process = self._process
        if process is not None and self._main is not None:
            self._open_client(process, is_main=False, pace=0.05)

    def _stuck_client(self, one: Happening) -> None:
        process = self._process
        if process is not None and self._main is not None:
            self._open_client(process, is_main=False, pace=float("inf"))

    def _reload(self, one: Happening) -> None:
        """A page's other client goes, and comes again."""
        process = self._process
        if process is None or self._main is None:
            return
        other = next((c for c in self.clients if c.process is process and c not in self.mains and c.is_here), None)
        if other is not None:
            other.leave()
        self._open_client(process, is_main=False)

    # -- the end

    def _heal(self) -> None:
        """All faults are over."""
        network, host, machine = self.network, self.host, self.machine
        until = max(network.away_until, network.stalled_until, host.stopped_until, machine.asleep_until)
        for client in self.clients:
            # One that is stuck may stay so: the others must have all of it for that.
            if client.pace != float("inf") or self.chance.random() < 0.5:
                client.read_at(min(client.pace, 0.01))
        if until > self.agenda.now:
            self._run_until(until + 0.1)
        network.bytes_per_second, network.delay_seconds = 1e7, 0.01
        host.disk.is_full = False
        for process in self.processes:
            process.lag_seconds = 0.0
        self._run_until(self.agenda.now + 10.0)
        self._come_back()
        if self.counts["shutdown"]:
            # Its server sees that it has ended, should whoever was to start it again have gone meanwhile.
            self._run_until(self.agenda.now + 30.0)
            if self._process is not None and self._process.kernel.state is KernelState.EXITED:
                self._restart(Happening(0.0, "restart"))

    def _is_idle(self) -> bool:
        kernel = self.host.kernel
        return kernel.code is not None or kernel.is_idle

    def _is_quiet(self) -> bool:
        if not self.host.is_running:
            return False
        process, main = self._process, self._main
        if process is None or main is None or not process.kernel.is_joined:
            return False
        if not self._is_idle() or not self.host.supervisor.stream.is_delivered:
            return False
        return all(main.replies[name] for name in main.asked)

    def _check_all(self) -> None:
        self._check_bugs()
        self._check_output()
        self._check_requests()
        process = self._process
        is_joined = process is not None and process.kernel.is_joined and self.host.is_running
        if is_joined and self._is_idle():
            self._run_until(self.agenda.now + 30.0, stops=lambda: self.host.supervisor.stream.is_delivered)
        if is_joined and self._is_idle() and not self.host.supervisor.stream.is_delivered:
            raise Broken("all was shown, and the relay holds it as if it were not")
        self._check_spool()
        self._check_state()
        self._check_lifetime()

    def _check_spool(self) -> None:
        host = self.host
        if host.is_running and host.supervisor.stream.is_delivered and host.disk.files:
            raise Broken(f"{len(host.disk.files)} files are left of output that was delivered")

    def _check_lifetime(self) -> None:
        limit, host = self.schedule.max_lifetime, self.host
        is_long_there = self.agenda.now > max(self.restarted_at, host.stopped_until) + 30.0
        lives_on = host.is_running and host.kernel.code is None and is_long_there
        if limit is not None and self.seconds > limit + 30.0 and lives_on:
            raise Broken(f"the kernel lives for {self.seconds:.0f} s, and may for {limit:.0f} s")

    def _check_state(self) -> None:
        """What people see of the kernel is what has become of it."""
        process, host = self._process, self.host
        if process is None or not process.kernel.is_joined or not host.is_running:
            return
        state, last = process.kernel.state, host.kernel
        # Nobody waited for it any more when it came: the next restart has it.
        is_given_up = any("took longer than" in text or "was cancelled" in text for text in process.states)
        if last.code is None and host.supervisor.client.is_ready and state is not KernelState.RUNNING:
            if is_given_up:
                self.counts["a kernel came that was given up"] += 1
                return
            raise Broken(f"the kernel runs, and is said to be {state}")
        if last.code is not None and state is KernelState.RUNNING:
            raise Broken("the kernel has ended, and is said to run")

    def _check_bugs(self) -> None:
        for process in self.processes:
            if process.bugs:
                raise Broken(f"a bug in process {process.number}: {process.bugs[0]}")

    def _check_output(self) -> None:
        """Each output once, in order; twice only what was shown just before a process ended without a word."""
        place = {token: number for number, token in enumerate(self.host.printed)}
        last = -1
        shown: dict[int, tuple[float, Process]] = {}
        missing: set[int] = set()
        for main in sorted(self.mains, key=lambda one: one.process.number):
            before = -1
            for moment, launch, number in main.shown:
                at = place[launch, number]
                if at <= before:
                    raise Broken(f"output {launch}.{number} came again or late within process {main.process.number}")
                if before < 0 and at <= last:
                    self._check_repeat(at, *shown.get(at, (float("inf"), main.process)))
                skipped = range((before if before >= 0 else last) + 1, at)
                missing.update(skipped)
                before = at
                shown[at] = moment, main.process
                missing.discard(at)
            last = max(last, before)
        if not self.host.is_running:
            return
        missing.update(range(last + 1, len(self.host.printed)))
        missing = {at for at in missing if self.host.printed[at] not in self.host.unread}
        told = sum(main.told_dropped for main in self.mains)
        if told:
            self.counts["output was dropped, and that was told"] += 1
        if len(missing) > told:
            first = self.host.printed[min(missing)]
            raise Broken(f"{len(missing)} outputs are lost, the first is {first}; told of {told}")

    def _check_repeat(self, at: int, shown_at: float, by: Process) -> None:
        """It was shown by another process before: just before the relay heard the last of that."""
        self.counts["output came twice"] += 1
        _, gone_at = self.gone.get(by.number, ("", float("inf")))
        heard_at = min(gone_at, max((line.heard_there_at for line in by.lines), default=0.0))
        if any(since < heard_at + 1.0 and until > shown_at - 1.0 for since, until in self._faults):
            return  # Nobody can say when the relay heard that it had arrived.
        slack = (
            0.3 + 2 * by.worst_lag + 8 * max(self.network.delay_seconds, self.schedule.delay_seconds, by.worst_delay)
        )
        if shown_at < heard_at - TWICE_SECONDS - slack:
            raise Broken(f"output {self.host.printed[at]} came again {heard_at - shown_at:.1f} s after it was shown")
        self.counts["output came twice after a kill, as little as was promised"] += 1

    def _check_requests(self) -> None:
        for name, count in self.host.ran.items():
            if count > 1:
                raise Broken(f"request {name} was run {count} times")
        for client in self.clients:
            for name, count in client.replies.items():
                if count > 1:
                    raise Broken(f"request {name} was answered {count} times")
            how, _ = self.gone.get(client.process.number, ("", float("inf")))
            if not client.process.is_alive or not client.is_here or how in ("detach", "detached"):
                continue
            for name, moment in client.asked.items():
                if not client.replies[name] and moment > self.restarted_at:
                    raise Broken(f"request {name} of {moment:.3f} was never answered")
                if client.replies[name] and not client.idles[name] and not client.missed:
                    raise Broken(f"request {name} has no idle")

    def _stay_away(self) -> None:
        """The owner vanishes while a cell runs: its output is waited with, longer than a lost kernel lives."""
        main, host, schedule = self._main, self.host, self.schedule
        if main is None or not main.process.kernel.is_joined or main.process.kernel.state is not KernelState.RUNNING:
            return
        main.execute(Plan(outputs=5, pause=0.5))
        self._run_until(self.agenda.now + 1.2)
        self._go(main.process, "kill")
        main.process.kill(is_seen=True)
        self._is_over = True
        self._run_until(self.agenda.now + max(schedule.lost_grace, schedule.idle_timeout or 0.0) + 3 * STARVED_SECONDS)
        if not host.is_running:
            raise Broken(f"ended by {host.end_word} while output waited")
        self.counts["output waited longer than lost_grace"] += 1
        self._is_over = False
        self._come_back()
        self._run_until(self.agenda.now + PROGRESS_SECONDS, stops=self._is_quiet)
        self._run_until(self.agenda.now + 1.0)
        self._check_all()

    def _leave(self) -> None:
        """The last owner goes, and nothing stays behind."""
        if self.schedule.farewell == "amid" and self.host.is_running:
            self._stay_away()
        self._is_over = True
        process = self._process
        host, schedule = self.host, self.schedule
        left_at = self.agenda.now
        is_ours = process is not None and process.kernel.state is not KernelState.FAILED
        if process is not None and is_ours and schedule.farewell.startswith("stop"):
            self._stop(process)
            return
        if process is not None and is_ours and schedule.farewell in ("detach", "end"):
            ends = schedule.farewell == "end"
            process.loop.call_soon(lambda: process.loop.create_task(_quietly(process.kernel.detach(end=ends))))
            self._run_until(left_at + 10.0)
        said_goodbye = host.goodbye_at >= left_at
        for one in self.processes:
            one.kill(is_seen=self.chance.random() < 0.5)
        if not host.is_running:
            self._check_end(said_goodbye)
            return
        most = max(schedule.lost_grace, schedule.idle_timeout or 0.0, schedule.max_lifetime or 0.0, 600.0)
        longest = most + 2 * SILENCE_SECONDS + 2 * STARVED_SECONDS
        if self._is_kept_for_ever(said_goodbye):
            self._run_until(left_at + longest)
            if not host.is_running:
                raise Broken(f"ended by {host.end_word}, and was to be kept for ever")
            self.counts["kept for ever"] += 1
            return
        self._run_until(left_at + longest, stops=lambda: not host.is_running)
        if host.is_running:
            raise Broken(f"the container is left behind; its deadline: {host.supervisor.deadline}")
        self._check_end(said_goodbye)
        alone = host.ended_at - left_at
        if host.end_word == "lost_grace" and alone < schedule.lost_grace - 60.0:
            raise Broken(f"lost_grace fired after {alone:.0f} s alone")

    def _stop(self, process: Process) -> None:
        """It is stopped, and as people do once more while that is under way: each has its end, and nothing is left."""
        host, ended = self.host, list[Any]()
        times = 2 if self.schedule.farewell == "stop twice" else 1
        for _ in range(times):
            process.loop.call_soon(
                lambda: process.loop.create_task(_quietly(process.kernel.stop())).add_done_callback(ended.append)
            )
        self._run_until(self.agenda.now + 60.0, stops=lambda: not host.is_running and len(ended) == times)
        if host.is_running:
            raise Broken("a stopped kernel's container runs")
        if len(ended) < times:
            raise Broken("who stops a kernel waits for ever")
        self.counts[f"farewell: {self.schedule.farewell}"] += 1

    def _is_kept_for_ever(self, said_goodbye: bool) -> bool:
        """Whether nothing may end it any more."""
        supervisor, schedule = self.host.supervisor, self.schedule
        has_kernel = self.host.kernel.code is None
        is_limited = schedule.max_lifetime is not None or schedule.idle_timeout is not None
        used = supervisor.lifetime.has_run_cell and not is_limited
        return schedule.persist and used and has_kernel and not (said_goodbye and schedule.farewell == "end")

    def _check_end(self, said_goodbye: bool) -> None:
        """What has ended the container is what was to end it."""
        host, schedule = self.host, self.schedule
        self.counts[f"ended by {host.end_word}"] += 1
        if host.end_word == "goodbye" and schedule.farewell != "end":
            raise Broken("a kernel that was to run on has ended with its owner")
        if said_goodbye and schedule.farewell == "end" and host.end_word in ("lost_grace", "idle_timeout"):
            raise Broken(f"its owner has ended it, and it was ended by {host.end_word}")
        lived = host.ended_at - FIRST_MOMENT
        limit = schedule.max_lifetime
        if limit is not None and host.end_word == "max_lifetime" and lived < limit:
            raise Broken(f"max_lifetime fired after {lived:.0f} s")


async def _quietly(coroutine: Any) -> None:
    from kernelbridge.errors import KernelBridgeError

    with contextlib.suppress(KernelBridgeError):
        await coroutine
