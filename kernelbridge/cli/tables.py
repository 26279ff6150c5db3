"""Draw tables with rich, which is loaded for nothing else."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kernelbridge.cli.listings.plain import PIPE_COLUMNS
from kernelbridge.plain_text import printable


def console(*, of_stderr: bool = False) -> Console:
    """Return stdout, or stderr, as wide as it is."""
    made = Console(highlight=False, markup=False, emoji=False, stderr=of_stderr)
    if made.is_terminal:
        return made
    return Console(highlight=False, markup=False, emoji=False, stderr=of_stderr, width=PIPE_COLUMNS)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Return rows under headings, aligned."""
    made = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made
