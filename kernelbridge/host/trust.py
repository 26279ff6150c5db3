"""The way to a host and who answers there: ssh config, jump hosts, known_hosts, `kernelbridge trust`.

Host keys are always checked; ssh.py opens links with what stands here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from kernelbridge.config import Host
from kernelbridge.errors import (
    HostKeyChanged,
    HostKeyUnknown,
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    KernelBridgeError,
    LoginRefused,
    SshConfigInvalid,
    SshFailed,
)
from kernelbridge.host.address import Address, parse_address
from kernelbridge.host.known_hosts import HostKey, remember

__all__ = ["Dialled", "Hop", "HostKey", "dial", "dial_beyond", "fetch_key", "plan", "plan_way", "remember"]

DEFAULT_PORT = 22
# Longer chains are a ProxyJump that leads to itself.
MAX_HOPS = 8
# AES-GCM first: about twice as fast as the default, chacha20 (measured). The rest is asyncssh's own order.
_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
# How it ends where the host has no key of a kind that was asked for, depending on which side finds out first.
_NO_COMMON_KEY = (asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost, ConnectionResetError)
# A dead peer is noticed after interval x (count + 1) = 20 s.
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
# asyncssh's 2 MiB window gives 20 MB/s at 50 ms round trip, this gives about 130 (facts 3.3).
WINDOW_BYTES = 16 << 20
PACKET_BYTES = 128 << 10


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One machine on the way, after ~/.ssh/config was read."""

    host_name: str
    address: Address
    user: str
    # Name and port as the TCP connection uses them.
    target: str
    port: int
    # HostKeyAlias, or the name of the machine.
    alias: str
    known_hosts_name: str
    known_hosts_path: Path
    known_hosts: asyncssh.SSHKnownHosts
    # Names of the jump hosts before this one, as ProxyJump has them.
    jumps: tuple[str, ...]
    # Given to asyncssh.connect as they are.
    options: dict[str, object] = field(repr=False)

    @property
    def shown(self) -> str:
        """The address as error messages show it."""
        return f"{self.target}:{self.port}" if ":" not in self.target else f"[{self.target}]:{self.port}"

    def _trusted(self) -> tuple[Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey]]:
        """The machine's keys, those of authorities that vouch for it, and revoked ones."""
        port = self.port if self.port != DEFAULT_PORT else None
        # The address is left out: as OpenSSH's CheckHostIP=no, its default.
        known, authorities, revoked = self.known_hosts.match(self.alias, "", port)[:3]
        return known, authorities, revoked

    @property
    def is_known(self) -> bool:
        """Whether known_hosts has a key of this machine, or of an authority that vouches for it."""
        known, authorities, _ = self._trusted()
        return bool(known or authorities)

    def known_kinds(self) -> list[str]:
        """The signature algorithms of the keys that known_hosts has for this machine."""
        return [kind.decode("ascii") for key in self._trusted()[0] for kind in key.sig_algorithms]

    def judge(self, key: asyncssh.SSHKey) -> HostKey:
        """Say what known_hosts knows of this key."""
        known, _, revoked = self._trusted()
        data = key.public_data
        is_revoked = any(other.public_data == data for other in revoked)
        is_known = not is_revoked and any(other.public_data == data for other in known)
        text = key.export_public_key("openssh").decode("ascii").split()
        return HostKey(
            name=self.known_hosts_name,
            algorithm=key.get_algorithm(),
            fingerprint=key.get_fingerprint("sha256"),
            line=f"{self.known_hosts_name} {text[0]} {text[1]}\n",
            is_known=is_known,
            is_changed=is_revoked or (bool(known) and not is_known),
            known_hosts_path=self.known_hosts_path,
        )

    def distrust(self, key: asyncssh.SSHKey) -> KernelBridgeError:
        """The error for a key that is not in known_hosts."""
        found = self.judge(key)
        if found.is_changed:
            return HostKeyChanged(
                host=self.host_name,
                algorithm=found.algorithm,
                fingerprint=found.fingerprint,
                known_hosts_name=found.name,
            )
        return HostKeyUnknown(host=self.host_name, algorithm=found.algorithm, fingerprint=found.fingerprint)


class _Guard(asyncssh.SSHClient):
    """Keeps the key that asyncssh did not find in known_hosts, and never answers a prompt."""

    def __init__(self) -> None:
        # Set by validate_host_public_key() when the key is refused.
        self.refused_key: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Called by asyncssh only for keys that known_hosts does not have."""
        self.refused_key = key
        return False


async def plan(host_name: str, address: Address, *, login: str = "") -> Hop:
    """Read ~/.ssh/config (a missing one is fine) and known_hosts for one machine.

    `login` is the user where neither the address nor the config names one. Raises: SshConfigInvalid.
    """
    given: dict[str, object] = {"host": address.name, "config": ()}
    if address.user:
        given["username"] = address.user
    if address.port:
        given["port"] = address.port
    try:
        # No keys and no known_hosts yet: this only asks the config.
        read = await asyncssh.SSHClientConnectionOptions.construct(None, client_keys=None, known_hosts=None, **given)
        user = read.username
        if login and not address.user and not read.config.get("User"):
            user = given["username"] = login
        path, known_hosts = _read_known_hosts(read)
        options = {
            **given,
            "known_hosts": known_hosts,
            "client_keys": _identity_files(read),
            "ignore_encrypted": True,
            "agent_forwarding": False,
            "compression_algs": ["none"],
            "keepalive_interval": KEEPALIVE_SECONDS,
            "keepalive_count_max": KEEPALIVE_COUNT,
        }
        if not read.config.get("Ciphers"):
            options["encryption_algs"] = _CIPHERS
    except (OSError, ValueError, asyncssh.KeyImportError, asyncssh.Error) as exc:
        raise SshConfigInvalid(host=host_name, reason=str(exc)) from exc
    alias = read.host_key_alias or read.host
    with_port = alias if read.port == DEFAULT_PORT or read.host_key_alias else f"[{alias}]:{read.port}"
    return Hop(
        host_name=host_name,
        address=address,
        user=user,
        target=read.host,
        port=read.port,
        alias=alias,
        known_hosts_name=with_port,
        known_hosts_path=path,
        known_hosts=known_hosts,
        jumps=tuple(read.tunnel.split(",")) if isinstance(read.tunnel, str) else (),
        options=options,
    )


def _identity_files(read: asyncssh.SSHClientConnectionOptions) -> list[str] | tuple[()]:
    """IdentityFile of the config without those that are not there, as OpenSSH does; (): asyncssh's defaults."""
    named = read.config.get("IdentityFile", [])
    found = [str(name) for name in named if Path(str(name)).expanduser().is_file()] if isinstance(named, list) else []
    return found or ()


def _read_known_hosts(read: asyncssh.SSHClientConnectionOptions) -> tuple[Path, asyncssh.SSHKnownHosts]:
    """The user's file that new keys go to, and all known keys.

    Read here and not by asyncssh, which fails on missing files and checks nothing at all for `UserKnownHostsFile none`.
    """
    user = read.config.get("UserKnownHostsFile", ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"])
    system = read.config.get("GlobalKnownHostsFile", ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"])
    user_paths = [Path(str(name)).expanduser() for name in (user if isinstance(user, list) else [])]
    system_paths = [Path(str(name)).expanduser() for name in (system if isinstance(system, list) else [])]
    text = "\n".join(
        path.read_text(encoding="utf-8", errors="replace") for path in [*user_paths, *system_paths] if path.is_file()
    )
    default = Path("~/.ssh/known_hosts").expanduser()
    return user_paths[0] if user_paths else default, asyncssh.import_known_hosts(text)


@contextlib.contextmanager
def translated(hop: Hop, guard: _Guard | None = None) -> Iterator[None]:
    """Turn what goes wrong between here and the end of the login into our errors."""
    try:
        yield
    except KernelBridgeError:
        raise
    except (asyncssh.Error, OSError, ValueError, asyncssh.KeyImportError) as exc:
        if guard is not None and guard.refused_key is not None:
            raise hop.distrust(guard.refused_key) from exc
        raise _login_error(hop, exc) from exc


def _login_error(hop: Hop, exc: Exception) -> KernelBridgeError:
    """The table of what asyncssh and the system say during a login."""
    host, address = hop.host_name, hop.shown
    match exc:
        case asyncssh.PermissionDenied():
            return LoginRefused(host=host, user=hop.user)
        case asyncssh.ConnectionLost():
            return HostUnreachable(host=host, address=address, reason="the connection was closed before the login")
        case asyncssh.ChannelOpenError():
            return HostUnreachable(host=host, address=address, reason=f"said by the jump host: {exc.reason}")
        case asyncssh.Error() if "authentication failures" in exc.reason:
            # sshd's MaxAuthTries: the agent offers too many keys before the right one.
            return LoginRefused(host=host, user=hop.user)
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
class Dialled:
    """A connection after login, the jump connections it runs through, and the machine it leads to."""

    connection: asyncssh.SSHClientConnection
    jumps: tuple[asyncssh.SSHClientConnection, ...]
    hop: Hop

    async def aclose(self) -> None:
        """Close the connection, then those it ran through."""
        await _abort([*self.jumps, self.connection])


async def dial(host: Host) -> Dialled:
    """Log in at the host, through its jump hosts.

    Raises: every 2x error but LinkLost and ForwardingForbidden.
    """
    opened: list[asyncssh.SSHClientConnection] = []
    try:
        hops = await plan_way(host)
        for hop in hops:
            opened.append(await _connect(hop, opened[-1] if opened else None))
    except BaseException:
        await _abort(opened)
        raise
    return Dialled(connection=opened[-1], jumps=tuple(opened[:-1]), hop=hops[-1])


async def dial_beyond(name: str, *, via: Dialled) -> Dialled:
    """Log in at a machine that `via` leads to, as its ProxyJump would, under the same login unless the config has one.

    Where known_hosts does not have the machine nobody knocks there. Raises: as dial().
    """
    hop = await plan(name, Address(name=name), login=via.hop.user)
    if not hop.is_known:
        missing = f"its host key is not known here as {hop.known_hosts_name}"
        raise SshFailed(host=name, reason=f"{missing}; `ssh -J {via.hop.address} {name}` asks to add it")
    return Dialled(connection=await _connect(hop, via.connection), jumps=(), hop=hop)


async def fetch_key(host: Host, *, seconds: float = 20) -> HostKey:
    """The key that the host shows now; that of the first jump host not known yet, where there is one.

    Raises: HostRefused, HostNameUnknown, HostUnreachable, SshConfigInvalid, SshFailed; LoginRefused by a jump host.
    """
    opened: list[asyncssh.SSHClientConnection] = []
    try:
        async with asyncio.timeout(seconds):
            hops = await plan_way(host)
            for hop in hops:
                key = hop.judge(await _fetch_key(hop, opened[-1] if opened else None))
                if not key.is_known or hop is hops[-1]:
                    break
                opened.append(await _connect(hop, opened[-1] if opened else None))
    except TimeoutError as exc:
        raise HostUnreachable(host=host.name, address=host.ssh, reason=f"no answer in {seconds:g} s") from exc
    finally:
        await _abort(opened)
    return key


async def plan_way(host: Host) -> list[Hop]:
    """All machines on the way, the host last.

    Raises: SshConfigInvalid.
    """
    # asyncssh tells every login, channel and byte at INFO; whoever sets a level on "asyncssh" gets them.
    if logging.getLogger("asyncssh").level == logging.NOTSET:
        logging.getLogger("asyncssh").setLevel(logging.WARNING)
    try:
        hops = await _plan_hops(host.name, parse_address(host.ssh), MAX_HOPS)
    except ValueError as exc:
        raise SshConfigInvalid(host=host.name, reason=str(exc)) from exc
    if len(hops) > MAX_HOPS:
        raise SshConfigInvalid(host=host.name, reason=f"more than {MAX_HOPS} jump hosts")
    return hops


async def _plan_hops(host_name: str, address: Address, depth: int) -> list[Hop]:
    if depth == 0:
        raise ValueError("ProxyJump leads to itself")
    hop = await plan(host_name, address)
    jumps = [parse_address(text.removeprefix("ssh://").strip()) for text in hop.jumps]
    if not jumps:
        return [hop]
    # As OpenSSH: only the first jump host may have a ProxyJump of its own.
    first = await _plan_hops(host_name, jumps[0], depth - 1)
    return [*first, *[await plan(host_name, jump) for jump in jumps[1:]], hop]


class _Tunnel:
    """A jump host's connection as asyncssh's `tunnel`, with a window that a long way needs."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection

    async def create_connection(self, factory: Any, host: str, port: int) -> Any:
        """Called by asyncssh."""
        return await self._connection.create_connection(
            factory, host, port, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
        )


async def _connect(hop: Hop, via: asyncssh.SSHClientConnection | None) -> asyncssh.SSHClientConnection:
    guard = _Guard()
    try:
        with translated(hop, guard):
            # With tunnel=None asyncssh does not open the config's ProxyJump by itself, which is `via` already.
            tunnel = None if via is None else _Tunnel(via)
            return await asyncssh.connect(tunnel=tunnel, client_factory=lambda: guard, **hop.options)
    except (SshFailed, HostUnreachable) as exc:
        # asyncssh asks only for the kinds of key that known_hosts has; the host may have others by now.
        if isinstance(exc.__cause__, _NO_COMMON_KEY) and hop.known_kinds():
            key = None
            with contextlib.suppress(KernelBridgeError):
                key = await _fetch_key(hop, via)
            if key is not None and not hop.judge(key).is_known:
                raise hop.distrust(key) from exc
        raise


async def _fetch_key(hop: Hop, via: asyncssh.SSHClientConnection | None) -> asyncssh.SSHKey:
    """The host's key, of a kind that known_hosts has where it has one: only then can be told that it changed."""
    kinds = hop.known_kinds()
    name, port = hop.address.name, hop.address.port or ()
    for algorithms in ([kinds] if kinds else []) + [()]:
        with translated(hop):
            try:
                key = await asyncssh.get_server_host_key(name, port, tunnel=via, server_host_key_algs=algorithms)
            except _NO_COMMON_KEY:
                if not algorithms:
                    raise
                continue
        if key is not None:
            return key
    raise SshFailed(host=hop.host_name, reason="it shows no host key")


async def _abort(connections: Sequence[asyncssh.SSHClientConnection]) -> None:
    for connection in reversed(connections):
        connection.abort()
        await connection.wait_closed()
