"""Serve `kernelbridge report`: one file for a bug report, which its sender reads first."""

from __future__ import annotations

import getpass
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.atomic_files import write_whole
from kernelbridge.cli.commands.setup import doctor
from kernelbridge.cli.context import CliContext
from kernelbridge.cli.status_line import News, status_line
from kernelbridge.config.schema import Config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet import report as reports
from kernelbridge.fleet.doctor.finding import Finding
from kernelbridge.fleet.redaction import Names
from kernelbridge.kernel.records import default_folder


def report(
    ctx: typer.Context,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Write it to this file; `-` is stdout.")
    ] = "",
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="Leave the names of logins and machines, and addresses, as they are.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no host.")] = False,
) -> None:
    """Carry out `kernelbridge report`."""
    context: CliContext = ctx.obj
    now = datetime.now(UTC)
    path = Path(output or f"kernelbridge-report-{now:%Y%m%d-%H%M%S}.md")
    if output != "-":
        _demand_free(path)
    made = _made(context, now, keep_names=keep_names, offline=offline)
    if output == "-":
        typer.echo(made.text(), nl=False)
        return
    try:
        write_whole(path, made.text().encode("utf-8", "replace"), is_private=True)
    except OSError as exc:
        raise KernelBridgeError(
            f"{path} cannot be written: {exc.strerror or exc}.", "Choose another place with `-o FILE`."
        ) from exc
    context.say(f"Wrote {path.resolve()}. In it:")
    for words in made.contents:
        context.say(f"  {words}")
    names = "are in it" if keep_names else "are replaced; `--keep-names` leaves them"
    context.say(
        f"Names of logins and machines {names}. Read it before you send it: it leaves this machine only by you."
    )


def _demand_free(path: Path) -> None:
    """Ask before a file is replaced. Raises KernelBridgeError where nobody can be asked, and Abort."""
    if not path.exists():
        return
    if not sys.stdin.isatty():
        raise KernelBridgeError(f"{path} exists.", "Choose another name with `-o FILE`, or remove it.")
    typer.confirm(f"{path} exists. Replace it?", abort=True)


def _made(context: CliContext, now: datetime, *, keep_names: bool, offline: bool) -> reports.BugReport:
    failure: KernelBridgeError | None = None
    config: Config | None = None
    try:
        config = context.read_config()
    except KernelBridgeError as error:
        failure = error
    names = Names(config, home=Path.home(), login=_login(), machine=platform.node())
    folder = default_folder()
    errors, logs = reports.read_logs(folder)
    return reports.BugReport(
        made=now,
        versions=reports.versions(Path.home()),
        config=config,
        config_failure=failure,
        findings=_findings(context, config, offline=offline),
        errors=errors,
        logs=logs,
        failed_starts=reports.failed_starts(folder),
        masked=(lambda text: text) if keep_names else names.masked,
    )


def _findings(context: CliContext, config: Config | None, *, offline: bool) -> list[Finding]:
    """Look at all links, as `kernelbridge doctor` does; without the hosts where they are not to be asked."""
    found: list[Finding] = []
    doctor.of_this_machine(context, found.append)
    if config is None or offline:
        return found
    environments = list(config.environments.values())
    chosen = [(host, [one for one in environments if host in config.hosts_of(one)]) for host in config.hosts.values()]
    news = News("looking at each host, as `kernelbridge doctor` does")
    with context.fleet(config) as fleet, status_line(news.newest):
        for finding in doctor.of_hosts(fleet, chosen, environ=context.environ):
            news.say(f"{finding.host}: {finding.link}: {finding.state}")
            found.append(finding)
    return found


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
