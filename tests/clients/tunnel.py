"""What a user makes by hand: docker run with published ports, and `ssh -L` to them, started again whenever it ends.

The same as a baseline for speed: tests/bench/ways.py.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo

from kernelbridge.channels.endpoints import NAMES
from tests.clients.blocking import Client
from tests.clients.ports import free_port
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

_AGAIN = 'while :; do "$@"; sleep 0.1; done'


@contextmanager
def tunnelled(rig: Rig, laptop: Laptop, *, kernels: int) -> Iterator[list[Client]]:
    """So many kernels behind one tunnel through the proxy, each with a blocking client."""
    ports = [{f"{name}_port": free_port() for name in NAMES} for _ in range(kernels)]
    forwards = [f"-L127.0.0.1:{port}:127.0.0.1:{port}" for one in ports for port in one.values()]
    options = ["-oControlMaster=no", "-oControlPath=none", "-oExitOnForwardFailure=yes", "-oConnectTimeout=2"]
    with ExitStack() as undo:
        connections = [undo.enter_context(_container(rig, one)) for one in ports]
        ssh = laptop.ssh("lab-proxied", "sleep", "600", options=[*options, *forwards])
        tunnel = subprocess.Popen(
            ["sh", "-c", _AGAIN, "tunnel", *ssh],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        undo.callback(tunnel.wait, 10)
        undo.callback(os.killpg, tunnel.pid, signal.SIGTERM)
        yield [undo.enter_context(_client(connection)) for connection in connections]


@contextmanager
def _container(rig: Rig, ports: dict[str, int]) -> Iterator[dict[str, object]]:
    name, key = f"kernelbridge-test-tunnel-{secrets.token_hex(4)}", secrets.token_hex()
    publish = [f"-p127.0.0.1:{port}:{port}" for port in ports.values()]
    kernel = ["python3", "-m", "ipykernel_launcher", "--ip=0.0.0.0", f"--Session.key={key}"]
    inside = [f"--{one.removesuffix('_port')}={port}" for one, port in ports.items()]
    rig.engine.cli("run", "-d", "--init", "--name", name, *publish, rig.image, *kernel, *inside)
    try:
        yield {**ports, "ip": "127.0.0.1", "transport": "tcp", "key": key, "signature_scheme": "hmac-sha256"}
    finally:
        rig.engine.cli("rm", "-f", name)


@contextmanager
def _client(connection: dict[str, object]) -> Iterator[Client]:
    kernel = BlockingKernelClient()
    kernel.load_connection_info(cast(KernelConnectionInfo, connection))
    kernel.start_channels(hb=False)
    try:
        kernel.wait_for_ready(timeout=60 * SLOW)
        yield Client(kernel)
    finally:
        kernel.stop_channels()
