"""channels/interrupts.py: an interrupt is for one cell, is answered in time, and its cell says what becomes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelbridge.channels import interrupts
from kernelbridge.channels.interrupts import IN_ORDER_SECONDS, UNANSWERED_SECONDS, Interrupts
from kernelbridge.channels.messages import Outgoing, Request
from kernelbridge.protocol import frames, requests
from kernelbridge.protocol.frames import CONTROL, DELIMITER, ORDERED, QUICK, SHELL
from tests.made_requests import answered, execute, request, told

CELL = execute(name="c1")
LOST = "the link to lab is lost; the interrupt is sent when it is back"


def interrupt(name: str = "i1", *, channel: int = CONTROL) -> Request:
    return request("interrupt_request", name=name, channel=channel)


def passed(under_way: Interrupts, one: Request, cell: Request | None = CELL, *, now: float = 0.0) -> frames.Message:
    return frames.unpack(under_way.pass_on(one, cell, launch=3, now=now)[1])


def said(content: dict[str, Any], parent: Request = CELL) -> list[bytes]:
    """The parts of a message of the kernel's."""
    return [DELIMITER, b"", b"{}", json.dumps(dict(parent.header)).encode(), b"{}", json.dumps(content).encode()]


def texts(answers: list[Outgoing]) -> list[str]:
    return [str(one.content["text"]) for one in answers if one.kind == "stream"]


@pytest.mark.parametrize("channel", [SHELL, CONTROL])
def test_one_for_a_cell_overtakes_all_and_one_for_none_comes_before_what_is_asked_later(channel: int) -> None:
    under_way = Interrupts()
    one = interrupt(channel=channel)
    lane, packed = under_way.pass_on(one, CELL, launch=3, now=0.0)
    message = frames.unpack(packed)
    asked = requests.read(message.parts)
    assert asked is not None
    assert (lane, message.channel, message.launch, asked.cell) == (QUICK, CONTROL, 3, "c1")
    lane, packed = under_way.pass_on(interrupt("i2"), None, launch=3, now=0.0)
    asked = requests.read(frames.unpack(packed).parts)
    assert asked is not None
    assert (lane, asked.cell) == (ORDERED, None)


def test_the_kernels_reply_goes_to_the_channel_where_it_was_asked_without_our_own_word() -> None:
    under_way = Interrupts()
    one = interrupt(channel=SHELL)
    passed(under_way, one, None)
    assert under_way.replied("other", said({"status": "ok"}), now=0.0) == (None, [])
    request_answered, [answer] = under_way.replied("i1", said({"status": "ok", requests.SENT_KEY: True}), now=0.0)
    assert request_answered is one
    assert (answer.channel, answer.kind, answer.content) == (SHELL, "interrupt_reply", {"status": "ok"})
    assert not under_way
    assert under_way.replied("i1", said({"status": "ok"}), now=0.0) == (None, [])


def test_on_shell_an_interrupt_is_answered_after_its_cell_as_all_requests_are_in_their_order() -> None:
    under_way = Interrupts()
    one = interrupt(channel=SHELL)
    passed(under_way, one)
    assert under_way.replied("i1", said({"status": "ok"}), now=5.0) == (one, [])
    assert under_way.cell_replied("other") == []
    assert told(under_way.cell_replied("c1")) == ["interrupt_reply ok (i1)"]
    assert (bool(under_way), under_way.cell_replied("c1")) == (False, [])
    # The cell may be faster.
    passed(under_way, one)
    assert under_way.cell_replied("c1") == []
    assert told(under_way.replied("i1", said({"status": "ok"}), now=5.0)[1]) == ["interrupt_reply ok (i1)"]


@pytest.mark.parametrize("how", ["late", "postponed", "ended"])
def test_on_shell_an_interrupt_does_not_wait_for_long_for_a_cell_that_goes_on(how: str) -> None:
    under_way = Interrupts()
    passed(under_way, interrupt(channel=SHELL))
    under_way.replied("i1", said({"status": "ok"}), now=5.0)
    assert under_way.due_at == 5.0 + IN_ORDER_SECONDS
    assert under_way.late(4.9 + IN_ORDER_SECONDS) == []
    if how == "ended":
        assert told(under_way.end()) == answered("interrupt_reply", "i1")
    else:
        answers = under_way.late(5.0 + IN_ORDER_SECONDS) if how == "late" else under_way.postpone(LOST)
        assert told(answers) == ["interrupt_reply ok (i1)"]
    assert not under_way


def test_while_the_link_is_lost_a_client_has_its_reply_at_once_and_its_idle_when_it_was_carried_out() -> None:
    under_way = Interrupts()
    passed(under_way, interrupt())
    answers = under_way.postpone(LOST)
    assert told(answers) == ["status busy (i1)", "interrupt_reply ok (i1)", "stream (c1)"]
    assert texts(answers) == [f"[kernelbridge: {LOST}]\n"]
    # Pressed again: the line stands there already.
    passed(under_way, interrupt("i2"))
    assert told(under_way.postpone(LOST)) == ["status busy (i2)", "interrupt_reply ok (i2)"]
    assert under_way.postpone(LOST) == []
    for name in ("i1", "i2"):
        assert told(under_way.replied(name, said({"status": "ok"}), now=0.0)[1]) == [f"status idle ({name})"]
    assert under_way.heard("c1", said({"execution_state": "idle"})) == []


def test_one_without_a_cell_is_answered_and_says_nothing_anywhere() -> None:
    under_way = Interrupts()
    passed(under_way, interrupt(), None)
    assert told(under_way.postpone(LOST)) == ["status busy (i1)", "interrupt_reply ok (i1)"]


def test_one_that_is_not_answered_in_time_is_answered_once() -> None:
    under_way = Interrupts()
    assert under_way.due_at is None
    passed(under_way, interrupt(), now=5.0)
    assert under_way.due_at == 5.0 + UNANSWERED_SECONDS
    assert under_way.late(4.9 + UNANSWERED_SECONDS) == []
    assert told(under_way.late(5.0 + UNANSWERED_SECONDS)) == [
        "status busy (i1)",
        "interrupt_reply ok (i1)",
        "stream (c1)",
    ]
    assert (under_way.due_at, under_way.late(100.0), under_way.postpone(LOST)) == (None, [], [])


TOO_LATE = ["[kernelbridge: this cell had ended before the interrupt could be sent]\n"]


@pytest.mark.parametrize(
    ("reply", "ends_with", "expected"),
    [
        # What the relay says before the cell ends: interrupted; not running; nothing yet. An old one has no word.
        ({"status": "ok", requests.SENT_KEY: True}, {"execution_state": "idle"}, []),
        ({"status": "ok", requests.SENT_KEY: False}, {"execution_state": "idle"}, TOO_LATE),
        (None, {"execution_state": "idle"}, TOO_LATE),
        ({"status": "ok"}, {"execution_state": "idle"}, []),
        ({"status": "aborted"}, {"execution_state": "idle"}, TOO_LATE),
        (None, {"ename": "KeyboardInterrupt"}, []),
        ({"status": "ok", requests.SENT_KEY: False}, {"ename": "KeyboardInterrupt"}, []),
        (None, {"ename": "ValueError"}, TOO_LATE),
        (None, {"execution_state": "busy"}, TOO_LATE),
    ],
)
def test_a_cell_that_ended_by_itself_says_that_the_interrupt_came_too_late(
    reply: dict[str, Any] | None, ends_with: dict[str, Any], expected: list[str]
) -> None:
    under_way = Interrupts()
    passed(under_way, interrupt())
    under_way.postpone(LOST)
    if reply is not None:
        under_way.replied("i1", said(reply), now=0.0)
    assert under_way.heard("other", said({"execution_state": "idle"})) == []
    heard = under_way.heard("c1", said(ends_with)) + under_way.heard("c1", said({"execution_state": "idle"}))
    assert texts(heard) == expected
    assert [one.parent.id for one in heard if one.parent] == ["c1"] * len(expected)
    assert under_way.heard("c1", said({"execution_state": "idle"})) == []


def test_what_a_kernel_says_that_is_no_table_is_no_end() -> None:
    under_way = Interrupts()
    passed(under_way, interrupt())
    under_way.postpone(LOST)
    for content in (b"no json", b"[]"):
        assert under_way.heard("c1", [*said({})[:-1], content]) == []
    assert told(under_way.replied("i1", [*said({})[:-1], b"[]"], now=0.0)[1]) == ["status idle (i1)"]


def test_when_the_kernel_is_gone_all_is_answered_and_nothing_waits() -> None:
    under_way = Interrupts()
    passed(under_way, interrupt())
    under_way.postpone(LOST)
    passed(under_way, interrupt("i2"), None)
    assert told(under_way.end()) == ["status idle (i1)", *answered("interrupt_reply", "i2")]
    assert (bool(under_way), under_way.end(), repr(under_way)) == (False, [], "<Interrupts 0 under way>")


def test_an_interrupt_of_our_own_is_passed_on_like_any_and_answered_to_nobody() -> None:
    under_way = Interrupts()
    one = interrupts.own("i9")
    asked = requests.read(list(passed(under_way, one).parts))
    assert asked is not None
    assert (one.id, asked.kind, asked.cell, asked.identities) == ("i9", "interrupt_request", "c1", [])
    assert told(under_way.postpone(LOST)) == ["stream (c1)"]
    assert under_way.replied("i9", said({"status": "ok"}), now=0.0) == (one, [])
    for is_postponed in (True, False):
        passed(under_way, interrupts.own("i10"))
        under_way.postpone(LOST) if is_postponed else None
        assert under_way.end() == []
    assert interrupts.done(one) == []
