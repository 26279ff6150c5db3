"""Take `--host` and `--env`: which hosts a command asks, and which of their kernels it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kernelbridge.cli import completion
from kernelbridge.config.schema import Config, Host

if TYPE_CHECKING:
    from kernelbridge.fleet.kernel_listing import KernelRow

HostsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="NAME",
        help="Ask this host alone; several times for several.",
        autocompletion=completion.hosts,
    ),
]
EnvironmentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME",
        help="Only what belongs to this environment; several times for several.",
        autocompletion=completion.environments,
    ),
]


def asked_hosts(loaded: Config, names: Sequence[str] | None) -> list[Host]:
    """Return the hosts that are asked: those of these names, all where none is named. Raises UnknownHost."""
    return loaded.hosts_named(names or ())


def hosts_for(loaded: Config, names: Sequence[str] | None, environments: Sequence[str] | None) -> list[Host]:
    """Return those of the hosts on which one of the environments may run; all of them where none is named.

    Raises UnknownHost, UnknownEnvironment.
    """
    hosts = asked_hosts(loaded, names)
    if not environments:
        return hosts
    wanted = {host.name for name in environments for host in loaded.hosts_of(loaded.environment(name))}
    return [host for host in hosts if host.name in wanted]


def of_environments(
    loaded: Config, rows: Iterable[KernelRow], environments: Sequence[str] | None
) -> tuple[KernelRow, ...]:
    """Return the kernels of these environments; all of them where none is named.

    Another machine's config may have environments that this one has not: only one of which nothing runs is taken for
    a mistake. Raises UnknownEnvironment.
    """
    if not environments:
        return tuple(rows)
    found = tuple(row for row in rows if row.environment in environments)
    for name in environments:
        if not any(row.environment == name for row in found):
            loaded.environment(name)
    return found
