"""Find what a host offers to a config that is being written: images that its driver runs, partitions of its Slurm."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kernelbridge.config.schema import Host
from kernelbridge.errors import DriverTooOld, KernelBridgeError
from kernelbridge.hosts.docker.responses import ListedImage
from kernelbridge.hosts.gpus.driver_check import check_driver
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.slurm.cluster import Cluster
from kernelbridge.hosts.slurm.commands import PartitionFacts
from kernelbridge.hosts.transport.stream import AnyLink

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py

_FACTS_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class ImageOffer:
    """The newest images of a host that are somebody's and not ours."""

    fitting: tuple[ListedImage, ...]
    # The names of those that need a newer driver than the host has, each with the sentence that says so.
    too_new: Mapping[str, str] = field(default_factory=dict)


async def images(engine: Engine, *, most: int) -> ImageOffer:
    """Find the newest images of a host, and which of them its driver is too old for. Raises LinkLost, EngineFailed."""
    listed, facts = await asyncio.gather(engine.images.others(), engine.gpus.look(max_age_seconds=_FACTS_SECONDS))
    newest = sorted((one for one in listed if one.names), key=lambda one: one.created, reverse=True)[:most]
    troubles = await asyncio.gather(*(_driver_trouble(engine, facts, one) for one in newest))
    return ImageOffer(
        fitting=tuple(one for one, trouble in zip(newest, troubles, strict=True) if not trouble),
        too_new={name: trouble for one, trouble in zip(newest, troubles, strict=True) if trouble for name in one.names},
    )


async def _driver_trouble(engine: Engine, facts: GpuFacts, image: ListedImage) -> str:
    """Return why the host's driver does not run an image; empty where it does, or there is none."""
    found = await engine.image(image.id) if facts.gpus else None
    if found is not None:
        try:
            check_driver(found.env, facts, host=engine.link.name, image=image.names[0])
        except DriverTooOld as exc:
            return exc.sentence
    return ""


async def partitions(link: AnyLink, host: Host) -> tuple[PartitionFacts, ...]:
    """Return the partitions of a host that has Slurm and no engine for this login, its default first; else none.

    Raises LinkLost, SshFailed.
    """
    facts = link.facts
    if host.is_local or facts.usable_sockets or facts.may_sudo_docker or facts.engine:
        return ()
    try:
        found = await Cluster(link, host).partitions()
    except KernelBridgeError:
        if not link.is_open:
            raise
        return ()  # It has none, or none that answers: then its engine is what is looked at.
    return tuple(sorted(found, key=lambda one: not one.is_default))
