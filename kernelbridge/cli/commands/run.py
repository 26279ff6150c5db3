"""Serve `kernelbridge run` and `up`, and `attach` to such a run: a command in a container or job of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.cli import local_terminal, notebook
from kernelbridge.cli.commands.terminal import WindowOption, words_of
from kernelbridge.cli.context import CliContext, result, until_told_to_leave
from kernelbridge.cli.local_terminal import JoinedCommand, OutputWriter
from kernelbridge.cli.tables import console
from kernelbridge.config.schema import Config, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.files.git_checkout import check_out
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.kernel_listing import LIST_SECONDS, KernelRow
from kernelbridge.hosts.labels import short_id
from kernelbridge.kernel.command.run import UNDO_SECONDS, CommandRun, RunOutput
from kernelbridge.kernel.request import LaunchRequest, RunCommand
from kernelbridge.kernel.state import KernelState
from kernelbridge.plain_text import printable

LEAVE_SECONDS = 30.0
# How long a title is, at most.
TITLE_LENGTH = 60

EnvironmentArgument = Annotated[
    str, typer.Argument(metavar="ENVIRONMENT", help="The environment's name in the config.")
]
HostOption = Annotated[
    str, typer.Option("--host", metavar="HOST", help="Run it on this host; `local` is this machine's own engine.")
]
DetachOption = Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as it runs, and print its id.")]
FolderOption = Annotated[str, typer.Option("--workdir", "-w", metavar="PATH", help="Where in the container it starts.")]


def run(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="The command and its arguments.")],
    detach: DetachOption = False,
    host: HostOption = "",
    folder: FolderOption = "",
    revision: Annotated[
        str, typer.Option("--git", metavar="REVISION", help="Take the workspace as it is in this branch or commit.")
    ] = "",
    wants_window: WindowOption = None,
) -> None:
    """Carry out `kernelbridge run`."""
    context: CliContext = ctx.obj
    loaded = context.read_config()
    if notebook.is_notebook(words_of(command)):
        if detach or host or folder or revision:
            raise typer.BadParameter("a notebook takes `-o OUTPUT` and `-p NAME VALUE`, behind its name, and no others")
        notebook.run(context, loaded, environment, words_of(command))
        return
    has_window = local_terminal.is_terminal() and not detach if wants_window is None else wants_window
    window = local_terminal.window() if has_window else None
    what = RunCommand(argv=words_of(command), folder=folder, window=window)
    with context.fleet(loaded) as fleet, contextlib.ExitStack() as stack:
        request = request_for(context, fleet, loaded, environment, what, host)
        if revision:
            request = stack.enter_context(checked_out(request, revision, fleet.records.folder))
        if detach:
            context.say(_start_and_leave(fleet, request))
        else:
            raise typer.Exit(_run(context, fleet, request))


def up(ctx: typer.Context, environment: EnvironmentArgument, host: HostOption = "") -> None:
    """Carry out `kernelbridge up`."""
    context: CliContext = ctx.obj
    loaded = context.read_config()
    with context.fleet(loaded) as fleet:
        loaded.environment(environment)
        listing = context.wait(fleet, fleet.list_kernels(), seconds=LIST_SECONDS)
        found = [row for row in listing.kernels if is_up(row, environment, host)]
        if not found:
            request = request_for(context, fleet, loaded, environment, RunCommand(), host)
            context.say(_start_and_leave(fleet, request))
            return
    context.complain(f"{environment} is up on {found[0].host} already.")
    context.say(found[0].kernel_id)


def is_up(row: KernelRow, environment: str, host: str = "") -> bool:
    """Whether a row is this machine's container that waits for commands of an environment."""
    is_there = row.kind == "up" and row.is_ours and row.state in (KernelState.IDLE, KernelState.BUSY)
    return is_there and row.environment == environment and host in ("", row.host)


def request_for(
    context: CliContext, fleet: Fleet, loaded: Config, environment: str, what: RunCommand, host: str
) -> LaunchRequest:
    """Return the request for a command. Raises UnknownEnvironment and UnknownHost."""
    made = fleet.launch_request(
        environment,
        kernel_id=str(uuid.uuid4()),
        environ=context.environ,
        folder=str(Path.cwd()),
        title=printable(shlex.join(what.argv))[:TITLE_LENGTH] or what.kind,
        command=what,
    )
    # It is nobody's to end but its user's.
    return made.changed(hosts=(loaded.with_local().host(host),) if host else made.hosts, persist=True)


@contextlib.contextmanager
def checked_out(request: LaunchRequest, revision: str, data_folder: Path) -> Iterator[LaunchRequest]:
    """Return a request whose workspace is a git revision of the project; it is here while the block runs."""
    project = request.project
    if project is None:
        raise KernelBridgeError(
            f"{request.environment.name} has no workspace, of which `--git` could take a revision.",
            'Set `workspace = "."` of the environment.',
        )
    root = data_folder / "checkouts" / f"{project.name}-{os.getpid()}"
    try:
        commit = check_out(project.local_root, revision, root)
        # Each commit has a copy of its own on the host: files are not to change under whoever runs there.
        name = f"{project.name}-{commit[:12]}"
        yield replace(request, project=replace(project, local_root=root, name=name))
    finally:
        shutil.rmtree(root, ignore_errors=True)


class RunScreen:
    """This terminal while a command starts and runs: progress first, then what it writes."""

    def __init__(self) -> None:
        self._console = console(of_stderr=True)
        # Of the start; None once that is over, or where nobody watches.
        self._status = self._console.status("connecting") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        self.writer = OutputWriter(lambda is_congested: None)

    def output(self) -> RunOutput:
        """Return where a run's words go."""
        return RunOutput(
            write=self.writer.write,
            # What nobody reads here waits for whoever attaches.
            is_congested=lambda: self.writer.is_congested or self.writer.is_broken,
            progress=self._progress,
            tell=self._tell,
        )

    def words_alone(self) -> RunOutput:
        """Return the same for a run that is left: what it writes is not taken, and waits for whoever attaches."""
        return replace(self.output(), write=lambda kind, data: None, is_congested=lambda: True)

    def _progress(self, text: str) -> None:
        if self._status is not None and text:
            self._status.update(printable(text))

    def _tell(self, text: str) -> None:
        line = printable(f"kernelbridge: {text}")
        # A reader that is gone is the writer's to tell: this is the fleet's thread.
        with contextlib.suppress(OSError):
            # A raw terminal needs the return, too.
            typer.echo(f"{line}\r" if self._status is not None else line, err=True)

    def end_progress(self) -> None:
        """Take the progress away."""
        if self._status is not None:
            self._status.stop()

    def close(self) -> None:
        """Return when all is written."""
        self.end_progress()
        self.writer.close()


class _Left(BaseException):
    """This terminal was closed, or the process was told to end."""


@contextlib.contextmanager
def screen() -> Iterator[RunScreen]:
    """Have the terminal for a run while the block runs. Raises as OutputWriter.check()."""
    made = RunScreen()
    try:
        yield made
    finally:
        made.close()
    made.writer.check()


def _start(fleet: Fleet, request: LaunchRequest, shown: RunScreen, output: RunOutput) -> CommandRun:
    """Start a run; one that is interrupted leaves nothing."""
    made = fleet.run(fleet.make_run(request, output))
    starting: Future[None] | None = None
    try:
        starting = fleet.submit(made.start())
        result(starting)
    except KeyboardInterrupt:
        if starting is not None:
            starting.cancel()
        fleet.run(made.remove(), UNDO_SECONDS)
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        shown.end_progress()
    return made


def _start_and_leave(fleet: Fleet, request: LaunchRequest) -> str:
    with screen() as shown:
        made = _start(fleet, request, shown, shown.words_alone())
        fleet.run(made.detach(), LEAVE_SECONDS)
    return request.kernel_id


def _run(context: CliContext, fleet: Fleet, request: LaunchRequest) -> int:
    with screen() as shown:
        return stay(context, fleet, _start(fleet, request, shown, shown.output()), shown)


def attach(context: CliContext, fleet: Fleet, row: KernelRow, *, takes: bool) -> int:
    """Join a run to this terminal until it ends; return its exit code. Raises KernelHeld and others."""
    if row.kind == "up":
        raise KernelBridgeError(
            f"{short_id(row.kernel_id)} is a container that waits, in which nothing runs.",
            f"Open a shell in it: `kernelbridge shell {short_id(row.kernel_id)}`.",
        )
    has_window = local_terminal.is_terminal()
    what = RunCommand(argv=("?",), window=local_terminal.window() if has_window else None)
    request = fleet.launch_request(
        row.environment, kernel_id=row.kernel_id, environ=context.environ, title=row.title, command=what
    ).changed(persist=True)
    with screen() as shown:
        made = fleet.run(fleet.make_run(request, shown.output()))
        fleet.run(_joined(made, fleet.config.host(row.host), takes))
        try:
            result(fleet.submit(made.began()))
        except BaseException:
            fleet.run(made.detach(), LEAVE_SECONDS)
            raise
        shown.end_progress()
        return stay(context, fleet, made, shown)


async def _joined(made: CommandRun, host: Host, takes: bool) -> None:
    made.join_running(host, takes=takes)


def stay(context: CliContext, fleet: Fleet, made: CommandRun, shown: RunScreen) -> int:
    """Be the command's terminal until it ends, and return its exit code.

    It is left running where this terminal is closed, and where nobody reads its output any more: see
    OutputWriter.check() for what that raises.
    """
    window = made.request.command.window if made.request.command else None
    has_window = window is not None and local_terminal.is_terminal()
    joined = local_terminal.joined(JoinedCommand(made, fleet.submit), has_window=has_window)
    try:
        with until_told_to_leave(raising=_Left), joined:
            # Not before the terminal is raw, which would add a carriage return to each line.
            shown.writer.begin()
            code = result(fleet.submit(made.wait()), shown.writer.check)
    except (_Left, BrokenPipeError, KernelBridgeError) as exc:
        # What has ended by itself is kept for its log.
        fleet.run(made.detach(), LEAVE_SECONDS)
        if isinstance(exc, _Left) or shown.writer.is_broken:
            context.complain(f"The command runs on: `kernelbridge attach {short_id(made.request.kernel_id)}`.")
        if not isinstance(exc, _Left):
            raise
        return 0
    except KeyboardInterrupt:
        # Ctrl-C before the command could be given it.
        code = 128 + signal.SIGINT
    fleet.run(made.remove(), UNDO_SECONDS)
    return code
