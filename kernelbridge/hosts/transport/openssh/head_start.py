"""Read a host's ssh config and connect to its port while asyncssh, which logs in there, is still being loaded."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport.openssh.address import parse_address
from kernelbridge.hosts.transport.openssh.query import SSH_QUERY_SECONDS
from kernelbridge.hosts.transport.openssh.settings import Settings, read_settings

_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
# What leads elsewhere than to the host's own port, or there by a way of its own.
_OTHER_WAYS = ("proxycommand", "proxyjump", "bindaddress", "bindinterface")


class HeadStart:
    """What can be done for one login before asyncssh is there. Made on the loop; ended by aclose()."""

    def __init__(self, host: Host) -> None:
        self._settings = asyncio.create_task(_read(host))
        self._connection = asyncio.create_task(self._connect())

    def __repr__(self) -> str:
        state = "connected" if self._connection.done() else "under way"
        return f"<HeadStart {state}>"

    async def settings(self) -> Settings:
        """Return what the ssh config says of the host. Raises: as read_settings()."""
        return await asyncio.shield(self._settings)

    async def take_connection(self, settings: Settings) -> socket.socket | None:
        """Return a connection to the host, for whoever logs in with these settings; None where there is none to have.

        Why there is none is for the next attempt to tell.
        """
        if not self._settings.done() or self._settings.cancelled() or self._settings.exception():
            return None
        if self._settings.result() is not settings:
            return None
        taken = await asyncio.shield(self._connection)
        self._connection = asyncio.create_task(_nothing())
        return taken

    async def _connect(self) -> socket.socket | None:
        try:
            settings = await asyncio.shield(self._settings)
        except (OSError, ValueError):
            return None
        if any(settings.one(keyword) for keyword in _OTHER_WAYS):
            return None
        loop = asyncio.get_running_loop()
        family = _FAMILIES.get(settings.one("addressfamily") or "", socket.AF_UNSPEC)
        with contextlib.suppress(OSError):
            found = await loop.getaddrinfo(settings.host, settings.port, family=family, type=socket.SOCK_STREAM)
            for kind, _, protocol, _, address in found:
                opened = socket.socket(kind, socket.SOCK_STREAM, protocol)
                try:
                    opened.setblocking(False)
                    await loop.sock_connect(opened, address)
                except OSError:
                    opened.close()
                    continue
                except BaseException:
                    opened.close()
                    raise
                return opened
        return None

    async def aclose(self) -> None:
        """Give up what nobody has taken. Safe to call twice."""
        for task in (self._settings, self._connection):
            task.cancel()
        _, left = await asyncio.gather(self._settings, self._connection, return_exceptions=True)
        if isinstance(left, socket.socket):
            left.close()


async def _read(host: Host) -> Settings:
    address = parse_address(host.ssh)
    seconds = host.login_seconds or SSH_QUERY_SECONDS
    return await read_settings(address.name, user=address.user, port=address.port, seconds=seconds)


async def _nothing() -> None:
    return None
