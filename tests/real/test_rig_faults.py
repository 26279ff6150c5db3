"""Each fault of the line and of the engine does what its name says; who outlives them: test_cuts.py.

The rig's other real things: test_rig.py.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.proxy import TcpProxy
from tests.rig.whole import Rig

RATE = 1_000_000
BLOCK_BYTES = 8192


@pytest.fixture
def talking(bridge_env: Laptop) -> Iterator[subprocess.Popen[str]]:
    """A process on the far side that says back each line."""
    command = bridge_env.ssh("lab-proxied", "while read line; do echo $line; done")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    ) as process:
        assert echo(process, "up") == "up\n"
        yield process
        process.kill()


def echo(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    return process.stdout.readline()


def test_packets_lost_then_a_reset_swallow_first_and_end_the_connection_last(
    rig: Rig, talking: subprocess.Popen[str]
) -> None:
    carried, accepted = rig.proxy.carried_bytes, rig.proxy.accepted
    with rig.proxy.blackhole_then_reset():
        assert talking.stdin is not None
        talking.stdin.write("swallowed\n")
        with pytest.raises(subprocess.TimeoutExpired):
            talking.wait(timeout=0.5)
        assert rig.proxy.connections == 1
    assert talking.wait(timeout=5) == 255
    assert rig.proxy.carried_bytes == carried
    assert (rig.proxy.connections, rig.proxy.accepted) == (0, accepted)


def test_a_reset_ends_the_connections_of_now_and_welcomes_new_ones(
    rig: Rig, talking: subprocess.Popen[str], bridge_env: Laptop
) -> None:
    rig.proxy.reset()
    assert talking.wait(timeout=5) == 255
    answer = subprocess.run(bridge_env.ssh("lab-proxied", "echo", "back"), capture_output=True, text=True, check=False)
    assert answer.stdout == "back\n"


def test_a_killed_bridge_ends_its_exec_and_nothing_else(rig: Rig) -> None:
    with rig.engine.client() as client:
        client.containers.run(rig.image, ["sleep", "60"], name="kernelbridge-test-bridge", detach=True, init=True)
        sleep = ["docker", "-H", rig.engine.url, "exec", "kernelbridge-test-bridge", "python3", "-c"]
        # The command of a bridge ends with its relay's socket; here nobody listens there.
        command = [*sleep, "import time; time.sleep(60)", "/somewhere/relay.sock"]
        with subprocess.Popen(command) as joined:
            wait_until(lambda: len(rig.engine.bridges()) == 1, "the bridge", 10)
            rig.engine.kill_bridges()
            assert joined.wait(timeout=5 * SLOW) == 137
        assert rig.engine.bridges() == []
        assert client.containers.get("kernelbridge-test-bridge").status == "running"
    rig.engine.sweep()


def test_a_live_restart_is_another_dockerd_and_the_same_process_in_the_container(rig: Rig) -> None:
    with rig.engine.client() as client:
        beats = "import time\nfor n in range(10_000):\n    print(n, flush=True)\n    time.sleep(0.05)"
        client.containers.run(
            rig.image, ["python3", "-c", beats], name="kernelbridge-test-beats", detach=True, init=True
        )
        before = client.containers.get("kernelbridge-test-beats").attrs["State"]
    engine = rig.engine.pid
    rig.engine.restart_alive()
    assert rig.engine.pid != engine
    with rig.engine.client() as client:
        container = client.containers.get("kernelbridge-test-beats")
        after = container.attrs["State"]
        assert (after["Status"], after["Pid"], after["StartedAt"]) == ("running", before["Pid"], before["StartedAt"])
        said = len(container.logs().splitlines())
        wait_until(lambda: len(container.logs().splitlines()) > said, "the container to say more", 10)
    rig.engine.sweep()


def test_after_a_live_restart_the_engine_stops_with_its_containers_as_before(rig: Rig) -> None:
    rig.engine.restart_alive()
    with rig.engine.client() as client:
        client.containers.run(rig.image, ["sleep", "60"], name="kernelbridge-test-stops", detach=True, init=True)
    with rig.engine.stopped():
        pass
    with rig.engine.client() as client:
        assert client.containers.get("kernelbridge-test-stops").status == "exited"
    rig.engine.sweep()


@contextmanager
def one_way() -> Iterator[tuple[TcpProxy, socket.socket, socket.socket]]:
    """A proxy with one connection through it: its sender, whose own buffer is small, and its receiver."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = TcpProxy("127.0.0.1", server.getsockname()[1])
        try:
            with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BLOCK_BYTES)
                receiver, _ = server.accept()
                with receiver:
                    yield proxy, sender, receiver
        finally:
            proxy.close()


def receive(receiver: socket.socket, volume: int) -> bytes:
    received = bytearray()
    while len(received) < volume:
        piece = receiver.recv(1 << 16)
        assert piece
        received += piece
    return bytes(received)


def seconds_for(volume: int, sender: socket.socket, receiver: socket.socket) -> float:
    thread = threading.Thread(target=sender.sendall, args=(bytes(volume),))
    began = time.monotonic()
    thread.start()
    receive(receiver, volume)
    thread.join()
    return time.monotonic() - began


def test_a_limited_line_carries_so_many_bytes_a_second_and_a_free_one_more() -> None:
    with one_way() as (proxy, sender, receiver):
        with proxy.rate(RATE):
            limited = seconds_for(2 * RATE, sender, receiver)
        free = seconds_for(2 * RATE, sender, receiver)
    assert 1.9 < limited < 2.4 * SLOW
    assert free < limited / 2


def test_each_way_of_a_limited_line_has_its_own_width() -> None:
    with one_way() as (proxy, near, far), proxy.rate(RATE):
        threads = [threading.Thread(target=one.sendall, args=(bytes(RATE),)) for one in (near, far)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        back = threading.Thread(target=receive, args=(near, RATE))
        back.start()
        receive(far, RATE)
        for thread in (back, *threads):
            thread.join()
        assert 0.9 < time.monotonic() - began < 1.4 * SLOW


def test_a_limited_line_holds_little_itself() -> None:
    with one_way() as (proxy, sender, receiver), proxy.rate(RATE):
        volume = 2 * RATE
        sent_at: list[float] = []

        def send() -> None:
            for _ in range(volume // BLOCK_BYTES):
                sender.sendall(bytes(BLOCK_BYTES))
                sent_at.append(time.monotonic())

        thread = threading.Thread(target=send)
        thread.start()
        held: list[int] = []
        received = 0
        while received < volume // BLOCK_BYTES * BLOCK_BYTES:
            received += len(receiver.recv(1 << 16))
            held.append(len(sent_at) * BLOCK_BYTES - received)
        thread.join()
    # The proxy's queue and its sockets; the sender's own buffer is in it.
    # At nearly all times: a reader that waits for the processor finds more.
    assert statistics.median(held) < 96 << 10
