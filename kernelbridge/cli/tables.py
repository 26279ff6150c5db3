"""Draw tables with rich, which is loaded for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from kernelbridge.plain_text import printable

# Where the output is no terminal nothing may be cut off to fit a line.
PIPE_COLUMNS = 500


def console(*, of_stderr: bool = False) -> Console:
    """Return stdout, or stderr, as wide as it is."""
    made = Console(highlight=False, markup=False, emoji=False, stderr=of_stderr)
    if made.is_terminal:
        return made
    return Console(highlight=False, markup=False, emoji=False, stderr=of_stderr, width=PIPE_COLUMNS)


@contextmanager
def without(status: Status) -> Iterator[None]:
    """Take a line of progress away while the block runs."""
    status.stop()
    try:
        yield
    finally:
        status.start()


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Return rows under headings, aligned."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made
