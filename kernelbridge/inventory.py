"""Which GPUs there are on all hosts, who has them and who waits for one. What one host says of its own: host/gpus.py.

Who has one is read from labels of containers, as a start does it (leasing.py). Kernels themselves: census.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from kernelbridge import container
from kernelbridge.config import Config, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.host import tickets
from kernelbridge.host.gpus import Gpu, GpuFacts, GpuProcess
from kernelbridge.host.jobs import JobFacts, NodeFacts
from kernelbridge.host.leases import Holding, Wish
from kernelbridge.host.slurm import Cluster
from kernelbridge.host.tickets import Ticket
from kernelbridge.leasing import holdings

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

Reach = Callable[[Host], Awaitable["Engine | Cluster"]]

# Below the shortest interval at which people look again.
MAX_AGE_SECONDS: Final = 0.5


class GpuState(StrEnum):
    """Whether a start could take a GPU."""

    FREE = "free"
    LEASED = "leased"
    # Somebody computes on it outside of kernelbridge.
    BUSY = "busy"
    # A card in MIG mode: its MIG devices can be taken, itself it cannot.
    SPLIT = "split"


@dataclass(frozen=True, kw_only=True)
class GpuRow:
    """One card, or one MIG device of a card, and who has it."""

    host: str
    # "0"; a MIG device is "0:1".
    index: str
    uuid: str
    name: str
    # 0 where the driver does not say.
    memory_mib: int
    used_mib: int
    utilization: int | None = None
    driver: str = ""
    cuda: str = ""
    # The card's UUID, of a MIG device.
    parent: str = ""
    state: GpuState
    # Of the lease; empty without one. `since` is when its container was made.
    kernel_id: str = ""
    environment: str = ""
    owner: str = ""
    since: datetime | None = None
    # All that run on it, those of the kernel too.
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One node of a host's cluster. GPUs are counted by type; the type is empty where the cluster names none."""

    host: str
    node: str
    # Slurm's word: idle, mixed, allocated, drained, down ...
    state: str
    partitions: tuple[str, ...]
    gpus_total: Mapping[str, int]
    gpus_used: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class WaitRow:
    """One kernel that waits for GPUs of a host; in a listing first come first, host by host."""

    host: str
    kernel_id: str
    who: str
    since: datetime | None
    # Whether its process gave a sign of life lately; one that sleeps is passed over.
    awake: bool
    # What it asks for, as in "2 GPUs"; empty where that is not told.
    wanted: str = ""


@dataclass(frozen=True, kw_only=True)
class GpuListing:
    """What was found, the hosts that have no GPU, and those that could not be asked."""

    gpus: tuple[GpuRow, ...] = ()
    nodes: tuple[NodeRow, ...] = ()
    waiting: tuple[WaitRow, ...] = ()
    bare: tuple[str, ...] = ()
    problems: tuple[KernelBridgeError, ...] = ()


async def look(config: Config, reach: Reach) -> GpuListing:
    """Ask all hosts at once for their GPUs, leases and queues."""
    hosts = list(config.hosts.values())
    answers = await asyncio.gather(*(_listed(host, reach) for host in hosts), return_exceptions=True)
    listings: list[GpuListing] = []
    for answer in answers:
        if isinstance(answer, KernelBridgeError):
            listings.append(GpuListing(problems=(answer,)))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            listings.append(answer)
    return GpuListing(
        gpus=tuple(row for one in listings for row in one.gpus),
        nodes=tuple(row for one in listings for row in one.nodes),
        waiting=tuple(row for one in listings for row in one.waiting),
        bare=tuple(name for one in listings for name in one.bare),
        problems=tuple(problem for one in listings for problem in one.problems),
    )


async def _listed(host: Host, reach: Reach) -> GpuListing:
    site = await reach(host)
    if isinstance(site, Cluster):
        nodes, jobs = await asyncio.gather(site.nodes(), site.look())
        return GpuListing(nodes=node_rows(host.name, nodes), waiting=jobs_waiting(host.name, list(jobs.values())))
    facts, found, waiting = await asyncio.gather(
        site.gpus.look(max_age_seconds=MAX_AGE_SECONDS), site.list(container.KERNEL_LABEL), _waiting(host.name, site)
    )
    return GpuListing(
        gpus=gpu_rows(host.name, facts, holdings(found)[0]),
        waiting=waiting,
        bare=() if facts.gpus or facts.trouble else (host.name,),
        problems=(_silent(host.name, facts.trouble),) if facts.trouble else (),
    )


def _silent(host: str, trouble: str) -> KernelBridgeError:
    return KernelBridgeError(f"{host}: nvidia-smi does not answer ({trouble}).", f"Mend the NVIDIA driver of {host}.")


async def _waiting(host: str, engine: Engine) -> tuple[WaitRow, ...]:
    found = tickets.read(await engine.volumes.list(tickets.QUEUE_LABEL))
    return tickets_waiting(host, found, tickets.engine_now(await engine.info())) if found else ()


# -- what is made of the answers


def gpu_rows(host: str, facts: GpuFacts, held: Sequence[Holding]) -> tuple[GpuRow, ...]:
    """Return the host's GPUs in its own order, MIG devices behind their card, each with who has it."""
    holders: dict[str, Holding] = {}
    for holding in held:
        for uuid in holding.gpus:
            holders.setdefault(uuid, holding)
    # Who has a card has its MIG devices.
    return tuple(_row(host, facts, gpu, holders.get(gpu.uuid) or holders.get(gpu.parent)) for gpu in facts.gpus)


def _row(host: str, facts: GpuFacts, gpu: Gpu, holder: Holding | None) -> GpuRow:
    # A split card belongs to whoever has its MIG devices: nobody in particular.
    lease = None if gpu.is_split else holder
    return GpuRow(
        host=host,
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        memory_mib=gpu.memory_mib,
        used_mib=gpu.used_mib,
        utilization=gpu.utilization,
        driver=facts.driver,
        cuda=facts.cuda,
        parent=gpu.parent,
        state=_state(gpu, lease),
        kernel_id=lease.kernel_id if lease else "",
        environment=lease.environment if lease else "",
        owner=lease.who if lease else "",
        since=lease.since if lease else None,
        processes=gpu.processes,
    )


def _state(gpu: Gpu, lease: Holding | None) -> GpuState:
    if gpu.is_split:
        return GpuState.SPLIT
    if lease is not None:
        return GpuState.LEASED
    return GpuState.BUSY if any(process.computes for process in gpu.processes) else GpuState.FREE


def node_rows(host: str, nodes: Sequence[NodeFacts]) -> tuple[NodeRow, ...]:
    """Return a cluster's nodes."""
    return tuple(
        NodeRow(
            host=host,
            node=node.name,
            state=node.state,
            partitions=node.partitions,
            gpus_total=node.gpus_total,
            gpus_used=node.gpus_used,
        )
        for node in nodes
    )


def tickets_waiting(host: str, found: Sequence[Ticket], now: datetime) -> tuple[WaitRow, ...]:
    """Return the tickets of a host's queue but those of the dead; `now` is the engine's."""
    return tuple(
        WaitRow(
            host=host,
            kernel_id=ticket.kernel_id,
            who=ticket.user,
            since=ticket.created,
            awake=ticket.is_awake(now),
            wanted=str(Wish.of_text(ticket.wish) or ""),
        )
        for ticket in found
        if now - ticket.beat <= tickets.DEAD_AFTER
    )


def jobs_waiting(host: str, jobs: Sequence[JobFacts]) -> tuple[WaitRow, ...]:
    """Return the kernels of this login that wait in a cluster's queue; Slurm wakes them, whoever sleeps."""
    rows = []
    for job in sorted(jobs, key=lambda job: job.submitted or 0.0):
        labels = container.parse(job.name, job.labels) if job.is_waiting else None
        if labels is not None:
            since = None if job.submitted is None else datetime.fromtimestamp(job.submitted, UTC)
            rows.append(WaitRow(host=host, kernel_id=labels.kernel, who=labels.user, since=since, awake=True))
    return tuple(rows)


def as_json(listing: GpuListing) -> dict[str, Any]:
    """Return the listing as REST and `kernelbridge gpus --json` have it."""
    rows = {key: [_plain(row) for row in getattr(listing, key)] for key in ("gpus", "nodes", "waiting")}
    problems = [
        {"sentence": one.sentence, "remedy": one.remedy, "exit_code": one.exit_code} for one in listing.problems
    ]
    return {**rows, "bare": list(listing.bare), "problems": problems}


def _plain(row: GpuRow | NodeRow | WaitRow) -> dict[str, Any]:
    return {key: one.isoformat() if isinstance(one, datetime) else one for key, one in asdict(row).items()}
