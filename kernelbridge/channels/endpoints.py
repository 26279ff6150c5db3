"""Where this machine's five endpoints of a kernel are: given by the front-end, or made here in a folder of our own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

NAMES = ("shell", "iopub", "stdin", "control", "hb")
LOOPBACK = "127.0.0.1"
# A unix socket's path has at most 107 bytes; libzmq adds to it while it binds.
_LONGEST_PATH_BYTES = 100


class EndpointInvalid(Exception):
    """A connection file asks for endpoints that we do not bind."""


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Transport, address and ports (or ipc suffixes) in the order of NAMES, and the key that signs."""

    transport: str
    ip: str
    ports: tuple[int, ...]
    key: bytes
    # The folder that is ours and goes with the endpoints; None where the front-end chose them.
    folder: Path | None = None

    def address(self, name: str) -> str:
        """Return the address to bind for a channel; port 0 means any free one."""
        port = self.ports[NAMES.index(name)]
        if self.transport == "ipc":
            base = self.folder / "s" if self.folder else self.ip
            return f"ipc://{base}-{port}"
        return f"tcp://{self.ip}:{port or '*'}"

    def bound(self, ports: Mapping[str, int]) -> Endpoints:
        """Return the endpoints with the ports that were really bound."""
        return replace(self, ports=tuple(ports[name] for name in NAMES))

    def publish(self) -> None:
        """Put the names in place under which clients find the sockets. Call again after a restart.

        jupyter_client unlinks the files of ipc endpoints at each restart; these are links, so the sockets stay.
        """
        if self.folder is None or self.transport != "ipc":
            return
        for port in self.ports:
            with contextlib.suppress(FileExistsError):
                Path(f"{self.ip}-{port}").symlink_to(self.folder / f"s-{port}")

    def remove(self) -> None:
        """Remove the folder, if it is ours. Safe to call twice."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # Other kernels are in it still.
                self.folder.parent.rmdir()

    def connection_info(self) -> dict[str, Any]:
        """Return what a connection file says; the key as bytes, as jupyter_client wants it from provisioners."""
        ports = {f"{name}_port": port for name, port in zip(NAMES, self.ports, strict=True)}
        return {
            **ports,
            "transport": self.transport,
            "ip": self.ip,
            "key": self.key,
            "signature_scheme": "hmac-sha256",
        }


def given(connection: object) -> Endpoints:
    """Return the endpoints that a connection file asks for. Raises EndpointInvalid."""
    if not isinstance(connection, dict):
        raise EndpointInvalid("it is no table")
    transport, ip = str(connection.get("transport", "tcp")), str(connection.get("ip", LOOPBACK))
    if transport not in ("tcp", "ipc"):
        raise EndpointInvalid(f"there is no transport {transport}")
    if transport == "tcp" and ip not in (LOOPBACK, "localhost"):
        raise EndpointInvalid(f"the address {ip} is not this machine's loopback")
    if str(connection.get("signature_scheme", "hmac-sha256")) != "hmac-sha256":
        raise EndpointInvalid("the signature scheme is not hmac-sha256")
    key = str(connection.get("key") or "")
    if not key:
        raise EndpointInvalid("without a key every login of this machine could use the kernel")
    try:
        ports = tuple(int(connection[f"{name}_port"]) for name in NAMES)
    except (KeyError, TypeError, ValueError) as exc:
        raise EndpointInvalid("the connection file lacks ports") from exc
    return Endpoints(transport=transport, ip=ip, ports=ports, key=key.encode())


def made(*, runtime_folder: str | None) -> Endpoints:
    """Return endpoints of our own: ipc in a folder closed to others, TCP on loopback where that cannot be had."""
    key = secrets.token_hex(32).encode()
    folder = _private_folder(runtime_folder)
    if folder is None:
        return Endpoints(transport="tcp", ip=LOOPBACK, ports=(0, 0, 0, 0, 0), key=key)
    return Endpoints(transport="ipc", ip=str(folder / "k"), ports=(1, 2, 3, 4, 5), key=key, folder=folder)


def _private_folder(runtime_folder: str | None) -> Path | None:
    """Make a fresh 0700 folder with a short path; None where there is none to be had."""
    if sys.platform == "win32":
        return None
    shared = Path(tempfile.gettempdir()) / f"kernelbridge-{os.getuid()}"
    for base in ([Path(runtime_folder) / "kernelbridge"] if runtime_folder else []) + [shared]:
        with contextlib.suppress(OSError):
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = base.lstat()
            is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
            folder = base / secrets.token_hex(4)
            if is_private and len(os.fsencode(folder)) + 4 <= _LONGEST_PATH_BYTES:
                folder.mkdir(mode=0o700)
                return folder
    return None
