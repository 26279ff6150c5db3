"""From nothing to a joined relay: on an engine GPUs, image, container; on a cluster a job. When: kernel.py."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from kernelbridge import checks, container, creation, job
from kernelbridge.container import GpuAsk
from kernelbridge.errors import LinkLost
from kernelbridge.gpu_errors import GpuTaken
from kernelbridge.housing import Housing
from kernelbridge.kernel_errors import ContainerFailed
from kernelbridge.leasing import Lease, Leasing
from kernelbridge.relays import LockMissing
from kernelbridge.surroundings import Surroundings
from kernelbridge.wanted import Wanted, deadline
from kernelbridge.whereabouts import Whereabouts

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py


class Opener(Protocol):
    """The kernel that is being started; called on the loop."""

    wanted: Wanted

    def say(self, text: str) -> None:
        """Progress, for who waits."""

    def order(self) -> dict[str, Any]:
        """Return what the relay starts the kernel process with."""

    async def join(self) -> None:
        """Join the relay that was started."""


async def open_kernel(opener: Opener, where: Whereabouts, housing: Housing, around: Surroundings) -> None:
    """Have a relay that is joined, on one of the hosts that were found. Raises KernelBridgeError."""
    is_job = where.host.scheduler is not None
    await (open_job if is_job else open_container)(opener, where, housing, around)


async def open_container(opener: Opener, where: Whereabouts, housing: Housing, around: Surroundings) -> None:
    """Have a container on one of the hosts, with its GPUs locked, and its relay joined. Raises KernelBridgeError."""
    wanted = opener.wanted
    leasing = Leasing(wanted, where.hosts, around.reach, opener.say, user=around.owner.who)
    made_locks: set[str] = set()
    try:
        while True:
            lease = await leasing.next()
            engine = await around.reach(lease.host)
            where.settle(lease.host, lease.gpu_ids)
            if await _fetch_image(opener, where, engine):
                continue  # That took its time: what was free may be taken.
            opener.say("starting the container")
            try:
                async with deadline(wanted.environment.start_seconds, lease.host.name, "the start of the container"):
                    await _try(opener, housing, around, engine, lease)
                return
            except GpuTaken:
                leasing.lost(lease)
            except LockMissing as exc:
                if lease.host.name in made_locks:
                    reason = 'its volumes know no locks; set `gpu_lock = "advisory"`'
                    raise ContainerFailed(host=lease.host.name, image=wanted.environment.image, reason=reason) from exc
                made_locks.add(lease.host.name)
                await _make_locks(engine, wanted, lease)
            if not await housing.remove(lease.host.name, partial(around.site, lease.host)):
                raise LinkLost(host=lease.host.name)
    finally:
        await leasing.aclose()


async def _fetch_image(opener: Opener, where: Whereabouts, engine: Engine) -> bool:
    """The image is on the host; whether it had to be fetched."""
    environment = opener.wanted.environment
    if where.image.has_id:
        return False
    image = await engine.image(environment.image) if environment.pull != "always" else None
    where.know_image(image.id if image else await creation.pull(engine, environment.image, opener.say))
    await checks.check_driver(environment, where.host, engine)
    return image is None


async def _try(opener: Opener, housing: Housing, around: Surroundings, engine: Engine, lease: Lease) -> None:
    """Start a container with these GPUs. Raises GpuTaken, LockMissing and others; the container is there then."""
    wanted = opener.wanted
    ask = GpuAsk()
    if lease.gpu_ids:
        ask = GpuAsk(ids=lease.gpu_ids, way=await engine.gpu_way(lease.host.gpu_access))
    labels = around.labels(wanted, lease.gpu_ids)
    await housing.make(creation.create_container(engine, wanted, labels=labels, gpus=ask))
    await creation.start_container(engine, wanted, opener.order(), gpus=lease.gpu_ids)
    await opener.join()


async def _make_locks(engine: Engine, wanted: Wanted, lease: Lease) -> None:
    """Every card of the host has its folder in the volume of the locks."""
    names = {gpu.uuid for gpu in lease.facts.gpus} | set(lease.gpu_ids)
    labels = {container.LOCKS_LABEL: wanted.kernel_id}
    await engine.volumes.make_folders(container.LOCKS_VOLUME, names, image=wanted.environment.image, labels=labels)


async def open_job(opener: Opener, where: Whereabouts, housing: Housing, around: Surroundings) -> None:
    """Have a job of a cluster that runs, and its relay joined. Raises KernelBridgeError."""
    wanted, host = opener.wanted, where.host
    environment = wanted.environment
    where.settle(host, ())
    cluster = await around.cluster(host)
    labels = around.labels(wanted, ())
    opener.say("handing the job in")
    await housing.make(job.submit(cluster, wanted, host, labels))
    where.settle(host, (), job=cluster.job_of(container.name(wanted.kernel_id)))
    await job.wait_until_running(partial(around.cluster, host), wanted, host, opener.say)
    async with deadline(environment.start_seconds, host.name, "the start of the container in the job"):
        opener.say("starting the container in the job")
        await job.give_order(partial(around.cluster, host), wanted, host, opener.order())
        await opener.join()
