"""Turn kernels into rows for people, and into JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kernelbridge.cli.listings.plain import Found, moment
from kernelbridge.hosts.labels import short_id
from kernelbridge.kernel.state import KernelState

if TYPE_CHECKING:
    from kernelbridge.fleet.kernel_listing import KernelListing, KernelRow

COLUMNS = ("KERNEL", "ENVIRONMENT", "NOTEBOOK", "HOST", "STATE", "ENDS", "GPUS", "OWNER", "CREATED", "IMAGE")
# What is seldom asked for.
MORE_COLUMNS = ("REACHED BY", "CONTAINER", "RELEASE")
_WAYS = {"socket": "its own socket", "exec": "the engine"}
NO_KERNELS = "No kernels."
_SHORT_GPU_LENGTH = 12


def as_json(listing: KernelListing, **also: object) -> str:
    """Return the kernels and what went wrong as JSON; `also` stands before them."""
    rows = [row.to_json() for row in listing.kernels]
    problems = [error.to_json() for error in listing.problems]
    return json.dumps({**also, "kernels": rows, "problems": problems}, indent=1)


def found(listing: KernelListing) -> Found:
    """Return what is shown of a listing without problems."""
    tables = [(COLUMNS, cells_of(listing.kernels))] if listing.kernels else []
    return Found(tables, "" if tables else NO_KERNELS, lambda: as_json(listing))


def cells_of(rows: Iterable[KernelRow]) -> list[tuple[str, ...]]:
    """Return a table's rows, by host and age."""
    return [_cells(row) for row in _sorted(rows)]


def more_cells_of(rows: Iterable[KernelRow]) -> list[tuple[str, ...]]:
    """Return the same with the cells of MORE_COLUMNS."""
    return [
        (*_cells(row), _WAYS.get(row.way, "-"), short_id(row.container) or "-", row.version or "-")
        for row in _sorted(rows)
    ]


def _sorted(rows: Iterable[KernelRow]) -> list[KernelRow]:
    return sorted(rows, key=lambda row: (row.host, row.created))


def _cells(row: KernelRow) -> tuple[str, ...]:
    return (
        short_id(row.kernel_id),
        row.environment,
        row.title or "-",
        row.host,
        state_text(row),
        f"{moment(row.deadline)} ({row.deadline_key})" if row.deadline else "-",
        ",".join(gpu_id[:_SHORT_GPU_LENGTH] for gpu_id in row.gpus.split(",")) or "-",
        row.owner or "-",
        f"{row.created.astimezone():%Y-%m-%d %H:%M}",
        row.image,
    )


def state_text(row: KernelRow) -> str:
    """Say a kernel's state and why, who holds it or since when nobody does, and what output waits."""
    said = [row.state]
    if row.state == KernelState.EXITED and row.why:
        said = [f"exited ({row.why})"]
    elif row.state == KernelState.STOPPING and row.why:
        said += [f"{row.host} cannot be reached"]
    if row.link == KernelState.HELD and (row.is_elsewhere or row.held_by != row.owner):
        said += [f"held by {row.held_by}"]
    elif row.link and row.link != KernelState.HELD:
        said += [f"{row.link} since {moment(row.since)}" if row.since else row.link]
    if row.undelivered_bytes and row.link != KernelState.HELD:
        size = row.undelivered_bytes
        said += [f"{size / 1e6:.1f} MB of output wait" if size > 5e5 else f"{max(1, size // 1000)} kB of output wait"]
    if row.is_unsafe:
        said += ["unsafe"]
    if row.is_orphan:
        said += ["orphan"]
    elif row.is_elsewhere and row.link != KernelState.HELD:
        said += ["of another machine"]
    return ", ".join(said)
