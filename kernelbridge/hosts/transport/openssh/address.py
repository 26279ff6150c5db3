"""Read `user@name:port`, as a config and a ProxyJump name a host."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SHAPE = re.compile(
    r"\[(?P<v6>[^]]+)\](:(?P<v6_port>\d+))?"  # [::1] and [::1]:22
    r"|(?P<name>[^:[\]]+)(:(?P<port>\d+))?"  # lab and lab:22
    r"|(?P<bare_v6>[^[\]]*:[^[\]]*:[^[\]]*)"  # ::1
)


@dataclass(frozen=True, kw_only=True)
class Address:
    """`user@name:port` as written; None where the ssh config decides."""

    name: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        return (f"{self.user}@" if self.user else "") + self.name + (f":{self.port}" if self.port else "")


def parse_address(text: str) -> Address:
    """Read `alias`, `user@name:port`, `user@[::1]:port`.

    Raises: ValueError where the port is none.
    """
    user, _, rest = text.rpartition("@")
    match = _SHAPE.fullmatch(rest)
    if match is None:
        raise ValueError(f"{text!r} is not `user@name:port`")
    port_text = match["v6_port"] or match["port"]
    port = int(port_text) if port_text else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{port} is no port")
    return Address(name=match["v6"] or match["name"] or match["bare_v6"], user=user or None, port=port)
