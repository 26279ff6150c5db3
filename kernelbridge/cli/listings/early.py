"""Begin what `kernelbridge ps` and `gpus` ask hosts, before anything that takes time is loaded: see quick.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kernelbridge.config.remembered import Memory, RememberedConfig, RememberedHost
from kernelbridge.hosts.transport.openssh.control_master import ControlMaster

_COMMANDS = ("ps", "gpus")
# With these the call is a shell's, which wants a word completed.
_COMPLETES = ("_KERNELBRIDGE_COMPLETE", "COMP_WORDS", "_TYPER_COMPLETE_ARGS")


class Wish(NamedTuple):
    """A call in words that need no parser: what is listed, how, of which hosts."""

    command: str
    as_json: bool
    hosts: tuple[str, ...]


def wish_of(arguments: Sequence[str], environ: Mapping[str, str]) -> Wish | None:
    """Read the words of a call; None where they are others than `ps` or `gpus`, `--json` and `--host NAME`."""
    if not arguments or arguments[0] not in _COMMANDS or any(name in environ for name in _COMPLETES):
        return None
    hosts: list[str] = []
    as_json = False
    rest = iter(arguments[1:])
    for word in rest:
        if word == "--json":
            as_json = True
        elif word == "--host" and (name := next(rest, "-"))[:1] not in ("", "-"):
            hosts.append(name)
        else:
            return None
    return Wish(arguments[0], as_json, tuple(hosts))


class Begun(NamedTuple):
    """A listing that is under way: an `ssh` for each host that is asked."""

    wish: Wish
    memory: Memory
    config: RememberedConfig
    masters: Mapping[str, ControlMaster]

    def close(self) -> None:
        """End every ssh. Safe to call twice."""
        for master in self.masters.values():
            master.close()


def begin(arguments: Sequence[str], environ: Mapping[str, str]) -> Begun | None:
    """Begin to log in to the hosts that are asked; None where the call is not for this way, or nothing is remembered.

    Nothing is printed or raised: whoever gets None goes the full way, which says what is wrong.
    """
    wish = wish_of(arguments, environ) if sys.platform != "win32" else None
    if wish is None:
        return None
    masters: dict[str, ControlMaster] = {}
    try:
        memory = Memory(environ)
        config = memory.recall()
        asked: list[RememberedHost] = config.hosts_named(wish.hosts) if config else []
        if config is None or not asked:
            return None
        for host in asked:
            masters[host.name] = ControlMaster(host.ssh_words, environ=environ)
        return Begun(wish, memory, config, masters)
    except (OSError, KeyError):
        for master in masters.values():
            master.close()
        return None
