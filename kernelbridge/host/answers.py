"""What the engine answers, as facts of ours: images, containers, the engine itself, how far a pull is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kernelbridge.errors import KernelBridgeError

Answer = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the engine said about itself when it was opened."""

    version: str
    api_version: str
    is_podman: bool
    # The socket on the host, and how we reach it.
    socket: str
    transport: str


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """One image on the host."""

    id: str
    env: Mapping[str, str]
    user: str
    labels: Mapping[str, str]
    entrypoint: tuple[str, ...]
    working_folder: str
    architecture: str
    size_bytes: int


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
    """The container's main process lives; it may be paused."""

    is_paused: bool
    started_at: str


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


def parse_image(answer: Answer) -> ImageFacts:
    """Read GET /images/NAME/json."""
    config = answer.get("Config") or {}
    pairs = (text.partition("=") for text in config.get("Env") or [])
    return ImageFacts(
        id=str(answer["Id"]),
        env={name: value for name, _, value in pairs},
        user=str(config.get("User") or ""),
        labels=dict(config.get("Labels") or {}),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        working_folder=str(config.get("WorkingDir") or ""),
        architecture=str(answer.get("Architecture") or ""),
        size_bytes=int(answer.get("Size") or 0),
    )


def parse_state(answer: Answer) -> ContainerState:
    """Read GET /containers/NAME/json of a container that is there."""
    state = answer["State"]
    match state.get("Status"):
        case "created":
            return Created(error=str(state.get("Error") or ""))
        case "running" | "paused" | "restarting":
            return Running(is_paused=bool(state.get("Paused")), started_at=str(state.get("StartedAt") or ""))
        case _:
            return Exited(
                code=int(state.get("ExitCode") or 0),
                oom_killed=bool(state.get("OOMKilled")),
                error=str(state.get("Error") or ""),
                finished_at=str(state.get("FinishedAt") or ""),
            )


def parse_container(answer: Answer) -> ContainerFacts:
    """Read one row of GET /containers/json."""
    names = answer.get("Names") or [""]
    return ContainerFacts(
        id=str(answer["Id"]),
        name=str(names[0]).removeprefix("/"),
        image=str(answer.get("Image") or ""),
        labels=dict(answer.get("Labels") or {}),
        state=str(answer.get("State") or ""),
        created=float(answer.get("Created") or 0),
    )


def is_podman(version: Answer) -> bool:
    """Whether GET /version was answered by Podman's imitation of Docker."""
    return any("podman" in str(part.get("Name", "")).lower() for part in version.get("Components") or [])


def api_number(version: str) -> tuple[int, ...]:
    """An API version in a form that compares: 1.9 comes before 1.40."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """How far a pull is. The bytes are of the compressed layers seen so far, so the total grows at first."""

    image: str
    # The engine's last words, such as "Extracting".
    status: str
    done_layers: int
    total_layers: int
    done_bytes: int
    total_bytes: int


@dataclass
class _Layer:
    done: int = 0
    total: int = 0
    is_complete: bool = False


@dataclass
class PullTally:
    """Adds up the lines of POST /images/create."""

    image: str
    # By layer id; filled by add().
    layers: dict[str, _Layer] = field(default_factory=dict)
    status: str = ""

    def add(self, line: Answer) -> PullProgress:
        """Take one line; give where the pull is now."""
        self.status = str(line.get("status") or self.status)
        layer_id = line.get("id")
        # "Pulling from" and "Digest" lines carry the tag as id, or none.
        if layer_id and not self.status.startswith("Pulling from"):
            self._add_layer(self.layers.setdefault(str(layer_id), _Layer()), line.get("progressDetail") or {})
        layers = self.layers.values()
        return PullProgress(
            image=self.image,
            status=self.status,
            done_layers=sum(layer.is_complete for layer in layers),
            total_layers=len(layers),
            done_bytes=sum(layer.done for layer in layers),
            total_bytes=sum(layer.total for layer in layers),
        )

    def _add_layer(self, layer: _Layer, detail: Answer) -> None:
        match self.status:
            case "Downloading":
                layer.done, layer.total = int(detail.get("current") or 0), int(detail.get("total") or layer.total)
            case "Verifying Checksum" | "Download complete" | "Extracting":
                # "Extracting" counts again from 0: for us the bytes are there.
                layer.total = layer.total or int(detail.get("total") or 0)
                layer.done = layer.total
            case "Pull complete" | "Already exists":
                layer.done, layer.is_complete = layer.total, True
