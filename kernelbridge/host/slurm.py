"""A Slurm cluster, asked through its login node: hand a job in, look at the queue, learn how a job ended, cancel it.

What is said and answered: jobs.py and endings.py. What a job runs: jobscript.py. Hosts without Slurm: engine.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from kernelbridge.config import Environment, Host
from kernelbridge.gpu_errors import JobRefused, SchedulerSilent, SlurmMissing
from kernelbridge.host import endings, in_job, jobs
from kernelbridge.host.answers import ContainerFacts
from kernelbridge.host.endings import JobEnding
from kernelbridge.host.in_job import InJob
from kernelbridge.host.jobs import JobFacts, JobRequest, NodeFacts
from kernelbridge.host.node_login import NodeLogin
from kernelbridge.host.stream import AnyLink, Completed
from kernelbridge.kernel_errors import StartTimeout

log = logging.getLogger(__name__)

# Slurm's own clients give up after MessageTimeout, mostly 10 s, some after twice that.
COMMAND_SECONDS = 45.0
LOOK_INTERVAL_SECONDS = 2.0
# How much of a job's log is read.
LOG_BYTES = 8192
_NO_SUCH_COMMAND = 127
_TEST_SCRIPT = b"#!/bin/sh\n"


class Cluster:
    """The scheduler of one host, over one link. Everything runs on the link's loop."""

    def __init__(
        self,
        link: AnyLink,
        host: Host,
        *,
        before: Cluster | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`before` is the same cluster over the link before this one."""
        self._link = link
        self._host = host
        self._clock = clock
        # The last answer of squeue and when it was asked for; set by _ask(), taken away by submit() and cancel().
        self._seen: tuple[float, Mapping[str, JobFacts]] | None = None
        # The squeue under way, which all who ask now wait for; None where there is none that is new enough.
        self._looking: asyncio.Task[Mapping[str, JobFacts]] | None = None
        # All of them that have not ended.
        self._tasks: set[asyncio.Task[Mapping[str, JobFacts]]] = set()
        # The newest job of each name, and the names of those whose relay was not heard of yet; for how they ended.
        self._jobs: dict[str, str] = before._jobs if before else {}
        self._starting: set[str] = before._starting if before else set()
        # How jobs ended, by id: their logs are gone then. Set by InJob.
        self.endings: dict[str, JobEnding] = before.endings if before else {}
        self.node_login = NodeLogin(link, host)
        # How many squeue were run, for __repr__; counted by _ask().
        self._looks = 0

    def __repr__(self) -> str:
        seen = "nothing seen" if self._seen is None else f"{len(self._seen[1])} jobs seen"
        return f"<Cluster {self._host.name} {seen}, {self._looks} looks>"

    @property
    def link(self) -> AnyLink:
        """The link to the login node."""
        return self._link

    async def check(self, request: JobRequest) -> None:
        """Know that Slurm would take the job, now or later.

        Raises: JobRefused with Slurm's own sentence, SlurmMissing, SchedulerSilent, LinkLost, SshFailed.
        """
        answer = await self._run(jobs.check_argv(request), stdin=_TEST_SCRIPT)
        if answer.exit_code != 0:
            raise JobRefused(host=self._host.name, reason=jobs.sentence(_text(answer.stderr)))

    async def submit(self, request: JobRequest, script: bytes) -> str:
        """The job is in the queue; returns its id.

        Raises: as check(). SchedulerSilent leaves open whether the job is there: find() by its name later on.
        """
        try:
            answer = await self._run(jobs.submit_argv(request, home=self._link.facts.home), stdin=script)
        except SchedulerSilent:
            # It may have been taken all the same: only the answer was late.
            self._forget_seen()
            if (found := await self.find(request.name)) is not None:
                return found.job
            raise
        finally:
            self._forget_seen()
        if answer.exit_code != 0:
            raise JobRefused(host=self._host.name, reason=jobs.sentence(_text(answer.stderr)))
        try:
            job = jobs.parse_job_id(_text(answer.stdout))
        except ValueError as error:
            raise JobRefused(host=self._host.name, reason=str(error)) from error
        log.info("[%s] job %s is in the queue", self._host.name, job)
        self._jobs[request.name] = job
        self._starting.add(request.name)
        return job

    async def look(self) -> Mapping[str, JobFacts]:
        """This login's jobs by id, at most LOOK_INTERVAL_SECONDS old; all who ask meanwhile share one squeue.

        Raises: SlurmMissing, SchedulerSilent, LinkLost, SshFailed.
        """
        if self._seen is not None and self._clock() - self._seen[0] < LOOK_INTERVAL_SECONDS:
            return self._seen[1]
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._ask())
            self._tasks.add(self._looking)
            self._looking.add_done_callback(self._looked)
        # One who gives up does not take the answer from the others.
        return await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[Mapping[str, JobFacts]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Asked for, so that asyncio does not complain where all who waited have given up.
            task.exception()

    async def _ask(self) -> Mapping[str, JobFacts]:
        asked_at = self._clock()
        self._looks += 1
        answer = await self._run(jobs.QUEUE)
        if answer.exit_code != 0:
            raise SchedulerSilent(host=self._host.name, reason=jobs.sentence(_text(answer.stderr)))
        found = jobs.parse_queue(_text(answer.stdout), who=f"{self._link.facts.user}@{self._host.name}")
        if self._looking is asyncio.current_task():
            self._seen = (asked_at, found)
        return found

    def _forget_seen(self) -> None:
        """What was seen, or is being looked at, is older than what just happened."""
        self._seen = None
        self._looking = None

    async def find(self, name: str) -> JobFacts | None:
        """The newest job of this name in the queue; None where there is none. Raises: as look()."""
        named = [job for job in (await self.look()).values() if job.name == name]
        found = max(named, key=lambda job: int(job.job), default=None)
        if found is not None:
            self._jobs[name] = found.job
        return found

    def job_of(self, name: str) -> str:
        """The id of the newest job of this name that was seen here; empty where none was."""
        return self._jobs.get(name, "")

    def has_started(self, name: str) -> None:
        """The relay in the job of this name was heard of."""
        self._starting.discard(name)

    def is_starting(self, name: str) -> bool:
        """Whether the job of this name was handed in here, and its relay not heard of yet."""
        return name in self._starting

    def runtime(self, name: str, environment: Environment) -> InJob:
        """See site.Site."""
        return InJob(self, self._host, in_job.spec(name, environment, self._link.facts))

    async def list(self, label: str) -> list[ContainerFacts]:
        """See site.Site: this login's jobs; others' are nobody's here."""
        key, _, text = label.partition("=")
        return [
            ContainerFacts(
                id=job.job,
                name=job.name,
                image=job.labels.get(f"{jobs.LABEL_PREFIX}image", ""),
                labels=job.labels,
                state="created" if job.is_waiting else "removing" if job.is_ending else "running",
                created=job.submitted or 0.0,
            )
            for job in (await self.look()).values()
            if key in job.labels and text in ("", job.labels[key])
        ]

    async def ended(self, job: str, *, name: str = "") -> JobEnding | None:
        """How a job ended that look() no longer shows; None where it has not ended. `name`: the job's, for its log.

        Raises: as look(); then nothing is known.
        """
        ending: JobEnding | None
        shown = await self._run(jobs.show_argv(job))
        if shown.exit_code == 0:
            ending = endings.parse_shown(_text(shown.stdout), job=job)
            if ending is None:
                return None
        elif jobs.says_gone(_text(shown.stderr)):
            ending = JobEnding(job=job, state=endings.UNKNOWN)
        else:
            raise SchedulerSilent(host=self._host.name, reason=jobs.sentence(_text(shown.stderr)))
        if ending.state in (endings.UNKNOWN, "CANCELLED"):
            ending = await self._accounts(job) or ending
        said = await self.log_of(name) if name else ""
        if ending.state == endings.UNKNOWN:
            ending = dataclasses.replace(ending, state=endings.state_of_log(said))
        return dataclasses.replace(ending, log=said)

    async def _accounts(self, job: str) -> JobEnding | None:
        """What sacct says; None where the cluster keeps no accounts."""
        try:
            answer = await self._run(jobs.accounting_argv(job))
        except (SchedulerSilent, SlurmMissing):
            # The accounts are another daemon's; the controller has answered.
            return None
        return endings.parse_accounts(_text(answer.stdout), job=job) if answer.exit_code == 0 else None

    async def log_of(self, name: str) -> str:
        """The end of what a job's script and runtime printed; empty where there is no log (yet)."""
        answer = await self._link.run(
            ["tail", "-c", str(LOG_BYTES), "--", self._log_path(name)], seconds=COMMAND_SECONDS
        )
        return _text(answer.stdout) if answer.exit_code == 0 else ""

    async def forget(self, name: str) -> None:
        """Nothing of a job that is no more is left. Safe to call twice."""
        self._starting.discard(name)
        self.endings.pop(self._jobs.get(name, ""), None)
        await self.remove_log(name)

    async def remove_log(self, name: str) -> None:
        """A job's log is removed. Safe to call twice."""
        await self._link.run(["rm", "-f", "--", self._log_path(name)], seconds=COMMAND_SECONDS)

    def _log_path(self, name: str) -> str:
        return f"{self._link.facts.home}/{JobRequest(name=name).log_path}"

    async def cancel(self, job: str) -> None:
        """Slurm ends the job; already ended counts. Its processes get SIGTERM now, and SIGKILL after KillWait.

        Raises: as look(), JobRefused: it is not this login's.
        """
        answer = await self._run(jobs.cancel_argv(job))
        self._forget_seen()
        stderr = _text(answer.stderr)
        if answer.exit_code != 0 and not jobs.says_gone(stderr):
            raise JobRefused(host=self._host.name, reason=jobs.sentence(stderr))

    async def nodes(self) -> tuple[NodeFacts, ...]:
        """The nodes that this login may see, with their GPUs. Raises: as look()."""
        answer = await self._run(jobs.NODES)
        if answer.exit_code != 0:
            raise SchedulerSilent(host=self._host.name, reason=jobs.sentence(_text(answer.stderr)))
        return jobs.parse_nodes(_text(answer.stdout))

    async def aclose(self) -> None:
        """Nobody is asked any more; jobs live on. Safe to call twice."""
        self._looking = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, argv: Sequence[str], *, stdin: bytes = b"") -> Completed:
        """Run one of Slurm's commands.

        Raises: SlurmMissing, SchedulerSilent, LinkLost, SshFailed.
        """
        try:
            answer = await self._link.run(argv, stdin=stdin, seconds=COMMAND_SECONDS)
        except StartTimeout as error:
            raise SchedulerSilent(host=self._host.name, reason=f"no answer in {COMMAND_SECONDS:g} s") from error
        if answer.exit_code == 0:
            return answer
        stderr = _text(answer.stderr)
        if answer.exit_code == _NO_SUCH_COMMAND:
            raise SlurmMissing(host=self._host.name, reason="its commands are not there")
        if jobs.is_silent(stderr):
            raise SchedulerSilent(host=self._host.name, reason=jobs.sentence(stderr))
        if jobs.is_unconfigured(stderr):
            raise SlurmMissing(host=self._host.name, reason=jobs.sentence(stderr))
        return answer


def _text(answer: bytes) -> str:
    return answer.decode("utf-8", "replace")
