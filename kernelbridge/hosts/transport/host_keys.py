"""Describe a host's key as known_hosts has it, and add a new one there."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from kernelbridge.atomic_files import write_through
from kernelbridge.config.schema import Host
from kernelbridge.errors import HostKeyChanged, SshConfigInvalid


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """The key that a host (or a jump host on the way) shows, and what known_hosts says of it."""

    # As it stands in known_hosts: `name` or `[name]:port`.
    name: str
    algorithm: str
    fingerprint: str
    # The line for known_hosts, without hashing.
    line: str
    is_known: bool
    is_changed: bool
    # Where remember() writes to; None: the config names no file that would keep it.
    known_hosts_path: Path | None
    # Whether names are to be hashed there (HashKnownHosts).
    is_hashed: bool = False


def remember(host: Host, key: HostKey) -> str:
    """Add the key to the user's known_hosts, and return the line; afterwards the host is trusted.

    Nothing happens, and nothing is returned, if it is known already.

    Raises: HostKeyChanged: beside the old key a new one would be worthless. SshConfigInvalid: cannot be written.
    """
    if key.is_known:
        return ""
    if key.is_changed:
        raise HostKeyChanged(
            host=host.name, algorithm=key.algorithm, fingerprint=key.fingerprint, known_hosts_name=key.name
        )
    path = key.known_hosts_path
    if path is None:
        raise SshConfigInvalid(host=host.name, reason="UserKnownHostsFile names no file that would keep the key")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        line = _hashed(key) if key.is_hashed or "|1|" in before else key.line
        _append(path, (("\n" if before and not before.endswith("\n") else "") + line).encode())
    except OSError as exc:
        raise SshConfigInvalid(host=host.name, reason=str(exc)) from exc
    return line


def _append(path: Path, data: bytes) -> None:
    """Put something at the end of a file, whole or not at all. Raises OSError.

    The file is not written anew: ssh itself may add a line meanwhile.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        before_bytes, written_bytes = os.fstat(descriptor).st_size, 0
        try:
            while written_bytes < len(data):
                written_bytes += os.write(descriptor, data[written_bytes:])
        except OSError:
            _take_off(descriptor, before_bytes, len(data))
            raise
    finally:
        os.close(descriptor)


def _take_off(descriptor: int, before_bytes: int, most_bytes: int) -> None:
    """Cut off what was written of a line, unless somebody has written behind it."""
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_size <= before_bytes + most_bytes:
            os.ftruncate(descriptor, before_bytes)


def forget(path: Path, line: str) -> None:
    """Take a line of remember() away again, whatever else was written meanwhile."""
    with contextlib.suppress(OSError):
        before = path.read_bytes().decode("utf-8", "surrogateescape")
        at = before.rfind(line)
        if at >= 0:
            after = before[:at] + before[at + len(line) :]
            write_through(path, after.encode("utf-8", "surrogateescape"))


def _hashed(key: HostKey) -> str:
    """Hash the name in the line, as `HashKnownHosts yes` does; for files that have such lines."""
    salt = secrets.token_bytes(20)
    digest = hmac.new(salt, key.name.encode(), hashlib.sha1).digest()
    name = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    return f"{name} {key.line.partition(' ')[2]}"
