"""The cluster of the rig is a real Slurm, and Cluster tells its jobs' lives, ends and silences as they are."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil
import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import JobRefused, SchedulerSilent
from kernelbridge.hosts.slurm import commands, job_ending, job_script
from kernelbridge.hosts.slurm.cluster import LOOK_INTERVAL_SECONDS, Cluster
from kernelbridge.hosts.slurm.commands import JobFacts, JobRequest
from kernelbridge.hosts.slurm.job_ending import JobEnding
from kernelbridge.hosts.slurm.runtimes.spec import Spec
from kernelbridge.hosts.transport.ssh import Link, open_link
from kernelbridge.hosts.transport.stream import Collector
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig, missing_podman
from tests.rig.whole import Rig

LAB = Host(name="lab", ssh="lab", scheduler="slurm")
SLEEP = b"#!/bin/sh\necho started\nexec sleep 600\n"
# Prints, then ends with its stdin: as the relay does.
FIRST_PROCESS = ("python3", "-u", "-c", "import sys; print('up'); sys.stdin.read(); print('eof')")


@pytest.fixture
async def link(rig: Rig, bridge_env: Laptop) -> AsyncIterator[Link]:
    """The login node, as user kbtest."""
    async with await open_link(LAB) as opened:
        yield opened


@pytest.fixture
async def cluster(slurm: SlurmRig, link: Link) -> AsyncIterator[Cluster]:
    """The scheduler; no job is left at the end, and no log, which these tests leave and kernels do not."""
    asked = Cluster(link, LAB)
    yield asked
    await asked.aclose()
    slurm.sweep()


def request(name: str = "k1", **keys: Any) -> JobRequest:
    return JobRequest(name=f"kernelbridge-{name}", **keys)


async def until(claim: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Return as soon as the claim is true."""
    async with asyncio.timeout(seconds * SLOW):
        while True:
            if await claim():
                return
            await asyncio.sleep(0.2)


async def seen(cluster: Cluster, job: str, *states: str, seconds: float = 20) -> JobFacts:
    """The job as the queue shows it, as soon as it is in one of the states."""
    async with asyncio.timeout(seconds * SLOW):
        while True:
            found = (await cluster.look()).get(job)
            if found is not None and found.state in states:
                return found
            await asyncio.sleep(0.2)


async def end_of(cluster: Cluster, job: str, *, name: str = "kernelbridge-k1", seconds: float = 20) -> JobEnding:
    """How the job ended, as soon as it has."""

    async def has_ended() -> bool:
        return await cluster.ended(job) is not None

    await until(has_ended, seconds)
    # Slurm's last words come into the log a moment after the state.
    await asyncio.sleep(0.5)
    ending = await cluster.ended(job, name=name)
    assert ending is not None
    return ending


# -- life


async def test_a_job_runs_as_its_login_and_its_output_is_private(cluster: Cluster, link: Link) -> None:
    script = b"#!/bin/sh\nid -un\nnvidia-smi -L | wc -l\nsleep 600\n"
    labels = {"kernelbridge.kernel": "k1", "kernelbridge.image": 'ada\'s "lap"|top %j \\n é'}
    wanted = request(gres="gpu:1", memory_bytes=100 << 20, cpus=1.5, seconds=90, comment=commands.write_comment(labels))
    await cluster.check(wanted)
    job = await cluster.submit(wanted, script)
    facts = await seen(cluster, job, "RUNNING")
    assert (facts.name, facts.node) == ("kernelbridge-k1", "lab")
    assert facts.labels == {**labels, "kernelbridge.user": "kbtest@lab"}
    assert facts.time_left_seconds is not None
    assert 60 < facts.time_left_seconds <= 120
    assert facts.submitted is not None
    assert abs(time.time() - facts.submitted) < 60

    async def has_said() -> bool:
        return (await cluster.log_of("kernelbridge-k1")).count("\n") == 2

    await until(has_said)
    assert await cluster.log_of("kernelbridge-k1") == "kbtest\n4\n"
    modes = await link.run(["stat", "-c", "%a", ".cache/kernelbridge/jobs", f"{wanted.log_path}"], seconds=10)
    assert modes.stdout.split() == [b"700", b"600"]
    await cluster.cancel(job)
    await cluster.forget("kernelbridge-k1")
    assert await cluster.log_of("kernelbridge-k1") == ""


async def test_a_job_that_must_wait_says_why_and_until_when(cluster: Cluster) -> None:
    holders = [await cluster.submit(request(f"h{number}", gres="gpu:2"), SLEEP) for number in (1, 2)]
    for holder in holders:
        await seen(cluster, holder, "RUNNING")
    job = await cluster.submit(request(gres="gpu:1"), SLEEP)
    await seen(cluster, job, "PENDING")

    async def has_estimate() -> bool:
        facts = (await cluster.look())[job]
        return facts.starts is not None and facts.reason == "Resources"

    await until(has_estimate)
    facts = (await cluster.look())[job]
    assert facts.starts is not None
    assert commands.waiting_text(facts, host="lab").startswith(
        "waiting in the queue of lab (Resources), expected start "
    )
    assert facts.starts > time.time() + 3000
    (node,) = await cluster.nodes()
    assert (node.name, node.gpus_total, node.gpus_used) == ("lab", {"": 4}, {"": 4})
    await cluster.cancel(holders[0])
    assert (await seen(cluster, job, "RUNNING")).node == "lab"


async def test_many_who_look_at_once_run_one_squeue(cluster: Cluster) -> None:
    await asyncio.gather(*(cluster.look() for _ in range(20)))
    assert repr(cluster) == "<Cluster lab 0 jobs seen, 1 looks>"


async def test_a_step_of_a_job_passes_every_byte(cluster: Cluster, link: Link) -> None:
    job = await cluster.submit(request(), SLEEP)
    await seen(cluster, job, "RUNNING")
    sent = os.urandom(5_000_000)
    answer = await link.run(commands.step_argv(job, ["cat"]), stdin=sent, seconds=30)
    assert answer.stdout == sent
    assert answer.stderr == b""


# -- ends


async def test_a_cancelled_job_ends_at_once_and_again_is_no_error(cluster: Cluster) -> None:
    job = await cluster.submit(request(), SLEEP)
    await seen(cluster, job, "RUNNING")
    assert await cluster.ended(job) is None
    await cluster.cancel(job)
    ending = await end_of(cluster, job)
    assert (ending.state, job_ending.state_of_log(ending.log)) == ("CANCELLED", "CANCELLED")
    await cluster.cancel(job)
    await cluster.cancel("4711")
    gone = await cluster.ended("4711")
    assert gone is not None
    assert gone.state == "UNKNOWN"


async def test_a_job_cancelled_by_root_is_told_as_cancelled(cluster: Cluster, slurm: SlurmRig) -> None:
    job = await cluster.submit(request(), SLEEP)
    await seen(cluster, job, "RUNNING")
    slurm.lab.run(["scancel", job])
    ending = await end_of(cluster, job)
    error = job_ending.explain(ending, environment="test", host="lab", runtime="podman")
    assert f"job {job} of test on lab was cancelled" in str(error)


async def test_another_login_can_neither_cancel_nor_enter(cluster: Cluster, slurm: SlurmRig) -> None:
    job = await cluster.submit(request(), SLEEP)
    await seen(cluster, job, "RUNNING")
    async with await open_link(Host(name="lab", ssh="lab-other")) as other:
        with pytest.raises(JobRefused, match="permission denied"):
            await Cluster(other, LAB).cancel(job)
        entered = await other.run(commands.step_argv(job, ["id"]), seconds=30)
        assert entered.exit_code != 0
        assert await Cluster(other, LAB).look() == {}
    assert (await cluster.look())[job].is_running


async def test_a_job_whose_time_is_over_ends_by_its_limit(cluster: Cluster, slurm: SlurmRig) -> None:
    job = await cluster.submit(request(seconds=60), SLEEP)
    await seen(cluster, job, "RUNNING")
    slurm.end_by_time(job)
    ending = await end_of(cluster, job, seconds=45)
    assert (ending.state, job_ending.state_of_log(ending.log)) == ("TIMEOUT", "TIMEOUT")


async def test_a_job_that_makes_room_is_told_as_preempted(cluster: Cluster) -> None:
    first = await cluster.submit(request(partition="spare", gres="gpu:4"), SLEEP)
    await seen(cluster, first, "RUNNING")
    await cluster.submit(request("k2", gres="gpu:4"), SLEEP)
    ending = await end_of(cluster, first)
    assert (ending.state, job_ending.state_of_log(ending.log)) == ("PREEMPTED", "PREEMPTED")


async def test_a_job_whose_node_fails_is_not_started_again(cluster: Cluster, slurm: SlurmRig) -> None:
    job = await cluster.submit(request(), SLEEP)
    await seen(cluster, job, "RUNNING")
    slurm.fail_node()
    try:
        ending = await end_of(cluster, job)
        assert (ending.state, ending.node) == ("NODE_FAIL", "lab")
        await asyncio.sleep(LOOK_INTERVAL_SECONDS)
        assert job not in await cluster.look()
    finally:
        slurm.revive_node()


async def test_a_drained_node_takes_no_job_and_says_why(cluster: Cluster, slurm: SlurmRig) -> None:
    with slurm.node_drained():
        job = await cluster.submit(request(), SLEEP)

        async def says_why() -> bool:
            return "DRAINED" in (await cluster.look())[job].reason

        await until(says_why)
        (node,) = await cluster.nodes()
        assert node.state == "drained"
    await seen(cluster, job, "RUNNING")


# -- refusal and silence


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"partition": "nope"}, "invalid partition specified: nope"),
        ({"gres": "gpu:5"}, "Requested node configuration is not available"),
        ({"gres": "gpu:h200:1"}, "Requested node configuration is not available"),
        ({"memory_bytes": 99 << 30}, "Requested node configuration is not available"),
        ({"args": ("--nonsense",)}, "unrecognized option '--nonsense'"),
    ],
)
async def test_what_slurm_will_not_do_is_refused_by_the_check(
    cluster: Cluster, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(JobRefused, match=sentence):
        await cluster.check(request(**keys))
    assert await cluster.look() == {}


async def test_a_time_beyond_the_partitions_waits_for_ever_and_is_known_to(cluster: Cluster) -> None:
    job = await cluster.submit(request(partition="short", seconds=86400), SLEEP)

    async def is_hopeless() -> bool:
        return (await cluster.look())[job].is_hopeless

    await until(is_hopeless)
    assert (await cluster.look())[job].reason == "PartitionTimeLimit"


def hasty(link: Link) -> Cluster:
    """The same scheduler for one whose time goes by eight times as fast: a check that is asked again is over in 2 s."""
    return Cluster(link, LAB, clock=lambda: 8 * time.monotonic())


async def test_a_controller_that_is_away_makes_nothing_gone(cluster: Cluster, link: Link, slurm: SlurmRig) -> None:
    job = await cluster.submit(request(), SLEEP)
    await seen(cluster, job, "RUNNING")
    with slurm.controller_stopped():
        await asyncio.sleep(LOOK_INTERVAL_SECONDS)
        calls = (cluster.look(), cluster.ended(job), hasty(link).check(request("k2")), cluster.cancel(job))
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, SchedulerSilent), answer
    assert (await seen(cluster, job, "RUNNING")).job == job


async def test_a_controller_that_is_stuck_is_silence_too(cluster: Cluster, link: Link, slurm: SlurmRig) -> None:
    with slurm.controller_stuck():
        calls = (cluster.look(), hasty(link).check(request()))
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(answer, SchedulerSilent), answer


# -- the runtimes that can run here


def kernel(link: Link, image: str, **keys: Any) -> Spec:
    environment = Environment(**{"name": "test", "image": image, "network": "none", "pull": "never", **keys})
    return Spec(
        kernel="k1",
        environment=environment,
        command=FIRST_PROCESS,
        wants_gpus=bool(environment.gpus),
        home=link.facts.home,
        user_numbers=(link.facts.uid, link.facts.gid),
    )


async def up(cluster: Cluster) -> None:
    async def says_up() -> bool:
        return "up" in await cluster.log_of("kernelbridge-k1")

    await until(says_up, 60)


async def echoed(link: Link, words: Sequence[str], sent: bytes) -> bytes:
    collector = Collector()
    stream = await link.open_command(words, collector)
    stream.write(sent)
    stream.write_eof()
    async with asyncio.timeout(60 * SLOW):
        await collector.wait_ended()
    return bytes(collector.received)


async def test_docker_in_a_job_has_its_cards_and_ends_with_it(cluster: Cluster, link: Link, rig: Rig) -> None:
    others = await cluster.submit(request("other", gres="gpu:2"), SLEEP)
    await seen(cluster, others, "RUNNING")
    made = kernel(link, rig.image, gpus=2)
    job = await cluster.submit(request(gres="gpu:2", memory_bytes=300 << 20), job_script.script("docker", made))
    await up(cluster)
    inside = commands.step_argv(job, job_script.join_argv("docker", made, ["nvidia-smi", "-L"], job=job))
    listed = (await link.run(inside, seconds=30)).stdout.decode()
    # The node is unconstrained: the cards are those of Slurm's indices.
    assert [line[-14:-1] for line in listed.splitlines()] == ["-000000000003", "-000000000004"]
    sent = os.urandom(5_000_000)
    joined = commands.step_argv(job, job_script.join_argv("docker", made, ["cat"], job=job))
    assert await echoed(link, joined, sent) == sent
    with rig.engine.client() as client:
        facts = client.containers.get("kernelbridge-k1").attrs
        assert facts["HostConfig"]["Memory"] == 300 << 20
    await cluster.cancel(job)
    await end_of(cluster, job)
    with rig.engine.client() as client:
        wait_until(lambda: client.containers.list(all=True, ignore_removed=True) == [], "the container's end", 10)


async def test_podman_in_a_job_runs_without_root_and_ends_with_it(
    cluster: Cluster, link: Link, rig: Rig, slurm: SlurmRig
) -> None:
    if reason := missing_podman():
        pytest.skip(reason)
    archive = rig.lab.path / "podman.tar"
    rig.engine.cli("save", "--output", archive, rig.image)
    slurm.give_podman(archive)
    archive.unlink()
    made = kernel(link, rig.image)
    job = await cluster.submit(request(), job_script.script("podman", made))
    await up(cluster)
    sent = os.urandom(5_000_000)
    joined = commands.step_argv(job, job_script.join_argv("podman", made, ["cat"], job=job))
    assert await echoed(link, joined, sent) == sent
    await cluster.cancel(job)
    ending = await end_of(cluster, job)
    assert "eof" in ending.log or "CANCELLED" in ending.log

    async def is_gone() -> bool:
        left = await link.run(["podman", "ps", "-a", "-q"], seconds=30)
        return left.stdout == b"" and not list((rig.lab.path / "tmp").glob("kernelbridge-k1.*"))

    await until(is_gone)


@pytest.mark.parametrize("runtime", ["docker"])
async def test_a_container_ends_even_if_its_script_is_killed(
    cluster: Cluster, link: Link, rig: Rig, runtime: str
) -> None:
    job = await cluster.submit(request(), job_script.script(runtime, kernel(link, rig.image)))
    await up(cluster)
    for process in rig.lab.processes():
        with suppress(psutil.Error):
            if "".join(process.cmdline()[-1:]).endswith("/slurm_script"):
                process.kill()
    ending = await end_of(cluster, job)
    assert (ending.state, ending.signal) == ("FAILED", 9)
    with rig.engine.client() as client:
        wait_until(lambda: client.containers.list(all=True, ignore_removed=True) == [], "the container's end", 10)


async def test_a_node_without_the_runtime_is_told_with_its_words(cluster: Cluster, link: Link, rig: Rig) -> None:
    job = await cluster.submit(request(), job_script.script("apptainer", kernel(link, rig.image)))
    ending = await end_of(cluster, job)
    error = job_ending.explain(ending, environment="test", host="lab", runtime="apptainer", was_ready=False)
    assert "apptainer could not run the image on node lab (kernelbridge: apptainer is not installed)" in str(error)


def test_the_rigs_slurm_leaves_nothing_behind(rig: Rig, slurm: SlurmRig) -> None:
    slurm.close()
    assert rig.lab.processes_named("munged", "slurmctld", "slurmd", "slurmstepd") == []
    slurm.start()
    assert slurm.node_state() == "idle"
