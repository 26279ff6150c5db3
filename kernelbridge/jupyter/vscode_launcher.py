"""Run the argv process that VS Code starts for a kernel spec: bind the given ports, hold one kernel, end with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from kernelbridge.channels import endpoints
from kernelbridge.channels.endpoints import EndpointInvalid, Endpoints
from kernelbridge.config import load as configs
from kernelbridge.errors import (
    ConnectionFileInvalid,
    EndpointTaken,
    KernelBridgeError,
    SpecsUnwritable,
    UnknownEnvironment,
    error_page,
)
from kernelbridge.fleet import log_files
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.left_kernels import is_restart
from kernelbridge.hosts.transport.openssh.askpass import Askpass
from kernelbridge.jupyter import running_kernelspecs
from kernelbridge.jupyter.running_kernelspecs import KERNEL_VARIABLE
from kernelbridge.kernel.kernel import Kernel
from kernelbridge.kernel.process_mark import mark_of
from kernelbridge.kernel.records import KernelRecord, default_folder
from kernelbridge.kernel.state import KernelState

_LOG = logging.getLogger(__name__)
PARENT_LOOK_SECONDS = 0.2
# VS Code waits for nothing after its SIGTERM. What an engine was asked for comes true also when nobody wants it any
# more, be it minutes later: whoever leaves before that leaves a container behind. A host that does not answer is given
# up long before, by each step's own limit.
LAUNCHER_STOP_SECONDS = 960.0
# How long a client may take to come and ask; VS Code asks as soon as the ports are bound.
CLIENT_SECONDS = 5.0
# What a failed restart has left on its host is kept for so long: a restart that works finds its files.
DISCARD_AFTER_SECONDS = 60.0


class ParentWatcher:
    """Why the launcher should end: a signal, or the editor that started it is gone.

    An editor that dies sends nothing (seen with VS Code's extension host), so its process is watched.
    """

    def __init__(self) -> None:
        self._parent_id = os.getppid()
        # Windows keeps the number of a parent that is gone; elsewhere another one takes its place at once.
        self._parent = psutil.Process(self._parent_id) if sys.platform == "win32" else None
        # Set by the signal handler, which also wakes who waits. No Event: a handler that comes while its own lock is
        # held would wait for ever, and put() may be called at any moment.
        self._is_told = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        signal.signal(signal.SIGTERM, self._stopped)
        # An interrupt comes as a message; the terminal's own Ctrl-C is meant for the editor.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        self._is_told = True
        self._wake.put(None)

    def is_over(self) -> bool:
        """Wait a moment; whether the end has come."""
        with contextlib.suppress(queue.Empty):
            self._wake.get(timeout=PARENT_LOOK_SECONDS)
        if self._is_told:
            return True
        return os.getppid() != self._parent_id or (self._parent is not None and not self._parent.is_running())


def run(connection_file: str) -> int:
    """Serve one kernel until it ends or the editor does; return the exit code."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    log_files.begin("launcher", os.environ, default_folder())
    parent = ParentWatcher()
    try:
        return _serve(Path(connection_file), os.environ, parent)
    except KernelBridgeError as exc:
        return _complain(exc)


def _complain(error: KernelBridgeError | None) -> int:
    """Print an error, and return the exit code.

    VS Code shows stderr if the process ends before kernel_info is answered, and logs it always.
    """
    if error is None:
        return 0
    # No error: that would be printed, too.
    _LOG.warning("%s", error.logged)
    # Where the last line has the word Error in it, VS Code shows that line alone.
    lines = [*error.lines(), f"docs: {error_page(error.exit_code)}"]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return 1


def _serve(connection_file: Path, environ: Mapping[str, str], parent: ParentWatcher) -> int:
    given = _endpoints(connection_file)
    name = environ.get("KERNELBRIDGE_ENVIRONMENT", "")
    path = configs.find_path(environ)
    if not name:
        raise UnknownEnvironment(name=name, path=str(path))
    fleet = Fleet(configs.load(path), askers=[Askpass(environ).ask])
    try:
        try:
            held = _begun(fleet, name, given, environ, connection_file)
        except OSError as exc:
            raise EndpointTaken(reason=str(exc)) from exc
        return _hold(fleet, held, parent)
    finally:
        fleet.close()


def _begun(fleet: Fleet, name: str, given: Endpoints, environ: Mapping[str, str], file: Path) -> _Hold:
    """Bind the endpoints of a new kernel, of one that was left a moment ago, or of one that runs."""
    running = environ.get(KERNEL_VARIABLE, "")
    claim = _claim(name)
    known: dict[str, Any] = {
        "environ": environ,
        "claim": claim,
        "folder": str(Path.cwd()),
        "connection_file": str(file.absolute()),
        # VS Code drops what answers none of its own requests.
        "only_own": True,
    }
    left = fleet.claimable(claim)
    if left is not None and not is_restart(left, psutil.Process().create_time()):
        left = None
    if running and (left is None or left.kernel_id != running):
        request = fleet.launch_request(name, kernel_id=running, **known)
        return _Hold(fleet.run(fleet.attach(request, given)), claim, left=None, is_attached=True)
    notebook = _notebook(environ)
    # VS Code does not say which notebook it is before its first cells.
    title = Path(notebook).name or f"{Path.cwd().name}/"
    request = fleet.launch_request(name, kernel_id=str(uuid.uuid4()), title=title, notebook=notebook, **known)
    return _Hold(fleet.run(fleet.bind(request, given)), claim, left=left)


def _notebook(environ: Mapping[str, str]) -> str:
    """Return the path of the notebook, where the variable that Jupyter's own front-ends set says it."""
    name = environ.get("JPY_SESSION_NAME", "")
    return str(Path.cwd() / name) if name else ""


def _claim(environment: str) -> str:
    """Name what a restart in VS Code has in common with what it restarts: both are a process of the same parent.

    Hashed, because it goes to the host.
    """
    parent = os.getppid()
    try:
        # Without the time of day: the clock may be set between the two.
        born = mark_of(parent).birth
    except ProcessLookupError:
        # It has ended a moment ago, or is outside of this container: nobody restarts this one.
        return uuid.uuid4().hex
    return hashlib.sha256("\0".join((str(parent), born, environment, str(Path.cwd()))).encode()).hexdigest()


def _endpoints(connection_file: Path) -> Endpoints:
    try:
        written = json.loads(connection_file.read_text("utf-8"))
        if not isinstance(written, dict):
            raise ValueError("it is no JSON object")
        return endpoints.given(written)
    except (OSError, ValueError, RecursionError, EndpointInvalid) as exc:
        raise ConnectionFileInvalid(path=str(connection_file), reason=str(exc)) from exc


@dataclass(frozen=True)
class _Hold:
    """A kernel whose endpoints are bound, and under which claim; what was left under it; whether it runs already."""

    kernel: Kernel
    claim: str
    left: KernelRecord | None
    is_attached: bool = False


def _hold(fleet: Fleet, held: _Hold, parent: ParentWatcher) -> int:
    """Start the kernel and wait for its end or the editor's; then it ends too, unless it is to persist."""
    kernel = held.kernel
    start = fleet.submit(_start(fleet, held))
    is_ended, has_run = False, False
    failed: _FailedStart | None = None
    try:
        while not parent.is_over():
            if start.done():
                start.result()
            if not has_run and kernel.state is KernelState.RUNNING:
                has_run = _offer(fleet)
            is_ended = kernel.exit_code is not None
            if kernel.state is KernelState.FAILED and not has_run and not kernel.channels.is_end_asked_for:
                failed = failed or _FailedStart(fleet, kernel)
                if failed.is_waited_for():
                    continue
            if is_ended:
                return 1 if failed else _complain(kernel.failure)
        return 1 if failed else 0
    finally:
        start.cancel()
        # VS Code's restart and its close are the same signal: see fleet.claimable.
        is_left = kernel.request.environment.persist and kernel.is_used
        ending = fleet.detach(kernel, end=is_ended or not is_left, claim=held.claim)
        with contextlib.suppress(TimeoutError):
            fleet.run(ending, LAUNCHER_STOP_SECONDS)
        _offer(fleet)


class _FailedStart:
    """A kernel that has not come, whose cells are answered with the reason for as long as the editor likes.

    Once kernel_info was answered VS Code reads no stderr, waits for its cells, and for them alone: were they left
    without an answer, it would show nothing and neither interrupt nor restart.
    """

    def __init__(self, fleet: Fleet, kernel: Kernel) -> None:
        self._fleet = fleet
        self._kernel = kernel
        self._since = time.monotonic()
        _complain(kernel.failure)

    def is_waited_for(self) -> bool:
        """Whether a client may ask for the reason; what the start has left on its host goes after a while."""
        seconds = time.monotonic() - self._since
        if seconds > DISCARD_AFTER_SECONDS:
            self._fleet.run(_discard(self._kernel))
        return seconds < CLIENT_SECONDS or self._kernel.channels.has_client


async def _discard(kernel: Kernel) -> None:
    kernel.discard()


def _offer(fleet: Fleet) -> bool:
    """Let VS Code's picker show the kernels that run and that nobody holds; True, done or not."""
    try:
        running_kernelspecs.offer(fleet.records, fleet.config)
    except SpecsUnwritable as exc:
        _LOG.warning("%s", exc)
    return True


async def _start(fleet: Fleet, held: _Hold) -> None:
    """Begin what is to go on behind the ports: from now on every failure is told in the cell."""
    if not held.is_attached:
        await fleet.start_or_take_up(held.kernel, held.left)
