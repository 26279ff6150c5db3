"""Plan the way to a host from its address and the ssh config: names, ports, jump hosts, what a login is given."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import asyncssh
from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_default_public_key_algs, get_public_key_algs

from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    KernelBridgeError,
    SshConfigInvalid,
)
from kernelbridge.hosts.transport.host_keys import HostKey
from kernelbridge.hosts.transport.openssh.address import Address, parse_address
from kernelbridge.hosts.transport.openssh.head_start import HeadStart
from kernelbridge.hosts.transport.openssh.known_hosts import KnownHosts, read_known_hosts
from kernelbridge.hosts.transport.openssh.query import SSH_QUERY_SECONDS
from kernelbridge.hosts.transport.openssh.reader import matches
from kernelbridge.hosts.transport.openssh.settings import Settings, read_settings

# Of a new host: the kind that `ssh` would show, and that its owner will name. asyncssh asks for RSA first.
_SHOWN_FIRST = (b"ssh-ed25519", b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp521")
# Longer chains are a ProxyJump that leads to itself.
MAX_HOPS = 8
# AES-GCM first: about twice as fast as the default, chacha20 (measured). The rest is asyncssh's own order.
_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
_COMPRESSIONS = ("zlib@openssh.com", "zlib", "none")
# A dead peer is noticed after interval x (count + 1) = 20 s.
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3
_FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
# The config's keywords, asyncssh's arguments, and what it has of each.
_ALGORITHMS: tuple[tuple[str, str, Callable[[], list[bytes]]], ...] = (
    ("ciphers", "encryption_algs", get_encryption_algs),
    ("macs", "mac_algs", get_mac_algs),
    ("kexalgorithms", "kex_algs", get_kex_algs),
    ("pubkeyacceptedalgorithms", "signature_algs", get_public_key_algs),
    ("pubkeyacceptedkeytypes", "signature_algs", get_public_key_algs),  # its name before OpenSSH 8.5
)


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One machine on the way, after the ssh config and known_hosts were read."""

    host_name: str
    address: Address
    settings: Settings
    known_hosts: KnownHosts
    user: str
    # Whether the way goes on from here.
    is_jump: bool = False

    @property
    def target(self) -> str:
        """The name as the TCP connection uses it."""
        return self.settings.host

    @property
    def port(self) -> int:
        """The port as the TCP connection uses it."""
        return self.settings.port

    @property
    def who(self) -> str:
        """The login as a question names it, by the name that the user has written."""
        return f"{self.user}@{self.address.name}"

    @property
    def shown(self) -> str:
        """The address as error messages show it."""
        return f"{self.target}:{self.port}" if ":" not in self.target else f"[{self.target}]:{self.port}"

    @property
    def is_known(self) -> bool:
        """Whether known_hosts has a key of this machine, or of an authority that vouches for it."""
        return bool(self.known_hosts.trusted.keys or self.known_hosts.trusted.authorities)

    def known_kinds(self) -> list[str]:
        """Return the signature algorithms of the keys that known_hosts has for this machine."""
        kinds = [kind.decode("ascii") for key in self.known_hosts.trusted.keys for kind in key.sig_algorithms]
        return list(dict.fromkeys(kinds))

    def _is_revoked(self, key: asyncssh.SSHKey) -> bool:
        return any(other.public_data == key.public_data for other in self.known_hosts.trusted.revoked)

    def judge(self, key: asyncssh.SSHKey) -> HostKey:
        """Say what known_hosts knows of this key."""
        trusted, data = self.known_hosts.trusted, key.public_data
        is_revoked = self._is_revoked(key)
        is_known = not is_revoked and any(other.public_data == data for other in trusted.keys)
        text = key.export_public_key("openssh").decode("ascii").split()
        return HostKey(
            name=self.known_hosts.name,
            algorithm=key.get_algorithm(),
            fingerprint=key.get_fingerprint("sha256"),
            line=f"{self.known_hosts.name} {text[0]} {text[1]}\n",
            is_known=is_known,
            is_changed=is_revoked or (bool(trusted.keys) and not is_known),
            is_hashed=self.known_hosts.is_hashed,
            known_hosts_path=self.known_hosts.path,
        )

    def distrust(self, key: asyncssh.SSHKey) -> KernelBridgeError:
        """Make the error for a key that is not in known_hosts."""
        found = self.judge(key)
        if found.is_changed:
            return HostKeyChanged(
                host=self.host_name,
                algorithm=found.algorithm,
                fingerprint=found.fingerprint,
                known_hosts_name=found.name,
                is_revoked=self._is_revoked(key),
            )
        return HostKeyUnknown(
            host=self.host_name,
            algorithm=found.algorithm,
            fingerprint=found.fingerprint,
            is_kept=found.known_hosts_path is not None,
        )

    @property
    def proxy_command(self) -> str | None:
        """The ProxyCommand, its tokens expanded. Raises: ValueError."""
        return self.settings.command("proxycommand")

    def jumps(self) -> list[Address]:
        """Return the jump hosts before this one, as ProxyJump has them. Raises: ValueError."""
        written = self.settings.command("proxyjump")
        return [
            parse_address(text.strip().removeprefix("ssh://").rstrip("/"))
            for text in (written or "").split(",")
            if text
        ]

    def options(self) -> dict[str, object]:
        """Return the arguments of asyncssh.connect but for keys and the way there. Raises: ValueError."""
        settings = self.settings
        interval = settings.seconds("serveraliveinterval") or KEEPALIVE_SECONDS
        preferred = settings.one("preferredauthentications")
        return {
            **self.transport_options(),
            "username": self.user,
            "known_hosts": self.known_hosts.trusted.for_asyncssh,
            "host_key_alias": settings.alias,
            "client_keys": None,
            "agent_path": None,
            "agent_forwarding": False,
            "gss_auth": settings.is_on("gssapiauthentication"),
            "gss_kex": settings.is_on("gssapikeyexchange"),
            "gss_delegate_creds": settings.is_on("gssapidelegatecredentials"),
            "password_auth": settings.is_on("passwordauthentication", default=True),
            "kbdint_auth": settings.is_on(_kbdint_keyword(settings), default=True),
            "preferred_auth": preferred.split(",") if preferred else (),
            "compression_algs": list(_COMPRESSIONS) if settings.is_on("compression") else ["none"],
            # A link that is lost has to be noticed soon, whatever the config has against idle connections.
            "keepalive_interval": min(interval, KEEPALIVE_SECONDS),
            "keepalive_count_max": KEEPALIVE_COUNT,
            "tcp_keepalive": settings.is_on("tcpkeepalive", default=True),
            "login_timeout": 0,
            "env": dict(pair.split("=", 1) for pair in settings.values.get("setenv", ()) if "=" in pair),
            "send_env": [name for line in settings.values.get("sendenv", ()) for name in line.split()],
        }

    def transport_options(self) -> dict[str, object]:
        """Return those arguments that matter before anybody logs in. Raises: ValueError."""
        settings = self.settings
        # The config is read already; asyncssh is to read none.
        options: dict[str, object] = {"host": self.target, "port": self.port, "config": None}
        if (bound := settings.one("bindaddress")) is not None:
            options["local_addr"] = (bound, 0)
        if (family := settings.one("addressfamily")) in _FAMILIES:
            options["family"] = _FAMILIES[family]
        options |= {"encryption_algs": _CIPHERS}
        for keyword, argument, known in _ALGORITHMS:
            if (written := settings.changed(keyword)) is not None:
                options[argument] = _supported(keyword, written, known())
        if (written := settings.changed("hostkeyalgorithms")) is not None:
            wanted = _supported("hostkeyalgorithms", written, get_certificate_algs() + get_public_key_algs())
            # As OpenSSH: what known_hosts has comes first, else a host with several keys seems to have a new one.
            known_kinds = self.known_kinds() if isinstance(wanted, list) else []
            options["server_host_key_algs"] = (
                sorted(wanted, key=lambda kind: kind not in known_kinds) if known_kinds else wanted
            )
        elif not self.is_known:
            kinds = dict.fromkeys([*_SHOWN_FIRST, *get_default_public_key_algs()])
            options["server_host_key_algs"] = [kind.decode("ascii") for kind in kinds]
        return options


def _kbdint_keyword(settings: Settings) -> str:
    """Return the keyword for what is asked by the keyboard; it had another name before OpenSSH 8.7."""
    old, new = "challengeresponseauthentication", "kbdinteractiveauthentication"
    return old if old in settings.values and new not in settings.values else new


def _supported(keyword: str, written: str, known: Sequence[bytes]) -> list[str] | str:
    """Return what asyncssh has of a list. Raises: ValueError: nothing."""
    names = [name.decode("ascii") for name in known]
    sign = written[0] if written[0] in "+-^" else ""
    patterns = written.removeprefix(sign).split(",")
    if sign:  # Only our own reader leaves the sign; asyncssh knows it.
        found = [pattern for pattern in patterns if any(matches(name, [pattern]) for name in names)]
        return sign + ",".join(found) if found else "default"
    listed = [name for pattern in patterns for name in names if matches(name, [pattern])]
    if not listed:
        raise ValueError(f"{keyword} `{written}`: kernelbridge has none of these")
    return listed


async def plan(
    host_name: str,
    address: Address,
    *,
    login: str = "",
    seconds: float = SSH_QUERY_SECONDS,
    early: HeadStart | None = None,
) -> Hop:
    """Read the ssh config (a missing one is fine) and known_hosts for one machine.

    `login` is the user where neither the address nor the config names one; `early` has read the config.

    Raises: SshConfigInvalid; HostUnreachable: the config waits for something.
    """
    try:
        reading = (
            read_settings(address.name, user=address.user, port=address.port, seconds=seconds)
            if early is None
            else early.settings()
        )
        settings = await reading
        if settings.is_on("proxyusefdpass"):
            raise ValueError("ProxyUseFdpass is not supported")
        known_hosts = await read_known_hosts(settings)
    except TimeoutError as exc:
        reason = f"its ssh config was not read in {seconds:g} s; is the command of a `Match exec` waiting?"
        raise HostUnreachable(host=host_name, address=str(address), reason=reason) from exc
    except (OSError, ValueError, asyncssh.Error) as exc:
        raise SshConfigInvalid(host=host_name, reason=str(exc)) from exc
    is_named = address.user is not None or settings.user != settings.around.user
    user = settings.user if is_named or not login else login
    return Hop(host_name=host_name, address=address, settings=settings, known_hosts=known_hosts, user=user)


async def plan_way(host: Host, *, seconds: float = SSH_QUERY_SECONDS, early: HeadStart | None = None) -> list[Hop]:
    """Return all machines on the way, the host last; `seconds` is a limit for each, `early` is the host's.

    Raises: as plan().
    """
    # asyncssh tells every login, channel and byte at INFO; whoever sets a level on "asyncssh" gets them.
    if logging.getLogger("asyncssh").level == logging.NOTSET:
        logging.getLogger("asyncssh").setLevel(logging.WARNING)
    try:
        hops = await _plan_hops(host.name, parse_address(host.ssh), MAX_HOPS, seconds, early)
    except ValueError as exc:
        raise SshConfigInvalid(host=host.name, reason=str(exc)) from exc
    if len(hops) > MAX_HOPS:
        raise SshConfigInvalid(host=host.name, reason=f"more than {MAX_HOPS} jump hosts")
    return [*(replace(hop, is_jump=True) for hop in hops[:-1]), hops[-1]]


async def _plan_hops(
    host_name: str, address: Address, depth: int, seconds: float, early: HeadStart | None = None
) -> list[Hop]:
    if depth == 0:
        raise ValueError("ProxyJump leads to itself")
    hop = await plan(host_name, address, seconds=seconds, early=early)
    jumps = hop.jumps()
    if not jumps:
        return [hop]
    # As OpenSSH: only the first jump host may have a ProxyJump of its own.
    first = await _plan_hops(host_name, jumps[0], depth - 1, seconds)
    return [*first, *[await plan(host_name, jump, seconds=seconds) for jump in jumps[1:]], hop]
