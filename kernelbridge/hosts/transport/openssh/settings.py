"""Find out what OpenSSH's config says of one host: asked of `ssh` itself, read by ourselves where there is none."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kernelbridge.hosts.transport.openssh.address import parse_address
from kernelbridge.hosts.transport.openssh.query import (
    SSH_QUERY_SECONDS,
    Question,
    SshUnusable,
    config_words,
    query,
    query_defaults,
)
from kernelbridge.hosts.transport.openssh.reader import DEFAULT_PORT, ConfigReader, Values, default_paths
from kernelbridge.hosts.transport.openssh.tokens import Around, all_tokens, expand, target_tokens

if sys.platform != "win32":
    import pwd

_YES = ("yes", "true")
PASSWORD_PROMPTS = 3
# What `ssh -G` says without any config, once per process.
_DEFAULTS: dict[str, Sequence[str]] = {}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the config says of one host; paths and names are expanded when they are asked for."""

    name: str
    values: Values
    # What there would be without any config.
    defaults: Values
    around: Around

    def one(self, keyword: str) -> str | None:
        """Return a keyword's only value; None where there is none, or it is `none`."""
        found = self.values.get(keyword) or ["none"]
        return None if found[0].lower() == "none" else found[0]

    def is_on(self, keyword: str, *, default: bool = False) -> bool:
        """Return a switch; -G prints some as yes and no, others as true and false."""
        found = self.one(keyword)
        return default if found is None else found.lower() in _YES

    def seconds(self, keyword: str) -> float | None:
        """Return a time in seconds; None where there is no limit."""
        found = self.one(keyword)
        return float(found) if found is not None and found.isdecimal() and int(found) > 0 else None

    @property
    def prompts(self) -> int:
        """How often a person is asked for the same thing."""
        found = self.one("numberofpasswordprompts") or ""
        return int(found) if found.isdecimal() else PASSWORD_PROMPTS

    @property
    def is_batch(self) -> bool:
        """Whether nobody is to be asked for anything."""
        return self.is_on("batchmode")

    def changed(self, keyword: str) -> str | None:
        """Return a value that the config has changed; None where it is ssh's own."""
        found = self.one(keyword)
        return None if found is None or self.values.get(keyword) == self.defaults.get(keyword) else found

    @property
    def host(self) -> str:
        """The name or address to connect to."""
        return self.one("hostname") or self.name

    @property
    def port(self) -> int:
        """The port to connect to."""
        return int(self.one("port") or DEFAULT_PORT)

    @property
    def user(self) -> str:
        """The login."""
        return self.one("user") or self.around.user

    @property
    def alias(self) -> str:
        """The name in known_hosts; OpenSSH compares it in lower case."""
        return (self.one("hostkeyalias") or self.host).lower()

    @property
    def target(self) -> Mapping[str, str]:
        """The tokens of ProxyCommand and ProxyJump."""
        return target_tokens(name=self.name, host=self.host, port=self.port, user=self.user)

    @cached_property
    def tokens(self) -> Mapping[str, str]:
        """The tokens of file names."""
        return all_tokens(self.around, self.target, alias=self.alias, jump=self.one("proxyjump") or "")

    def command(self, keyword: str) -> str | None:
        """Return a line for a shell, its tokens expanded. Raises: ValueError."""
        found = self.one(keyword)
        return None if found is None else expand(found, self.target)

    def paths(self, keyword: str) -> list[Path]:
        """Return one path per value, expanded. Raises: ValueError."""
        return [self.path(text) for text in self.values.get(keyword, ()) if text.lower() != "none"]

    def path(self, text: str) -> Path:
        """Expand `~`, tokens and variables of a path. Raises: ValueError."""
        return self.around.path(expand(text, self.tokens, self.around.environ))

    def known_hosts_paths(self, keyword: str) -> list[Path]:
        """Return the paths of one line. Raises: ValueError."""
        found = self.one(keyword)
        return [self.around.moved(self.path(text)) for text in _split_paths(found or "")]


def _split_paths(text: str) -> list[str]:
    """Split what -G prints: without the quotes that paths with blanks had."""
    found: list[str] = []
    for word in text.split(" "):
        is_start = word.startswith(("/", "~", "%", "$")) or Path(word).is_absolute() or not found
        found = [*found, word] if is_start else [*found[:-1], f"{found[-1]} {word}"]
    return [path for path in found if path]


def command_line(ssh: str) -> list[str]:
    """Return how ssh is called for a host as a config names it. Raises: ValueError."""
    address = parse_address(ssh)
    question = Question(name=address.name, user=address.user, port=address.port)
    return [*config_words(look_around()), *question.words]


def look_around() -> Around:
    """Return who and where we are."""
    home, uid = Path.home(), ""
    database_home = home
    try:
        user = getpass.getuser()
        if sys.platform != "win32":
            uid = str(os.getuid())
            entry = pwd.getpwuid(os.getuid())
            user, database_home = entry.pw_name, Path(entry.pw_dir)
    except (KeyError, OSError):  # A container with a user id of its own: ssh refuses to run there.
        user = os.environ.get("USER", uid)
    return Around(
        home=home,
        database_home=home if database_home.resolve() == home.resolve() else database_home,
        user=user,
        uid=uid,
        machine=socket.gethostname(),
        environ=os.environ,
    )


async def read_settings(
    name: str, *, user: str | None, port: int | None, seconds: float = SSH_QUERY_SECONDS
) -> Settings:
    """Return what the config says of a host, called as on ssh's command line.

    Raises: ValueError: the config cannot be used for this host. TimeoutError.
    """
    around = look_around()
    question = Question(name=name, user=user, port=port)
    try:
        values = await query(question, around, seconds=seconds)
        defaults = await _defaults()
    except SshUnusable:
        reader = ConfigReader(name, user=user, port=port, around=around, exec_seconds=seconds)
        # A `Match exec` may take its time.
        values = await asyncio.to_thread(reader.read, default_paths(around))
        defaults = ConfigReader(name, user=user, port=port, around=around).read([])
    return Settings(name=name, values=values, defaults=defaults, around=around)


async def _defaults() -> Values:
    if not _DEFAULTS:
        _DEFAULTS.update(await query_defaults())
    return _DEFAULTS
