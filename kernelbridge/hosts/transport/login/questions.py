"""Ask a person what a login needs, a password or a code: those who wait for it, else whoever may be there.

An answer goes to the host, and is kept nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from kernelbridge.hosts.transport.login.stage import report
from kernelbridge.plain_text import printable

# Of what a host may say before it asks.
MOST_NOTES, NOTE_LENGTH = 40, 500


@dataclass(frozen=True, kw_only=True)
class LoginQuestion:
    """What a person is asked. Each line names who asks, so that no machine can pose as another."""

    prompt: str
    # Said before it.
    notes: tuple[str, ...] = ()
    # Whether the answer may be seen as it is typed.
    echo: bool = False

    @classmethod
    def of_host(cls, who: str, text: str, *, notes: Sequence[str] = (), echo: bool = False) -> LoginQuestion:
        """Make a question of a host's own words, of which the last line is the prompt, and of what it said before."""
        lines = [line for line in text.splitlines() if line.strip()] or [""]
        said = [*notes, *lines[:-1]][-MOST_NOTES:]
        marked = tuple(f"{who}: {printable(line[:NOTE_LENGTH]).rstrip()}" for line in said)
        return cls(prompt=f"({who}) {printable(lines[-1][:NOTE_LENGTH])}", notes=marked, echo=echo)


# Asks a person: returns the answer, or None where nobody can be asked there now, or nobody wants to answer.
Ask = Callable[[LoginQuestion], Coroutine[Any, Any, str | None]]


class LoginQuestions:
    """Those who may be asked for the logins to one host, one question at a time."""

    def __init__(self, others: Sequence[Ask] = ()) -> None:
        """`others` are asked where none of those who wait can be."""
        self._others = tuple(others)
        # Of those who wait for a login; the first one is asked first.
        self._waiting: list[Ask] = []
        self._turn = asyncio.Lock()
        # How long people were asked so far; and since when one is, monotonic.
        self._asked_seconds = 0.0
        self._asked_since: float | None = None

    def __repr__(self) -> str:
        state = "nothing asked" if self._asked_since is None else "asked"
        return f"<LoginQuestions {state}, {len(self._waiting)} wait>"

    @property
    def asked_seconds(self) -> float:
        """How long people were asked so far: no time limit is for that."""
        since = self._asked_since
        return self._asked_seconds + (0.0 if since is None else time.monotonic() - since)

    @contextlib.contextmanager
    def answered_by(self, ask: Ask) -> Iterator[None]:
        """Ask whoever waits for a login, while the block runs."""
        self._waiting.append(ask)
        try:
            yield
        finally:
            self._waiting.remove(ask)

    @contextlib.contextmanager
    def for_login(self) -> Iterator[None]:
        """Have the login that runs in the block ask here."""
        asking = LoginAsking(self)
        token = _ASKING.set(asking)
        try:
            yield
        finally:
            _ASKING.reset(token)
            asking.withdraw()

    async def ask(self, question: LoginQuestion) -> str | None:
        """Ask one after the other of those who may be asked; return None where nobody answers."""
        async with self._turn:
            report(f"waiting for an answer to `{question.prompt.strip()}`", needs_user=True)
            self._asked_since = time.monotonic()
            try:
                return await self._ask_all(question)
            finally:
                self._asked_seconds, self._asked_since = self.asked_seconds, None

    async def _ask_all(self, question: LoginQuestion) -> str | None:
        tried: list[Ask] = []
        # Somebody may begin to wait meanwhile.
        while (ask := next((one for one in [*self._waiting, *self._others] if one not in tried), None)) is not None:
            tried.append(ask)
            if (answer := await ask(question)) is not None:
                return answer
        return None


@dataclass(frozen=True, kw_only=True)
class _OpenQuestion:
    """A question that somebody is being asked."""

    question: LoginQuestion
    answer: asyncio.Task[str | None]


class LoginAsking:
    """What one login asks. A question outlives its connection: hosts hang up after two minutes, people take longer."""

    def __init__(self, of_host: LoginQuestions) -> None:
        # Where other logins to the same host ask too.
        self.of_host = of_host
        # Set by ask(); it stays where that is cancelled.
        self._asked: _OpenQuestion | None = None

    def __repr__(self) -> str:
        return f"<LoginAsking {'open' if self.is_open else 'nothing'}>"

    @property
    def is_open(self) -> bool:
        """Whether a question waits for its answer."""
        return self._asked is not None and not self._asked.answer.done()

    async def ask(self, question: LoginQuestion) -> str | None:
        """Return the answer; None where nobody could be asked, or nobody wanted to answer.

        A question that is open still is not asked again.
        """
        if self._asked is None or self._asked.question != question:
            self.withdraw()
            self._asked = _OpenQuestion(question=question, answer=asyncio.create_task(self.of_host.ask(question)))
        answer = await asyncio.shield(self._asked.answer)
        self._asked = None
        return answer

    async def wait_answered(self) -> bool:
        """Return once the open question has its answer, for whoever asks it next; False where it gets none."""
        assert self._asked is not None
        return await asyncio.shield(self._asked.answer) is not None

    def withdraw(self) -> None:
        """Ask no more what is being asked, and forget an answer that nobody took."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.answer.cancel()


# Of the login that runs in this context, and of all that it starts.
_ASKING: ContextVar[LoginAsking | None] = ContextVar("_ASKING", default=None)


def current_asking() -> LoginAsking:
    """Return where the login of this context asks; outside of one nobody answers."""
    return _ASKING.get() or LoginAsking(LoginQuestions())
