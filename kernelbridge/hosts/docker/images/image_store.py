"""List, make and remove an engine's images that are ours: built and derived ones, and snapshots of kernels."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from kernelbridge.config.schema import BUILT_PREFIX
from kernelbridge.hosts.docker.images import derived_image, snapshot
from kernelbridge.hosts.docker.responses import (
    ListedImage,
    parse_image_uses,
    parse_images,
    read_id,
    read_object,
    read_text,
)
from kernelbridge.hosts.docker.volumes import Call
from kernelbridge.hosts.labels import BUILD_LABEL, SNAPSHOT_LABEL

BASE: Final = derived_image.BASE_LABEL
_DERIVED_PREFIX: Final = derived_image.REPOSITORY + ":"
Kind = Literal["build", "derived", "snapshot"]


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """One image of ours on an engine."""

    id: str
    kind: Kind
    names: tuple[str, ...]
    labels: Mapping[str, str]
    # The names of what it was made of, and of what that was made of.
    bases: tuple[str, ...]
    size_bytes: int
    # When it was made, and when the newest container was that is made of it: seconds since 1970, by the engine's clock.
    created: float
    last_used: float
    # Whether a container is made of it, running or not, or of one that was made of it.
    is_in_use: bool


class ImageStore:
    """The images of one engine."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __repr__(self) -> str:
        return "<ImageStore>"

    async def list(self) -> list[StoredImage]:
        """Return those that are ours."""

        def work(client: Any) -> tuple[Any, Any]:
            return client.images(), client.containers(all=True)

        found: list[StoredImage] = await self._call("list images", work, _parse)
        return found

    async def others(self) -> Sequence[ListedImage]:
        """Return those that have a name and are not ours."""

        def work(client: Any) -> Any:
            return client.images()

        def parsed(answer: Any) -> Sequence[ListedImage]:
            return [image for image in parse_images(answer) if image.names and _kind(image) is None]

        found: Sequence[ListedImage] = await self._call("list images", work, parsed)
        return found

    async def snapshot(self, container: str, name: tuple[str, str], labels: Mapping[str, str]) -> str:
        """Make an image of a container as it is now, and return its id. The container is paused meanwhile."""
        repository, tag = name

        def work(client: Any) -> Any:
            seen = client.inspect_container(container)
            base = client.inspect_image(read_text(read_object(seen, "the container").get("Image"), "Image"))
            body = snapshot.commit_config(snapshot.config_of(seen), snapshot.config_of(base), labels)
            return client.commit(container, repository=repository, tag=tag, conf=body)

        made: str = await self._call(f"make an image of {container}", work, read_id)
        return made

    async def remove(self, image_id: str) -> None:
        """Remove an image, with all its names. Raises: EngineFailed, where a container is made of it."""

        def work(client: Any) -> None:
            names = [
                name for image in parse_images(client.images(all=True)) if image.id == image_id for name in image.names
            ]
            for name in names or [image_id]:
                client.remove_image(name)

        await self._call(f"remove the image {image_id}", work, lambda _: None)


def _parse(answer: tuple[Any, Any]) -> list[StoredImage]:
    images, used = parse_images(answer[0]), parse_image_uses(answer[1])
    by_id = {image.id: image for image in images}
    ours = [(image, kind) for image in images if (kind := _kind(image)) is not None]
    below = {base for image, _ in ours if image.id in used for base in _base_ids(image, by_id)}
    return [_stored(image, kind, by_id, used, below) for image, kind in ours]


def _kind(image: ListedImage) -> Kind | None:
    """Return what an image of ours is; None if it is not.

    What somebody made of one has its labels too, and what somebody gave a name to is that one's: only a snapshot has
    a name that is not ours. A label without a value says nothing.
    """
    labels, names = image.labels, image.names
    if names and all(name.startswith(BUILT_PREFIX) for name in names):
        return "build"
    # Before a snapshot: to one, too, something may have been added.
    if labels.get(derived_image.DERIVED_LABEL):
        return "derived" if all(name.startswith(_DERIVED_PREFIX) for name in names) else None
    if labels.get(SNAPSHOT_LABEL):
        return "snapshot"
    return "build" if labels.get(BUILD_LABEL) and not names else None


def _stored(
    image: ListedImage,
    kind: Kind,
    by_id: Mapping[str, ListedImage],
    used: Mapping[str, float],
    below: Container[str],
) -> StoredImage:
    return StoredImage(
        id=image.id,
        kind=kind,
        names=image.names,
        labels=image.labels,
        # A build's label of this kind is one of what its Dockerfile begins with.
        bases=_bases(image, by_id) if kind != "build" else (),
        size_bytes=image.size_bytes,
        created=image.created,
        last_used=max(image.created, used.get(image.id, 0.0)),
        is_in_use=image.id in used or image.id in below,
    )


def _bases(image: ListedImage, by_id: Mapping[str, ListedImage]) -> tuple[str, ...]:
    """Return the names of the images below one of ours."""
    found: list[str] = []
    for base in _base_ids(image, by_id):
        found += (by_id[base].names if base in by_id else ()) or (base,)
    return tuple(found)


def _base_ids(image: ListedImage, by_id: Mapping[str, ListedImage]) -> tuple[str, ...]:
    """Return the images below one of ours, the next first: its label has the id of that, or a name."""
    found: list[str] = []
    base = image.labels.get(BASE, "")
    while base and base not in found:
        found.append(base)
        base = by_id[base].labels.get(BASE, "") if base in by_id else ""
    return tuple(found)
