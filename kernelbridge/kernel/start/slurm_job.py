"""Submit a kernel's job to a cluster, wait until it runs, and give the relay in it its order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kernelbridge.config.schema import Host
from kernelbridge.errors import EngineFailed, GpusBusy, JobRefused, KernelBridgeError, SchedulerSilent
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Over
from kernelbridge.hosts.gpus.selection import GpuRequest
from kernelbridge.hosts.labels import Labels, container_name
from kernelbridge.hosts.progress import Say, WorkProgress
from kernelbridge.hosts.slurm import commands, job_script
from kernelbridge.hosts.slurm.cluster import job_spec, wants_gpus
from kernelbridge.hosts.slurm.commands import JobFacts, JobRequest
from kernelbridge.hosts.transport.retry import is_transient
from kernelbridge.hosts.transport.stream import Collector
from kernelbridge.kernel.request import LaunchRequest

if TYPE_CHECKING:
    from kernelbridge.hosts.slurm.cluster import Cluster

JOB_LOOK_SECONDS = 1.0
ORDER_ANSWER_SECONDS = 60.0


def job_request(request: LaunchRequest, host: Host, labels: Labels | None = None) -> JobRequest:
    """Return the job that a kernel needs. Raises JobRefused, for GPUs that Slurm cannot be asked for."""
    environment = request.environment
    if host.runtime == "pyxis" and environment.network == "none":
        raise JobRefused(host=host.name, reason='pyxis has only the node\'s network, but `network` says "none"')
    try:
        gres = commands.gres_of(gpus=environment.gpus, gres=environment.gres)
        comment = commands.write_comment(labels.to_dict()) if labels else ""
    except ValueError as exc:
        raise JobRefused(host=host.name, reason=str(exc)) from exc
    return JobRequest(
        name=container_name(request.kernel_id),
        partition=host.partition,
        account=host.account,
        seconds=environment.time_limit,
        gres=gres,
        memory_bytes=environment.memory,
        cpus=environment.cpus,
        args=host.sbatch_args,
        comment=comment,
    )


async def submit(cluster: Cluster, request: LaunchRequest, host: Host, labels: Labels) -> None:
    """Submit the job. Raises JobRefused and others."""
    # The labels are words of a command there, which every login of the node can see.
    nameless = replace(labels, user="").to_dict()
    made = job_spec(container_name(request.kernel_id), request.environment, cluster.link.facts, nameless)
    await cluster.submit(job_request(request, host, labels), job_script.script(host.runtime, made))


async def wait_until_running(
    get_cluster: Callable[[], Awaitable[Cluster]], request: LaunchRequest, host: Host, say: Say
) -> None:
    """Return when the job runs; it waits in Slurm's queue while this machine sleeps, too.

    Raises JobEnded, JobRefused, GpusBusy (`wait` is over) and others.
    """
    name, limit = container_name(request.kernel_id), request.environment.wait
    began, say_news = time.monotonic(), _only_news(say)
    while True:
        try:
            job = await (await get_cluster()).find(name)
            if job is None:
                await _explain(await get_cluster(), request, host)
            elif job.is_running:
                return
            else:
                _check_waiting(job, request, host)
                say_news(_waiting(job, host, waited_seconds=time.monotonic() - began, limit=limit))
        except SchedulerSilent as exc:
            say_news(exc.sentence)
        except KernelBridgeError as exc:
            if not is_transient(exc):
                raise
            say_news(exc.sentence)
        if limit is not None and time.monotonic() - began > limit:
            wanted = request.environment.gres or str(GpuRequest.of_environment(request.environment))
            raise GpusBusy(
                host=host.name, wanted=wanted, holders=["Slurm has not started the job"], waited=f"{limit / 60:.0f} min"
            )
        await asyncio.sleep(JOB_LOOK_SECONDS)


def _waiting(job: JobFacts, host: Host, *, waited_seconds: float, limit: float | None) -> WorkProgress:
    starts = job.starts if job.state == "PENDING" else None
    return WorkProgress(
        what=commands.waiting_text(job, host=host.name),
        waited_seconds=waited_seconds,
        most_wait_seconds=limit,
        known_left_seconds=max(0.0, starts - time.time()) if starts is not None else None,
    )


def _only_news(say: Say) -> Say:
    """Return a function that says what it is given unless it said the same before."""
    last = ""

    def say_news(news: str | WorkProgress) -> None:
        nonlocal last
        if str(news) != last:
            last = str(news)
            say(news)

    return say_news


def _check_waiting(job: JobFacts, request: LaunchRequest, host: Host) -> None:
    if job.is_hopeless:
        raise JobRefused(host=host.name, reason=f"it would wait forever: {job.reason}")


async def _explain(cluster: Cluster, request: LaunchRequest, host: Host) -> None:
    """Raise why the job is not in the queue any more; return where it is only not seen yet."""
    state = await cluster.workload(container_name(request.kernel_id), request.environment).state()
    if isinstance(state, Over):
        raise state.explain(request.display_name)


async def give_order(
    get_cluster: Callable[[], Awaitable[Cluster]], request: LaunchRequest, host: Host, spawn: dict[str, Any]
) -> None:
    """Give the relay in the job what it starts with, over a stream: it stands in no script. Raises JobEnded, others.

    The deadline is the caller's: the container may take its time to come.
    """
    environment = request.environment
    # An engine's container is no child of the job: the end of its stdin tells it that the job has ended.
    is_engine = host.runtime in ("docker", "podman")
    line = bootstrap.relay_line(
        request.kernel_id, environment, spawn, gpus=None if wants_gpus(environment) else (), ends_with_stdin=is_engine
    )
    while True:
        try:
            if await _is_taken(await get_cluster(), request, line):
                return
            await _explain(await get_cluster(), request, host)
        except KernelBridgeError as exc:
            if not is_transient(exc) and not isinstance(exc, SchedulerSilent):
                raise
        await asyncio.sleep(JOB_LOOK_SECONDS)


async def _is_taken(cluster: Cluster, request: LaunchRequest, line: bytes) -> bool:
    """Offer the order once; whether the relay has it. A job that does not run (any more) takes none."""
    name, environment = container_name(request.kernel_id), request.environment
    answer = Collector()
    try:
        stream = await cluster.workload(name, environment).open_command(
            bootstrap.order_argv(environment.python), answer
        )
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
