"""Look at the way to a host up to its login: ssh config, name, route, host key, login, second factor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Final

from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    HostKeyChanged,
    HostKeyUnknown,
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    KernelBridgeError,
    LoginRefused,
    SshConfigInvalid,
    StartTimeout,
    unexpected_answer,
)
from kernelbridge.fleet.doctor.finding import Examiner, Finding, LinkName, LinkState
from kernelbridge.hosts.transport.dial import translated
from kernelbridge.hosts.transport.login.stage import ASKS_FACTS
from kernelbridge.hosts.transport.ssh_config import Hop, plan_way
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel.request import WatchLogin

# A login has limits of its own, longer ones where its user is asked.
MOST_LOGIN_SECONDS: Final = 180.0
# Where the ssh config has no ConnectTimeout.
_CONNECT_SECONDS: Final = 10.0
# How long a server may take to say that it is one: some wait for the client's word.
_BANNER_SECONDS: Final = 1.0
_BANNER_BYTES: Final = 255
# In the order of the way.
_AT_LOGIN: Final = (LinkName.ROUTE, LinkName.HOST_KEY, LinkName.LOGIN)
_BEFORE: Final = (LinkName.SSH_CONFIG, LinkName.NAME, *_AT_LOGIN)


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """A login: what came of it, and what it was doing last."""

    link: AnyLink | None
    error: KernelBridgeError | None
    stages: Sequence[str]
    seconds: float


# Gives a block so many seconds.
Limited = Callable[[float], AbstractAsyncContextManager[None]]


def broken_link(error: KernelBridgeError, *, last_stage: str, is_direct: bool) -> LinkName:
    """Return the link that a login's error is about; `is_direct`: no jump host and no ProxyCommand leads there."""
    match error:
        case HostKeyUnknown() | HostKeyChanged():
            return LinkName.HOST_KEY
        case LoginRefused(wants_more=True):
            return LinkName.SECOND_FACTOR
        case LoginRefused():
            return LinkName.LOGIN
        case _ if last_stage == ASKS_FACTS:
            return LinkName.SHELL
        case HostNameUnknown() | HostRefused():
            return LinkName.ROUTE
        case SshConfigInvalid():
            # The config itself was read before; here it is a ProxyCommand's program, or a key.
            return LinkName.LOGIN if is_direct else LinkName.ROUTE
        case HostUnreachable() if (
            not last_stage or last_stage.startswith("connecting ") or last_stage.endswith(" to answer")
        ):
            return LinkName.ROUTE
        case _:
            return LinkName.LOGIN


class WayExaminer:
    """The links from here to a login on a host."""

    def __init__(
        self,
        host: Host,
        examiner: Examiner,
        *,
        link: Callable[[Host], Awaitable[AnyLink]],
        watch_login: WatchLogin,
        limited: Limited,
    ) -> None:
        """`link` logs in; `limited` gives a block so many seconds, beside those in which a person is asked."""
        self._host = host
        self._examiner = examiner
        self._link = link
        self._watch_login = watch_login
        self._limited = limited

    def __repr__(self) -> str:
        return f"<WayExaminer to {self._host.name}>"

    async def log_in(self) -> tuple[AnyLink | None, LinkName]:
        """Look at all of it, and return the link; where there is none, the name of the one that is broken."""
        if self._host.is_local:
            return await self._local()
        hops = await self._examiner.look(LinkName.SSH_CONFIG, self._plan)
        if hops is None:
            self._skip_behind(LinkName.SSH_CONFIG)
            return None, LinkName.SSH_CONFIG
        first = hops[0]
        proxied = first.proxy_command is not None
        if await self._examiner.look(LinkName.NAME, lambda: _resolve(first)) is None:
            self._skip_behind(LinkName.NAME)
            return None, LinkName.NAME
        route = await _route(first) if not proxied else Finding(link=LinkName.ROUTE, found="by its ProxyCommand")
        if route.state is LinkState.BROKEN:
            self._examiner.tell(route)
            self._skip_behind(LinkName.ROUTE)
            return None, LinkName.ROUTE
        attempt = await self._attempt()
        return self._told(hops, route, attempt)

    async def _local(self) -> tuple[AnyLink | None, LinkName]:
        async def step() -> tuple[AnyLink, str]:
            return await self._link(self._host), "this machine's own engine: no ssh"

        return await self._examiner.look(LinkName.LOGIN, step, seconds=MOST_LOGIN_SECONDS), LinkName.LOGIN

    def _skip_behind(self, broken: LinkName) -> None:
        self._examiner.skip(broken, *_BEFORE[_BEFORE.index(broken) + 1 :])

    async def _plan(self) -> tuple[list[Hop], str]:
        hops = await plan_way(self._host)
        try:
            for hop in hops:
                # They raise what is wrong in the config before anything is connected to.
                hop.options()
                _ = hop.proxy_command
        except ValueError as exc:
            raise SshConfigInvalid(host=self._host.name, reason=str(exc)) from exc
        return hops, way_text(self._host.ssh, hops)

    async def _attempt(self) -> _Attempt:
        began = time.monotonic()
        stages: list[str] = []
        link: AnyLink | None = None
        error: KernelBridgeError | None = None
        try:
            with self._watch_login(self._host, lambda stage: stages.append(stage.text)):
                async with self._limited(MOST_LOGIN_SECONDS):
                    link = await self._link(self._host)
        except TimeoutError:
            error = StartTimeout(
                host=self._host.name, what="the login", seconds=MOST_LOGIN_SECONDS, remedy="Try again."
            )
        except KernelBridgeError as exc:
            error = exc
        except Exception as exc:
            error = unexpected_answer(self._host.name, exc)
        return _Attempt(link=link, error=error, stages=stages, seconds=time.monotonic() - began)

    def _told(self, hops: Sequence[Hop], route: Finding, attempt: _Attempt) -> tuple[AnyLink | None, LinkName]:
        """Tell of each link that a login goes over, by what became of it."""
        is_direct = len(hops) == 1 and hops[0].proxy_command is None
        broken: LinkName | None = None
        if attempt.error is not None:
            last = attempt.stages[-1] if attempt.stages else ""
            broken = broken_link(attempt.error, last_stage=last, is_direct=is_direct)
        held = {
            LinkName.ROUTE: replace(route, found=route.found if is_direct or broken else _beyond(route.found, hops)),
            LinkName.HOST_KEY: Finding(link=LinkName.HOST_KEY, found=f"known as {hops[-1].known_hosts.name}"),
            LinkName.LOGIN: Finding(link=LinkName.LOGIN, found=self._login_text(attempt), seconds=attempt.seconds),
        }
        for name, finding in held.items():
            if attempt.error is not None and name is broken:
                told = replace(Finding.of_error(name, attempt.error), seconds=route.seconds + attempt.seconds)
                self._examiner.tell(told)
                self._skip_behind(name)
                return None, name
            self._examiner.tell(finding)
        if attempt.error is None:
            if attempt.link is not None and attempt.link.entry.was_asked:
                self._examiner.tell(Finding(link=LinkName.SECOND_FACTOR, found="asked for, and given"))
            return attempt.link, LinkName.LOGIN
        assert broken is not None
        self._examiner.tell(replace(Finding.of_error(broken, attempt.error), seconds=attempt.seconds))
        return None, broken

    def _login_text(self, attempt: _Attempt) -> str:
        if attempt.link is None:
            key = attempt.error.accepted_key if isinstance(attempt.error, LoginRefused) else ""
            return f"the key {key} is accepted" if key else "let in"
        entry = attempt.link.entry
        by = f"by the key {entry.key}" if entry.key else "without a key"
        return f"{attempt.link.facts.user} at {self._host.ssh}, {by}"


def way_text(ssh: str, hops: Sequence[Hop]) -> str:
    """Say where the ssh config leads."""
    last = hops[-1]
    text = f"{ssh} is {last.user}@{last.shown}"
    if len(hops) > 1:
        text += f", by way of {', '.join(str(hop.address) for hop in hops[:-1])}"
    if hops[0].proxy_command is not None:
        text += ", by a ProxyCommand"
    return text


def _beyond(route: str, hops: Sequence[Hop]) -> str:
    return f"{route}, and on to {hops[-1].shown}" if len(hops) > 1 else route


def _family(hop: Hop) -> socket.AddressFamily:
    family = hop.transport_options().get("family")
    return family if isinstance(family, socket.AddressFamily) else socket.AF_UNSPEC


async def _resolve(hop: Hop) -> tuple[bool, str]:
    """Resolve the name that the first connection goes to."""
    if hop.proxy_command is not None:
        return True, "left to its ProxyCommand"
    with translated(hop):
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(hop.target, hop.port, type=socket.SOCK_STREAM, family=_family(hop))
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if addresses == [hop.target]:
        return True, f"{hop.target} is an address"
    return True, f"{hop.target} is {' and '.join(addresses[:3])}"


async def _route(hop: Hop) -> Finding:
    """Connect to the first machine on the way, and hang up."""
    began = time.monotonic()
    seconds = hop.settings.seconds("connecttimeout") or _CONNECT_SECONDS
    bound = hop.settings.one("bindaddress")
    try:
        with translated(hop):
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_connection(
                    hop.target, hop.port, family=_family(hop), local_addr=(bound, 0) if bound else None
                )
    except HostUnreachable as error:
        late = time.monotonic() - began >= seconds
        error = _too_late(hop, seconds) if late else error
        return replace(Finding.of_error(LinkName.ROUTE, error), seconds=time.monotonic() - began)
    except KernelBridgeError as error:
        return replace(Finding.of_error(LinkName.ROUTE, error), seconds=time.monotonic() - began)
    took = time.monotonic() - began
    with contextlib.closing(writer):
        said = await _banner(reader)
    return Finding(link=LinkName.ROUTE, found=f"{hop.shown} takes connections{said}", seconds=took)


def _too_late(hop: Hop, seconds: float) -> HostUnreachable:
    return HostUnreachable(host=hop.host_name, address=hop.shown, reason=f"no answer in {seconds:g} s")


async def _banner(reader: asyncio.StreamReader) -> str:
    """Return what the server says that it is, if it does so at once."""
    with contextlib.suppress(TimeoutError, OSError, ValueError):
        async with asyncio.timeout(_BANNER_SECONDS):
            line = await reader.readline()
            text = line[:_BANNER_BYTES].decode("ascii", "replace").strip()
            return f" ({text})" if text.startswith("SSH-") else ""
    return ""
