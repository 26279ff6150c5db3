"""`kernelbridge run`, `exec` and `up` on a real Slurm: each is a job, with the same promises."""

from __future__ import annotations

import pytest

from tests.clients.cluster import write_cluster
from tests.clients.terminal import kernelbridge
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)


def test_a_command_is_a_job_with_its_exit_code(rig: Rig, cluster: SlurmRig, bridge_env: Laptop) -> None:
    write_cluster(bridge_env, rig, {"test": {"gpus": 1}})
    script = 'echo "job $SLURM_JOB_ID"; nvidia-smi -L; exit 3'
    ended = kernelbridge(bridge_env, "run", "test", "--", "sh", "-c", script, seconds=120)
    assert ended.code == 3, ended.err
    assert ended.out.count("(UUID: GPU-") == 1
    assert cluster.jobs() == []


def test_a_detached_job_is_attached_and_commands_run_beside_it(rig: Rig, cluster: SlurmRig, bridge_env: Laptop) -> None:
    write_cluster(bridge_env, rig, {"test": {}})
    script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo went; exit 4"
    begun = kernelbridge(bridge_env, "run", "-d", "test", "--", "sh", "-c", script, seconds=120)
    assert begun.code == 0, begun.err
    kernel = begun.out.strip()[:8]
    wait_until(lambda: "begun" in kernelbridge(bridge_env, "logs", kernel).out, "its log", 20)
    beside = kernelbridge(bridge_env, "exec", kernel, "--", "sh", "-c", "touch /tmp/go; exit 6")
    assert beside.code == 6, beside.err
    ended = kernelbridge(bridge_env, "attach", kernel)
    assert (ended.code, ended.out) == (4, "begun\nwent\n")
    assert cluster.jobs() == []
