"""Each real thing and each fault of the rig does what its name says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import docker
import psutil
import pytest

from tests.rig.daemon import wait_until
from tests.rig.engine import LABEL
from tests.rig.lab import LOCK, PREFIX, cgroups_of
from tests.rig.laptop import Laptop
from tests.rig.proxy import TcpProxy
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

PING = "docker -H unix:///run/docker.sock version"


def ssh(laptop: Laptop, alias: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run OpenSSH's own client."""
    command = laptop.ssh(alias, *words, options=("-o", "ConnectTimeout=3"))
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_each_login_has_the_rights_its_name_says(rig: Rig, bridge_env: Laptop) -> None:
    assert ssh(bridge_env, "lab", "id -un; hostname").stdout.split() == ["kbtest", "lab"]
    assert ssh(bridge_env, "lab", PING).returncode == 0
    assert ssh(bridge_env, "lab-root", PING).returncode == 0
    assert "permission denied" in ssh(bridge_env, "lab-other", PING).stderr
    assert "permission denied" in ssh(bridge_env, "lab-sudo", PING).stderr
    assert "NOPASSWD" in ssh(bridge_env, "lab-sudo", "sudo", "-n", "-l").stdout


def test_the_made_machine_is_another_machine(rig: Rig, bridge_env: Laptop) -> None:
    assert ssh(bridge_env, "lab", f"test -e {bridge_env.home} && echo seen").stdout == ""
    assert ssh(bridge_env, "lab", "hostname").stdout.strip() != socket.gethostname()
    assert "kbtest" not in Path("/etc/passwd").read_text()


def test_a_cut_line_resets_refuses_and_comes_back(rig: Rig, bridge_env: Laptop) -> None:
    command = bridge_env.ssh("lab-proxied", "echo up; sleep 30")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sleeping:
        assert sleeping.stdout is not None
        assert sleeping.stdout.readline() == "up\n"
        assert rig.proxy.connections == 1
        with rig.proxy.cut():
            assert sleeping.wait(timeout=5) == 255
            assert "refused" in ssh(bridge_env, "lab-proxied", "true").stderr
    assert ssh(bridge_env, "lab-proxied", "echo back").stdout == "back\n"


def test_a_blackhole_swallows_and_gives_back(rig: Rig, bridge_env: Laptop) -> None:
    command = bridge_env.ssh("lab-proxied", "while read line; do echo $line; done")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as talking:
        assert talking.stdin is not None
        assert talking.stdout is not None
        talking.stdin.write("one\n")
        assert talking.stdout.readline() == "one\n"
        carried = rig.proxy.carried_bytes
        with rig.proxy.blackhole():
            talking.stdin.write("two\n")
            with pytest.raises(subprocess.TimeoutExpired):
                talking.wait(timeout=0.5)
            assert rig.proxy.carried_bytes == carried
        assert talking.stdout.readline() == "two\n"


def test_accept_then_close_is_a_connection_without_a_banner(rig: Rig, bridge_env: Laptop) -> None:
    with rig.proxy.accept_then_close(), socket.create_connection(("127.0.0.1", rig.proxy.port), timeout=5) as line:
        assert line.recv(64) == b""
    assert ssh(bridge_env, "lab-proxied", "echo back").stdout == "back\n"


@contextmanager
def echoed() -> Iterator[tuple[TcpProxy, socket.socket]]:
    """A proxy before a server that sends back what it gets, and a connection through it."""

    def echo(server: socket.socket) -> None:
        near, _ = server.accept()
        with near:
            while received := near.recv(1 << 18):
                near.sendall(received)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=echo, args=(server,))
        thread.start()
        proxy = TcpProxy("127.0.0.1", server.getsockname()[1])
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield proxy, line
        thread.join(timeout=10)
        proxy.close()


def round_trip_seconds(line: socket.socket) -> float:
    """The shortest of many: the line's own length, without this machine's pauses."""
    times = []
    for _ in range(30):
        began = time.perf_counter()
        line.sendall(b"x")
        line.recv(1)
        times.append(time.perf_counter() - began)
    return min(times)


def test_a_delay_is_its_round_trip() -> None:
    with echoed() as (proxy, line):
        assert round_trip_seconds(line) < 0.01
        with proxy.delay(0.05):
            assert 0.05 <= round_trip_seconds(line) < 0.06
        assert round_trip_seconds(line) < 0.01


def test_a_long_line_is_as_wide_as_a_short_one() -> None:
    volume = 64 << 20
    seconds: list[float] = []
    with echoed() as (proxy, line), proxy.delay(0.05):
        # The best of some: a proxy that limits is slow each time, a machine that others use is not.
        while len(seconds) < 10 and min(seconds, default=9.0) > volume / (160 << 20):
            sender = threading.Thread(target=line.sendall, args=(bytes(volume),))
            began = time.perf_counter()
            sender.start()
            received = 0
            while received < volume:
                received += len(line.recv(1 << 20))
            seconds.append(time.perf_counter() - began)
            sender.join()
    # A window of 16 MiB at 50 ms is 320 MiB/s; the proxy must not be what limits it. Half, for a slow machine.
    assert volume / min(seconds) > (160 << 20)


def test_the_unplugged_cable_answers_nobody(rig: Rig, bridge_env: Laptop) -> None:
    with rig.lab.unplugged():
        assert ssh(bridge_env, "lab", "true").returncode == 255
    assert ssh(bridge_env, "lab", "echo back").stdout == "back\n"


def test_sshd_turns_away_in_each_way(rig: Rig, bridge_env: Laptop) -> None:
    forward = ("-o", "ExitOnForwardFailure=yes", "-W", "127.0.0.1:2222")

    def through() -> str:
        command = bridge_env.ssh("lab", options=forward)
        return subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=False).stdout

    assert "SSH-2.0" in through()
    with rig.sshd.forwarding_forbidden():
        assert "SSH-2.0" not in through()
        assert ssh(bridge_env, "lab", "echo yes").stdout == "yes\n"
    with rig.sshd.login_refused():
        assert "Permission denied" in ssh(bridge_env, "lab", "true").stderr
    with rig.sshd.key_changed():
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in ssh(bridge_env, "lab", "true").stderr
    with rig.sshd.stopped():
        assert "refused" in ssh(bridge_env, "lab", "true").stderr
    assert "SSH-2.0" in through()


def test_killed_connections_end_at_once(rig: Rig, bridge_env: Laptop) -> None:
    command = bridge_env.ssh("lab", "echo up; sleep 30")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as sleeping:
        assert sleeping.stdout is not None
        assert sleeping.stdout.readline() == "up\n"
        rig.sshd.kill_connections()
        assert sleeping.wait(timeout=5) == 255


def test_a_container_sees_the_stand_in_gpus_it_was_given(rig: Rig) -> None:
    with rig.engine.client() as client:
        wish = docker.types.DeviceRequest(device_ids=[UUIDS[1]], capabilities=[["gpu"]])
        seen = client.containers.run(rig.image, ["nvidia-smi", "-L"], device_requests=[wish], remove=True)
    assert seen.decode() == f"GPU 1: Stand-in GPU (UUID: {UUIDS[1]})\n"


def test_the_machine_lists_its_stand_in_gpus(rig: Rig, bridge_env: Laptop) -> None:
    query = "nvidia-smi --query-gpu=index,uuid,memory.used --format=csv,noheader,nounits"
    rig.engine.gpus.occupy(UUIDS[0])
    assert ssh(bridge_env, "lab", query).stdout.splitlines() == [
        f"{number}, {uuid}, {4096 if number == 0 else 1}" for number, uuid in enumerate(UUIDS)
    ]
    rig.engine.gpus.occupy()


def test_without_gpus_the_engine_refuses_them(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.without_gpus():
        with rig.engine.client() as client, pytest.raises(docker.errors.APIError, match="could not select device"):
            wish = docker.types.DeviceRequest(count=1, capabilities=[["gpu"]])
            client.containers.run(rig.image, ["true"], device_requests=[wish], remove=True)
        rig.engine.sweep()
        assert ssh(bridge_env, "lab", "nvidia-smi").returncode == 127
    assert ssh(bridge_env, "lab", "nvidia-smi", "-L").returncode == 0


def test_a_rootless_socket_is_its_users_only_engine(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.only_rootless() as path:
        assert ssh(bridge_env, "lab-rootless", f"docker -H unix://{path} version").returncode == 0
        assert ssh(bridge_env, "lab", f"docker -H unix://{path} version").returncode != 0
        assert ssh(bridge_env, "lab-rootless", PING).returncode != 0
    assert ssh(bridge_env, "lab", PING).returncode == 0


def test_a_stopped_engine_does_not_answer(rig: Rig, bridge_env: Laptop) -> None:
    with rig.engine.stopped():
        assert "Cannot connect" in ssh(bridge_env, "lab", PING).stderr
    assert ssh(bridge_env, "lab", PING).returncode == 0


def test_the_slow_engine_delays_refuses_and_passes_upgrades(rig: Rig, bridge_env: Laptop) -> None:
    with rig.slow_engine() as slow:
        docker_there = f"docker -H unix://{slow.path}"
        with slow.delays("POST /containers/create", 1.0):
            began = time.monotonic()
            assert ssh(bridge_env, "lab", f"{docker_there} run --rm {rig.image} echo made").stdout == "made\n"
            assert time.monotonic() - began > 1
        with slow.answers(500, "POST /containers/create", "no space left"):
            assert "no space left" in ssh(bridge_env, "lab", f"{docker_there} run --rm {rig.image} true").stderr
        # An attached stdin is an upgraded stream.
        echoed = ssh(bridge_env, "lab", f"echo through | {docker_there} run --rm -i {rig.image} cat")
        assert echoed.stdout == "through\n"
        assert any(line.startswith("POST /containers/create") for line in slow.requests)


def test_leftovers_are_found_by_label_and_swept(rig: Rig) -> None:
    with rig.engine.client() as client:
        client.containers.create(rig.image, ["true"], name="kernelbridge-test-left", labels={LABEL: "0"})
    assert [container.name for container in rig.engine.kernels()] == ["kernelbridge-test-left"]
    assert "kernelbridge-test-left" in rig.engine.report()
    assert rig.engine.sweep() == ["kernelbridge-test-left"]


@pytest.mark.parametrize(
    ("image", "prints"),
    [("kernel", "has ipykernel"), ("bare", "has python"), ("nopython", "has sh"), ("user", "uid 1000")],
)
def test_each_image_has_what_its_name_says(rig: Rig, image: str, prints: str) -> None:
    look = (
        "[ $(id -u) = 1000 ] && echo uid 1000 && exit; python3 -c 'import ipykernel, ipywidgets' 2>/dev/null"
        " && echo has ipykernel && exit; python3 -c '' 2>/dev/null && echo has python && exit; echo has sh"
    )
    with rig.engine.client() as client:
        seen = client.containers.run(f"kernelbridge-test/{image}:1", ["sh", "-c", look], remove=True)
    assert seen.decode().strip() == prints


def test_a_killed_run_leaves_no_process_and_no_cable(rig: Rig) -> None:
    script = (
        "import sys, time; from tests.rig.lab import Lab; lab = Lab(); lab.start('sleep', ['sleep', '600']);"
        "[time.sleep(0.02) for _ in iter(lambda: len(lab.processes()) < 2, False)];"
        "print(lab.interface, lab.path, *(one.pid for one in lab.processes()), flush=True);"
        "sys.stdin.read()"
    )
    project = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=project, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        interface, path, *pids = run.stdout.readline().split()
        assert len(pids) >= 2
        run.kill()
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids), "the machine's processes to be gone", 10)
    wait_until(lambda: interface not in psutil.net_if_addrs(), "the cable to be gone", 10)
    # The files go when the next machine is made, a minute later; here at once.
    shutil.rmtree(path)


def test_many_runs_sweep_what_a_killed_run_left_at_once(rig: Rig) -> None:
    with rig.engine.client() as client:
        client.containers.run("kernelbridge-test/bare:1", ["true"], remove=True)
    hierarchies = [top.parent for top in cgroups_of(rig.lab.cgroup)]
    assert hierarchies
    left = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/var/tmp"))
    lock = left / LOCK
    lock.touch()
    (left / "engine" / "overlay2").mkdir(parents=True)
    os.utime(lock, (time.time() - 120, time.time() - 120))
    for hierarchy in hierarchies:
        for number in range(50):
            (hierarchy / left.name / f"container{number}" / "below").mkdir(parents=True, exist_ok=True)
    script = (
        "import sys; from tests.rig.lab import sweep_dead; print('ready', flush=True); sys.stdin.readline();"
        "sweep_dead()"
    )
    command = [sys.executable, "-c", script]
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=Path(__file__).parents[2],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("go\n")
            run.stdin.flush()
        assert [run.communicate(timeout=60)[1] for run in runs] == ["", "", ""]
    assert not left.exists()
    assert cgroups_of(left.name) == []
