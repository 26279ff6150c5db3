"""Submit jobs to a Slurm cluster through its login node, watch the queue, tell how a job ended, cancel it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import (
    EngineFailed,
    JobEnded,
    JobRefused,
    KernelBridgeError,
    SchedulerSilent,
    SlurmMissing,
    StartTimeout,
)
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import ContainerFacts, ContainerState, Created, Exited, Missing, Over, Running
from kernelbridge.hosts.labels import IMAGE_LABEL, NAME_PREFIX
from kernelbridge.hosts.slurm import commands, job_ending, job_script
from kernelbridge.hosts.slurm.commands import WRAPPED, JobFacts, JobRequest, NodeFacts, PartitionFacts
from kernelbridge.hosts.slurm.job_ending import JobEnding
from kernelbridge.hosts.slurm.node_access import NodeLogin
from kernelbridge.hosts.slurm.runtimes.spec import Spec
from kernelbridge.hosts.transport.facts import HostFacts
from kernelbridge.hosts.transport.single_flight import SingleFlight
from kernelbridge.hosts.transport.stream import AnyLink, Completed, Receiver, Stream
from kernelbridge.plain_text import last_lines
from kernelbridge.protocol import exit_codes

_LOG = logging.getLogger(__name__)

# Slurm's own clients give up after MessageTimeout, mostly 10 s, some after twice that.
COMMAND_SECONDS = 45.0
# A busy controller is asked again before a start: with a last answer that comes late, for a check's minute in all.
BUSY_SECONDS = 15.0
BUSY_LOOK_SECONDS = 2.0
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
        """Take over from `before`, the same cluster over the link before this one."""
        self._link = link
        self._host = host
        self._clock = clock
        # The last answer of squeue and when it was asked for; set by _ask(), taken away by submit() and cancel().
        self._seen: tuple[float, Mapping[str, JobFacts]] | None = None
        # The squeue under way; one that is too old is put aside by _forget_seen().
        self._looking: SingleFlight[Mapping[str, JobFacts]] = SingleFlight()
        # The newest job of each name, and the names of those whose relay was not heard of yet; for how they ended.
        self._jobs: dict[str, str] = before._jobs if before else {}
        self._starting: set[str] = before._starting if before else set()
        # How jobs ended, by id: their logs are gone then. Set by JobWorkload.
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

        Raises: JobRefused with Slurm's own sentence, SlurmMissing, SchedulerSilent for BUSY_SECONDS, LinkLost,
        SshFailed.
        """
        until = self._clock() + BUSY_SECONDS
        while True:
            try:
                answer = await self._run(commands.check_argv(request), stdin=_TEST_SCRIPT)
                break
            except SchedulerSilent as error:
                if self._clock() + BUSY_LOOK_SECONDS >= until:
                    raise
                _LOG.info("[%s] %s", self._host.name, error.sentence)
            await asyncio.sleep(BUSY_LOOK_SECONDS)
        if answer.exit_code != 0:
            raise JobRefused(host=self._host.name, reason=commands.sentence(_text(answer.stderr)))

    async def submit(self, request: JobRequest, script: bytes) -> str:
        """Put the job into the queue and return its id.

        Raises: as check(). SchedulerSilent leaves open whether the job is there: find() by its name later on.
        """
        try:
            answer = await self._run(commands.submit_argv(request, home=self._link.facts.home), stdin=script)
        except SchedulerSilent:
            # It may have been taken all the same: only the answer was late.
            self._forget_seen()
            if (found := await self.find(request.name)) is not None:
                return found.job
            raise
        finally:
            self._forget_seen()
        if answer.exit_code != 0:
            raise JobRefused(host=self._host.name, reason=commands.sentence(_text(answer.stderr)))
        try:
            job = commands.parse_job_id(_text(answer.stdout))
        except ValueError as error:
            raise JobRefused(host=self._host.name, reason=str(error)) from error
        _LOG.info("[%s] job %s is in the queue", self._host.name, job)
        self._jobs[request.name] = job
        self._starting.add(request.name)
        return job

    async def look(self) -> Mapping[str, JobFacts]:
        """Return this login's jobs by id, at most LOOK_INTERVAL_SECONDS old; all who ask at a time share one squeue.

        Raises: SlurmMissing, SchedulerSilent, LinkLost, SshFailed.
        """
        if self._seen is not None and self._clock() - self._seen[0] < LOOK_INTERVAL_SECONDS:
            return self._seen[1]
        return await self._looking.join(self._ask)

    async def _ask(self) -> Mapping[str, JobFacts]:
        asked_at = self._clock()
        self._looks += 1
        answer = await self._run(commands.QUEUE)
        if answer.exit_code != 0:
            raise SchedulerSilent(host=self._host.name, reason=commands.sentence(_text(answer.stderr)))
        found = commands.parse_queue(_text(answer.stdout), who=f"{self._link.facts.user}@{self._host.name}")
        if self._looking.is_current:
            self._seen = (asked_at, found)
        return found

    def _forget_seen(self) -> None:
        """Forget what was seen, or is being looked at: it is older than what just happened."""
        self._seen = None
        self._looking.renew()

    async def find(self, name: str) -> JobFacts | None:
        """Find the newest job of this name in the queue; None where there is none. Raises: as look()."""
        named = [job for job in (await self.look()).values() if job.name == name]
        found = max(named, key=lambda job: int(job.job), default=None)
        if found is not None:
            self._jobs[name] = found.job
        return found

    def job_of(self, name: str) -> str:
        """Return the id of the newest job of this name that was seen here; empty where none was."""
        return self._jobs.get(name, "")

    def has_started(self, name: str) -> None:
        """Note that the relay in the job of this name was heard of."""
        self._starting.discard(name)

    def is_starting(self, name: str) -> bool:
        """Whether the job of this name was handed in here, and its relay not heard of yet."""
        return name in self._starting

    def workload(self, name: str, environment: Environment) -> JobWorkload:
        """See Backend."""
        return JobWorkload(self, self._host, job_spec(name, environment, self._link.facts))

    async def list(self, label: str) -> list[ContainerFacts]:
        """See Backend. Lists this login's jobs; others' are nobody's here."""
        key, _, text = label.partition("=")
        return [
            ContainerFacts(
                id=job.job,
                name=job.name,
                image=job.labels.get(IMAGE_LABEL, ""),
                labels=job.labels,
                state="created" if job.is_waiting else "removing" if job.is_ending else "running",
                created=job.submitted or 0.0,
            )
            for job in (await self.look()).values()
            if key in job.labels and text in ("", job.labels[key])
        ]

    async def ended(self, job: str, *, name: str = "") -> JobEnding | None:
        """Say how a job ended that look() no longer shows; None where it has not. `name`: the job's, for its log.

        Raises: as look(); then nothing is known.
        """
        ending: JobEnding | None
        shown = await self._run(commands.show_argv(job))
        if shown.exit_code == 0:
            ending = job_ending.parse_shown(_text(shown.stdout), job=job)
            if ending is None:
                return None
        elif commands.says_gone(_text(shown.stderr)):
            ending = JobEnding(job=job, state=job_ending.UNKNOWN)
        else:
            raise SchedulerSilent(host=self._host.name, reason=commands.sentence(_text(shown.stderr)))
        if ending.state in (job_ending.UNKNOWN, "CANCELLED"):
            ending = await self._accounts(job) or ending
        said = await self.log_of(name) if name else ""
        if ending.state == job_ending.UNKNOWN:
            ending = dataclasses.replace(ending, state=job_ending.state_of_log(said))
        return dataclasses.replace(ending, log=said)

    async def _accounts(self, job: str) -> JobEnding | None:
        """Ask sacct; None where the cluster keeps no accounts."""
        try:
            answer = await self._run(commands.accounting_argv(job))
        except (SchedulerSilent, SlurmMissing):
            # The accounts are another daemon's; the controller has answered.
            return None
        return job_ending.parse_accounts(_text(answer.stdout), job=job) if answer.exit_code == 0 else None

    async def log_of(self, name: str) -> str:
        """Return the end of what a job's script and runtime printed; empty where there is no log (yet)."""
        answer = await self._link.run(
            ["tail", "-c", str(LOG_BYTES), "--", self._log_path(name)], seconds=COMMAND_SECONDS
        )
        return _text(answer.stdout) if answer.exit_code == 0 else ""

    async def forget(self, name: str) -> None:
        """Leave nothing of a job that is no more. Safe to call twice."""
        self._starting.discard(name)
        self.endings.pop(self._jobs.get(name, ""), None)
        await self.remove_log(name)

    async def remove_log(self, name: str) -> None:
        """Remove a job's log. Safe to call twice."""
        await self._link.run(["rm", "-f", "--", self._log_path(name)], seconds=COMMAND_SECONDS)

    def _log_path(self, name: str) -> str:
        return f"{self._link.facts.home}/{JobRequest(name=name).log_path}"

    async def cancel(self, job: str) -> None:
        """Let Slurm end the job; already ended counts. Its processes get SIGTERM now, and SIGKILL after KillWait.

        Raises: as look(), JobRefused: it is not this login's.
        """
        answer = await self._run(commands.cancel_argv(job))
        self._forget_seen()
        stderr = _text(answer.stderr)
        if answer.exit_code != 0 and not commands.says_gone(stderr):
            raise JobRefused(host=self._host.name, reason=commands.sentence(stderr))

    async def nodes(self) -> tuple[NodeFacts, ...]:
        """Return the nodes that this login may see, with their GPUs. Raises: as look()."""
        answer = await self._run(commands.NODES)
        if answer.exit_code != 0:
            raise SchedulerSilent(host=self._host.name, reason=commands.sentence(_text(answer.stderr)))
        return commands.parse_nodes(_text(answer.stdout))

    async def partitions(self) -> tuple[PartitionFacts, ...]:
        """Return the partitions that this login may use. Raises: as look()."""
        answer = await self._run(commands.PARTITIONS)
        if answer.exit_code != 0:
            raise SchedulerSilent(host=self._host.name, reason=commands.sentence(_text(answer.stderr)))
        return commands.parse_partitions(_text(answer.stdout))

    async def aclose(self) -> None:
        """Stop asking; jobs live on. Safe to call twice."""
        await self._looking.aclose()

    async def _run(self, argv: Sequence[str], *, stdin: bytes = b"") -> Completed:
        """Run one of Slurm's commands.

        Raises: SlurmMissing, SchedulerSilent, LinkLost, SshFailed.
        """
        answer = await self._asked(argv, stdin)
        stderr = _text(answer.stderr)
        is_missing = answer.exit_code == _NO_SUCH_COMMAND
        if (is_missing or commands.is_unconfigured(stderr)) and await self._link.ask_login_shell():
            return await self._run(argv, stdin=stdin)
        if answer.exit_code == 0:
            return answer
        if is_missing:
            reason = "its commands are neither on the login's PATH nor in the usual places, such as /opt/slurm/bin"
            raise SlurmMissing(host=self._host.name, reason=reason)
        if commands.is_silent(stderr):
            raise SchedulerSilent(host=self._host.name, reason=commands.sentence(stderr))
        if commands.is_unconfigured(stderr):
            raise SlurmMissing(host=self._host.name, reason=commands.sentence(stderr))
        return answer

    async def _asked(self, argv: Sequence[str], stdin: bytes) -> Completed:
        try:
            return await self._link.run(argv, stdin=stdin, seconds=COMMAND_SECONDS)
        except StartTimeout as error:
            raise SchedulerSilent(host=self._host.name, reason=error.sentence.rstrip(".")) from error


def _text(answer: bytes) -> str:
    return answer.decode("utf-8", "replace")


# How long a job that was cancelled is waited for: Slurm's KillWait is 30 s unless the cluster says otherwise.
GONE_SECONDS = 45.0
GONE_LOOK_SECONDS = 0.5


def wants_gpus(environment: Environment) -> bool:
    """Whether the job asks for GPUs."""
    return environment.gpus != 0 or bool(environment.gres)


def job_spec(name: str, environment: Environment, facts: HostFacts, labels: Mapping[str, str] | None = None) -> Spec:
    """Return what the runtime of the job of this name must know."""
    return Spec(
        kernel=name.removeprefix(NAME_PREFIX),
        environment=environment,
        command=tuple(bootstrap.job_boot_argv(environment.python)),
        wants_gpus=wants_gpus(environment),
        home=facts.home,
        user_numbers=(facts.uid, facts.gid),
        labels=labels or {},
    )


# Of a job: its processes are stopped.
_PAUSED = ("SUSPENDED", "STOPPED")


@dataclass(frozen=True)
class JobWorkload:
    """A relay in a job of a cluster: the way to it over the login node, whether the job lives, and how it ended."""

    cluster: Cluster
    host: Host
    spec: Spec

    async def attach(self, receiver: Receiver) -> Stream:
        """See Workload. Raises EngineFailed while the job does not run."""
        return await self.open_command(bootstrap.bridge_argv(self.python), receiver)

    @property
    def python(self) -> str:
        """See Workload."""
        return self.spec.environment.python

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """See Workload. Raises EngineFailed and 2x errors."""
        job = await self.cluster.find(self.spec.name)
        if job is None or not job.is_running:
            raise EngineFailed(host=self.host.name, action="reach the job", reason="it does not run")
        words = job_script.join_argv(self.host.runtime, self.spec, list(argv), job=job.job)
        if job_script.joins_as_step(self.host.runtime):
            return await self.cluster.link.open_command([*WRAPPED, *words], receiver)
        return await self.cluster.node_login.open_command(job.node, words, receiver, job=job.job)

    async def state(self) -> ContainerState:
        """See Workload."""
        name = self.spec.name
        job = await self.cluster.find(name)
        if job is not None:
            return Created(error="") if job.is_waiting else Running(is_paused=job.state in _PAUSED)
        number = self.cluster.job_of(name)
        if not number:
            return Missing()
        ending = self.cluster.endings.get(number)
        if ending is None:
            ending = await self.cluster.ended(number, name=name)
            if ending is None:
                return Running()
            # At once: nobody calls for the end of a kernel that has ended by itself.
            await self.cluster.remove_log(name)
            self.cluster.endings[number] = ending
        return self._told(ending)

    def _told(self, ending: JobEnding) -> ContainerState:
        has_exited = ending.state in ("COMPLETED", "FAILED") and not ending.signal
        if has_exited and ending.exit_code in exit_codes.EXIT_CODES.values():
            return Exited(code=ending.exit_code, oom_killed=False, error="", finished_at="")
        was_ready = not self.cluster.is_starting(self.spec.name)

        def explain(environment: str) -> KernelBridgeError:
            host = self.host.name
            if ending.exit_code == exit_codes.EXIT_OLD_PYTHON:
                return bootstrap.old_python(self.spec.environment.image, ending.log)
            if ending.exit_code == exit_codes.EXIT_NO_ORDER:
                minutes = bootstrap.ORDER_SECONDS / 60
                how = f"started while this machine was away, and ended after {minutes:.0f} min"
                return JobEnded(environment=environment, host=host, job=ending.job, how=how)
            return job_ending.explain(
                ending, environment=environment, host=host, runtime=self.host.runtime, was_ready=was_ready
            )

        return Over(explain=explain)

    async def logs(self, tail: int) -> str:
        """See Workload."""
        return last_lines(await self.cluster.log_of(self.spec.name), tail)

    async def architectures(self, image: str) -> tuple[str, str]:
        """See Workload."""
        return "", ""

    async def stop(self) -> None:
        """See Workload. The job is out of the queue when this returns, or Slurm takes longer than GONE_SECONDS."""
        name = self.spec.name
        job = await self.cluster.find(name)
        if job is not None:
            await self.cluster.cancel(job.job)
            waited = 0.0
            while waited < GONE_SECONDS:
                # First: all who end jobs at this time share one squeue per interval.
                await asyncio.sleep(GONE_LOOK_SECONDS)
                waited += GONE_LOOK_SECONDS
                if await self.cluster.find(name) is None:
                    break
        await self.cluster.forget(name)
