"""How kernels in Slurm's jobs end, whoever ends them: one sentence in the cell, no restart by itself, nothing left.

A user's own shutdown: test_slurm_kernels.py. Every end here is Slurm's or the engine's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import partial

import psutil
import pytest

from tests.clients.cluster import seconds_until_clean, write_cluster
from tests.clients.notebook import fleet_closed_after
from tests.clients.rest import ServerKernel, started_by
from tests.clients.server import JupyterServer
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(600)

# By environment: what stands behind "The job N of E on E".
SENTENCES = {
    "cancelled": "was cancelled. Start it again to get another job.",
    "killed": "was cancelled. Start it again to get another job.",
    "timed": "reached its time limit. Start it again; set a longer `time_limit` in the environment.",
    "ousted": "was preempted by a job with a higher priority. Start it again to get another job.",
    "stopped": "failed on node lab (exit code 137). Start it again to get another job.",
    "shot": "failed on node lab (signal 9). Start it again to get another job.",
    "failed": "ended because node lab failed. Start it again to get another job.",
}


@pytest.fixture(scope="module")
def server(rig: Rig, slurm: SlurmRig, module_env: Laptop) -> Iterator[JupyterServer]:
    """Jupyter Server, whose restarter looks every 3 s for kernels that died."""
    environments: dict[str, dict[str, object]] = {name: {} for name in SENTENCES}
    environments["ousted"] = {"gpus": 4, "host": {"partition": "spare"}}
    environments["timed"] = {"time_limit": "5m", "host": {"partition": "short"}}
    write_cluster(module_env, rig, environments)
    try:
        with (
            fleet_closed_after(module_env),
            JupyterServer(module_env.home / "server", lab=False, env=module_env.variables) as running,
        ):
            yield running
    finally:
        # Another login's job too: the tests of other files want all cards.
        slurm.sweep()


def kill_script(slurm: SlurmRig, job_id: str) -> None:
    """SIGKILL to the batch script alone, as an out-of-memory killer sends it: it cannot tidy up."""
    for process in slurm.lab.processes():
        with suppress(psutil.Error):
            words = process.cmdline()
            if words and words[-1].endswith(f"job{job_id.zfill(5)}/slurm_script"):
                process.kill()
                return
    raise AssertionError(f"job {job_id} has no script")


def end_all(rig: Rig, slurm: SlurmRig, kernels: dict[str, ServerKernel]) -> dict[str, float]:
    """End each as its name says, but the node's failure, which ends all; when each was ended."""
    ends: dict[str, Callable[[str], object]] = {
        "timed": slurm.end_by_time,
        "cancelled": lambda job: slurm.as_user("kbtest", ["scancel", job]),
        "killed": lambda job: slurm.as_user("kbtest", ["scancel", "-s", "KILL", job]),
        "stopped": lambda job: rig.engine.cli("kill", f"kernelbridge-{kernels['stopped'].id}"),
        "shot": partial(kill_script, slurm),
        "ousted": lambda job: slurm.hold(),
    }
    moments = {}
    for name, end in ends.items():
        moments[name] = time.time()
        end(slurm.job_of(kernels[name].id))
    return moments


def test_each_end_of_a_job_is_one_sentence_in_the_cell_no_restart_and_nothing_left(
    rig: Rig, slurm: SlurmRig, server: JupyterServer
) -> None:
    with ExitStack() as pages:
        kernels = {name: pages.enter_context(started_by(server, f"kernelbridge-{name}")) for name in SENTENCES}
        for kernel in kernels.values():
            assert kernel.finish(kernel.send("6 * 7"), seconds=90).result == "42"
        cells = {name: kernel.send("import time; time.sleep(900)") for name, kernel in kernels.items()}
        time.sleep(0.5)
        jobs = {name: slurm.job_of(kernel.id) for name, kernel in kernels.items()}
        moments = end_all(rig, slurm, kernels)
        took = {}
        for name in ("cancelled", "killed", "stopped", "shot", "ousted", "timed"):
            took[name] = expect_sentence(kernels[name], cells[name], name, jobs[name]) - moments[name]
            print(f"{name}: the cell said so after {took[name]:.1f} s; {slurm.job(jobs[name])}")
        # Slurm itself looks for jobs whose time is over every 30 s.
        assert [name for name in took if took[name] > (45 if name == "timed" else 15) * SLOW] == [], took
        for job in slurm.jobs():
            if job != jobs["failed"]:
                slurm.lab.run(["scancel", job])
        # The one that is left is not touched by the others' ends.
        left = kernels["failed"].id
        wait_until(
            lambda: [one.name for one in rig.engine.kernels()] == [f"kernelbridge-{left}"], "the others' end", 15
        )
        began = time.time()
        slurm.fail_node()
        try:
            said = expect_sentence(kernels["failed"], cells["failed"], "failed", jobs["failed"])
            print(f"failed: the cell said so after {said - began:.1f} s")
        finally:
            slurm.revive_node()
        for kernel in kernels.values():
            wait_until(lambda one=kernel: one.state in ("dead", "gone"), f"{kernel} to be dead", 15)  # type: ignore[misc]
        time.sleep(3.5)  # Jupyter's restarter looks every 3 s.
        for kernel in kernels.values():
            assert not {"restarting", "autorestarting"} & set(kernel.states())
        # While the server still knows the kernels: nobody has asked for an end of them.
        print(f"all: nothing left {seconds_until_clean(rig, slurm):.1f} s later")


def expect_sentence(kernel: ServerKernel, cell: str, name: str, job: str) -> float:
    """The cell ends with the one sentence; when that was said."""
    shown = kernel.finish(cell, seconds=75)
    assert shown.error == f"JobEnded: The job {job} of Docker-GPU (remote), {name} on {name} {SENTENCES[name]}"
    return datetime.fromisoformat(str(shown.of("error")[0]["header"]["date"])).timestamp()
