"""Serve `kernelbridge pull`: have the image of an environment on its hosts before somebody waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from kernelbridge.cli.context import CliContext
from kernelbridge.errors import KernelBridgeError
from kernelbridge.plain_text import printable

# Large images over slow lines take hours.
PULL_SECONDS = 12 * 3600.0


def pull(
    ctx: typer.Context,
    environment: Annotated[str, typer.Argument(metavar="ENVIRONMENT", help="The environment's name in the config.")],
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
                with _progress(context, host.name) as say:
                    name = context.wait(fleet, fleet.pull(environment, host.name, say), seconds=PULL_SECONDS)
            except KernelBridgeError as error:
                context.complain_of(error)
                failures.append(error)
                continue
            made = f" as {name}" if name != chosen.image else ""
            context.say(f"{host.name} has {chosen.image}{made}")
    if failures:
        raise typer.Exit(failures[0].exit_code)


@contextlib.contextmanager
def _progress(context: CliContext, host: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done; elsewhere nothing but what comes of it."""
    if not context.out.is_terminal:
        yield lambda text: None
        return
    with context.out.status(f"{host}: connecting") as status:
        yield lambda text: status.update(f"{host}: {printable(text)}")
