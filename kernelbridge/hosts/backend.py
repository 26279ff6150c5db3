"""Define what every host offers for kernels, whether its engine's containers or its cluster's jobs run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.transport.stream import AnyLink, Receiver, Stream

if TYPE_CHECKING:
    from kernelbridge.config.schema import Environment  # loads pydantic


class Workload(Protocol):
    """Runs one kernel's relay, and leads to it. Every error that leaves here is ours."""

    async def attach(self, receiver: Receiver) -> Stream:
        """Return a stream of bytes to the relay's socket."""

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run a command beside the relay, as its user, joined to stdin and stdout; Python is `python` of the image.

        The words of argv can be seen on the host: no secret and no user text may be among them.
        """

    @property
    def python(self) -> str:
        """The Python that runs the relay."""

    async def state(self) -> ContainerState:
        """Say how it is now. Missing and Over only where that is known; everything else unknown raises."""

    async def logs(self, tail: int) -> str:
        """Return the last lines that its main process wrote."""

    async def architectures(self, image: str) -> tuple[str, str]:
        """Return for which processor an image is made, and which its host has; empty where that is not known."""

    async def stop(self) -> None:
        """End the relay and everything with it, and leave nothing of it on the host. Already gone is success."""


class Backend(Protocol):
    """One host with its kernels."""

    @property
    def link(self) -> AnyLink:
        """The link that all this goes over."""

    async def list(self, label: str) -> list[ContainerFacts]:
        """Return all that runs, waits or has ended there with this label (`key` or `key=value`)."""

    def workload(self, name: str, environment: Environment) -> Workload:
        """Return what runs under this name, made of this environment."""


@dataclass(frozen=True, kw_only=True)
class ContainerFacts:
    """One container of a listing."""

    id: str
    name: str
    image: str
    labels: Mapping[str, str]
    # The engine's word: created, running, paused, restarting, removing, exited, dead.
    state: str
    # Seconds since 1970, by the engine's clock.
    created: float


@dataclass(frozen=True, kw_only=True)
class Created:
    """The container is there and was never started, or its start failed."""

    error: str


@dataclass(frozen=True, kw_only=True)
class Running:
    """The container's main process lives."""

    # Whether it is stopped in place, by `docker pause` or `scontrol suspend`: it does and answers nothing.
    is_paused: bool = False


@dataclass(frozen=True, kw_only=True)
class Exited:
    """The main process has ended. `oom_killed` tells of that process only if it was killed (code 137)."""

    code: int
    oom_killed: bool
    error: str
    finished_at: str

    def __str__(self) -> str:
        return f"exit code {self.code}" + (f", {self.error}" if self.error else "")


@dataclass(frozen=True, kw_only=True)
class Missing:
    """The engine itself says that there is no such container."""


@dataclass(frozen=True, kw_only=True)
class Over:
    """It has ended, and who ran it says why; `explain` makes the error for an environment's name."""

    explain: Callable[[str], KernelBridgeError]

    def __str__(self) -> str:
        return self.explain("the environment").sentence


ContainerState = Created | Running | Exited | Missing | Over
