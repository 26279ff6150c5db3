"""Hosts made up for the tests of the census: engines with containers in them, and what their relays answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import HostRefused, KernelBridgeError
from kernelbridge.fleet.kernel_listing import KernelFinder, KernelRow
from kernelbridge.hosts.backend import ContainerFacts, Exited, Missing, Over, Running
from kernelbridge.hosts.docker.engine import ContainerWorkload
from kernelbridge.hosts.labels import NAME_PREFIX, Labels, container_name
from kernelbridge.hosts.short_way import ShortWays
from kernelbridge.kernel.records import KernelRecord, Records
from kernelbridge.protocol import frames

PATH = Path("/home/ada/kernelbridge.toml")
LAB, TWO = Host(name="lab", ssh="lab"), Host(name="two", ssh="two")
FIRST = "aabb1111-0000-4000-8000-000000000001"
# Of a process that is no more.
DEAD = "1@0.00"


@dataclass(kw_only=True)
class Box:
    """A container: what its relay answers (None: nothing), or how it has ended."""

    labels: dict[str, str]
    state: str = "running"
    status: Mapping[str, Any] | None = None
    ended: Exited | Missing | Over | None = None
    log: str = ""
    # Output that nobody has shown yet; None: the relay is of an older version.
    left_text: str | None = None
    id: str = "1"


@dataclass(kw_only=True)
class Stream:
    """The exec stream to a relay that answers at once."""

    box: Box
    heard: Any
    decoder: frames.Decoder = field(default_factory=frames.Decoder)

    def write(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            asked = json.loads(bytes(frame.payload))["ask"]
            said = {"text": self.box.log} if asked == "logs" else self.box.status
            if asked == "output" and self.box.left_text is not None:
                said = {"text": self.box.left_text}
            if said is None:
                self.heard.closed(None)
            else:
                self.heard.data_received(frames.frame(frames.ANSWER, json.dumps(said).encode()))

    def close(self) -> None:
        self.heard.closed(None)


def no_short_ways() -> Any:
    """The short ways of a made engine: none, so that all streams are its own."""
    link: Any = None
    return ShortWays(link, trouble="there are none here")


@dataclass(kw_only=True)
class Engine:
    """The engine of a host that has these containers, by kernel id."""

    boxes: dict[str, Box] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    short_ways: Any = field(default_factory=no_short_ways)
    failure: KernelBridgeError | None = None

    async def list(self, label: str) -> Any:
        return [
            ContainerFacts(
                id=box.id, name=container_name(kernel), image="x", labels=box.labels, state=box.state, created=1.0
            )
            for kernel, box in self.boxes.items()
            if label in box.labels
        ]

    async def state(self, name: str) -> Any:
        box = self.boxes[name.removeprefix(NAME_PREFIX)]
        return box.ended or Running()

    def workload(self, name: str, environment: Environment) -> ContainerWorkload:
        return ContainerWorkload(self, name, environment.python)  # type: ignore[arg-type]

    async def exec_stream(self, name: str, argv: Any, heard: Any) -> Stream:
        return Stream(box=self.boxes[name.removeprefix(NAME_PREFIX)], heard=heard)

    async def remove(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        kernel = name.removeprefix(NAME_PREFIX)
        self.removed.append(kernel)
        self.boxes.pop(kernel, None)

    async def logs(self, name: str, tail: int) -> str:
        return "\n".join(self.boxes[name.removeprefix(NAME_PREFIX)].log.splitlines()[-tail:])


class Hosts:
    """The hosts of a test: `lab` can be reached, `two` only if the test says so."""

    def __init__(self, folder: Path) -> None:
        self.records = Records(folder)
        self.config = Config(
            path=PATH,
            hosts={"lab": LAB, "two": TWO},
            environments={"torch": Environment(name="torch", image="x", hosts=("lab",))},
        )
        self.lab = Engine()
        self.two: Engine | None = Engine()
        self.census = KernelFinder(self.records, self._reach, asyncio.sleep)  # type: ignore[arg-type]

    async def _reach(self, host: Host) -> Engine:
        engine = self.lab if host.name == "lab" else self.two
        if engine is None:
            raise HostRefused(host="two", address="two:22")
        return engine

    def add(
        self, kernel: str = FIRST, *, owner: str = "", birth: str = "", engine: Engine | None = None, **facts: Any
    ) -> Box:
        labels = Labels(
            kernel=kernel,
            environment="torch",
            owner=owner or self.records.machine_id(),
            process=DEAD,
            birth=birth,
            user="ada@laptop",
            image="x",
            keep_exited="7200",
        )
        box = Box(labels=labels.to_dict(), **facts)
        (engine or self.lab).boxes[kernel] = box
        return box

    def remember(self, kernel: str = FIRST, **facts: Any) -> None:
        made_up: dict[str, Any] = {"environment": "torch", "config": str(PATH), "host": "lab", "image": "x"}
        made_up |= {"python": "python3", "session": "s", "started": 5.0, "process": DEAD}
        self.records.keep(KernelRecord(kernel_id=kernel, **{**made_up, **facts}))

    async def rows(self) -> list[KernelRow]:
        return list((await self.census.look(self.config)).kernels)

    async def row(self) -> KernelRow:
        (row,) = await self.rows()
        return row
