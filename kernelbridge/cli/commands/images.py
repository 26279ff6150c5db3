"""Serve `kernelbridge pull`, `snapshot` and `images`: the images of environments, and those that kernelbridge made."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated

import typer

from kernelbridge.cli import filters
from kernelbridge.cli.commands.kernels import IdArgument, JsonOption
from kernelbridge.cli.completion import EnvironmentArgument
from kernelbridge.cli.context import CliContext
from kernelbridge.cli.listings.plain import moment
from kernelbridge.cli.status_line import News
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.images import ImageListing, ImageRow
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts.progress import Say, WorkProgress

# Large images over slow lines take hours.
PULL_SECONDS = 12 * 3600.0
# A commit copies what a kernel has written; tens of gigabytes take minutes.
SNAPSHOT_SECONDS = 1000.0
_COLUMNS = ("IMAGE", "HOST", "KIND", "SIZE", "LAST USED", "NEEDED BY", "MADE OF")


def pull(
    ctx: typer.Context,
    environment: EnvironmentArgument,
) -> None:
    """Carry out `kernelbridge pull`."""
    context: CliContext = ctx.obj
    loaded = context.read_config()
    chosen = loaded.environment(environment)
    failures: list[KernelBridgeError] = []
    with context.fleet(loaded) as fleet:
        for host in loaded.hosts_of(chosen):
            if host.scheduler is not None:
                context.complain(f"{host.name}: its jobs fetch the image themselves.")
                continue
            try:
                news = News(f"{host.name}: connecting")
                pulling = fleet.pull(environment, host.name, _saying(news, host.name))
                name = context.wait(fleet, pulling, seconds=PULL_SECONDS, doing=news.newest)
            except KernelBridgeError as error:
                context.complain_of(error)
                failures.append(error)
                continue
            made = f" as {name}" if name != chosen.image else ""
            context.say(f"{host.name} has {chosen.image}{made}")
    if failures:
        raise typer.Exit(failures[0].exit_code)


def _saying(news: News, host: str) -> Say:
    return lambda now: news.say(now.on(host) if isinstance(now, WorkProgress) else f"{host}: {now}")


def snapshot(
    ctx: typer.Context,
    kernel_id: IdArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The image's name, with or without a tag.")],
) -> None:
    """Carry out `kernelbridge snapshot`."""
    context: CliContext = ctx.obj
    with context.fleet(context.read_config()) as fleet:
        making = fleet.snapshot(kernel_id, name)
        row = context.wait(fleet, making, seconds=SNAPSHOT_SECONDS, doing=f"making an image of {kernel_id}")
    context.say(f'Made {name} of {row.kernel_id} on {row.host}: `image = "{name}"` starts it there.')


def list_all(
    ctx: typer.Context,
    as_json: JsonOption = False,
    hosts: filters.HostsOption = None,
    environments: filters.EnvironmentsOption = None,
) -> None:
    """Carry out `kernelbridge images`."""
    context: CliContext = ctx.obj
    loaded = context.read_config()
    wanted = {loaded.environment(name).name for name in environments or ()}
    with context.fleet(loaded, asked=filters.asked_hosts(loaded, hosts)) as fleet:
        listing = context.wait(fleet, fleet.list_images(hosts or ()), seconds=LIST_SECONDS)
    if wanted:
        rows = tuple(row for row in listing.images if wanted & set(row.environments))
        listing = replace(listing, images=rows)
    tell(context, listing, as_json=as_json, empty="No images.")
    if listing.problems and not listing.images:
        raise typer.Exit(listing.problems[0].exit_code)


def tell(context: CliContext, listing: ImageListing, *, as_json: bool, empty: str, last: str = "") -> None:
    """Print images and what went wrong; `last` stands below the images."""
    if as_json:
        rows, kept = ([row.to_json() for row in rows] for rows in (listing.images, listing.kept))
        problems = [error.to_json() for error in listing.problems]
        print(json.dumps({"images": rows, "kept": kept, "problems": problems}, indent=1))
        return
    if listing.images:
        context.show_table(_COLUMNS, [_cells(row) for row in listing.images])
        if last:
            context.say(last)
    elif not listing.problems and not listing.kept:
        context.say(empty)
    if listing.kept:
        names = ", ".join(row.name for row in listing.kept)
        context.say(f"Snapshots that no environment is made of: {names}. `--discard` removes them too.")
    for error in listing.problems:
        context.complain_of(error)


def _cells(row: ImageRow) -> tuple[str, ...]:
    return (
        row.name,
        row.host,
        row.kind,
        f"{row.size_bytes / 1e9:.2f} GB",
        "now" if row.is_in_use else moment(row.last_used),
        ", ".join(row.environments) or "-",
        row.base or "-",
    )
