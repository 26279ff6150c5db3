"""hosts/slurm/cluster.py: the way to a relay in a job, whether the job lives, how it ended, and what is left of it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import EngineFailed, JobEnded, JobRefused, RuntimeMissing, SchedulerSilent
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Created, Exited, Missing, Over, Running
from kernelbridge.hosts.slurm.cluster import (
    GONE_LOOK_SECONDS,
    GONE_SECONDS,
    LOOK_INTERVAL_SECONDS,
    Cluster,
    JobWorkload,
    job_spec,
    wants_gpus,
)
from kernelbridge.hosts.slurm.commands import JobRequest
from kernelbridge.hosts.transport.stream import Collector, Completed
from tests.made_clock import MadeClock
from tests.unit.hosts.slurm.test_cluster import GONE, SILENT, FakeLink, said

NAME = "kernelbridge-k1"
LOG = "/home/ada/.cache/kernelbridge/jobs/kernelbridge-k1.log"
ENVIRONMENT = Environment(name="torch", image="torch:2")


def row(state: str, *, job: str = "7", node: str = "") -> Completed:
    """What squeue shows of the job."""
    return said(f"{job}|{NAME}|{state}|{node}|N/A|1:00|N/A|None|(null)\n")


def shown(state: str, code: str = "0:0") -> Completed:
    """What scontrol shows of it."""
    return said(f"JobId=7 JobName={NAME} JobState={state} Reason=None ExitCode={code} BatchHost=n1\n")


class Rig:
    """A job on a cluster whose commands answer in turn; the last answer of each is for ever."""

    def __init__(self, *, clock: Callable[[], float] | None = None, **host: Any) -> None:
        self.answers: dict[str, list[Completed]] = {"squeue": [said("")], "rm": [said()], "scancel": [said()]}
        self.link = FakeLink(self._answer)
        self.host = Host(name="hpc", ssh="hpc", scheduler="slurm", **host)
        # Without a clock it believes what it saw for ever, where it may.
        self.cluster = Cluster(self.link, self.host, clock=clock or (lambda: 0.0))
        self.job = self.cluster.workload(NAME, ENVIRONMENT)

    def _answer(self, command: str) -> Completed:
        found = self.answers.get(command.split()[0], [said(code=1, stderr="?")])
        return found.pop(0) if len(found) > 1 else found[0]

    def says(self, **answers: Completed) -> None:
        """The newest answer of each command, for ever."""
        self.answers.update({command: [answer] for command, answer in answers.items()})
        self.cluster._forget_seen()

    async def handed_in(self) -> None:
        """The job is in the queue, and this cluster knows its id."""
        self.answers["sbatch"] = [said("7\n")]
        await self.cluster.submit(JobRequest(name=NAME), b"#!/bin/sh\n")

    @property
    def asked(self) -> list[str]:
        """The first words of what the link was asked for."""
        return [line.split()[0] for line in self.link.asked]


async def how_it_ended(rig: Rig) -> str:
    state = await rig.job.state()
    assert isinstance(state, Over), state
    return state.explain("Torch").sentence


# -- whether it lives


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("PENDING", Created(error="")),
        ("CONFIGURING", Created(error="")),
        ("RUNNING", Running()),
        ("SUSPENDED", Running(is_paused=True)),
        ("COMPLETING", Running()),
    ],
)
async def test_a_job_in_the_queue_waits_or_runs(word: str, expected: object) -> None:
    rig = Rig()
    rig.says(squeue=row(word))
    assert await rig.job.state() == expected


async def test_a_job_that_nobody_here_has_seen_is_missing() -> None:
    assert await Rig().job.state() == Missing()


async def test_a_job_that_left_the_queue_and_has_not_ended_runs() -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(scontrol=shown("RUNNING"))
    assert await rig.job.state() == Running()


@pytest.mark.parametrize("command", ["squeue", "scontrol"])
async def test_silence_is_unknown(command: str) -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(**{command: SILENT})
    with pytest.raises(SchedulerSilent):
        await rig.job.state()


# -- how it ended


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED"])
@pytest.mark.parametrize("code", [80, 81, 82, 83, 84, 85])
async def test_the_relays_own_ends_are_told_by_their_codes(state: str, code: int) -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(scontrol=shown(state, f"{code}:0"))
    assert await rig.job.state() == Exited(code=code, oom_killed=False, error="", finished_at="")


async def test_a_relay_whose_owner_left_ended_well() -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(scontrol=shown("COMPLETED"))
    assert await rig.job.state() == Exited(code=0, oom_killed=False, error="", finished_at="")


@pytest.mark.parametrize(
    ("state", "code", "sentence"),
    [
        ("TIMEOUT", "0:15", "The job 7 of Torch on hpc reached its time limit."),
        # Slurm's word goes before what the script could still say.
        ("TIMEOUT", "81:0", "The job 7 of Torch on hpc reached its time limit."),
        ("PREEMPTED", "0:0", "The job 7 of Torch on hpc was preempted by a job with a higher priority."),
        ("NODE_FAIL", "0:0", "The job 7 of Torch on hpc ended because node n1 failed."),
        ("OUT_OF_MEMORY", "0:125", "The job 7 of Torch on hpc used more memory than it was given."),
        ("FAILED", "77:0", "The job 7 of Torch on hpc started while this machine was away, and ended after 10 min."),
        ("FAILED", "0:9", "The job 7 of Torch on hpc failed on node n1 (signal 9)."),
    ],
)
async def test_every_other_end_is_one_sentence(state: str, code: str, sentence: str) -> None:
    rig = Rig()
    await rig.handed_in()
    rig.cluster.has_started(NAME)
    rig.says(scontrol=shown(state, code))
    assert await how_it_ended(rig) == sentence


async def test_an_order_that_never_came_is_told_so_also_before_the_relay_was_heard_of() -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(scontrol=shown("FAILED", "77:0"), tail=said("no order came\n"))
    assert "started while this machine was away" in await how_it_ended(rig)


async def test_a_python_that_is_too_old_is_the_images_fault_and_named() -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(scontrol=shown("FAILED", "78:0"), tail=said("kernelbridge cannot run in Python 2.7\nsrun: error: x\n"))
    assert await how_it_ended(rig) == "The image torch:2 has Python 2.7; kernelbridge needs 3.8."


async def test_a_job_that_fails_before_its_relay_was_heard_of_is_its_runtimes_fault() -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(scontrol=shown("FAILED", "255:0"), tail=said("FATAL: no such image\n"))
    state = await rig.job.state()
    assert isinstance(state, Over)
    error = state.explain("Torch")
    assert isinstance(error, RuntimeMissing)
    assert "apptainer could not run the image on node n1 (exit code 255: FATAL: no such image)" in error.sentence
    rig.cluster.has_started(NAME)
    state = await rig.job.state()
    assert isinstance(state, Over)
    assert isinstance(state.explain("Torch"), JobEnded)


async def test_an_end_that_slurm_forgot_is_an_end() -> None:
    rig = Rig()
    await rig.handed_in()
    rig.says(scontrol=GONE, sacct=said(code=1), tail=said(code=1))
    assert await how_it_ended(rig) == "The job 7 of Torch on hpc is gone, and Slurm no longer knows why."


# -- the way there


@pytest.mark.parametrize("squeue", [said(""), row("PENDING"), row("COMPLETING", node="n1")])
async def test_a_job_that_does_not_run_cannot_be_reached(squeue: Completed) -> None:
    rig = Rig()
    rig.says(squeue=squeue)
    with pytest.raises(EngineFailed, match="it does not run"):
        await rig.job.attach(Collector())
    assert rig.link.opened == []


async def test_pyxis_goes_by_a_step_of_its_own() -> None:
    rig = Rig(runtime="pyxis", node_login="jump")
    rig.says(squeue=row("RUNNING", node="n1"))
    await rig.job.attach(Collector())
    (argv,) = rig.link.opened
    assert argv.count("srun") == 1
    assert "--jobid=7" in argv


async def test_what_is_attached_is_the_bridge_and_what_is_reached_what_was_asked_for() -> None:
    rig = Rig(node_login="ssh")
    rig.says(squeue=row("RUNNING", node="n1"))
    await rig.job.attach(Collector())
    await rig.job.open_command(["echo", "a b"], Collector())
    # The node's login shell may be any: it is asked for `sh`, which gets the command over stdin.
    assert [argv[-2:] for argv in rig.link.opened] == [["n1", "/bin/sh -s"]] * 2
    bridge, echo = rig.link.written
    assert shlex.quote(shlex.quote("a b"))[1:-1] in echo
    assert bootstrap.bridge_argv("python3")[-1] in bridge
    assert bootstrap.bridge_argv("python3")[-1] not in echo


async def test_logs_are_the_last_lines_of_the_jobs_log() -> None:
    rig = Rig()
    rig.says(tail=said("one\ntwo\nthree\n"))
    assert await rig.job.logs(2) == "two\nthree"
    rig.says(tail=said(code=1))
    assert await rig.job.logs(2) == ""


# -- the end


async def test_a_job_is_cancelled_waited_for_and_its_log_removed(clock: MadeClock) -> None:
    rig = Rig(clock=lambda: clock.now)
    running, ending = row("RUNNING", node="n1"), row("COMPLETING", node="n1")
    rig.answers["squeue"] = [running, running, ending, ending, said("")]
    await rig.job.stop()
    assert rig.asked == ["squeue", "scancel", "squeue", "squeue", "squeue", "squeue", "rm"]
    assert rig.link.asked[1] == "scancel 7"
    assert rig.link.asked[-1] == f"rm -f -- {LOG}"
    assert clock.now - 1000 == pytest.approx(GONE_LOOK_SECONDS + 3 * LOOK_INTERVAL_SECONDS)


async def test_all_who_end_jobs_share_one_squeue_per_interval(clock: MadeClock) -> None:
    rig = Rig(clock=lambda: clock.now)
    rig.answers["squeue"] = [*[row("COMPLETING", node="n1")] * 8, said("")]
    await asyncio.gather(*(rig.job.stop() for _ in range(20)))
    assert rig.asked.count("scancel") == 20
    # One to find them, one soon after the last was cancelled, and then one per interval.
    assert rig.asked.count("squeue") == 9
    assert clock.now - 1000 == pytest.approx(GONE_LOOK_SECONDS + 7 * LOOK_INTERVAL_SECONDS)


async def test_a_job_that_will_not_go_is_left_to_slurm_after_its_time(clock: MadeClock) -> None:
    rig = Rig()
    rig.says(squeue=row("COMPLETING", node="n1"))
    await rig.job.stop()
    assert GONE_SECONDS <= clock.now - 1000 <= GONE_SECONDS + 1
    assert rig.asked[-1] == "rm"


async def test_a_job_that_is_gone_leaves_only_its_log() -> None:
    rig = Rig()
    await rig.job.stop()
    await rig.job.stop()
    assert rig.asked == ["squeue", "rm", "rm"]


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ({"squeue": SILENT}, SchedulerSilent),
        ({"scancel": SILENT}, SchedulerSilent),
        ({"scancel": said(code=1, stderr="scancel: error: Access/permission denied")}, JobRefused),
    ],
)
async def test_an_end_that_nobody_knows_of_is_none_and_keeps_its_log(
    failing: dict[str, Completed], error: type[Exception]
) -> None:
    rig = Rig()
    rig.says(**{"squeue": row("RUNNING", node="n1"), **failing})
    with pytest.raises(error):
        await rig.job.stop()
    assert "rm" not in rig.asked


async def test_silence_after_the_cancel_is_no_end(clock: MadeClock) -> None:
    rig = Rig()
    rig.answers["squeue"] = [row("RUNNING", node="n1"), SILENT]
    with pytest.raises(SchedulerSilent):
        await rig.job.stop()
    assert "rm" not in rig.asked


# -- what a runtime is told


@pytest.mark.parametrize(
    ("keys", "wants"), [({}, False), ({"gpus": 1}, True), ({"gpus": "all"}, True), ({"gres": "gpu:1"}, True)]
)
def test_a_job_wants_gpus_by_their_number_or_by_slurms_words(keys: dict[str, Any], wants: bool) -> None:
    assert wants_gpus(Environment(name="torch", image="x", **keys)) is wants


def test_a_runtime_knows_the_kernel_its_command_and_the_login() -> None:
    rig = Rig()
    made = job_spec(NAME, ENVIRONMENT, rig.link.facts, {"a": "b"})
    assert (made.kernel, made.name, made.home, made.user_numbers) == ("k1", NAME, "/home/ada", (1000, 1000))
    assert list(made.command) == bootstrap.job_boot_argv("python3")
    assert made.labels == {"a": "b"}
    assert isinstance(rig.job, JobWorkload)
