"""Draw what `kernelbridge gpus` finds: the GPUs of all hosts, who has them, who waits; once, or again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kernelbridge.cli.context import CliContext, moment
from kernelbridge.cli.tables import table
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import gpu_listing
from kernelbridge.fleet.gpu_listing import GpuListing, GpuRow, GpuState, NodeRow, WaitRow
from kernelbridge.hosts.gpus import selection
from kernelbridge.hosts.labels import short_id
from kernelbridge.plain_text import printable

_NOTHING = "No GPUs."
_GPUS = ("HOST", "GPU", "NAME", "MEMORY", "LOAD", "USED BY", "SINCE", "DRIVER")
_NODES = ("HOST", "NODE", "STATE", "PARTITIONS", "GPUS IN USE")
_QUEUE = ("WAITS FOR", "KERNEL", "OWNER", "WANTS", "SINCE", "SIGN OF LIFE")


def watch(context: CliContext, look: Callable[[], GpuListing], seconds: float, *, as_json: bool) -> None:
    """Show what is found again and again; Ctrl-C is the right end of it."""
    listings = _looks(look, seconds)
    try:
        if as_json:
            for listing in listings:
                print(json.dumps(gpu_listing.as_json(listing)), flush=True)
        elif not context.out.is_terminal:
            for listing in listings:
                tell(context, listing)
                context.say("")
        else:
            with Live(console=context.out, auto_refresh=False) as live:
                for listing in listings:
                    live.update(_picture(listing), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(look: Callable[[], GpuListing], seconds: float) -> Iterator[GpuListing]:
    """Yield what is found, every so many seconds; that nothing was found in time is told like any other problem."""
    while True:
        began = time.monotonic()
        try:
            yield look()
        except KernelBridgeError as error:
            yield GpuListing(problems=(error,))
        time.sleep(max(0.0, began + seconds - time.monotonic()))


def tell(context: CliContext, listing: GpuListing) -> None:
    """Print the GPUs, and on stderr what went wrong."""
    tables = tables_of(listing)
    for number, one in enumerate(tables):
        if number:
            context.say("")
        context.out.print(one)
    if listing.bare:
        context.say(_without(listing))
    elif not tables and not listing.problems:
        context.say(_NOTHING)
    for error in listing.problems:
        context.complain_of(error)


def _picture(listing: GpuListing) -> Group:
    """Put all of it in one, for a terminal that is drawn anew."""
    tables = tables_of(listing)
    below = [_without(listing)] if listing.bare else []
    below += [str(error) for error in listing.problems]
    return Group(*tables, *(Text(printable(line)) for line in below or ([] if tables else [_NOTHING])))


def _without(listing: GpuListing) -> str:
    return f"No GPU: {', '.join(listing.bare)}."


def tables_of(listing: GpuListing) -> list[Table]:
    """Return the tables of GPUs, nodes of clusters and the queue that have something in them."""
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
    return [table(columns, rows) for columns, rows in parts if rows]


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
            return selection.stranger([process for process in row.processes if process.computes])


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
