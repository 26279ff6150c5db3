"""Which hosts can give what a front-end asked for: found out before anything is started there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelbridge import container, job
from kernelbridge.config import Environment, Host
from kernelbridge.errors import KernelBridgeError, SecretMissing
from kernelbridge.gpu_errors import GpusBusy
from kernelbridge.host import requirements
from kernelbridge.kernel_errors import ImageMissing, MountMissing
from kernelbridge.leasing import Leasing
from kernelbridge.wanted import Wanted, deadline

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py
    from kernelbridge.host.slurm import Cluster

# A registry that does not say so fast is asked by the pull itself.
REGISTRY_SECONDS = 5.0
CHECK_SECONDS = 30.0

# Prints for each of its arguments where it leads in the end; an empty line for one that is not there.
_SOURCES_SCRIPT = """
for path do
  if [ -e "$path" ]; then readlink -f "$path" || printf '%s\\n' "$path"; else echo; fi
done
"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The hosts that can give what is wanted: one that can now, or those whose queue may be joined."""

    hosts: tuple[Host, ...]
    # Of the image on the first of them; empty: to be pulled, or the host has none itself.
    image_id: str = ""


class Checks:
    """The checks of one start."""

    def __init__(
        self,
        wanted: Wanted,
        reach: Callable[[Host], Awaitable[Engine]],
        cluster: Callable[[Host], Awaitable[Cluster]],
    ) -> None:
        self._wanted = wanted
        self._reach = reach
        self._cluster = cluster
        self._leasing = Leasing(wanted, wanted.hosts, reach, _say_nothing, user="")

    def __repr__(self) -> str:
        return f"<Checks for {self._wanted.kernel_id[:8]}>"

    async def find_hosts(self) -> Found:
        """Return the first host that can give what is wanted; else, where waiting is wanted, those that may later.

        Raises KernelBridgeError, if none can: that of the first host, or of all that are only full.
        """
        environment = self._wanted.environment
        for name in environment.secrets:
            if name not in self._wanted.environ:
                raise SecretMissing(environment=environment.name, name=name)
        failures: list[KernelBridgeError] = []
        later: list[tuple[Host, str]] = []
        for host in self._wanted.hosts:
            try:
                async with deadline(CHECK_SECONDS, host.name, "the check of the host"):
                    image_id, is_free = await self._check(host)
            except KernelBridgeError as exc:
                failures.append(exc)
                continue
            if is_free:
                return Found(hosts=(host,), image_id=image_id)
            later.append((host, image_id))
        if later:
            return Found(hosts=tuple(host for host, _ in later), image_id=later[0][1])
        # The config gives each environment a host.
        busy = [one for one in failures if isinstance(one, GpusBusy)]
        raise GpusBusy.on_all(busy) if isinstance(failures[0], GpusBusy) else failures[0]

    async def _check(self, host: Host) -> tuple[str, bool]:
        """Return the image's id, and whether all can be had now."""
        if host.scheduler is not None:
            cluster = await self._cluster(host)
            await cluster.check(job.request(self._wanted, host))
            return "", True
        engine, environment = await self._reach(host), self._wanted.environment
        is_free = await self._check_gpus(host, engine)
        image_id = await _check_image(environment, host, engine)
        if environment.mounts:
            await _check_mounts(environment, host, engine)
        return image_id, is_free

    async def _check_gpus(self, host: Host, engine: Engine) -> bool:
        if self._wanted.environment.gpus == 0:
            return True
        try:
            await self._leasing.look(host)
        except GpusBusy:
            if self._wanted.environment.wait is None:
                raise
            is_free = False
        else:
            is_free = True
        await engine.gpu_way(host.gpu_access)
        return is_free


def _say_nothing(text: str) -> None:
    """Checks are over before anybody watches."""


async def check_driver(environment: Environment, host: Host, engine: Engine) -> None:
    """Know that the host's driver is new enough for the image, which is there. Raises DriverTooOld."""
    if environment.gpus != 0 and (image := await engine.image(environment.image)) is not None:
        requirements.check_driver(
            image.env, await engine.gpus.look(max_age_seconds=CHECK_SECONDS), host=host.name, image=environment.image
        )


async def _check_mounts(environment: Environment, host: Host, engine: Engine) -> None:
    sources = [container.host_path(mount.source, engine.facts.home) for mount in environment.mounts]
    found = await engine.link.run(["sh", "-c", _SOURCES_SCRIPT, "sh", *sources], seconds=CHECK_SECONDS)
    ends = found.stdout.decode("utf-8", "replace").splitlines()
    for mount, source, end in zip(environment.mounts, sources, ends, strict=False):
        if not end:
            raise MountMissing(host=host.name, path=source)
        # A link of the host may lead to what we refuse.
        container.check_source(end, mount, environment)


async def _check_image(environment: Environment, host: Host, engine: Engine) -> str:
    """Return the image's id; empty if it is to be pulled, and can be as far as the registry says."""
    image = await engine.image(environment.image) if environment.pull != "always" else None
    if image is not None:
        await check_driver(environment, host, engine)
        return image.id
    if environment.pull == "never":
        raise ImageMissing(host=host.name, image=environment.image, reason="`pull` is never")
    await engine.check_pullable(environment.image, seconds=REGISTRY_SECONDS)
    return ""
