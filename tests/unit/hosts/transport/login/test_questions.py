"""hosts/transport/login/questions.py: who is asked what, once, and that no machine can pose as another."""

from __future__ import annotations

import asyncio

from kernelbridge.hosts.transport.login.questions import LoginAsking, LoginQuestion, LoginQuestions, current_asking

CODE = LoginQuestion(prompt="(ada@lab) Code: ")
OTHER = LoginQuestion(prompt="(ada@lab) Other: ")


class Person:
    """Somebody who can be asked: answers when the test says so."""

    def __init__(self, answer: str | None = None) -> None:
        self.asked: list[LoginQuestion] = []
        self.given: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        if answer is not None:
            self.given.set_result(answer)

    async def ask(self, question: LoginQuestion) -> str | None:
        self.asked.append(question)
        return await asyncio.shield(self.given)


def test_each_line_of_a_hosts_words_names_the_host_and_none_moves_the_cursor() -> None:
    words = "Duo login\r\n\r\n 1. Push\n\x1b[2Jroot@other: give it\nPasscode: "
    assert LoginQuestion.of_host("ada@lab", words, notes=["Welcome"], echo=True) == LoginQuestion(
        prompt="(ada@lab) Passcode: ",
        notes=("ada@lab: Welcome", "ada@lab: Duo login", "ada@lab:  1. Push", "ada@lab: ?[2Jroot@other: give it"),
        echo=True,
    )
    assert LoginQuestion.of_host("ada@lab", "") == LoginQuestion(prompt="(ada@lab) ")
    flood = LoginQuestion.of_host("ada@lab", "\n".join("x" * 10_000 for _ in range(1000)))
    assert len(flood.notes) == 40
    assert max(map(len, (flood.prompt, *flood.notes))) < 600


async def test_those_who_wait_are_asked_first_and_the_next_where_one_does_not_answer() -> None:
    last, first, second = Person("3"), Person(None), Person("2")
    first.given.set_result(None)
    questions = LoginQuestions([last.ask])
    assert await questions.ask(CODE) == "3"
    with questions.answered_by(first.ask), questions.answered_by(second.ask):
        assert await questions.ask(CODE) == "2"
    assert (len(first.asked), len(second.asked), len(last.asked)) == (1, 1, 1)
    assert await LoginQuestions().ask(CODE) is None
    assert repr(questions) == "<LoginQuestions nothing asked, 0 wait>"


async def test_who_comes_while_another_is_asked_is_asked_next() -> None:
    questions, first, second = LoginQuestions(), Person(), Person("2")
    with questions.answered_by(first.ask):
        asking = asyncio.create_task(questions.ask(CODE))
        await asyncio.sleep(0)
        with questions.answered_by(second.ask):
            first.given.set_result(None)
            assert await asking == "2"


async def test_logins_to_one_host_ask_one_after_the_other() -> None:
    person = Person()
    questions = LoginQuestions([person.ask])
    both = [asyncio.create_task(questions.ask(question)) for question in (CODE, OTHER)]
    await asyncio.sleep(0.01)
    assert person.asked == [CODE]
    person.given.set_result("1")
    assert await asyncio.gather(*both) == ["1", "1"]
    assert person.asked == [CODE, OTHER]


async def test_a_question_outlives_the_connection_and_its_answer_is_for_the_next_one_that_asks_the_same() -> None:
    person = Person()
    asking = LoginAsking(LoginQuestions([person.ask]))
    connection = asyncio.create_task(asking.ask(CODE))
    await asyncio.sleep(0.01)
    connection.cancel()
    await asyncio.wait([connection])
    assert asking.is_open
    waiting = asyncio.create_task(asking.wait_answered())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    person.given.set_result("1")
    assert await waiting
    assert await asking.ask(CODE) == "1"
    # It is used once.
    assert not asking.is_open
    assert await asking.ask(CODE) == "1"
    assert person.asked == [CODE, CODE]


async def test_what_nobody_took_answers_no_other_question() -> None:
    person = Person()
    asking = LoginAsking(LoginQuestions([person.ask]))
    connection = asyncio.create_task(asking.ask(CODE))
    await asyncio.sleep(0.01)
    connection.cancel()
    await asyncio.wait([connection])
    asking.withdraw()
    assert not asking.is_open
    person.given.set_result("2")
    assert await asking.ask(OTHER) == "2"
    assert person.asked == [CODE, OTHER]


async def test_a_login_asks_where_its_host_says_and_outside_of_one_nobody_is_asked() -> None:
    person = Person("1")
    questions = LoginQuestions([person.ask])
    with questions.for_login():
        assert current_asking().of_host is questions
        assert await asyncio.create_task(current_asking().ask(CODE)) == "1"
    assert await current_asking().ask(CODE) is None


async def test_the_time_in_which_somebody_is_asked_is_counted() -> None:
    person = Person()
    questions = LoginQuestions([person.ask])
    assert questions.asked_seconds == 0
    asking = asyncio.create_task(questions.ask(CODE))
    await asyncio.sleep(0.05)
    during = questions.asked_seconds
    assert during > 0
    person.given.set_result("1")
    await asking
    after = questions.asked_seconds
    assert after >= during
    await asyncio.sleep(0.02)
    assert questions.asked_seconds == after
