"""Log in to a host, through its jump hosts, and fetch the key that it shows. Host keys are always checked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncssh

from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    KernelBridgeError,
    LoginRefused,
    SshConfigInvalid,
    SshFailed,
)
from kernelbridge.hosts.transport.host_keys import HostKey
from kernelbridge.hosts.transport.login.client import LoginClient
from kernelbridge.hosts.transport.login.questions import current_asking
from kernelbridge.hosts.transport.login.stage import report, waits_for_user
from kernelbridge.hosts.transport.openssh.address import Address
from kernelbridge.hosts.transport.openssh.head_start import HeadStart
from kernelbridge.hosts.transport.openssh.identities import Identities, collect_identities
from kernelbridge.hosts.transport.openssh.proxy_command import ProxyCommand, start_proxy
from kernelbridge.hosts.transport.openssh.query import SSH_QUERY_SECONDS
from kernelbridge.hosts.transport.ssh_config import Hop, plan, plan_way

# How it ends where the host has no key of a kind that was asked for, depending on which side finds out first.
_NO_COMMON_KEY = (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError)
# asyncssh's 2 MiB window gives 20 MB/s at 50 ms round trip, this gives about 130 (decisions.md, 5).
WINDOW_BYTES = 16 << 20
PACKET_BYTES = 128 << 10
# For all that comes after the connection, and for that where the config has no ConnectTimeout.
LOGIN_SECONDS = 20.0


# What asyncssh takes where it only fetches a key.
_KEY_OPTIONS = ("host", "port", "config", "family", "local_addr", "kex_algs", "server_host_key_algs")


@contextlib.contextmanager
def translated(hop: Hop, guard: LoginClient | None = None) -> Iterator[None]:
    """Turn what goes wrong between here and the end of the login into our errors."""
    try:
        yield
    except KernelBridgeError:
        raise
    except (asyncssh.Error, OSError, ValueError, asyncssh.KeyImportError) as exc:
        if guard is not None and guard.refused_key is not None:
            raise hop.distrust(guard.refused_key) from exc
        if guard is not None and (refusal := _refusal(guard, exc)) is not None:
            raise refusal from exc
        raise _login_error(hop, exc) from exc


def _refusal(guard: LoginClient, exc: Exception) -> LoginRefused | None:
    """Return the error where the host has let nobody in, None where something else happened."""
    match exc:
        case asyncssh.PermissionDenied():
            return guard.refusal()
        case asyncssh.Error() if "authentication failures" in exc.reason:
            # sshd's MaxAuthTries: too many keys before the right one.
            return guard.refusal(is_flooded=True)
        case asyncssh.Error() if (guard.accepted or guard.answered) and guard.said:
            # A key or an answer was right, and then the account was not: expired, locked, not now.
            return guard.refusal()
    return None


def _login_error(hop: Hop, exc: Exception) -> KernelBridgeError:
    """Translate what asyncssh and the system say during a login, by one table."""
    host, address = hop.host_name, hop.shown
    match exc:
        case asyncssh.ConnectionLost():
            return HostUnreachable(host=host, address=address, reason="the connection was closed before the login")
        case asyncssh.ChannelOpenError():
            return HostUnreachable(host=host, address=address, reason=f"said by the jump host: {exc.reason}")
        case asyncssh.Error():
            return SshFailed(host=host, reason=exc.reason)
        case socket.gaierror():
            return HostNameUnknown(host=host, address=hop.target)
        case TimeoutError():
            return HostUnreachable(host=host, address=address, reason="no answer in time")
        case OSError():
            return _network_error(hop, exc)
        case _:
            return SshConfigInvalid(host=host, reason=str(exc))


def _network_error(hop: Hop, exc: OSError) -> KernelBridgeError:
    # asyncio joins the errors of several addresses into one: "Multiple exceptions: [Errno 111] ..., [Errno 111] ...".
    numbers = {exc.errno} if exc.errno else {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(exc))}
    if errno.ECONNREFUSED in numbers or isinstance(exc, ConnectionRefusedError):
        return HostRefused(host=hop.host_name, address=hop.shown)
    reason = os.strerror(min(numbers)) if numbers else str(exc)
    return HostUnreachable(host=hop.host_name, address=hop.shown, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Login:
    """A connection after login, the jump connections it runs through, and the machine it leads to."""

    connection: asyncssh.SSHClientConnection
    jumps: tuple[asyncssh.SSHClientConnection, ...]
    hop: Hop

    async def aclose(self) -> None:
        """Close the connection, then those it ran through."""
        await _abort([*self.jumps, self.connection])


class _Limit:
    """When a whole login is given up. The time in which a person is asked does not count."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = asyncio.get_running_loop().time() + seconds
        # Those that keep it; each is told of a pause.
        self._timeouts: list[asyncio.Timeout] = []

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Give the block up in time. Raises TimeoutError."""
        async with asyncio.timeout_at(self._at) as timeout:
            self._timeouts.append(timeout)
            try:
                yield
            finally:
                self._timeouts.remove(timeout)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no time pass while the block runs."""
        clock = asyncio.get_running_loop().time
        began_at = clock()
        self._reschedule(None)
        try:
            yield
        finally:
            self._at += clock() - began_at
            self._reschedule(self._at)

    def _reschedule(self, at: float | None) -> None:
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(at)


def login_seconds(host: Host, hops: Sequence[Hop]) -> float:
    """Return how long a login may take: what the host's config says, else LOGIN_SECONDS beside each ConnectTimeout."""
    return host.login_seconds or LOGIN_SECONDS + sum(hop.settings.seconds("connecttimeout") or 0 for hop in hops)


async def _plan(host: Host, early: HeadStart | None = None) -> tuple[list[Hop], _Limit]:
    hops = await plan_way(host, seconds=host.login_seconds or SSH_QUERY_SECONDS, early=early)
    return hops, _Limit(login_seconds(host, hops))


async def dial(host: Host, early: HeadStart | None = None) -> Login:
    """Log in at the host, through its jump hosts; `early` may have the connection already.

    Where it needs a person, the questions of this context are asked. Raises: every 2x error but LinkLost and
    ForwardingForbidden.
    """
    asking = current_asking()
    while True:
        try:
            return await _dial(host, early)
        except (HostUnreachable, SshFailed):
            # Hosts wait for an answer for two minutes or so, people may take longer: it is for the next connection.
            if not asking.is_open or not await asking.wait_answered():
                raise
        early = None


async def _dial(host: Host, early: HeadStart | None) -> Login:
    hops, limit = await _plan(host, early)
    opened: list[asyncssh.SSHClientConnection] = []
    try:
        for hop in hops:
            opened.append(await _connect(hop, opened[-1] if opened else None, limit, early))
    except BaseException:
        await _abort(opened)
        raise
    return Login(connection=opened[-1], jumps=tuple(opened[:-1]), hop=hops[-1])


async def dial_beyond(name: str, *, via: Login, seconds: float) -> Login:
    """Log in at a machine that `via` leads to, as its ProxyJump would, under the same login unless the config has one.

    Where known_hosts does not have the machine nobody knocks there. Raises: as dial().
    """
    limit = _Limit(seconds)
    try:
        async with limit.kept():
            hop = await plan(name, Address(name=name), login=via.hop.user)
            if not hop.is_known:
                missing = f"its host key is not known here as {hop.known_hosts.name}"
                raise SshFailed(host=name, reason=f"{missing}; `ssh -J {via.hop.address} {name}` asks to add it")
            connection = await _connect(hop, via.connection, limit)
    except TimeoutError as exc:
        reason = f"no login in {seconds:g} s"
        raise HostUnreachable(host=via.hop.host_name, address=name, reason=reason) from exc
    return Login(connection=connection, jumps=(), hop=hop)


async def fetch_key(host: Host) -> HostKey:
    """Fetch the key that the host shows now; that of the first jump host not known yet, where there is one.

    Raises: HostRefused, HostNameUnknown, HostUnreachable, SshConfigInvalid, SshFailed; LoginRefused by a jump host.
    """
    hops, limit = await _plan(host)
    opened: list[asyncssh.SSHClientConnection] = []
    try:
        async with limit.kept():
            for hop in hops:
                key = hop.judge(await _fetch_key(hop, opened[-1] if opened else None))
                if not key.is_known or hop is hops[-1]:
                    break
                opened.append(await _connect(hop, opened[-1] if opened else None, limit))
    except TimeoutError as exc:
        raise HostUnreachable(host=host.name, address=host.ssh, reason=f"no answer in {limit.seconds:g} s") from exc
    finally:
        await _abort(opened)
    return key


class _Tunnel:
    """A jump host's connection as asyncssh's `tunnel`, with a window that a long way needs."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection

    async def create_connection(self, factory: Any, host: str, port: int) -> Any:
        """Called by asyncssh."""
        return await self._connection.create_connection(
            factory, host, port, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
        )


async def _connect(
    hop: Hop, via: asyncssh.SSHClientConnection | None, limit: _Limit, early: HeadStart | None = None
) -> asyncssh.SSHClientConnection:
    try:
        return await _log_in_at(hop, via, limit, early)
    except (SshFailed, HostUnreachable) as exc:
        # asyncssh asks only for the kinds of key that known_hosts has, certificates where it has an authority; the host
        # may have others by now. Of a key that is revoked, or signed by another authority, it only says so.
        if isinstance(exc.__cause__, (*_NO_COMMON_KEY, asyncssh.HostKeyNotVerifiable)) and hop.is_known:
            key = None
            with contextlib.suppress(KernelBridgeError):
                key = await _fetch_key(hop, via)
            if key is not None and not hop.judge(key).is_known:
                raise hop.distrust(key) from exc
        raise


async def _log_in_at(
    hop: Hop, via: asyncssh.SSHClientConnection | None, limit: _Limit, early: HeadStart | None
) -> asyncssh.SSHClientConnection:
    with translated(hop):
        options = hop.options()
        report(f"connecting to {'the jump host ' if hop.is_jump else ''}{hop.shown}")
        async with (
            _way_to(hop, via) as way,
            _limited(hop, limit) as begun,
            _identities_of(hop) as identities,
        ):
            guard = LoginClient(hop, identities, connected=way.taken, closed=way.hang_up)
            guard.begun, guard.paused = begun, limit.paused
            connected = None if early is None else await early.take_connection(hop.settings)
            try:
                with translated(hop, guard):
                    found = {} if connected is None else {"sock": connected}
                    return await asyncssh.connect(client_factory=lambda: guard, **way.arguments, **found, **options)
            finally:
                if connected is not None and not way.is_taken:
                    connected.close()


@contextlib.asynccontextmanager
async def _identities_of(hop: Hop) -> AsyncIterator[Identities]:
    """Collect the keys for a login. An agent that is locked asks its user first."""
    async with contextlib.AsyncExitStack() as stack:
        with waits_for_user("waiting for the ssh agent: unlock it"):
            identities = await stack.enter_async_context(collect_identities(hop.settings))
        yield identities


@contextlib.asynccontextmanager
async def _limited(hop: Hop, limit: _Limit) -> AsyncIterator[Callable[[], None]]:
    """Give up in time: by the limit, and by ConnectTimeout until the function that is given is called.

    As in OpenSSH that one is for the connection and the host's key, not for the login.
    """
    shake_seconds = hop.settings.seconds("connecttimeout")
    remedy = ""
    try:
        async with limit.kept(), asyncio.timeout(shake_seconds) as shake:
            yield lambda: shake.reschedule(None)
    except TimeoutError as exc:
        if shake.expired():
            reason = f"no answer in {shake_seconds:g} s, its ConnectTimeout"
        else:
            reason = f"no login in {limit.seconds:g} s"
            remedy = (
                "Is the machine on, and are you on the right network or VPN? Where logins take longer, raise "
                f"`login_seconds` of [hosts.{hop.host_name}]."
            )
        raise HostUnreachable(host=hop.host_name, address=hop.shown, reason=reason, remedy=remedy) from exc


@dataclass(kw_only=True)
class _Way:
    """How a connection reaches the machine: directly, through another or by a ProxyCommand."""

    # As asyncssh's arguments.
    arguments: dict[str, Any]
    proxy: ProxyCommand | None = None
    # Whether a connection has taken the ProxyCommand's socket over; set by taken().
    is_taken: bool = False

    def taken(self) -> None:
        """Note that a connection goes this way now."""
        self.is_taken = True

    def hang_up(self) -> None:
        """End the ProxyCommand, where there is one."""
        if self.proxy is not None:
            self.proxy.hang_up()


@contextlib.asynccontextmanager
async def _way_to(hop: Hop, via: asyncssh.SSHClientConnection | None) -> AsyncIterator[_Way]:
    """Open the way. Where it leads to no login the ProxyCommand is ended, and the error says what it said."""
    command = hop.proxy_command
    if via is not None or command is None:
        yield _Way(arguments={"tunnel": None if via is None else _Tunnel(via)})
        return
    proxy = await start_proxy(command)
    way = _Way(proxy=proxy, arguments={"tunnel": None, "sock": proxy.socket})
    try:
        yield way
    except BaseException as exc:
        if isinstance(exc, HostUnreachable):
            await _explain(hop, proxy, exc)
        proxy.hang_up()
        raise
    finally:
        if not way.is_taken:
            proxy.socket.close()


async def _explain(hop: Hop, proxy: ProxyCommand, exc: HostUnreachable) -> None:
    """Raise a better error where the ProxyCommand has said why."""
    said = await proxy.failure()
    if (program := proxy.missing_program) is not None:
        reason = f"its ProxyCommand `{proxy.command}` needs {program}, which is not installed on this machine"
        remedy = f"Install {program} here, or put it on the PATH that Jupyter or VS Code is started with."
        raise SshConfigInvalid(host=hop.host_name, reason=reason, remedy=remedy) from exc
    if said:
        reason = f"{exc.reason}; {said}"
        raise HostUnreachable(host=hop.host_name, address=hop.shown, reason=reason, remedy=exc.remedy) from exc


async def _fetch_key(hop: Hop, via: asyncssh.SSHClientConnection | None) -> asyncssh.SSHKey:
    """Fetch the host's key, of a kind that known_hosts has where it has one: else a changed key could not be told."""
    kinds = hop.known_kinds()
    for algorithms in ([kinds] if kinds else []) + [()]:
        with translated(hop):
            try:
                key = await _fetch_key_of(hop, via, algorithms)
            except _NO_COMMON_KEY:
                if not algorithms:
                    raise
                continue
        if key is not None:
            return key
    raise SshFailed(host=hop.host_name, reason="it shows no host key")


async def _fetch_key_of(
    hop: Hop, via: asyncssh.SSHClientConnection | None, algorithms: Sequence[str]
) -> asyncssh.SSHKey | None:
    options: dict[str, Any] = {name: value for name, value in hop.transport_options().items() if name in _KEY_OPTIONS}
    if algorithms:
        options["server_host_key_algs"] = algorithms
    async with _way_to(hop, via) as way:
        way.is_taken = True
        try:
            return await asyncssh.get_server_host_key(**options, **way.arguments)
        finally:
            way.hang_up()


async def _abort(connections: Sequence[asyncssh.SSHClientConnection]) -> None:
    for connection in reversed(connections):
        connection.abort()
        await connection.wait_closed()
