"""hosts/slurm/job_ending.py: how the end of a job is read and told.

samples/slurm holds what a real Slurm (22.05) said of its jobs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.errors import JobEnded, RuntimeMissing
from kernelbridge.hosts.slurm import job_ending, job_script
from kernelbridge.hosts.slurm.job_ending import JobEnding

SAMPLES = Path(__file__).parents[2] / "samples/slurm"


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


@pytest.mark.parametrize(
    ("name", "job", "state", "codes"),
    [
        ("cancelled", "11", "CANCELLED", (0, 15)),
        ("failed", "19", "FAILED", (78, 0)),
        ("node_fail", "18", "NODE_FAIL", (0, 15)),
        ("preempted", "17", "PREEMPTED", (0, 15)),
        ("timeout", "20", "TIMEOUT", (0, 15)),
    ],
)
def test_an_ended_job_is_read_as_scontrol_shows_it(name: str, job: str, state: str, codes: tuple[int, int]) -> None:
    ending = job_ending.parse_shown(sample(f"{name}.txt"), job=job)
    assert ending is not None
    assert (ending.state, (ending.exit_code, ending.signal), ending.node) == (state, codes, "lab")


@pytest.mark.parametrize(("name", "job"), [("running", "11"), ("pending", "13"), ("failed", "99")])
def test_a_job_that_has_not_ended_is_not_told_as_ended(name: str, job: str) -> None:
    assert job_ending.parse_shown(sample(f"{name}.txt"), job=job) is None


def test_accounts_know_who_cancelled() -> None:
    ending = job_ending.parse_accounts("CANCELLED by 1002|0:0|None|n1\n", job="7")
    assert ending == JobEnding(job="7", state="CANCELLED", node="n1", cancelled_by="1002")
    assert job_ending.parse_accounts("RUNNING|0:0|None|n1\n", job="7") is None
    assert job_ending.parse_accounts("broken\nOUT_OF_ME+|0:125|OutOfMemory|n1", job="7") is None
    assert job_ending.parse_accounts("OUT_OF_MEMORY|0:125|OutOfMemory|n1", job="7") is not None


@pytest.mark.parametrize(
    ("log", "state"),
    [
        ("slurmstepd-lab: error: *** JOB 15 ON lab CANCELLED AT 2026-11-21T12:55:15 DUE TO TIME LIMIT ***", "TIMEOUT"),
        ("slurmstepd-lab: error: *** JOB 28 ON lab CANCELLED AT 2026-11-21T12:59 DUE TO PREEMPTION ***", "PREEMPTED"),
        ("slurmstepd-lab: error: *** JOB 29 ON lab CANCELLED AT x DUE TO NODE FAILURE, SEE LOG ***", "NODE_FAIL"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=4.batch", "OUT_OF_MEMORY"),
        ("slurmstepd-lab: error: *** JOB 1 ON lab CANCELLED AT 2026-11-21T13:10:46 ***", "CANCELLED"),
        ("hello", "UNKNOWN"),
    ],
)
def test_a_jobs_log_tells_the_end_that_nobody_remembers(log: str, state: str) -> None:
    assert job_ending.state_of_log(log) == state


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"state": "TIMEOUT"}, "The job 7 of pytorch on lab reached its time limit."),
        ({"state": "PREEMPTED"}, "The job 7 of pytorch on lab was preempted by a job with a higher priority."),
        ({"state": "NODE_FAIL", "node": "n1"}, "The job 7 of pytorch on lab ended because node n1 failed."),
        ({"state": "BOOT_FAIL"}, "The job 7 of pytorch on lab ended because its node failed."),
        ({"state": "OUT_OF_MEMORY"}, "The job 7 of pytorch on lab used more memory than it was given."),
        ({"state": "DEADLINE"}, "The job 7 of pytorch on lab reached its deadline."),
        ({"state": "CANCELLED"}, "The job 7 of pytorch on lab was cancelled."),
        ({"state": "CANCELLED", "cancelled_by": "0"}, "The job 7 of pytorch on lab was cancelled by an administrator."),
        ({"state": "CANCELLED", "cancelled_by": "12"}, "The job 7 of pytorch on lab was cancelled by user 12."),
        ({"state": "FAILED", "exit_code": 3}, "The job 7 of pytorch on lab failed on its node (exit code 3)."),
        ({"state": "FAILED", "signal": 9}, "The job 7 of pytorch on lab failed on its node (signal 9)."),
        ({"state": "COMPLETED"}, "The job 7 of pytorch on lab has ended by itself."),
        ({"state": "UNKNOWN"}, "The job 7 of pytorch on lab is gone, and Slurm no longer knows why."),
        (
            {"state": "FAILED", "exit_code": job_script.CARDS_EXIT, "log": "kernelbridge: GPU 3 is not seen\n"},
            "The job 7 of pytorch on lab does not see the GPUs that it was given (kernelbridge: GPU 3 is not seen).",
        ),
        (
            {
                "state": "FAILED",
                "exit_code": job_script.MOUNT_EXIT,
                "log": "kernelbridge: /a leads to /",
            },
            "The job 7 of pytorch on lab may not have one of its mounts (kernelbridge: /a leads to /).",
        ),
    ],
)
def test_an_end_is_told_in_one_sentence(facts: dict[str, object], sentence: str) -> None:
    ending = JobEnding(**{"job": "7", **facts})  # type: ignore[arg-type]
    error = job_ending.explain(ending, environment="pytorch", host="lab", runtime="apptainer")
    assert isinstance(error, JobEnded)
    assert str(error).startswith(sentence)


@pytest.mark.parametrize(
    ("code", "was_ready", "reason"),
    [
        (69, True, "(kernelbridge: apptainer is not installed)"),
        (255, False, "(exit code 255: kernelbridge: apptainer is not installed)"),
    ],
)
def test_a_runtime_that_failed_is_told_with_its_last_line(code: int, was_ready: bool, reason: str) -> None:
    log = "kernelbridge: apptainer is not installed\nslurmstepd: error: x\n"
    ending = JobEnding(job="7", state="FAILED", exit_code=code, node="n1", log=log)
    error = job_ending.explain(ending, environment="pytorch", host="lab", runtime="apptainer", was_ready=was_ready)
    assert isinstance(error, RuntimeMissing)
    assert reason in str(error)
