"""The launcher as an editor starts it, in a process of its own that a test may stop, kill or ask to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.connect import write_connection_file

from kernelbridge.channels.endpoints import NAMES
from kernelbridge.jupyter import kernelspecs
from tests.clients.blocking import Client, connected
from tests.clients.ports import free_port
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop


class Launched:
    """One launcher process with the connection file that it was given."""

    def __init__(self, laptop: Laptop, environment: str, folder: Path, **variables: str) -> None:
        self.connection_file = str(laptop.runtime_dir / f"kernel-v2-{uuid.uuid4()}.json")
        ports: dict[str, Any] = {f"{name}_port": free_port() for name in NAMES}
        write_connection_file(self.connection_file, ip="127.0.0.1", key=uuid.uuid4().hex.encode(), **ports)
        self._errors = Path(self.connection_file).with_suffix(".stderr")
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(kernelspecs.launcher_path()), "-f", self.connection_file],
                env={**laptop.env, "KERNELBRIDGE_ENVIRONMENT": environment, **variables},
                stdin=subprocess.DEVNULL,
                stderr=errors,
                cwd=folder,
            )

    def __repr__(self) -> str:
        return f"<Launched {self.process.pid} {self.process.poll()} {self.told!r}>"

    @contextmanager
    def client(self, *, ready: bool = True) -> Iterator[Client]:
        """A stock client of its kernel, as soon as the launcher has bound its ports."""
        ports = json.loads(Path(self.connection_file).read_text())
        wait_until(lambda: all(is_bound(ports[f"{name}_port"]) for name in ("hb", "shell")), "the launcher's ports", 30)
        with connected(self.connection_file, ready=ready) as client:
            yield client

    @property
    def told(self) -> str:
        """What its stderr says, without its line ends."""
        return " ".join(self._errors.read_text().split())

    def end(self, *, seconds: float = 10) -> float:
        """Ask it to end as VS Code does; how many seconds that took. Raises TimeoutExpired."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(seconds * SLOW)
        return time.monotonic() - began

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(10)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """It stands still, as on a laptop whose lid is closed."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def launched(
    laptop: Laptop, environment: str = "test", *, folder: Path | None = None, **variables: str
) -> Iterator[Launched]:
    """A launcher, in the user's home or another notebook's folder; ended in the end, if a test has not done it."""
    one = Launched(laptop, environment, folder or laptop.home, **variables)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            os.kill(one.process.pid, signal.SIGCONT)
            one.end(seconds=40)


def is_bound(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
