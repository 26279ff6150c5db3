"""Podman 5 as a host's engine, by its Docker-compatible socket: kernels, additions, builds and snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.clients.notebook import notebook
from tests.clients.terminal import kernelbridge
from tests.real.conftest import require
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.next_debian import missing_next_debian
from tests.rig.podman import SOCKET, PodmanRig
from tests.rig.whole import Rig

HOST: dict[str, Any] = {"ssh": "lab", "socket": SOCKET}


@pytest.fixture(scope="module")
def podman(rig: Rig) -> Iterator[PodmanRig]:
    require(missing_next_debian())
    with closing(PodmanRig(rig)) as engine:
        yield engine


def test_a_kernel_is_its_login_is_restarted_and_debugged_and_leaves_nothing(
    rig: Rig, podman: PodmanRig, bridge_env: Laptop
) -> None:
    data = rig.lab.home("kbtest") / "data"
    rig.lab.run(["install", "-d", "-o", "kbtest", "-g", "kbtest", str(data)])
    bridge_env.write_environment(rig.image, host=HOST, mounts=["./data:/data"], setup=["echo set up >/tmp/set-up"])
    with notebook(bridge_env) as kernel:
        kernel.run("import getpass, os; open('/data/mine', 'w').write('x')")
        assert kernel.value("(getpass.getuser(), os.path.expanduser('~'))") == ("kbtest", "/home/kbtest")
        assert (data / "mine").stat().st_uid == data.stat().st_uid
        assert kernel.debug("debugInfo")["success"]
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=60 * SLOW)
        assert kernel.run("print(open('/tmp/set-up').read())") == "set up\n"
        (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        assert row["state"] == "idle"
        said = kernelbridge(bridge_env, "snapshot", row["kernel_id"][:8], "mine:1")
        assert said.code == 0, said
    wait_until(lambda: podman.containers() == [], "the container to be gone", 20)
    bridge_env.write_environment("mine:1", host=HOST, pull="never")
    with notebook(bridge_env) as kernel:
        assert kernel.run("print(open('/tmp/set-up').read())") == "set up\n"
    wait_until(lambda: podman.containers() == [], "the container to be gone", 20)


def test_what_an_image_lacks_is_added_and_a_folder_is_built(rig: Rig, podman: PodmanRig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.bare_image, host=HOST, packages=["six<2"])
    with notebook(bridge_env) as kernel:
        kernel.run("import six")
        assert kernel.value("__import__('ipykernel').__file__").startswith("/opt/kernelbridge/packages/")
    folder = bridge_env.home / "project"
    folder.mkdir()
    # No RUN: Podman raises the limits of what it runs in a build, which not every machine of the tests allows.
    (folder / "Dockerfile").write_text(f"FROM {rig.image}\nCOPY word /built\n")
    (folder / "word").write_text("built")
    bridge_env.write_environment(None, host=HOST, build=str(folder))
    with notebook(bridge_env) as kernel:
        assert kernel.value("open('/built').read()") == "built"
    wait_until(lambda: podman.containers() == [], "the containers to be gone", 20)
