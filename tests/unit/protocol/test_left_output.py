"""protocol/left_output.py: output of cells that nobody could show, as another cell or a terminal shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelbridge.protocol.frames import DELIMITER
from kernelbridge.protocol.left_output import MOST_CELLS, CellTitle, CellTitles, LeftOutput, plain

TITLE = "[kernelbridge: output of %s, which no client was there to show]\n"


def message(kind: str, content: Any, *, request: str = "m1") -> list[bytes]:
    parts: tuple[Any, ...] = ({"msg_type": kind}, {"msg_id": request}, {}, content)
    return [b"topic", DELIMITER, b"", *(json.dumps(part).encode() for part in parts)]


def ran(code: str, *, count: int = 3, request: str = "m1") -> list[bytes]:
    return message("execute_input", {"code": code, "execution_count": count}, request=request)


def printed(text: str, *, name: str = "stdout", request: str = "m1") -> list[bytes]:
    return message("stream", {"name": name, "text": text}, request=request)


def flushed(*messages: list[bytes], left: LeftOutput | None = None) -> list[tuple[str, Any]]:
    left = left or LeftOutput(CellTitles())
    for parts in messages:
        left.add(parts)
    return [(one.kind, one.content) for one in left.flush()]


def stream(text: str, name: str = "stdout") -> tuple[str, Any]:
    return "stream", {"name": name, "text": text}


def titled(text: str) -> tuple[str, Any]:
    return stream(TITLE % text, "stderr")


@pytest.mark.parametrize(
    ("code", "title"),
    [
        ("for n in range(10):\n    print(n)", "cell [3]: for n in range(10):"),
        ("\n\n  x = 1\n", "cell [3]: x = 1"),
        ("y" * 100, "cell [3]: " + "y" * 57 + "..."),
        ("", "cell [3]"),
    ],
)
def test_a_cell_is_known_by_its_number_and_first_line(code: str, title: str) -> None:
    assert flushed(ran(code), printed("out\n")) == [titled(title), stream("out\n")]


def test_a_title_stands_wherever_another_cell_begins() -> None:
    left = LeftOutput(CellTitles())
    left.titles.add({"m2": CellTitle(4, "b()")})
    assert flushed(printed("1"), printed("2"), printed("3", request="m2"), left=left) == [
        titled("a cell"),
        stream("1"),
        stream("2"),
        titled("cell [4]: b()"),
        stream("3"),
    ]
    # Nor again for what comes later of the same one.
    assert flushed(printed("4", request="m2"), left=left) == [stream("4")]
    left.add_text("m2", "dropped\n")
    assert [one.content["text"] for one in left.flush()] == ["dropped\n"]


def test_an_error_is_text_so_that_it_does_not_fail_the_cell_that_shows_it() -> None:
    error = {"ename": "ZeroDivisionError", "evalue": "by zero", "traceback": ["\x1b[31mTraceback", "  1 / 0"]}
    assert flushed(message("error", error))[1:] == [stream("\x1b[31mTraceback\n  1 / 0\n", "stderr")]
    assert flushed(message("error", {**error, "traceback": []}))[1:] == [
        stream("ZeroDivisionError: by zero\n", "stderr")
    ]


def test_pictures_and_results_are_displayed_and_widgets_are_their_text() -> None:
    picture = {"data": {"text/plain": "<Figure>", "image/png": "iVBO"}, "metadata": {"a": 1}}
    whole = {**picture, "transient": {}}
    result = {"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 3}
    widget = {"data": {"text/plain": "IntSlider()", "application/vnd.jupyter.widget-view+json": {}}, "metadata": {}}
    assert flushed(
        message("display_data", picture),
        message("execute_result", result),
        message("display_data", widget),
        message("update_display_data", {**picture, "transient": {"display_id": "d"}}),
    )[1:] == [
        ("display_data", whole),
        ("display_data", {"data": {"text/plain": "42"}, "metadata": {}, "transient": {}}),
        ("display_data", {"data": {"text/plain": "IntSlider()"}, "metadata": {}, "transient": {}}),
        ("update_display_data", {**picture, "transient": {"display_id": "d"}}),
    ]


def test_what_a_cell_has_cleared_is_gone_and_nothing_else() -> None:
    cleared = message("clear_output", {"wait": True})
    assert flushed(printed("1"), printed("2", request="m2"), cleared, printed("3")) == [
        titled("a cell"),
        stream("2"),
        titled("a cell"),
        stream("3"),
    ]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"topic"],
        [b"topic", DELIMITER, b"", b"no json", b"{}", b"{}", b"{}"],
        [b"topic", DELIMITER, b"", b"[]", b"[]", b"[]", b"[]"],
        message("stream", {"name": "stdout"}),
        message("display_data", {}),
        message("comm_msg", {"comm_id": "c", "data": {}}),
        message("status", {"execution_state": "idle"}),
        ran("x")[:4],
    ],
)
def test_what_shows_nothing_or_cannot_be_read_is_left_out(parts: list[bytes]) -> None:
    assert flushed(parts, printed("out")) == [titled("a cell"), stream("out")]
    CellTitles().note(parts)


def test_only_the_newest_cells_have_titles() -> None:
    titles = CellTitles()
    for number in range(MOST_CELLS + 1):
        titles.note(ran("x", count=number, request=f"m{number}"))
    assert (titles.of("m0"), titles.of("m1")) == (CellTitle(), CellTitle(1, "x"))
    again = CellTitles()
    again.add({request: CellTitle(*title) for request, title in json.loads(json.dumps(titles.to_dict())).items()})
    assert again.to_dict() == titles.to_dict()
    assert repr(again) == f"<CellTitles of {MOST_CELLS}>"


def test_a_terminal_shows_the_text_and_names_the_rest() -> None:
    left = LeftOutput(CellTitles())
    for parts in (
        printed("no end of line"),
        message("display_data", {"data": {"text/plain": "<Figure>", "image/png": "x", "text/html": "x"}}),
        message("display_data", {"data": {"image/svg+xml": "x"}}),
    ):
        left.add(parts)
    shown = (TITLE % "a cell") + "no end of line\n<Figure> (image/png)\nsomething to display (image/svg+xml)\n"
    assert plain(left.flush()) == shown
    assert plain([]) == ""


def test_what_a_command_wrote_as_bytes_is_shown_behind_the_text() -> None:
    parts = [*printed("text "), b"bytes \xff", b" and more\n"]
    assert flushed(parts)[1:] == [stream("text bytes \N{REPLACEMENT CHARACTER} and more\n")]
