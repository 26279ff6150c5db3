"""The house style, where a test can hold it: size of files, names of files, docstrings, imports of packages."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Beyond it a file's docstring says why it is one thing.
MOST_LINES = 600
MOST_FUNCTION_LINES = 50
SHUNNED_NAMES = {"utils", "helpers", "common", "base", "manager", "misc", "util"}


def sources(*folders: str) -> list[Path]:
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "node_modules" not in path.parts and ".venv" not in path.parts
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


ALL = sources("kernelbridge", "tests", "scripts")
OURS = sources("kernelbridge")


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_a_long_file_says_why_it_is_one_thing(path: Path) -> None:
    text = path.read_text("utf-8")
    if len(text.splitlines()) > MOST_LINES:
        assert re.search(r"\bone (place|thing|table|file)\b", ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_no_function_is_longer_than_a_screen(path: Path) -> None:
    long = [
        f"{node.name}: {length}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_each_file_says_in_its_first_lines_which_question_it_answers(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.name == "__init__.py" and not text.strip():
        return
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no docstring"
    # errors.py: the docstring is a tree of all of them.
    assert len(docstring.splitlines()) <= 20


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_file_has_a_name_that_says_nothing(path: Path) -> None:
    assert path.stem not in SHUNNED_NAMES


@pytest.mark.parametrize("path", [path for path in OURS if path.name == "__init__.py"], ids=name_of)
def test_a_packages_own_file_imports_nothing(path: Path) -> None:
    body = ast.parse(path.read_text("utf-8")).body
    assert not [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", [path for path in OURS if "relay" not in path.parts], ids=name_of)
def test_no_environment_variable_is_read_while_importing(path: Path) -> None:
    for node in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If):
            assert "os.environ" not in ast.unparse(node)


def test_no_file_names_a_place_of_one_machine() -> None:
    """What is tracked, or would be: no home folder and no scratch folder of whoever wrote it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        timeout=30,
        check=True,
    )
    places = re.compile(rb"/work/(main|shared)|/tmp/venv")
    found = [
        name
        for name in listed.stdout.decode().split("\0")
        if name and (ROOT / name).is_file() and name != "tests/unit/test_style.py"
        if places.search((ROOT / name).read_bytes())
    ]
    assert found == []
