"""`kernelbridge ps`, `stop`, `logs`, `clean`: the kernels on all hosts. Using one from here: attach.py."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer

from kernelbridge import kernelspecs, running_specs
from kernelbridge.census import KernelRow, Listing
from kernelbridge.cli.session import Session, moment
from kernelbridge.errors import KernelBridgeError, SpecsUnwritable
from kernelbridge.fleet import Fleet

# A host that does not answer is given up after this; the fleet's own limits are shorter.
LIST_SECONDS = 60.0
STOP_SECONDS = 120.0
SHORT_ID_LENGTH = 12

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The kernel's id, or its beginning.")]


def list_all(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the kernels on all hosts."""
    session: Session = ctx.obj
    loaded = session.read_config()
    with session.fleet(loaded) as fleet:
        listing = session.wait(fleet, fleet.list_kernels(), seconds=LIST_SECONDS)
        offer(session, fleet)
    _tell(session, listing, as_json=as_json, empty="No kernels.")
    if len(listing.problems) >= len(loaded.hosts) and not listing.kernels:
        raise typer.Exit(listing.problems[0].exit_code)


def stop(
    ctx: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Kernel ids, or their beginnings.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Stop all kernels that this machine started.")] = False,
) -> None:
    """Stop kernels and remove their containers."""
    if bool(ids) == every:
        raise typer.BadParameter("name the kernels to stop, or write --all")
    session: Session = ctx.obj
    errors: list[KernelBridgeError] = []
    with session.fleet(session.read_config()) as fleet:
        wanted = ids or []
        if every:
            listing = session.wait(fleet, fleet.list_kernels(), seconds=LIST_SECONDS)
            wanted = [row.kernel_id for row in listing.kernels if row.is_ours]
            errors += listing.problems
        for kernel_id in wanted:
            try:
                row = session.wait(fleet, fleet.stop(kernel_id), seconds=STOP_SECONDS)
            except KernelBridgeError as error:
                # The others are stopped all the same.
                errors.append(error)
            else:
                session.say(f"Stopped {row.kernel_id} ({row.environment} on {row.host}).")
    if not wanted and not errors:
        session.say("No kernels.")
    for other in errors[1:]:
        session.complain_of(other)
    if errors:
        raise errors[0]


def logs(
    ctx: typer.Context,
    kernel_id: IdArgument,
    tail_lines: Annotated[int, typer.Option("--tail", metavar="N", help="How many lines.", min=1)] = 200,
) -> None:
    """Print what a kernel process wrote to its stdout and stderr last."""
    session: Session = ctx.obj
    with session.fleet(session.read_config()) as fleet:
        text = session.wait(fleet, fleet.logs(kernel_id, tail_lines=tail_lines), seconds=LIST_SECONDS)
    typer.echo(text, nl=not text.endswith("\n"))


def clean(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Also those with output that nobody took.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove kernels of this machine that nobody holds and that are not to persist."""
    session: Session = ctx.obj
    with session.fleet(session.read_config()) as fleet:
        listing = session.wait(fleet, fleet.clean(dry_run=dry_run, discard=discard), seconds=STOP_SECONDS)
    last = "These would be removed." if dry_run else "These were removed."
    _tell(session, listing, as_json=as_json, empty="Nothing to remove.", last=last, dry_run=dry_run)
    if listing.problems:
        raise typer.Exit(listing.problems[0].exit_code)


def facts(row: KernelRow) -> dict[str, Any]:
    """A kernel as JSON has it."""
    plain = {key: value.isoformat() if isinstance(value, datetime) else value for key, value in asdict(row).items()}
    return {**plain, "gpus": row.gpus.split(",") if row.gpus else []}


def complaint(error: KernelBridgeError) -> dict[str, Any]:
    """An error as JSON has it."""
    return {"sentence": error.sentence, "remedy": error.remedy, "exit_code": error.exit_code}


def _tell(session: Session, listing: Listing, *, as_json: bool, empty: str, last: str = "", **also: bool) -> None:
    """Print the kernels and what went wrong; `last` stands below the kernels, `also` in the JSON."""
    if as_json:
        rows = [facts(row) for row in listing.kernels]
        problems = [complaint(error) for error in listing.problems]
        print(json.dumps({**also, "kernels": rows, "problems": problems}, indent=1))
        return
    # Where a host did not answer nobody knows that there are none.
    if listing.kernels or not listing.problems:
        show(session, listing.kernels, empty=empty)
    if listing.kernels and last:
        session.say(last)
    for error in listing.problems:
        session.complain_of(error)


def show(session: Session, rows: tuple[KernelRow, ...], *, empty: str) -> None:
    """Print kernels as a table."""
    if not rows:
        session.say(empty)
        return
    columns = ("KERNEL", "ENVIRONMENT", "NOTEBOOK", "HOST", "STATE", "ENDS", "GPUS", "OWNER", "CREATED", "IMAGE")
    session.show_table(columns, [_cells(row) for row in sorted(rows, key=lambda row: (row.host, row.created))])


def _cells(row: KernelRow) -> tuple[str, ...]:
    return (
        row.kernel_id[:SHORT_ID_LENGTH],
        row.environment,
        row.title or "-",
        row.host,
        state_text(row),
        f"{moment(row.deadline)} ({row.deadline_key})" if row.deadline else "-",
        ",".join(gpu_id[:SHORT_ID_LENGTH] for gpu_id in row.gpus.split(",")) or "-",
        row.owner or "-",
        f"{row.created.astimezone():%Y-%m-%d %H:%M}",
        row.image,
    )


def state_text(row: KernelRow) -> str:
    """What `ps` says of a kernel: its state and why, who holds it or since when nobody does, output that waits."""
    said = [row.state]
    if row.state == "exited" and row.why:
        said = [f"exited ({row.why})"]
    elif row.state == "stopping" and row.why:
        said += [f"{row.host} cannot be reached"]
    if row.link == "held" and row.held_by != row.owner:
        said += [f"held by {row.held_by}"]
    elif row.link and row.link != "held":
        said += [f"{row.link} since {moment(row.since)}" if row.since else row.link]
    if row.undelivered_bytes and row.link != "held":
        size = row.undelivered_bytes
        said += [f"{size / 1e6:.1f} MB of output wait" if size > 5e5 else f"{max(1, size // 1000)} kB of output wait"]
    if row.is_orphan:
        said += ["orphan"]
    return ", ".join(said)


def offer(session: Session, fleet: Fleet) -> None:
    """VS Code's picker shows the kernels that run and that nobody holds, as they are now."""
    root, launcher = kernelspecs.default_root(), kernelspecs.launcher_path()
    try:
        running_specs.renew(fleet.records, fleet.config, root, launcher, time.time())
    except SpecsUnwritable as error:
        session.complain(f"Warning: {error}")
