"""protocol/terminal.py: what a command beside a kernel is told and tells, as frames, and how its end is one number."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.frames import WireError
from kernelbridge.protocol.terminal import CommandEnd, CommandOrder, WindowSize, ended, pieces, window_of

ORDER = CommandOrder(["sh", "-c", "echo \udcff"], {"TERM": "xterm"}, "/work", WindowSize(80, 24))


def said(framed: bytes) -> tuple[int, Any]:
    """The kind of a frame, and the JSON in it."""
    (frame,) = frames.Decoder().feed(framed)
    return frame.kind, json.loads(bytes(frame.payload))


@pytest.mark.parametrize("order", [ORDER, CommandOrder([], {}, "", None)])
def test_an_order_is_understood_as_it_was_given_bytes_that_are_no_text_too(order: CommandOrder) -> None:
    kind, words = said(order.frame())
    assert kind == terminal.START
    assert CommandOrder.from_dict(words) == order


def test_what_an_order_does_not_say_is_empty() -> None:
    assert CommandOrder.from_dict({"argv": ["ls"]}) == CommandOrder(["ls"], {}, "", None)


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"argv": "ls"},
        {"argv": [1]},
        {"argv": ["a\0b"]},
        {"argv": ["ls"], "env": ["A"]},
        {"argv": ["ls"], "env": {"A": 1}},
        {"argv": ["ls"], "env": {"A": "\0"}},
        {"argv": ["ls"], "env": {"A\0": ""}},
        {"argv": ["ls"], "folder": 1},
        {"argv": ["ls"], "folder": None},
        {"argv": ["ls"], "window": [80, 24]},
        {"argv": ["ls"], "window": {"columns": 80}},
    ],
)
def test_an_order_that_could_not_be_run_is_a_wire_error(words: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        CommandOrder.from_dict(words)


def test_a_window_is_brought_within_what_a_terminal_may_have() -> None:
    assert WindowSize.from_dict({"columns": 1 << 40, "rows": 50}) == WindowSize(10_000, 50)
    assert WindowSize.from_dict(WindowSize(1, 2).to_dict()) == WindowSize(1, 2)
    assert window_of((0, 1 << 40)) == WindowSize(1, 10_000)
    with pytest.raises(WireError):
        WindowSize.from_dict({"columns": -1, "rows": 2})


@pytest.mark.parametrize(("wait_status", "number"), [(0, 0), (3, 3), (-9, 137), (-2, 130)])
def test_an_end_is_the_one_number_that_shells_make_of_it(wait_status: int, number: int) -> None:
    kind, words = said(ended(wait_status).frame())
    assert kind == terminal.EXIT
    assert CommandEnd.from_dict(words).exit_code == number


@pytest.mark.parametrize("words", [{}, {"code": "0"}, {"code": -1}, {"code": 0, "signal": -9}])
def test_an_end_that_no_process_has_is_a_wire_error(words: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        CommandEnd.from_dict(words)


def test_bytes_travel_in_pieces_and_none_in_no_frame() -> None:
    data = bytes(range(256)) * 513
    came = frames.Decoder().feed(b"".join(pieces(terminal.OUTPUT, data)))
    assert b"".join(bytes(frame.payload) for frame in came) == data
    assert {frame.kind for frame in came} == {terminal.OUTPUT}
    assert [len(frame.payload) for frame in came] == [65536, 65536, 256]
    assert pieces(terminal.INPUT, b"") == []


def test_no_two_kinds_of_frames_are_one_number() -> None:
    ours = [getattr(terminal, name) for name in ("START", "INPUT", "INPUT_END", "RESIZE", "SIGNAL")]
    ours += [getattr(terminal, name) for name in ("STARTED", "OUTPUT", "ERRORS", "EXIT", "FAILED", "KEEP_ALIVE")]
    assert len(set(ours)) == 11
