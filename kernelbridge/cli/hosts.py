"""`kernelbridge trust`: take a host's key into known_hosts, after somebody compared it."""

from __future__ import annotations

from typing import Annotated

import typer

from kernelbridge.cli.session import Session
from kernelbridge.errors import HostKeyChanged, HostKeyUnknown

KEY_SECONDS = 60.0
# A host and the jump hosts before it; ssh.py refuses longer ways.
MOST_KEYS = 10


def trust(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host's name in the config.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprint was compared already.")] = False,
) -> None:
    """Show a host's key, and remember it if you say so."""
    session: Session = ctx.obj
    loaded = session.read_config()
    if loaded.host(host).is_local:
        session.say(f"{host} is this machine: there is no key to trust.")
        return
    with session.fleet(loaded) as fleet:
        # Each jump host on the way shows its own key first.
        for _ in range(MOST_KEYS):
            key = session.wait(fleet, fleet.host_key(host), seconds=KEY_SECONDS)
            if key.is_changed:
                raise HostKeyChanged(
                    host=host, algorithm=key.algorithm, fingerprint=key.fingerprint, known_hosts_name=key.name
                )
            if key.is_known:
                session.say(f"{host} is trusted: {key.algorithm} {key.fingerprint}")
                return
            session.say(f"{key.name} shows the key {key.algorithm} {key.fingerprint}")
            if not yes:
                typer.confirm("Is this the fingerprint that its owner gave you?", abort=True)
            session.wait(fleet, fleet.trust(host, key), seconds=KEY_SECONDS)
    raise HostKeyUnknown(host=host, algorithm=key.algorithm, fingerprint=key.fingerprint)
