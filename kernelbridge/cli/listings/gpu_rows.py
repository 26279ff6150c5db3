"""Turn the GPUs of all hosts, who has them and who waits into rows for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kernelbridge.cli.listings.plain import Found, moment
from kernelbridge.fleet import gpu_listing
from kernelbridge.fleet.gpu_listing import GpuState
from kernelbridge.hosts.gpus.holders import stranger
from kernelbridge.hosts.labels import short_id

if TYPE_CHECKING:
    from kernelbridge.fleet.gpu_listing import GpuListing, GpuRow, NodeRow, WaitRow

NO_GPUS = "No GPUs."
_GPUS = ("HOST", "GPU", "NAME", "MEMORY", "LOAD", "USED BY", "SINCE", "DRIVER")
_NODES = ("HOST", "NODE", "STATE", "PARTITIONS", "GPUS IN USE")
_QUEUE = ("WAITS FOR", "KERNEL", "OWNER", "WANTS", "SINCE", "SIGN OF LIFE")


def found(listing: GpuListing) -> Found:
    """Return what is shown of a listing without problems."""
    tables = tables_of(listing)
    last_line = without(listing) if listing.bare else "" if tables else NO_GPUS
    return Found(tables, last_line, lambda: as_text(listing))


def as_text(listing: GpuListing) -> str:
    """Return the listing as `kernelbridge gpus --json` prints it."""
    return json.dumps(gpu_listing.as_json(listing), indent=1)


def without(listing: GpuListing) -> str:
    """Say which hosts have no GPU."""
    return f"No GPU: {', '.join(listing.bare)}."


def tables_of(listing: GpuListing) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return headings and rows of the tables of GPUs, nodes of clusters and the queue that have something in them."""
    drivers: set[str] = set()
    gpus = []
    for row in listing.gpus:
        gpus.append(_gpu_cells(row, shows_driver=row.host not in drivers))
        drivers.add(row.host)
    parts = (
        (_GPUS, gpus),
        (_NODES, [_node_cells(row) for row in listing.nodes]),
        (_QUEUE, [_wait_cells(row) for row in listing.waiting]),
    )
    return [(columns, rows) for columns, rows in parts if rows]


def _gpu_cells(row: GpuRow, *, shows_driver: bool) -> tuple[str, ...]:
    # A MIG device stands below its card, whose name its own begins with.
    name = f"  {row.name[row.name.find('MIG') :]}" if row.parent and "MIG" in row.name else row.name
    return (
        row.host,
        row.index,
        name,
        f"{row.used_mib / 1024:.1f} of {row.memory_mib / 1024:.1f} GiB" if row.memory_mib else "not told",
        "-" if row.utilization is None else f"{row.utilization} %",
        used_by(row),
        moment(row.since) if row.since else "-",
        f"{row.driver}, CUDA {row.cuda}" if shows_driver and row.driver else "",
    )


def used_by(row: GpuRow) -> str:
    """Say whose kernel has a GPU, or what runs there, or that it is free."""
    match row.state:
        case GpuState.FREE:
            return "free"
        case GpuState.SPLIT:
            return "in MIG mode"
        case GpuState.LEASED:
            return f"{row.environment} of {row.owner or 'another'} ({short_id(row.kernel_id)})"
        case GpuState.BUSY:
            return stranger([process for process in row.processes if process.computes])


def _node_cells(row: NodeRow) -> tuple[str, ...]:
    gpus = ", ".join(
        f"{row.gpus_used.get(kind, 0)} of {total} {kind}".rstrip() for kind, total in row.gpus_total.items()
    )
    return row.host, row.node, row.state, ",".join(row.partitions), gpus or "-"


def _wait_cells(row: WaitRow) -> tuple[str, ...]:
    return (
        row.host,
        short_id(row.kernel_id),
        row.who or "-",
        row.wanted or "-",
        moment(row.since) if row.since else "-",
        "yes" if row.awake else "none: passed over",
    )
