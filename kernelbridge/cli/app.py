"""`kernelbridge`: the list of commands, the options before them, how every error ends. The work: the files beside."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.cli import attach, gpus, hosts, kernels, settings, specs
from kernelbridge.cli.session import Session
from kernelbridge.config import Config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import Fleet

UNEXPECTED_EXIT_CODE = 1

app = typer.Typer(
    name="kernelbridge",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("config")(settings.show)
app.command("trust")(hosts.trust)
app.command("install")(specs.install)
app.command("uninstall")(specs.uninstall)
app.command("ps")(kernels.list_all)
app.command("gpus")(gpus.list_all)
app.command("stop")(kernels.stop)
app.command("logs")(kernels.logs)
app.command("attach")(attach.attach)
app.command("clean")(kernels.clean)


def run(
    arguments: Sequence[str], *, open_fleet: Callable[[Config], Fleet], environ: Mapping[str, str], version: str
) -> int:
    """Carry out one call; returns the exit code. Every error ends as its sentence and its remedy on stderr."""
    session = Session(open_fleet=open_fleet, environ=environ)
    code = 0
    try:
        app(args=list(arguments), prog_name="kernelbridge", obj=(session, version))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except KernelBridgeError as error:
        code = error.exit_code
        session.complain_of(error)
        if session.wants_traceback:
            session.err.print(traceback.format_exc(), soft_wrap=True)
    except Exception as error:  # The edge: whatever comes here is our bug.
        code = UNEXPECTED_EXIT_CODE
        session.complain(f"kernelbridge has a bug here: {type(error).__name__}: {error}")
        if session.wants_traceback:
            session.err.print(traceback.format_exc(), soft_wrap=True)
        else:
            session.complain("Run it again with `kernelbridge --debug ...` and send us what it prints.")
    return code


def _print_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        session, version = ctx.obj
        session.say(f"kernelbridge {version}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", help="Use this config file.", metavar="PATH")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Notebook kernels in GPU containers on remote hosts."""
    session, _ = ctx.obj
    session.named_path = config
    session.wants_traceback = debug
    ctx.obj = session
