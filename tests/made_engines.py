"""Engines made up for the tests of leases, checks and starts: GPUs, containers, volumes, by the engine's own clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kernelbridge import container
from kernelbridge.config import Environment, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.host.answers import ContainerFacts, ContainerState, ImageFacts, Running
from kernelbridge.host.gpus import Gpu, GpuFacts
from kernelbridge.host.requirements import Way
from kernelbridge.host.site import InContainer
from kernelbridge.host.stream import Completed
from kernelbridge.host.volumes import VolumeFacts
from kernelbridge.wanted import Wanted
from tests import made_hosts
from tests.made_clock import MadeClock

LAB, TWO = Host(name="lab", ssh="lab"), Host(name="two", ssh="two")
MINE = "aaaa1111-0000-4000-8000-000000000001"
BOBS = "bbbb2222-0000-4000-8000-000000000002"
CARLS = "cccc3333-0000-4000-8000-000000000003"


def wanted(kernel_id: str = MINE, *, hosts: Sequence[Host] = (LAB,), environ: Any = None, **keys: Any) -> Wanted:
    """What a front-end asks for: one GPU unless `keys` say otherwise."""
    environment = Environment(name="torch", image="torch:2", **{"gpus": 1, **keys})
    return Wanted(
        kernel_id=kernel_id,
        environment=environment,
        display_name="Torch",
        hosts=tuple(hosts),
        environ=environ or {},
    )


def cards(count: int, *, free: int = 80) -> GpuFacts:
    """So many A100."""
    gpus = (
        Gpu(uuid=f"GPU-{n}", index=str(n), name="NVIDIA A100", memory_mib=81920, used_mib=(80 - free) * 1024)
        for n in range(count)
    )
    return GpuFacts(driver="550.54", cuda="12.4", gpus=tuple(gpus))


@dataclass(kw_only=True)
class MadeVolumes:
    """The volumes of an engine; `log` has what happened to them."""

    now: Callable[[], datetime]
    there: dict[str, VolumeFacts] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    # Each set of volumes that there was.
    moments: list[frozenset[str]] = field(default_factory=list)
    failure: KernelBridgeError | None = None

    async def _changed(self, what: str) -> None:
        self.log.append(what)
        self.moments.append(frozenset(self.there))
        # What an engine has done is heard of a moment later.
        await asyncio.sleep(0)

    async def _refuse(self) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure

    async def list(self, label: str) -> list[VolumeFacts]:
        await self._refuse()
        key, _, text = label.partition("=")
        return [one for one in self.there.values() if key in one.labels and text in ("", one.labels[key])]

    async def make(self, name: str, labels: Mapping[str, str]) -> None:
        await self._refuse()
        # The engine tells whole seconds.
        made = VolumeFacts(name=name, labels=dict(labels), created=self.now().replace(microsecond=0))
        self.there.setdefault(name, made)
        await self._changed(f"make {name}")

    async def remove(self, name: str) -> None:
        await self._refuse()
        self.there.pop(name, None)
        await self._changed(f"remove {name}")

    async def make_folders(self, volume: str, names: Collection[str], *, image: str, labels: Mapping[str, str]) -> None:
        assert image and container.LOCKS_LABEL in labels
        await self._changed(f"folders {','.join(sorted(names))} in {volume}")


@dataclass(frozen=True)
class Cards:
    """The GPUs of an engine, asked for anew each time."""

    engine: MadeEngine

    async def look(self, *, max_age_seconds: float) -> GpuFacts:
        self.engine.looks.append(max_age_seconds)
        if self.engine.failure is not None:
            raise self.engine.failure
        return self.engine.facts_of_gpus


@dataclass(kw_only=True)
class MadeEngine:
    """An engine that has all methods which a start needs; a field for each thing that a test may say of it."""

    clock: MadeClock
    name: str = "lab"
    facts_of_gpus: GpuFacts = field(default_factory=lambda: cards(1))
    boxes: dict[str, made_hosts.Box] = field(default_factory=dict)
    images: dict[str, ImageFacts] = field(default_factory=dict)
    # What every question to it, or to its GPUs alone, comes to.
    failure: KernelBridgeError | None = None
    way: Way | KernelBridgeError = "gpus"
    pull_failure: KernelBridgeError | None = None
    # What a shell that looks at mounts prints.
    prints: str = ""
    # What happened, for assertions.
    log: list[str] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    specs: list[Mapping[str, Any]] = field(default_factory=list)
    orders: list[bytes] = field(default_factory=list)
    facts: Any = field(default_factory=lambda: type("Facts", (), {"uid": 1, "gid": 1, "home": "/home/ada"})())

    def __post_init__(self) -> None:
        self.volumes = MadeVolumes(now=lambda: self.clock.engines, log=self.log)
        self.gpus = Cards(self)

    @property
    def link(self) -> MadeEngine:
        return self

    # -- what a test says

    def hold(self, kernel: str, *gpus: str, state: str = "running", says: Sequence[str] | None = None) -> None:
        """A container of another kernel; `says`: the GPUs that its relay says it has, the same unless told."""
        labels = container.Labels(
            kernel=kernel, environment="pytorch", owner="x", user="bob@desk", image="x", gpus=",".join(gpus)
        )
        status = {"gpus": {"ids": list(gpus if says is None else says)}}
        self.boxes[kernel] = made_hosts.Box(labels=labels.to_dict(), state=state, status=status)

    async def queue(self, kernel: str, *, wish: str = '{"number":1}') -> None:
        """Another one takes a ticket now, or shows that it lives."""
        from_before = f"kernelbridge-ticket-{kernel}" in self.volumes.there
        mark = f"-{len(self.volumes.log)}" if from_before else ""
        labels = {"kernelbridge.queue": kernel, "kernelbridge.wish": wish, "kernelbridge.user": "bob@desk"}
        await self.volumes.make(f"kernelbridge-ticket-{kernel}{mark}", labels)

    # -- what a start asks

    async def info(self) -> Mapping[str, Any]:
        return {"SystemTime": self.clock.engines.isoformat().replace("+00:00", "") + ".000000001Z"}

    async def list(self, label: str) -> Any:
        if self.failure is not None:
            raise self.failure
        if label == container.LOCKS_LABEL:
            return []
        assert label == container.KERNEL_LABEL
        created = self.clock.engines.timestamp() - 60
        return [
            ContainerFacts(
                id="1", name=container.name(kernel), image="x", labels=box.labels, state=box.state, created=created
            )
            for kernel, box in self.boxes.items()
        ]

    def runtime(self, name: str, environment: Environment) -> InContainer:
        return InContainer(self, name, environment.python)  # type: ignore[arg-type]

    async def exec_stream(self, name: str, argv: Any, heard: Any) -> made_hosts.Stream:
        return made_hosts.Stream(box=self.boxes[name.removeprefix(container.NAME_PREFIX)], heard=heard)

    async def gpu_way(self, access: str) -> Way:
        if isinstance(self.way, KernelBridgeError):
            raise self.way
        return self.way

    async def image(self, name: str) -> ImageFacts | None:
        return self.images.get(name)

    def has_image(self, name: str = "torch:2", **env: str) -> None:
        """The image is on the host."""
        self.images[name] = ImageFacts(
            id="sha256:1",
            env=env,
            user="",
            labels={},
            entrypoint=(),
            working_folder="",
            architecture="amd64",
            size_bytes=1,
        )

    async def check_pullable(self, name: str, *, seconds: float) -> None:
        self.log.append(f"ask the registry for {name}")
        if self.pull_failure is not None:
            raise self.pull_failure

    async def pull(self, name: str, progress: Callable[[Any], None]) -> None:
        self.log.append(f"pull {name}")
        self.has_image(name)

    async def run(self, argv: Sequence[str], *, seconds: float) -> Completed:
        return Completed(exit_code=0, stdout=self.prints.encode(), stderr=b"")

    async def create(self, name: str, spec: Mapping[str, Any]) -> str:
        self.log.append(f"create {name}")
        self.specs.append(spec)
        return "id"

    async def open_stdin(self, name: str) -> MadeEngine:
        return self

    def write(self, line: bytes) -> None:
        self.orders.append(line)

    def write_eof(self) -> None:
        self.log.append("order given")

    async def start(self, name: str) -> None:
        self.log.append(f"start {name}")

    async def state(self, name: str) -> ContainerState:
        return Running(is_paused=False, started_at="")

    async def remove(self, name: str) -> None:
        self.log.append(f"remove {name}")
