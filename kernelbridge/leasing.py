"""Which GPUs a start takes, on which of its hosts, and how it waits for them. The lock that counts: relay/fence.py.

What is picked here is a hint made of labels and of what nvidia-smi shows; where another start was faster, its relay
has the lock, ours ends, and the next pick follows (design, decision 24).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from kernelbridge import container
from kernelbridge.config import Environment, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.gpu_errors import GpusBusy
from kernelbridge.host import leases, tickets
from kernelbridge.host.answers import ContainerFacts
from kernelbridge.host.gpus import GpuFacts
from kernelbridge.host.leases import Holding, Others, Wish
from kernelbridge.host.site import Runtime
from kernelbridge.host.ssh import is_transient
from kernelbridge.host.tickets import Place, Ticket
from kernelbridge.relays import Place as RelayPlace
from kernelbridge.relays import ask
from kernelbridge.wanted import Wanted

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

_LOG = logging.getLogger(__name__)

# How often who waits looks again; a host is asked once for all who wait here.
LOOK_SECONDS: Final = 2.0
# For so long a GPU that was taken under us is not tried again, whatever labels say of it.
LOST_SECONDS: Final = 20.0
# How often the relays of a full host are asked whether they still hold what their labels say.
ASK_AGAIN_SECONDS: Final = 30.0
ASK_SECONDS: Final = 4.0
GIVE_BACK_SECONDS: Final = 10.0
# How many of those who have the GPUs the waiting cell names.
SHOWN_HOLDERS: Final = 4
# States of a container in which its relay may hold a lock. One that was only created holds nothing.
_HOLDING: Final = frozenset({"running", "paused", "restarting", "removing"})
# Of somebody else's kernel: of its environment only the name of its Python would matter.
_UNKNOWN: Final = Environment(name="unknown", image="unknown")


@dataclass(frozen=True, kw_only=True)
class Lease:
    """GPUs of one host that a start is about to take; none where it needs none."""

    host: Host
    gpu_ids: tuple[str, ...]
    # The cards as nvidia-smi shows them.
    facts: GpuFacts = field(default_factory=GpuFacts)


@dataclass
class _HostQueue:
    """What one waiting start knows of one host."""

    place: Place | None = None
    # GPUs that others were faster to take, and until when that is believed.
    lost: dict[str, float] = field(default_factory=dict)
    # Kernels whose relays say that they have given their GPUs back, and when they were asked.
    released: frozenset[str] = frozenset()
    asked_at: float = 0.0


class Leasing:
    """The search for one start's GPUs: `next()`, `lost()` where that came to nothing, at the end `aclose()`."""

    def __init__(
        self,
        wanted: Wanted,
        hosts: Sequence[Host],
        reach: Callable[[Host], Awaitable[Engine]],
        say: Callable[[str], None],
        *,
        user: str,
    ) -> None:
        self._wanted = wanted
        self._hosts = tuple(hosts)
        self._reach = reach
        self._say = say
        self._user = user
        self._wish = Wish.of_environment(wanted.environment)
        self._queues = {host.name: _HostQueue() for host in hosts}
        # When we came into the queue.
        self._began = time.monotonic()
        # Keeps our tickets alive; None before we queue.
        self._beating: asyncio.Task[None] | None = None
        # The newest sign of life: an engine carries it out also where nobody waits for it.
        self._sign: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Leasing {self._wish} for {self._wanted.kernel_id[:8]}{' in the queue' if self._beating else ''}>"

    async def next(self) -> Lease:
        """Return GPUs that seem free, on the first host that has them; waits for them where that is wanted.

        Raises: GpusBusy, GpuUnavailable and what the hosts raise.
        """
        if self._wanted.environment.gpus == 0:
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
            waits = self._wanted.environment.wait
            # A laptop that wakes up finds its place again: a link that is lost for now is no reason to leave it.
            may_wait = isinstance(failure, GpusBusy) or (self._beating is not None and is_transient(failure))
            is_over = self._beating is not None and waits is not None and time.monotonic() - self._began >= waits
            if waits is None or not may_wait or is_over:
                raise failure
            await self._queue_up(failure)
            await asyncio.sleep(LOOK_SECONDS)

    def lost(self, lease: Lease) -> None:
        """Another start was faster."""
        until = time.monotonic() + LOST_SECONDS
        self._queues[lease.host.name].lost.update(dict.fromkeys(lease.gpu_ids, until))

    async def look(self, host: Host) -> Lease:
        """Return GPUs of this host that seem free now. Raises as next()."""
        engine = await self._reach(host)
        queue = self._queues[host.name]
        try:
            return await self._picked(engine, host, max_age_seconds=LOOK_SECONDS)
        except GpusBusy:
            if time.monotonic() - queue.asked_at > ASK_AGAIN_SECONDS:
                # A kernel that has ended may be kept for its output only, and what was seen be older than its end.
                queue.asked_at = time.monotonic()
                queue.released = await self._ask_holders(engine, host)
                return await self._picked(engine, host, max_age_seconds=0.0)
            raise

    async def _picked(self, engine: Engine, host: Host, *, max_age_seconds: float) -> Lease:
        facts, found, waiting = await asyncio.gather(
            engine.gpus.look(max_age_seconds=max_age_seconds),
            engine.list(container.KERNEL_LABEL),
            self._ahead(engine, host),
        )
        others = self._others(host, found, waiting)
        waited = f"{(time.monotonic() - self._began) / 60:.0f} min" if self._beating else ""
        now = datetime.now(UTC)
        picked = leases.pick(facts, self._wish, others, host=host.name, waited=waited, now=now)
        return Lease(host=host, gpu_ids=picked, facts=facts)

    def _others(self, host: Host, found: Sequence[ContainerFacts], waiting: Sequence[Ticket]) -> Others:
        queue = self._queues[host.name]
        held, claimed = holdings(found, but={self._wanted.kernel_id, *queue.released})
        explained = {gpu for holding in held for gpu in holding.gpus}
        taken = [gpu for gpu, until in queue.lost.items() if until > time.monotonic() and gpu not in explained]
        if taken:
            unknown = Holding(
                gpus=tuple(taken),
                kernel_id="",
                environment="a kernel that starts",
                who="another",
                since=datetime.now(UTC),
            )
            held.append(unknown)
        wishes = [wish for ticket in waiting if (wish := Wish.of_text(ticket.wish)) is not None]
        return Others(held=held, ahead=wishes, claimed=claimed)

    async def _ahead(self, engine: Engine, host: Host) -> list[Ticket]:
        """Return who waits on this host and comes before us; tickets of the dead are thrown away."""
        volumes = await engine.volumes.list(tickets.QUEUE_LABEL)
        found = [ticket for ticket in tickets.read(volumes) if ticket.kernel_id != self._wanted.kernel_id]
        if not found:
            return []
        now = tickets.engine_now(await engine.info())
        if any(now - ticket.beat > tickets.DEAD_AFTER for ticket in found):
            with contextlib.suppress(KernelBridgeError):
                await tidy(engine)
        return tickets.ahead(tickets.read(volumes), self._wanted.kernel_id, now)

    async def _ask_holders(self, engine: Engine, host: Host) -> frozenset[str]:
        """Return the kernels whose relays say that they hold no GPU any more."""
        found = await engine.list(container.KERNEL_LABEL)
        labels = [container.parse(one.name, one.labels) for one in found if one.state == "running"]
        with_gpus = [one for one in labels if one is not None and one.gpus]
        answers = await asyncio.gather(*(self._still_holds(engine, host, one) for one in with_gpus))
        return frozenset(one.kernel for one, holds in zip(with_gpus, answers, strict=True) if not holds)

    async def _still_holds(self, engine: Engine, host: Host, labels: container.Labels) -> bool:
        async def runtime() -> Runtime:
            return engine.runtime(container.name(labels.kernel), _UNKNOWN)

        place = RelayPlace(
            kernel=labels.kernel,
            host=host.name,
            image=labels.image,
            python="python3",
            runtime=runtime,
            rest=asyncio.sleep,
        )
        with contextlib.suppress(KernelBridgeError, TimeoutError, KeyError, TypeError):
            async with asyncio.timeout(ASK_SECONDS):
                return bool((await ask(place, "status"))["gpus"]["ids"])
        return True

    # -- the queue

    async def _queue_up(self, failure: KernelBridgeError) -> None:
        """Have a ticket on every host, and say where we stand."""
        places = []
        if self._beating is None:
            # The wait counts from here: what a pull took before is no waiting.
            self._began = time.monotonic()
            self._beating = asyncio.create_task(self._beat())
        for host in self._hosts:
            queue = self._queues[host.name]
            try:
                engine = await self._reach(host)
                if queue.place is None:
                    text = self._wish.to_text()
                    queue.place = Place(engine.volumes, self._wanted.kernel_id, wish=text, user=self._user)
                    await self._show_life(queue.place)
                places.append(f"{len(await self._ahead(engine, host)) + 1} on {host.name}")
            except KernelBridgeError as exc:
                _LOG.info("[%s] not in its queue: %s", host.name, exc)
        busy = "; ".join(failure.holders[:SHOWN_HOLDERS]) if isinstance(failure, GpusBusy) else failure.sentence
        self._say(f"waiting for {self._wish}, place in the queue: {', '.join(places) or 'not known'} ({busy})")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(tickets.BEAT_SECONDS)
            for host in self._hosts:
                place = self._queues[host.name].place
                if place is None:
                    continue
                try:
                    engine = await self._reach(host)
                    place.move(engine.volumes)
                    await self._show_life(place)
                except KernelBridgeError as exc:
                    _LOG.info("[%s] no sign of life in its queue: %s", host.name, exc)

    async def _show_life(self, place: Place) -> None:
        self._sign = asyncio.create_task(place.beat())
        await asyncio.shield(self._sign)

    async def aclose(self) -> None:
        """Give the tickets back; a host that cannot be reached finds out by itself. Safe to call twice."""
        if self._beating is None:
            return
        self._beating.cancel()
        self._beating = None
        # Also where the start was cancelled: nobody else would do it.
        giving = asyncio.create_task(self._give_back())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(giving), GIVE_BACK_SECONDS)

    async def _give_back(self) -> None:
        if self._sign is not None:
            await asyncio.gather(self._sign, return_exceptions=True)
        for host in self._hosts:
            place = self._queues[host.name].place
            if place is not None:
                with contextlib.suppress(KernelBridgeError):
                    place.move((await self._reach(host)).volumes)
                    await place.leave()


async def tidy(engine: Engine) -> None:
    """Nothing is left on the host of starts whose process has died: tickets, containers that carried locks' folders."""
    now = tickets.engine_now(await engine.info())
    for ticket in tickets.read(await engine.volumes.list(tickets.QUEUE_LABEL)):
        if now - ticket.beat > tickets.DEAD_AFTER:
            await tickets.throw_away(engine.volumes, ticket.volumes)
    for carrier in await engine.list(container.LOCKS_LABEL):
        is_carrier = carrier.name.startswith(container.LOCKS_VOLUME) and carrier.state == "created"
        if is_carrier and now.timestamp() - carrier.created > tickets.ASLEEP_AFTER.total_seconds():
            await engine.remove(carrier.name)


def holdings(found: Sequence[ContainerFacts], *, but: Collection[str] = ()) -> tuple[list[Holding], set[str]]:
    """Return who holds which GPUs by the labels of containers, and which GPUs are about to be taken."""
    held: list[Holding] = []
    claimed: set[str] = set()
    for facts in found:
        labels = container.parse(facts.name, facts.labels)
        if labels is None or not labels.gpus or labels.kernel in but:
            continue
        gpus = tuple(labels.gpus.split(","))
        if facts.state == "created":
            claimed.update(gpus)
        elif facts.state in _HOLDING:
            held.append(
                Holding(
                    gpus=gpus,
                    kernel_id=labels.kernel,
                    environment=labels.environment,
                    who=labels.user,
                    since=datetime.fromtimestamp(facts.created, UTC),
                )
            )
    return held, claimed
