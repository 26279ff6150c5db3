"""The argv process that VS Code starts for a local kernel spec: binds the given ports, holds one kernel, ends with it.

Asked by an editor. Jupyter's own way: provisioner.py. Which arguments are refused: entry.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import psutil

from kernelbridge import config as configs
from kernelbridge.channels import endpoints
from kernelbridge.channels.endpoints import EndpointInvalid, Endpoints
from kernelbridge.errors import ConnectionFileInvalid, EndpointTaken, KernelBridgeError, UnknownEnvironment
from kernelbridge.fleet import Fleet
from kernelbridge.kernel import Kernel

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
            wanted = fleet.wanted(name, kernel_id=str(uuid.uuid4()), environ=environ)
            kernel = fleet.run(fleet.bind(wanted, given))
        except OSError as exc:
            raise EndpointTaken(reason=str(exc)) from exc
        return _hold(fleet, kernel, watch)
    finally:
        fleet.close()


def _endpoints(connection_file: Path) -> Endpoints:
    try:
        written = json.loads(connection_file.read_text("utf-8"))
        if not isinstance(written, dict):
            raise ValueError("it is no JSON object")
        return endpoints.given(written)
    except (OSError, ValueError, EndpointInvalid) as exc:
        raise ConnectionFileInvalid(path=str(connection_file), reason=str(exc)) from exc


def _hold(fleet: Fleet, kernel: Kernel, watch: Watch) -> int:
    """Start the kernel and wait for its end or the editor's; nothing is left on the host after it."""
    start = fleet.submit(_start(kernel))
    try:
        while not watch.is_over():
            if start.done() and (failure := start.exception()) is not None:
                raise failure
            if kernel.exit_code is not None:
                return _complain(kernel.failure) if kernel.failure is not None else 0
        return 0
    finally:
        start.cancel()
        with contextlib.suppress(TimeoutError):
            fleet.run(fleet.drop(kernel), STOP_SECONDS)


async def _start(kernel: Kernel) -> None:
    await kernel.check()
    kernel.begin()
