"""Start a kernel's container on an engine, or its job on a cluster, and join the relay in it; remove both again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelbridge.config.container_paths import JOURNAL_FOLDER, RUN_FOLDER
from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import (
    ContainerFailed,
    EngineFailed,
    GpuTaken,
    ImageMissing,
    ImageUnusable,
    KernelBridgeError,
    LinkLost,
)
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Backend
from kernelbridge.hosts.bootstrap import relay_line
from kernelbridge.hosts.docker import container_spec, users
from kernelbridge.hosts.docker.container_spec import GpuAsk
from kernelbridge.hosts.docker.images import unfinished_image
from kernelbridge.hosts.docker.images.additions import read_additions
from kernelbridge.hosts.docker.images.built_image import built_image
from kernelbridge.hosts.docker.images.prepared_image import Preparation, PreparedImage
from kernelbridge.hosts.docker.images.python_probe import ANY_PYTHON, FoundPython
from kernelbridge.hosts.docker.responses import ImageFacts, PullProgress
from kernelbridge.hosts.labels import LOCKS_LABEL, LOCKS_VOLUME, SNAPSHOT_LABEL, Labels, container_name
from kernelbridge.hosts.progress import Meter, Say
from kernelbridge.hosts.transport.retry import deadline
from kernelbridge.kernel import failures
from kernelbridge.kernel.placement import Placement
from kernelbridge.kernel.process_mark import own_mark, owner_has_ended, owner_text
from kernelbridge.kernel.records import Records
from kernelbridge.kernel.relay_client import LockMissing, PackagesMissing
from kernelbridge.kernel.request import KernelServices, LaunchRequest
from kernelbridge.kernel.start import preflight, slurm_job
from kernelbridge.kernel.start.gpu_allocator import GpuAllocator, Lease
from kernelbridge.kernel.workspace import with_workspace

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py

_LOG = logging.getLogger(__name__)
REMOVE_SECONDS = 30.0
# Within which an engine carries out what it was asked for over a link that was lost then.
LATE_SECONDS = 5.0
# How often a pull of which nothing is heard says how far it is.
PULL_SILENCE_SECONDS = 2.0
# How long an image's ENTRYPOINT may take; less where a start may take less than ten times as long.
MOST_ENTRYPOINT_SECONDS = 60.0


class DoorRefused(Exception):
    """The engine does not start a container with a door: it is made anew without one. Users never see it."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """One start, from nothing to a joined relay."""

    placement: Placement
    workload: WorkloadHandle
    services: KernelServices
    # What the relay starts the kernel process with.
    order: dict[str, Any]
    # Takes progress, for whoever waits; and a line that stays, for the user's next cell.
    say: Say
    tell: Callable[[str], None]
    # Joins the relay that was started.
    join: Callable[[], Awaitable[None]]
    # Has the workspace on a host; whether that was anything to do.
    bring: Callable[[Host], Awaitable[bool]]

    @property
    def _request(self) -> LaunchRequest:
        return self.placement.request

    async def launch(self) -> None:
        """Start it on one of the hosts that the check found, and join its relay. Raises KernelBridgeError."""
        await (self._launch_container() if self.placement.host.scheduler is None else self._launch_job())

    async def _launch_container(self) -> None:
        """Start a container on one of the hosts, with its GPUs locked, and join its relay."""
        request, placement, services = self._request, self.placement, self.services
        allocator = GpuAllocator(request, placement.hosts, services.engine, self.say, user=services.owner.who)
        made_locks: set[str] = set()
        # Whether a container has shown that its image lacks something, so that it is looked into.
        examine = False
        brought_to = ""
        try:
            while True:
                lease = await allocator.next()
                engine = await services.engine(lease.host)
                placement.settle(lease.host, lease.gpu_ids)
                image, is_new = await self._prepare_image(engine, examine=examine)
                if brought_to != lease.host.name:
                    brought_to = lease.host.name
                    is_new = await self.bring(lease.host) or is_new
                if is_new:
                    continue  # That took a while: GPUs that were free may be taken by now.
                entrypoint = failures.entrypoint_text(_entrypoint(request, image))
                first = (
                    f"; the image's ENTRYPOINT {entrypoint} runs before the {request.workload}" if entrypoint else ""
                )
                self.say(f"starting the container{first}")
                seconds = request.environment.start_seconds
                try:
                    async with deadline(seconds, lease.host.name, "the start of the container"):
                        await self._try(engine, lease, image)
                    return
                except GpuTaken:
                    allocator.lost(lease)
                except DoorRefused:
                    pass  # The next try is without.
                except LockMissing as exc:
                    if lease.host.name in made_locks:
                        raise _no_locks(request, lease.host) from exc
                    made_locks.add(lease.host.name)
                    await _make_locks(engine, request, lease, image)
                except (PackagesMissing, ImageUnusable) as exc:
                    if not self._may_be_mended(image, exc):
                        raise _unusable(request, exc) from exc
                    examine, placement.prepared = True, None
                if not await self.workload.remove(lease.host.name, partial(services.backend, lease.host)):
                    raise LinkLost(host=lease.host.name)
        finally:
            await allocator.aclose()

    def _may_be_mended(self, image: PreparedImage, exc: PackagesMissing | ImageUnusable) -> bool:
        """Whether a closer look at the image may find what it lacks, or add it."""
        environment = self._request.environment
        if isinstance(exc, ImageUnusable) and (environment.python != ANY_PYTHON or not exc.of_python):
            return False
        return not image.is_examined

    async def _prepare_image(self, engine: Engine, *, examine: bool) -> tuple[PreparedImage, bool]:
        """Return the image that the container is made of, and whether it had to be fetched or made."""
        environment, placement = self._request.environment, self.placement
        if placement.prepared is not None:
            return placement.prepared, False
        base, is_new = placement.base, False
        if base is None:
            base, is_new = await _get_image(engine, environment, self.say)
            placement.set_image(base)
            await preflight.check_driver(environment, placement.host, engine)
        preparation = _preparation(
            engine, environment, base, self.services.records, Path(self.services.config), self.say
        )
        prepared = await _prepared(preparation, examine=examine)
        placement.set_prepared(prepared)
        return prepared, is_new or prepared.is_new

    async def _try(self, engine: Engine, lease: Lease, image: PreparedImage) -> None:
        """Start a container with these GPUs. Raises GpuTaken, LockMissing and others; the container is there then."""
        request = with_workspace(self._request, lease.host, engine.facts.home)
        ask = GpuAsk()
        if lease.gpu_ids:
            way = await engine.gpu_way(lease.host.gpu_access)
            has_capabilities = container_spec.CAPABILITIES in image.facts.env
            ask = GpuAsk(ids=lease.gpu_ids, way=way, image_has_capabilities=has_capabilities)
        labels = replace(self.services.labels(request, lease.gpu_ids), python=image.python)
        reading = asyncio.create_task(engine.proxies())
        try:
            creation = create_container(engine, request, image, labels=labels, gpus=ask, tell=self.tell)
            await self.workload.create(creation)
            proxies = await reading
        finally:
            reading.cancel()
        order = with_entrypoint(self.order, request, image)
        if image.floors:
            order["floors"] = dict(image.floors)
        await start_container(engine, request, order, gpus=lease.gpu_ids, environ=proxies)
        await self.join()

    async def _launch_job(self) -> None:
        """Submit a job, wait until it runs, and join its relay."""
        request, placement, host = self._request, self.placement, self.placement.host
        get_cluster = partial(self.services.cluster, host)
        placement.settle(host, ())
        cluster = await get_cluster()
        labels = self.services.labels(request, ())
        await self.bring(host)
        request = with_workspace(request, host, cluster.link.facts.home)
        self.say("submitting the job")
        await self.workload.create(slurm_job.submit(cluster, request, host, labels))
        placement.settle(host, (), job=cluster.job_of(container_name(request.kernel_id)))
        await slurm_job.wait_until_running(get_cluster, request, host, self.say)
        async with deadline(request.environment.start_seconds, host.name, "the start of the container in the job"):
            self.say("starting the container in the job")
            await slurm_job.give_order(get_cluster, request, host, self.order)
            await self.join()


def _entrypoint(request: LaunchRequest, image: PreparedImage) -> Sequence[str]:
    """Return the image's ENTRYPOINT, if it is to be run."""
    return image.facts.entrypoint if request.environment.entrypoint == "environment" else ()


def with_entrypoint(order: Mapping[str, Any], request: LaunchRequest, image: PreparedImage) -> dict[str, Any]:
    """Return the order for a new container: its image's ENTRYPOINT is run once, before the first kernel process.

    Of the variables of this machine it gets those alone that stand in the config: none that may be secret.
    """
    argv, environment = _entrypoint(request, image), request.environment
    if not failures.entrypoint_text(argv):
        return dict(order)
    seconds = min(MOST_ENTRYPOINT_SECONDS, environment.start_seconds / 10)
    return {**order, "entrypoint": {"argv": list(argv), "env": dict(environment.env), "seconds": seconds}}


def _preparation(
    engine: Engine,
    environment: Environment,
    base: ImageFacts,
    records: Records,
    config: Path,
    say: Say,
) -> Preparation:
    return Preparation(
        engine=engine,
        environment=environment,
        base=base,
        worker=owner_text(records.machine_id(), own_mark(), ""),
        additions=read_additions(environment, config),
        recall=records.image_python,
        keep=records.keep_image_python,
        cache=records.wheels_folder,
        say=say,
    )


async def _prepared(preparation: Preparation, *, examine: bool) -> PreparedImage:
    """Return the image to start. Who makes one also removes what was left of others that were never finished."""
    prepared = await preparation.prepare(examine=examine)
    if prepared.is_new:
        try:
            await unfinished_image.sweep(preparation.engine, owner_has_ended)
        except KernelBridgeError as exc:
            _LOG.info("[%s] not swept: %s", preparation.engine.link.name, exc)
    return prepared


async def _get_image(engine: Engine, environment: Environment, say: Say) -> tuple[ImageFacts, bool]:
    """Return the environment's own image, and whether it had to be fetched or built."""
    if environment.build is not None:
        return await built_image(engine, environment, say)
    base = await engine.image(environment.image) if environment.pull != "always" else None
    if base is None and environment.pull == "never":
        raise ImageMissing(host=engine.link.name, image=environment.image, reason="`pull` is never")
    return (base, False) if base is not None else (await pull(engine, environment.image, say), True)


async def pull_ahead(engine: Engine, environment: Environment, records: Records, config: Path, say: Say) -> str:
    """Have an environment's image and what is made of it; return the name of that. Raises KernelBridgeError."""
    read_additions(environment, config)  # Before a pull of many minutes.
    base, _ = await _get_image(engine, environment, say)
    return (await _prepared(_preparation(engine, environment, base, records, config, say), examine=True)).name


# Takes an engine, an environment, its image there, and whether to look into that.
PythonFinder = Callable[["Engine", Environment, ImageFacts, bool], Awaitable[FoundPython | None]]


def python_finder(records: Records, config: Path) -> PythonFinder:
    """Return what finds the Python of an image, as a start does. It raises ConfigInvalid, ImageUnusable and others."""

    async def find(engine: Engine, environment: Environment, image: ImageFacts, examine: bool) -> FoundPython | None:
        preparation = _preparation(engine, environment, image, records, config, lambda text: None)
        return await preparation.python(examine=examine)

    return find


def _unusable(request: LaunchRequest, exc: PackagesMissing | ImageUnusable) -> ImageUnusable:
    return exc if isinstance(exc, ImageUnusable) else ImageUnusable(image=request.environment.image, lacks=exc.names)


def _no_locks(request: LaunchRequest, host: Host) -> KernelBridgeError:
    reason = 'its volumes do not support locks; set `gpu_lock = "advisory"`'
    return ContainerFailed(host=host.name, image=request.environment.image, reason=reason)


async def _make_locks(engine: Engine, request: LaunchRequest, lease: Lease, image: PreparedImage) -> None:
    """Give every card of the host its folder in the volume of the locks."""
    names = {gpu.uuid for gpu in lease.facts.gpus} | set(lease.gpu_ids)
    labels = {LOCKS_LABEL: request.kernel_id}
    await engine.volumes.make_folders(LOCKS_VOLUME, names, image=image.name, labels=labels)


async def pull(engine: Engine, image: str, say: Say) -> ImageFacts:
    """Pull an image and return it. Raises ImagePullFailed and others."""
    meter, last = Meter(f"pulling {image}"), [PullProgress(image=image)]

    def tell(now: PullProgress) -> None:
        last[0] = now
        say(failures.pull_progress(meter, now))

    async def tell_silence() -> None:
        # An engine says nothing while nothing comes: then the speed falls.
        while True:
            await asyncio.sleep(PULL_SILENCE_SECONDS)
            tell(last[0])

    tell(last[0])
    telling = asyncio.create_task(tell_silence())
    try:
        return await engine.pull(image, tell)
    finally:
        telling.cancel()


async def create_container(
    engine: Engine,
    request: LaunchRequest,
    image: PreparedImage,
    *,
    labels: Labels,
    gpus: GpuAsk,
    tell: Callable[[str], None],
) -> None:
    """Create the container. `tell` takes a line for the user. Raises KernelBridgeError."""
    name = container_name(request.kernel_id)
    resolving = preflight.resolve_mounts(request.environment, engine)
    mounts, info, _ = await asyncio.gather(resolving, engine.info(), engine.short_ways.make(name))
    chosen = users.choose(request.environment, engine.facts, info)
    if chosen.trouble:
        tell(failures.other_user_text(engine.link.name, chosen.trouble, what=request.workload))
    spec = container_spec.spec(
        environment=request.environment,
        image=image,
        labels=labels,
        gpus=gpus,
        mounts=mounts,
        user=chosen,
    )
    user = str(spec.get("User") or image.facts.user)
    is_root = user.partition(":")[0] in ("", "0", "root")
    volumes = [mount.source for mount in request.environment.volumes if not mount.read_only]
    if volumes and not is_root:
        # By way of another container: nothing can be put into this one where its root is read-only.
        marks = {LOCKS_LABEL: request.kernel_id}
        await engine.volumes.give(volumes, user, image=image.name, labels=marks)
    door = engine.short_ways.door(name, info)
    try:
        await engine.create(name, spec if door is None else door.added_to(spec))
    except KernelBridgeError as exc:
        if not engine.short_ways.refuses(name, exc):
            raise
        await engine.create(name, spec)
    if not is_root:
        # A volume is root's: without this the relay could not write its journal there.
        await engine.make_folder(name, JOURNAL_FOLDER, bootstrap.JOURNAL_NAME)
        if image.facts.labels.get(SNAPSHOT_LABEL):
            # It has the empty folder, as root's, and what is mounted there would take its rights.
            with contextlib.suppress(EngineFailed):
                await engine.make_folder(name, *RUN_FOLDER.rsplit("/", 1))
        if user.partition(":")[0].isdecimal():
            # Without it the relay gives the kernel both in its variables, which is enough for most programs.
            with contextlib.suppress(EngineFailed):
                await engine.enter_user(name, user, chosen.name)


async def start_container(
    engine: Engine,
    request: LaunchRequest,
    spawn: dict[str, Any],
    *,
    gpus: Sequence[str],
    environ: Mapping[str, str],
) -> None:
    """Feed the relay of a container that was created, and start it. Raises KernelBridgeError."""
    name = container_name(request.kernel_id)
    # Attached before the start: not even a crash at once loses the line.
    stdin = await engine.open_stdin(name)
    door = engine.short_ways.order(name)
    stdin.write(relay_line(request.kernel_id, request.environment, spawn, gpus=gpus, environ=environ, door=door))
    stdin.write_eof()
    try:
        await engine.start(name)
    except KernelBridgeError as exc:
        if engine.short_ways.refuses(name, exc):
            raise DoorRefused from exc
        raise
    engine.short_ways.expect(name)


class WorkloadHandle:
    """The container or job of one kernel, at most one at a time: created once, gone in the end.

    That holds whatever is cancelled or lost in between: what the host was asked for may come true later.
    """

    def __init__(self, request: LaunchRequest, *, late_seconds: float = LATE_SECONDS) -> None:
        self._request = request
        self._name = container_name(request.kernel_id)
        self._late_seconds = late_seconds
        # The host's work on it, which goes on also when nobody waits for it any more. Set by create, cleared by
        # remove: None where the host has nothing.
        self._creation: asyncio.Task[None] | None = None
        self._removing = asyncio.Lock()
        # Why the last removal came to nothing: words for people.
        self.trouble = ""

    def __repr__(self) -> str:
        return f"<WorkloadHandle {self._name}{' perhaps there' if self._creation else ''}>"

    @property
    def may_be_there(self) -> bool:
        """Whether the host may have it, or be about to."""
        return self._creation is not None

    def adopt(self) -> None:
        """Have `remove` remove a container that was made before, by another process or by an earlier start."""
        if self._creation is None:
            self._creation = asyncio.get_running_loop().create_task(_nothing())

    async def create(self, creation: Coroutine[Any, Any, None]) -> None:
        """Create it by awaiting `creation`. Raises what that raises.

        Call `remove` also then, and when cancelled.
        """
        self._creation = asyncio.create_task(creation)
        await asyncio.shield(self._creation)

    def forget(self) -> None:
        """Leave the container to whoever has it: `remove` does nothing to it from now on."""
        self._creation = None

    async def remove(self, host: str, get_backend: Callable[[], Awaitable[Backend]]) -> bool:
        """Remove the container; whether it is gone. A host that cannot be reached keeps it, and `clean` finds it.

        Who comes second waits for the first, and does nothing.
        """
        async with self._removing:
            if self._creation is None:
                return True
            # Before the engine has made it there is nothing to remove, and afterwards nobody would.
            await asyncio.wait([self._creation])
            is_answered = not isinstance(self._creation.exception(), LinkLost)
            try:
                async with deadline(REMOVE_SECONDS, host, "the removal of the container"):
                    workload = (await get_backend()).workload(self._name, self._request.environment)
                    await workload.stop()
                    if not is_answered:
                        await asyncio.sleep(self._late_seconds)
                        await workload.stop()
            except KernelBridgeError as exc:
                _LOG.warning("[%s k=%s] container not removed: %s", host, self._request.kernel_id[:4], exc)
                self.trouble = str(exc) if isinstance(exc, EngineFailed) else f"{host} cannot be reached"
                return False
            self._creation = None
            return True


async def _nothing() -> None:
    """Stand for a creation that is long done."""
