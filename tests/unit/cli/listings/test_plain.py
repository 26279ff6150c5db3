"""cli/listings/plain.py: moments as people say them; a table as rich draws it in a pipe, or none."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kernelbridge.cli import tables
from kernelbridge.cli.listings.plain import PIPE_COLUMNS, is_plain_pipe, moment, plain_table

CELLS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def drawn(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """The same by rich, as a pipe gets it."""
    text = io.StringIO()
    Console(file=text, width=PIPE_COLUMNS, highlight=False, markup=False, emoji=False).print(
        tables.table(columns, rows)
    )
    return text.getvalue()


@given(st.integers(1, 6).flatmap(lambda width: st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=5)))
def test_a_plain_table_is_what_rich_draws(rows: list[tuple[str, ...]]) -> None:
    columns = tuple(f"COLUMN {number}" for number in range(len(rows[0])))
    assert f"{plain_table(columns, rows)}\n" == drawn(columns, rows)


@pytest.mark.parametrize("cell", ["Zürich", "表", "two\nlines", "\x1b[31m", "x" * (PIPE_COLUMNS + 1)])
def test_what_only_rich_can_draw_is_left_to_it(cell: str) -> None:
    assert plain_table(("HOST",), [(cell,), ("lab",)]) is None


@pytest.mark.parametrize(
    ("environ", "is_plain"), [({}, True), ({"NO_COLOR": "1"}, True), ({"FORCE_COLOR": "1"}, False)]
)
def test_a_pipe_is_plain_unless_it_is_to_be_drawn_as_a_terminal(
    environ: dict[str, str], is_plain: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_plain_pipe(environ) is is_plain


def test_a_moment_of_today_is_its_hour_alone() -> None:
    local = NOW.astimezone()
    assert moment(NOW, now=NOW) == f"{local:%H:%M}"
    assert moment(NOW - timedelta(days=3), now=NOW) == f"{local - timedelta(days=3):%d %b %H:%M}"
