"""List, make and remove an engine's named volumes: those for GPUs' locks and the tickets of their queue, and users'."""

from __future__ import annotations

import io
import posixpath
import secrets
import tarfile
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from kernelbridge.hosts.docker.responses import VolumeFacts, parse_volumes
from kernelbridge.hosts.labels import NAME_PREFIX

# Where a container that only carries folders into a volume sees it.
CARRIED_AT: Final = "/mnt"


# Lets docker-py do one piece of work and returns what it brings, as the last one reads it; the words name it to people.
Call = Callable[[str, Callable[[Any], Any], Callable[[Any], Any]], Awaitable[Any]]


class Volumes:
    """The named volumes of one engine."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __repr__(self) -> str:
        return "<Volumes>"

    async def list(self, label: str) -> list[VolumeFacts]:
        """Return all volumes with this label (`key` or `key=value`)."""
        found: list[VolumeFacts] = await self._call(
            "list volumes", lambda client: client.volumes(filters={"label": label}), parse_volumes
        )
        return found

    async def make(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume; one of this name that is there already stays as it is."""
        await self._call(
            f"make the volume {name}", lambda client: client.create_volume(name, labels=dict(labels)), _dropped
        )

    async def remove(self, name: str) -> None:
        """Remove a volume that no container has. Already gone is success."""

        def work(client: Any) -> None:
            # Whoever waits in a queue may remove what has not beaten for an hour.
            if any(row.name == name for row in parse_volumes(client.volumes(filters={"name": name}))):
                client.remove_volume(name, force=True)

        await self._call(f"remove the volume {name}", work, _dropped)

    async def make_folders(self, volume: str, names: Collection[str], *, image: str, labels: Mapping[str, str]) -> None:
        """Make folders in a volume, by way of a container of the image that is never started.

        A folder that is there already is the same one afterwards: who holds a lock on it holds it still.
        """
        carrier = f"{volume}-{secrets.token_hex(6)}"
        body = {
            "Image": image,
            "Entrypoint": ["true"],
            "Labels": dict(labels),
            "HostConfig": {"Mounts": [mount(volume, CARRIED_AT, read_only=False)], "NetworkMode": "none"},
        }
        archive = folder_archive(names, mode=0o755)

        def work(client: Any) -> None:
            client.create_container_from_config(body, carrier)
            try:
                client.put_archive(carrier, CARRIED_AT, archive)
            finally:
                client.remove_container(carrier, v=False, force=True)

        await self._call(f"make {len(names)} folders in the volume {volume}", work, _dropped)

    async def give(self, names: Sequence[str], user: str, *, image: str, labels: Mapping[str, str]) -> None:
        """Give volumes to `user` (`UID[:GID]` or a name) that have nothing in them yet; others stay as they are.

        One that is missing is made. By way of a container of the image that is never started.
        """
        places = {f"{CARRIED_AT}/{index}": name for index, name in enumerate(names)}
        body = {
            "Image": image,
            "Entrypoint": ["true"],
            "Labels": dict(labels),
            "HostConfig": {
                "Mounts": [mount(name, place, read_only=False) for place, name in places.items()],
                "NetworkMode": "none",
            },
        }
        carrier = f"{NAME_PREFIX}carrier-{secrets.token_hex(6)}"

        def work(client: Any) -> None:
            client.create_container_from_config(body, carrier)
            try:
                for place in places:
                    pieces, _ = client.get_archive(carrier, place)
                    try:
                        folder = empty_folder(pieces)
                    finally:
                        pieces.close()
                    if folder is not None:
                        client.put_archive(carrier, CARRIED_AT, given(folder, posixpath.basename(place), user))
            finally:
                # With what the image's VOLUME has made: volumes that have a name stay.
                client.remove_container(carrier, v=True, force=True)

        await self._call(f"make the volume {' and '.join(names)} yours", work, _dropped)


def empty_folder(pieces: Iterator[bytes]) -> tarfile.TarInfo | None:
    """Return the folder of an archive if it is root's and has nothing in it; no more is read than that takes."""
    try:
        with tarfile.open(fileobj=_Stream(pieces), mode="r|") as tar:
            folder = tar.next()
            is_new = folder is not None and folder.isdir() and (folder.uid, folder.gid) == (0, 0)
            return folder if is_new and tar.next() is None else None
    except tarfile.TarError:
        return None


def given(folder: tarfile.TarInfo, name: str, user: str) -> bytes:
    """Return the tar archive that gives a folder to `user`; to one with a name of the image's, by its mode."""
    uid, _, gid = user.partition(":")
    if uid.isdecimal() and (gid or "0").isdecimal():
        return _archive([(name, folder.mode, int(uid), int(gid or 0))])
    return folder_archive([name], mode=0o1777)


class _Stream(io.RawIOBase):
    """What arrives in pieces, as tarfile reads it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        # What has arrived and was not read yet.
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._rest += piece
        end = len(self._rest) if size < 0 else size
        taken, self._rest = self._rest[:end], self._rest[end:]
        return taken


def _dropped(answer: object) -> None:
    """Read nothing of an answer."""


def mount(volume: str, target: str, *, read_only: bool) -> dict[str, Any]:
    """Write a named volume as the engine's create body has it; nothing of the image is copied into a new one."""
    return {
        "Type": "volume",
        "Source": volume,
        "Target": target,
        "ReadOnly": read_only,
        "VolumeOptions": {"NoCopy": True},
    }


def folder_archive(names: Collection[str], *, mode: int) -> bytes:
    """Return the tar archive of empty folders: to put it in a container is how the engine's API makes folders."""
    return _archive([(name, mode, 0, 0) for name in sorted(names)])


def _archive(folders: Sequence[tuple[str, int, int, int]]) -> bytes:
    """Write the archive of folders: name, mode, numbers of user and group."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, mode, uid, gid in folders:
            folder = tarfile.TarInfo(f"{name}/")
            folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, mode, uid, gid
            tar.addfile(folder)
    return archive.getvalue()
