"""Find out which login of this machine has the other end of a loopback connection: on Linux, from its own tables."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Address = tuple[str, int]

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_RELEASE = Path("/proc/sys/kernel/osrelease")
# A table that changes while it is read may lack a line.
_LOOKS = 3
_LOOK_AGAIN_SECONDS = 0.01
_ROOT = 0


def owner(tables: str, own: Address, peer: Address) -> int | None:
    """Return the login, as a number, whose socket is at `peer` and connected to `own`; None if there is none.

    A socket that its program has closed is nobody's: the table gives it to root.
    """
    wanted = {(here, there) for here in _written(peer) for there in _written(own)}
    for line in tables.splitlines():
        words = line.split()
        if len(words) > 9 and (words[1], words[2]) in wanted and words[9] != "0" and words[7].isdigit():
            return int(words[7])
    return None


def _written(address: Address) -> Iterator[str]:
    """Yield an address as the kernel writes it: 32-bit words in the machine's own order; in tcp6 as a mapped one."""
    (word,) = struct.unpack("=I", socket.inet_aton(address[0]))
    yield f"{word:08X}:{address[1]:04X}"
    yield f"{0:016X}{struct.unpack('=I', bytes((0, 0, 255, 255)))[0]:08X}{word:08X}:{address[1]:04X}"


def read_tables() -> str | None:
    """Return what Linux says of all TCP connections; None where it says nothing, as on other systems."""
    try:
        return "".join(path.read_text("ascii", "replace") for path in _TABLES if path.exists()) or None
    except OSError:
        return None


def is_wsl() -> bool:
    """Whether this Linux is inside Windows, whose programs connect from outside of its tables."""
    try:
        return "microsoft" in _RELEASE.read_text("ascii", "replace").lower()
    except OSError:
        return False


def may_connect(
    own: Address,
    peer: Address,
    *,
    tables: Callable[[], str | None] = read_tables,
    from_outside: Callable[[], bool] = is_wsl,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether the other end of a loopback connection is this login's, or root's. May block for a moment.

    One that has been closed already counts as another's: it could have sent something before. Where the system does not
    tell, as on macOS and Windows, everybody may.
    """
    if sys.platform == "win32":
        return True
    for look in range(_LOOKS):
        if look:
            sleep(_LOOK_AGAIN_SECONDS)
        found = tables()
        if found is None:
            return True
        uid = owner(found, own, peer)
        if uid is not None:
            return uid in (os.getuid(), _ROOT)
    return from_outside()
