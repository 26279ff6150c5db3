"""Serve `kernelbridge run` and `up`, and `attach` to such a run: a command in a container or job of its own."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.cli import completion, local_terminal, login_prompt, notebook
from kernelbridge.cli.commands.terminal import WindowOption, words_of
from kernelbridge.cli.completion import EnvironmentArgument
from kernelbridge.cli.context import CliContext, result, until_told_to_leave
from kernelbridge.cli.local_terminal import JoinedCommand, OutputWriter
from kernelbridge.cli.tables import console, without
from kernelbridge.config.schema import Config, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.files.git_checkout import check_out, paths_of
from kernelbridge.files.project import LOCAL_WORKSPACES, Checkout
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.kernel_listing import LIST_SECONDS, KernelRow
from kernelbridge.hosts.labels import short_id
from kernelbridge.kernel.command.run import CommandRun, RunOutput
from kernelbridge.kernel.request import LaunchRequest, RunCommand
from kernelbridge.kernel.state import KernelState
from kernelbridge.plain_text import printable

LEAVE_SECONDS = 30.0
# Within so long results may come without a word.
QUICK_SECONDS = 2.0
# In this machine's data folder: what commits have, on its way to a host.
CHECKOUTS = "checkouts"
# How long a title is, at most.
TITLE_LENGTH = 60

HostOption = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="HOST",
        help="Run it on this host; `local` is this machine's own engine.",
        autocompletion=completion.hosts,
    ),
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
    with context.fleet(loaded) as fleet:
        request = request_for(context, fleet, loaded, environment, what, host)
        if revision:
            request = checked_out(request, revision, fleet.records.folder)
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
        title=printable(shlex.join(what.argv or ()))[:TITLE_LENGTH] or what.kind,
        command=what,
    )
    # It is nobody's to end but its user's.
    return made.changed(hosts=(loaded.with_local().host(host),) if host else made.hosts, persist=True)


def checked_out(request: LaunchRequest, revision: str, data_folder: Path) -> LaunchRequest:
    """Return a request whose container has the project's files as they are in a git revision.

    They are on this machine from now on; see _start. Raises BadParameter, KernelBridgeError.
    """
    project = request.project
    if project is None:
        raise KernelBridgeError(
            f"{request.environment.name} has no workspace, of which `--git` could take a revision.",
            'Set `workspace = "."` of the environment.',
        )
    theirs = [host.name for host in request.hosts if not host.is_local and not project.is_copied(host)]
    if theirs:
        raise typer.BadParameter(
            f"--git: {', '.join(theirs)} has the workspace of {request.environment.name} by itself, so no revision is "
            "copied there; leave `--git` out, or `host` of the workspace"
        )
    # A container of this machine's own engine uses them for as long as it is there.
    folder = LOCAL_WORKSPACES if any(host.is_local for host in request.hosts) else CHECKOUTS
    path = data_folder / folder / f"{project.name}-{request.kernel_id[:8]}"
    try:
        commit = check_out(project.local_root, revision, path)
        checkout = Checkout(commit=commit, paths=paths_of(project.local_root, commit), local_path=path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return replace(request, project=project.with_checkout(checkout))


class RunScreen:
    """This terminal while a command starts and runs: progress first, then what it writes."""

    def __init__(self) -> None:
        self._console = console(of_stderr=True)
        # Shows how far the start is; None where stderr is no terminal.
        self._status = self._console.status("connecting") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()
        self._asking = contextlib.ExitStack()
        if self._status is not None:
            self._asking.enter_context(login_prompt.USE.beside(partial(without, self._status)))
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
        if self._status is not None:
            self._status.update(printable(text))

    def _tell(self, text: str) -> None:
        line = printable(f"kernelbridge: {text}")
        # A reader that is gone is the writer's to tell: this is the fleet's thread.
        with contextlib.suppress(OSError):
            # A raw terminal needs the return, too.
            typer.echo(f"{line}\r" if self._status is not None else line, err=True)

    def end_progress(self) -> None:
        """Take the progress away."""
        self._asking.close()
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
    """Start a run; one that is interrupted leaves nothing. Of a checkout stays what its container uses."""
    made = fleet.run(fleet.make_run(request, output))
    checkout = request.project.checkout if request.project is not None else None
    starting: Future[None] | None = None
    is_used = False
    try:
        starting = fleet.submit(made.start())
        result(starting)
        is_used = made.host.is_local
    except KeyboardInterrupt:
        if starting is not None:
            starting.cancel()
        fleet.run(made.remove())
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        shown.end_progress()
        if checkout is not None and checkout.local_path is not None:
            if is_used:
                output.tell(f"The command works in {checkout.local_path}; what it writes stays there.")
            else:
                shutil.rmtree(checkout.local_path, ignore_errors=True)
    return made


def _start_and_leave(fleet: Fleet, request: LaunchRequest) -> str:
    with screen() as shown:
        _detach(fleet, _start(fleet, request, shown, shown.words_alone()))
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
    what = RunCommand(argv=None, window=local_terminal.window() if has_window else None)
    request = fleet.launch_request(
        row.environment, kernel_id=row.kernel_id, environ=context.environ, title=row.title, command=what
    ).changed(persist=True)
    record = fleet.records.kernel(row.kernel_id)
    if record is not None:
        request = fleet.with_project_of(request, record)
        if record.folder and request.project is None and request.environment.workspace is not None:
            context.complain(f"No results come into {record.folder}: its project, or the commit that runs, is gone.")
    with screen() as shown:
        made = fleet.run(fleet.make_run(request, shown.output()))
        fleet.run(_joined(made, fleet.config.host(row.host), takes))
        try:
            result(fleet.submit(made.began()))
        except BaseException:
            _detach(fleet, made)
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
    except _Left:
        _leave(context, fleet, made)
        return 0
    except (BrokenPipeError, KernelBridgeError):
        if shown.writer.is_broken:
            _leave(context, fleet, made)
        else:
            # What has ended by itself is kept for its log.
            _fetch_results(context, fleet, made)
            _detach(fleet, made)
        raise
    except KeyboardInterrupt:
        # Ctrl-C before the command could be given it.
        code = 128 + signal.SIGINT
    _fetch_results(context, fleet, made)
    fleet.run(made.remove())
    return code


def _leave(context: CliContext, fleet: Fleet, made: CommandRun) -> None:
    _detach(fleet, made)
    context.complain(f"The command runs on: `kernelbridge attach {short_id(made.request.kernel_id)}`.")


def _detach(fleet: Fleet, made: CommandRun) -> None:
    """Leave a command as it is; one whose host does not answer notices by itself."""
    with contextlib.suppress(TimeoutError):
        fleet.run(made.detach(), LEAVE_SECONDS)


def _fetch_results(context: CliContext, fleet: Fleet, made: CommandRun) -> None:
    """Have the last results of a command that has ended here, unless that takes longer than its user waits."""
    fetching = fleet.submit(made.finish())
    try:
        with contextlib.suppress(TimeoutError):
            fetching.result(QUICK_SECONDS)
        if not fetching.done():
            context.complain(f"Fetching the last results from {made.host.name}; Ctrl-C leaves them there.")
        result(fetching)
    except KeyboardInterrupt:
        fetching.cancel()
        context.complain(f"Not all results were fetched: {made.unfetched_text}.")
