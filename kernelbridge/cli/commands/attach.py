"""Serve `kernelbridge attach`: use a kernel that runs from this terminal.

A kernel that another program of this machine holds is used through that program's own connection file. Any other is
held here until Ctrl-C, and runs on afterwards.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from jupyter_core.paths import jupyter_runtime_dir

from kernelbridge.atomic_files import write_whole
from kernelbridge.channels import endpoints
from kernelbridge.cli import completion, login_prompt
from kernelbridge.cli.commands import kernels, run
from kernelbridge.cli.context import CliContext, until_told_to_leave
from kernelbridge.cli.listings.plain import moment
from kernelbridge.cli.status_line import status_line
from kernelbridge.errors import KernelBridgeError, KernelEnded, KernelHeld, KernelNotFound, StartTimeout
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.kernel_listing import KernelRow, is_of_notebook, known_as, meant
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts.labels import short_id
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.state import KernelState

BIND_SECONDS, DETACH_SECONDS = 10.0, 30.0
STATE_LOOK_SECONDS = 0.1
CONSOLE = "jupyter_console"
# The output that nobody took answers cells of others.
SHOW_ALL = "--ZMQTerminalInteractiveShell.include_other_output=True"


def attach(
    ctx: typer.Context,
    kernel_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="The kernel's id, or its beginning; else the one nobody holds.",
            autocompletion=completion.kernel_ids,
        ),
    ] = None,
    take: Annotated[bool, typer.Option("--take", help="Take it from whoever holds it, who loses it.")] = False,
    console: Annotated[
        bool | None,
        typer.Option("--console/--no-console", help="Start `jupyter console` on it; where this is a terminal."),
    ] = None,
) -> None:
    """Carry out `kernelbridge attach`."""
    context: CliContext = ctx.obj
    loaded = context.read_config()
    with context.fleet(loaded) as fleet:
        shared = _shared_file(fleet, kernel_id) if kernel_id and not take else None
        if shared is None:
            row = _chosen(context, fleet, kernel_id, takes=take)
            # Asked without an id, or held by a program that began a moment ago.
            shared = _shared_file(fleet, row.kernel_id) if not take else None
        if shared is not None:
            _show(context, shared)
            if _wants_console(console):
                _run_console(shared)
            return
        if row.kind:
            raise typer.Exit(run.attach(context, fleet, row, takes=take))
        if row.link == KernelState.HELD and not take:
            raise KernelHeld(
                kernel=short_id(row.kernel_id),
                host=row.host,
                who=row.held_by,
                since=moment(row.since) if row.since else "a moment ago",
            )
        _hold(context, fleet, row, takes=take, with_console=_wants_console(console))


# -- which one


def _shared_file(fleet: Fleet, prefix: str) -> Path | None:
    """Return the connection file of a program of this machine that holds the kernel."""
    records = fleet.records
    files = [
        Path(record.connection_file)
        for record in records.kernels()
        # The folder of such files may be shared with machines on which its endpoints are not.
        if (record.kernel_id.startswith(prefix) or is_of_notebook(record, prefix))
        and record.connection_file
        and records.holder_liveness(record) is Liveness.ALIVE
    ]
    return files[0] if len(files) == 1 and files[0].is_file() else None


def _chosen(context: CliContext, fleet: Fleet, prefix: str | None, *, takes: bool) -> KernelRow:
    listing = context.wait(fleet, fleet.list_kernels(), seconds=LIST_SECONDS)
    if prefix:
        found = meant(prefix, listing.kernels, fleet.records.kernels())
        if not found and listing.problems:
            raise listing.problems[0]
        if len(found) != 1:
            raise KernelNotFound(kernel=prefix, hosts=list(fleet.config.hosts), found=list(map(known_as, found)))
    else:
        left = (KernelState.DETACHED, KernelState.LINK_LOST)
        joinable = [row for row in listing.kernels if row.kind != "up" and not row.is_elsewhere]
        found = [row for row in joinable if row.is_ours and row.link in left]
        if len(found) != 1:
            kernels.show(context, tuple(found) or listing.kernels, empty="No kernels.")
            how_many = f"{len(found)} kernels of this machine run" if found else "No kernel of this machine runs"
            raise KernelBridgeError(f"{how_many} that nobody holds.", "Name one: `kernelbridge attach ID`.")
    (row,) = found
    for problem in listing.problems:
        if row.state in (KernelState.UNKNOWN, KernelState.STOPPING) and row.why == problem.sentence:
            raise problem
    return row


# -- holding it


def _hold(context: CliContext, fleet: Fleet, row: KernelRow, *, takes: bool, with_console: bool) -> None:
    """Own the kernel until the user leaves."""
    path = Path(jupyter_runtime_dir()) / f"kernelbridge-{row.kernel_id}.json"
    record = fleet.records.kernel(row.kernel_id)
    request = fleet.launch_request(
        row.environment,
        kernel_id=row.kernel_id,
        environ=context.environ,
        server=record.server if record else "",
        connection_file=str(path),
    )
    made = endpoints.made(runtime_folder=context.environ.get("XDG_RUNTIME_DIR"))
    kernel = context.wait(fleet, fleet.attach(request, made, host=row.host, take=takes), seconds=BIND_SECONDS)
    is_over = False
    try:
        with until_told_to_leave():
            with status_line(lambda: f"waiting for the kernel on {row.host} to answer"):
                is_dead = _await_answer(context, kernel, row)
            kernel.channels.endpoints.publish()
            with _connection_file(path, kernel):
                _show(context, path)
                context.say(f"{_leaving(with_console)} the kernel running.")
                if with_console:
                    _run_console(path, SHOW_ALL, on_interrupt=lambda: _interrupt(fleet, kernel))
                else:
                    _stay(kernel, is_dead=is_dead)
            is_over = kernel.exit_code == 0 and kernel.failure is None
    except KeyboardInterrupt:
        pass
    finally:
        ending: Coroutine[Any, Any, None] = fleet.stop(kernel) if is_over else fleet.detach(kernel, end=False)
        context.wait(fleet, ending, seconds=DETACH_SECONDS)
    if kernel.failure is not None:
        raise kernel.failure
    context.say("The kernel has ended." if is_over else f"The kernel runs on: {row.kernel_id}.")


def _leaving(with_console: bool) -> str:
    return "Ctrl-D leaves the console and" if with_console else "Ctrl-C leaves"


def _await_answer(context: CliContext, kernel: Kernel, row: KernelRow) -> bool:
    """Return when the kernel answers; True if it has ended, and there is output still that nobody took.

    Raises why there is no such kernel any more.
    """
    seconds = kernel.request.environment.start_seconds
    until = time.monotonic() + seconds
    while kernel.state is KernelState.STARTING:
        if time.monotonic() > until:
            raise StartTimeout(host=row.host, what="the answer of the kernel", seconds=seconds)
        time.sleep(STATE_LOOK_SECONDS)
    if kernel.state is KernelState.RUNNING:
        return False
    failure = kernel.failure or KernelEnded(
        environment=kernel.request.display_name, host=row.host, how="has no kernel process any more: it has ended"
    )
    if not (kernel.is_joined and row.undelivered_bytes):
        raise failure
    context.complain_of(failure)
    return True


def _stay(kernel: Kernel, *, is_dead: bool) -> None:
    while is_dead or kernel.exit_code is None:
        time.sleep(STATE_LOOK_SECONDS)


@contextmanager
def _connection_file(path: Path, kernel: Kernel) -> Iterator[None]:
    """Write the file that tells clients of this login where the endpoints are, and remove it at the end."""
    info = kernel.channels.endpoints.connection_info()
    text = json.dumps({**info, "key": info["key"].decode(), "kernel_name": ""}, indent=1)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, text.encode(), is_private=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Who took the kernel from us on this machine has written its own there.
            if path.read_text("utf-8") == text:
                path.unlink()


# -- the console


def _show(context: CliContext, path: Path) -> None:
    context.say(str(path))
    context.say(f"jupyter console --existing {path}")


def _wants_console(asked: bool | None) -> bool:
    has_one = importlib.util.find_spec(CONSOLE) is not None
    if asked and not has_one:
        raise KernelBridgeError("There is no `jupyter console` here.", "`pip install jupyter-console`.")
    return (sys.stdin.isatty() and has_one) if asked is None else asked


def _run_console(path: Path, *words: str, on_interrupt: Callable[[], None] = lambda: None) -> None:
    """Run a console to its end. Ctrl-C while a cell runs is the kernel's: the console itself does nothing with it."""
    before = signal.signal(signal.SIGINT, lambda *_: on_interrupt())
    try:
        console = subprocess.Popen([sys.executable, "-m", CONSOLE, "--existing", str(path), *words])  # noqa: S603
        try:
            # What a login needs meanwhile is asked in its cell.
            with login_prompt.USE.taken():
                console.wait()
        finally:
            if console.poll() is None:
                console.terminate()
                console.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(fleet: Fleet, kernel: Kernel) -> None:
    fleet.submit(_signal(kernel))


async def _signal(kernel: Kernel) -> None:
    kernel.signal(signal.SIGINT)
