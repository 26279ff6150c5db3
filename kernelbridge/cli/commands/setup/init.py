"""Serve `kernelbridge init`: from nothing to a kernel that the picker shows. Nothing is written before all is asked."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from kernelbridge.atomic_files import write_whole
from kernelbridge.cli import output
from kernelbridge.cli.commands.setup import doctor, install
from kernelbridge.cli.commands.setup.trust import trust_host
from kernelbridge.cli.context import CliContext
from kernelbridge.config import edit, load
from kernelbridge.config.schema import LOCAL, Config, Environment, Host
from kernelbridge.errors import ConfigMissing, HostKeyUnknown
from kernelbridge.fleet.doctor import Finding, LinkState
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts.gpus.driver_check import version_numbers
from kernelbridge.hosts.transport.openssh.reader import aliases, default_paths
from kernelbridge.hosts.transport.openssh.settings import look_around

# What people mostly begin with, by the newest CUDA that their driver runs; the last is for a host without GPUs.
_SUGGESTED: Final = (
    ((12, 0), "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime"),
    ((11, 0), "pytorch/pytorch:2.7.1-cuda11.8-cudnn9-runtime"),
    ((), "python:3.12"),
)
# How many of a host's images are offered, the newest first.
_MOST_OFFERED: Final = 12
THIS_MACHINE: Final = "this machine's own Docker"


def _complete_alias(incomplete: str) -> list[str]:
    around = look_around()
    return [name for name in aliases(around, default_paths(around)) if name.startswith(incomplete)]


def init(
    ctx: typer.Context,
    ssh: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="HOST",
            help="An alias of ~/.ssh/config, or user@name:port; `local` is this machine's own engine.",
            autocompletion=_complete_alias,
        ),
    ] = "",
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="What kernels run in.")] = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask: take the first that is offered; a new host key is an error.")
    ] = False,
) -> None:
    """Carry out `kernelbridge init`."""
    context: CliContext = ctx.obj
    path = context.config_path
    before, known = _read(path)
    asks = not yes and sys.stdin.isatty()
    ssh = ssh or _chosen_host(asks=asks)
    text = before
    if known.environments and list(known.hosts) == [LOCAL]:
        # It is the only host where none is written: what runs here goes on running here.
        text, _ = edit.with_host(text, LOCAL, LOCAL)
    text, host_name = edit.with_host(text, _host_name(ssh), ssh)
    host = load.parse(text, path).host(host_name)
    # Of the other hosts nothing is asked; and this one has one login for all.
    with context.fleet(Config(path=path, hosts={host_name: host})) as fleet:
        found = _look_at(context, fleet, host, asks=asks)
        image = image or _chosen_image(context, fleet, host, asks=asks)
    keys: dict[str, object] = {"image": image, "hosts": [host_name]}
    if any(one.link == "GPUs in containers" and one.state is LinkState.OK for one in found):
        keys["gpus"] = 1
    text, name = edit.with_environment(text, _environment_name(image), keys)
    loaded = load.parse(text, path)
    if text == before:
        context.say(f"{path} has them already: host {host_name}, environment {name}")
    else:
        _write(path, text)
        context.say(f"Wrote {path}: host {host_name}, environment {name}")
    also = [one.name for one in known.environments.values() if not one.hosts]
    if also and host_name not in known.hosts:
        context.say(f"On {host_name} may run, after the hosts before it: {', '.join(also)}, which name no `hosts`.")
    install.install(ctx)
    _say_next(context, loaded, loaded.environment(name))


def _read(path: Path) -> tuple[str, Config]:
    """Return the config's text, empty where none is there, and what is in force.

    Raises: ConfigInvalid, ConfigMissing.
    """
    if not path.exists():
        return "", Config(path=path)
    known = load.load(path)
    return path.read_text("utf-8"), known


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode(), is_private=False)
    except OSError as exc:
        raise ConfigMissing(path=str(path), reason=exc.strerror or str(exc)) from exc


# -- what is asked


def _chosen_host(*, asks: bool) -> str:
    """Return an ssh name, asked for among those of ~/.ssh/config. Raises BadParameter where nobody can be asked."""
    around = look_around()
    offered = [*aliases(around, default_paths(around)), THIS_MACHINE]
    if not asks:
        if len(offered) != 2:
            raise typer.BadParameter("name the machine: `--host ALIAS`, or `--host local` for this one's own Docker")
        return offered[0]
    chosen = _asked("Which machine runs the containers?", offered, "an alias, or user@name:port")
    return LOCAL if chosen == THIS_MACHINE else chosen


def _chosen_image(context: CliContext, fleet: Fleet, host: Host, *, asks: bool) -> str:
    """Return an image's name: one of those that the host has, or one to be pulled that fits its driver."""
    if host.scheduler is not None:
        offered = [_SUGGESTED[0][1]]
    else:
        offered = [*_images_of(context, fleet, host), _suggested(context, fleet, host)]
    offered = list(dict.fromkeys(offered))
    return _asked("Which image do kernels run in?", offered, "another name") if asks else offered[0]


def _images_of(context: CliContext, fleet: Fleet, host: Host) -> list[str]:
    images = context.wait(fleet, fleet.other_images(host), seconds=LIST_SECONDS)
    newest = sorted(images, key=lambda one: one.created, reverse=True)
    return [one.names[0] for one in newest][:_MOST_OFFERED]


def _suggested(context: CliContext, fleet: Fleet, host: Host) -> str:
    """Return an image that the host's driver can run."""
    listed = context.wait(fleet, fleet.list_gpus(), seconds=LIST_SECONDS).gpus
    newest = next((version_numbers(gpu.cuda) for gpu in listed if gpu.host == host.name), ())
    return next(image for least, image in _SUGGESTED if newest >= least)


def _asked(question: str, offered: Sequence[str], other: str) -> str:
    """Ask for one of several by its number, or for something else by its name."""
    output.say(question)
    for number, name in enumerate(offered, 1):
        output.say(f"  {number}  {name}")
    while True:
        answer: str = typer.prompt(f"Number, or {other}", default="1").strip()
        if not answer.isdecimal():
            return answer
        if 0 < int(answer) <= len(offered):
            return offered[int(answer) - 1]


# -- what is looked at


def _look_at(context: CliContext, fleet: Fleet, host: Host, *, asks: bool) -> list[Finding]:
    """Show each link to the host, and return what was found; a new key is asked about. Raises Exit at a broken one."""
    found = _shown(context, fleet, host)
    if asks and any(one.exit_code == HostKeyUnknown.exit_code for one in found):
        trust_host(context, fleet.config, host.name, yes=False)
        found = _shown(context, fleet, host)
    broken = next((one for one in found if one.state is LinkState.BROKEN), None)
    if broken is not None:
        context.complain(f"Nothing was written: {broken.link} of {host.name} is broken. {broken.remedy}".rstrip())
        raise typer.Exit(broken.exit_code)
    return found


def _shown(context: CliContext, fleet: Fleet, host: Host) -> list[Finding]:
    found: list[Finding] = []
    for one in doctor.of_hosts(fleet, [(host, [])], environ=context.environ):
        doctor.show(context, one, is_first=not found)
        found.append(one)
    context.say("")
    return found


# -- names, and the end


def _host_name(ssh: str) -> str:
    """Make a name that the config takes of what ssh is told: `lab` of `ada@lab:22`."""
    bare = ssh.rpartition("@")[2].partition(":")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", bare).lstrip("._-") or "host"


def _environment_name(image: str) -> str:
    """Make a name of an image's: `pytorch` of `registry/team/pytorch:2`."""
    bare = image.rpartition("/")[2].partition("@")[0].partition(":")[0].lower()
    name = re.sub(r"[^a-z0-9]+", "-", bare).strip("-") or "environment"
    # VS Code hides kernels that are called python...
    return f"plain-{name}" if name.startswith("python") else name


def _say_next(context: CliContext, loaded: Config, environment: Environment) -> None:
    shown = load.display_names(loaded)[environment.name]
    context.say("")
    context.say(f'VS Code: open a notebook, Select Kernel, Jupyter Kernel..., "{shown}".')
    context.say(f'JupyterLab: reload the page, and take "{shown}" in the launcher.')
    context.say(f"A terminal: `kernelbridge run {environment.name} -- python -V`.")
