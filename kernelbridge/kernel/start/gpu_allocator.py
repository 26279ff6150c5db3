"""Pick the GPUs for a start on one of its hosts, and wait in the hosts' queues for them.

What is picked here is a hint made of labels and of what nvidia-smi shows; where another start was faster, its relay
has the lock, ours ends, and the next pick follows (decisions.md, 24).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from kernelbridge.config.schema import Host
from kernelbridge.errors import GpusBusy, KernelBridgeError
from kernelbridge.hosts.backend import ContainerFacts
from kernelbridge.hosts.docker import gpu_queue
from kernelbridge.hosts.docker.gpu_queue import QueuePlace, Ticket
from kernelbridge.hosts.gpus import selection
from kernelbridge.hosts.gpus.holders import Holding
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.gpus.selection import GpuRequest, Others
from kernelbridge.hosts.labels import KERNEL_LABEL, LOCKS_LABEL, NAME_PREFIX
from kernelbridge.hosts.progress import Say, WorkProgress
from kernelbridge.hosts.transport.retry import is_transient
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.start.gpu_holders import holdings, released

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py

_LOG = logging.getLogger(__name__)

# How often who waits looks again; a host is asked once for all who wait here. Who is next on a host looks more often:
# what is removed and made takes a second or two, and a card is to be idle for at most 3 s.
QUEUE_LOOK_SECONDS: Final = 2.0
NEXT_LOOK_SECONDS: Final = 1.0
# A GPU that was taken under us while no label says by whom: for so long it is left alone, and so long it comes last.
LOST_SECONDS: Final = 1.0
LAST_SECONDS: Final = 20.0
# How often the relays of a full host are asked whether they still hold what their labels say.
ASK_AGAIN_SECONDS: Final = 30.0
GIVE_BACK_SECONDS: Final = 10.0
# How many of those who have the GPUs the waiting cell names.
SHOWN_HOLDERS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Lease:
    """GPUs of one host that a start is about to take; none where it needs none."""

    host: Host
    gpu_ids: tuple[str, ...]
    # The cards as nvidia-smi shows them.
    facts: GpuFacts = field(default_factory=GpuFacts)


@dataclass
class _HostQueue:
    """The state of one waiting start on one host."""

    place: QueuePlace | None = None
    # GPUs that others were faster to take, and when; one leaves as soon as a label says who has it.
    lost: dict[str, float] = field(default_factory=dict)
    # Kernels whose relays say that they have given their GPUs back, and when they were asked.
    released: frozenset[str] = frozenset()
    asked_at: float = 0.0


class GpuAllocator:
    """Search GPUs for one start: `next()`, `lost()` where that came to nothing, at the end `aclose()`."""

    def __init__(
        self,
        request: LaunchRequest,
        hosts: Sequence[Host],
        engine_of: Callable[[Host], Awaitable[Engine]],
        say: Say,
        *,
        user: str,
    ) -> None:
        self._request = request
        self._hosts = tuple(hosts)
        self._engine_of = engine_of
        self._say = say
        self._user = user
        self._gpu_request = GpuRequest.of_environment(request.environment)
        self._queues = {host.name: _HostQueue() for host in hosts}
        # When we came into the queue.
        self._began = time.monotonic()
        # How often we look again, and how old an answer may be; set by _queue_up().
        self._look_seconds = QUEUE_LOOK_SECONDS
        # Keeps our tickets alive; None before we queue.
        self._heartbeat: asyncio.Task[None] | None = None
        # The newest sign of life: an engine carries it out also where nobody waits for it.
        self._newest_beat: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        queued = " in the queue" if self._heartbeat else ""
        return f"<GpuAllocator {self._gpu_request} for {self._request.kernel_id[:8]}{queued}>"

    async def next(self) -> Lease:
        """Return GPUs that seem free, on the first host that has them; waits for them where that is wanted.

        Raises: GpusBusy, GpuUnavailable and what the hosts raise.
        """
        if self._request.environment.gpus == 0:
            return Lease(host=self._hosts[0], gpu_ids=())
        while True:
            failures: list[KernelBridgeError] = []
            for host in self._hosts:
                try:
                    return await self.look(host)
                except KernelBridgeError as exc:
                    failures.append(exc)
            # Who waits hears of the queue; what else is wrong with a host matters only where no queue is.
            busy = [one for one in failures if isinstance(one, GpusBusy)]
            failure = GpusBusy.on_all(busy) if busy else failures[0]
            waits = self._request.environment.wait
            # A laptop that wakes up finds its place again: a link that is lost for now is no reason to leave it.
            may_wait = isinstance(failure, GpusBusy) or (self._heartbeat is not None and is_transient(failure))
            is_over = self._heartbeat is not None and waits is not None and time.monotonic() - self._began >= waits
            if waits is None or not may_wait or is_over:
                raise failure
            await self._queue_up(failure)
            await asyncio.sleep(self._look_seconds)

    def lost(self, lease: Lease) -> None:
        """Note that another start was faster."""
        self._queues[lease.host.name].lost.update(dict.fromkeys(lease.gpu_ids, time.monotonic()))

    async def look(self, host: Host) -> Lease:
        """Return GPUs of this host that seem free now. Raises as next()."""
        engine = await self._engine_of(host)
        queue = self._queues[host.name]
        try:
            return await self._pick(engine, host, max_age_seconds=self._look_seconds)
        except GpusBusy:
            if time.monotonic() - queue.asked_at > ASK_AGAIN_SECONDS:
                # A kernel that has ended may be kept for its output only, and what was seen be older than its end.
                queue.asked_at = time.monotonic()
                queue.released = await released(engine, host, await engine.list(KERNEL_LABEL))
                return await self._pick(engine, host, max_age_seconds=0.0)
            raise

    async def _pick(self, engine: Engine, host: Host, *, max_age_seconds: float) -> Lease:
        facts, found, waiting = await asyncio.gather(
            engine.gpus.look(max_age_seconds=max_age_seconds),
            engine.list(KERNEL_LABEL),
            self._ahead(engine, host),
        )
        others = self._others(host, found, waiting)
        waited = f"{(time.monotonic() - self._began) / 60:.0f} min" if self._heartbeat else ""
        now = datetime.now(UTC)
        picked = selection.pick(facts, self._gpu_request, others, host=host.name, waited=waited, now=now)
        return Lease(host=host, gpu_ids=picked, facts=facts)

    def _others(self, host: Host, found: Sequence[ContainerFacts], waiting: Sequence[Ticket]) -> Others:
        queue, now = self._queues[host.name], time.monotonic()
        held, claimed = holdings(found, but={self._request.kernel_id, *queue.released})
        for gpu in {gpu for holding in held for gpu in holding.gpus}:
            # From here on the label tells, also when the GPU comes free: a winner that is done leaves nobody waiting.
            queue.lost.pop(gpu, None)
        queue.lost = {gpu: at for gpu, at in queue.lost.items() if now - at < LAST_SECONDS}
        if taken := [gpu for gpu, at in queue.lost.items() if now - at < LOST_SECONDS]:
            unknown = Holding(
                gpus=tuple(taken),
                kernel_id="",
                environment="a kernel that starts",
                who="another",
                since=datetime.now(UTC),
            )
            held.append(unknown)
        requests = [asked for ticket in waiting if (asked := GpuRequest.of_text(ticket.request)) is not None]
        return Others(held=held, ahead=requests, claimed={*claimed, *queue.lost})

    async def _ahead(self, engine: Engine, host: Host) -> list[Ticket]:
        """Return who waits on this host and comes before us; tickets of the dead are thrown away."""
        volumes = await engine.volumes.list(gpu_queue.QUEUE_LABEL)
        found = [ticket for ticket in gpu_queue.read(volumes) if ticket.kernel_id != self._request.kernel_id]
        if not found:
            return []
        now = gpu_queue.engine_now(await engine.info())
        if any(now - ticket.beat > gpu_queue.DEAD_AFTER for ticket in found):
            with contextlib.suppress(KernelBridgeError):
                await tidy(engine)
        return gpu_queue.ahead(gpu_queue.read(volumes), self._request.kernel_id, now)

    # -- the queue

    async def _queue_up(self, failure: KernelBridgeError) -> None:
        """Put a ticket on every host, and say where we stand."""
        places: list[tuple[int, str]] = []
        if self._heartbeat is None:
            # The wait counts from here: what a pull took before is no waiting.
            self._began = time.monotonic()
            self._heartbeat = asyncio.create_task(self._beat())
        for host in self._hosts:
            queue = self._queues[host.name]
            try:
                engine = await self._engine_of(host)
                if queue.place is None:
                    text = self._gpu_request.to_text()
                    queue.place = QueuePlace(engine.volumes, self._request.kernel_id, request=text, user=self._user)
                    await self._show_life(queue.place)
                places.append((len(await self._ahead(engine, host)) + 1, host.name))
            except KernelBridgeError as exc:
                _LOG.info("[%s] not in its queue: %s", host.name, exc)
        busy = "; ".join(failure.holders[:SHOWN_HOLDERS]) if isinstance(failure, GpusBusy) else failure.sentence
        self._look_seconds = NEXT_LOOK_SECONDS if any(place == 1 for place, _ in places) else QUEUE_LOOK_SECONDS
        told = ", ".join(f"{place} on {name}" for place, name in places) or "not known"
        self._say(
            WorkProgress(
                what=f"waiting for {self._gpu_request}, place in the queue: {told} ({busy})",
                place=min((place for place, _ in places), default=None),
                waited_seconds=time.monotonic() - self._began,
                most_wait_seconds=self._request.environment.wait,
            )
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(gpu_queue.BEAT_SECONDS)
            for host in self._hosts:
                place = self._queues[host.name].place
                if place is None:
                    continue
                try:
                    engine = await self._engine_of(host)
                    place.move(engine.volumes)
                    await self._show_life(place)
                except KernelBridgeError as exc:
                    _LOG.info("[%s] no sign of life in its queue: %s", host.name, exc)

    async def _show_life(self, place: QueuePlace) -> None:
        self._newest_beat = asyncio.create_task(place.beat())
        await asyncio.shield(self._newest_beat)

    async def aclose(self) -> None:
        """Give the tickets back; a host that cannot be reached finds out by itself. Safe to call twice."""
        if self._heartbeat is None:
            return
        self._heartbeat.cancel()
        self._heartbeat = None
        # Also where the start was cancelled: nobody else would do it.
        giving = asyncio.create_task(self._give_back())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(giving), GIVE_BACK_SECONDS)

    async def _give_back(self) -> None:
        if self._newest_beat is not None:
            await asyncio.gather(self._newest_beat, return_exceptions=True)
        for host in self._hosts:
            place = self._queues[host.name].place
            if place is not None:
                with contextlib.suppress(KernelBridgeError):
                    place.move((await self._engine_of(host)).volumes)
                    await place.leave()


async def tidy(engine: Engine) -> None:
    """Remove what starts whose process has died left on the host: tickets, containers that carried folders."""
    now = gpu_queue.engine_now(await engine.info())
    for ticket in gpu_queue.read(await engine.volumes.list(gpu_queue.QUEUE_LABEL)):
        if now - ticket.beat > gpu_queue.DEAD_AFTER:
            await gpu_queue.throw_away(engine.volumes, ticket.volumes)
    for carrier in await engine.list(LOCKS_LABEL):
        is_carrier = carrier.name.startswith(NAME_PREFIX) and carrier.state == "created"
        if is_carrier and now.timestamp() - carrier.created > gpu_queue.ASLEEP_AFTER.total_seconds():
            await engine.remove(carrier.name)
