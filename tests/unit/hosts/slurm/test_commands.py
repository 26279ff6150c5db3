"""hosts/slurm/commands.py: what Slurm is asked and how its answers are read.

samples/slurm holds what a real one (22.05) answered.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kernelbridge.config.fields import GpuRange
from kernelbridge.hosts.labels import Labels, parse_labels
from kernelbridge.hosts.slurm import commands, job_ending
from kernelbridge.hosts.slurm.commands import JobFacts, JobRequest

SAMPLES = Path(__file__).parents[2] / "samples/slurm"
LABELS = Labels(kernel="k1", environment="pytorch", owner="0f", user="ada l|x@lap", image="a/b:1")


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


# -- what is asked


def test_a_request_becomes_options_in_slurms_units() -> None:
    request = JobRequest(
        name="kernelbridge-k1",
        partition="gpu",
        account="lab1",
        seconds=3601,
        gres="gpu:2",
        memory_bytes=(1 << 30) + 1,
        cpus=2.5,
        args=("--qos=debug",),
        comment="c",
    )
    words = commands.submit_argv(request, home="/home/a%b")
    assert words[words.index("sbatch") :] == [
        "sbatch",
        "--parsable",
        "--output=/home/a%%b/.cache/kernelbridge/jobs/kernelbridge-k1.log",
        "--open-mode=append",
        "--no-requeue",
        "--nodes=1",
        "--ntasks=1",
        "--job-name=kernelbridge-k1",
        "--comment=c",
        "--partition=gpu",
        "--account=lab1",
        "--time=61",
        "--gres=gpu:2",
        "--mem=1025M",
        "--cpus-per-task=3",
        "--qos=debug",
    ]


def test_a_bare_request_leaves_everything_to_the_partition() -> None:
    words = commands.check_argv(JobRequest(name="kernelbridge-k1"))
    assert words[-6:] == [
        "sbatch",
        "--test-only",
        "--no-requeue",
        "--nodes=1",
        "--ntasks=1",
        "--job-name=kernelbridge-k1",
    ]


@pytest.mark.parametrize(
    ("gpus", "gres", "expected"),
    [
        (0, None, ""),
        (2, None, "gpu:2"),
        (2, "gpu:h200:1", "gpu:h200:1"),
        (GpuRange(wanted=2, min=0), None, "gpu:2"),
        (GpuRange(wanted=0, min=0), None, ""),
        (GpuRange(wanted=2, min=0), "gpu:h200:1", "gpu:h200:1"),
    ],
)
def test_the_users_own_words_for_gpus_win(gpus: int | GpuRange, gres: str | None, expected: str) -> None:
    assert commands.gres_of(gpus=gpus, gres=gres) == expected


@pytest.mark.parametrize("gpus", ["all", ("0", "1")])
def test_slurm_gives_gpus_by_number_alone(gpus: str | tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="by number"):
        commands.gres_of(gpus=gpus, gres=None)


def test_a_node_reached_by_ssh_gets_the_words_unharmed() -> None:
    words = commands.node_argv("n1", ["python3", "-c", "print('a b')"])
    assert words[-2:] == ["n1", "python3 -c 'print('\"'\"'a b'\"'\"')'"]
    assert words[0] == "ssh"
    assert "BatchMode=yes" in words


# -- labels in a comment


def test_labels_come_back_from_a_comment_as_they_were() -> None:
    comment = commands.write_comment(LABELS.to_dict())
    read = parse_labels("kernelbridge-k1", commands.parse_comment(comment))
    assert read is not None
    # Everybody of the cluster reads comments.
    assert (read, "ada" in comment) == (replace(LABELS, user=""), False)
    assert not set(comment) & set(" \"'|\\\n$;")


def test_a_job_is_ours_only_if_its_name_and_its_labels_agree() -> None:
    assert parse_labels("kernelbridge-k2", commands.parse_comment(commands.write_comment(LABELS.to_dict()))) is None
    assert commands.parse_comment("kernel=k1") == {}
    assert commands.parse_comment("") == {}


def test_labels_that_slurm_would_refuse_are_refused_here() -> None:
    with pytest.raises(ValueError, match="1024"):
        commands.write_comment({"kernelbridge.image": "i" * 1100})


# -- what is answered


def test_the_queue_is_read_as_squeue_prints_it() -> None:
    queue = commands.parse_queue(sample("squeue.txt"))
    assert {job: (facts.state, facts.reason, facts.node) for job, facts in queue.items()} == {
        "13": ("PENDING", "Resources", ""),
        "14": ("PENDING", "JobHeldUser", ""),
        "11": ("RUNNING", "", "lab"),
        "12": ("RUNNING", "", "lab"),
        "15": ("PENDING", "PartitionTimeLimit", ""),
        "16": ("PENDING", "Dependency", ""),
    }
    assert queue["13"].starts == 1795270622
    assert queue["14"].starts is None
    assert queue["11"].time_left_seconds == 59 * 60 + 53
    assert queue["11"].labels["kernelbridge.user"] == "ada l|x@lap"
    assert queue["14"].labels == {}
    unnamed = commands.write_comment(LABELS.to_dict())
    (job,) = commands.parse_queue(f"1|kernelbridge-k1|RUNNING|n1|1|1:00|1|None|{unnamed}", who="ada@lab").values()
    assert job.labels["kernelbridge.user"] == "ada@lab"
    assert [job for job, facts in queue.items() if facts.is_hopeless] == ["14", "15"]
    assert queue["13"].is_waiting
    assert queue["11"].is_running


def test_lines_that_are_no_job_are_left_out() -> None:
    assert commands.parse_queue("Welcome to lab!\n\nslurm: 3|4\n") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("1:07", 67), ("2:01:07", 7267), ("1-00:00:00", 86400), ("UNLIMITED", None), ("INVALID", None)],
)
def test_times_are_read_as_slurm_writes_them(text: str, expected: float | None) -> None:
    assert commands.parse_duration(text) == expected


def test_nodes_tell_their_gpus_by_type() -> None:
    (node,) = commands.parse_nodes(sample("sinfo.txt"))
    assert (node.name, node.state, node.partitions) == ("lab", "mixed", ("main", "short", "spare"))
    assert (node.gpus_total, node.gpus_used) == ({"": 4}, {"": 4})
    other = "n1|drained*|gpu|gpu:h200:8(S:0-1),nic:2|gpu:h200:3(IDX:0-2)|\nlogin|idle|cpu|(null)|gpu:0|\nbroken\n"
    first, second = commands.parse_nodes(other)
    assert (first.state, first.gpus_total, first.gpus_used) == ("drained", {"h200": 8}, {"h200": 3})
    assert (second.name, second.gpus_total) == ("login", {})


@pytest.mark.parametrize(("answer", "expected"), [("12\n", "12"), ("12;cluster\n", "12"), ("Hello\n12\n", "12")])
def test_a_jobs_id_is_found_behind_whatever_the_login_prints(answer: str, expected: str) -> None:
    assert commands.parse_job_id(answer) == expected


def test_no_id_is_an_error() -> None:
    with pytest.raises(ValueError, match="no job id"):
        commands.parse_job_id("Submitted\n")


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (
            "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n",
            "invalid partition specified: nope; Invalid partition name specified",
        ),
        (
            "allocation failure: Requested node configuration is not available",
            "Requested node configuration is not available",
        ),
        ("sbatch: unrecognized option '--x'\nTry \"sbatch --help\" for more information", "unrecognized option '--x'"),
        ("sbatch: error: Batch job submission failed: Invalid account", "Invalid account"),
        ("", "no reason given"),
    ],
)
def test_slurms_own_sentence_is_kept_without_its_frame(stderr: str, expected: str) -> None:
    assert commands.sentence(stderr) == expected


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({}, "waiting in the queue of lab (Resources), expected start 14:05"),
        ({"starts": None}, "waiting in the queue of lab (Resources)"),
        ({"starts": None, "reason": ""}, "waiting in the queue of lab"),
        ({"starts": 86400 * 400}, "waiting in the queue of lab (Resources), expected start 1971-02-05 00:00"),
        ({"state": "CONFIGURING", "node": "n1"}, "node n1 of lab is being made ready"),
    ],
)
def test_the_waiting_cell_says_why_and_how_long(job: dict[str, object], expected: str) -> None:
    today = (time.time() // 86400) * 86400
    given: dict[str, object] = {"state": "PENDING", "reason": "Resources", "starts": today + 14 * 3600 + 300, **job}
    facts = JobFacts(**{"job": "1", "name": "", "node": "", "time_left_seconds": None, "submitted": None, **given})  # type: ignore[arg-type]
    assert commands.waiting_text(facts, host="lab", local=time.gmtime) == expected


HOSTILE = ["²", "9" * 5000, "1e300", "-1", "x", "", "\0", "٣", "99999999999999999999"]


@pytest.mark.parametrize("wrong", HOSTILE)
def test_a_row_with_any_text_in_any_place_costs_itself_alone(wrong: str) -> None:
    fields = ["7", "kernelbridge-k", "RUNNING", "n1", "1700000000", "1:00", "1700000000", "None", "(null)"]
    lines = ["|".join([*fields[:at], wrong, *fields[at + 1 :]]) for at in range(9)]
    jobs = commands.parse_queue("\n".join([*lines, "|".join(["8", *fields[1:]])]))
    assert "8" in jobs
    for job in jobs.values():
        assert int(job.job) < 1 << 63
        assert all(at is None or datetime.fromtimestamp(at, UTC) for at in (job.starts, job.submitted))
    assert commands.parse_duration(wrong) is None
    assert commands.parse_nodes(f"n1|idle|main|gpu:{wrong}|gpu:a:{wrong}|")
    with pytest.raises(ValueError, match="no job id"):
        commands.parse_job_id(wrong)
    job_ending.parse_accounts(f"FAILED|{wrong}:{wrong}|{wrong}|{wrong}", job="7")
    job_ending.parse_shown(f"JobId=7 JobState=FAILED ExitCode={wrong}:{wrong} Reason={wrong}", job="7")


def test_partitions_say_which_is_the_default_and_which_have_gpus() -> None:
    answer = "main*|gpu:4\ncpu|(null)\nmixed|(null)\nmixed|gpu:h100:8(S:0-1)\n\nodd\n"
    assert [(one.name, one.is_default, one.has_gpus) for one in commands.parse_partitions(answer)] == [
        ("main", True, True),
        ("cpu", False, False),
        ("mixed", False, True),
    ]
