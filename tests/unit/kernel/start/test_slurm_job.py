"""start/slurm_job.py: what is asked of Slurm, how a job is waited for, and how the relay in it gets its order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    EngineFailed,
    GpusBusy,
    HostUnreachable,
    JobEnded,
    JobRefused,
    KernelBridgeError,
    LinkLost,
    LoginRefused,
    SchedulerSilent,
    StartTimeout,
)
from kernelbridge.hosts.backend import Over
from kernelbridge.hosts.labels import Labels
from kernelbridge.hosts.slurm import commands
from kernelbridge.hosts.transport.retry import deadline
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.start import slurm_job
from tests import made_engines
from tests.made_clock import MadeClock
from tests.made_clusters import HPC, RUNNING, MadeCluster, queued

LABELS = Labels(kernel="k", environment="torch", owner="me", user="ada@laptop")
SILENT = SchedulerSilent(host="hpc", reason="Socket timed out")
SPAWN = {"do": "spawn", "env": {"HF_TOKEN": "hf-secret"}}


def launch_request(**keys: Any) -> LaunchRequest:
    return made_engines.launch_request("k", hosts=(HPC,), **keys)


def ended() -> Over:
    def explain(environment: str) -> KernelBridgeError:
        return JobEnded(environment=environment, host="hpc", job="7", how="was cancelled")

    return Over(explain=explain)


def reached(cluster: MadeCluster, *failures: Exception) -> Callable[[], Any]:
    """The way to the cluster; each failure is that of one attempt."""
    coming = list(failures)

    async def reach() -> MadeCluster:
        if coming:
            raise coming.pop(0)
        return cluster

    return reach


# -- what is asked for


def test_a_job_asks_for_what_its_environment_and_its_host_say() -> None:
    asked = slurm_job.job_request(launch_request(gpus=2, memory="8g", cpus=4, time_limit=7200.0), HPC, LABELS)
    assert asked == commands.JobRequest(
        name="kernelbridge-k",
        partition="gpu",
        account="lab",
        seconds=7200.0,
        gres="gpu:2",
        memory_bytes=8 << 30,
        cpus=4,
        args=("--qos=debug",),
        comment=commands.write_comment(LABELS.to_dict()),
    )
    # A check starts nothing that could be found by its labels.
    assert slurm_job.job_request(launch_request(gpus=2), HPC).comment == ""


@pytest.mark.parametrize(
    ("keys", "gres"),
    [
        ({"gpus": 0}, ""),
        ({"gpus": 3}, "gpu:3"),
        ({"gpus": 0, "gres": "gpu:h200:2"}, "gpu:h200:2"),
        ({"gpus": "all", "gres": "gpu:8"}, "gpu:8"),
    ],
)
def test_slurms_own_words_go_before_a_number(keys: dict[str, Any], gres: str) -> None:
    assert slurm_job.job_request(launch_request(**keys), HPC).gres == gres


@pytest.mark.parametrize("gpus", ["all", ("0", "GPU-1")])
def test_gpus_that_slurm_cannot_be_asked_for_are_refused(gpus: Any) -> None:
    with pytest.raises(JobRefused, match=r"hpc: .*`gres`"):
        slurm_job.job_request(launch_request(gpus=gpus), HPC)


async def test_the_job_is_handed_in_with_its_labels_and_without_any_secret() -> None:
    cluster: Any = MadeCluster()
    asked = launch_request(gpus=1, secrets=("HF_TOKEN",), environ={"HF_TOKEN": "hf-secret"})
    await slurm_job.submit(cluster, asked, HPC, LABELS)
    assert cluster.requests == [slurm_job.job_request(asked, HPC, LABELS)]
    (script,) = cluster.scripts
    assert script.startswith(b"#!/bin/sh\n")
    assert b"torch:2" in script
    assert b"hf-secret" not in script


# -- the queue


async def waits(cluster: MadeCluster, *failures: Exception, **keys: Any) -> list[str]:
    """Wait for the job; return what was said meanwhile, each once."""
    said: list[str] = []
    say = lambda news: said.append(str(news))  # noqa: E731
    await slurm_job.wait_until_running(reached(cluster, *failures), launch_request(**keys), HPC, say)
    return list(dict.fromkeys(said))


async def test_a_job_that_runs_is_not_waited_for(clock: MadeClock) -> None:
    assert await waits(MadeCluster()) == []
    assert clock.now == 1000.0


async def test_who_waits_hears_why_and_from_when_it_runs(clock: MadeClock) -> None:
    cluster = MadeCluster(
        [queued(reason="Priority"), queued(reason="Resources"), queued("CONFIGURING", node="n1"), RUNNING]
    )
    assert await waits(cluster) == [
        "waiting in the queue of hpc (Priority)",
        "waiting in the queue of hpc (Resources)",
        "node n1 of hpc is being made ready",
    ]


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "JobHeldUser", "DependencyNeverSatisfied"])
async def test_a_job_that_waiting_does_not_help_is_refused(clock: MadeClock, reason: str) -> None:
    with pytest.raises(JobRefused, match=f"forever: {reason}"):
        await waits(MadeCluster([queued(reason="Priority"), queued(reason=reason)]))


async def test_silence_and_a_link_that_is_lost_for_now_end_no_wait(clock: MadeClock) -> None:
    away = HostUnreachable(host="hpc", address="hpc:22", reason="no route")
    said = await waits(MadeCluster([queued(), SILENT, LinkLost(host="hpc"), RUNNING]), away)
    assert said == [
        away.sentence,
        "waiting in the queue of hpc",
        SILENT.sentence,
        LinkLost(host="hpc").sentence,
    ]


async def test_what_waiting_does_not_mend_ends_the_wait(clock: MadeClock) -> None:
    with pytest.raises(LoginRefused):
        await waits(MadeCluster(), LoginRefused(host="hpc", user="ada"))


async def test_a_job_that_has_ended_in_the_queue_says_how(clock: MadeClock) -> None:
    with pytest.raises(JobEnded, match="The job 7 of Torch on hpc was cancelled"):
        await waits(MadeCluster([queued(), None], ended()))


async def test_a_job_that_is_only_not_seen_yet_is_waited_for(clock: MadeClock) -> None:
    assert await waits(MadeCluster([None, None, RUNNING])) == []


async def test_not_knowing_whether_it_has_ended_is_no_end(clock: MadeClock) -> None:
    assert await waits(MadeCluster([None, RUNNING], SILENT)) == [SILENT.sentence]


@pytest.mark.parametrize("looks", [[queued(reason="Priority")], [SILENT], [None]])
async def test_the_wait_has_an_end(clock: MadeClock, looks: Any) -> None:
    with pytest.raises(
        GpusBusy, match="hpc: 2 GPUs requested, but not free after 5 min in the queue: Slurm has not started"
    ):
        await waits(MadeCluster(looks), gpus=2, wait=300.0)
    assert 1300 <= clock.now < 1303


async def test_without_wait_slurms_queue_has_no_end_of_ours(clock: MadeClock) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100_000):
            await waits(MadeCluster([queued()]))


async def test_who_wrote_slurms_own_words_hears_them_at_the_end(clock: MadeClock) -> None:
    with pytest.raises(GpusBusy, match="gpu:h200:2"):
        await waits(MadeCluster([queued()]), gpus=0, gres="gpu:h200:2", wait=300.0)


# -- the order


async def orders(cluster: MadeCluster, *failures: Exception, host: Host = HPC, **keys: Any) -> None:
    asked = launch_request(**keys)
    async with deadline(300.0, "hpc", "the start"):
        await slurm_job.give_order(reached(cluster, *failures), asked, host, SPAWN)


def only_order(cluster: MadeCluster) -> Any:
    (line,) = set(cluster.orders)
    assert line.endswith(b"\n")
    return json.loads(line)


async def test_the_order_is_given_once_it_is_answered(clock: MadeClock) -> None:
    cluster = MadeCluster()
    await orders(cluster)
    assert only_order(cluster)["spawn"] == SPAWN
    assert cluster.log == ["started kernelbridge-k"]
    assert cluster.open_ways == 0


@pytest.mark.parametrize(
    ("keys", "cards"),
    [
        ({"gpus": 0}, {"ids": [], "locks": ""}),
        # Which they are, only the job's script knows; Slurm keeps the others out, no lock of ours.
        ({"gpus": 2}, {"ids": None, "locks": ""}),
        ({"gpus": 0, "gres": "gpu:2"}, {"ids": None, "locks": ""}),
    ],
)
async def test_the_relay_learns_its_cards_from_its_job(
    clock: MadeClock, keys: dict[str, Any], cards: dict[str, Any]
) -> None:
    cluster = MadeCluster()
    await orders(cluster, **keys)
    assert only_order(cluster)["gpus"] == cards


@pytest.mark.parametrize(
    ("runtime", "ends"), [("apptainer", None), ("pyxis", None), ("podman", True), ("docker", True)]
)
async def test_a_container_that_is_no_child_of_its_job_ends_with_its_stdin(
    clock: MadeClock, runtime: Any, ends: bool | None
) -> None:
    cluster = MadeCluster()
    await orders(cluster, host=HPC.model_copy(update={"runtime": runtime}))
    assert only_order(cluster).get("ends_with_stdin") is ends


@pytest.mark.parametrize(
    "answer",
    [b"", b"o", LinkLost(host="hpc"), None],
    ids=["it ended", "it broke off", "the link was lost", "nothing came"],
)
async def test_an_order_that_was_not_answered_is_given_again(clock: MadeClock, answer: Any) -> None:
    cluster = MadeCluster(answers=[answer, answer, b"ok\n"])
    await orders(cluster)
    assert len(cluster.orders) == 3
    assert cluster.log == ["started kernelbridge-k"]
    assert cluster.open_ways == 0


async def test_a_start_that_is_cancelled_closes_its_line(clock: MadeClock) -> None:
    cluster = MadeCluster(answers=[None])
    task = asyncio.create_task(orders(cluster))
    await asyncio.sleep(1)
    assert cluster.open_ways == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cluster.open_ways == 0


async def test_a_job_that_has_ended_before_its_order_says_how(clock: MadeClock) -> None:
    cluster = MadeCluster(state=ended(), answers=[b""])
    with pytest.raises(JobEnded, match="was cancelled"):
        await orders(cluster)


async def test_a_job_that_does_not_run_any_more_says_how_it_has_ended(clock: MadeClock) -> None:
    # As InJob.reach says it: the job was gone before the line to it was there.
    gone = EngineFailed(host="hpc", action="reach the job", reason="it does not run")
    with pytest.raises(JobEnded, match="was cancelled"):
        await orders(MadeCluster(state=ended(), reach_failures=[gone]))


@pytest.mark.parametrize(
    "failure", [LinkLost(host="hpc"), HostUnreachable(host="hpc", address="hpc:22", reason="no route")]
)
async def test_a_link_that_is_lost_for_now_ends_no_start(clock: MadeClock, failure: Exception) -> None:
    cluster = MadeCluster()
    await orders(cluster, failure)
    assert len(cluster.orders) == 1


async def test_silence_of_slurm_ends_no_start(clock: MadeClock) -> None:
    cluster = MadeCluster(reach_failures=[SILENT])
    await orders(cluster)
    assert len(cluster.orders) == 1
    again = MadeCluster(answers=[b""], state=SILENT)
    await orders(again)
    assert len(again.orders) == 2


async def test_a_start_that_is_never_answered_ends_with_its_deadline(clock: MadeClock) -> None:
    with pytest.raises(StartTimeout):
        await orders(MadeCluster(answers=[b""] * 1000))
    assert clock.now == pytest.approx(1300.0, abs=1)
