"""Find out which of our containers on a host have its GPUs: by their labels, and by what their relays still hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from kernelbridge.config.remembered import RememberedEnvironment
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.backend import ContainerFacts, Workload
from kernelbridge.hosts.gpus.holders import Holding
from kernelbridge.hosts.labels import Labels, container_name, parse_labels
from kernelbridge.hosts.relay_query import RelayAddress, ask_status

if TYPE_CHECKING:
    from kernelbridge.config.schema import Environment, Host  # loads pydantic
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.listed_engine import ListedEngine

ASK_SECONDS: Final = 4.0
# States of a container in which its relay may hold a lock. One that was only created holds nothing.
_HOLDING: Final = frozenset({"running", "paused", "restarting", "removing"})
# Of somebody else's kernel: of its environment only the name of its Python matters.
_UNKNOWN: Final = cast("Environment", RememberedEnvironment(name="unknown", image="unknown", python="python3"))


async def released(engine: Engine | ListedEngine, host: Host, found: Sequence[ContainerFacts]) -> frozenset[str]:
    """Return the kernels among containers of ours whose relays say that they hold no GPU any more.

    One that has ended gives its GPUs back, and may be kept for its output long after. Who does not answer holds them.
    """
    labels = [parse_labels(one.name, one.labels) for one in found if one.state == "running"]
    with_gpus = [one for one in labels if one is not None and one.gpus]
    answers = await asyncio.gather(*(_still_holds(engine, host, one) for one in with_gpus))
    return frozenset(one.kernel for one, holds in zip(with_gpus, answers, strict=True) if not holds)


async def _still_holds(engine: Engine | ListedEngine, host: Host, labels: Labels) -> bool:
    async def workload() -> Workload:
        return engine.workload(container_name(labels.kernel), _UNKNOWN)

    address = RelayAddress(
        kernel=labels.kernel,
        host=host.name,
        image=labels.image,
        python="python3",
        workload=workload,
        rest=asyncio.sleep,
    )
    with contextlib.suppress(KernelBridgeError, TimeoutError, KeyError, TypeError):
        async with asyncio.timeout(ASK_SECONDS):
            return bool((await ask_status(address)).gpus.ids)
    return True


def holdings(found: Sequence[ContainerFacts], *, but: Collection[str] = ()) -> tuple[list[Holding], set[str]]:
    """Return who holds which GPUs by the labels of containers, and which GPUs are about to be taken."""
    held: list[Holding] = []
    claimed: set[str] = set()
    for facts in found:
        labels = parse_labels(facts.name, facts.labels)
        if labels is None or not labels.gpus or labels.kernel in but:
            continue
        gpus = tuple(filter(None, labels.gpus.split(",")))
        if facts.state == "created":
            claimed.update(gpus)
        elif facts.state in _HOLDING:
            held.append(
                Holding(
                    gpus=gpus,
                    kernel_id=labels.kernel,
                    environment=labels.environment,
                    who=labels.user,
                    since=datetime.fromtimestamp(facts.created, UTC),
                )
            )
    return held, claimed
