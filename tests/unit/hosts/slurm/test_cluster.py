"""hosts/slurm/cluster.py: who asks Slurm for one host's kernels, how often, and what is made of silence."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.errors import JobRefused, SchedulerSilent, SlurmMissing, SshFailed, StartTimeout
from kernelbridge.hosts.slurm.cluster import BUSY_LOOK_SECONDS, BUSY_SECONDS, COMMAND_SECONDS, Cluster
from kernelbridge.hosts.slurm.commands import JobRequest
from kernelbridge.hosts.slurm.job_ending import JobEnding
from kernelbridge.hosts.transport.facts import HostFacts
from kernelbridge.hosts.transport.sftp import Sftp
from kernelbridge.hosts.transport.stream import AnyLink, Completed, LoginEntry, Receiver, Stream
from kernelbridge.kernel.start.preflight import CHECK_SECONDS
from tests.made_clock import MadeClock

SAMPLES = Path(__file__).parents[2] / "samples/slurm"
FACTS = HostFacts(
    user="ada",
    uid=1000,
    gid=1000,
    home="/home/ada",
    sockets=(),
    has_docker_command=False,
    may_sudo_docker=False,
)


def sample(name: str) -> str:
    return (SAMPLES / name).read_text()


@dataclass
class FakeLink:
    """A link whose commands answer what the test says."""

    answer: Callable[[str], Completed]
    asked: list[str] = field(default_factory=list)
    stdin: bytes = b""
    name: str = "lab"
    is_open: bool = True
    facts: HostFacts = FACTS
    shell_seconds: float = 0.0
    entry: LoginEntry = field(default_factory=LoginEntry)
    # How often a login shell was to be asked.
    login_shells: int = 0
    # The commands whose streams were opened.
    opened: list[list[str]] = field(default_factory=list)
    # What was written to them.
    written: list[str] = field(default_factory=list)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        words = list(argv)
        known = ("sbatch", "squeue", "scontrol", "sacct", "scancel", "sinfo", "tail", "rm")
        start = next(index for index, word in enumerate(words) if word in known)
        self.asked.append(" ".join(words[start:]))
        self.stdin = stdin
        await asyncio.sleep(0)
        return self.answer(self.asked[-1])

    async def look_again(self) -> HostFacts:
        return self.facts

    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        return None

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        raise NotImplementedError

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        self.opened.append(list(argv))
        return cast("Stream", ShellInput(self.written, receiver))

    async def open_sftp(self) -> Sftp:
        raise NotImplementedError

    async def ask_login_shell(self) -> bool:
        self.login_shells += 1
        return self.login_shells == 1

    async def jump(self, name: str, *, seconds: float) -> AnyLink:
        raise SshFailed(host=name, reason="its host key is not known here")

    async def wait_lost(self) -> None:
        return

    async def aclose(self) -> None:
        return


@dataclass
class ShellInput:
    """The stream to a node's shell, which runs each line that it is given."""

    lines: list[str]
    receiver: Receiver

    def write(self, data: bytes) -> None:
        text = read_by_sh(data)
        self.lines.append(text)
        if mark := re.search(r"printf '%s%s<' (\w+) (\w+)", text):
            self.receiver.data_received(f"/greeting{mark[1]}{mark[2]}<".encode())

    def close(self) -> None:
        return


def read_by_sh(line: bytes) -> str:
    """What the words of a line of shell.for_stdin() say, with their escapes taken back."""
    words = "".join(shlex.split(line.decode())[5:])
    return re.sub(r"\\0([0-7]{3})", lambda found: chr(int(found[1], 8)), words)


def said(stdout: str = "", stderr: str = "", code: int = 0) -> Completed:
    return Completed(exit_code=code, stdout=stdout.encode(), stderr=stderr.encode())


def cluster(*answers: tuple[str, Completed]) -> tuple[Cluster, FakeLink, list[float]]:
    """A cluster, its link, its clock; each answer is for the commands that begin so."""
    now = [0.0]

    def answer(command: str) -> Completed:
        return next((made for start, made in answers if command.startswith(start)), said(code=1, stderr="?"))

    link = FakeLink(answer)
    return Cluster(link, Host(name="lab", ssh="lab", scheduler="slurm"), clock=lambda: now[0]), link, now


REQUEST = JobRequest(name="kernelbridge-k1")
SILENT = said(stderr="slurm_load_jobs error: Unable to contact slurm controller (connect failure)", code=1)


async def test_all_who_look_at_the_same_time_share_one_squeue() -> None:
    asked, link, now = cluster(("squeue", said(sample("squeue.txt"))))
    seen = await asyncio.gather(*(asked.look() for _ in range(5)))
    assert {id(one) for one in seen} == {id(seen[0])}
    now[0] = 1.9
    await asked.look()
    assert len(link.asked) == 1
    now[0] = 2.1
    await asked.look()
    assert len(link.asked) == 2
    assert repr(asked) == "<Cluster lab 6 jobs seen, 2 looks>"
    await asked.aclose()


async def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    asked, _, _ = cluster(("squeue", said(sample("squeue.txt"))))
    first = asyncio.create_task(asked.look())
    second = asyncio.create_task(asked.look())
    await asyncio.sleep(0)
    first.cancel()
    assert "11" in await second


async def test_what_was_seen_before_a_job_was_handed_in_is_not_believed() -> None:
    asked, link, _ = cluster(("squeue", said("")), ("sbatch --parsable", said("7\n")))
    await asked.look()
    assert await asked.submit(REQUEST, b"#!/bin/sh\n") == "7"
    await asked.look()
    assert [line.split()[0] for line in link.asked] == ["squeue", "sbatch", "squeue"]


async def test_a_job_whose_answer_was_late_is_found_by_its_name() -> None:
    line = "9|kernelbridge-k1|PENDING||N/A|1:00|N/A|None|(null)\n"
    asked, _, _ = cluster(("sbatch", said(stderr="sbatch: error: Socket timed out", code=1)), ("squeue", said(line)))
    assert await asked.submit(REQUEST, b"") == "9"


async def test_a_job_that_nobody_knows_to_be_there_is_unknown_not_refused() -> None:
    asked, _, _ = cluster(("sbatch", said(stderr="sbatch: error: Socket timed out", code=1)), ("squeue", said("")))
    with pytest.raises(SchedulerSilent):
        await asked.submit(REQUEST, b"")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (said(stderr="allocation failure: Invalid account", code=1), JobRefused),
        (said(stderr="sh: 1: exec: sbatch: not found", code=127), SlurmMissing),
        (said(stderr="sbatch: fatal: Could not establish a configuration source", code=1), SlurmMissing),
        (said(stderr="allocation failure: Socket timed out on send/recv operation", code=1), SchedulerSilent),
        (said(stderr="sbatch: error: Zero Bytes were transmitted or received", code=1), SchedulerSilent),
    ],
)
async def test_a_check_tells_a_refusal_from_silence(
    clock: MadeClock, answer: Completed, expected: type[Exception]
) -> None:
    link = FakeLink(lambda _: answer)
    with pytest.raises(expected):
        await Cluster(link, Host(name="lab", ssh="lab", scheduler="slurm"), clock=lambda: clock.now).check(REQUEST)
    is_silence = expected is SchedulerSilent
    # Nothing but silence is worth another question.
    assert (len(link.asked) > 2) is is_silence
    assert (clock.now - 1000.0 > BUSY_SECONDS / 2) is is_silence
    assert clock.now - 1000.0 <= BUSY_SECONDS


async def test_a_check_asks_a_busy_controller_again(clock: MadeClock) -> None:
    answers = [SILENT, SILENT, said()]
    link = FakeLink(lambda _: answers.pop(0))
    await Cluster(link, Host(name="lab", ssh="lab", scheduler="slurm"), clock=lambda: clock.now).check(REQUEST)
    assert (answers, clock.now - 1000.0) == ([], 2 * BUSY_LOOK_SECONDS)


def test_the_last_answer_of_a_silent_controller_fits_into_a_checks_time() -> None:
    assert BUSY_SECONDS + COMMAND_SECONDS <= CHECK_SECONDS


@pytest.mark.parametrize(
    "first",
    [said(stderr="sh: sbatch: not found", code=127), said(stderr="Unable to process configuration file", code=1)],
)
async def test_commands_that_a_login_shell_alone_finds_are_tried_again(first: Completed) -> None:
    answers = [first, said()]
    link = FakeLink(lambda _: answers.pop(0))
    await Cluster(link, Host(name="lab", ssh="lab", scheduler="slurm")).check(REQUEST)
    assert (answers, link.login_shells) == ([], 1)


async def test_a_check_that_slurm_passes_says_nothing() -> None:
    asked, link, _ = cluster(("sbatch --test-only", said(stderr="sbatch: Job 2 to start at ...")))
    await asked.check(REQUEST)
    assert link.stdin == b"#!/bin/sh\n"


async def test_a_command_that_does_not_end_is_silence() -> None:
    def never(command: str) -> Completed:
        raise StartTimeout(host="lab", what="`sh`", seconds=45)

    with pytest.raises(SchedulerSilent):
        await Cluster(FakeLink(never), Host(name="lab", ssh="lab")).look()


async def test_an_answer_without_an_id_is_a_refusal() -> None:
    asked, _, _ = cluster(("sbatch", said("thanks")))
    with pytest.raises(JobRefused, match="no job id"):
        await asked.submit(REQUEST, b"")


async def test_silence_is_never_an_end() -> None:
    asked, _, _ = cluster(("scontrol", SILENT))
    with pytest.raises(SchedulerSilent):
        await asked.ended("7")


async def test_an_odd_failure_of_the_controller_is_silence_too() -> None:
    odd = said(stderr="slurm_load_jobs error: Unspecified error", code=1)
    asked, _, _ = cluster(("scontrol", odd), ("squeue", odd), ("sinfo", odd))
    for call in (asked.ended("7"), asked.look(), asked.nodes()):
        with pytest.raises(SchedulerSilent, match="Unspecified error"):
            await call


GONE = said(stderr="slurm_load_jobs error: Invalid job id specified", code=1)


async def test_an_end_that_slurm_forgot_is_read_from_the_accounts_or_the_log() -> None:
    log = "hello\nslurmstepd: error: *** JOB 7 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***\n"
    asked, _, _ = cluster(("scontrol", GONE), ("sacct", said(code=1)), ("tail", said(log)))
    assert await asked.ended("7", name="kernelbridge-k1") == JobEnding(job="7", state="TIMEOUT", log=log)
    asked, _, _ = cluster(("scontrol", GONE), ("sacct", said("COMPLETED|0:0|None|n1\n")))
    assert await asked.ended("7") == JobEnding(job="7", state="COMPLETED", node="n1")
    asked, _, _ = cluster(("scontrol", GONE), ("sacct", said(code=127)), ("tail", said(code=1)))
    assert await asked.ended("7", name="kernelbridge-k1") == JobEnding(job="7", state="UNKNOWN")


async def test_a_job_that_runs_on_has_not_ended() -> None:
    asked, _, _ = cluster(("scontrol", said(sample("running.txt"))))
    assert await asked.ended("11") is None


async def test_cancelling_what_is_gone_is_success() -> None:
    asked, link, _ = cluster(("scancel", said(stderr="scancel: error: Invalid job id specified", code=1)))
    await asked.cancel("7")
    assert link.asked == ["scancel 7"]


async def test_cancelling_what_is_anothers_is_refused() -> None:
    denied = said(stderr="scancel: error: Kill job error on job id 1: Access/permission denied", code=1)
    asked, _, _ = cluster(("scancel", denied))
    with pytest.raises(JobRefused, match="permission denied"):
        await asked.cancel("7")


async def test_a_log_is_read_and_removed_below_the_home() -> None:
    asked, link, _ = cluster(("tail", said("x")), ("rm", said()), ("sinfo", said(sample("sinfo.txt"))))
    assert await asked.log_of("kernelbridge-k1") == "x"
    await asked.forget("kernelbridge-k1")
    assert link.asked[-1] == "rm -f -- /home/ada/.cache/kernelbridge/jobs/kernelbridge-k1.log"
    assert [node.name for node in await asked.nodes()] == ["lab"]
