"""Serve `kernelbridge ps`, `stop` and `logs`: the kernels on all hosts."""

from __future__ import annotations

import contextlib
import errno
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from kernelbridge.cli import completion, filters
from kernelbridge.cli.context import CliContext, result
from kernelbridge.cli.listings import kernel_rows
from kernelbridge.cli.listings.memory import ListingMemory
from kernelbridge.cli.listings.plain import moment
from kernelbridge.cli.output import is_reader_gone
from kernelbridge.cli.status_line import StatusLine
from kernelbridge.errors import KernelBridgeError, SpecsUnwritable
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts.labels import short_id
from kernelbridge.plain_text import last_lines, printable_lines

if TYPE_CHECKING:  # These are loaded while the hosts are asked: see CliContext.fleet().
    from kernelbridge.fleet.fleet import Fleet
    from kernelbridge.fleet.kernel_listing import KernelListing, KernelRow

STOP_ALL_SECONDS = 120.0
LOG_LINES = 200

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IdArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The beginning of the kernel's id, or its notebook.", autocompletion=completion.kernel_ids
    ),
]


def list_all(
    ctx: typer.Context,
    as_json: JsonOption = False,
    is_long: Annotated[
        bool, typer.Option("--long", "-l", help="Also how each is reached, its container and its release.")
    ] = False,
    hosts: filters.HostsOption = None,
    environments: filters.EnvironmentsOption = None,
) -> None:
    """Carry out `kernelbridge ps`."""
    context: CliContext = ctx.obj
    memory = ListingMemory(context)
    loaded = context.read_config()
    asked = filters.asked_hosts(loaded, hosts)
    with context.fleet(loaded, asked=asked) as fleet:
        draws = not as_json and bool(fleet.records.kernels())
        wait = context.wait_for_table if draws else context.wait
        found = wait(fleet, fleet.list_kernels(hosts or ()), seconds=LIST_SECONDS)
        offer(context, fleet)
        memory.keep(fleet, asked, found.problems)
    listing = replace(found, kernels=filters.of_environments(loaded, found.kernels, environments))
    if is_long and listing.kernels and not as_json:
        columns = (*kernel_rows.COLUMNS, *kernel_rows.MORE_COLUMNS)
        context.show_table(columns, kernel_rows.more_cells_of(listing.kernels))
        for error in listing.problems:
            context.complain_of(error)
    else:
        tell(context, listing, as_json=as_json, empty=kernel_rows.NO_KERNELS)
    if len(listing.problems) >= len(asked) and not listing.kernels:
        raise typer.Exit(listing.problems[0].exit_code)


def stop(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID", help="Beginnings of kernel ids, or notebooks.", autocompletion=completion.kernel_ids
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Stop all kernels that this machine started.")] = False,
    hosts: filters.HostsOption = None,
    environments: filters.EnvironmentsOption = None,
) -> None:
    """Carry out `kernelbridge stop`."""
    if bool(ids) == every:
        raise typer.BadParameter("name the kernels to stop, or write --all")
    if (hosts or environments) and not every:
        raise typer.BadParameter("--host and --env go with --all")
    context: CliContext = ctx.obj
    loaded = context.read_config()
    errors: list[KernelBridgeError] = []
    with context.fleet(loaded, asked=filters.asked_hosts(loaded, hosts)) as fleet:
        wanted = ids or []
        if every:
            listing = context.wait(fleet, fleet.list_kernels(hosts or ()), seconds=LIST_SECONDS)
            rows = filters.of_environments(loaded, listing.kernels, environments)
            wanted = [row.kernel_id for row in rows if row.is_ours and not row.is_elsewhere]
            errors += listing.problems
        for kernel_id in wanted:
            try:
                stopping = fleet.stop_by_id(kernel_id)
                doing = f"stopping {short_id(kernel_id)}"
                row = context.wait(fleet, stopping, seconds=STOP_ALL_SECONDS, doing=doing)
            except KernelBridgeError as error:
                # The others are stopped all the same.
                errors.append(error)
            else:
                context.say(f"Stopped {row.kernel_id} ({row.environment} on {row.host}).")
    if not wanted and not errors:
        context.say("No kernels.")
    for other in errors[1:]:
        context.complain_of(other)
    if errors:
        raise errors[0]


def logs(
    ctx: typer.Context,
    kernel_id: IdArgument,
    tail_lines: Annotated[
        int | None,
        typer.Option("--tail", metavar="N", help="How many lines; 200 of a log, all of one that is followed.", min=1),
    ] = None,
    output: Annotated[
        bool, typer.Option("--output", help="Instead, the output of cells that no client has shown yet; it stays.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, until the process ends.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="With what the program wrote to control a terminal: colours, and all else.")
    ] = False,
) -> None:
    """Carry out `kernelbridge logs`."""
    context: CliContext = ctx.obj
    if follow and output:
        raise typer.BadParameter("--follow is for the log: leave it out, or leave out --output")
    loaded = context.read_config()
    with context.fleet(loaded, asked=loaded.hosts.values()) as fleet:
        kept = None if output else fleet.kept_log(kernel_id)
        if kept is not None:
            context.complain(f"It did not start, and is gone. Its last lines were kept at {moment(kept.kept)}:")
            text = kept.text
        elif follow:
            _follow(fleet, kernel_id, tail_lines, raw=raw)
            return
        else:
            lines = tail_lines or LOG_LINES
            asked = fleet.left_output(kernel_id) if output else fleet.logs(kernel_id, tail_lines=lines)
            text = context.wait(fleet, asked, seconds=LIST_SECONDS)
    if output and not text:
        context.say("No output waits.")
        return
    if not raw:
        # Each step of a progress bar is a line then.
        text = printable_lines(text)
    most_lines = tail_lines if output else tail_lines or LOG_LINES
    if most_lines:
        text = last_lines(text, most_lines)
    typer.echo(text, nl=not text.endswith("\n"), color=raw or None)


def _follow(fleet: Fleet, kernel_id: str, tail_lines: int | None, *, raw: bool) -> None:
    """Print a log as it grows, of what is there the last lines. Raises BrokenPipeError where nobody reads it."""
    # Of the loop: how much of the next piece is printed. The first is all that is there.
    most_lines = tail_lines

    def show(text: str) -> None:
        nonlocal most_lines
        text = text if raw else printable_lines(text)
        if most_lines:
            text = last_lines(text, most_lines) + "\n" * text.endswith("\n")
        most_lines = None
        line.stop()
        try:
            typer.echo(text, nl=False, color=raw or None)
            sys.stdout.flush()
        except OSError as exc:
            if is_reader_gone(exc):
                raise BrokenPipeError(errno.EPIPE, exc.strerror) from exc
            raise

    line = StatusLine(lambda: f"looking for {short_id(kernel_id)} on {', '.join(fleet.config.hosts)}")
    line.start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            result(fleet.submit(fleet.follow_log(kernel_id, show)))
    finally:
        line.stop()


def tell(
    context: CliContext, listing: KernelListing, *, as_json: bool, empty: str, last: str = "", **also: object
) -> None:
    """Print the kernels and what went wrong; `last` stands below the kernels, `also` in the JSON."""
    if as_json:
        print(kernel_rows.as_json(listing, **also))
        return
    # Where a host did not answer nobody knows that there are none.
    if listing.kernels or not listing.problems:
        show(context, listing.kernels, empty=empty)
    if listing.kernels and last:
        context.say(last)
    for error in listing.problems:
        context.complain_of(error)


def show(context: CliContext, rows: tuple[KernelRow, ...], *, empty: str) -> None:
    """Print kernels as a table."""
    if rows:
        context.show_table(kernel_rows.COLUMNS, kernel_rows.cells_of(rows))
    else:
        context.say(empty)


def offer(context: CliContext, fleet: Fleet) -> None:
    """Let VS Code's picker show the kernels that run and that nobody holds, as they are now."""
    from kernelbridge.jupyter import running_kernelspecs  # loads the fleet's modules: see above

    try:
        running_kernelspecs.offer(fleet.records, fleet.config)
    except SpecsUnwritable as error:
        context.complain(f"Warning: {error}")
