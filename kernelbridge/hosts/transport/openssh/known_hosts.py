"""Read known_hosts as OpenSSH does: line by line, past what cannot be read; a name counts, never an address alone."""

from __future__ import annotations

import binascii
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from kernelbridge.hosts.transport.openssh.process import ask
from kernelbridge.hosts.transport.openssh.reader import DEFAULT_PORT
from kernelbridge.hosts.transport.openssh.settings import Settings
from kernelbridge.hosts.transport.openssh.tokens import expand

KNOWN_HOSTS_COMMAND_SECONDS = 30.0
_LINE = re.compile(r"(?P<marker>@\S+[ \t]+)?(?P<names>\S+)[ \t]+(?P<key>\S+[ \t]+\S+).*")
# The head of a list that `ssh-keygen -k` makes.
_KRL_HEAD = b"SSHKRL\n\0"
# What takes all and keeps nothing.
_NOWHERE = ("/dev/null", "nul")


@dataclass(frozen=True, kw_only=True)
class Trusted:
    """What is trusted, or not, under one name."""

    keys: Sequence[asyncssh.SSHKey]
    authorities: Sequence[asyncssh.SSHKey]
    revoked: Sequence[asyncssh.SSHKey]

    @property
    def for_asyncssh(self) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        """As its `known_hosts`. Matched by us: it would also take a key that only the address is known by."""
        return list(self.keys), list(self.authorities), list(self.revoked)


@dataclass(frozen=True, kw_only=True)
class KnownHosts:
    """The known keys of one host, and where a new one goes to."""

    # As it stands in known_hosts: `name` or `[name]:port`.
    name: str
    # Where `kernelbridge trust` writes to; None: the config names no file that keeps anything.
    path: Path | None
    is_hashed: bool
    trusted: Trusted


async def read_known_hosts(settings: Settings) -> KnownHosts:
    """Read all that the config names for this host. Missing and unreadable files are passed over, as ssh does.

    Raises: ValueError: RevokedHostKeys cannot be read: then nobody knows what is revoked.
    """
    port = DEFAULT_PORT if settings.one("hostkeyalias") else settings.port
    users = [path for path in settings.known_hosts_paths("userknownhostsfile") if str(path).lower() not in _NOWHERE]
    systems = settings.known_hosts_paths("globalknownhostsfile")
    texts = [_read(path) for path in [*users, *systems]]
    if command := settings.one("knownhostscommand"):
        texts.append(await _command_output(command, settings))
    texts += [_revoked(path) for path in settings.paths("revokedhostkeys")]
    name = settings.alias if port == DEFAULT_PORT else f"[{settings.alias}]:{port}"
    return KnownHosts(
        name=name,
        path=users[0] if users else None,
        is_hashed=settings.is_on("hashknownhosts"),
        trusted=_match("\n".join(texts), settings.alias, port),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _match(text: str, alias: str, port: int) -> Trusted:
    """Return what stands under a name: under `[name]:port` first, under the bare name where there is nothing."""
    known_hosts = asyncssh.SSHKnownHosts()
    for line in text.splitlines():
        if (readable := _readable(line)) is not None:
            try:
                known_hosts.load(readable)
            except (ValueError, binascii.Error):  # As ssh: a line that cannot be read is nobody's.
                continue
    # The address is left out: as OpenSSH's CheckHostIP=no, its default.
    keys, authorities, revoked = known_hosts.match(alias, "", port if port != DEFAULT_PORT else None)[:3]
    # asyncssh forgets what is revoked under one of the names when it goes on to the other.
    everywhere = [*revoked, *known_hosts.match(alias, "", None)[2]]
    revoked = list({key.public_data: key for key in everywhere}.values())
    return Trusted(keys=keys, authorities=authorities, revoked=revoked)


def _readable(line: str) -> str | None:
    """Return a line in a form that asyncssh reads as OpenSSH does: names in lower case, no comment."""
    match = _LINE.fullmatch(line.strip())
    if match is None or line.lstrip().startswith("#"):
        return None
    names = match["names"]
    return f"{match['marker'] or ''}{names if names.startswith('|') else names.lower()} {match['key']}"


async def _command_output(command: str, settings: Settings) -> str:
    """Run KnownHostsCommand as ssh does before it sees a key. Raises: ValueError."""
    tokens = {**settings.tokens, "H": settings.alias, "I": "ORDER", "t": "NONE", "f": "NONE", "K": "NONE"}
    words = [expand(word, tokens, settings.around.environ) for word in shlex.split(command)]
    try:
        answer = await ask(words, seconds=KNOWN_HOSTS_COMMAND_SECONDS)
    except (OSError, TimeoutError) as exc:
        raise ValueError(
            f"KnownHostsCommand `{command}`: {str(exc) or f'no end in {KNOWN_HOSTS_COMMAND_SECONDS:g} s'}"
        ) from exc
    if answer.exit_code != 0:
        raise ValueError(
            f"KnownHostsCommand `{command}` ended with exit code {answer.exit_code}: {answer.stderr.strip()}"
        )
    return answer.stdout


def _revoked(path: Path) -> str:
    """Return the lines of known_hosts that revoke what RevokedHostKeys lists. Raises: ValueError."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ValueError(f"RevokedHostKeys {path}: {exc.strerror}") from exc
    if data.startswith(_KRL_HEAD):
        raise ValueError(f"RevokedHostKeys {path} is a binary list (KRL); kernelbridge reads lists of public keys")
    lines = data.decode("utf-8", "replace").splitlines()
    return "\n".join(f"@revoked * {line}" for line in lines if line.strip() and not line.startswith("#"))
