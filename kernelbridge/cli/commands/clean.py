"""Serve `kernelbridge clean`: kernels that nobody holds, or images that nothing needs."""

from __future__ import annotations

from typing import Annotated

import typer

from kernelbridge.cli import filters
from kernelbridge.cli.commands import images, kernels
from kernelbridge.cli.context import CliContext

REMOVE_IMAGES_SECONDS = 600.0


def clean(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Also those with output that nobody took; also snapshots.")
    ] = False,
    as_json: kernels.JsonOption = False,
    only_images: Annotated[
        bool, typer.Option("--images", help="Instead, images that kernelbridge made and no environment needs.")
    ] = False,
    hosts: filters.HostsOption = None,
    environments: filters.EnvironmentsOption = None,
) -> None:
    """Carry out `kernelbridge clean`."""
    context: CliContext = ctx.obj
    if only_images:
        if environments:
            raise typer.BadParameter("--env is for kernels: leave it out, or leave out --images")
        _clean_images(context, dry_run=dry_run, discard=discard, as_json=as_json, hosts=hosts or [])
        return
    loaded = context.read_config()
    wanted = [loaded.environment(name).name for name in environments or ()]
    with context.fleet(loaded, asked=filters.asked_hosts(loaded, hosts)) as fleet:
        cleaning = fleet.clean(dry_run=dry_run, discard=discard, hosts=hosts or (), environments=wanted)
        listing = context.wait(fleet, cleaning, seconds=kernels.STOP_ALL_SECONDS)
    last = "These would be removed." if dry_run else "These were removed."
    empty = "No kernel to remove." if listing.unfinished else "Nothing to remove."
    also = {"dry_run": dry_run, "unfinished": list(listing.unfinished)}
    kernels.tell(context, listing, as_json=as_json, empty=empty, last=last, **also)
    if listing.unfinished and not as_json:
        what = "Would be removed too" if dry_run else "Removed too"
        context.say(f"{what}, left by images that were never finished: {', '.join(listing.unfinished)}.")
    if listing.problems:
        raise typer.Exit(listing.problems[0].exit_code)


def _clean_images(context: CliContext, *, dry_run: bool, discard: bool, as_json: bool, hosts: list[str]) -> None:
    """Carry out `kernelbridge clean --images`."""
    loaded = context.read_config()
    with context.fleet(loaded, asked=filters.asked_hosts(loaded, hosts)) as fleet:
        cleaning = fleet.clean_images(dry_run=dry_run, discard=discard, hosts=hosts)
        listing = context.wait(fleet, cleaning, seconds=REMOVE_IMAGES_SECONDS)
    last = "These would be removed." if dry_run else "These were removed."
    images.tell(context, listing, as_json=as_json, empty="Nothing to remove.", last=last)
    if listing.problems:
        raise typer.Exit(listing.problems[0].exit_code)
