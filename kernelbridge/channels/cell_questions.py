"""Ask the user in a cell, as `input()` does: the question is ours, and so is its answer, which no kernel gets. Pure.

A client answers on stdin; some say which question it is for, others do not. What it still answers to a question of ours
that is over is dropped.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from kernelbridge.channels.messages import Outgoing, Request
from kernelbridge.protocol.frames import STDIN

Client = tuple[bytes, ...]
# So much later than what is printed with it: a page that clears its output clears the field for the answer with it.
AFTER_OUTPUT_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class CellQuestion:
    """A question that a cell asks; `answered` gets what was typed, or None where it was put aside."""

    prompt: str
    # Printed before it, line by line.
    notes: tuple[str, ...] = ()
    # Whether the answer may be seen as it is typed.
    echo: bool = False
    answered: Callable[[str | None], None]


@dataclass(frozen=True, kw_only=True)
class _AskedCell:
    question: CellQuestion
    cell: Request
    id: str


class CellQuestions:
    """The one question of ours that a cell of this kernel asks at a time."""

    def __init__(self) -> None:
        # Set by ask(), cleared by its answer and by cancel().
        self._asked: _AskedCell | None = None
        # When its message is due; None where it is sent.
        self.due_at: float | None = None
        # By client, our questions that it has not answered: it may yet do so when they are over.
        self._unanswered: dict[Client, set[str]] = {}
        # Clients that the kernel itself waits for.
        self._kernels: set[Client] = set()

    def __repr__(self) -> str:
        return f"<CellQuestions {'asked in ' + self._asked.cell.id if self._asked else 'none'}>"

    @property
    def cell(self) -> Request | None:
        """The cell that asks; None while none does."""
        return self._asked.cell if self._asked is not None else None

    def can_ask(self, cell: Request) -> bool:
        """Whether a cell can ask, now or after another question: its client has a user, and the kernel asks nothing.

        nbclient, papermill and the like have none.
        """
        has_user = cell.is_cell and bool(cell.content.get("allow_stdin"))
        return has_user and cell.identities not in self._kernels

    def ask(self, question: CellQuestion, cell: Request, *, now: float) -> None:
        """Ask in a cell in a moment; see due()."""
        self._asked = _AskedCell(question=question, cell=cell, id=uuid.uuid4().hex)
        self.due_at = now + AFTER_OUTPUT_SECONDS

    def due(self, now: float) -> list[Outgoing]:
        """Return the message that asks, once, when its time has come."""
        if self._asked is None or self.due_at is None or now < self.due_at:
            return []
        self.due_at = None
        asked, question = self._asked, self._asked.question
        self._unanswered.setdefault(asked.cell.identities, set()).add(asked.id)
        content = {"prompt": question.prompt, "password": not question.echo}
        return [Outgoing(channel=STDIN, kind="input_request", content=content, parent=asked.cell, id=asked.id)]

    def forget_kernel(self) -> None:
        """Note that no kernel waits for an answer any more."""
        self._kernels.clear()

    def kernel_asks(self, client: Client) -> None:
        """Note that the kernel waits for an answer of a client."""
        self._kernels.add(client)

    def takes(self, request: Request) -> bool:
        """Take in an answer that a client sends; False if it is none of ours, but the kernel's."""
        client, said_for = request.identities, str(request.parent_header.get("msg_id", ""))
        ours = self._unanswered.get(client, set())
        if said_for not in ours and (said_for or not ours or client in self._kernels):
            self._kernels.discard(client)
            return False
        asked = self._asked
        if asked is not None and asked.cell.identities == client and said_for in ("", asked.id):
            self._asked = None
            asked.question.answered(str(request.content.get("value", "")))
        # Without a name it answers the newest, which the client asks in the place of all before.
        ours -= {said_for} if said_for else set(ours)
        return True

    def cancel(self) -> None:
        """Ask no more."""
        asked, self._asked, self.due_at = self._asked, None, None
        if asked is not None:
            asked.question.answered(None)
