"""cli/tables.py: rows under headings, never cut in a pipe, and nobody's text read as markup or control."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from kernelbridge.cli import tables
from kernelbridge.cli.listings.plain import PIPE_COLUMNS

ROWS = [("lab", "idle"), ("a-longer-name", "busy")]


def drawn(
    rows: Sequence[tuple[str, ...]], *, columns: tuple[str, ...] = ("HOST", "STATE"), width: int = 80
) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(tables.table(columns, list(rows)))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_rows_stand_aligned_under_their_headings_without_lines_around() -> None:
    assert drawn(ROWS) == ["HOST           STATE", "lab            idle", "a-longer-name  busy"]


def test_without_rows_the_headings_stand_alone() -> None:
    assert drawn([]) == ["HOST  STATE"]


def test_a_cell_is_text_and_neither_markup_nor_control() -> None:
    assert drawn([("[red]x[/red]", "\x1b[31m:smile:")])[1].split() == ["[red]x[/red]", "?[31m:smile:"]


def test_a_row_with_a_cell_that_is_missing_is_drawn_all_the_same() -> None:
    assert drawn([("lab", "")])[1] == "lab"


def test_in_a_pipe_no_row_is_cut_to_fit_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 300
    tables.console().print(tables.table(("HOST", "STATE"), [(name, "idle")]))
    head, row = capsys.readouterr().out.splitlines()
    assert row.split() == [name, "idle"]
    assert head.split() == ["HOST", "STATE"]


def test_in_a_terminal_a_table_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    assert tables.console().width == 40
    monkeypatch.delenv("FORCE_COLOR")
    assert tables.console().width == PIPE_COLUMNS
