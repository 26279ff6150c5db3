"""The short way to a relay: a unix socket in a folder of the login's, which the container has mounted.

What goes that way passes neither the engine nor its shim: it costs less, and goes on while the engine is started anew.
Where the host does not allow it the relay is reached by an exec stream, as without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from kernelbridge.config.container_paths import DOOR_FOLDER
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.hosts.labels import NAME_PREFIX
from kernelbridge.hosts.transport.facts import SCRIPT_SECONDS
from kernelbridge.hosts.transport.stream import AnyLink, Receiver, Stream
from kernelbridge.protocol.handshake import DOOR_GREETING

_LOG = logging.getLogger(__name__)

_SOCKET: Final = "relay.sock"
# Not $XDG_RUNTIME_DIR, which goes with the login's last session, nor a home, which may be another machine's.
_BASE: Final = "/tmp/kernelbridge-"  # noqa: S108
# How long a relay that is being started is waited for, and how often it is looked for; then the engine's way is taken.
BOOT_SECONDS = 2.0
_LOOK_SECONDS = (0.02, 0.02, 0.03, 0.05, 0.1)
# So long one that did not let us in is reached the other way.
SHUT_SECONDS = 60.0
GREETING_SECONDS = 15.0
# Makes the folder of all kernels, which nobody else may pass, and in it the kernel's, to which every user of the
# container may write. In /tmp somebody else may have made one of that name.
_IS_MINE: Final = '[ -n "$(find "$1" -prune -type d -user "$2" -perm 0700 2>/dev/null)" ]'
_MAKE_SCRIPT: Final = f"""
mkdir -m 700 "$1" 2>/dev/null
{_IS_MINE} || {{ echo "$1 is not yours alone"; exit 1; }}
rm -rf "$1/$3" && mkdir -m 1777 "$1/$3"
"""
_REMOVE_SCRIPT: Final = f"""
[ -n "$3" ] && {_IS_MINE} || exit 0
rm -rf "$1/$3"
rmdir "$1" 2>/dev/null || :
"""


@dataclass(frozen=True, kw_only=True)
class DoorMount:
    """Where a relay listens besides, and to whom."""

    # The folder on the host.
    folder: str
    # The login's number, as the container sees it.
    uid: int

    def added_to(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body of POST /containers/create with the mount of the folder."""
        mount = {"Type": "bind", "Source": self.folder, "Target": DOOR_FOLDER, "ReadOnly": False}
        host_config = spec["HostConfig"]
        return {**spec, "HostConfig": {**host_config, "Mounts": [*host_config["Mounts"], mount]}}

    def order(self) -> dict[str, Any]:
        """Return what the relay is told."""
        return {"path": f"{DOOR_FOLDER}/{_SOCKET}", "uid": self.uid}


class ShortWays:
    """The short ways to the relays of one engine, over one link."""

    def __init__(self, link: AnyLink, *, trouble: str = "") -> None:
        """`trouble`: why there can be none here, for people."""
        self._link = link
        # Why there is none; empty as long as there may be.
        self.trouble = trouble
        # Whether folders are made at all.
        self._may_make = not trouble
        # The doors of containers that were not started yet, by container.
        self._doors: dict[str, DoorMount] = {}
        # Until when a relay that was started here is waited for; and until when one is not asked again. By container.
        self._awaited: dict[str, float] = {}
        self._shut: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<ShortWays {self._link.name} {self.trouble or 'open'}>"

    @property
    def _base(self) -> str:
        return f"{_BASE}{self._link.facts.uid}"

    def _path(self, name: str) -> str:
        return f"{self._base}/{name.removeprefix(NAME_PREFIX)}/{_SOCKET}"

    async def make(self, name: str) -> None:
        """Make the folder for a container that is about to be made, if there may be a short way. Raises: LinkLost."""
        if self.trouble:
            return
        try:
            done = await self._link.run(self._words(_MAKE_SCRIPT, "mkdir", name), seconds=SCRIPT_SECONDS)
        except LinkLost:
            raise
        except KernelBridgeError as exc:
            self.give_up(str(exc))
            return
        if done.exit_code:
            self.give_up((done.stdout + done.stderr).decode("utf-8", "replace").strip())

    def door(self, name: str, info: Mapping[str, Any]) -> DoorMount | None:
        """Return the door of a container whose folder was made; None where it can have none.

        `info` is the engine's GET /info.
        """
        self._doors.pop(name, None)
        self._shut.pop(name, None)
        if not self.trouble and (reason := _engine_trouble(info)):
            self.give_up(reason)
        if self.trouble:
            return None
        is_rootless = any("rootless" in option for option in _security_options(info))
        uid = 0 if is_rootless else self._link.facts.uid
        self._doors[name] = DoorMount(folder=f"{self._base}/{name.removeprefix(NAME_PREFIX)}", uid=uid)
        return self._doors[name]

    def refuses(self, name: str, error: KernelBridgeError) -> bool:
        """Whether an engine refused a container for the mount of its door; then there are none on this host."""
        door = self._doors.get(name)
        if door is None or door.folder not in str(error):
            return False
        del self._doors[name]
        self.give_up(str(error))
        return True

    def order(self, name: str) -> dict[str, Any] | None:
        """Return what the relay of a container is told of its door; None: it has none."""
        door = self._doors.get(name)
        return None if door is None else door.order()

    def expect(self, name: str) -> None:
        """Wait for the door of a container that was started just now, if it has one."""
        if self._doors.pop(name, None) is not None:
            self._awaited[name] = asyncio.get_running_loop().time() + BOOT_SECONDS

    def give_up(self, reason: str) -> None:
        """Do without on this host from now on: containers get no such mount."""
        _LOG.info("[%s] no short way: %s", self._link.name, reason)
        self.trouble = reason

    async def open(self, name: str, receiver: Receiver) -> Stream | None:
        """Return a stream to the relay of this container; None if it cannot be reached so. Raises: LinkLost."""
        clock = asyncio.get_running_loop().time
        if self.trouble or clock() < self._shut.get(name, 0.0):
            return None
        until, waits = self._awaited.pop(name, 0.0), iter(_LOOK_SECONDS)
        while True:
            greeted = _Greeted(receiver)
            stream = await self._link.try_socket(self._path(name), greeted)
            if stream is not None:
                break
            if clock() >= until:
                return None
            await asyncio.sleep(next(waits, _LOOK_SECONDS[-1]))
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                is_relay = await greeted.heard
        except TimeoutError:
            is_relay = False
        finally:
            if not greeted.is_passed:
                greeted.abandon()
                stream.close()
        if is_relay:
            return stream
        _LOG.info("[%s] the relay of %s does not let us in by the short way", self._link.name, name)
        self._shut[name] = clock() + SHUT_SECONDS
        return None

    async def remove(self, name: str) -> None:
        """Remove a container's folder, if there is one. Raises KernelBridgeError."""
        if not self._may_make:
            return
        await self._link.run(self._words(_REMOVE_SCRIPT, "rm", name), seconds=SCRIPT_SECONDS)

    def _words(self, script: str, called: str, name: str) -> list[str]:
        return ["sh", "-c", script, called, self._base, str(self._link.facts.uid), name.removeprefix(NAME_PREFIX)]


class _Greeted:
    """Takes what comes by a door, and hands it on after the relay's greeting: else another program listens there."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver: Receiver | None = receiver
        self._begun = b""
        # Whether the greeting came; and that it did, or cannot come any more.
        self.is_passed = False
        self.heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def abandon(self) -> None:
        """Hand nothing on."""
        self._receiver = None

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        if self.is_passed:
            if self._receiver is not None:
                self._receiver.data_received(data)
            return
        self._begun += data
        size = len(DOOR_GREETING)
        if self._begun[:size] == DOOR_GREETING:
            self.is_passed = True
            self._tell(True)
            if self._receiver is not None and self._begun[size:]:
                self._receiver.data_received(self._begun[size:])
        elif not DOOR_GREETING.startswith(self._begun):
            self._tell(False)

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        if self.is_passed and self._receiver is not None:
            self._receiver.closed(exc)
        self._tell(False)

    def _tell(self, is_relay: bool) -> None:
        if not self.heard.done():
            self.heard.set_result(is_relay)


def _security_options(info: Mapping[str, Any]) -> list[str]:
    return [str(option) for option in info.get("SecurityOptions") or ()]


def _engine_trouble(info: Mapping[str, Any]) -> str:
    """Say why an engine's containers can have no socket of the login's; empty where they may."""
    options = _security_options(info)
    if any(option.startswith("name=userns") for option in options):
        return "its Docker runs with `userns-remap`"
    if any(option.startswith("name=selinux") for option in options):
        return "its Docker runs with SELinux"
    if str(info.get("OperatingSystem")).startswith("Docker Desktop"):
        return "its containers run in a virtual machine"
    return ""
