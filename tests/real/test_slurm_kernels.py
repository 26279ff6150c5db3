"""Kernels as jobs of a real Slurm, whose containers are Docker's or rootless Podman's: cells, cards, and every end.

The four cards are STAND-INS; who gets which, and that a job's end ends all of it, is real.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.notebook import notebook
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)
SEEN = "subprocess.run(['nvidia-smi', '--query-gpu=uuid', '--format=csv,noheader'], capture_output=True, text=True)"


@pytest.fixture
def cluster(rig: Rig, slurm: SlurmRig, bridge_env: Laptop) -> Iterator[SlurmRig]:
    """The user's host `lab` is a login node; at the end nothing is left in the queue, and no process of a job."""
    bridge_env.write_environment(rig.image, host={"scheduler": "slurm", "runtime": "docker"}, gpus=2)
    yield slurm
    left = slurm.jobs()
    slurm.sweep()
    assert left == []


def test_a_cell_runs_in_a_container_inside_a_job_with_two_of_four_cards(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    with notebook(bridge_env) as kernel:
        assert kernel.value("6 * 7") == 42
        kernel.run("import os, subprocess")
        cards = kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",")
        assert len(cards) == 2 and set(cards) < set(UUIDS)
        assert kernel.value(f"{SEEN}.stdout").split() == sorted(cards)
        (container,) = rig.engine.kernels()
        assert container.status == "running"
        print(cluster.jobs())
    assert rig.engine.kernels() == []
