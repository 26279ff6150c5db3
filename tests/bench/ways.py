"""The ways to a kernel on the lab: ours twice, docker run, ssh -L. Each is fresh and ends with its block."""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import KernelManager

from tests.clients.specs import installed_spec
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

NAMES = ("shell", "iopub", "stdin", "control", "hb")
# The kernel's own ports in a baseline's container.
INSIDE = dict(zip(NAMES, range(5001, 5006), strict=True))
ANSWER_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A kernel that has answered its first execute request: its client, and what the start took."""

    client: BlockingKernelClient
    start_seconds: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything runs. `alias` is the ssh alias.

    lab, lab-proxied through the delay proxy, or lab-behind, for which lab-proxied is the jump host.
    """

    rig: Rig
    laptop: Laptop
    alias: str = "lab"


Way = Callable[[Place], AbstractContextManager[Reached]]


def _first_answer(connection: dict[str, object], began: float) -> Reached:
    client = BlockingKernelClient()
    client.load_connection_info(cast(KernelConnectionInfo, connection))
    client.start_channels(hb=False)
    wanted = client.execute("1")
    while client.get_shell_msg(timeout=ANSWER_SECONDS)["parent_header"].get("msg_id") != wanted:
        pass
    return Reached(client=client, start_seconds=time.perf_counter() - began)


def local_connection() -> dict[str, object]:
    """Ports and key of a kernel on this machine, as a client hands them out."""
    return _connection("127.0.0.1")


def _connection(ip: str) -> dict[str, object]:
    base = random.randrange(20000, 30000, 8)
    ports = {f"{name}_port": base + number for number, name in enumerate(NAMES)}
    return {**ports, "ip": ip, "transport": "tcp", "key": secrets.token_hex(), "signature_scheme": "hmac-sha256"}


@contextmanager
def _plain_container(place: Place, connection: dict[str, object], published_on: str) -> Iterator[None]:
    name = f"kernelbridge-test-bench-{secrets.token_hex(4)}"
    publish = [f"-p{published_on}:{connection[f'{one}_port']}:{INSIDE[one]}" for one in NAMES]
    kernel = ["python3", "-m", "ipykernel_launcher", "--ip=0.0.0.0", f"--Session.key={connection['key']}"]
    inside = [f"--{one}={port}" for one, port in INSIDE.items()]
    try:
        place.rig.engine.cli("run", "-d", "--init", "--name", name, *publish, place.rig.image, *kernel, *inside)
        yield
    finally:
        place.rig.engine.cli("rm", "-f", name)


@contextmanager
def docker_run(place: Place) -> Iterator[Reached]:
    """Baseline: docker run with published ports, no SSH."""
    connection = _connection(place.rig.lab.address)
    began = time.perf_counter()
    with _plain_container(place, connection, "0.0.0.0"):
        yield from _hold(_first_answer(connection, began))


@contextmanager
def ssh_tunnel(place: Place) -> Iterator[Reached]:
    """Baseline: a hand-made ssh -L with a remote command; with -N sshd would leave Nagle's algorithm on."""
    connection = _connection("127.0.0.1")
    began = time.perf_counter()
    forwards = [f"-L127.0.0.1:{connection[f'{n}_port']}:127.0.0.1:{connection[f'{n}_port']}" for n in NAMES]
    with _plain_container(place, connection, "127.0.0.1"):
        options = ["-oControlMaster=no", "-oControlPath=none", *forwards]
        tunnel = subprocess.Popen(place.laptop.ssh(place.alias, "sleep", "600", options=options))
        try:
            yield from _hold(_first_answer(connection, began))
        finally:
            tunnel.terminate()
            tunnel.wait(10)


@contextmanager
def launcher(place: Place) -> Iterator[Reached]:
    """Ours as VS Code starts it: a cold process for each kernel."""
    spec = installed_spec(place.laptop)
    connection = _connection("127.0.0.1")
    file = Path(place.laptop.runtime_dir) / f"bench-{secrets.token_hex(4)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(connection))
    argv = [str(file) if word == "{connection_file}" else word for word in spec.argv]
    began = time.perf_counter()
    process = subprocess.Popen(argv, env={**place.laptop.env, **spec.env})
    try:
        yield from _hold(_first_answer(connection, began))
    finally:
        process.terminate()
        process.wait(30)
        file.unlink()


@contextmanager
def provisioner(place: Place) -> Iterator[Reached]:
    """Ours as Jupyter starts it: in this process, modules loaded, the link open."""
    installed_spec(place.laptop)
    os.environ.update(place.laptop.variables)
    manager = KernelManager(kernel_name="kernelbridge-test")
    began = time.perf_counter()
    manager.start_kernel()
    try:
        yield from _hold(_first_answer(dict(manager.get_connection_info()), began))
    finally:
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def _hold(reached: Reached) -> Iterator[Reached]:
    try:
        yield reached
    finally:
        reached.client.stop_channels()
