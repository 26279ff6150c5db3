"""What every command shares: where the config is, how a fleet is opened, and how to print. The commands: see app.py."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbridge import config
from kernelbridge.errors import ConfigInvalid, KernelBridgeError
from kernelbridge.fleet import Fleet

T = TypeVar("T")

# Where the output is no terminal nothing may be cut off to fit a line.
PIPE_COLUMNS = 500


class Session:
    """One call of the command line."""

    def __init__(self, *, open_fleet: Callable[[config.Config], Fleet], environ: Mapping[str, str]) -> None:
        self._open_fleet = open_fleet
        # The variables of this call.
        self.environ = environ
        # What --config and --debug say; set once, before the command runs.
        self.named_path: Path | None = None
        self.wants_traceback = False
        self.out = _console(stderr=False)
        self.err = _console(stderr=True)

    def __repr__(self) -> str:
        return f"<Session config={self.config_path}>"

    @property
    def config_path(self) -> Path:
        """The config file that this call is about."""
        return config.find_path(self.environ, self.named_path)

    def read_config(self) -> config.Config:
        """The config, checked."""
        return config.load(self.config_path)

    def warn_of(self, loaded: config.Config) -> None:
        """Say on stderr what is allowed and unwise in the config."""
        for sentence in config.warnings(loaded):
            self.complain(f"Warning: {sentence}")

    @contextmanager
    def fleet(self, loaded: config.Config) -> Iterator[Fleet]:
        """All kernels on all hosts of the config; every link is closed afterwards."""
        fleet = self._open_fleet(loaded)
        try:
            yield fleet
        finally:
            fleet.close()

    def wait(self, fleet: Fleet, work: Coroutine[Any, Any, T], *, seconds: float) -> T:
        """Return what the fleet's work brings, or say that it takes too long."""
        try:
            return fleet.run(work, seconds)
        except TimeoutError as error:
            sentence = f"No answer within {seconds:g} s."
            raise KernelBridgeError(sentence, "Try again; `kernelbridge ps` says which hosts answer.") from error

    def say(self, line: str) -> None:
        """Print a line of the answer."""
        self.out.print(Text(printable(line)), soft_wrap=True)

    def complain(self, line: str) -> None:
        """Print a line that is no part of the answer."""
        self.err.print(Text(printable(line)), soft_wrap=True)

    def complain_of(self, error: KernelBridgeError) -> None:
        """Print an error's sentence, what to do next, and what is done already; a config's problems line by line."""
        if isinstance(error, ConfigInvalid):
            for problem in error.problems:
                self.complain(f"{error.path}: {problem}")
        else:
            self.complain(error.sentence)
        if error.remedy:
            self.complain(error.remedy)
        for note in getattr(error, "__notes__", ()):
            self.complain(note)

    def show_table(self, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Print rows under headings, aligned."""
        self.out.print(table(columns, rows))


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Rows under headings, aligned."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def moment(at: datetime, *, now: datetime | None = None) -> str:
    """A moment in local time: the hour alone on the same day."""
    local, today = at.astimezone(), (now or datetime.now(UTC)).astimezone()
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%d %b %H:%M}"


def printable(text: str) -> str:
    """Labels and images come from other people's containers: no control character of theirs reaches the terminal."""
    return "".join(mark if mark.isprintable() else "?" for mark in text)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=PIPE_COLUMNS)
    return console
