"""Say what a login is doing, and whom it waits for, to those who wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

# An agent signs in milliseconds, unless it asks for a touch, a PIN or a confirmation.
PATIENCE_SECONDS = 1.0
# The last stage: the login is done, and its shell runs the first command.
ASKS_FACTS = "asking the host what it has"


@dataclass(frozen=True, kw_only=True)
class LoginStage:
    """What a login is doing."""

    text: str
    # Whether it goes on only once the user has done something.
    needs_user: bool = False


Hearer = Callable[[LoginStage], None]
# Of the login that runs in this context, and of all that it starts.
_HEARER: ContextVar[Hearer | None] = ContextVar("_HEARER", default=None)


def report(text: str, *, needs_user: bool = False) -> None:
    """Say what the login of this context is doing, where somebody hears it."""
    hearer = _HEARER.get()
    if hearer is not None:
        hearer(LoginStage(text=text, needs_user=needs_user))


@contextlib.contextmanager
def waits_for_user(text: str, *, after_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Report that the user is waited for, if the block takes so long: what needs nobody is done in a moment."""
    timer = asyncio.get_running_loop().call_later(after_seconds, partial(report, text, needs_user=True))
    try:
        yield
    finally:
        timer.cancel()


class LoginStages:
    """The stages of the logins to one host, for those who wait."""

    def __init__(self) -> None:
        # Of the login under way; None where there is none.
        self._stage: LoginStage | None = None
        self._hearers: list[Hearer] = []
        # Whether the last login had to wait for the user: to unlock an agent, to touch a key.
        self.has_needed_user = False

    def __repr__(self) -> str:
        return f"<LoginStages {self._stage}, {len(self._hearers)} hear it>"

    @property
    def newest(self) -> LoginStage | None:
        """The stage of the login under way; None where there is none."""
        return self._stage

    def _tell(self, stage: LoginStage) -> None:
        self._stage = stage
        self.has_needed_user = self.has_needed_user or stage.needs_user
        for hearer in list(self._hearers):
            hearer(stage)

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Tell what the block reports."""
        token = _HEARER.set(self._tell)
        self.has_needed_user = False
        try:
            yield
        finally:
            _HEARER.reset(token)
            self._stage = None

    @contextlib.contextmanager
    def heard_by(self, hearer: Hearer) -> Iterator[None]:
        """Call `hearer` with the stage of a login under way, and with each one that comes during the block."""
        self._hearers.append(hearer)
        try:
            if self._stage is not None:
                hearer(self._stage)
            yield
        finally:
            self._hearers.remove(hearer)
