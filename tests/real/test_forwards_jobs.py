"""Ports of a container that a job of Slurm runs, on this machine. Those of Docker hosts: test_forwards.py."""

from __future__ import annotations

import urllib.request

import pytest

from tests.clients import webapp
from tests.clients.cluster import write_cluster
from tests.clients.notebook import notebook
from tests.clients.ports import free_port
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)


def test_a_port_of_a_job_without_a_network_is_reached(rig: Rig, cluster: SlurmRig, bridge_env: Laptop) -> None:
    here = free_port()
    write_cluster(bridge_env, rig, {"test": {"network": "none", "forwards": [f"{here}:6006"]}})
    with notebook(bridge_env) as kernel:
        assert "serves" in kernel.run(webapp.cell(6006, base="http://127.0.0.1:1/"))
        with urllib.request.urlopen(f"http://localhost:{here}/echo?a=1", timeout=30 * SLOW) as answer:
            assert answer.read() == b"asked /echo?a=1"
        with urllib.request.urlopen(f"http://localhost:{here}/download", timeout=30 * SLOW) as answer:
            assert len(answer.read()) == 5_000_000
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://localhost:{here}/", timeout=5)
