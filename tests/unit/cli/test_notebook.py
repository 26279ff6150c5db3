"""cli/notebook.py: what is a notebook, and what stands behind its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from kernelbridge.cli.notebook import NotebookOptions, is_notebook, options_of
from tests.unit.cli.conftest import Call


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["x.ipynb"], True),
        (["a b/x.ipynb", "-o", "y"], True),
        (["python", "x.ipynb"], False),
        (["x.ipynb.py"], False),
        (["x.py"], False),
        ([], False),
    ],
)
def test_a_notebook_is_known_by_the_first_words_ending(words: list[str], is_one: bool) -> None:
    assert is_notebook(words) == is_one


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], NotebookOptions(Path("x.ipynb"), ())),
        (["-o", "y.ipynb"], NotebookOptions(Path("y.ipynb"), ())),
        (["--output", "y"], NotebookOptions(Path("y"), ())),
        (["-p", "a", "1", "--parameter", "_b2", "-1"], NotebookOptions(Path("x.ipynb"), (("a", "1"), ("_b2", "-1")))),
        (["-p", "a", "-o", "-o", "-p"], NotebookOptions(Path("-p"), (("a", "-o"),))),
        (["-p", "a", ""], NotebookOptions(Path("x.ipynb"), (("a", ""),))),
    ],
)
def test_options_stand_behind_the_notebook(words: list[str], options: NotebookOptions) -> None:
    assert options_of(["x.ipynb", *words]) == options


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o"], "'-o'"),
        (["-p", "a"], "'-p'"),
        (["-p", "a b", "1"], "'a b' is no name"),
        (["-p", "a;import os", "1"], "is no name"),
        (["-p", "a\n", "1"], "is no name"),
        (["-p", "1a", "1"], "is no name"),
        (["-x"], "'-x'"),
        (["y.ipynb"], "'y.ipynb'"),
    ],
)
def test_what_is_no_option_is_told(words: list[str], told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        options_of(["x.ipynb", *words])


def test_a_notebook_that_is_not_there_is_told_before_anything_is_started(call: Call, tmp_path: Path) -> None:
    ended = call("run", "pytorch", str(tmp_path / "x.ipynb"))
    assert ended.code == 1
    assert ended.err.startswith(f"{tmp_path}/x.ipynb: No such file or directory.")
    assert call("run", "jax", str(tmp_path / "x.ipynb")).code == 12
