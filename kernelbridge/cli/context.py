"""Share between the commands where the config is, how a fleet is opened, and how to print."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from kernelbridge.cli import output
from kernelbridge.cli.listings.plain import is_plain_pipe, plain_table
from kernelbridge.config import load, schema
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from rich.console import Console

    from kernelbridge.fleet.fleet import Fleet
    from kernelbridge.hosts.progress import WorkProgress

T = TypeVar("T")
# What is being done, or what returns it.
Doing: TypeAlias = "str | Callable[[], str | WorkProgress]"
# How often a wait is looked up from, for a signal and for a reader that is gone.
LOOK_SECONDS = 0.2


class CliContext:
    """One call of the command line."""

    def __init__(
        self,
        *,
        open_fleet: Callable[[schema.Config, Sequence[schema.Host]], Fleet],
        environ: Mapping[str, str],
        named_path: Path | None = None,
        note: Callable[[KernelBridgeError], None] = lambda error: None,
    ) -> None:
        """`environ` are the variables of this call, `named_path` is what --config says; `note` logs an error."""
        self._note = note
        self._open_fleet = open_fleet
        self.environ = environ
        self._named_path = named_path

    def __repr__(self) -> str:
        return f"<CliContext config={self.config_path}>"

    @property
    def has_named_config(self) -> bool:
        """Whether --config says which config this call is about."""
        return self._named_path is not None

    @property
    def config_path(self) -> Path:
        """The config file that this call is about."""
        return load.find_path(self.environ, self._named_path)

    def read_config(self) -> schema.Config:
        """Read and check the config."""
        return load.load(self.config_path)

    def warn_of(self, loaded: schema.Config) -> None:
        """Say on stderr what is allowed and unwise in the config."""
        for sentence in load.warnings(loaded):
            self.complain(f"Warning: {sentence}")

    @contextmanager
    def fleet(self, loaded: schema.Config, *, asked: Iterable[schema.Host] = ()) -> Iterator[Fleet]:
        """Open the fleet of all hosts of the config, and close every link afterwards.

        Those that are `asked` in any case are logged in to meanwhile.
        """
        fleet = self._open_fleet(loaded, list(asked))
        try:
            yield fleet
        finally:
            fleet.close()

    def wait(
        self, fleet: Fleet, work: Coroutine[Any, Any, T], *, seconds: float, doing: Doing = "", is_shown: bool = True
    ) -> T:
        """Return what the fleet's work brings, or say that it takes too long.

        A terminal's stderr says meanwhile what is being done, unless not `is_shown`: `doing`, else which hosts are
        asked; and before that what the logins to them are doing.
        """
        from kernelbridge.cli.status_line import status_line  # Which only those need that ask a host.

        def ask() -> str | WorkProgress:
            logins = fleet.logins()
            if logins:
                return "; ".join(f"{host}: {stage}" for host, stage in logins.items())
            news = doing() if callable(doing) else doing
            return news or f"waiting for {', '.join(fleet.config.hosts) or 'this machine'}"

        try:
            with status_line(ask) if is_shown else nullcontext():
                return fleet.run(work, seconds)
        except TimeoutError as error:
            sentence = f"No answer within {seconds:g} s."
            raise KernelBridgeError(sentence, "Try again; `kernelbridge ps` says which hosts answer.") from error

    def wait_for_table(self, fleet: Fleet, work: Coroutine[Any, Any, T], *, seconds: float, is_shown: bool = True) -> T:
        """Do as wait(), for what is to be drawn: what draws it is loaded while distant hosts are asked."""
        if any(not host.is_local for host in fleet.config.hosts.values()):
            threading.Thread(target=_load_tables, name="kernelbridge tables", daemon=True).start()
        return self.wait(fleet, work, seconds=seconds, is_shown=is_shown)

    def say(self, line: str) -> None:
        """Print a line of the answer."""
        output.say(line)

    def complain(self, line: str) -> None:
        """Print a line that is no part of the answer."""
        output.complain(line)

    def complain_of(self, error: KernelBridgeError) -> None:
        """Print an error's sentence, what to do next, and what is done already; a config's problems line by line."""
        output.complain_of(error)
        self._note(error)

    @cached_property
    def out(self) -> Console:
        """Where tables are drawn."""
        from kernelbridge.cli.tables import console  # loads rich, which only tables need

        return console()

    def show_table(self, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Print rows under headings, aligned."""
        text = plain_table(columns, rows) if is_plain_pipe(self.environ) else None
        if text is not None:
            output.print_text(text)
            return
        from kernelbridge.cli.tables import table  # loads rich

        self.out.print(table(columns, rows))


def _load_tables() -> None:
    importlib.import_module("kernelbridge.cli.tables")  # loads rich


def result(future: Future[T], look: Callable[[], None] = lambda: None) -> T:
    """Return what a future brings; signals are heard meanwhile, on Windows too. What `look` raises ends the wait."""
    while True:
        with suppress(TimeoutError):
            return future.result(LOOK_SECONDS)
        if future.done():
            return future.result()
        look()


@contextmanager
def until_told_to_leave(raising: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Take a closed terminal and a SIGTERM for Ctrl-C, or raise another: what was begun is left in good order."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise raising

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), leave) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
