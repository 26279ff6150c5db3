"""Serve `kernelbridge trust`: take a host's key into known_hosts, after somebody compared it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.cli import completion
from kernelbridge.cli.context import CliContext
from kernelbridge.config.schema import Config
from kernelbridge.errors import HostKeyChanged, HostKeyUnknown, SshConfigInvalid

KEY_SECONDS = 60.0
# A host and the jump hosts before it; a login refuses longer ways.
MOST_KEYS = 10


def trust(
    ctx: typer.Context,
    host: Annotated[
        str, typer.Argument(metavar="HOST", help="The host's name in the config.", autocompletion=completion.hosts)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprint was compared already.")] = False,
) -> None:
    """Carry out `kernelbridge trust`."""
    trust_host(ctx.obj, ctx.obj.read_config(), host, yes=yes)


Lines = list[tuple[Path, str]]


def trust_host(
    context: CliContext, loaded: Config, host: str, *, yes: bool, written_lines: Lines | None = None
) -> None:
    """Take the key of a host of the config into known_hosts, if its user says so. Raises HostKeyChanged and others.

    `written_lines` gets each line that was written, and where.
    """
    if loaded.host(host).is_local:
        context.say(f"{host} is this machine: there is no key to trust.")
        return
    with context.fleet(loaded) as fleet:
        written: set[tuple[str, str]] = set()
        # Each jump host on the way shows its own key first.
        for _ in range(MOST_KEYS):
            key = context.wait(fleet, fleet.host_key(host), seconds=KEY_SECONDS)
            if key.is_changed:
                raise HostKeyChanged(
                    host=host, algorithm=key.algorithm, fingerprint=key.fingerprint, known_hosts_name=key.name
                )
            if key.is_known:
                context.say(f"{host} is trusted: {key.algorithm} {key.fingerprint}")
                return
            if (key.name, key.fingerprint) in written:
                reason = f"the key of {key.name} was written to {key.known_hosts_path}, and is not read from there"
                raise SshConfigInvalid(host=host, reason=reason)
            context.say(f"{key.name} shows the key {key.algorithm} {key.fingerprint}")
            if not yes:
                typer.confirm("Is this the fingerprint that its owner gave you?", abort=True)
            line = context.wait(fleet, fleet.trust(host, key), seconds=KEY_SECONDS)
            if written_lines is not None and key.known_hosts_path is not None:
                written_lines.append((key.known_hosts_path, line))
            written.add((key.name, key.fingerprint))
    raise HostKeyUnknown(host=host, algorithm=key.algorithm, fingerprint=key.fingerprint)
