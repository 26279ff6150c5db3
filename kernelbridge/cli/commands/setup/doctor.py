"""Serve `kernelbridge doctor`: each link from this machine to a kernel, the broken one and what to do about it."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
import textwrap
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Annotated, Any, Final

import typer

from kernelbridge.cli import completion
from kernelbridge.cli.commands.setup import install
from kernelbridge.cli.commands.setup.trust import trust_host
from kernelbridge.cli.context import CliContext, until_told_to_leave
from kernelbridge.cli.status_line import News, hidden, status_line
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import HostKeyUnknown
from kernelbridge.fleet.doctor.finding import Finding, LinkName, LinkState, Tell
from kernelbridge.fleet.doctor.trials import Talk
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.jupyter import kernelspecs
from kernelbridge.jupyter.checks import conversation, installation
from kernelbridge.kernel.records import Records, default_folder

_LOOK_SECONDS: Final = 0.1
# How long what was started for a look may take to go, when nobody waits for what is found.
_UNDO_SECONDS: Final = 60.0
_STATE_COLUMNS, _LINK_COLUMNS, _TIME_COLUMNS = 8, 16, 7
_BEFORE: Final = 2 + _STATE_COLUMNS + 1 + _LINK_COLUMNS + 1 + _TIME_COLUMNS + 2
_LEAST_COLUMNS: Final = 30


def doctor(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[HOST|ENVIRONMENT]",
            help="Look at this one only; for an environment also start a container and a kernel, for a moment.",
            autocompletion=completion.places,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    fixes: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Write kernel specs, throw away what cannot be read of the cache, and remember a host's new key if "
            "you say so.",
        ),
    ] = False,
) -> None:
    """Carry out `kernelbridge doctor`."""
    context: CliContext = ctx.obj
    if fixes and as_json:
        raise typer.BadParameter("--fix asks and tells what it does: leave --json out")
    with until_told_to_leave():
        loaded, found = _examined(context, name, is_shown=not as_json)
        if fixes and loaded is not None and _fix(ctx, loaded, found):
            context.say("")
            _, found = _examined(context, name, is_shown=True)
    broken = first_broken(found)
    if as_json:
        print(json.dumps([finding.to_json() for finding in found], indent=1))
    else:
        context.say("")
        context.say(_conclusion(found))
    if broken is not None:
        raise typer.Exit(broken.exit_code)


def first_broken(found: Sequence[Finding]) -> Finding | None:
    """Return the worst of what was found: the broken link that is nearest, for what is behind it may be its fault."""
    return next((finding for finding in found if finding.state is LinkState.BROKEN), None)


def _conclusion(found: Sequence[Finding]) -> str:
    broken = first_broken(found)
    if broken is not None:
        return f"Broken: {broken.link} of {broken.where}. {broken.remedy}".rstrip()
    warnings = sum(finding.state is LinkState.WARNING for finding in found)
    return "All links hold" + (f"; {warnings} of them with a warning." if warnings else ".")


def _examined(context: CliContext, name: str | None, *, is_shown: bool) -> tuple[Config | None, list[Finding]]:
    """Look at all links, and return the config, None if it is broken, and what was found. Raises UnknownHost."""
    found: list[Finding] = []
    table = FindingTable(context)

    def tell(finding: Finding) -> None:
        if is_shown:
            table.add(finding)
        found.append(finding)

    loaded = of_this_machine(context, tell)
    if loaded is not None:
        talk = conversation.converse if name in loaded.environments else None
        chosen = _chosen(loaded, name)
        news = News(f"looking at {', '.join(host.name for host, _ in chosen)}")
        with _quiet(), context.fleet(loaded) as fleet, status_line(news.newest):
            for finding in of_hosts(fleet, chosen, environ=context.environ, talk=talk):
                news.say(_what_follows(finding, tries=talk is not None))
                with hidden():
                    tell(finding)
    table.close()
    return loaded, found


def _what_follows(finding: Finding, *, tries: bool) -> str:
    """Say what is done after a link was looked at; `tries` if a container and a kernel are tried."""
    after = {LinkName.IMAGE_PYTHON: "trying a container", LinkName.CONTAINER: "trying a kernel"}
    what = after.get(finding.link) if tries and finding.state is not LinkState.SKIPPED else None
    return f"{finding.host}: {what}" if what else f"looking at {finding.host}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log's warnings from the terminal: what fails is told as a row."""
    logger = logging.getLogger("kernelbridge")
    nothing = logging.NullHandler()
    logger.addHandler(nothing)
    try:
        yield
    finally:
        logger.removeHandler(nothing)


def _fix(ctx: typer.Context, loaded: Config, found: Sequence[Finding]) -> bool:
    """Do what is safe, and return whether there was anything. Raises KernelBridgeError, Abort."""
    has_old_specs = any(one.link is LinkName.SPECS and one.state is LinkState.BROKEN for one in found)
    records = Records(default_folder())
    unreadable = records.unreadable()
    unknown = [one.host for one in found if one.exit_code == HostKeyUnknown.exit_code]
    if not (has_old_specs or unreadable or unknown):
        return False
    ctx.obj.say("")
    if unreadable:
        records.forget_unreadable()
        ctx.obj.say(f"Threw away from the cache: {', '.join(unreadable)}.")
    if has_old_specs:
        install.install(ctx)
    for host in unknown:
        trust_host(ctx.obj, loaded, host, yes=False)
    return True


def _chosen(loaded: Config, name: str | None) -> list[tuple[Host, list[Environment]]]:
    """Return the hosts to look at, each with the environments that may run there. Raises UnknownHost."""
    environments = list(loaded.environments.values())
    if name is None and not environments and not loaded.path.exists():
        return []  # Nobody has begun yet: this machine's own engine need not be there.
    if name is not None and name in loaded.environments:
        environments = [loaded.environment(name)]
        hosts: Sequence[Host] = loaded.hosts_of(environments[0])
    else:
        hosts = list(loaded.hosts.values()) if name is None else [loaded.host(name)]
    return [(host, [one for one in environments if host in loaded.hosts_of(one)]) for host in hosts]


def of_this_machine(context: CliContext, tell: Tell) -> Config | None:
    """Tell of this machine's own links; return the config, None if it is broken."""
    return installation.examine(
        context.config_path,
        tell,
        root=kernelspecs.default_root(),
        launcher=kernelspecs.launcher_path(),
        records=Records(default_folder()),
        environ=context.environ,
    )


class _Look:
    """A look at one host, under way on the fleet's thread."""

    def __init__(self) -> None:
        self.told: SimpleQueue[Finding] = SimpleQueue()
        # Set by run() when nothing of it goes on any more; its future says so before that, once it is cancelled.
        self.has_ended = threading.Event()
        self.future: Future[None]

    async def run(self, looking: Coroutine[Any, Any, None]) -> None:
        """Look, on the fleet's loop."""
        try:
            await looking
        finally:
            self.has_ended.set()


def of_hosts(
    fleet: Fleet,
    chosen: Sequence[tuple[Host, Sequence[Environment]]],
    *,
    environ: Mapping[str, str],
    talk: Talk | None = None,
) -> Iterator[Finding]:
    """Look at all hosts at once, and yield what is found of one after the other.

    With `talk` a container and a kernel are tried; whoever leaves the loop before its end has waited for their end.
    """
    looks: list[_Look] = []
    for host, environments in chosen:
        look = _Look()
        names = [environment.name for environment in environments]
        examining = fleet.examine(host, names, environ=environ, tell=look.told.put, talk=talk)
        look.future = fleet.submit(look.run(examining))
        looks.append(look)
    try:
        for look in looks:
            yield from _findings(look)
    except BaseException:
        for look in looks:
            look.future.cancel()
        for look in looks:
            look.has_ended.wait(_UNDO_SECONDS)
        raise


def _findings(look: _Look) -> Iterator[Finding]:
    while True:
        is_last = look.future.done()
        try:
            yield look.told.get(timeout=0 if is_last else _LOOK_SECONDS)
        except Empty:
            if is_last:
                break
    look.future.result()


class FindingTable:
    """Prints what is found as rows, link by link; those that are skipped for one reason share a row."""

    def __init__(self, context: CliContext) -> None:
        self._context = context
        # Whose links the last row was about; None before the first.
        self._where: str | None = None
        # Not printed yet; by add() and close().
        self._skipped: list[Finding] = []

    def __repr__(self) -> str:
        return f"<FindingTable at {self._where}, {len(self._skipped)} skipped>"

    def add(self, finding: Finding) -> None:
        """Print a row, or keep it for the next one's."""
        if self._skipped and (self._skipped[0].where, self._skipped[0].found) != (finding.where, finding.found):
            self.close()
        if finding.state is LinkState.SKIPPED:
            self._skipped.append(finding)
        else:
            self._print_row(finding, finding.link, finding.found)

    def close(self) -> None:
        """Print what was kept."""
        skipped, self._skipped = self._skipped, []
        if len(skipped) == 1:
            self._print_row(skipped[0], skipped[0].link, skipped[0].found)
        elif skipped:
            self._print_row(skipped[0], "", f"{', '.join(one.link for one in skipped)}: {skipped[0].found}")

    def _print_row(self, finding: Finding, link: str, text: str) -> None:
        say = self._context.say
        if self._where != finding.where:
            if self._where is not None:
                say("")
            say(finding.where if finding.host else "This machine")
            self._where = finding.where
        head = f"  {finding.state:{_STATE_COLUMNS}} {link:{_LINK_COLUMNS}} {_took(finding.seconds):>{_TIME_COLUMNS}}  "
        for line in _lines(text):
            say(head + line)
            head = " " * _BEFORE
        for line in _lines(finding.remedy):
            say(head + line)


def _took(seconds: float) -> str:
    """Say how long a look took; nothing where it took no time."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else ""


def _lines(text: str) -> list[str]:
    """Break a text between words where it would break the table; for programs it stays a line."""
    if not text or not sys.stdout.isatty():
        return [text] if text else []
    columns = max(shutil.get_terminal_size().columns - _BEFORE, _LEAST_COLUMNS)
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)
