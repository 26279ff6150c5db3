"""Serve `kernelbridge shell` and `exec`: a command in a kernel's container, joined to this terminal."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from kernelbridge.cli import completion, local_terminal
from kernelbridge.cli.context import CliContext, result
from kernelbridge.cli.local_terminal import JoinedCommand, OutputValve, OutputWriter
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.kernel.command.terminal import START_SECONDS, CommandRequest, Terminal
from kernelbridge.protocol.terminal import USUAL_TERM

KernelArgument = Annotated[
    str,
    typer.Argument(
        metavar="KERNEL",
        help="The kernel's id, or its beginning; or its environment's name, where only one runs.",
        autocompletion=completion.kernels,
    ),
]
FolderOption = Annotated[
    str,
    typer.Option("--workdir", "-w", metavar="PATH", help="Where in the container it starts; else where the kernel is."),
]
WindowOption = Annotated[
    bool | None, typer.Option("--tty/--no-tty", "-t/-T", help="Give it a terminal; where this is one.")
]
TERMINAL_CLOSE_SECONDS = 5.0


def shell(ctx: typer.Context, kernel: KernelArgument, folder: FolderOption = "") -> None:
    """Carry out `kernelbridge shell`."""
    _run(ctx.obj, kernel, (), folder, wants_window=local_terminal.is_terminal())


def exec_command(
    ctx: typer.Context,
    kernel: KernelArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="The command and its arguments.")],
    folder: FolderOption = "",
    wants_window: WindowOption = None,
) -> None:
    """Carry out `kernelbridge exec`."""
    wants = local_terminal.is_terminal() if wants_window is None else wants_window
    _run(ctx.obj, kernel, words_of(command), folder, wants_window=wants)


def words_of(command: list[str]) -> tuple[str, ...]:
    """Return a command's words without the `--` that may stand before it."""
    words = tuple(command[1:] if command[:1] == ["--"] else command)
    if not words:
        raise typer.BadParameter("name the command to run: `-- COMMAND`")
    return words


def _run(context: CliContext, kernel: str, argv: tuple[str, ...], folder: str, *, wants_window: bool) -> None:
    with context.fleet(context.read_config()) as fleet:
        raise typer.Exit(run_beside(context, fleet, kernel, request_of(argv, folder, wants_window=wants_window)))


def request_of(argv: tuple[str, ...], folder: str, *, wants_window: bool) -> CommandRequest:
    """Return the request for a command on a terminal like this one, or on pipes."""
    env = {"TERM": os.environ.get("TERM", USUAL_TERM)} if wants_window else {}
    window = local_terminal.window() if wants_window else None
    return CommandRequest(argv=argv, folder=folder, window=window, env=env)


def run_beside(context: CliContext, fleet: Fleet, kernel: str, request: CommandRequest) -> int:
    """Run a command beside a kernel to its end, joined to this terminal; return its exit code.

    Raises BrokenPipeError, and ends the command, where nobody reads its output any more.
    """
    valve = OutputValve(fleet.submit)
    writer = OutputWriter(valve.congested)

    async def opening() -> Terminal:
        made = await fleet.open_terminal(kernel, request, writer.write)
        valve.on_open(made)
        return made

    try:
        opened = context.wait(fleet, opening(), seconds=LIST_SECONDS + START_SECONDS)
        try:
            has_window = request.window is not None and local_terminal.is_terminal()
            with local_terminal.joined(JoinedCommand(opened, fleet.submit), has_window=has_window):
                writer.begin()
                code = result(fleet.submit(opened.wait()), writer.check)
        finally:
            fleet.run(opened.aclose(), TERMINAL_CLOSE_SECONDS)
    finally:
        writer.close()
    writer.check()
    return code
