"""Rootless Docker as a host's engine: its root is the login, so what a cell writes into a mount is the login's."""

from __future__ import annotations

from tests.clients.notebook import notebook
from tests.real.conftest import require
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.next_debian import missing_next_debian
from tests.rig.rootless import LOGIN, rootless_docker
from tests.rig.whole import Rig


def test_a_kernel_under_rootless_docker_writes_into_mounts_as_its_login(rig: Rig, bridge_env: Laptop) -> None:
    require(missing_next_debian())
    data = rig.lab.home(LOGIN) / "data"
    rig.lab.run(["install", "-d", "-m", "700", "-o", LOGIN, "-g", LOGIN, str(data)])
    with rootless_docker(rig) as socket:
        host = {"ssh": "lab-rootless", "socket": socket}
        bridge_env.write_environment(rig.image, host=host, mounts=["./data:/data"], network="none")
        with notebook(bridge_env) as kernel:
            kernel.run("import os; open('/data/mine', 'w').write('x')")
            assert kernel.value("os.getuid()") == 0
            assert (data / "mine").stat().st_uid == data.stat().st_uid
            assert kernel.debug("debugInfo")["success"]
            kernel.manager.restart_kernel()
            kernel.client.wait_for_ready(timeout=60 * SLOW)
            assert kernel.value("open('/data/mine').read()") == "x"
