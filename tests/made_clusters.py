"""A cluster made up for the tests of slurm_job.py and launch.py: what its queue shows, and who answers in its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kernelbridge.config.schema import Environment, Host
from kernelbridge.hosts.backend import ContainerState, Missing
from kernelbridge.hosts.slurm.commands import JobFacts, JobRequest
from kernelbridge.hosts.transport.stream import Completed, LoginEntry, Receiver

HPC = Host(name="hpc", ssh="hpc", scheduler="slurm", partition="gpu", account="lab", sbatch_args=("--qos=debug",))


def queued(state: str = "PENDING", *, reason: str = "", starts: float | None = None, node: str = "") -> JobFacts:
    """The job of a test, as squeue shows it."""
    return JobFacts(
        job="7",
        name="kernelbridge-k",
        state=state,
        reason=reason,
        node=node,
        starts=starts,
        time_left_seconds=None,
        submitted=None,
    )


RUNNING = queued("RUNNING", node="n1")
# What squeue shows, in the order of the looks; an exception is raised, the last is for ever.
Looks = Sequence[JobFacts | Exception | None]


@dataclass
class Way:
    """The stream to the job's first process."""

    cluster: MadeCluster
    receiver: Receiver

    def write(self, line: bytes) -> None:
        self.cluster.orders.append(line)
        says = self.cluster.answers.pop(0) if self.cluster.answers else b"ok\n"
        if isinstance(says, Exception):
            self.receiver.closed(says)
        elif says is not None:
            self.receiver.data_received(says)
            if says != b"ok\n":  # Its end may come later, and need not be waited for.
                self.receiver.closed(None)

    def close(self) -> None:
        self.cluster.open_ways -= 1


@dataclass
class InMadeJob:
    """What a kernel's relay runs in."""

    cluster: MadeCluster
    name: str

    async def open_command(self, command: list[str], receiver: Receiver) -> Way:
        await asyncio.sleep(0)
        if self.cluster.reach_failures:
            raise self.cluster.reach_failures.pop(0)
        self.cluster.open_ways += 1
        return Way(self.cluster, receiver)

    async def state(self) -> ContainerState:
        await asyncio.sleep(0)
        if isinstance(self.cluster.state, Exception):
            raise self.cluster.state
        return self.cluster.state

    async def stop(self) -> None:
        self.cluster.log.append(f"end {self.name}")


@dataclass
class MadeCluster:
    """The scheduler; `log` has what it was asked to do."""

    looks: Looks = (RUNNING,)
    state: ContainerState | Exception = field(default_factory=Missing)
    # What comes back for each order: bytes and an end, an exception for a broken line, None for nothing at all.
    answers: list[bytes | Exception | None] = field(default_factory=list)
    reach_failures: list[Exception] = field(default_factory=list)
    submit_failure: Exception | None = None
    log: list[str] = field(default_factory=list)
    requests: list[JobRequest] = field(default_factory=list)
    scripts: list[bytes] = field(default_factory=list)
    orders: list[bytes] = field(default_factory=list)
    # What every command on the login node says.
    run_answer: bytes = b""
    shell_seconds: float = 0.0
    entry: LoginEntry = field(default_factory=LoginEntry)
    # How many streams were not closed.
    open_ways: int = 0
    facts: Any = field(default_factory=lambda: type("Facts", (), {"uid": 1000, "gid": 100, "home": "/home/ada"})())

    @property
    def link(self) -> MadeCluster:
        return self

    async def run(self, argv: Sequence[str], *, seconds: float) -> Completed:
        self.log.append(f"run {argv[3]}")
        return Completed(exit_code=0, stdout=self.run_answer, stderr=b"")

    async def check(self, request: JobRequest) -> None:
        self.log.append("check")
        self.requests.append(request)
        if self.submit_failure is not None:
            raise self.submit_failure

    async def submit(self, request: JobRequest, script: bytes) -> str:
        self.log.append(f"submit {request.name}")
        self.requests.append(request)
        self.scripts.append(script)
        if self.submit_failure is not None:
            raise self.submit_failure
        return "7"

    def job_of(self, name: str) -> str:
        return "7" if f"submit {name}" in self.log else ""

    async def find(self, name: str) -> JobFacts | None:
        await asyncio.sleep(0)
        seen, *later = self.looks
        if later:
            self.looks = later
        if isinstance(seen, Exception):
            raise seen
        return seen

    def has_started(self, name: str) -> None:
        self.log.append(f"started {name}")

    def workload(self, name: str, environment: Environment) -> InMadeJob:
        return InMadeJob(self, name)
