"""channels/cell_questions.py: one question of ours in a cell, and which of the clients' answers are for it."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.session import Session

from kernelbridge.channels.cell_questions import AFTER_OUTPUT_SECONDS, CellQuestion, CellQuestions
from kernelbridge.channels.messages import Outgoing, Request, Signer, parse
from kernelbridge.protocol.frames import STDIN
from tests.made_requests import KEY, execute, request

CELL = execute(name="cell", allow_stdin=True)


class Asked:
    """The questions of one kernel, and what became of them."""

    def __init__(self) -> None:
        self.questions = CellQuestions()
        self.answers: list[str | None] = []

    def ask(self, cell: Request = CELL, **facts: Any) -> Outgoing:
        question = CellQuestion(prompt="(ada@lab) Code: ", answered=self.answers.append, **facts)
        self.questions.ask(question, cell, now=10)
        assert self.questions.due(10) == []
        [message] = self.questions.due(10 + AFTER_OUTPUT_SECONDS)
        assert self.questions.due(20) == []
        return message

    def takes(self, value: str, *, said_for: str = "", who: bytes = b"me") -> bool:
        return self.questions.takes(reply(value, said_for=said_for, who=who))


def reply(value: str, *, said_for: str = "", who: bytes = b"me") -> Request:
    """An answer, from a client that says which question it is for, or does not."""
    session = Session(key=KEY)
    parent = {"msg_id": said_for} if said_for else {}
    message = {"header": session.msg_header("input_reply"), "content": {"value": value}, "parent_header": parent}
    parts = session.serialize({**message, "metadata": {}}, ident=who)
    return parse(STDIN, parts, Signer(KEY))


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.mark.parametrize(
    ("cell", "can_ask"),
    [
        (CELL, True),
        (execute(allow_stdin=False), False),
        (execute(), False),
        (execute(allow_stdin=True, store_history=False), False),
        (execute(allow_stdin=True, silent=True), False),
        (request("complete_request", {"allow_stdin": True}), False),
    ],
)
def test_a_users_cell_can_ask_where_its_client_says_so(asked: Asked, cell: Request, can_ask: bool) -> None:
    assert asked.questions.can_ask(cell) is can_ask


@pytest.mark.parametrize("echo", [False, True])
def test_a_question_is_put_to_the_client_of_its_cell(asked: Asked, echo: bool) -> None:
    message = asked.ask(echo=echo)
    assert (message.channel, message.kind, message.parent) == (STDIN, "input_request", CELL)
    assert message.content == {"prompt": "(ada@lab) Code: ", "password": not echo}
    assert asked.questions.cell is CELL
    assert repr(asked.questions) == "<CellQuestions asked in cell>"


@pytest.mark.parametrize("says", [True, False])
def test_the_answer_is_ours_whether_or_not_its_client_says_what_it_is_for(asked: Asked, says: bool) -> None:
    message = asked.ask()
    assert asked.takes("sesame", said_for=message.id if says else "")
    assert asked.answers == ["sesame"]
    assert asked.questions.cell is None
    # The next one is the kernel's.
    assert not asked.takes("ada", said_for="another" if says else "")


def test_an_answer_to_the_kernel_is_the_kernels(asked: Asked) -> None:
    assert not asked.takes("ada")
    asked.ask()
    assert not asked.takes("ada", said_for="the kernel's")
    assert not asked.takes("ada", who=b"another")
    assert asked.answers == []


def test_a_cell_that_answers_the_kernel_is_not_asked_until_it_has(asked: Asked) -> None:
    asked.questions.kernel_asks(CELL.identities)
    assert not asked.questions.can_ask(CELL)
    assert not asked.takes("ada")
    assert asked.questions.can_ask(CELL)
    asked.questions.kernel_asks(CELL.identities)
    asked.questions.forget_kernel()
    assert asked.questions.can_ask(CELL)


@pytest.mark.parametrize("says", [True, False])
def test_what_comes_when_the_question_is_over_goes_to_nobody(asked: Asked, says: bool) -> None:
    message = asked.ask()
    asked.questions.cancel()
    assert asked.answers == [None]
    assert asked.takes("sesame", said_for=message.id if says else "")
    assert asked.answers == [None]


def test_a_late_answer_is_not_taken_for_the_next_question(asked: Asked) -> None:
    first = asked.ask()
    asked.questions.cancel()
    second = asked.ask()
    assert asked.takes("old", said_for=first.id)
    assert asked.takes("new", said_for=second.id)
    assert asked.answers == [None, "new"]


def test_a_question_that_is_put_aside_at_once_is_never_sent(asked: Asked) -> None:
    asked.questions.ask(CellQuestion(prompt="", answered=asked.answers.append), CELL, now=10)
    asked.questions.cancel()
    asked.questions.cancel()
    assert asked.questions.due(20) == []
    assert asked.questions.due_at is None
    assert asked.answers == [None]
    assert not asked.takes("ada")
