"""Parse the engine's answers into facts: images, containers, volumes, the engine itself, the progress of a pull. Pure.

What is not as the engine's API says is a ValueError; in a listing it costs its own row alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from kernelbridge.errors import EngineTooOld
from kernelbridge.hosts.backend import ContainerFacts, ContainerState, Created, Exited, Running
from kernelbridge.plain_text import printable

_LOG = logging.getLogger(__name__)

Answer = Mapping[str, Any]
_Row = TypeVar("_Row")

# Numbers beyond are none of an engine's: the year 2286, 63 bits.
_MOST_TIME: Final = 1e10
_MOST_NUMBER: Final = 1 << 63
# An engine takes 127.
_MOST_LAYERS: Final = 1000
# DeviceRequests (GPUs) came with it: Docker 19.03.
OLDEST_API: Final = "1.40"


def read_object(value: object, what: str) -> Answer:
    """Return a JSON object; null is an empty one, as Go writes it. Raises ValueError."""
    if not isinstance(value, dict | None):
        raise ValueError(f"{what} is no object")
    return value or {}


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise ValueError(f"{what} is no list")
    return value or []


def _objects(value: object, what: str) -> None:
    """Check that a list has objects alone. Raises ValueError."""
    if not all(isinstance(one, dict) for one in _list(value, what)):
        raise ValueError(f"{what} is no list of objects")


def read_text(value: object, what: str) -> str:
    """Return a text; null is an empty one. Raises ValueError."""
    if not isinstance(value, str | None):
        raise ValueError(f"{what} is no text")
    return value or ""


def _words(value: object, what: str) -> tuple[str, ...]:
    return tuple(read_text(word, what) for word in _list(value, what))


def _required(value: object, what: str) -> str:
    if not read_text(value, what):
        raise ValueError(f"there is no {what}")
    return str(value)


def _number(value: object, what: str, most: float = _MOST_NUMBER) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | None) or not -most < (value or 0) < most:
        raise ValueError(f"{what} is no number")
    return value or 0


def read_texts(value: object, what: str) -> dict[str, str]:
    """Return an object of texts, such as labels. Raises ValueError."""
    return {read_text(key, what): read_text(text, what) for key, text in read_object(value, what).items()}


def read_time(value: object, what: str) -> datetime:
    """Return a time as the engine writes it, with nanoseconds or without. Raises ValueError."""
    seconds, _, rest = read_text(value, what).partition(".")
    found = datetime.fromisoformat(seconds + rest.lstrip("0123456789"))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def read_warnings(answer: object) -> tuple[str, ...]:
    """Return what the engine warns of in the answer to a request that made something. Raises ValueError."""
    return _words(read_object(answer, "the answer").get("Warnings"), "Warnings")


def read_id(answer: object) -> str:
    """Return the id in the answer to a request that made something. Raises ValueError."""
    return _required(read_object(answer, "the answer").get("Id"), "Id")


def _rows(rows: object, what: str, parse: Callable[[Answer], _Row]) -> list[_Row]:
    """Parse the rows of a listing; one that cannot be understood is left out."""
    found = []
    for row in _list(rows, what):
        try:
            found.append(parse(read_object(row, "a row")))
        except ValueError as exc:
            _LOG.warning("a row of %s is left out: %s", what, exc)
    return found


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """The engine's own description, from when it was opened."""

    version: str
    api_version: str
    is_podman: bool
    # The socket on the host, and how we reach it.
    socket: str
    transport: str

    def __str__(self) -> str:
        return f"{'Podman' if self.is_podman else 'Docker'} {self.version} (API {self.api_version})"


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """One image on the host."""

    id: str
    env: Mapping[str, str]
    user: str
    labels: Mapping[str, str]
    size_bytes: int
    # As the engine writes it: arm64, arm/v7; empty where it does not say.
    architecture: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def parse_image(answer: Answer) -> ImageFacts:
    """Read GET /images/NAME/json. Raises ValueError."""
    answer = read_object(answer, "the image")
    config = read_object(answer.get("Config"), "Config")
    pairs = (read_text(text, "Env").partition("=") for text in _list(config.get("Env"), "Env"))
    return ImageFacts(
        id=_required(answer.get("Id"), "Id"),
        env={name: value for name, _, value in pairs},
        user=read_text(config.get("User"), "User"),
        labels=read_texts(config.get("Labels"), "Labels"),
        size_bytes=int(_number(answer.get("Size"), "Size")),
        architecture="/".join(
            read_text(answer.get(key), key) for key in ("Architecture", "Variant") if answer.get(key)
        ),
        entrypoint=_words(config.get("Entrypoint"), "Entrypoint"),
        command=_words(config.get("Cmd"), "Cmd"),
    )


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """One image of a listing."""

    id: str
    names: tuple[str, ...]
    labels: Mapping[str, str]
    size_bytes: int
    # Seconds since 1970, by the engine's clock.
    created: float


def parse_images(answer: object) -> list[ListedImage]:
    """Read GET /images/json. Raises ValueError if it is no listing."""
    return _rows(answer, "the images", _listed_image)


def _listed_image(row: Answer) -> ListedImage:
    return ListedImage(
        id=_required(row.get("Id"), "Id"),
        names=tuple(name for name in _words(row.get("RepoTags"), "RepoTags") if name != "<none>:<none>"),
        labels=read_texts(row.get("Labels"), "Labels"),
        size_bytes=int(_number(row.get("Size"), "Size")),
        created=_number(row.get("Created"), "Created", _MOST_TIME),
    )


def parse_image_uses(answer: object) -> dict[str, float]:
    """Read from GET /containers/json when the newest container was made of each image, by the image's id.

    Raises ValueError if it is no listing.
    """
    uses: dict[str, float] = {}
    for image_id, created in _rows(answer, "the containers", _image_use):
        uses[image_id] = max(uses.get(image_id, 0.0), created)
    return uses


def _image_use(row: Answer) -> tuple[str, float]:
    return read_text(row.get("ImageID"), "ImageID"), _number(row.get("Created"), "Created", _MOST_TIME)


def parse_state(answer: Answer) -> ContainerState:
    """Read GET /containers/NAME/json of a container that is there. Raises ValueError."""
    state = read_object(read_object(answer, "the container").get("State"), "State")
    match _required(state.get("Status"), "Status"):
        case "created":
            return Created(error=read_text(state.get("Error"), "Error"))
        case "running" | "paused" | "restarting" as status:
            return Running(is_paused=status == "paused")
        case _:
            return Exited(
                code=int(_number(state.get("ExitCode"), "ExitCode", 1 << 32)),
                oom_killed=bool(state.get("OOMKilled")),
                error=read_text(state.get("Error"), "Error"),
                finished_at=read_text(state.get("FinishedAt"), "FinishedAt"),
            )


def parse_image_name(answer: Answer) -> str:
    """Read which image GET /containers/NAME/json says that a container was made of. Raises ValueError."""
    return _required(read_object(read_object(answer, "the container").get("Config"), "Config").get("Image"), "Image")


def parse_containers(answer: object) -> list[ContainerFacts]:
    """Read GET /containers/json. Raises ValueError if it is no listing."""
    return _rows(answer, "the containers", _container)


def _container(row: Answer) -> ContainerFacts:
    names = _list(row.get("Names"), "Names")
    return ContainerFacts(
        id=_required(row.get("Id"), "Id"),
        name=read_text(names[0] if names else "", "Names").removeprefix("/"),
        image=read_text(row.get("Image"), "Image"),
        labels=read_texts(row.get("Labels"), "Labels"),
        state=read_text(row.get("State"), "State"),
        created=_number(row.get("Created"), "Created", _MOST_TIME),
    )


@dataclass(frozen=True, kw_only=True)
class VolumeFacts:
    """One volume of a listing."""

    name: str
    labels: Mapping[str, str]
    # By the engine's clock, in whole seconds.
    created: datetime


def parse_volumes(answer: object) -> list[VolumeFacts]:
    """Read GET /volumes; a volume without a time is left out. Raises ValueError if it is no listing."""
    return _rows(read_object(answer, "the answer").get("Volumes"), "the volumes", _volume)


def _volume(row: Answer) -> VolumeFacts:
    return VolumeFacts(
        name=_required(row.get("Name"), "Name"),
        labels=read_texts(row.get("Labels"), "Labels"),
        created=read_time(row.get("CreatedAt"), "CreatedAt"),
    )


def parse_info(answer: object) -> Answer:
    """Check what of GET /info is used elsewhere, and return it. Raises ValueError."""
    info = read_object(answer, "the answer")
    read_object(info.get("Runtimes"), "Runtimes")
    for key in ("SecurityOptions", "CDISpecDirs", "DiscoveredDevices"):
        _list(info.get(key), key)
    _objects(info.get("DiscoveredDevices"), "DiscoveredDevices")
    if "SystemTime" in info:
        read_time(info["SystemTime"], "SystemTime")
    return info


def parse_version(answer: object) -> Answer:
    """Check what of GET /version is used elsewhere, and return it. Raises ValueError."""
    version = read_object(answer, "the answer")
    if not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", _required(version.get("ApiVersion"), "ApiVersion")):
        raise ValueError("ApiVersion is no version")
    read_text(version.get("Version"), "Version")
    _objects(version.get("Components"), "Components")
    return version


def engine_facts(version: Answer, *, host: str, socket: str, transport: str) -> EngineFacts:
    """Return what parse_version let through as facts; it came from this socket of the host. Raises: EngineTooOld."""
    api = str(version["ApiVersion"])
    if api_number(api) < api_number(OLDEST_API):
        raise EngineTooOld(host=host, api=api, needed=OLDEST_API)
    return EngineFacts(
        version=str(version.get("Version") or ""),
        api_version=api,
        is_podman=is_podman(version),
        socket=socket,
        transport=transport,
    )


def is_podman(version: Answer) -> bool:
    """Whether GET /version was answered by Podman's imitation of Docker."""
    return any("podman" in str(part.get("Name", "")).lower() for part in version.get("Components") or [])


def api_number(version: str) -> tuple[int, ...]:
    """Turn a version into a form that compares: 1.9 comes before 1.40."""
    return tuple(int(part) for part in version.split(".") if re.fullmatch(r"[0-9]{1,9}", part))


def is_version_refusal(status: int, message: str) -> bool:
    """Whether an engine refused a call for the API version in it: it is another engine than the one that was asked."""
    words = message.lower()
    return status in (400, 404) and (
        ("version" in words and ("too old" in words or "too new" in words or "not supported" in words))
        or "supported api version" in words
    )


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """The progress of a pull. The bytes are of the compressed layers seen so far, so the total grows at first."""

    image: str
    # The engine's last words, such as "Extracting".
    status: str = ""
    done_layers: int = 0
    total_layers: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    # Whether the sizes of some layers are not known yet: the engine tells each as its turn comes.
    grows: bool = False
    # How much is unpacked; None where the engine does not tell that in bytes.
    unpacked_bytes: int | None = None


@dataclass
class _Layer:
    done: int = 0
    total: int = 0
    unpacked: int = 0
    # Whether its size is known; of a small one the engine says no more than that it has come.
    is_sized: bool = False
    is_complete: bool = False


@dataclass
class PullTally:
    """Adds up the lines of POST /images/create."""

    image: str
    # By layer id; filled by add().
    layers: dict[str, _Layer] = field(default_factory=dict)
    status: str = ""
    # Whether the engine has told in bytes how much is unpacked; set by add().
    unpacks_bytes: bool = False

    def add(self, line: Answer) -> None:
        """Take one line. Raises ValueError."""
        line = read_object(line, "a line")
        self.status = printable(read_text(line.get("status"), "status")) or self.status
        layer_id = read_text(line.get("id"), "id")
        # "Pulling from" and "Digest" lines carry the tag as id, or none.
        if layer_id and len(self.layers) < _MOST_LAYERS and not self.status.startswith("Pulling from"):
            detail = read_object(line.get("progressDetail"), "progressDetail")
            self._add_layer(self.layers.setdefault(layer_id, _Layer()), detail)

    @property
    def progress(self) -> PullProgress:
        """Where the pull is now. It looks at each layer: for when somebody is told, not for each line."""
        layers = self.layers.values()
        return PullProgress(
            image=self.image,
            status=self.status,
            done_layers=sum(layer.is_complete for layer in layers),
            total_layers=len(layers),
            done_bytes=sum(layer.done for layer in layers),
            total_bytes=sum(layer.total for layer in layers),
            grows=not all(layer.is_sized for layer in layers),
            unpacked_bytes=sum(layer.unpacked for layer in layers) if self.unpacks_bytes else None,
        )

    def _add_layer(self, layer: _Layer, detail: Answer) -> None:
        match self.status:
            case "Downloading":
                layer.done = int(_number(detail.get("current"), "current"))
                layer.total = int(_number(detail.get("total"), "total")) or layer.total
                layer.is_sized = layer.total > 0
            case "Verifying Checksum" | "Download complete" | "Extracting":
                # "Extracting" counts again from 0: for us the bytes are there. Some engines count it in seconds,
                # without a total.
                total = int(_number(detail.get("total"), "total"))
                layer.total = layer.total or total
                layer.done, layer.is_sized = layer.total, True
                if self.status == "Extracting" and total:
                    self.unpacks_bytes = True
                    layer.unpacked = min(layer.total, int(_number(detail.get("current"), "current")))
            case "Pull complete" | "Already exists":
                layer.done, layer.is_sized, layer.is_complete = layer.total, True, True
                layer.unpacked = layer.total
