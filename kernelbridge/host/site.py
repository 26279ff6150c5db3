"""What a host offers for kernels, whoever runs them there: a container of its engine, or a job of its cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kernelbridge.environment import Environment
from kernelbridge.host.answers import ContainerFacts, ContainerState
from kernelbridge.host.stream import AnyLink, Receiver, Stream
from kernelbridge.relay import shipping


class Runtime(Protocol):
    """What one kernel's relay runs in, and the way to it. Every error that leaves here is ours."""

    async def attach(self, receiver: Receiver) -> Stream:
        """Return a stream of bytes to the relay's socket."""

    async def state(self) -> ContainerState:
        """How it is now. Missing and Over only where that is known; everything else unknown raises."""

    async def logs(self, tail: int) -> str:
        """The last lines that its main process wrote."""

    async def end(self) -> None:
        """End the relay and everything with it, and leave nothing of it on the host. Already gone is success."""


class Site(Protocol):
    """One host with its kernels."""

    @property
    def link(self) -> AnyLink:
        """The link that all this goes over."""

    async def list(self, label: str) -> list[ContainerFacts]:
        """All that runs, waits or has ended there with this label (`key` or `key=value`)."""

    def runtime(self, name: str, environment: Environment) -> Runtime:
        """What runs under this name, made of this environment."""


class Containers(Protocol):
    """What a container's runtime asks of its engine (engine.Engine)."""

    async def exec_stream(self, name: str, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run a command in a running container, joined to its stdin and stdout."""

    async def state(self, name: str) -> ContainerState:
        """How the container is now."""

    async def logs(self, name: str, tail: int) -> str:
        """The last lines that the main process wrote."""

    async def remove(self, name: str) -> None:
        """Remove the container, running or not."""


@dataclass(frozen=True)
class InContainer:
    """A relay in a container of an engine."""

    engine: Containers
    name: str
    python: str

    async def attach(self, receiver: Receiver) -> Stream:
        """See Runtime."""
        return await self.engine.exec_stream(self.name, shipping.bridge_argv(self.python), receiver)

    async def state(self) -> ContainerState:
        """See Runtime."""
        return await self.engine.state(self.name)

    async def logs(self, tail: int) -> str:
        """See Runtime."""
        return await self.engine.logs(self.name, tail)

    async def end(self) -> None:
        """See Runtime."""
        await self.engine.remove(self.name)
