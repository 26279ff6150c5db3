"""A relay in a job of a cluster: the way to it over the login node, whether the job lives, how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelbridge.config import Environment, Host
from kernelbridge.errors import EngineFailed, KernelBridgeError
from kernelbridge.gpu_errors import JobEnded
from kernelbridge.host import endings, jobscript
from kernelbridge.host.answers import ContainerState, Created, Exited, Missing, Over, Running
from kernelbridge.host.endings import JobEnding
from kernelbridge.host.facts import HostFacts
from kernelbridge.host.jobs import WRAPPED
from kernelbridge.host.runtime.spec import NAME_PREFIX, Spec
from kernelbridge.host.stream import Receiver, Stream
from kernelbridge.relay import lifetime, shipping

if TYPE_CHECKING:
    from kernelbridge.host.slurm import Cluster

_LOG = logging.getLogger(__name__)

# How long a job that was cancelled is waited for: Slurm's KillWait is 30 s unless the cluster says otherwise.
GONE_SECONDS = 45.0
LOOK_SECONDS = 0.5


def wants_gpus(environment: Environment) -> bool:
    """Whether the job asks for GPUs."""
    return environment.gpus != 0 or bool(environment.gres)


def spec(name: str, environment: Environment, facts: HostFacts, labels: Mapping[str, str] | None = None) -> Spec:
    """Return what the runtime of the job of this name must know."""
    return Spec(
        kernel=name.removeprefix(NAME_PREFIX),
        environment=environment,
        command=tuple(shipping.job_boot_argv(environment.python)),
        wants_gpus=wants_gpus(environment),
        home=facts.home,
        user_numbers=(facts.uid, facts.gid),
        labels=labels or {},
    )


@dataclass(frozen=True)
class InJob:
    """See site.Runtime."""

    cluster: Cluster
    host: Host
    spec: Spec

    async def attach(self, receiver: Receiver) -> Stream:
        """See Runtime. Raises EngineFailed while the job does not run."""
        return await self.reach(shipping.bridge_argv(self.spec.environment.python), receiver)

    async def reach(self, command: list[str], receiver: Receiver) -> Stream:
        """Run a command beside the relay, joined to its stdin and stdout. Raises EngineFailed and 2x errors."""
        job = await self.cluster.find(self.spec.name)
        if job is None or not job.is_running:
            raise EngineFailed(host=self.host.name, action="reach the job", reason="it does not run")
        words = jobscript.join_argv(self.host.runtime, self.spec, command, job=job.job)
        if jobscript.joins_as_step(self.host.runtime):
            return await self.cluster.link.open_command([*WRAPPED, *words], receiver)
        return await self.cluster.node_login.open_command(job.node, words, receiver, job=job.job)

    async def state(self) -> ContainerState:
        """See Runtime."""
        name = self.spec.name
        job = await self.cluster.find(name)
        if job is not None:
            return Created(error="") if job.is_waiting else Running(is_paused=False, started_at="")
        number = self.cluster.job_of(name)
        if not number:
            return Missing()
        ending = self.cluster.endings.get(number)
        if ending is None:
            ending = await self.cluster.ended(number, name=name)
            if ending is None:
                return Running(is_paused=False, started_at="")
            # At once: nobody calls for the end of a kernel that has ended by itself.
            await self.cluster.remove_log(name)
            self.cluster.endings[number] = ending
        return self._told(ending)

    def _told(self, ending: JobEnding) -> ContainerState:
        has_exited = ending.state in ("COMPLETED", "FAILED") and not ending.signal
        if has_exited and ending.exit_code in lifetime.EXIT_CODES.values():
            return Exited(code=ending.exit_code, oom_killed=False, error="", finished_at="")
        was_ready = not self.cluster.is_starting(self.spec.name)

        def explain(environment: str) -> KernelBridgeError:
            host = self.host.name
            if ending.exit_code == lifetime.EXIT_NO_ORDER:
                minutes = shipping.ORDER_SECONDS / 60
                how = f"started while this machine was away, and ended after {minutes:.0f} min"
                return JobEnded(environment=environment, host=host, job=ending.job, how=how)
            return endings.explain(
                ending, environment=environment, host=host, runtime=self.host.runtime, was_ready=was_ready
            )

        return Over(explain=explain)

    async def logs(self, tail: int) -> str:
        """See Runtime."""
        return "\n".join((await self.cluster.log_of(self.spec.name)).splitlines()[-tail:])

    async def end(self) -> None:
        """See Runtime. The job is out of the queue when this returns, or Slurm takes longer than GONE_SECONDS."""
        name = self.spec.name
        job = await self.cluster.find(name)
        if job is not None:
            await self.cluster.cancel(job.job)
            waited = 0.0
            while waited < GONE_SECONDS:
                # First: all who end jobs at this time share one squeue per interval.
                await asyncio.sleep(LOOK_SECONDS)
                waited += LOOK_SECONDS
                if await self.cluster.find(name) is None:
                    break
        await self.cluster.forget(name)
