"""Look into containers, put files into them and make images of them, whether they run or not."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelbridge.hosts.docker.client import FAILURES, as_refusal
from kernelbridge.hosts.docker.responses import ImageFacts, parse_image
from kernelbridge.hosts.docker.volumes import Call

# Of what is there each leaves a connection with an answer that nobody reads.
_MOST_PRESENT = 4


class Workshop:
    """The containers of one engine as things to work on."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __repr__(self) -> str:
        return "<Workshop>"

    async def present(self, name: str, paths: Sequence[str]) -> list[str]:
        """Return the first few of these paths that a container has. Raises EngineFailed, others."""

        def work(client: Any) -> list[str]:
            return list(itertools.islice((path for path in paths if _has(client, name, path)), _MOST_PRESENT))

        found: list[str] = await self._call(f"look into {name}", work, list)
        return found

    async def put(self, name: str, folder: str, archive: bytes | Path) -> None:
        """Unpack a tar archive, which may be compressed, into a folder of a container. Raises EngineFailed, others."""

        def work(client: Any) -> None:
            if isinstance(archive, bytes):
                client.put_archive(name, folder, archive)
                return
            with archive.open("rb") as file:
                client.put_archive(name, folder, file)

        await self._call(f"write into {name}", work, _dropped)

    async def commit(self, name: str, tag: str, config: Mapping[str, Any] | None = None) -> ImageFacts:
        """Make an image of a container, and return it; `config` is what it says otherwise than the container.

        Another image of this name is nameless then. Raises EngineFailed, LinkLost.
        """
        repository, _, version = tag.rpartition(":")

        def work(client: Any) -> Any:
            client.commit(name, repository=repository, tag=version, conf=config)
            return client.inspect_image(tag)

        made: ImageFacts = await self._call(f"make the image {tag}", work, parse_image)
        return made


def _dropped(answer: object) -> None:
    """Read nothing of an answer."""


def _has(client: Any, name: str, path: str) -> bool:
    """Whether a container has a file or link of this path; nothing of it is read."""
    try:
        pieces, _ = client.get_archive(name, path)
    except FAILURES as exc:
        refusal = as_refusal(exc)
        if refusal is None or refusal.status != 404:
            raise
        return False
    pieces.close()
    return True
