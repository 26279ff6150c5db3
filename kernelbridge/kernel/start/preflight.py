"""Find the hosts that can run what a front-end asked for, before anything is started there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kernelbridge.config import requirements_file
from kernelbridge.config.schema import HOST_CACHE, Environment, Host, Mount
from kernelbridge.errors import CacheFailed, GpusBusy, ImageMissing, KernelBridgeError, LoginRefused, SecretMissing
from kernelbridge.hosts import mounts
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.gpus import driver_check
from kernelbridge.hosts.progress import WorkProgress
from kernelbridge.hosts.transport.retry import deadline
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel.request import LaunchRequest, WatchLogin, unwatched
from kernelbridge.kernel.start import slurm_job
from kernelbridge.kernel.start.gpu_allocator import GpuAllocator
from kernelbridge.kernel.workspace import with_workspace

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.slurm.cluster import Cluster

# A registry that does not say so fast is asked by the pull itself.
REGISTRY_SECONDS = 5.0
# Many starts at once share the host, and this machine.
CHECK_SECONDS = 60.0
# How many commands a check runs at most: two for GPUs, three for a registry, one for mounts. Each has a shell.
CHECK_COMMANDS = 6


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The hosts that can run it: one that can now, or those whose queue may be joined."""

    hosts: tuple[Host, ...]
    # The image on the first of them; None: to be pulled, or the host has none itself.
    image: ImageFacts | None = None


class Preflight:
    """The checks of one start."""

    def __init__(
        self,
        request: LaunchRequest,
        engine_of: Callable[[Host], Awaitable[Engine]],
        cluster_of: Callable[[Host], Awaitable[Cluster]],
        *,
        config: Path,
        watch_login: WatchLogin = unwatched,
        say: Callable[[Host, str | WorkProgress], None] = lambda host, text: None,
    ) -> None:
        """`config` is the config file; `say` takes what is being done on which host, for whoever waits."""
        self._request = request
        self._config = config
        self._engine_of = engine_of
        self._cluster_of = cluster_of
        self._watch_login = watch_login
        self._say = say
        self._allocator = GpuAllocator(request, request.hosts, engine_of, _say_nothing, user="")

    def __repr__(self) -> str:
        return f"<Preflight for {self._request.kernel_id[:8]}>"

    async def find_hosts(self) -> Candidates:
        """Return the first host that can run it now; else, where the request may wait, those that can later.

        Raises KernelBridgeError, if none can: that of the first host, or of all that are only full; and ConfigInvalid.
        """
        environment = self._request.environment
        for name in environment.secrets:
            if name not in self._request.environ:
                raise SecretMissing(environment=environment.name, name=name)
        requirements_file.read(environment, self._config)
        failures: list[KernelBridgeError] = []
        later: list[tuple[Host, ImageFacts | None]] = []
        for host in self._request.hosts:
            try:
                image, is_free = await self._check(host)
            except KernelBridgeError as exc:
                failures.append(exc)
                continue
            if is_free:
                return Candidates(hosts=(host,), image=image)
            later.append((host, image))
        if later:
            return Candidates(hosts=tuple(host for host, _ in later), image=later[0][1])
        # The config gives each environment a host.
        for failure in failures:
            if isinstance(failure, LoginRefused) and failure.needs_person:
                raise failure
        busy = [one for one in failures if isinstance(one, GpusBusy)]
        raise GpusBusy.on_all(busy) if isinstance(failures[0], GpusBusy) else failures[0]

    async def _check(self, host: Host) -> tuple[ImageFacts | None, bool]:
        """Return the image where it is there, and whether all can be had now."""
        say = partial(self._say, host)
        say("connecting")
        with self._watch_login(host, lambda stage: say(stage.text)):
            if host.scheduler is not None:
                cluster = await self._cluster_of(host)
            else:
                engine = await self._engine_of(host)
        if host.scheduler is not None:
            say("asking the scheduler")
            async with _deadline(host, cluster.link):
                await cluster.check(slurm_job.job_request(self._request, host))
                await check_mounts(self._with_folder(host, cluster.link), cluster.link)
            return None, True
        environment = self._request.environment
        async with _deadline(host, engine.link):
            if environment.gpus != 0:
                say("looking for free GPUs")
            is_free = await self._check_gpus(host, engine)
            image = None
            if environment.build is None:
                say(f"looking for the image {environment.image}")
                image = await check_image(environment, host, engine)
            environment = self._with_folder(host, engine.link)
            if environment.host_mounts:
                say("looking for what is to be mounted")
            await resolve_mounts(environment, engine)
        return image, is_free

    def _with_folder(self, host: Host, link: AnyLink) -> Environment:
        """Return the environment with the mount of a workspace that the host has by itself: a copy is made later."""
        project = self._request.project
        if project is not None and project.is_copied(host):
            return self._request.environment
        return with_workspace(self._request, host, link.facts.home).environment

    async def _check_gpus(self, host: Host, engine: Engine) -> bool:
        if self._request.environment.gpus == 0:
            return True
        try:
            lease = await self._allocator.look(host)
        except GpusBusy:
            if self._request.environment.wait is None:
                raise
            is_free = False
        else:
            is_free = True
            if not lease.gpu_ids:
                return True  # It has none, and none are enough.
        await engine.gpu_way(host.gpu_access)
        return is_free


def _deadline(host: Host, link: AnyLink) -> AbstractAsyncContextManager[None]:
    """Limit what is asked over a link that is open: logging in has limits of its own, and so have start-up files."""
    seconds = CHECK_SECONDS + CHECK_COMMANDS * link.shell_seconds
    return deadline(seconds, host.name, "the check of the host", "Try again once the host answers faster.")


def _say_nothing(news: str | WorkProgress) -> None:
    """Drop progress: checks are over before anybody watches."""


async def check_driver(environment: Environment, host: Host, engine: Engine) -> None:
    """Check that the host's driver is new enough for the image, if that is there. Raises DriverTooOld."""
    if environment.gpus != 0 and (image := await engine.image(environment.image)) is not None:
        driver_check.check_driver(
            image.env, await engine.gpus.look(max_age_seconds=CHECK_SECONDS), host=host.name, image=environment.image
        )


async def resolve_mounts(environment: Environment, engine: Engine) -> tuple[Mount, ...]:
    """Return the mounts as they are on the host at this moment. Raises: MountMissing, ConfigInvalid, LinkLost, others.

    Another program may still lay a link between this and the mount; so it is asked just before.
    """
    if not environment.host_mounts:
        return ()
    home, socket = engine.facts.home, engine.about.socket
    if environment.cache:
        await make_cache(engine.link)
    sources = mounts.sources(environment, home, socket=socket)
    found = await engine.link.run(["sh", "-c", mounts.RESOLVE_SCRIPT, "readlink", *sources], seconds=CHECK_SECONDS)
    return mounts.parse_resolved(found.stdout, environment, host=engine.link.name, host_home=home, socket=socket)


async def check_mounts(environment: Environment, link: AnyLink) -> None:
    """Check where mounts lead on a cluster's login node. Raises: ConfigInvalid, LinkLost, others."""
    if environment.cache:
        await make_cache(link)
    if environment.host_mounts:
        sources = mounts.sources(environment, link.facts.home, socket="")
        found = await link.run(["sh", "-c", mounts.RESOLVE_SCRIPT, "readlink", *sources], seconds=CHECK_SECONDS)
        mounts.check_resolved(found.stdout, environment)


async def make_cache(link: AnyLink) -> None:
    """Make the login's folder of caches on its host. Raises: CacheFailed, LinkLost, others."""
    path = mounts.host_path(HOST_CACHE, link.facts.home)
    done = await link.run(["sh", "-c", mounts.MAKE_SCRIPT, "mkdir", path], seconds=CHECK_SECONDS)
    if done.exit_code:
        raise CacheFailed(host=link.name, path=path, reason=done.stderr.decode("utf-8", "replace").strip())


async def check_image(environment: Environment, host: Host, engine: Engine) -> ImageFacts | None:
    """Return the image; None if it is to be pulled, and can be as far as the registry says.

    Raises: ImageMissing, ImagePullFailed, DriverTooOld, LinkLost, others.
    """
    image = await engine.image(environment.image) if environment.pull != "always" else None
    if image is not None:
        await check_driver(environment, host, engine)
        return image
    if environment.pull == "never":
        raise ImageMissing(host=host.name, image=environment.image, reason="`pull` is never")
    await engine.check_pullable(environment.image, seconds=REGISTRY_SECONDS)
    return None
