"""Serve `kernelbridge shell` and `exec`: a command in a kernel's container, joined to this terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from kernelbridge.cli import local_terminal
from kernelbridge.cli.context import CliContext
from kernelbridge.cli.local_terminal import OutputWriter
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.kernel_listing import LIST_SECONDS
from kernelbridge.kernel.command.terminal import START_SECONDS, CommandRequest, Terminal
from kernelbridge.protocol.terminal import USUAL_TERM, WindowSize

KernelArgument = Annotated[str, typer.Argument(metavar="KERNEL", help="The kernel's id, or its beginning.")]
FolderOption = Annotated[
    str,
    typer.Option("--workdir", "-w", metavar="PATH", help="Where in the container it starts; else where the kernel is."),
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
    wants_window: Annotated[
        bool | None, typer.Option("--tty/--no-tty", "-t/-T", help="Give it a terminal; where this is one.")
    ] = None,
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
    """Run a command beside a kernel to its end, joined to this terminal; return its exit code."""
    command = _Beside(fleet)
    writer = OutputWriter(command.congested)
    try:
        opening = fleet.open_terminal(kernel, request, writer.write)
        opened = command.opened = context.wait(fleet, opening, seconds=LIST_SECONDS + START_SECONDS)
        try:
            has_window = request.window is not None and local_terminal.is_terminal()
            with local_terminal.joined(command, has_window=has_window):
                writer.begin()
                return fleet.run(opened.wait())
        finally:
            fleet.run(opened.aclose(), TERMINAL_CLOSE_SECONDS)
    finally:
        writer.close()


async def _called(function: Callable[[], None]) -> None:
    function()


class _Beside:
    """A terminal of the fleet's loop, for this process's other threads."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Set once the command runs; nothing is asked of it before.
        self.opened: Terminal | None = None

    def send(self, data: bytes) -> None:
        """See JoinedCommand."""
        opened = self.opened
        if opened is not None:
            self._fleet.run(opened.send(data) if data else _called(opened.end_input))

    def resize(self, window: WindowSize) -> None:
        """See JoinedCommand."""
        opened = self.opened
        if opened is not None:
            self._fleet.submit(_called(lambda: opened.resize(window)))

    def signal(self, number: int) -> None:
        """See JoinedCommand."""
        opened = self.opened
        if opened is not None:
            self._fleet.submit(_called(lambda: opened.signal(number)))

    def congested(self, is_congested: bool) -> None:
        """Take in that whoever reads its output is slow, or reads again."""
        opened = self.opened
        if opened is not None:
            self._fleet.submit(_called(opened.pause if is_congested else opened.resume))
