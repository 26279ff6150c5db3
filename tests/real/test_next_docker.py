"""The next Debian's Docker (26), where this one's is 20.10: a real upgrade under a running cell, and what is new in it.

With KERNELBRIDGE_TEST_ENGINE=next the machine of the other tests has it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.notebook import another, notebook
from tests.real.conftest import new_user, require
from tests.real.test_engine_changes import shown
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.next_debian import missing_next_debian
from tests.rig.rootless import sub_ids
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig, missing, open_rig

# The login's docker command is the new one's, with its buildx, which run on the libraries of their own Debian.
_DOCKER = '#!/bin/sh\nexec {lib}/ld-linux-x86-64.so.2 --library-path {lib} {program} "$@"\n'


@pytest.fixture(scope="module")
def machine() -> Iterator[Rig]:
    """A machine of its own, which starts with this Debian's Docker."""
    require(missing() or missing_next_debian())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv("KERNELBRIDGE_TEST_ENGINE", raising=False)
        with open_rig() as whole:
            yield whole


@pytest.fixture
def laptop(machine: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    with new_user(machine, monkeypatch) as user:
        yield user


def release(rig: Rig) -> int:
    return int(rig.engine.cli("version", "--format", "{{.Server.Version}}").split(".")[0])


def test_a_cell_runs_on_while_docker_is_upgraded_for_real(machine: Rig, laptop: Laptop) -> None:
    assert release(machine) < 25
    with notebook(laptop) as first:
        first.run("import time")
        counting = first.client.execute("for n in range(40):\n    print(n, flush=True)\n    time.sleep(0.2)")
        machine.engine.upgrade()
        machine.engine.restart_alive()
        assert release(machine) >= 25
        with another(laptop) as second:
            assert second.value("6 * 7") == 42
            assert second.debug("debugInfo")["success"]
            second.manager.restart_kernel()
            second.client.wait_for_ready(timeout=60 * SLOW)
            assert second.value("6 * 7") == 42
        wait_until(lambda: len(machine.engine.kernels()) == 1, "the container to be gone", 20)
        assert shown(first, counting) == [str(n) for n in range(40)]
        first.manager.restart_kernel()
        first.client.wait_for_ready(timeout=60 * SLOW)
        assert first.value("6 * 7") == 42
    wait_until(lambda: machine.engine.kernels() == [], "the container to be gone", 20)


def test_standin_cards_come_by_cdi_and_the_image_by_buildx(machine: Rig, laptop: Laptop) -> None:
    usr = machine.engine.upgrade()
    folder = machine.lab.path / "cdi"
    folder.mkdir()
    (folder / "nvidia.json").write_text(json.dumps(cdi(machine)))
    machine.engine.config |= {"features": {"cdi": True}, "cdi-spec-dirs": [str(folder)]}
    machine.engine.restart()
    lib = usr / "lib/x86_64-linux-gnu"
    programs = {
        "bin/docker": usr / "bin/docker",
        ".docker/cli-plugins/docker-buildx": usr / "libexec/docker/cli-plugins/docker-buildx",
    }
    shims = {name: _DOCKER.format(lib=lib, program=program) for name, program in programs.items()}
    project = laptop.home / "project"
    project.mkdir()
    dockerfile = f"FROM {machine.image}\nRUN --mount=type=cache,target=/c touch /c/built && echo built > /built\n"
    (project / "Dockerfile").write_text(dockerfile)
    home = machine.lab.home("kbtest")
    host: dict[str, Any] = {"ssh": "lab", "gpu_access": "cdi", "path": [str(home / "bin")]}
    with machine.lab.home_files("kbtest", shims):
        laptop.write_environment(None, host=host, gpus=1, build=str(project))
        with notebook(laptop) as kernel:
            kernel.run("import os, subprocess")
            assert kernel.value("open('/built').read()") == "built\n"
            (container,) = machine.engine.kernels()
            (request,) = container.attrs["HostConfig"]["DeviceRequests"]
            assert (request["Driver"], request["DeviceIDs"]) == ("cdi", [f"nvidia.com/gpu={UUIDS[0]}"])
            assert kernel.value("os.environ['STANDIN_CDI']") == UUIDS[0]
            assert UUIDS[0] in kernel.value("subprocess.check_output(['nvidia-smi', '-L'], text=True)")


def cdi(rig: Rig) -> dict[str, Any]:
    """What `nvidia-ctk cdi generate --device-name-strategy=uuid` would write, for STAND-IN cards."""
    smi = {"hostPath": str(rig.engine.gpus.folder / "nvidia-smi"), "containerPath": "/usr/bin/nvidia-smi"}
    devices = [
        {"name": uuid, "containerEdits": {"env": [f"STANDIN_CDI={uuid}", f"NVIDIA_VISIBLE_DEVICES={uuid}"]}}
        for uuid in UUIDS
    ]
    edits = {"mounts": [{**smi, "options": ["ro", "bind"]}]}
    return {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": edits}


def test_under_userns_remap_the_kernel_is_the_images_user_and_says_so(machine: Rig, laptop: Laptop) -> None:
    """No container has the login's number there."""
    machine.engine.upgrade()
    saved = machine.lab.path / "image.tar"
    machine.engine.cli("save", "--output", saved, machine.image)
    data = machine.lab.home("kbtest") / "data"
    machine.lab.run(["install", "-d", "-o", "kbtest", "-g", "kbtest", str(data)])
    with sub_ids(machine.lab, "kbtest", 300000):
        machine.engine.restart(options=["--userns-remap=kbtest"])
        assert release(machine) >= 25
        machine.engine.cli("load", "--input", saved)
        laptop.write_environment(machine.image, mounts=["./data:/data"])
        with notebook(laptop) as kernel:
            told = kernel.run("import os")
            assert "userns-remap" in told, told
            assert "you cannot write to the mount /data on lab" in told
            numbers = ["0", "300000", "65536"]
            assert kernel.value("(os.getuid(), open('/proc/self/uid_map').read().split())") == (0, numbers)
            assert kernel.debug("debugInfo")["success"]
        machine.engine.restart()
