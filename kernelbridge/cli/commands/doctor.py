"""Serve `kernelbridge doctor`: each link from this machine to a kernel, the broken one and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Annotated

import typer

from kernelbridge.cli import completion
from kernelbridge.cli.context import CliContext
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.fleet.doctor import Finding, LinkState
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.jupyter import installation, kernelspecs

_LOOK_SECONDS = 0.1
_STATE_COLUMNS, _LINK_COLUMNS = 8, 18


def doctor(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[HOST|ENVIRONMENT]",
            help="Look at this one only; without it at all.",
            autocompletion=completion.places,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Carry out `kernelbridge doctor`."""
    context: CliContext = ctx.obj
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        if not as_json:
            _show(context, finding, is_first=not found or found[-1].host != finding.host)
        found.append(finding)

    loaded = installation.examine(
        context.config_path, tell, root=kernelspecs.default_root(), launcher=kernelspecs.launcher_path()
    )
    if loaded is not None:
        with context.fleet(loaded) as fleet:
            for finding in _of_hosts(fleet, _chosen(loaded, name), environ=context.environ):
                tell(finding)
    broken = [finding for finding in found if finding.state is LinkState.BROKEN]
    if as_json:
        print(json.dumps([finding.to_json() for finding in found], indent=1))
    elif broken:
        first = broken[0]
        context.say("")
        context.say(f"Broken: {first.link} of {first.host or 'this machine'}. {first.remedy}".rstrip())
    else:
        context.say("")
        context.say("All links hold.")
    if broken:
        raise typer.Exit(broken[0].exit_code)


def _chosen(loaded: Config, name: str | None) -> list[tuple[Host, list[Environment]]]:
    """Return the hosts to look at, each with the environments that may run there. Raises UnknownHost."""
    environments = list(loaded.environments.values())
    if name is not None and name in loaded.environments:
        environments = [loaded.environment(name)]
        hosts: Sequence[Host] = loaded.hosts_of(environments[0])
    else:
        hosts = list(loaded.hosts.values()) if name is None else [loaded.host(name)]
    return [(host, [one for one in environments if host in loaded.hosts_of(one)]) for host in hosts]


def _of_hosts(
    fleet: Fleet, chosen: Sequence[tuple[Host, Sequence[Environment]]], *, environ: Mapping[str, str]
) -> Iterator[Finding]:
    """Look at all hosts at once, and yield what is found of one after the other."""
    looks: list[tuple[SimpleQueue[Finding], Future[None]]] = []
    for host, environments in chosen:
        told: SimpleQueue[Finding] = SimpleQueue()
        names = [environment.name for environment in environments]
        looks.append((told, fleet.submit(fleet.examine(host, names, environ=environ, tell=told.put))))
    for told, looking in looks:
        while True:
            is_last = looking.done()
            try:
                yield told.get(timeout=0 if is_last else _LOOK_SECONDS)
            except Empty:
                if is_last:
                    break
        looking.result()


def _show(context: CliContext, finding: Finding, *, is_first: bool) -> None:
    if is_first:
        if finding.host:
            context.say("")
        context.say(finding.host or "This machine")
    took = f" ({finding.seconds:.1f} s)" if finding.seconds >= 0.1 else ""
    context.say(f"  {finding.state:{_STATE_COLUMNS}} {finding.link:{_LINK_COLUMNS}} {finding.found}{took}")
    if finding.remedy:
        context.say(" " * (_STATE_COLUMNS + _LINK_COLUMNS + 4) + finding.remedy)
