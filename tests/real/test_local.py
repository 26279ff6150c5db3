"""A laptop with Docker of its own: the same kernels without SSH. Over SSH: all other files here."""

from __future__ import annotations

import platform

from tests.clients.blocking import started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

HOST_NAME = "import platform\nprint(platform.node(), end='')"


def test_a_kernel_on_this_machines_own_engine_starts_restarts_and_goes_without_ssh(
    rig: Rig, bridge_env: Laptop
) -> None:
    bridge_env.write_config(
        f'[hosts.here]\nssh = "local"\nsocket = "{rig.engine.socket}"\n\n[environments.test]\nimage = "{rig.image}"\n'
    )
    write_specs(bridge_env)
    logins = rig.sshd.arrivals
    with fleet_closed_after(bridge_env), started() as (manager, client):
        name = client.run(HOST_NAME).text
        (container,) = rig.engine.kernels()
        assert name == (container.id or "")[:12] != platform.node()[:12]
        client.run("kept = 1")
        manager.restart_kernel()
        client.kernel.wait_for_ready(timeout=30)
        assert client.run("'kept' in globals()").result == "False"
        assert client.run(HOST_NAME).text == name
    assert rig.engine.kernels() == []
    assert rig.sshd.arrivals == logins


def test_the_same_environment_runs_here_and_there(rig: Rig, bridge_env: Laptop) -> None:
    socket = rig.engine.socket
    bridge_env.write_config(
        f'[hosts.local]\nssh = "local"\nsocket = "{socket}"\n\n[hosts.lab]\nssh = "lab"\n\n'
        f'[environments.test]\nimage = "{rig.image}"\nhosts = ["lab", "local"]\ngpus = {{ wanted = 64, min = 0 }}\n'
    )
    for words in (["--host", "local"], ["--host", "lab"], []):
        ended = kernelbridge(bridge_env, "run", *words, "test", "--", "sh", "-c", "echo here; exit 5")
        assert (ended.code, ended.out) == (5, "here\n"), ended.err
    unknown = kernelbridge(bridge_env, "run", "--host", "lib", "test", "--", "true")
    assert "Did you mean `lab`?" in unknown.err
