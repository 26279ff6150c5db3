"""Remove the containers in which images were made and that nobody works in any more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from kernelbridge.hosts.backend import ContainerFacts
from kernelbridge.hosts.docker.gpu_queue import engine_now
from kernelbridge.hosts.labels import WORK_LABEL, WORK_PREFIX, parse_labels

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py

_LOG = logging.getLogger(__name__)
# pip and apt may take one hour; nobody makes an image for longer.
_WORK_SECONDS: Final = 2 * 3600.0


def left(found: Iterable[ContainerFacts], now: float, has_ended: Callable[[str], bool]) -> list[str]:
    """Return the names of those that are too old at that time of the engine, or whose process is known to have ended.

    Images that were made, and their kernels, may have the label too; a kernel is known by its own labels.
    """
    return [
        facts.name
        for facts in found
        if facts.name.startswith(WORK_PREFIX)
        and parse_labels(facts.name, facts.labels) is None
        and (mark := facts.labels.get(WORK_LABEL))
        and (now - facts.created > _WORK_SECONDS or has_ended(mark))
    ]


async def sweep(engine: Engine, has_ended: Callable[[str], bool], *, dry_run: bool = False) -> list[str]:
    """Remove them on one engine, and return their names; `has_ended` says it of a process by its mark.

    Raises: EngineFailed, LinkLost.
    """
    found = await engine.list(WORK_LABEL)
    names = left(found, engine_now(await engine.info()).timestamp(), has_ended) if found else []
    for name in names if not dry_run else ():
        _LOG.info("[%s] %s is removed, in which nobody makes an image any more", engine.link.name, name)
        await engine.remove(name)
    return names
