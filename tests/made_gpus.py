"""Hosts made up for the tests of the inventory: engines with GPUs, containers and a queue, and a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kernelbridge.config.schema import Environment
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.backend import ContainerFacts
from kernelbridge.hosts.docker import gpu_queue
from kernelbridge.hosts.docker.engine import ContainerWorkload
from kernelbridge.hosts.docker.responses import VolumeFacts
from kernelbridge.hosts.gpus import nvidia_smi
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.labels import KERNEL_LABEL, NAME_PREFIX, USER_LABEL, Labels, container_name
from kernelbridge.protocol.handshake import GpuStatus
from tests import made_events, made_hosts

SAMPLES = Path(__file__).parent / "unit" / "samples"
KERNEL = "aabb1111-0000-4000-8000-000000000001"
# Neither today nor in a year whose days have other names.
NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


def sample(name: str) -> GpuFacts:
    """What one of the sampled hosts says of its GPUs."""
    return nvidia_smi.parse((SAMPLES / "nvidia-smi" / f"{name}.txt").read_text("utf-8"))


def made_labels(kernel: str = KERNEL, **facts: str) -> dict[str, str]:
    """The labels of one container of ours."""
    made_up = {"environment": "pytorch", "owner": "m", "user": "ada@laptop", **facts}
    return Labels(kernel=kernel, **made_up).to_dict()


def box(kernel: str = KERNEL, *, state: str = "running", created: datetime = NOON, **facts: str) -> ContainerFacts:
    """One container of ours, as a listing shows it."""
    made = made_labels(kernel, **facts)
    name = container_name(kernel)
    return ContainerFacts(id="1", name=name, image="x", labels=made, state=state, created=created.timestamp())


def ticket(kernel: str, created: datetime, *, wish: str = '{"number":2}', user: str = "bob@desk") -> VolumeFacts:
    """One place in the queue."""
    facts = {gpu_queue.QUEUE_LABEL: kernel, gpu_queue.REQUEST_LABEL: wish, USER_LABEL: user}
    return VolumeFacts(name=f"kernelbridge-ticket-{kernel}", labels=facts, created=created)


@dataclass(kw_only=True)
class Engine:
    """An engine with these GPUs, containers and volumes; it is its own inventory and its own volumes."""

    facts: GpuFacts = field(default_factory=GpuFacts)
    boxes: Sequence[ContainerFacts] = ()
    # Kernels whose relays say that they have given their GPUs back.
    released: Sequence[str] = ()
    queue: Sequence[VolumeFacts] = ()
    failure: KernelBridgeError | None = None
    # How often it was asked for its clock.
    clock_looks: int = 0
    short_ways: Any = field(default_factory=made_hosts.no_short_ways)

    @property
    def gpus(self) -> Engine:
        return self

    @property
    def volumes(self) -> _Queue:
        return _Queue(self.queue)

    async def look(self, *, max_age_seconds: float) -> GpuFacts:
        assert max_age_seconds < 2
        if self.failure is not None:
            raise self.failure
        return self.facts

    async def list(self, label: str) -> Any:
        assert label == KERNEL_LABEL
        return list(self.boxes)

    def workload(self, name: str, environment: Environment) -> ContainerWorkload:
        return ContainerWorkload(self, name, environment.python)  # type: ignore[arg-type]

    async def exec_stream(self, name: str, argv: Any, heard: Any) -> made_hosts.Stream:
        has_none = name.removeprefix(NAME_PREFIX) in self.released
        status = made_events.status(gpus=GpuStatus(ids=[] if has_none else ["GPU-any"])).to_dict()
        return made_hosts.Stream(box=made_hosts.Box(labels={}, status=status), heard=heard)

    async def info(self) -> dict[str, Any]:
        self.clock_looks += 1
        return {"SystemTime": "2026-01-02T12:10:00.123456789Z"}


@dataclass(frozen=True)
class _Queue:
    queue: Sequence[VolumeFacts]

    async def list(self, label: str) -> Any:
        assert label == gpu_queue.QUEUE_LABEL
        return list(self.queue)
