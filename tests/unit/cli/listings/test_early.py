"""cli/listings/early.py: which calls may go the quick way, and that nothing begins where nothing is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelbridge.cli.listings.early import Wish, begin, wish_of


@pytest.mark.parametrize(
    ("line", "wish"),
    [
        ("ps", Wish("ps", False, ())),
        ("gpus", Wish("gpus", False, ())),
        ("ps --json", Wish("ps", True, ())),
        ("gpus --host a --json --host b", Wish("gpus", True, ("a", "b"))),
        ("", None),
        ("stop --all", None),
        ("--debug ps", None),
        ("--config x.toml ps", None),
        ("ps --help", None),
        ("ps --env torch", None),
        ("ps --host", None),
        ("ps --host --json", None),
        ("ps --host=a", None),
        ("gpus --watch", None),
        ("gpus 2", None),
    ],
)
def test_only_words_that_need_no_parser_go_the_quick_way(line: str, wish: Wish | None) -> None:
    assert wish_of(line.split(), {}) == wish


@pytest.mark.parametrize("name", ["COMP_WORDS", "_TYPER_COMPLETE_ARGS", "_KERNELBRIDGE_COMPLETE"])
def test_a_shell_that_completes_a_line_asks_no_host(name: str) -> None:
    assert wish_of(["ps"], {name: "kernelbridge ps"}) is None


def test_nothing_begins_where_nothing_is_remembered(tmp_path: Path) -> None:
    assert begin(["ps"], {"HOME": str(tmp_path), "PATH": str(tmp_path)}) is None
    assert begin(["ps"], {}) is None
    assert list(tmp_path.iterdir()) == []
