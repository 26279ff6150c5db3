"""Read a kernel's five local endpoints from a connection file, or make them in a private folder."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)

NAMES = ("shell", "iopub", "stdin", "control", "hb")
LOOPBACK = "127.0.0.1"
# A unix socket's path has at most 107 bytes; libzmq adds to it while it binds.
_LONGEST_PATH_BYTES = 100
_HIGHEST_PORT = 65535
# A folder without sockets may be about to get them; after so long nobody does that any more.
_EMPTY_SECONDS = 3600.0


class EndpointInvalid(Exception):
    """A connection file asks for endpoints that are not bound here."""


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
        """Create the names under which clients find the sockets. Call again after a restart.

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
        """Return the content of a connection file; the key as bytes, as jupyter_client wants it from provisioners."""
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
    if not ip.isprintable() or ip.startswith(("@", "*")):
        # Linux's abstract sockets have no owner: every login could connect.
        raise EndpointInvalid(f"{ip!r} is no address")
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
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise EndpointInvalid("the connection file lacks ports") from exc
    if not all(0 <= port <= _HIGHEST_PORT for port in ports):
        raise EndpointInvalid("a port is not between 0 and 65535")
    return Endpoints(transport=transport, ip=ip, ports=ports, key=key.encode())


def made(*, runtime_folder: str | None) -> Endpoints:
    """Make endpoints: ipc in a folder closed to others, TCP on loopback where there can be no such folder."""
    key = secrets.token_hex(32).encode()
    folder = _private_folder(runtime_folder)
    if folder is None:
        if sys.platform != "win32":
            _LOG.warning("no private folder for sockets: other logins of this machine can read the kernel's output")
        return Endpoints(transport="tcp", ip=LOOPBACK, ports=(0, 0, 0, 0, 0), key=key)
    return Endpoints(transport="ipc", ip=str(folder / "k"), ports=(1, 2, 3, 4, 5), key=key, folder=folder)


def _private_folder(runtime_folder: str | None) -> Path | None:
    """Make a fresh 0700 folder with a short path; None where that is not possible."""
    if sys.platform == "win32":
        return None
    name = f"kernelbridge-{os.getuid()}"
    shared = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108
    # The last two, because anybody can make the one before them first. They have names that nobody can know.
    bases: list[Callable[[], Path]] = [
        *([lambda: Path(runtime_folder or "") / "kernelbridge"] if runtime_folder else []),
        lambda: shared[0] / name,
        *(partial(_unforeseen, folder, name) for folder in dict.fromkeys(shared)),
    ]
    for base_of in bases:
        with contextlib.suppress(OSError):
            base = base_of()
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = base / secrets.token_hex(4)
            if _is_private(base) and len(os.fsencode(folder)) + 4 <= _LONGEST_PATH_BYTES:
                _sweep(base)
                folder.mkdir(mode=0o700)
                return folder
    return None


def _unforeseen(folder: Path, name: str) -> Path:
    """Return a folder of ours from before, else make one."""
    found = (path for path in folder.glob(f"{name}-*") if _is_private(path))
    return next(found, None) or Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, ours, and closed to others."""
    if sys.platform == "win32":
        return False
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _sweep(base: Path) -> None:
    """Remove the folders of processes that were killed: nobody listens on their sockets."""
    for folder in base.iterdir():
        with contextlib.suppress(OSError):
            sockets = list(folder.glob("s-*"))
            is_old = time.time() - folder.stat().st_mtime > _EMPTY_SECONDS
            if not any(map(_is_listened_to, sockets)) if sockets else is_old:
                shutil.rmtree(folder, ignore_errors=True)


def _is_listened_to(path: Path) -> bool:
    if sys.platform == "win32":
        return False
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # Its queue is full, or nobody knows.
    return True
