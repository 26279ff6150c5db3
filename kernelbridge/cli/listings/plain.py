"""Write moments and tables as plain text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

# Where the output is no terminal nothing may be cut off to fit a line.
PIPE_COLUMNS = 500
# What a shell says of a program that SIGPIPE ended.
BROKEN_PIPE_EXIT_CODE = 141
_GAP = "  "
# With these rich takes a pipe for a terminal.
_WANT_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


def moment(at: datetime, *, now: datetime | None = None) -> str:
    """Write a moment in local time: the hour alone on the same day."""
    local, today = at.astimezone(), (now or datetime.now(UTC)).astimezone()
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%d %b %H:%M}"


class Found(NamedTuple):
    """What a listing shows: headings and rows of its tables, what stands below them, and all of it as JSON."""

    tables: Sequence[tuple[tuple[str, ...], list[tuple[str, ...]]]]
    last_line: str
    json: Callable[[], str]


def is_plain_pipe(environ: Mapping[str, str]) -> bool:
    """Whether what is printed goes to no terminal, and nobody wants it drawn as if it did."""
    return not sys.stdout.isatty() and not any(environ.get(name) for name in _WANT_TERMINAL)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    """Return rows under headings, aligned, as tables.table() draws them in a pipe; None where only that knows how."""
    lines = [columns, *rows]
    if not all(cell.isascii() and cell.isprintable() for line in lines for cell in line):
        return None
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sum(widths) + len(_GAP) * (len(widths) - 1) > PIPE_COLUMNS:
        return None
    return "\n".join(_GAP.join(map(str.ljust, line, widths)) for line in lines)
