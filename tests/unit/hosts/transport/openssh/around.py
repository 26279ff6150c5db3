"""A user and a machine that are made up, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kernelbridge.hosts.transport.openssh.reader import ConfigReader
from kernelbridge.hosts.transport.openssh.settings import Settings
from kernelbridge.hosts.transport.openssh.tokens import Around


def around(home: Path, *, database_home: Path | None = None, environ: Mapping[str, str] | None = None) -> Around:
    """The user ada on the machine box.example."""
    return Around(
        home=home,
        database_home=database_home or home,
        user="ada",
        uid="1000",
        machine="box.example",
        environ=environ or {},
    )


def settings(home: Path, *lines: str, environ: Mapping[str, str] | None = None, name: str = "lab") -> Settings:
    """What a config with these lines says of a host."""
    place = around(home, environ=environ)
    config = home / ".ssh" / "config"
    config.parent.mkdir(exist_ok=True)
    config.write_text("\n".join([*lines, ""]))
    values = ConfigReader(name, user=None, port=None, around=place).read([config])
    defaults = ConfigReader(name, user=None, port=None, around=place).read([])
    return Settings(name=name, values=values, defaults=defaults, around=place)
