"""The table of all suites: on the terminal, and as a page of docs/."""

from __future__ import annotations

import datetime
import os
import platform
import textwrap
from collections import Counter
from collections.abc import Sequence

from tests.foreign.results import AIM, Outcome, Result, Row

HEADS = ("suite", "version", "date", "passed", "failed", "skipped", "does not apply", "% of what applies")
WIDTH = 120
# What a table's cell may hold of a sentence of theirs.
_MOST = 160


def cells(row: Row) -> tuple[str, ...]:
    """A suite's row, in the order of HEADS."""
    apart = row.count("left out") + row.count("alike")
    numbers = (row.count("passed"), row.count("failed"), row.count("skipped"), apart)
    applies = row.count("passed") + row.count("failed")
    return (row.suite, row.version, row.date, *map(str, numbers), _share(row.share) if applies else "-")


def _share(share: float) -> str:
    # 100 is said of all alone.
    return "100" if share == 100 else f"{min(share, 99.9):.1f}"


def whole(rows: Sequence[Row]) -> Row:
    """All suites as one."""
    results = tuple(result for row in rows for result in row.results)
    return Row(suite="all", version="", results=results, misses={}, seconds=sum(row.seconds for row in rows))


def printed(rows: Sequence[Row], apart: Sequence[tuple[str, str]]) -> str:
    """For the terminal. `apart`: suites that could not run, each with why."""
    lines = [cells(row) for row in [*rows, whole(rows)]]
    widths = [max(len(line[column]) for line in [HEADS, *lines]) for column in range(len(HEADS))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [HEADS, *lines]]
    for row in rows:
        text += ["", f"{row.suite}, {row.seconds:.0f} s"]
        text += [f"  failed   {one.test}: {_why(row, one)}" for one in _failed(row)]
        text += [f"  {count:4} {_words(kind)}: {reason}" for kind, reason, count in _reasons(row)]
        text += [f"  mended   {pattern}: no longer fails; remove it from suites.py" for pattern in row.mended]
    text += [f"\n{name} did not run: {why}" for name, why in apart]
    return "\n".join(line.rstrip() for line in text)


def _why(row: Row, result: Result) -> str:
    return row.explanation(result) or f"NOT EXPLAINED: {_cut(result.reason)}"


def _failed(row: Row) -> list[Result]:
    return [result for result in row.results if result.outcome == "failed"]


def _reasons(row: Row) -> list[tuple[Outcome, str, int]]:
    kinds: tuple[Outcome, ...] = ("skipped", "left out")
    found = [(kind, reason, count) for kind in kinds for reason, count in row.reasons(kind)]
    alike = row.count("alike")
    if alike:
        found.append(("alike", "", alike))
    return found


def _words(kind: Outcome) -> str:
    return {"skipped": "skipped", "left out": "left out", "alike": "fail with a local kernel too"}.get(kind, kind)


def page(rows: Sequence[Row], apart: Sequence[tuple[str, str]], *, release: str) -> str:
    """The page of docs/."""
    every = whole(rows)
    minutes = every.seconds / 60
    about = (
        f"Written by `scripts/foreign` on {datetime.date.today().isoformat()}: kernelbridge {release}, Python "
        f"{platform.python_version()}, {os.cpu_count()} processors, {minutes:.0f} minutes. Other projects test "
        "Jupyter's kernels too. Their tests run here as they are, and what they know as `python3` is a kernel of ours, "
        "in a container, over ssh."
    )
    how = (
        "**Passed** are tests that started at least one kernel of ours. **Does not apply** is what starts none, what "
        "is about something else, and what fails with a kernel of this machine too. A test that failed ran once more; "
        f"{sum(one.is_second_try for one in every.results)} passed then. The aim is {AIM:g} % of what applies."
    )
    lines = ["# Other people's tests", "", textwrap.fill(about, WIDTH), "", textwrap.fill(how, WIDTH), ""]
    lines += ["| " + " | ".join(HEADS) + " |", "|---|---|---|" + "--:|" * (len(HEADS) - 3)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in [*rows, every]]
    lines += ["", "## What fails, and why", ""]
    missed = [(row, one) for row in rows for one in _failed(row)]
    explained = Counter(
        (row.suite, row.explanation(one) or f"not explained: {_cut(one.reason)}") for row, one in missed
    )
    lines += [_bullet(f"{suite}, {count}: {why}") for (suite, why), count in explained.items()] or ["Nothing."]
    lines += ["", "## What was not run, and why", ""]
    lines += [
        _bullet(f"{row.suite}, {count} {_words(kind)}{': ' + _cut(reason) if reason else ''}")
        for row in rows
        for kind, reason, count in _reasons(row)
    ]
    lines += [_bullet(f"{name}: {why}") for name, why in apart]
    return "\n".join([*lines, ""])


def _bullet(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


def _cut(text: str) -> str:
    one_line = " ".join(text.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'").split())
    return one_line if len(one_line) <= _MOST else f"{one_line[:_MOST]} ..."
