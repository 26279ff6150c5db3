"""Serve `kernelbridge doctor`: each link from this machine to a kernel, the broken one and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Annotated

import typer

from kernelbridge.cli import completion
from kernelbridge.cli.commands.setup import install
from kernelbridge.cli.commands.setup.trust import trust_host
from kernelbridge.cli.context import CliContext
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import HostKeyUnknown
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
    fixes: Annotated[
        bool, typer.Option("--fix", help="Write kernel specs, and remember a host's new key if you say so.")
    ] = False,
) -> None:
    """Carry out `kernelbridge doctor`."""
    context: CliContext = ctx.obj
    if fixes and as_json:
        raise typer.BadParameter("--fix asks and tells what it does: leave --json out")
    loaded, found = _examined(context, name, is_shown=not as_json)
    if fixes and loaded is not None and _fix(ctx, loaded, found):
        context.say("")
        _, found = _examined(context, name, is_shown=True)
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


def _examined(context: CliContext, name: str | None, *, is_shown: bool) -> tuple[Config | None, list[Finding]]:
    """Look at all links, and return the config, None if it is broken, and what was found. Raises UnknownHost."""
    found: list[Finding] = []

    def tell(finding: Finding) -> None:
        if is_shown:
            show(context, finding, is_first=not found or found[-1].host != finding.host)
        found.append(finding)

    loaded = installation.examine(
        context.config_path, tell, root=kernelspecs.default_root(), launcher=kernelspecs.launcher_path()
    )
    if loaded is not None:
        with context.fleet(loaded) as fleet:
            for finding in of_hosts(fleet, _chosen(loaded, name), environ=context.environ):
                tell(finding)
    return loaded, found


def _fix(ctx: typer.Context, loaded: Config, found: Sequence[Finding]) -> bool:
    """Do what is safe, and return whether there was anything. Raises KernelBridgeError, Abort."""
    has_old_specs = any(one.link == installation.SPECS and one.state is LinkState.BROKEN for one in found)
    unknown = [one.host for one in found if one.exit_code == HostKeyUnknown.exit_code]
    if has_old_specs or unknown:
        ctx.obj.say("")
    if has_old_specs:
        install.install(ctx)
    for host in unknown:
        trust_host(ctx.obj, loaded, host, yes=False)
    return has_old_specs or bool(unknown)


def _chosen(loaded: Config, name: str | None) -> list[tuple[Host, list[Environment]]]:
    """Return the hosts to look at, each with the environments that may run there. Raises UnknownHost."""
    environments = list(loaded.environments.values())
    if name is not None and name in loaded.environments:
        environments = [loaded.environment(name)]
        hosts: Sequence[Host] = loaded.hosts_of(environments[0])
    else:
        hosts = list(loaded.hosts.values()) if name is None else [loaded.host(name)]
    return [(host, [one for one in environments if host in loaded.hosts_of(one)]) for host in hosts]


def of_hosts(
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


def show(context: CliContext, finding: Finding, *, is_first: bool) -> None:
    """Print what was found of a link; before a host's first one its name."""
    if is_first:
        if finding.host:
            context.say("")
        context.say(finding.host or "This machine")
    took = f" ({finding.seconds:.1f} s)" if finding.seconds >= 0.1 else ""
    context.say(f"  {finding.state:{_STATE_COLUMNS}} {finding.link:{_LINK_COLUMNS}} {finding.found}{took}")
    if finding.remedy:
        context.say(" " * (_STATE_COLUMNS + _LINK_COLUMNS + 4) + finding.remedy)
