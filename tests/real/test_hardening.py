"""What a kernel's container may do and may not, seen from inside it; and whose containers are ours.

Who can read it: test_security.py. What is refused before a start: test_bad_input.py.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from kernelbridge import records
from kernelbridge.container import LABEL_PREFIX, Labels
from kernelbridge.errors import ConfigInvalid
from tests.clients.notebook import CellFailed, notebook
from tests.clients.terminal import kernelbridge
from tests.rig.lab import USERS
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

OWN_UID = next(user.uid for user in USERS if user.name == "kbtest")
HOSTILE = "kernelbridge-test/hostile:1"
# CHOWN, DAC_OVERRIDE, FOWNER: their numbers in linux/capability.h are 0, 1 and 3.
DEFAULT_CAPABILITIES = 0b1011
STATUS = "dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)"
FORK_MANY = """
import os, time
made, failure = [], ""
for _ in range(200):
    try:
        pid = os.fork()
    except OSError as error:
        failure = error.strerror
        break
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    made.append(pid)
for pid in made:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""


def build(rig: Rig, name: str, recipe: str) -> None:
    folder = rig.lab.path / "build"
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(f"FROM {rig.image}\n{recipe}\n")
    rig.engine.cli("build", "-q", "-t", name, folder)


def statuses(rig: Rig) -> dict[str, str]:
    """The containers with our label, by name."""
    return {str(one.name): one.status for one in rig.engine.kernels()}


def test_capabilities_privileges_processes_core_files_and_shared_memory_are_limited_as_promised(
    rig: Rig, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.image, pids_limit=64, shm_size="96m")
    with notebook(bridge_env) as kernel:
        status = kernel.value(STATUS)
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            assert int(status[kind], 16) == DEFAULT_CAPABILITIES, kind
        assert int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        kernel.run("import os, resource")
        assert kernel.value("resource.getrlimit(resource.RLIMIT_CORE)") == (0, 0)
        assert kernel.value("(lambda found: found.f_blocks * found.f_frsize)(os.statvfs('/dev/shm'))") == 96 << 20
        kernel.run(FORK_MANY)
        made, failure = kernel.value("(len(made), failure)")
        assert made < 64
        assert failure == "Resource temporarily unavailable"
        # What root without these capabilities may not: other devices, other mounts, the clock, other users.
        for code, refusal in {
            "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))": "PermissionError",
            "os.setuid(1000)": "PermissionError",
            "os.chroot('/tmp')": "PermissionError",
            "import socket; socket.sethostname('x')": "PermissionError",
            "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0": "AssertionError",
        }.items():
            with pytest.raises(CellFailed, match=refusal):
                kernel.run(code)
    bridge_env.write_environment(rig.image, cap_add=[])
    with notebook(bridge_env) as kernel:
        assert int(kernel.value(STATUS)["CapEff"], 16) == 0


def test_an_image_that_wants_all_cards_gets_none_where_the_config_says_none(rig: Rig, bridge_env: Laptop) -> None:
    build(rig, HOSTILE, "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=all")
    bridge_env.write_environment(HOSTILE, gpus=0)
    with notebook(bridge_env) as kernel:
        kernel.run("import os")
        assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']") == "void"
    bridge_env.write_environment(HOSTILE, gpus=1)
    with notebook(bridge_env) as kernel:
        kernel.run("import os")
        assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']") == UUIDS[0]
    rig.engine.cli("rmi", "-f", HOSTILE)


def test_mounts_that_give_away_the_host_are_refused_by_the_config(rig: Rig, bridge_env: Laptop) -> None:
    refused = ["/", "/proc", "/proc/1", "/run", "/var/run", "/run/docker.sock", "/var/run/docker.sock"]
    refused += ["//run//docker.sock", "/run/user/1000", "/run/user/1000/docker.sock", "/run/podman/podman.sock"]
    mounts = [f"{source}:/host/{number}" for number, source in enumerate(refused)]
    bridge_env.write_environment(rig.image, mounts=[*mounts, "/srv:/srv"])
    ended = kernelbridge(bridge_env, "config")
    *problems, _ = ended.err.splitlines()
    assert (ended.code, len(problems)) == (10, len(refused))
    assert all(line.startswith(f"{bridge_env.config}: environments.test.mounts") for line in problems)
    assert all("may not be mounted" in line for line in problems)


def test_a_link_on_the_host_that_leads_to_the_engines_socket_is_refused_at_the_start(
    rig: Rig, bridge_env: Laptop
) -> None:
    link = rig.lab.home("kbtest") / "engine"
    bridge_env.write_environment(rig.image, mounts=["~/engine:/engine"])
    try:
        for target in ("/run", "/run/docker.sock", "/proc/1", "/"):
            rig.lab.run(["ln", "-sfn", target, str(link)])
            with pytest.raises(ConfigInvalid, match=r"~/engine: environments\.test\.mounts: .*may not be mounted"):
                notebook(bridge_env).__enter__()
            assert not rig.engine.kernels()
    finally:
        rig.lab.run(["rm", str(link)])


def test_a_container_is_ours_only_if_its_name_and_all_its_labels_say_so(rig: Rig, bridge_env: Laptop) -> None:
    ours = records.Records(records.default_folder()).machine_id()
    facts = {
        "kernel": "evil",
        "environment": "test",
        "owner": ours,
        "process": "1@1.00",
        "user": "you",
        "gpus": UUIDS[0],
    }
    facts |= {"image": "x", "version": "1", "config": "", "keep_exited": "0", "lease": "all"}
    assert facts.keys() >= {field.name for field in fields(Labels)}
    build(rig, HOSTILE, "\n".join(f'LABEL {LABEL_PREFIX}{key}="{text}"' for key, text in facts.items()))
    rig.engine.cli("run", "-d", "--name", "innocent", HOSTILE, "sleep", "600")
    rig.engine.cli("run", "--name", "ended", HOSTILE, "true")
    # The engine's own search does find them, and so would we by labels alone.
    assert statuses(rig) == {"innocent": "running", "ended": "exited"}
    listed = kernelbridge(bridge_env, "ps", "--json").json
    assert listed == {"kernels": [], "problems": []}
    assert kernelbridge(bridge_env, "clean", "--json").json["kernels"] == []
    assert kernelbridge(bridge_env, "stop", "--all").code == 0
    assert kernelbridge(bridge_env, "stop", "evil").code == 52
    assert statuses(rig) == {"innocent": "running", "ended": "exited"}
    # A kernel of ours from that image has our labels, and the image's own changed nothing.
    bridge_env.write_environment(HOSTILE)
    with notebook(bridge_env) as kernel:
        listed = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        assert kernel.manager.provisioner is not None
        assert [(row["kernel_id"], row["gpus"], row["is_orphan"]) for row in listed] == [
            (kernel.manager.provisioner.kernel_id, [], False)
        ]
    # The same labels on containers of the right name are what is ours: this check can see it. One is done with and
    # swept; the other looks like an orphan, whose relay does not say what it has.
    rig.engine.cli("rename", "ended", "kernelbridge-evil")
    assert kernelbridge(bridge_env, "ps", "--json").json == {"kernels": [], "problems": []}
    assert statuses(rig) == {"innocent": "running"}
    rig.engine.cli("rename", "innocent", "kernelbridge-evil")
    kept = kernelbridge(bridge_env, "clean", "--json").json
    assert (kept["kernels"], len(kept["problems"])) == ([], 1)
    assert "The kernel evil on lab does not say whether it has output" in kept["problems"][0]["sentence"]
    cleaned = kernelbridge(bridge_env, "clean", "--discard", "--json").json["kernels"]
    assert [row["kernel_id"] for row in cleaned] == ["evil"]
    assert rig.engine.kernels() == []
    rig.engine.cli("rmi", "-f", HOSTILE)


def test_a_kernel_needs_no_network(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, network="none")
    with notebook(bridge_env) as kernel:
        kernel.run("import socket")
        assert kernel.value("[name for _, name in socket.if_nameindex()]") == ["lo"]
        assert kernel.debug("initialize", clientID="test", adapterID="")["success"]
        with pytest.raises(CellFailed, match="OSError"):
            kernel.run("socket.create_connection(('172.17.0.1', 22), timeout=1)")


def test_an_image_with_a_user_of_its_own_runs_as_that_user_and_gains_nothing_by_setuid(
    rig: Rig, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.user_image)
    with notebook(bridge_env) as kernel:
        kernel.run("import os, subprocess")
        assert kernel.value("(os.getuid(), os.getcwd(), os.environ['HOME'])") == (1000, "/home/jovyan", "/home/jovyan")
        assert int(kernel.value(STATUS)["CapEff"], 16) == 0
        kernel.run("open('mine', 'w').write('x')")
        # /usr/bin/su belongs to root and is setuid; with it or any other such file one stays who one is.
        kernel.run("import stat; assert os.stat('/usr/bin/su').st_mode & stat.S_ISUID")
        kernel.run("process = subprocess.Popen(['su', '-c', 'id'], stdin=subprocess.PIPE, stdout=-3, stderr=-3)")
        kernel.run("import time; time.sleep(0.2); status = open(f'/proc/{process.pid}/status').read()")
        assert "Uid:\t1000\t1000\t1000\t1000" in kernel.run("print(status)")
        kernel.run("process.kill(); process.wait()")
        assert kernel.debug("initialize", clientID="test", adapterID="")["success"]


def test_files_in_a_mount_belong_to_the_login_with_user_host(rig: Rig, bridge_env: Laptop) -> None:
    folder = rig.lab.home("kbtest") / "data"
    rig.lab.run(["install", "-d", "-m", "700", "-o", str(OWN_UID), "-g", str(OWN_UID), str(folder)])
    owners: list[int] = []
    choices: tuple[dict[str, Any], ...] = ({"user": "host"}, {})
    for keys in choices:
        bridge_env.write_environment(rig.image, mounts=["~/data:/data"], **keys)
        with notebook(bridge_env) as kernel:
            kernel.run(f"import os; open('/data/{len(owners)}', 'w').write('x')")
            owners.append((folder / str(len(owners))).stat().st_uid)
            # Home, name and a place for temporary files: what libraries ask for.
            assert kernel.run("import getpass, tempfile, pathlib; getpass.getuser(); tempfile.mkdtemp()")
            kernel.run("(pathlib.Path.home() / 'probe').write_text('x')")
    # As root by default: with DAC_OVERRIDE it may write into the login's folder, and what it writes is root's.
    assert owners == [OWN_UID, 0]
    rig.lab.run(["rm", "-r", str(folder)])


def test_a_read_only_mount_is_read_only(rig: Rig, bridge_env: Laptop) -> None:
    folder = rig.lab.home("kbtest") / "fixed"
    rig.lab.run(["install", "-d", str(folder)])
    bridge_env.write_environment(rig.image, mounts=["~/fixed:/data:ro"])
    with notebook(bridge_env) as kernel, pytest.raises(CellFailed, match="Read-only file system"):
        kernel.run("open('/data/x', 'w')")
    assert list(folder.iterdir()) == []
    rig.lab.run(["rmdir", str(folder)])
