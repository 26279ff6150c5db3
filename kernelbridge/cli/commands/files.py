"""Serve `kernelbridge files push|pull|status`: a workspace's copy on a host, without a kernel."""

from __future__ import annotations

import enum
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.cli import completion
from kernelbridge.cli.commands.run import HostOption
from kernelbridge.cli.context import CliContext
from kernelbridge.cli.status_line import News
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.files.plan import Action, Deed
from kernelbridge.files.project import Project, find_project
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.kernel.workspace import COPY_SECONDS

# What is said of what a pass would do.
_WORDS = {
    Deed.COPY_THERE: "to push",
    Deed.MODE_THERE: "to push",
    Deed.DELETE_THERE: "to delete there",
    Deed.COPY_HERE: "to pull",
    Deed.DELETE_HERE: "to delete here",
    Deed.KEEP_BESIDE: "changed on both sides",
    Deed.TELL: "",
}


class Direction(enum.Enum):
    """What is to be done with the copy."""

    PUSH = "push"
    PULL = "pull"
    STATUS = "status"


def files(
    ctx: typer.Context,
    direction: Annotated[Direction, typer.Argument(help="push, pull or status.")],
    environment: Annotated[
        str,
        typer.Argument(
            metavar="[ENVIRONMENT]",
            help="Whose workspace; the only one that has one, if not given.",
            autocompletion=completion.environments,
        ),
    ] = "",
    host: HostOption = "",
) -> None:
    """Carry out `kernelbridge files`."""
    context: CliContext = ctx.obj
    loaded = context.read_config()
    chosen = _environment(loaded, environment)
    with context.fleet(loaded) as fleet:
        project = find_project(chosen, Path.cwd(), machine_id=fleet.records.machine_id())
        assert project is not None, "_environment takes none without"
        where = loaded.with_local().host(host) if host else loaded.hosts_of(chosen)[0]
        if not project.is_copied(where):
            context.say(f"{where.name} has {project.local_root} by itself: nothing is copied.")
            return
        if direction is Direction.STATUS:
            news = News(f"{where.name}: comparing")
            asking = fleet.workspace_status(_both(project), where, say=news.say)
            actions = context.wait(fleet, asking, seconds=COPY_SECONDS, doing=news.newest)
            _show(context, project, where, actions)
            return
        _carry_out(context, fleet, project if direction is Direction.PUSH else _both(project), where, direction)


def _environment(loaded: Config, name: str) -> Environment:
    if name:
        chosen = loaded.environment(name)
        if chosen.workspace is None:
            raise KernelBridgeError(f"{name} has no workspace.", 'Set `workspace = "."` of the environment.')
        return chosen
    having = [one for one in loaded.environments.values() if one.workspace is not None]
    if len(having) != 1:
        how_many = f"{len(having)} environments have a workspace" if having else "No environment has a workspace"
        raise KernelBridgeError(f"{how_many}.", 'Name one, or set `workspace = "."` of it.')
    return having[0]


def _both(project: Project) -> Project:
    """Return a project whose results are asked for: all that was made there, unless the config names some.

    Where the config does not say that both sides are one, nothing is deleted here.
    """
    workspace = project.workspace
    pull = workspace.pull or ("**",)
    both = workspace.model_copy(update={"sync": "both", "pull": pull})
    return replace(project, workspace=both, keeps_deleted=workspace.sync != "both")


def _carry_out(context: CliContext, fleet: Fleet, project: Project, host: Host, direction: Direction) -> None:
    news = News(f"{host.name}: looking")
    copying = fleet.sync_workspace(project, host, say=news.say, tell=context.complain)
    was_done = context.wait(fleet, copying, seconds=COPY_SECONDS, doing=news.newest)
    if not was_done and direction is Direction.PULL:
        raise KernelBridgeError(
            f"A kernel of this machine keeps the workspace on {host.name} in step.",
            'Its results come by themselves with `sync = "both"`; else pull when it has ended.',
        )
    context.say(f"{project.local_root} and its copy on {host.name} are in step.")


def _show(context: CliContext, project: Project, host: Host, actions: list[Action]) -> None:
    told = [(_WORDS[action.deed] or action.words, action.path) for action in actions if action.deed in _WORDS]
    for words, path in sorted(told):
        context.say(f"{words}: {path}")
    if not told:
        context.say(f"{project.local_root} and its copy on {host.name} are in step.")
