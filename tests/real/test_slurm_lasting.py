"""Kernels in Slurm's jobs whose process leaves, dies or gets no answer from Slurm; starts that come to nothing.

Ends of the jobs themselves: test_slurm_ends.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from kernelbridge.errors import JobRefused, KernelBridgeError, SlurmMissing
from tests.clients.blocking import Client, connected, started
from tests.clients.cluster import seconds_until_clean, shows, write_cluster
from tests.clients.launched import launched
from tests.clients.notebook import fleet_closed_after
from tests.clients.terminal import begin, kernelbridge, wait_bound
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)


def test_a_kernel_in_a_job_is_left_shown_and_taken_up_by_another_process(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    write_cluster(bridge_env, rig, {"test": {"gpus": 2, "persist": True}})
    with launched(bridge_env) as one:
        with one.client() as client:
            client.run("x = 41; import os; os.system('echo said by the process')")
            cards = client.run("os.environ['NVIDIA_VISIBLE_DEVICES']").result
        one.end()
    (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
    assert f"'{','.join(row['gpus'])}'" == cards
    assert (row["state"], row["link"], row["is_orphan"], row["is_ours"]) == ("idle", "detached", False, True)
    assert row["owner"] == "kbtest@test"
    assert "said by the process" in kernelbridge(bridge_env, "logs", row["kernel_id"]).out
    with begin(bridge_env, "attach", "--no-console", row["kernel_id"]) as command:
        assert command.process.stdout is not None
        file = command.process.stdout.readline().strip()
        with connected(file) as client:
            assert client.run("x + 1").result == "42"
    stopped = kernelbridge(bridge_env, "stop", row["kernel_id"])
    assert stopped.code == 0, stopped.err
    assert cluster.jobs() == []
    assert kernelbridge(bridge_env, "ps", "--json").json["kernels"] == []


def test_a_process_killed_while_its_job_waits_or_starts_leaves_nothing_that_clean_does_not_take(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    write_cluster(bridge_env, rig, {"test": {"gpus": 4}})
    other = cluster.hold()
    try:
        with launched(bridge_env) as one:
            wait_until(lambda: len(cluster.jobs()) == 2, "the job to be in the queue", 20)
            wait_bound(Path(one.connection_file))
            one.kill()
        (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        assert (row["state"], row["is_orphan"]) == ("starting", True)
        cleaned = kernelbridge(bridge_env, "clean")
        assert cleaned.code == 0, cleaned.err
        assert cluster.jobs() == [other]
    finally:
        cluster.sweep()
    # Its job runs, and nobody gives it its order.
    with launched(bridge_env) as one:
        wait_until(lambda: len(cluster.jobs()) == 1, "the job to be in the queue", 20)
        one.kill()
    (job,) = cluster.jobs()
    wait_until(lambda: bool(rig.engine.kernels()), "the container in the job", 20)
    (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
    assert (row["state"], row["is_orphan"]) == ("unknown", True)
    kept = kernelbridge(bridge_env, "clean")
    assert "does not say whether it has output" in kept.err
    assert cluster.jobs() == [job]
    assert kernelbridge(bridge_env, "clean", "--discard").code == 0
    assert cluster.jobs() == []


def test_a_controller_that_does_not_answer_harms_no_kernel_and_no_wait(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    write_cluster(bridge_env, rig, {"test": {"gpus": 4}})
    with fleet_closed_after(bridge_env), started("kernelbridge-test") as (manager, client):
        client.run("x = 1")
        with started("kernelbridge-test", ready=False) as (_, second):
            cell = second.send("2 * 3")
            shows(second, cell, "waiting in the queue of test (Resources)")
            with cluster.controller_stopped():
                shows(second, cell, "Slurm's controller is not answering (")
                assert client.run("x + 1").result == "2"
                manager.restart_kernel()
                assert client.run("6 * 7").result == "42"
                # The stream breaks, and the way to the job is asked of the controller.
                rig.engine.kill_bridges()
                held = client.send("7 * 7")
                time.sleep(5)
                assert manager.is_alive()
            assert client.finish(held, seconds=60).result == "49"
            # The next look, or the one behind it, finds the job in the queue as before.
            shows_again(second)
            with cluster.controller_stuck():
                assert client.run("8 * 8").result == "64"
            manager.shutdown_kernel()
            assert second.finish(cell).result == "6"


def shows_again(client: Client) -> None:
    """The waiting cell shows the queue again, after what it showed before."""
    before = len(client.seen())
    limit = time.monotonic() + 30 * SLOW
    while not any("waiting in the queue" in one["content"].get("text", "") for one in client.seen()[before:]):
        assert time.monotonic() < limit, "the queue is not shown again"


REFUSALS: dict[str, tuple[dict[str, Any], type[KernelBridgeError], str]] = {
    "partition": ({"host": {"partition": "nowhere"}}, JobRefused, "invalid partition specified: nowhere"),
    "gres": ({"gpus": 5}, JobRefused, "node configuration is not available"),
    "all": ({"gpus": "all"}, JobRefused, "Slurm gives GPUs by number; write one, or Slurm's own syntax in `gres`"),
}


def test_what_slurm_would_refuse_fails_at_once_with_its_words(rig: Rig, cluster: SlurmRig, bridge_env: Laptop) -> None:
    write_cluster(bridge_env, rig, {name: keys for name, (keys, _, _) in REFUSALS.items()})
    with fleet_closed_after(bridge_env):
        for name, (_, kind, words) in REFUSALS.items():
            began = time.monotonic()
            with pytest.raises(KernelBridgeError) as caught:
                KernelManager(kernel_name=f"kernelbridge-{name}").start_kernel()
            assert isinstance(caught.value, kind), caught.value
            assert words.lower() in str(caught.value).lower(), caught.value
            assert time.monotonic() - began < 5 * SLOW
    assert cluster.jobs() == []


def test_a_job_that_would_wait_for_ever_ends_the_start_and_leaves_the_queue(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    # The cluster does not enforce the limits of its partitions at sbatch: it is seen in the queue.
    write_cluster(bridge_env, rig, {"test": {"time_limit": "2h", "host": {"partition": "short"}}})
    with fleet_closed_after(bridge_env), started("kernelbridge-test", ready=False) as (manager, client):
        error = client.run("1", seconds=20).error
        assert error.startswith(
            "JobRefused: test: Slurm refused the job (it would wait forever: PartitionTimeLimit). Fix `partition`,"
        )
        wait_until(lambda: not manager.is_alive(), "the kernel to be dead", 10)
        seconds_until_clean(rig, cluster)


def test_a_host_without_slurm_says_so(rig: Rig, cluster: SlurmRig, bridge_env: Laptop) -> None:
    write_cluster(bridge_env, rig, {"test": {}})
    cluster.lab.run(["mount", "-t", "tmpfs", "none", "/etc/slurm"])
    try:
        with fleet_closed_after(bridge_env), pytest.raises(SlurmMissing, match="Is it a login node"):
            KernelManager(kernel_name="kernelbridge-test").start_kernel()
    finally:
        cluster.lab.run(["umount", "/etc/slurm"])
