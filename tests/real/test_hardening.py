"""What a kernel's container may do and may not, seen from inside it; and whose containers are ours.

Who can read it: test_security.py. What is refused before a start: test_bad_input.py.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from kernelbridge.errors import ConfigInvalid
from kernelbridge.hosts.labels import LABEL_PREFIX, Labels
from kernelbridge.kernel import records
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
    # As root, who has most to lose.
    bridge_env.write_environment(rig.image, user="image", pids_limit=64, shm_size="96m")
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
    bridge_env.write_environment(rig.image, user="image", cap_add=[])
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
    *problems, _, _ = ended.err.splitlines()
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
        # Nor to the one that is used, whatever it is called, and the folders above it.
        with rig.slow_engine() as slow:
            host = {"ssh": "lab", "socket": str(slow.path)}
            bridge_env.write_environment(rig.image, host=host, mounts=["~/engine:/engine"])
            for above in (slow.path, slow.path.parent, slow.path.parent.parent):
                rig.lab.run(["ln", "-sfn", str(above), str(link)])
                with pytest.raises(ConfigInvalid, match=f"{above} may not be mounted: the engine's socket is there"):
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
        "birth": "",
        "user": "you",
        "gpus": UUIDS[0],
    }
    facts |= {
        "image": "x",
        "version": "1",
        "config": "",
        "keep_exited": "0",
        "lease": "all",
        "python": "",
        "unsafe": "",
        "kind": "kernel",
    }
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
        # By another name it is not ours to remove: that is said. Who made it removes it all the same, below.
        kernel_id = kernel.manager.provisioner.kernel_id
        rig.engine.cli("rename", f"kernelbridge-{kernel_id}", "moved")
        refused = kernelbridge(bridge_env, "stop", kernel_id)
        assert refused.code == 52
        assert "its container was renamed, and is moved now." in " ".join(refused.err.split())
        assert statuses(rig)["moved"] == "running"
    assert "moved" not in statuses(rig)
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


def test_the_engines_own_options_reach_the_container_and_what_takes_protections_away_is_shown(
    rig: Rig, bridge_env: Laptop
) -> None:
    wanted: dict[str, Any] = {
        "devices": ["/dev/zero:/dev/mine:r"],
        "dns": ["10.9.8.7"],
        "extra_hosts": ["data.lab:10.9.8.6", "here:host-gateway"],
        "hostname": "box",
        "sysctls": {"net.core.somaxconn": "99"},
        "container_runtime": "runc",
        "stop_timeout": 3,
        "security_opt": ["seccomp=unconfined"],
        "read_only": True,
        "engine_config": {"Domainname": "made", "HostConfig": {"PidMode": "host", "OomScoreAdj": 7}},
    }
    bridge_env.write_environment(rig.image, **wanted)
    ended = kernelbridge(bridge_env, "config")
    assert ended.code == 10
    for key in ("security_opt.0", "engine_config.HostConfig.PidMode"):
        assert f"environments.test.{key}: " in ended.err
    assert ended.err.count("only with `allow_unsafe = true`") == 2
    bridge_env.write_environment(rig.image, allow_unsafe=True, **wanted)
    with notebook(bridge_env) as kernel:
        kernel.run("import os, pathlib, socket, tempfile, subprocess\ntext = lambda path: open(path).read()")
        assert kernel.value("open('/dev/mine', 'rb').read(2)") == b"\0\0"
        assert "10.9.8.7" in kernel.value("text('/etc/resolv.conf')")
        assert kernel.value("socket.gethostbyname('data.lab'), socket.gethostname()") == ("10.9.8.6", "box")
        (container,) = rig.engine.kernels()
        assert container.attrs["HostConfig"]["ExtraHosts"] == wanted["extra_hosts"]
        assert kernel.value("text('/proc/sys/net/core/somaxconn')") == "99\n"
        status = kernel.value(STATUS)
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "1")
        assert int(status["CapBnd"], 16) == DEFAULT_CAPABILITIES
        with pytest.raises(CellFailed, match="Read-only file system"):
            kernel.run("open('/etc/x', 'w')")
        # All that a kernel needs to write is in memory, and can be run there.
        kernel.run("pathlib.Path.home().joinpath('x').write_text('x'); tempfile.mkdtemp()")
        kernel.run("open('/tmp/run', 'w').write('#!/bin/sh\\necho ran'); os.chmod('/tmp/run', 0o700)")
        assert kernel.value("subprocess.check_output('/tmp/run')") == b"ran\n"
        (container,) = rig.engine.kernels()
        facts = container.attrs["HostConfig"]
        assert (facts["PidMode"], facts["OomScoreAdj"], facts["Runtime"]) == ("host", 7, "runc")
        assert (container.attrs["Config"]["StopTimeout"], container.attrs["Config"]["Domainname"]) == (3, "made")
        (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        assert row["is_unsafe"]
        assert ", unsafe" in kernelbridge(bridge_env, "ps").out


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
    bridge_env.write_environment(rig.user_image, user="image")
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


def test_the_kernel_is_its_login_and_files_in_mounts_are_the_logins_unless_the_image_is_to_say(
    rig: Rig, bridge_env: Laptop
) -> None:
    folder = rig.lab.home("kbtest") / "data"
    own, teams, theirs = folder / "own", folder / "team", folder / "theirs"
    rig.lab.run(["install", "-d", "-m", "711", "-o", str(OWN_UID), "-g", str(OWN_UID), str(folder)])
    rig.lab.run(["install", "-d", "-m", "700", "-o", str(OWN_UID), "-g", str(OWN_UID), str(own)])
    # One that the login may write to because of another group of its own, and one that it may not.
    rig.lab.run(["install", "-d", "-m", "2770", "-o", "root", "-g", "docker", str(teams)])
    rig.lab.run(["install", "-d", "-m", "755", "-o", "root", "-g", "root", str(theirs)])
    mounts = [f"{path}:/mnt/{path.name}" for path in (own, teams, theirs)]
    # A new volume is the login's own; one with something in it stays as it is.
    rig.engine.cli("run", "--rm", "-u", "0", "-v", "test-full:/f", "--entrypoint", "touch", rig.image, "/f/file")
    more = ["test-new:/mnt/new", "test-full:/mnt/full", "./data/own:/mnt/again:ro,z"]
    with rig.engine.changed(rig.image, "WORKDIR /root", "ENV HOME=/root") as image:
        bridge_env.write_environment(image, mounts=[*mounts, *more], tmpfs=["/scratch:8m"], cache=True)
        with notebook(bridge_env) as kernel:
            told = kernel.run("import getpass, os, pathlib, subprocess, tempfile")
            assert "the kernel starts in /home/kbtest: your user may not enter /root" in told
            assert "you cannot write to the mount /mnt/theirs on lab (Permission denied)" in told
            assert "you cannot write to the mount /mnt/full on lab (Permission denied)" in told
            assert told.count("[kernelbridge: ") == 3
            kernel.run("open('/mnt/new/mine', 'w').write('x'); open('/scratch/mine', 'w').write('x')")
            assert kernel.value("os.stat('/mnt/new/mine').st_uid") == OWN_UID
            assert kernel.value("os.statvfs('/scratch').f_blocks * os.statvfs('/scratch').f_frsize") == 8 << 20
            assert kernel.value("(os.listdir('/mnt/again'), os.statvfs('/mnt/again').f_flag & os.ST_RDONLY)") == ([], 1)
            for name in ("own", "team"):
                kernel.run(f"open('/mnt/{name}/mine', 'w').write('x')")
                assert (folder / name / "mine").stat().st_uid == OWN_UID
                assert [one.name for one in (folder / name).iterdir()] == ["mine"], "the probe is gone"
            # Name, home and a place for temporary files: what libraries ask for.
            assert kernel.value("(getpass.getuser(), str(pathlib.Path.home()), os.getcwd())") == (
                "kbtest",
                "/home/kbtest",
                "/home/kbtest",
            )
            assert kernel.value("subprocess.check_output(['whoami'], text=True)") == "kbtest\n"
            kernel.run("tempfile.mkdtemp(); (pathlib.Path.home() / 'probe').write_text('x')")
            assert kernel.value("os.stat(pathlib.Path.home()).st_mode & 0o777") == 0o700
            assert kernel.debug("initialize", clientID="test", adapterID="")["success"]
            # What is cached is in one folder of the login's own.
            kernel.run("os.makedirs(os.environ['HF_HOME']); (pathlib.Path(os.environ['HF_HOME']) / 'model').touch()")
            caches = rig.lab.home("kbtest") / ".cache/kernelbridge/shared"
            assert (caches / "huggingface/model").stat().st_uid == OWN_UID
            assert (caches.stat().st_uid, caches.stat().st_mode & 0o777) == (OWN_UID, 0o700)
    bridge_env.write_environment(rig.image, mounts=mounts[:1], user="image")
    with notebook(bridge_env) as kernel:
        assert kernel.run("open('/mnt/own/roots', 'w').write('x')") == "1"
    # With DAC_OVERRIDE root may write into the login's folder, and what it writes is root's.
    assert (own / "roots").stat().st_uid == 0
    rig.lab.run(["rm", "-r", str(folder), str(caches)])
    rig.engine.cli("volume", "rm", "test-new", "test-full")


def test_a_read_only_mount_is_read_only(rig: Rig, bridge_env: Laptop) -> None:
    folder = rig.lab.home("kbtest") / "fixed"
    rig.lab.run(["install", "-d", str(folder)])
    bridge_env.write_environment(rig.image, mounts=["~/fixed:/data:ro"])
    with notebook(bridge_env) as kernel, pytest.raises(CellFailed, match="Read-only file system"):
        kernel.run("open('/data/x', 'w')")
    assert list(folder.iterdir()) == []
    rig.lab.run(["rmdir", str(folder)])
