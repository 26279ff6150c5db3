"""List kernels or GPUs over the user's own `ssh`, from what is remembered of the config: in little more than its login.

It is the listing of the full way, KernelFinder or gpu_listing, over a link and an engine that load in a moment. It
tells what it has found only where nothing was in doubt; else the full way begins anew, and says what is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from kernelbridge.cli.listings.early import Begun
from kernelbridge.cli.listings.plain import BROKEN_PIPE_EXIT_CODE, Found, is_plain_pipe, plain_table
from kernelbridge.errors import KernelBridgeError, SpecsUnwritable
from kernelbridge.hosts.listed_engine import ListedEngine
from kernelbridge.hosts.transport.openssh.control_link import ControlLink
from kernelbridge.hosts.transport.stream import BeyondLink
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.records import Records

if TYPE_CHECKING:
    from kernelbridge.cli.status_line import StatusLine  # loads typer
    from kernelbridge.config.schema import Config, Host  # loads pydantic

_LOG = logging.getLogger(__name__)

# How long an `ssh` that asks nobody may take to log in, and all of it.
UNASKED_SECONDS: Final = 10.0
WHOLE_SECONDS: Final = 30.0
# After that a terminal is about to be told what goes on.
SLOW_SECONDS: Final = 0.5
_LOCAL: Final = "local"
_LINE_LOCK = threading.Lock()


def finish(begun: Begun, environ: Mapping[str, str]) -> int | None:
    """Print what was found and return the exit code; None where the full way is to be gone, and nothing was printed."""
    records = Records(Path(begun.config.records_folder))
    try:
        with _StatusLine(begun):
            found = asyncio.run(_look(begun, records, is_drawn=not begun.wish.as_json and not is_plain_pipe(environ)))
        text = _text(found, as_json=begun.wish.as_json, is_plain=is_plain_pipe(environ))
    except Exception as exc:  # An edge: whatever it is, the full way meets it too, or does not.
        _LOG.debug("the full way is gone: %s", exc)
        begun.memory.note_failure()
        return None
    finally:
        begun.close()
    begun.memory.note_success()
    try:
        if text is None:
            _draw(found)
        else:
            print(text)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as exc:
        # rich makes the second of the first.
        if not isinstance(exc.__context__ if isinstance(exc, SystemExit) else exc, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT_CODE
    if begun.wish.command == "ps" and _has_offers(begun, records):
        _offer(begun, records)
    return 0


# -- asking


async def _look(begun: Begun, records: Records, *, is_drawn: bool) -> Found:
    """Ask the hosts. Raises BeyondLink, and whatever the full way would make a problem of."""
    if any(record.host == _LOCAL and record.config == begun.config.path for record in records.kernels()):
        raise BeyondLink("this machine's own engine is to be asked too")
    if is_drawn:
        threading.Thread(target=_load_tables, name="kernelbridge tables", daemon=True).start()
    hosts = _Hosts(begun)
    try:
        async with asyncio.timeout(WHOLE_SECONDS):
            found = await (_kernels if begun.wish.command == "ps" else _gpus)(begun, records, hosts)
            await hosts.check()
        return found
    finally:
        await hosts.aclose()


async def _kernels(begun: Begun, records: Records, hosts: _Hosts) -> Found:
    from kernelbridge.cli.listings import kernel_rows  # only `ps` needs these
    from kernelbridge.fleet.kernel_listing import KernelFinder

    finder = KernelFinder(records, hosts.engine, asyncio.sleep)
    listing = await finder.look(cast("Config", begun.config), begun.wish.hosts)
    _refuse_problems(listing.problems)
    return kernel_rows.found(listing)


async def _gpus(begun: Begun, records: Records, hosts: _Hosts) -> Found:
    from kernelbridge.cli.listings import gpu_rows  # only `gpus` needs these
    from kernelbridge.fleet import gpu_listing

    listing = await gpu_listing.look(cast("Config", begun.config), hosts.engine, begun.wish.hosts)
    _refuse_problems(listing.problems)
    return gpu_rows.found(listing)


def _refuse_problems(problems: Sequence[KernelBridgeError]) -> None:
    if problems:
        raise BeyondLink("there are problems to tell of")


class _Hosts:
    """The hosts that are asked; each is connected to when somebody asks for its engine."""

    def __init__(self, begun: Begun) -> None:
        self._begun = begun
        self._links = {
            name: ControlLink(name, master, folders=begun.config.hosts[name].path)
            for name, master in begun.masters.items()
        }
        # What has to come out well beside the listing; more are added by _open().
        self._checks = [asyncio.create_task(self._ask_facts(link)) for link in self._links.values()]
        self._ahead: list[asyncio.Task[object]] = []
        self._engines = {name: asyncio.create_task(self._open(link)) for name, link in self._links.items()}

    def __repr__(self) -> str:
        return f"<_Hosts {', '.join(self._links)}>"

    async def engine(self, host: Host) -> ListedEngine:
        """Return the engine that was found on a host the last time. Raises BeyondLink."""
        return await self._engines[host.name]

    async def check(self) -> None:
        """Return if all hosts say that these engines are the ones to take. Raises BeyondLink."""
        await asyncio.gather(*self._checks)

    async def aclose(self) -> None:
        """End what is under way; how it ends is nobody's any more."""
        tasks = [*self._engines.values(), *self._checks, *self._ahead]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_facts(self, link: ControlLink) -> None:
        async with asyncio.timeout(UNASKED_SECONDS):
            link.facts = await link.ask_facts()
        host = self._begun.config.hosts[link.name]
        usable = (socket.path for socket in link.facts.usable_sockets)
        if host.engine_socket != (host.socket or next(usable, None)):
            raise BeyondLink("another engine is to be asked")

    async def _open(self, link: ControlLink) -> ListedEngine:
        host = self._begun.config.hosts[link.name]
        engine = ListedEngine(link, host.engine_socket, api_version=host.api_version)
        async with asyncio.timeout(UNASKED_SECONDS):
            await link.wait_logged_in()
        if self._begun.wish.command == "gpus":
            # What fails of it fails again where it is waited for.
            self._ahead.append(asyncio.create_task(engine.gpus.look()))
        await engine.connect()
        self._checks.append(asyncio.create_task(engine.check_version()))
        return engine


def _load_tables() -> None:
    from kernelbridge.cli import tables  # noqa: F401 - loads rich


# -- telling


def _text(found: Found, *, as_json: bool, is_plain: bool) -> str | None:
    """Return what is printed; None where a table is to be drawn."""
    if as_json:
        return found.json()
    texts = [plain_table(*table) if is_plain else None for table in found.tables]
    if None in texts or not found.last_line.isascii():
        return None
    tables = "\n\n".join(filter(None, texts))
    return "\n".join(filter(None, [tables, found.last_line]))


def _draw(found: Found) -> None:
    from kernelbridge.cli import output, tables  # loads rich

    drawing = tables.console()
    for number, table in enumerate(found.tables):
        if number:
            output.say("")
        drawing.print(tables.table(*table))
    if found.last_line:
        output.say(found.last_line)


class _StatusLine:
    """Says on a terminal what is waited for, where that takes long; what draws it is loaded only then."""

    def __init__(self, begun: Begun) -> None:
        self._text = f"logging in to {', '.join(begun.masters)}"
        self._timer = threading.Timer(SLOW_SECONDS, self._start)
        self._timer.daemon = True
        self._line: StatusLine | None = None
        # Set at the end: a line that comes later is none.
        self._has_ended = False

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            self._timer.start()

    def _start(self) -> None:
        from kernelbridge.cli.status_line import StatusLine  # loads typer

        line = StatusLine(lambda: self._text)
        with _LINE_LOCK:
            if not self._has_ended:
                self._line = line
                line.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with _LINE_LOCK:
            self._has_ended = True
            if self._line is not None:
                self._line.stop()


# -- what VS Code is offered


def _has_offers(begun: Begun, records: Records) -> bool:
    """Whether there may be kernels that VS Code is to be offered, or was."""
    ours = (record for record in records.kernels() if record.config == begun.config.path)
    return Path(begun.config.offers_folder).is_dir() or any(
        records.holder_liveness(record) is not Liveness.ALIVE for record in ours
    )


def _offer(begun: Begun, records: Records) -> None:
    """Do what the full way does at its end; what was asked for is printed by then."""
    from kernelbridge.cli import output  # these load typer and pydantic
    from kernelbridge.config import load
    from kernelbridge.jupyter import running_kernelspecs

    try:
        running_kernelspecs.offer(records, load.load(Path(begun.config.path)))
    except SpecsUnwritable as error:
        output.complain(f"Warning: {error}")
    except KernelBridgeError as error:  # The config was changed just now.
        _LOG.debug("nothing is offered: %s", error)
