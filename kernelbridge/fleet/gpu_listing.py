"""List the GPUs of all hosts, who has them and who waits for one.

Who has one is read from the labels of containers, and asked of their relays: a kernel that has ended may be kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, cast

from kernelbridge.errors import KernelBridgeError, unexpected_answer
from kernelbridge.hosts.docker import gpu_queue
from kernelbridge.hosts.docker.gpu_queue import Ticket
from kernelbridge.hosts.gpus.holders import Holding
from kernelbridge.hosts.gpus.nvidia_smi import Gpu, GpuFacts, GpuProcess
from kernelbridge.hosts.labels import KERNEL_LABEL, parse_labels
from kernelbridge.hosts.transport.stream import BeyondLink
from kernelbridge.kernel.start.gpu_holders import holdings, released

if TYPE_CHECKING:
    from kernelbridge.config.schema import Config, Host  # loads pydantic
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.listed_engine import ListedEngine
    from kernelbridge.hosts.slurm.cluster import Cluster
    from kernelbridge.hosts.slurm.commands import JobFacts, NodeFacts

_LOG = logging.getLogger(__name__)

BackendOf = Callable[["Host"], Awaitable["Engine | ListedEngine | Cluster"]]

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

    # Its name in the config.
    host: str
    # "0"; a MIG device is "0:1".
    index: str
    # What `gpus` of an environment may name it by.
    uuid: str
    # As `nvidia-smi` shows it.
    name: str
    # 0 where the driver does not say.
    memory_mib: int
    # By whoever computes on it.
    used_mib: int
    # Load in percent.
    utilization: int | None = None
    # Version of the host's driver.
    driver: str = ""
    # The newest CUDA that the driver knows.
    cuda: str = ""
    # The card's UUID, of a MIG device.
    parent: str = ""
    # free; leased to a kernel; busy with somebody's process outside of kernelbridge; split into MIG devices.
    state: GpuState
    # Of the lease, as the next three; empty without one.
    kernel_id: str = ""
    # Its name in the config of whoever started the kernel.
    environment: str = ""
    # Who made the kernel: login@machine.
    owner: str = ""
    # When the kernel's container was made.
    since: datetime | None = None
    # All that run on it, those of the kernel too.
    processes: tuple[GpuProcess, ...] = ()
    # Further names in the config of the same machine.
    also_on: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One node of a host's cluster. GPUs are counted by type; the type is empty where the cluster names none."""

    # Its name in the config.
    host: str
    # Slurm's name for it.
    node: str
    # Slurm's word: idle, mixed, allocated, drained, down ...
    state: str
    # Those it belongs to.
    partitions: tuple[str, ...]
    # How many GPUs of each type; the type is empty where the cluster names none.
    gpus_total: Mapping[str, int]
    # How many of these are in use.
    gpus_used: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class WaitRow:
    """One kernel that waits for GPUs of a host; in a listing first come first, host by host."""

    # Its name in the config.
    host: str
    # Of the kernel that waits.
    kernel_id: str
    # Who started it: login@machine.
    who: str
    # When it joined the queue.
    since: datetime | None
    # Whether its process gave a sign of life lately; one that sleeps is passed over.
    awake: bool
    # What it asks for, as in "2 GPUs"; empty where that is not told.
    wanted: str = ""
    # Further names in the config of the same machine.
    also_on: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GpuListing:
    """The GPUs that were found, the hosts that have no GPU, and those that could not be asked."""

    gpus: tuple[GpuRow, ...] = ()
    nodes: tuple[NodeRow, ...] = ()
    waiting: tuple[WaitRow, ...] = ()
    bare: tuple[str, ...] = ()
    problems: tuple[KernelBridgeError, ...] = ()


async def look(config: Config, backend_of: BackendOf, names: Collection[str] = ()) -> GpuListing:
    """Ask all hosts at once, or those of these names, for their GPUs, leases and queues. Raises UnknownHost."""
    hosts = config.hosts_named(names)
    answers = await asyncio.gather(*(_list_host(host, backend_of) for host in hosts), return_exceptions=True)
    listings: list[GpuListing] = []
    for host, answer in zip(hosts, answers, strict=True):
        if isinstance(answer, GpuListing):
            listings.append(answer)
        elif isinstance(answer, KernelBridgeError):
            listings.append(GpuListing(problems=(answer,)))
        elif isinstance(answer, Exception) and not isinstance(answer, BeyondLink):
            _LOG.error("[%s] not listed", host.name, exc_info=answer)
            listings.append(GpuListing(problems=(unexpected_answer(host.name, answer),)))
        else:
            raise answer
    gpus = merge_cards(row for one in listings for row in one.gpus)
    return GpuListing(
        gpus=gpus,
        nodes=tuple(row for one in listings for row in one.nodes),
        waiting=merge_waits((row for one in listings for row in one.waiting), gpus),
        bare=tuple(name for one in listings for name in one.bare),
        problems=tuple(problem for one in listings for problem in one.problems),
    )


async def _list_host(host: Host, backend_of: BackendOf) -> GpuListing:
    backend = await backend_of(host)
    if host.scheduler is not None:
        backend = cast("Cluster", backend)
        nodes, jobs = await asyncio.gather(backend.nodes(), backend.look())
        return GpuListing(nodes=node_rows(host.name, nodes), waiting=jobs_waiting(host.name, list(jobs.values())))
    backend = cast("Engine | ListedEngine", backend)
    facts, found, waiting = await asyncio.gather(
        backend.gpus.look(max_age_seconds=MAX_AGE_SECONDS),
        backend.list(KERNEL_LABEL),
        _waiting(host.name, backend),
    )
    return GpuListing(
        gpus=gpu_rows(host.name, facts, holdings(found, but=await released(backend, host, found))[0]),
        waiting=waiting,
        bare=() if facts.gpus or facts.trouble else (host.name,),
        problems=(no_answer(host.name, facts.trouble),) if facts.trouble else (),
    )


def no_answer(host: str, trouble: str) -> KernelBridgeError:
    """Make the error for a driver that fails; `trouble` is nvidia-smi's."""
    return KernelBridgeError(f"{host}: nvidia-smi does not answer ({trouble}).", f"Fix the NVIDIA driver of {host}.")


async def _waiting(host: str, engine: Engine | ListedEngine) -> tuple[WaitRow, ...]:
    found = gpu_queue.read(await engine.volumes.list(gpu_queue.QUEUE_LABEL))
    return tickets_waiting(host, found, gpu_queue.engine_now(await engine.info())) if found else ()


# -- what is made of the answers


def merge_cards(rows: Iterable[GpuRow]) -> tuple[GpuRow, ...]:
    """Make one row of those that are one card's: several hosts of a config may be one machine.

    That somebody has it is known to his own engine alone. What two engines have given away has two rows.
    """
    merged: list[GpuRow] = []
    for row in rows:
        same = next((at for at, one in enumerate(merged) if _is_one_card(one, row)), None)
        if same is None:
            merged.append(row)
            continue
        first, other = merged[same], row
        if row.kernel_id and not first.kernel_id:
            first, other = row, first
        merged[same] = replace(first, also_on=(*first.also_on, other.host, *other.also_on))
    return tuple(merged)


def _is_one_card(one: GpuRow, other: GpuRow) -> bool:
    holders = {one.kernel_id, other.kernel_id} - {""}
    return bool(one.uuid) and one.uuid == other.uuid and len(holders) < 2


def merge_waits(rows: Iterable[WaitRow], gpus: Sequence[GpuRow]) -> tuple[WaitRow, ...]:
    """Make one row of those that are one ticket: which hosts are one machine is told by the cards that they share."""
    merged: list[WaitRow] = []
    for row in rows:
        same = next((at for at, one in enumerate(merged) if _is_one_ticket(one, row, gpus)), None)
        if same is None:
            merged.append(row)
        else:
            merged[same] = replace(merged[same], also_on=(*merged[same].also_on, row.host))
    return tuple(merged)


def _is_one_ticket(one: WaitRow, other: WaitRow, gpus: Sequence[GpuRow]) -> bool:
    are_one_machine = any({one.host, other.host} <= {gpu.host, *gpu.also_on} for gpu in gpus)
    return are_one_machine and replace(one, host="", also_on=()) == replace(other, host="", also_on=())


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
    if not found:
        return ()
    # Here and not above: it loads pydantic, and mostly nobody waits.
    from kernelbridge.hosts.gpus.selection import GpuRequest

    return tuple(
        WaitRow(
            host=host,
            kernel_id=ticket.kernel_id,
            who=ticket.user,
            since=ticket.created,
            awake=ticket.is_awake(now),
            wanted=str(GpuRequest.of_text(ticket.request) or ""),
        )
        for ticket in found
        if now - ticket.beat <= gpu_queue.DEAD_AFTER
    )


def jobs_waiting(host: str, jobs: Sequence[JobFacts]) -> tuple[WaitRow, ...]:
    """Return the kernels of this login that wait in a cluster's queue; Slurm wakes them, whoever sleeps."""
    rows = []
    for job in sorted(jobs, key=lambda job: job.submitted or 0.0):
        labels = parse_labels(job.name, job.labels) if job.is_waiting else None
        if labels is not None:
            since = None if job.submitted is None else datetime.fromtimestamp(job.submitted, UTC)
            rows.append(WaitRow(host=host, kernel_id=labels.kernel, who=labels.user, since=since, awake=True))
    return tuple(rows)


def as_json(listing: GpuListing) -> dict[str, Any]:
    """Return the listing as REST and `kernelbridge gpus --json` have it."""
    rows = {key: [_plain(row) for row in getattr(listing, key)] for key in ("gpus", "nodes", "waiting")}
    return {**rows, "bare": list(listing.bare), "problems": [error.to_json() for error in listing.problems]}


def _plain(row: GpuRow | NodeRow | WaitRow) -> dict[str, Any]:
    return {key: one.isoformat() if isinstance(one, datetime) else one for key, one in asdict(row).items()}
