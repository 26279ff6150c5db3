"""Open the way to a host, and load asyncssh only when one needs it: a local engine never does.

Loading takes 0.3 s, of which 0.07 s are ldconfig and a compiler that asyncssh asks for liboqs (asyncssh 2.24); so it is
done on a thread, beside a loop that goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport.host_keys import HostKey
from kernelbridge.hosts.transport.local import open_local
from kernelbridge.hosts.transport.openssh.head_start import HeadStart
from kernelbridge.hosts.transport.stream import AnyLink

_T = TypeVar("_T")
# Logs in over SSH: see ssh.open_link().
OpenLink = Callable[[Host, HeadStart | None, Callable[[AnyLink], None] | None], Awaitable[AnyLink]]
# What was loaded, by the function that loads it.
_LOADED: dict[Callable[[], Any], Any] = {}


async def loaded(load: Callable[[], _T]) -> _T:
    """Return what `load` imports; called the first time it does so on a thread, later it costs nothing."""
    if load not in _LOADED:
        _LOADED[load] = await asyncio.to_thread(load)
    found: _T = _LOADED[load]
    return found


def load_ssh() -> OpenLink:
    """Import what logs in over SSH."""
    from kernelbridge.hosts.transport.ssh import open_link  # loads asyncssh

    return open_link


def _load_dial() -> Callable[[Host], Awaitable[HostKey]]:
    from kernelbridge.hosts.transport.dial import fetch_key  # loads asyncssh

    return fetch_key


async def open_any(host: Host, meanwhile: Callable[[AnyLink], None] | None = None) -> AnyLink:
    """Open a link of the right kind; `meanwhile` is called with one over SSH before the host has told its facts.

    While asyncssh is loaded the host's ssh config is read and its port connected to. Raises KernelBridgeError.
    """
    if host.is_local:
        return await open_local(host.name, folders=host.path)
    early = None if load_ssh in _LOADED else HeadStart(host)
    try:
        open_link = await loaded(load_ssh)
        return await open_link(host, early, meanwhile)
    finally:
        if early is not None:
            await early.aclose()


async def fetch_host_key(host: Host) -> HostKey:
    """Return the key that a host shows, or a jump host before it, and what known_hosts says of it.

    Raises KernelBridgeError.
    """
    fetch_key = await loaded(_load_dial)
    return await fetch_key(host)
