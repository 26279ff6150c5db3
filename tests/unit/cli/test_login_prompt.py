"""cli/login_prompt.py: a question in a terminal, whose other end is here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kernelbridge.cli import status_line
from kernelbridge.cli.login_prompt import LoginPrompt, TerminalUse, askers
from kernelbridge.hosts.transport.login.questions import LoginQuestion

if sys.platform == "win32":
    pytest.skip("Windows has other terminals", allow_module_level=True)

import pty
import termios

CODE = LoginQuestion(prompt="(ada@lab) Code: ", notes=("ada@lab: Welcome",))


@dataclass
class Made:
    """A terminal: its path, and the end at which somebody sits."""

    path: str
    end: int

    async def shown(self, words: str) -> str:
        """Wait until the terminal has shown this."""
        text = ""
        async with asyncio.timeout(10):
            while words not in text:
                if select.select([self.end], [], [], 0)[0]:
                    text += os.read(self.end, 4096).decode()
                await asyncio.sleep(0.01)
        return text

    def type(self, words: str) -> None:
        os.write(self.end, words.encode())

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.end)[3] & termios.ECHO)


@pytest.fixture
def terminal() -> Iterator[Made]:
    end, inner = pty.openpty()
    yield Made(os.ttyname(inner), end)
    os.close(inner)
    os.close(end)


@pytest.mark.parametrize("echo", [False, True])
async def test_a_line_is_the_answer_and_is_seen_only_where_it_may_be(terminal: Made, echo: bool) -> None:
    asking = asyncio.create_task(
        LoginPrompt(terminal=terminal.path).ask(LoginQuestion(prompt=CODE.prompt, notes=CODE.notes, echo=echo))
    )
    assert await terminal.shown("Code: ") == "ada@lab: Welcome\r\n(ada@lab) Code: "
    terminal.type("sesame ö\n")
    assert await asking == "sesame ö"
    assert ("sesame" in await terminal.shown("\n")) is echo
    assert terminal.echoes


async def test_an_end_of_file_is_no_answer(terminal: Made) -> None:
    asking = asyncio.create_task(LoginPrompt(terminal=terminal.path).ask(CODE))
    await terminal.shown("Code: ")
    terminal.type("\x04")
    assert await asking is None


async def test_a_question_that_is_given_up_leaves_the_terminal_as_it_was(terminal: Made) -> None:
    asking = asyncio.create_task(LoginPrompt(terminal=terminal.path).ask(CODE))
    await terminal.shown("Code: ")
    assert not terminal.echoes
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert terminal.echoes


async def test_hosts_that_ask_at_once_are_answered_one_by_one(terminal: Made) -> None:
    prompt = LoginPrompt(terminal=terminal.path)
    names = ("(ada@lab) Code: ", "(ada@two) Code: ")
    both = [asyncio.create_task(prompt.ask(LoginQuestion(prompt=name))) for name in names]
    assert names[1] not in await terminal.shown("Code: ")
    terminal.type("1\n")
    await terminal.shown(names[1])
    terminal.type("2\n")
    assert await asyncio.gather(*both) == ["1", "2"]


async def test_what_draws_there_is_away_meanwhile_and_who_has_the_keys_is_not_disturbed(
    terminal: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    use, drawn = TerminalUse(), []

    @contextlib.contextmanager
    def away() -> Iterator[None]:
        drawn.append("away")
        yield
        drawn.append("back")

    monkeypatch.setattr(status_line, "hidden", away)
    prompt = LoginPrompt(use, terminal=terminal.path)
    asking = asyncio.create_task(prompt.ask(CODE))
    await terminal.shown("Code: ")
    assert drawn == ["away"]
    terminal.type("1\n")
    assert await asking == "1"
    assert drawn == ["away", "back"]
    with use.taken():
        assert await prompt.ask(CODE) is None


async def test_without_a_terminal_nobody_is_asked() -> None:
    assert await LoginPrompt(terminal="/nowhere/tty").ask(CODE) is None


def test_a_program_comes_after_the_terminal_unless_it_is_preferred() -> None:
    assert [type(ask.__self__).__name__ for ask in askers({})] == ["LoginPrompt", "Askpass"]  # type: ignore[attr-defined]
    forced = askers({"SSH_ASKPASS_REQUIRE": "force"})
    assert [type(ask.__self__).__name__ for ask in forced] == ["Askpass"]  # type: ignore[attr-defined]
