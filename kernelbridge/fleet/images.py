"""Make images of kernels, list the images that kernelbridge made, say what needs them, and remove what nothing does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kernelbridge.config.schema import Config, Host
from kernelbridge.errors import EngineFailed, KernelBridgeError, unexpected_answer
from kernelbridge.fleet.kernel_listing import KernelRow
from kernelbridge.hosts.docker.images.snapshot import split_name
from kernelbridge.hosts.labels import LABEL_PREFIX, SNAPSHOT_LABEL, container_name

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.docker.images.image_store import StoredImage

EngineOf = Callable[[Host], Awaitable["Engine"]]


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One image on a host that kernelbridge made."""

    # Its name in the config.
    host: str
    # As `image` of an environment would name it; the beginning of its id if it has no name.
    name: str
    # snapshot; build or derived: made for environments, and made again where it is missing.
    kind: str
    # What it was made of, as far as it says so.
    base: str
    size_bytes: int
    created: datetime
    # When the newest container was made of it that is there still; else when it was made.
    last_used: datetime
    # The environments of this config that are made of it, or for which it was made.
    environments: tuple[str, ...]
    # Whether a container is made of it, of anybody, or of one that was made of it.
    is_in_use: bool
    # Whether this installation made it; of one that is no snapshot nobody knows.
    is_ours: bool
    # The engine's id.
    image_id: str

    def to_json(self) -> dict[str, Any]:
        """Return the image as `kernelbridge images --json` has it."""
        plain = {key: one.isoformat() if isinstance(one, datetime) else one for key, one in asdict(self).items()}
        return {**plain, "environments": list(self.environments)}


@dataclass(frozen=True, kw_only=True)
class ImageListing:
    """The images that were found, and the hosts that could not be asked."""

    images: tuple[ImageRow, ...]
    problems: tuple[KernelBridgeError, ...]
    # Snapshots that were not removed, although no environment is made of them: they may be somebody's work.
    kept: tuple[ImageRow, ...] = ()


async def snapshot(config: Config, engine_of: EngineOf, machine: str, *, kernel: KernelRow, name: str) -> None:
    """Make an image of a kernel's container as it is now. Raises KernelBridgeError."""
    named, host = split_name(name), config.host(kernel.host)
    if named is None:
        raise KernelBridgeError(
            f"{name!r} is not a name for an image.", "Write it as `docker tag` takes it: team/name:1."
        )
    if host.scheduler is not None:
        sentence = f"The kernel {kernel.kernel_id} runs in a job of {host.name}, of which no image can be made."
        raise KernelBridgeError(sentence, "Use a host with an engine of its own.")
    engine = await engine_of(host)
    there = await engine.image(":".join(named))
    if there is not None and there.labels.get(SNAPSHOT_LABEL) != machine:
        raise KernelBridgeError(
            f"{host.name} has an image {name} that is no snapshot of yours.", "Choose another name."
        )
    labels = {SNAPSHOT_LABEL: machine, LABEL_PREFIX + "base": kernel.image}
    await engine.images.snapshot(container_name(kernel.kernel_id), named, labels)


def engines_of(config: Config, names: Collection[str] = ()) -> list[Host]:
    """Return the hosts with an engine of their own; a cluster's nodes keep their images for themselves.

    Where hosts are named, only of those. Raises UnknownHost.
    """
    return [host for host in config.hosts_named(names) if host.scheduler is None]


async def look(config: Config, engine_of: EngineOf, machine: str, names: Collection[str] = ()) -> ImageListing:
    """Find the images on all hosts, or on those of these names."""

    async def rows(host: Host) -> list[ImageRow]:
        found = await (await engine_of(host)).images.list()
        return [row_of(config, host, image, machine) for image in found]

    hosts = engines_of(config, names)
    answers = await asyncio.gather(*map(rows, hosts), return_exceptions=True)
    images: list[ImageRow] = []
    problems: list[KernelBridgeError] = []
    for host, answer in zip(hosts, answers, strict=True):
        match answer:
            case list():
                images += answer
            case KernelBridgeError():
                problems.append(answer)
            case Exception():
                problems.append(unexpected_answer(host.name, answer))
            case _:
                raise answer
    images.sort(key=lambda row: (row.host, row.last_used))
    return ImageListing(images=tuple(images), problems=tuple(problems))


def row_of(config: Config, host: Host, image: StoredImage, machine: str) -> ImageRow:
    """Return what is to be told of one image."""
    made_by = image.labels.get(SNAPSHOT_LABEL, "") if image.kind == "snapshot" else ""
    names = [*image.names, image.id, *(image.bases if image.kind == "derived" else ())]
    return ImageRow(
        host=host.name,
        name=image.names[0] if image.names else image.id.removeprefix("sha256:")[:12],
        kind=image.kind,
        base=image.bases[0] if image.bases else "",
        size_bytes=image.size_bytes,
        created=datetime.fromtimestamp(image.created, UTC),
        last_used=datetime.fromtimestamp(image.last_used, UTC),
        environments=tuple(_made_of(config, host, names)),
        is_in_use=image.is_in_use,
        is_ours=made_by == machine,
        image_id=image.id,
    )


def _made_of(config: Config, host: Host, names: list[str]) -> Iterator[str]:
    for environment in config.environments.values():
        written = environment.image
        whole = written if "@" in written or ":" in written.rpartition("/")[2] else f"{written}:latest"
        if host in config.hosts_of(environment) and {written, whole} & set(names):
            yield environment.name


async def clean(
    config: Config,
    engine_of: EngineOf,
    machine: str,
    *,
    dry_run: bool,
    discard: bool,
    names: Collection[str] = (),
) -> ImageListing:
    """Remove what no environment needs and no container is made of; snapshots only by `discard`, and only our own."""
    listing = await look(config, engine_of, machine, names)
    unneeded = [row for row in listing.images if not row.environments and not row.is_in_use]
    # An engine keeps an image as long as another is there that was made of it.
    unneeded.sort(key=lambda row: (row.kind == "build", -row.created.timestamp()))
    kept = [row for row in unneeded if row.kind == "snapshot" and row.is_ours and not discard]
    removed: list[ImageRow] = []
    problems = list(listing.problems)
    for row in unneeded:
        if row in kept or (row.kind == "snapshot" and not row.is_ours):
            continue
        try:
            if not dry_run:
                await (await engine_of(config.host(row.host))).images.remove(row.image_id)
        except EngineFailed as exc:
            problems.append(exc)
        else:
            removed.append(row)
    return ImageListing(images=tuple(removed), problems=tuple(problems), kept=tuple(kept))
