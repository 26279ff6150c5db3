"""A kernel's job on a cluster: what is asked of Slurm, the wait in its queue, the order to the relay in it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kernelbridge import container, creation
from kernelbridge.config import Host
from kernelbridge.container import Labels
from kernelbridge.errors import EngineFailed, KernelBridgeError
from kernelbridge.gpu_errors import GpusBusy, JobRefused, SchedulerSilent
from kernelbridge.host import in_job, jobs, jobscript
from kernelbridge.host.answers import Over
from kernelbridge.host.jobs import JobFacts, JobRequest
from kernelbridge.host.leases import Wish
from kernelbridge.host.ssh import is_transient
from kernelbridge.host.stream import Collector
from kernelbridge.relay import shipping
from kernelbridge.wanted import Wanted

if TYPE_CHECKING:
    from kernelbridge.host.slurm import Cluster

LOOK_SECONDS = 1.0
ORDER_ANSWER_SECONDS = 60.0


def request(wanted: Wanted, host: Host, labels: Labels | None = None) -> JobRequest:
    """Return the job that a kernel needs. Raises JobRefused, for GPUs that Slurm cannot be asked for."""
    environment = wanted.environment
    if host.runtime == "pyxis" and environment.network == "none":
        raise JobRefused(host=host.name, reason='pyxis has the node\'s network alone, and `network` says "none"')
    try:
        gres = jobs.gres_of(gpus=environment.gpus, gres=environment.gres)
        comment = jobs.write_comment(labels.to_dict()) if labels else ""
    except ValueError as exc:
        raise JobRefused(host=host.name, reason=str(exc)) from exc
    return JobRequest(
        name=container.name(wanted.kernel_id),
        partition=host.partition,
        account=host.account,
        seconds=environment.time_limit,
        gres=gres,
        memory_bytes=environment.memory,
        cpus=environment.cpus,
        args=host.sbatch_args,
        comment=comment,
    )


async def submit(cluster: Cluster, wanted: Wanted, host: Host, labels: Labels) -> None:
    """Hand the job in. Raises JobRefused and others."""
    # The labels are words of a command there, which every login of the node can see.
    nameless = replace(labels, user="").to_dict()
    made = in_job.spec(container.name(wanted.kernel_id), wanted.environment, cluster.link.facts, nameless)
    await cluster.submit(request(wanted, host, labels), jobscript.script(host.runtime, made))


async def wait_until_running(
    reach: Callable[[], Awaitable[Cluster]], wanted: Wanted, host: Host, say: Callable[[str], None]
) -> None:
    """Return when the job runs; it waits in Slurm's queue while this machine sleeps, too.

    Raises JobEnded, JobRefused, GpusBusy (`wait` is over) and others.
    """
    name, limit = container.name(wanted.kernel_id), wanted.environment.wait
    began, tell = time.monotonic(), _only_news(say)
    while True:
        try:
            job = await (await reach()).find(name)
            if job is None:
                await _explain(await reach(), wanted, host)
            elif job.is_running:
                return
            else:
                _check_waiting(job, wanted, host)
                tell(jobs.waiting_text(job, host=host.name))
        except SchedulerSilent as exc:
            tell(exc.sentence)
        except KernelBridgeError as exc:
            if not is_transient(exc):
                raise
            tell(exc.sentence)
        if limit is not None and time.monotonic() - began > limit:
            wish = wanted.environment.gres or str(Wish.of_environment(wanted.environment))
            raise GpusBusy(
                host=host.name, wanted=wish, holders=["Slurm has not started the job"], waited=f"{limit / 60:.0f} min"
            )
        await asyncio.sleep(LOOK_SECONDS)


def _only_news(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return what says a text unless it was the last."""
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            say(text)

    return tell


def _check_waiting(job: JobFacts, wanted: Wanted, host: Host) -> None:
    if job.is_hopeless:
        raise JobRefused(host=host.name, reason=f"it would wait for ever: {job.reason}")


async def _explain(cluster: Cluster, wanted: Wanted, host: Host) -> None:
    """Raise why the job is not in the queue any more; return where it is only not seen yet."""
    state = await cluster.runtime(container.name(wanted.kernel_id), wanted.environment).state()
    if isinstance(state, Over):
        raise state.explain(wanted.display_name)


async def give_order(
    reach: Callable[[], Awaitable[Cluster]], wanted: Wanted, host: Host, spawn: dict[str, Any]
) -> None:
    """Give the relay in the job what it starts with, over a stream: it stands in no script. Raises JobEnded, others.

    The deadline is the caller's: the container may take its time to come.
    """
    environment = wanted.environment
    # An engine's container is no child of the job: the end of its stdin tells it that the job has ended.
    is_engine = host.runtime in ("docker", "podman")
    line = creation.relay_line(
        wanted, spawn, gpus=None if in_job.wants_gpus(environment) else (), ends_with_stdin=is_engine
    )
    while True:
        try:
            if await _is_taken(await reach(), wanted, line):
                return
            await _explain(await reach(), wanted, host)
        except KernelBridgeError as exc:
            if not is_transient(exc) and not isinstance(exc, SchedulerSilent):
                raise
        await asyncio.sleep(LOOK_SECONDS)


async def _is_taken(cluster: Cluster, wanted: Wanted, line: bytes) -> bool:
    """Offer the order once; whether the relay has it. A job that does not run (any more) takes none."""
    name, environment = container.name(wanted.kernel_id), wanted.environment
    answer = Collector()
    try:
        stream = await cluster.runtime(name, environment).reach(shipping.order_argv(environment.python), answer)
    except EngineFailed:
        return False
    try:
        stream.write(line)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ORDER_ANSWER_SECONDS):
                await _answered(answer)
    finally:
        stream.close()
    if b"ok\n" not in answer.received:
        return False
    cluster.has_started(name)
    return True


async def _answered(answer: Collector) -> None:
    ended = asyncio.ensure_future(answer.wait_ended())
    try:
        while not ended.done() and b"ok\n" not in answer.received:
            await asyncio.wait([ended], timeout=0.05)
    finally:
        ended.cancel()
