"""What a user types, and what an editor starts: the command line and the launcher, as processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelbridge.channels.endpoints import NAMES
from tests.clients.ports import free_port
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that has ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """What stderr says, without its line ends: what VS Code shows of a launcher."""
        return " ".join(self.err.split())

    @property
    def json(self) -> Any:
        """What stdout says as JSON."""
        return json.loads(self.out)


class Command:
    """A process that runs until `finish`; leaving the `with` block ends it as an editor would, with SIGTERM."""

    def __init__(self, words: list[str], *, env: dict[str, str], machine: Sequence[str] = ()) -> None:
        """`machine` are the words that run a command on another machine: see machines.py."""
        self.process = subprocess.Popen(
            [*machine, sys.executable, "-m", *words],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, typed: str = "", *, seconds: float = 60) -> Ended:
        """Wait for its end; `typed` is its stdin."""
        out, err = self.process.communicate(typed, timeout=seconds * SLOW)
        return Ended(code=self.process.returncode, out=out, err=err)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=20 * SLOW)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def begin(laptop: Laptop, *words: str, machine: Sequence[str] = ()) -> Command:
    """`kernelbridge WORDS`, started."""
    return Command(["kernelbridge", *words], env=laptop.env, machine=machine)


def kernelbridge(
    laptop: Laptop, *words: str, typed: str = "", seconds: float = 60, machine: Sequence[str] = ()
) -> Ended:
    """`kernelbridge WORDS`, run to its end."""
    with begin(laptop, *words, machine=machine) as command:
        return command.finish(typed, seconds=seconds)


def write_connection_file(folder: Path) -> Path:
    """What VS Code writes before it starts a launcher."""
    ports = {f"{name}_port": free_port() for name in NAMES}
    chosen = {"ip": "127.0.0.1", "transport": "tcp", "key": "5d5b", "signature_scheme": "hmac-sha256"}
    path = folder / f"kernel-v2-{uuid.uuid4().hex[:8]}.json"
    path.write_text(json.dumps({**chosen, **ports}))
    path.chmod(0o600)
    return path


def wait_bound(connection_file: Path) -> None:
    """Return when the ports of a connection file are listened on; a client that comes before gives up at once."""
    port = json.loads(connection_file.read_text())["hb_port"]

    def is_bound() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(is_bound, "the launcher's ports", 20)


@contextmanager
def launched(laptop: Laptop, connection_file: Path | None = None, **env: str) -> Iterator[Command]:
    """The launcher of environment `test`, as VS Code starts it."""
    file = connection_file or write_connection_file(laptop.runtime_dir)
    whole = {**laptop.env, **{name: os.environ[name] for name in env if name in os.environ}}
    whole |= {"KERNELBRIDGE_ENVIRONMENT": "test", **env}
    with Command(["kernelbridge.jupyter.entry", "-f", str(file)], env=whole) as command:
        yield command
