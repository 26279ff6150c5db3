"""Named volumes of an engine: what hosts share without an agent. Locks of GPUs stand in one, each ticket is one."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

Result = TypeVar("Result")

# Where a container that only carries folders into a volume sees it.
CARRIED_AT: Final = "/mnt"


class Call(Protocol):
    """Engine's way to let docker-py do one piece of work; `action` is for people."""

    def __call__(self, action: str, work: Callable[[Any], Result]) -> Coroutine[Any, Any, Result]:
        """Raises KernelBridgeError."""


@dataclass(frozen=True, kw_only=True)
class VolumeFacts:
    """One volume of a listing."""

    name: str
    labels: Mapping[str, str]
    # By the engine's clock, in whole seconds.
    created: datetime


class Volumes:
    """The named volumes of one engine."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __repr__(self) -> str:
        return "<Volumes>"

    async def list(self, label: str) -> list[VolumeFacts]:
        """All volumes with this label (`key` or `key=value`)."""
        answer = await self._call("list volumes", lambda client: client.volumes(filters={"label": label}))
        return [
            VolumeFacts(
                name=str(row["Name"]),
                labels=dict(row.get("Labels") or {}),
                created=datetime.fromisoformat(str(row["CreatedAt"])),
            )
            for row in answer.get("Volumes") or []
            if row.get("CreatedAt")
        ]

    async def make(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a volume; one of this name that is there already stays as it is."""
        await self._call(f"make the volume {name}", lambda client: client.create_volume(name, labels=dict(labels)))

    async def remove(self, name: str) -> None:
        """Remove a volume that no container has. Already gone is success."""

        def work(client: Any) -> None:
            # Whoever waits in a queue may remove what has not beaten for an hour.
            if any(row["Name"] == name for row in client.volumes(filters={"name": name}).get("Volumes") or []):
                client.remove_volume(name, force=True)

        await self._call(f"remove the volume {name}", work)

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
        archive = _folders(names)

        def work(client: Any) -> None:
            client.create_container_from_config(body, carrier)
            try:
                client.put_archive(carrier, CARRIED_AT, archive)
            finally:
                client.remove_container(carrier, v=False, force=True)

        await self._call(f"make {len(names)} folders in the volume {volume}", work)


def mount(volume: str, target: str, *, read_only: bool) -> dict[str, Any]:
    """A named volume as the engine's create body has it; nothing of the image is copied into a new one."""
    return {
        "Type": "volume",
        "Source": volume,
        "Target": target,
        "ReadOnly": read_only,
        "VolumeOptions": {"NoCopy": True},
    }


def _folders(names: Collection[str]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in sorted(names):
            folder = tarfile.TarInfo(f"{name}/")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    return archive.getvalue()
