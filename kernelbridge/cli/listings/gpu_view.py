"""Draw what `kernelbridge gpus` finds: the GPUs of all hosts, who has them, who waits; once, or again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from rich.console import Group
from rich.live import Live
from rich.text import Text

from kernelbridge.cli.context import CliContext
from kernelbridge.cli.listings.gpu_rows import NO_GPUS, tables_of, without
from kernelbridge.cli.tables import table
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import gpu_listing
from kernelbridge.fleet.gpu_listing import GpuListing
from kernelbridge.plain_text import printable


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
        context.show_table(*one)
    if listing.bare:
        context.say(without(listing))
    elif not tables and not listing.problems:
        context.say(NO_GPUS)
    for error in listing.problems:
        context.complain_of(error)


def _picture(listing: GpuListing) -> Group:
    """Put all of it in one, for a terminal that is drawn anew."""
    tables = [table(*one) for one in tables_of(listing)]
    below = [without(listing)] if listing.bare else []
    below += [str(error) for error in listing.problems]
    return Group(*tables, *(Text(printable(line)) for line in below or ([] if tables else [NO_GPUS])))
