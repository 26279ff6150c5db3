"""A world of its own: starts that want a host's cards, queue for them, sleep, die and end; and who holds which card."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from kernelbridge.errors import GpusBusy, HostUnreachable, KernelBridgeError
from kernelbridge.hosts.labels import Labels
from kernelbridge.kernel.start.gpu_allocator import GpuAllocator
from kernelbridge.protocol.handshake import GpuStatus
from kernelbridge.relay.gpus import gpu_lock
from kernelbridge.relay.gpus.gpu_lock import GpuLocks, Refused
from tests import made_events, made_hosts
from tests.made_clock import ENGINES_START
from tests.made_engines import LAB, MadeEngine, cards, launch_request
from tests.world.clock import FIRST_MOMENT, Agenda, WorldLoop

# A dead start's ticket is passed over after a minute; what comes free then is taken within some looks.
TAKEN_SECONDS = 60.0 + 15.0
# After so long a start that got nothing has its ticket; that, and a sign of life, the next made before it goes.
QUEUED_SECONDS, MOST_VOLUMES = 10.0, 3


class HeldTwice(AssertionError):
    """A card was given to two kernels, or stays with one that has ended; or nobody gets one that is free."""


class _Locks:
    """The host's kernel: folders that are open, and who has locked them."""

    def __init__(self) -> None:
        self._newest = 0
        self.open: dict[int, str] = {}
        self.locked: dict[str, int] = {}

    def open_folder(self, path: str, flags: int) -> int:
        self._newest += 1
        self.open[self._newest] = path
        return self._newest

    def flock(self, number: int, operation: int) -> None:
        assert operation == fcntl.LOCK_EX | fcntl.LOCK_NB
        path = self.open[number]
        if self.locked.get(path, number) != number:
            raise BlockingIOError
        self.locked[path] = number

    def close(self, number: int) -> None:
        path = self.open.pop(number)
        if self.locked.get(path) == number:
            del self.locked[path]


class _Clock:
    """As MadeEngine reads it."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda

    @property
    def now(self) -> float:
        return self._agenda.now

    @property
    def engines(self) -> datetime:
        return ENGINES_START + timedelta(seconds=self._agenda.now - FIRST_MOMENT)


class _Start:
    """One process that starts one kernel; its relay's locks live on when it dies."""

    def __init__(self, world: GpuWorld, number: int, gpus: int) -> None:
        self.world = world
        self.id = f"{number:08d}-0000-4000-8000-000000000001"
        self.gpus = gpus
        self.began_at = world.agenda.now
        self.slept_seconds = self.asleep_until = 0.0
        self.is_alive = True
        # Set once its kernel runs, and once that has ended.
        self.locks: GpuLocks | None = None
        self.is_over = False
        self.loop = WorldLoop(lambda: world.agenda.now - self.slept_seconds)
        self.loop.set_exception_handler(lambda loop, context: world.bugs.append(str(context)))
        self.loop.call_soon(lambda: self.loop.create_task(self._live()))

    @property
    def due_at(self) -> float:
        return max(self.loop.due_at + self.slept_seconds, self.asleep_until) if self.is_alive else float("inf")

    async def _reach(self, host: Any) -> Any:
        await asyncio.sleep(0.01)
        if self.world.agenda.now < self.world.away_until:
            raise HostUnreachable(host="lab", address="lab:22", reason="made up")
        return self.world.engine

    async def _live(self) -> None:
        request = launch_request(self.id, gpus=self.gpus, wait=100_000.0)
        allocator = GpuAllocator(request, (LAB,), self._reach, lambda text: None, user="ada@laptop")
        try:
            while self.locks is None:
                lease = await allocator.next()
                if not await self._start(lease.gpu_ids):
                    self.world.counts["another was faster"] += 1
                    allocator.lost(lease)
        except HeldTwice as exc:
            self.world.broken = exc
        except GpusBusy:
            self.world.counts["gave up"] += 1
            self.is_over = True
        except KernelBridgeError:
            self.world.counts["a start failed"] += 1
            self.is_over = True
        finally:
            await allocator.aclose()

    async def _start(self, gpus: tuple[str, ...]) -> bool:
        """A container is made, and its relay locks the cards, or ends."""
        world = self.world
        labels = Labels(kernel=self.id, environment="torch", owner="m", user="ada@laptop", gpus=",".join(gpus))
        status = made_events.status(gpus=GpuStatus(ids=list(gpus))).to_dict()
        world.engine.boxes[self.id] = made_hosts.Box(labels=labels.to_dict(), state="created", status=status)
        if world.chance.random() < 0.05:
            world.counts["a start died between its container and its kernel"] += 1
            world.agenda.after(0.05, self.kill)
        await asyncio.sleep(world.chance.choice((0.1, 0.1, 2.0)))
        locks = GpuLocks(gpus, "/locks")
        try:
            locks.take()
        except Refused:
            world.engine.boxes.pop(self.id, None)
            return False
        self.locks = locks
        world.took(self, gpus)
        world.engine.boxes[self.id].state = "running"
        world.agenda.after(world.chance.choice((5.0, 20.0, 60.0)), self.end)
        return True

    def end(self) -> None:
        """Its kernel ends; the container may stay for its output, and then says that it holds nothing."""
        if self.locks is None or self.is_over:
            return
        self.is_over = True
        world = self.world
        self.locks.give_back()
        world.gave_back(self)
        if world.chance.random() < 0.3:
            world.counts["a container is kept for its output"] += 1
            world.engine.boxes[self.id].status = made_events.status().to_dict()
        else:
            world.engine.boxes.pop(self.id, None)

    def kill(self) -> None:
        """The process dies, and a container that was not started yet stays as it is."""
        if self.is_alive:
            self.is_alive = False
            self.loop.abandon()
            if self.locks is None:
                self.is_over = True


class GpuWorld:
    """Some starts on one host, from a seed."""

    def __init__(self, seed: int, counts: Counter[str]) -> None:
        random.seed(seed)
        self.chance = random.Random(seed)
        self.counts = counts
        self.agenda = Agenda()
        self.system = _Locks()
        self.away_until = 0.0
        self._was_away = False
        self.number_of_cards = self.chance.choice((1, 2, 4))
        self.engine = MadeEngine(clock=_Clock(self.agenda), facts_of_gpus=cards(self.number_of_cards))  # type: ignore[arg-type]
        self.starts: list[_Start] = []
        self.bugs: list[str] = []
        # What a start has seen that must not be.
        self.broken: HeldTwice | None = None
        self._held: dict[str, str] = {}
        self._reader = lambda: self.agenda.now

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            patch: Callable[..., Any] = lambda *args: stack.enter_context(mock.patch.object(*args))  # noqa: E731
            patch(time, "monotonic", lambda: self._reader())
            patch(gpu_lock, "fcntl", _Fcntl(self.system))
            patch(gpu_lock, "os", _Os(self.system))
            yield

    def took(self, start: _Start, gpus: tuple[str, ...]) -> None:
        for gpu in gpus:
            if gpu in self._held:
                raise HeldTwice(f"{gpu} is given to {start.id[:8]} while {self._held[gpu][:8]} has it")
            self._held[gpu] = start.id
        self.counts["a kernel got its cards"] += 1
        self._check_turn(start)

    def _check_turn(self, start: _Start) -> None:
        """Who came first gets cards first, if its process was awake, and the host in reach, all the time."""
        for other in self.starts:
            has_waited = other.began_at + QUEUED_SECONDS < min(start.began_at, self.agenda.now)
            waits = other.is_alive and not other.is_over and other.locks is None and not other.slept_seconds
            has_none_left = self.number_of_cards - len(self._held) < other.gpus <= start.gpus
            if waits and has_waited and has_none_left and not self._was_away:
                raise HeldTwice(f"{start.id[:8]} has overtaken {other.id[:8]} in the queue")
            if waits and has_waited:
                self.counts["a start took its cards before one that had slept, or wants more"] += 1
            if sum(other.id in name for name in self.engine.volumes.there) > MOST_VOLUMES:
                raise HeldTwice(f"{other.id[:8]} has too many volumes in the queue")

    def gave_back(self, start: _Start) -> None:
        self._held = {gpu: kernel for gpu, kernel in self._held.items() if kernel != start.id}

    def run(self) -> None:
        """Raises HeldTwice."""
        with self._patched():
            self._run()

    def _run(self) -> None:
        chance, agenda = self.chance, self.agenda
        at = agenda.now
        for number in range(chance.randrange(2, 8)):
            at += chance.choice((0.0, 0.0, 0.05, 3.0, 60.0)) * chance.random()
            gpus = chance.choice((1, 1, 1, min(2, self.number_of_cards)))
            agenda.at(at, lambda n=number, g=gpus: self.starts.append(_Start(self, n, g)))  # type: ignore[misc]
        for _ in range(chance.randrange(0, 4)):
            agenda.at(FIRST_MOMENT + 120.0 * chance.random(), self._fault)
        self._run_until(at + 200.0)
        self.away_until = 0.0
        self._run_until(agenda.now + 7 * 60.0 + 7 * TAKEN_SECONDS, watches=True)
        for start in self.starts:
            if not start.is_over:
                raise HeldTwice(f"{start.id[:8]} waits for ever; held: {self._held}")
        if self.system.locked:
            raise HeldTwice(f"locked after the end: {self.system.locked}")
        mine = [name for name in self.engine.volumes.there if any(s.is_alive and s.id in name for s in self.starts)]
        if mine and not self._was_away:  # A host that cannot be reached throws them away itself, an hour later.
            raise HeldTwice(f"tickets stay behind: {mine}")
        if self.bugs:
            raise HeldTwice(self.bugs[0])

    def _fault(self) -> None:
        waiting = [one for one in self.starts if one.is_alive]
        kind = self.chance.choice(("kill", "kill", "sleep", "away", "end"))
        if not waiting:
            return
        one = self.chance.choice(waiting)
        self.counts[f"gpus: {kind}"] += 1
        seconds = self.chance.choice((1.0, 20.0, 90.0))
        if kind == "kill":
            one.kill()
        elif kind == "end":
            one.end()
        elif kind == "away":
            self._was_away = True
            self.away_until = self.agenda.now + seconds
        elif one.asleep_until <= self.agenda.now:
            one.asleep_until = self.agenda.now + seconds
            one.slept_seconds += seconds

    def _run_until(self, end: float, *, watches: bool = False) -> None:
        """With `watches` no card may be free for long while somebody waits."""
        agenda = self.agenda
        free_since: float | None = None
        while True:
            due, who = min(((one.due_at, n) for n, one in enumerate(self.starts)), default=(float("inf"), -1))
            if min(due, agenda.next_at) > end:
                break
            if agenda.next_at <= due:
                self._reader = lambda: agenda.now
                agenda.run_next()
            else:
                start = self.starts[who]
                agenda.now = max(agenda.now, due) + 1e-6
                self._reader = start.loop.time
                start.loop.turn()
            if self.broken is not None:
                raise self.broken
            waits = [one for one in self.starts if not one.is_over and one.locks is None]
            if watches and not waits and all(one.is_over for one in self.starts):
                # The last ones give their tickets back.
                end, watches = min(end, agenda.now + 15.0), False
            fits = any(one.gpus <= self.number_of_cards - len(self._held) for one in waits[:1])
            free_since = (free_since or agenda.now) if watches and fits else None
            if free_since is not None and agenda.now - free_since > TAKEN_SECONDS + 60.0:
                raise HeldTwice(f"a card is free for {agenda.now - free_since:.0f} s while {waits[0].id[:8]} waits")
        agenda.now = max(agenda.now, end)


class _Fcntl:
    LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

    def __init__(self, system: _Locks) -> None:
        self.flock = system.flock


class _Os:
    """`os`, but for what opens and closes folders."""

    def __init__(self, system: _Locks) -> None:
        self.open = system.open_folder
        self.close = system.close

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)
