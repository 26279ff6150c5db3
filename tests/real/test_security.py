"""Who cannot read a kernel: other logins of the host or of this machine, neighbour containers. Each check can see.

The one who tries is tests/clients/intruder.py. What is written down somewhere: test_secrets.py. What a container may
do: test_hardening.py.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.channels.endpoints import NAMES
from tests.clients import intruder
from tests.clients.notebook import Notebook, notebook
from tests.rig.daemon import SLOW, wait_until
from tests.rig.lab import USERS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)

OTHER_UID = next(user.uid for user in USERS if user.name == "kbother")
OWN_UID = next(user.uid for user in USERS if user.name == "kbtest")

# One that every login may run; what stands first on PATH may be of one user alone.
PYTHON = "/usr/bin/python3"

# What a kernel has that nobody else may read; each name's text is new in each run.
MARKERS = {name: f"{name}-{secrets.token_hex(8)}" for name in ("token", "env", "passed", "output")}
PRINTING = f"""
import threading, time
def _print():
    while True:
        print({MARKERS["output"]!r}, flush=True)
        time.sleep(0.05)
threading.Thread(target=_print, daemon=True).start()
"""
# The ports on which the kernel's process listens; what a process of its own prints, which comes by ipykernel's pipe.
OWN_LISTENING = """[row[1] for name in ("tcp", "tcp6") for row in map(str.split, open(f"/proc/net/{name}"))
    if row[3] == "0A" and f"socket:[{row[9]}]" in
    {__import__("os").readlink(path) for path in __import__("glob").glob("/proc/self/fd/*")
     if __import__("os").path.islink(path)}]"""
FORKED = """
import os
if (child := os.fork()) == 0:
    print("from a forked process", flush=True)
    os._exit(0)
os.waitpid(child, 0)
import time; time.sleep(0.5)
"""
# In a container of somebody's that keeps no secrets: a plain port, and a ZeroMQ one as a kernel's iopub would be.
OPEN_PORTS = f"""
import socket, threading, time, zmq
published = zmq.Context().socket(zmq.PUB)
published.bind("tcp://0.0.0.0:5555")
def serve():
    with socket.create_server(("0.0.0.0", 5556)) as server:
        print("open", flush=True)
        while True:
            near, _ = server.accept()
            with near:
                near.sendall({MARKERS["token"]!r}.encode())
threading.Thread(target=serve, daemon=True).start()
while True:
    published.send({MARKERS["output"]!r}.encode())
    time.sleep(0.02)
"""
OPEN_SOCKET = f"""
import os, socket
server = socket.socket(socket.AF_UNIX)
server.bind("/tmp/kernelbridge-test-open.sock")
os.chmod("/tmp/kernelbridge-test-open.sock", 0o666)
server.listen()
while True:
    near, _ = server.accept()
    with near:
        near.sendall({MARKERS["env"]!r}.encode())
"""
LISTENING = "[int(line.split()[1].rsplit(':', 1)[1], 16) for line in open('/proc/net/tcp') if line.split()[3] == '0A']"

# How long to listen where there is something to hear, in seconds; the kernel prints 20 times a second.
LISTEN = 0.3 * SLOW

Loot = dict[str, list[str]]


def intrude(words: Sequence[str], *, markers: Sequence[str] = tuple(MARKERS.values()), **wish: Any) -> Loot:
    """Send the intruder to where `words` lead; which markers it read, by place. `tried` holds how often it tried."""
    wish = {"markers": [marker[::-1] for marker in markers], **wish}
    text = Path(intruder.__file__).read_text().replace("WISH: dict[str, Any] = {}", f"WISH = {wish!r}")
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=60 * SLOW, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert answer["tried"], "the intruder tried nothing"
    return {place: sorted(found) for place, found in answer["found"].items()}


def as_login(uid: int) -> list[str]:
    """A login by its number alone: no groups, so no docker rights."""
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--", PYTHON, "-"]


def names(loot: Loot) -> dict[str, set[str]]:
    """The loot with the markers' names in place of their texts."""
    return {place: {text.split("-")[0] for text in texts} for place, texts in loot.items()}


@pytest.fixture(autouse=True)
def _environment(bridge_env: Laptop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", MARKERS["token"])
    monkeypatch.setenv("PASSED", MARKERS["passed"])
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def write_environment(rig: Rig, laptop: Laptop, **keys: Any) -> None:
    laptop.write_environment(
        keys.pop("image", rig.image), secrets=["HF_TOKEN"], pass_env=["PASSED"], env={"NOTE": MARKERS["env"]}, **keys
    )


@pytest.fixture
def printing(rig: Rig, bridge_env: Laptop) -> Iterator[Notebook]:
    """A kernel with a secret that prints all the time and whose debugger is on."""
    write_environment(rig, bridge_env)
    with notebook(bridge_env) as kernel:
        kernel.run(PRINTING)
        assert kernel.debug("initialize", clientID="test", adapterID="")["success"]
        yield kernel


def address_of(rig: Rig) -> str:
    """The kernel's container on docker's network."""
    return str(rig.engine.kernels()[0].attrs["NetworkSettings"]["IPAddress"])


@contextmanager
def laid_open(rig: Rig) -> Iterator[str]:
    """All the mistakes that we do not make, made on purpose with the same texts; yields the container's address."""
    rig.engine.cli(
        *("run", "-d", "--name", "kernelbridge-test-open", "-p", "127.0.0.1:5555:5555", "-p", "127.0.0.1:5556:5556"),
        *(rig.image, "python3", "-c", OPEN_PORTS),
    )
    note = rig.lab.path / "tmp" / "kernelbridge-test-open.txt"
    note.write_text(MARKERS["passed"])
    own = ["env", "-i", f"HF_TOKEN={MARKERS['token']}", *as_login(OTHER_UID)[:-2], "sleep", "600"]
    daemons = [rig.lab.start("open-socket", ["python3", "-c", OPEN_SOCKET]), rig.lab.start("open-process", own)]
    socket = rig.lab.path / "tmp" / "kernelbridge-test-open.sock"
    try:
        wait_until(socket.exists, "the open socket", 10)
        with rig.engine.client() as client:
            container = client.containers.get("kernelbridge-test-open")
            wait_until(lambda: b"open" in container.logs(), "the open ports", 10)
            yield container.attrs["NetworkSettings"]["IPAddress"]
    finally:
        for daemon in daemons:
            daemon.kill()
        note.unlink()
        socket.unlink(missing_ok=True)
        rig.engine.cli("rm", "-f", "kernelbridge-test-open")


def test_another_login_of_the_host_reads_nothing_by_port_socket_process_or_file(
    rig: Rig, bridge_env: Laptop, printing: Notebook
) -> None:
    ports = printing.value(LISTENING)
    assert ports, "the debugger listens in the container"
    everything = {
        "addresses": ["127.0.0.1", rig.lab.address, "172.17.0.1", address_of(rig)],
        "ports": ports,
        "unix": True,
        "processes": True,
        "folders": [str(rig.lab.path), "/run", "/tmp", "/dev/shm"],
    }
    other = bridge_env.ssh("lab-other", f"{PYTHON} -")
    assert intrude(other, **everything) == {}
    # The same eyes with root's rights see it all: the way in is right, and shut.
    root = names(intrude(rig.lab.inside([PYTHON, "-"]), processes=True, only_kernels=True, listen_seconds=LISTEN))
    assert root["process environ"] == {"token", "env", "passed"}
    assert root["relay's folder socket"] == {"output"}
    assert "output" in root["process memory"]
    with laid_open(rig):
        seen = names(intrude(other, **everything, listen_seconds=LISTEN))
    assert seen["port"] == {"output", "token"}
    assert seen["unix socket"] == {"env"}
    assert seen["process environ"] == {"token"}
    assert seen["file"] == {"passed"}


def test_a_neighbour_container_reads_nothing_and_no_frame_crosses_its_network(
    rig: Rig, bridge_env: Laptop, printing: Notebook
) -> None:
    sent = "int(open('/sys/class/net/eth0/statistics/tx_bytes').read())"
    before = printing.value(sent)
    printing.run("print('x' * 1_000_000)")
    assert printing.value(sent) - before < 10_000
    ports = printing.value(LISTENING)
    neighbour = ["docker", "--host", rig.engine.url, "run", "--rm", "-i", rig.image, "python3", "-"]
    kernel = address_of(rig)
    wish = {"ports": ports, "unix": True, "processes": True, "folders": ["/run", "/tmp", "/dev/shm"]}
    assert intrude(neighbour, addresses=[kernel, "172.17.0.1"], scan=[kernel], **wish) == {}
    with laid_open(rig) as address:
        assert names(intrude(neighbour, scan=[address], **wish, listen_seconds=LISTEN)) == {"port": {"output", "token"}}


def test_another_login_of_this_machine_reads_nothing_of_a_notebooks_kernel(
    bridge_env: Laptop, printing: Notebook
) -> None:
    session = printing.client.session
    markers = (*MARKERS.values(), session.key.decode())
    connection = Path(printing.manager.connection_file)
    link = Path(f"{printing.manager.ip}-{printing.manager.iopub_port}")
    sockets = link.resolve().parent
    assert stat.S_IMODE(connection.stat().st_mode) == 0o600
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    # Everything above them is open, so that what they keep shut is theirs.
    for folder in (bridge_env.home, connection.parent):
        folder.chmod(0o755)
    folders = [str(connection.parent), str(sockets)]
    assert intrude(as_login(OTHER_UID), markers=markers, folders=folders, pids=[os.getpid()]) == {}
    root = intrude([PYTHON, "-"], markers=markers, folders=folders, listen_seconds=LISTEN)
    assert root == {"file": [session.key.decode()], "file socket": [MARKERS["output"]]}
    # The very mistakes: a readable connection file, an open folder with open sockets.
    connection.chmod(0o644)
    for folder in (sockets.parent, sockets):
        folder.chmod(0o755)
    for name in NAMES:
        Path(f"{sockets}/s-{getattr(printing.manager, name + '_port')}").chmod(0o777)
    try:
        assert intrude(as_login(OTHER_UID), markers=markers, folders=folders, listen_seconds=LISTEN) == root
    finally:
        sockets.parent.chmod(0o700)


def test_the_relay_and_its_bridge_are_shut_even_to_processes_of_the_kernels_own_login(
    rig: Rig, bridge_env: Laptop
) -> None:
    write_environment(rig, bridge_env)
    with notebook(bridge_env) as kernel:
        # After a restart the order with the secret has come through the bridge as well.
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=30 * SLOW)
        kernel.run(PRINTING)
        inside = rig.lab.inside(as_login(OWN_UID))
        seen = names(intrude(inside, processes=True))
        root = names(intrude(rig.lab.inside([PYTHON, "-"]), processes=True, only_kernels=True, listen_seconds=LISTEN))
    # The kernel's own process is its login's: what the README says. It also shows that this check can see.
    assert {"token", "env", "passed"} <= seen["process environ"]
    assert "output" in seen["process memory"]
    assert not [place for place in seen if place.startswith(("relay memory", "relay environ", "bridge"))]
    assert "output" in root["relay memory"]
    assert "relay environ" not in root


def test_who_has_the_number_of_an_images_user_is_the_kernels_user_where_the_image_is_to_say(
    rig: Rig, bridge_env: Laptop
) -> None:
    namesake = rig.lab.inside(as_login(1000))
    seen: list[set[str]] = []
    for keys in ({"user": "image"}, {}):
        write_environment(rig, bridge_env, image=rig.user_image, **keys)
        with notebook(bridge_env) as kernel:
            kernel.run(PRINTING)
            found = names(intrude(namesake, processes=True))
            seen.append(set().union(*found.values()))
    # The first is what the README warns of.
    assert seen == [set(MARKERS), set()]


def test_on_the_hosts_network_the_debugger_is_off_and_nothing_listens(rig: Rig, bridge_env: Laptop) -> None:
    write_environment(rig, bridge_env, network="host")
    with notebook(bridge_env) as kernel:
        # Once while the kernel is not there yet, once when it is.
        assert not kernel.debug("initialize", clientID="test", adapterID="")["success"]
        assert kernel.value(OWN_LISTENING) == [], "ipykernel's own pipe is no port either"
        assert kernel.run(FORKED) == "from a forked process"
        kernel.run(PRINTING)
        refused = kernel.debug("initialize", clientID="test", adapterID="")
        assert not refused["success"]
        assert "Debugging is off in test: on the host's network, every login there could run code" in refused["message"]
        assert "debug_on_host_network = true" in refused["message"]
        other = bridge_env.ssh("lab-other", f"{PYTHON} -")
        assert intrude(other, addresses=["127.0.0.1", rig.lab.address], unix=True) == {}
    write_environment(rig, bridge_env, network="host", debug_on_host_network=True)
    with notebook(bridge_env) as kernel:
        assert kernel.debug("initialize", clientID="test", adapterID="")["success"]
        # What the key is a warning of: the other login finds the debugger.
        wait_until(
            lambda: "a debugger answers" in intrude(other, addresses=["127.0.0.1"]), "the debugger to be found", 30
        )
