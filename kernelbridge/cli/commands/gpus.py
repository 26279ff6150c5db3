"""Serve `kernelbridge gpus`: the GPUs of all hosts, who has them and who waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kernelbridge.cli import completion, filters
from kernelbridge.cli.commands.kernels import JsonOption
from kernelbridge.cli.context import CliContext
from kernelbridge.cli.listings.memory import ListingMemory
from kernelbridge.fleet.loop import LIST_SECONDS

if TYPE_CHECKING:
    from kernelbridge.fleet.gpu_listing import GpuListing

# How often --watch looks again where no number is given.
WATCH_SECONDS = 2.0


def list_all(
    ctx: typer.Context,
    seconds: Annotated[
        float | None, typer.Argument(metavar="[SECONDS]", help="How often --watch looks again: 2 s.", min=0.1)
    ] = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    hosts: filters.HostsOption = None,
    environments: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Ask the hosts of this environment alone; several times for several.",
            autocompletion=completion.environments,
        ),
    ] = None,
) -> None:
    """Carry out `kernelbridge gpus`."""
    if seconds is not None and not watch:
        raise typer.BadParameter("SECONDS goes with --watch")
    context: CliContext = ctx.obj
    memory = ListingMemory(context)
    loaded = context.read_config()
    asked = filters.hosts_for(loaded, hosts, environments)
    if not asked:
        context.say("No host is left: none of them is one of that environment.")
        return
    with context.fleet(loaded, asked=asked) as fleet:

        def look() -> GpuListing:
            wait = context.wait if as_json else context.wait_for_table
            work = fleet.list_gpus([host.name for host in asked])
            # What is looked at again and again stays on the screen meanwhile.
            return wait(fleet, work, seconds=LIST_SECONDS, is_shown=not watch)

        if watch:
            from kernelbridge.cli.listings import gpu_view  # loads rich

            gpu_view.watch(context, look, seconds or WATCH_SECONDS, as_json=as_json)
            return
        listing = look()
        memory.keep(fleet, asked, listing.problems)
    tell(context, listing, as_json=as_json)
    if len(listing.problems) >= len(asked) and not (listing.gpus or listing.nodes or listing.waiting):
        raise typer.Exit(listing.problems[0].exit_code)


def tell(context: CliContext, listing: GpuListing, *, as_json: bool) -> None:
    """Print the GPUs, and on stderr what went wrong."""
    # Here and not above: rich and the fleet's modules are loaded while the hosts are asked.
    from kernelbridge.cli.listings import gpu_rows, gpu_view

    if as_json:
        print(gpu_rows.as_text(listing))
    else:
        gpu_view.tell(context, listing)
