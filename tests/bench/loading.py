"""What a user waits for before anything is done: a whole process of ours beside one of Python that does nothing."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.ways import ANSWER_SECONDS, NAMES, Place, local_connection
from tests.clients.specs import installed_spec

PROGRAM = Path(sys.executable).with_name("kernelbridge")
# This machine's engine is the only host, and it is not there: what is measured is what ours takes, not Docker's.
LOCAL_CONFIG = '[hosts.here]\nssh = "local"\nsocket = "/nowhere/docker.sock"\n'


def _environ(place: Place) -> dict[str, str]:
    """The login's variables, with compiled files as an installed package has them; the first pair writes them."""
    compiled = str(Path(place.laptop.runtime_dir) / "bench-compiled")
    return {**place.laptop.env, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}


def _seconds(place: Place, *argv: str, **variables: str) -> float:
    environ = {**_environ(place), **variables}
    began = time.perf_counter()
    subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    return time.perf_counter() - began


def python(place: Place) -> float:
    """Baseline: Python starts and ends, in seconds."""
    return _seconds(place, sys.executable, "-c", "pass")


def command(*words: str) -> Callable[[Place], float]:
    """Ours: a call of `kernelbridge` that needs no SSH, in seconds."""

    def measured(place: Place) -> float:
        config = Path(place.laptop.runtime_dir) / f"bench-{secrets.token_hex(4)}.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(LOCAL_CONFIG)
        try:
            return _seconds(place, str(PROGRAM), *words, KERNELBRIDGE_CONFIG=str(config))
        finally:
            config.unlink()

    return measured


def listing(word: str) -> Callable[[Place], float]:
    """Ours: a call of `kernelbridge ps` or the like that asks the host, in seconds."""
    return lambda place: _seconds(place, str(PROGRAM), word)


def ssh_true(place: Place) -> float:
    """Baseline: `ssh HOST true`, in seconds."""
    return _seconds(place, *place.laptop.ssh(place.alias, "true"))


def bound_launcher(place: Place) -> float:
    """Ours: VS Code's launcher until its five ports accept, in seconds."""
    spec = installed_spec(place.laptop)
    connection = local_connection()
    file = Path(place.laptop.runtime_dir) / f"bench-{secrets.token_hex(4)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(connection))
    argv = [str(file) if word == "{connection_file}" else word for word in spec.argv]
    began = time.perf_counter()
    process = subprocess.Popen(argv, env={**_environ(place), **spec.env}, stderr=subprocess.DEVNULL)
    try:
        for name in NAMES:
            _wait_bound(int(str(connection[f"{name}_port"])), began + ANSWER_SECONDS)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)
        file.unlink()


def _wait_bound(port: int, until: float) -> None:
    while time.perf_counter() < until:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.002)
    raise TimeoutError(f"nobody listens on port {port}")
