"""The argv process that VS Code starts for a local kernel spec: binds the given ports, holds one kernel, ends with it.

Asked by an editor. Jupyter's own way: provisioner.py. Which arguments are refused: entry.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from kernelbridge import config as configs
from kernelbridge import kernelspecs, running_specs
from kernelbridge.channels import endpoints
from kernelbridge.channels.endpoints import EndpointInvalid, Endpoints
from kernelbridge.errors import (
    ConnectionFileInvalid,
    EndpointTaken,
    KernelBridgeError,
    SpecsUnwritable,
    UnknownEnvironment,
)
from kernelbridge.fleet import Fleet
from kernelbridge.kernel import Kernel
from kernelbridge.processes import process_mark
from kernelbridge.running_specs import KERNEL_VARIABLE
from kernelbridge.surroundings import KernelState

_LOG = logging.getLogger(__name__)
WATCH_SECONDS = 0.2
# VS Code waits for nothing after its SIGTERM; a host that does not answer must not keep the process for ever.
STOP_SECONDS = 30.0


class Watch:
    """Why the launcher should end: a signal, or the editor that started it is gone.

    An editor that dies sends nothing (seen with VS Code's extension host), so its process is watched.
    """

    def __init__(self) -> None:
        self._parent_id = os.getppid()
        # Windows keeps the number of a parent that is gone; elsewhere another one takes its place at once.
        self._parent = psutil.Process(self._parent_id) if sys.platform == "win32" else None
        # Set by the signal handler.
        self._stop = threading.Event()
        signal.signal(signal.SIGTERM, self._stopped)
        # An interrupt comes as a message; the terminal's own Ctrl-C is meant for the editor.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _stopped(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def is_over(self) -> bool:
        """Wait a moment; whether the end has come."""
        if self._stop.wait(WATCH_SECONDS):
            return True
        return os.getppid() != self._parent_id or (self._parent is not None and not self._parent.is_running())


def run(connection_file: str) -> int:
    """Serve one kernel until it ends or the editor does; return the exit code."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    watch = Watch()
    try:
        return _serve(Path(connection_file), os.environ, watch)
    except KernelBridgeError as exc:
        return _complain(exc)


def _complain(error: KernelBridgeError) -> int:
    # VS Code shows the last line alone if it has the word Error in it.
    sys.stderr.write(f"KernelBridgeError: {error}\n")
    return 1


def _serve(connection_file: Path, environ: Mapping[str, str], watch: Watch) -> int:
    given = _endpoints(connection_file)
    name = environ.get("KERNELBRIDGE_ENVIRONMENT", "")
    path = configs.find_path(environ)
    if not name:
        raise UnknownEnvironment(name=name, path=str(path))
    fleet = Fleet(configs.load(path))
    try:
        try:
            held = _begun(fleet, name, given, environ, connection_file)
        except OSError as exc:
            raise EndpointTaken(reason=str(exc)) from exc
        return _hold(fleet, held, watch)
    finally:
        fleet.close()


def _begun(fleet: Fleet, name: str, given: Endpoints, environ: Mapping[str, str], file: Path) -> _Hold:
    """Bind the endpoints of a new kernel, of one that was left a moment ago, or of one that runs."""
    running = environ.get(KERNEL_VARIABLE, "")
    claim = _claim(name)
    title = Path(environ.get("JPY_SESSION_NAME", "")).name or Path.cwd().name
    known: dict[str, Any] = {"environ": environ, "claim": claim, "connection_file": str(file.absolute())}
    left = fleet.claimable(claim)
    if running and (left is None or left.kernel_id != running):
        wanted = fleet.wanted(name, kernel_id=running, **known)
        kernel = fleet.run(fleet.attach(wanted, given))
        return _Hold(kernel, claim, None)
    wanted = fleet.wanted(
        name,
        kernel_id=left.kernel_id if left else str(uuid.uuid4()),
        title=title,
        session=left.session if left else "",
        **known,
    )
    kernel = fleet.run(fleet.bind(wanted, given))
    return _Hold(kernel, claim, left.host if left else "")


def _claim(environment: str) -> str:
    """Name what a restart in VS Code has in common with what it restarts: both are a process of the same parent.

    Hashed, because it goes to the host.
    """
    parent = process_mark(psutil.Process(os.getppid()))
    return hashlib.sha256("\0".join((parent, environment, str(Path.cwd()))).encode()).hexdigest()


def _endpoints(connection_file: Path) -> Endpoints:
    try:
        written = json.loads(connection_file.read_text("utf-8"))
        if not isinstance(written, dict):
            raise ValueError("it is no JSON object")
        return endpoints.given(written)
    except (OSError, ValueError, EndpointInvalid) as exc:
        raise ConnectionFileInvalid(path=str(connection_file), reason=str(exc)) from exc


@dataclass(frozen=True)
class _Hold:
    """A kernel whose endpoints are bound; under which claim, and on which host it was left (None: it runs there)."""

    kernel: Kernel
    claim: str
    left_on: str | None


def _hold(fleet: Fleet, held: _Hold, watch: Watch) -> int:
    """Start the kernel and wait for its end or the editor's; then it ends too, unless it is to persist."""
    kernel = held.kernel
    start = fleet.submit(_start(fleet, held))
    is_ended = is_offered = False
    try:
        while not watch.is_over():
            if not is_offered and kernel.state is KernelState.RUNNING:
                is_offered = _offer(fleet)
            if start.done() and (failure := start.exception()) is not None:
                is_ended = True
                raise failure
            if kernel.exit_code is not None:
                is_ended = True
                return _complain(kernel.failure) if kernel.failure is not None else 0
        return 0
    finally:
        start.cancel()
        # VS Code's restart and its close are the same signal: see fleet.claimable.
        is_left = kernel.wanted.environment.persist
        ending = fleet.detach(kernel, end=is_ended or not is_left, claim=held.claim)
        with contextlib.suppress(TimeoutError):
            fleet.run(ending, STOP_SECONDS)
        _offer(fleet)


def _offer(fleet: Fleet) -> bool:
    """VS Code's picker shows the kernels that run and that nobody holds, as they are now; True, done or not."""
    try:
        running_specs.renew(
            fleet.records, fleet.config, kernelspecs.default_root(), kernelspecs.launcher_path(), time.time()
        )
    except SpecsUnwritable as exc:
        _LOG.warning("%s", exc)
    return True


async def _start(fleet: Fleet, held: _Hold) -> None:
    if held.left_on is None:
        return
    if held.left_on:
        held.kernel.begin_claimed(fleet.config.host(held.left_on))
        return
    await held.kernel.check()
    held.kernel.begin()
