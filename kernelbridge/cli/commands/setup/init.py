"""Serve `kernelbridge init`: from nothing to a kernel that the picker shows. Nothing is written before all is asked."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from kernelbridge.atomic_files import write_through
from kernelbridge.cli import output
from kernelbridge.cli.commands.setup import doctor, install
from kernelbridge.cli.commands.setup.trust import Lines, trust_host
from kernelbridge.cli.context import CliContext
from kernelbridge.config import edit, load
from kernelbridge.config.schema import LOCAL, Config, Environment, Host
from kernelbridge.errors import ConfigMissing, HostKeyUnknown
from kernelbridge.fleet.doctor.finding import Finding, LinkName, LinkState
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.gpu_listing import GpuRow
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts.gpus.driver_check import version_numbers
from kernelbridge.hosts.slurm.commands import PartitionFacts
from kernelbridge.hosts.transport import host_keys
from kernelbridge.hosts.transport.openssh.reader import aliases, default_paths
from kernelbridge.hosts.transport.openssh.settings import look_around

# What people mostly begin with, by the newest CUDA that their driver runs, and how large it is on a disk; the last is
# for a host without GPUs.
_SUGGESTED: Final = (
    ((12, 0), "pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime", 8),
    ((11, 0), "pytorch/pytorch:2.7.1-cuda11.8-cudnn9-runtime", 7),
    ((), "python:3.12", 1),
)
# How many of a host's images are offered, the newest first.
_MOST_OFFERED: Final = 12
THIS_MACHINE: Final = "this machine's own Docker"


@dataclass(frozen=True, kw_only=True)
class _Offered:
    """One answer that can be given by its number."""

    name: str
    # Stands behind it, for people.
    note: str = ""


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
    with _keys_taken_back() as trusted, context.fleet(Config(path=path, hosts={host_name: host})) as fleet:
        seen = _look_at(context, fleet, host, asks=asks, trusted=trusted)
        more: dict[str, object] = {}
        if seen.partitions and host.scheduler is None:
            more = {"scheduler": "slurm", **_chosen_partition(seen.partitions, asks=asks)}
        image, gpus = _chosen_image(context, fleet, seen, image, asks=asks)
    if more:
        text = edit.with_host_keys(text, host_name, more)
    keys: dict[str, object] = {"image": image, "hosts": [host_name], **gpus}
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


@contextlib.contextmanager
def _keys_taken_back() -> Iterator[Lines]:
    """Forget the host keys that were taken meanwhile, where the user leaves: then all is as it was."""
    trusted: Lines = []
    try:
        yield trusted
    except (KeyboardInterrupt, typer.Abort):
        for path, line in trusted:
            host_keys.forget(path, line)
        raise


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
        write_through(path, text.encode(), mode=0o666)
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
    question = "Which machine runs the containers?"
    chosen = _asked(question, [_Offered(name=name) for name in offered], "an alias, or user@name:port")
    return LOCAL if chosen == THIS_MACHINE else chosen


def _chosen_partition(partitions: Sequence[PartitionFacts], *, asks: bool) -> dict[str, object]:
    """Return the host's key that names a partition; none for the cluster's default."""
    offered = [
        _Offered(
            name=one.name,
            note=", ".join((["the default"] if one.is_default else []) + (["GPUs"] if one.has_gpus else [])),
        )
        for one in partitions
    ]
    chosen = _asked("Which partition do jobs go to?", offered, "another name") if asks else offered[0].name
    is_default = any(one.is_default and one.name == chosen for one in partitions)
    return {} if is_default else {"partition": chosen}


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What was found of a host."""

    host: Host
    found: Sequence[Finding]
    # Of a login node; empty: containers of an engine.
    partitions: Sequence[PartitionFacts] = ()

    def state(self, link: LinkName) -> LinkState | None:
        """Return how it is with a link; None where it was not looked at."""
        return next((one.state for one in self.found if one.link == link), None)

    def said(self, link: LinkName) -> str:
        """Return what was found of it."""
        return next((one.found for one in self.found if one.link == link), "")


def _chosen_image(
    context: CliContext, fleet: Fleet, seen: _Seen, image: str, *, asks: bool
) -> tuple[str, Mapping[str, object]]:
    """Return an image: one that the host has, or one to be pulled that fits its driver; and how many GPUs it gets.

    `image` is one that was named already.
    """
    host = seen.host
    if host.scheduler is not None:
        _, suggested, _ = _SUGGESTED[0]
        has_gpus = any(one.has_gpus for one in seen.partitions)
        return image or _ask_image([_Offered(name=suggested)], asks=asks), {"gpus": 1} if has_gpus else {}
    listed = context.wait(fleet, fleet.list_gpus(), seconds=LIST_SECONDS).gpus
    cards = [gpu for gpu in listed if gpu.host == host.name]
    offer = context.wait(fleet, fleet.offered_images(host, most=_MOST_OFFERED), seconds=LIST_SECONDS)
    there = {name: one.size_bytes for one in offer.fitting for name in one.names}
    _, suggested, size = _suggested(cards)
    if not image:
        for sentence in dict.fromkeys(offer.too_new.values()):
            context.say(f"Not offered: {sentence}")
        offered = [_Offered(name=one.names[0], note=_size_text(one.size_bytes)) for one in offer.fitting]
        if suggested not in there:
            offered.append(_Offered(name=suggested, note=f"is pulled; some {size} GB"))
        image = _ask_image(offered, asks=asks)
    elif image in offer.too_new:
        context.complain(f"Warning: {offer.too_new[image]}")
    if image not in {*there, *offer.too_new} and seen.state(LinkName.STORAGE) is LinkState.WARNING:
        needs = f"{size} GB" if image == suggested else "5 to 20 GB, as most with CUDA do"
        context.complain(f"Warning: {seen.said(LinkName.STORAGE)}; {image} may need some {needs}.")
    has_way = all(seen.state(link) is LinkState.OK for link in (LinkName.TOOLKIT, LinkName.CDI))
    return image, {"gpus": 1} if cards and has_way else {}


def _ask_image(offered: Sequence[_Offered], *, asks: bool) -> str:
    return _asked("Which image do kernels run in?", offered, "another name") if asks else offered[0].name


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes / 1000**3:.1f} GB" if size_bytes >= 10**8 else ""


def _suggested(cards: Sequence[GpuRow]) -> tuple[tuple[int, ...], str, int]:
    """Return an image that the driver of these GPUs can run, and how large it is."""
    newest = next((version_numbers(card.cuda) for card in cards), ())
    return next(one for one in _SUGGESTED if newest >= one[0])


def _asked(question: str, offered: Sequence[_Offered], other: str) -> str:
    """Ask for one of several by its number, or for something else by its name."""
    output.say(question)
    for number, one in enumerate(offered, 1):
        output.say(f"  {number}  {one.name}" + (f"  ({one.note})" if one.note else ""))
    while True:
        answer: str = typer.prompt(f"Number, or {other}", default="1").strip()
        if not answer.isdecimal():
            return answer
        if 0 < int(answer) <= len(offered):
            return offered[int(answer) - 1].name


# -- what is looked at


def _look_at(context: CliContext, fleet: Fleet, host: Host, *, asks: bool, trusted: Lines) -> _Seen:
    """Show each link to the host, and return what was found; a new key is asked about. Raises Exit at a broken one."""
    seen = _shown(context, fleet, host)
    if asks and any(one.exit_code == HostKeyUnknown.exit_code for one in seen.found):
        trust_host(context, fleet.config, host.name, yes=False, written_lines=trusted)
        seen = _shown(context, fleet, host)
    broken = doctor.first_broken(seen.found)
    if broken is not None:
        context.complain(f"No config was written: {broken.link} of {host.name} is broken. {broken.remedy}".rstrip())
        raise typer.Exit(broken.exit_code)
    return seen


def _shown(context: CliContext, fleet: Fleet, host: Host) -> _Seen:
    """Look at a host; one whose engine this login cannot use is taken for a login node, if it has Slurm."""
    found: list[Finding] = []
    # From the engine on: where jobs are meant it is not wanted.
    held: list[Finding] = []
    table = doctor.FindingTable(context)
    for one in doctor.of_hosts(fleet, [(host, [])], environ=context.environ):
        held = [*held, one] if held or one.link in (LinkName.FORWARDING, LinkName.ENGINE) else []
        if not held:
            table.add(one)
        found.append(one)
    partitions = _partitions(context, fleet, host, found)
    if partitions and host.scheduler is None:
        context.say(f"{host.name} has Slurm, and no Docker that this login may use: each kernel will be a job.")
        host, held = host.model_copy(update={"scheduler": "slurm"}), []
        for one in doctor.of_hosts(fleet, [(host, [])], environ=context.environ):
            if one.link is LinkName.SCHEDULER:
                table.add(one)
            found = [*(other for other in found if other.state is not LinkState.BROKEN), one]
    for one in held:
        table.add(one)
    table.close()
    context.say("")
    return _Seen(host=host, found=found, partitions=partitions)


def _partitions(context: CliContext, fleet: Fleet, host: Host, found: Sequence[Finding]) -> Sequence[PartitionFacts]:
    """Return the partitions of a host, if kernels are to be jobs there."""
    broken = doctor.first_broken(found)
    is_without_engine = broken is not None and broken.link in (LinkName.FORWARDING, LinkName.ENGINE)
    if not is_without_engine and (host.scheduler is None or broken is not None):
        return ()
    return context.wait(fleet, fleet.partitions(host), seconds=LIST_SECONDS)


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
