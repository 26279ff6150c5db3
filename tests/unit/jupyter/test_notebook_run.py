"""jupyter/notebook_run.py: parameters, files, and which cells are sent; a whole run is in tests/real/test_run.py."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernelbridge.errors import KernelBridgeError
from kernelbridge.jupyter import notebook_run
from kernelbridge.jupyter.notebook_run import _Ahead, read, save, value_of, with_parameters

V4: Any = nbformat.v4


def notebook(*cells: Any, **facts: Any) -> Any:
    return V4.new_notebook(cells=list(cells), **facts)


def code(text: str = "1", *tags: str) -> Any:
    return V4.new_code_cell(text, metadata={"tags": list(tags)} if tags else {})


def sources(made: Any) -> list[str]:
    return [cell.source for cell in made.cells]


# -- parameters


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("none", None),
        ("null", None),
        ("[1, 'a']", [1, "a"]),
        ("{'a': 1}", {"a": 1}),
        ("'quoted'", "quoted"),
        ("text", "text"),
        ("data/x y.csv", "data/x y.csv"),
        ("1.2.3", "1.2.3"),
        ("2024-01-02", "2024-01-02"),
        ("", ""),
        ("__import__('os')", "__import__('os')"),
        ("open", "open"),
        ("1e999", "1e999"),
        ("[1e999]", "[1e999]"),
        ("{[]: 1}", "{[]: 1}"),
        ("{1, []}", "{1, []}"),
        ("a\0b", "a\0b"),
        ("(" * 5000, "(" * 5000),
    ],
)
def test_a_parameter_is_what_it_looks_like_else_text(text: str, value: object) -> None:
    found = value_of(text)
    assert (type(found), found) == (type(value), value)


@given(st.text() | st.integers().map(str) | st.floats().map(str) | st.sampled_from("[]{}()'\",:1eE-").map(str))
@example("1e999j")
@example("{[]:1}")
@example("nan")
def test_any_text_is_a_parameter_that_its_cell_sets_and_that_runs_nothing_else(text: str) -> None:
    value = value_of(text)
    (cell,) = with_parameters(notebook(), [("x", value)]).cells
    (assignment,) = ast.parse(cell.source).body
    assert isinstance(assignment, ast.Assign)
    assert repr(ast.literal_eval(assignment.value)) == repr(value)


def test_parameters_are_a_cell_behind_the_one_that_is_tagged_so() -> None:
    made = with_parameters(notebook(code("a"), code("b", "parameters"), code("c")), [("x", 1), ("y", "z")])
    assert sources(made) == ["a", "b", "# Parameters\nx = 1\ny = 'z'", "c"]
    assert made.cells[2].metadata.tags == ["injected-parameters"]


def test_parameters_come_first_where_no_cell_is_tagged() -> None:
    assert sources(with_parameters(notebook(code("a")), [("x", 1)]))[1:] == ["a"]


def test_parameters_of_an_earlier_run_are_replaced() -> None:
    once = with_parameters(notebook(code("b", "parameters"), code("c")), [("x", 1)])
    assert sources(with_parameters(once, [("x", 2)])) == ["b", "# Parameters\nx = 2", "c"]
    first = with_parameters(notebook(code("c")), [("x", 1)])
    assert sources(with_parameters(first, [("x", 2)])) == ["# Parameters\nx = 2", "c"]


def test_without_parameters_a_notebook_is_as_it_was() -> None:
    made = notebook(code("b", "injected-parameters"))
    assert with_parameters(made, []) is made
    assert sources(made) == ["b"]


@pytest.mark.parametrize("minor", [2, 4, 5])
def test_a_notebook_with_parameters_is_valid_in_its_own_version(tmp_path: Path, minor: int) -> None:
    written = {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": []}
    (tmp_path / "x.ipynb").write_text(json.dumps(written), "utf-8")
    made = with_parameters(read(tmp_path / "x.ipynb"), [("x", 1)])
    save(made, tmp_path / "y.ipynb")
    kept = json.loads((tmp_path / "y.ipynb").read_text("utf-8"))
    assert kept["nbformat_minor"] == minor
    nbformat.validate(kept)


# -- files


def test_a_notebook_is_read_and_saved_as_it_was(tmp_path: Path) -> None:
    save(notebook(code("ä")), tmp_path / "x.ipynb")
    assert sources(read(tmp_path / "x.ipynb")) == ["ä"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.ipynb"]


def test_what_a_cell_printed_that_is_no_text_does_not_keep_it_from_being_saved(tmp_path: Path) -> None:
    save(notebook(code("'\ud800'")), tmp_path / "x.ipynb")
    assert sources(read(tmp_path / "x.ipynb")) == ["'?'"]


def test_an_old_notebook_is_read_as_a_new_one(tmp_path: Path) -> None:
    cell = {
        "cell_type": "code",
        "input": ["x"],
        "language": "python",
        "outputs": [],
        "metadata": {},
        "collapsed": False,
    }
    written = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": "x"}, "worksheets": [{"cells": [cell]}]}
    (tmp_path / "x.ipynb").write_text(json.dumps(written), "utf-8")
    found = read(tmp_path / "x.ipynb")
    assert (found.nbformat, sources(found)) == (4, ["x"])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"print(1)", b'{"nbformat": 99, "cells": []}']
)
def test_what_is_no_notebook_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    with pytest.raises(KernelBridgeError, match="is not a notebook"):
        read(path)


def test_a_notebook_that_is_not_there_or_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(KernelBridgeError, match="No such file or directory"):
        read(tmp_path / "x.ipynb")
    with pytest.raises(KernelBridgeError, match="Is a directory"):
        read(tmp_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(KernelBridgeError, match=r"cannot be written: No such file") as caught:
        save(notebook(), tmp_path / "no" / "x.ipynb")
    assert "-o" in caught.value.remedy


# -- what is sent ahead


class Kernel:
    """Takes what is sent to it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bool]] = []

    def execute(self, source: str, *, store_history: bool, stop_on_error: bool) -> str:
        assert store_history
        self.sent.append((source, stop_on_error))
        return f"request {len(self.sent)}"

    def kernel_info(self) -> str:
        return "info"


class Client(_Ahead):
    """Has the answer to its first question already."""

    async def async_wait_for_reply(self, msg_id: str, cell: Any = None) -> Any:
        assert msg_id == "info"
        return {"content": {"language_info": {"name": "python"}}}


CELLS = [
    (code("1"), True),
    (code(""), False),
    (code(" \n\t"), False),
    (V4.new_markdown_cell("text"), False),
    (V4.new_raw_cell("raw"), False),
    (code("2", "skip-execution"), False),
    (code("3", "raises-exception"), True),
    (code("4", "other"), True),
]


@pytest.mark.parametrize(("cell", "is_run"), CELLS)
def test_cells_are_run_as_nbclient_runs_them(cell: Any, is_run: bool) -> None:
    assert _Ahead(notebook(cell)).runs(cell) == is_run


def test_cells_that_are_not_run_do_not_count() -> None:
    cells = [V4.new_markdown_cell("# title"), code("1"), code(" "), code("2")]
    assert str(_Ahead(notebook(*cells)).progress(1)) == "running: cell 2 of 2"


async def test_all_cells_are_sent_at_once_and_asked_for_later_in_their_order() -> None:
    client = Client(notebook(*(cell for cell, _ in CELLS)))
    kernel: Any = Kernel()
    client.kc = kernel
    await client.send_all()
    assert kernel.sent == [("1", True), ("3", False), ("4", True)]
    assert client.nb.metadata.language_info == {"name": "python"}
    asked = [kernel.execute(cell.source, stop_on_error=True) for cell, is_run in CELLS if is_run]
    assert asked == ["request 1", "request 2", "request 3"]
    assert len(kernel.sent) == 3


def test_a_manager_needs_no_kernel_spec_that_is_installed(tmp_path: Path) -> None:
    made: Any = notebook_run._manager("torch", tmp_path / "k.toml")
    facts = made.kernel_spec.metadata["kernel_provisioner"]
    assert facts["provisioner_name"] == "kernelbridge"
    assert facts["config"] == {"environment": "torch", "config_path": str(tmp_path / "k.toml")}
    assert made.kernel_spec.interrupt_mode == "message"
