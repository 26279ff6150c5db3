"""Engines made up for the tests of leases, checks and starts: GPUs, containers, volumes, by the engine's own clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.backend import ContainerFacts, ContainerState, Exited, Running
from kernelbridge.hosts.docker.engine import ContainerWorkload
from kernelbridge.hosts.docker.gpu_access import GpuWay
from kernelbridge.hosts.docker.responses import ImageFacts, VolumeFacts
from kernelbridge.hosts.gpus.nvidia_smi import Gpu, GpuFacts
from kernelbridge.hosts.labels import KERNEL_LABEL, LOCKS_LABEL, NAME_PREFIX, WORK_LABEL, Labels, container_name
from kernelbridge.hosts.transport.stream import Completed, LoginEntry
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.protocol.handshake import GpuStatus
from tests import made_events, made_hosts
from tests.made_clock import MadeClock

LAB, TWO = Host(name="lab", ssh="lab"), Host(name="two", ssh="two")
MINE = "aaaa1111-0000-4000-8000-000000000001"
BOBS = "bbbb2222-0000-4000-8000-000000000002"
CARLS = "cccc3333-0000-4000-8000-000000000003"


def image(image_id: str = "sha256:1", *, entrypoint: Sequence[str] = (), **env: str) -> ImageFacts:
    """An image on a host."""
    return ImageFacts(id=image_id, env=env, user="", labels={}, size_bytes=1, entrypoint=tuple(entrypoint))


def launch_request(
    kernel_id: str = MINE, *, hosts: Sequence[Host] = (LAB,), environ: Any = None, **keys: Any
) -> LaunchRequest:
    """What a front-end asks for: one GPU unless `keys` say otherwise."""
    environment = Environment(name="torch", **{"image": "torch:2", "gpus": 1, **keys})
    return LaunchRequest(
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
        assert image and LOCKS_LABEL in labels
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
    # Containers that carried the folders of GPUs.
    carriers: Sequence[ContainerFacts] = ()
    # What every question to it, or to its GPUs alone, comes to.
    failure: KernelBridgeError | None = None
    way: GpuWay | KernelBridgeError = "gpus"
    pull_failure: KernelBridgeError | None = None
    # Where the sources of mounts lead, in their order; "": nowhere.
    leads_to: Sequence[str] = ()
    # Whether it never says what images it has.
    is_stuck: bool = False
    shell_seconds: float = 0.0
    entry: LoginEntry = field(default_factory=LoginEntry)
    # What every container has written.
    log_text: str = ""
    # What happened, for assertions.
    log: list[str] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    specs: list[Mapping[str, Any]] = field(default_factory=list)
    orders: list[bytes] = field(default_factory=list)
    about: Any = field(default_factory=lambda: type("About", (), {"socket": "/srv/docker.sock"})())
    facts: Any = field(
        default_factory=lambda: type(
            "Facts", (), {"user": "ada", "uid": 0, "gid": 0, "groups": (), "home": "/home/ada"}
        )()
    )

    def __post_init__(self) -> None:
        self.volumes = MadeVolumes(now=lambda: self.clock.engines, log=self.log)
        self.gpus = Cards(self)
        self.short_ways = made_hosts.no_short_ways()

    @property
    def link(self) -> MadeEngine:
        return self

    # -- what a test says

    def hold(self, kernel: str, *gpus: str, state: str = "running", says: Sequence[str] | None = None) -> None:
        """A container of another kernel; `says`: the GPUs that its relay says it has, the same unless told."""
        labels = Labels(
            kernel=kernel, environment="pytorch", owner="x", user="bob@desk", image="x", gpus=",".join(gpus)
        )
        status = made_events.status(gpus=GpuStatus(ids=list(gpus if says is None else says))).to_dict()
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
        if label in (LOCKS_LABEL, WORK_LABEL):
            return self.carriers if label == LOCKS_LABEL else []
        assert label == KERNEL_LABEL
        created = self.clock.engines.timestamp() - 60
        return [
            ContainerFacts(
                id="1", name=container_name(kernel), image="x", labels=box.labels, state=box.state, created=created
            )
            for kernel, box in self.boxes.items()
        ]

    def workload(self, name: str, environment: Environment) -> ContainerWorkload:
        return ContainerWorkload(self, name, environment.python)  # type: ignore[arg-type]

    async def exec_stream(self, name: str, argv: Any, heard: Any) -> made_hosts.Stream:
        return made_hosts.Stream(box=self.boxes[name.removeprefix(NAME_PREFIX)], heard=heard)

    async def gpu_way(self, access: str) -> GpuWay:
        if isinstance(self.way, KernelBridgeError):
            raise self.way
        return self.way

    async def proxies(self) -> dict[str, str]:
        return {}

    async def image(self, name: str) -> ImageFacts | None:
        if self.is_stuck:
            await asyncio.sleep(10_000)
        return self.images.get(name)

    def has_image(self, name: str = "torch:2", **env: str) -> None:
        """The image is on the host."""
        self.images[name] = image(**env)

    async def check_pullable(self, name: str, *, seconds: float) -> None:
        self.log.append(f"ask the registry for {name}")
        if self.pull_failure is not None:
            raise self.pull_failure

    async def pull(self, name: str, progress: Callable[[Any], None]) -> ImageFacts:
        self.log.append(f"pull {name}")
        self.has_image(name)
        return self.images[name]

    async def run(self, argv: Sequence[str], *, seconds: float) -> Completed:
        stdout = "".join(f"={end}\0" if end else "-\0" for end in self.leads_to)
        return Completed(exit_code=0, stdout=stdout.encode(), stderr=b"")

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
        return Exited(code=0, oom_killed=False, error="", finished_at="") if "-work-" in name else Running()

    async def logs(self, name: str, tail: int) -> str:
        return self.log_text

    async def remove(self, name: str) -> None:
        self.log.append(f"remove {name}")
