"""Keep what clients' cells say of their notebook, and what the user's next cell is to show first. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernelbridge.channels import vscode
from kernelbridge.channels.messages import Outgoing, Request
from kernelbridge.plain_text import printable
from kernelbridge.protocol.frames import IOPUB, Buffer
from kernelbridge.protocol.left_output import CellTitle, CellTitles, LeftOutput

_MOST_NEWS, _NEWS_LENGTH = 20, 2000


@dataclass(frozen=True, kw_only=True)
class CellAsked:
    """What is known of the cells of one kernel's clients so far."""

    # The notebook's path, or its name where it was not saved yet; empty while no client has told it.
    notebook: str = ""
    # Whether a user's cell was among them.
    is_users: bool = False


class UserCells:
    """The cells that the clients of one kernel run."""

    def __init__(self) -> None:
        # What was found so far; changed by note.
        self.asked = CellAsked()
        # Lines for the user's next cell.
        self._news: list[str] = []
        # The cell that says why nothing happens, by its id, and its words; None while none does.
        self._explained: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"<UserCells {self.asked}, {len(self._news)} lines to tell>"

    def note(self, request: Request) -> bool:
        """Take in an execute request; whether it told anything new."""
        before, path = self.asked, vscode.notebook_path(request)
        # The start-up cell knows best: the address of a cell has the path in another spelling.
        is_better = bool(path) and (not before.notebook or vscode.is_startup(request))
        self.asked = CellAsked(
            notebook=path if is_better else before.notebook, is_users=before.is_users or request.is_cell
        )
        return self.asked != before

    def add_news(self, line: str) -> None:
        """Keep a line for the user's next cell, each once: few and short ones, since a relay may say what it likes."""
        line = printable(line[:_NEWS_LENGTH])
        if line not in self._news and len(self._news) < _MOST_NEWS:
            self._news.append(line)

    def take_news(self, request: Request) -> str:
        """Return the text that a request's cell is to show first; empty where it is no user's, or there is none."""
        if not self._news or not request.is_cell:
            return ""
        text, self._news = "".join(f"[kernelbridge: {line}]\n" for line in self._news), []
        return text

    def explain(self, cell: str, text: str) -> bool:
        """Whether a cell has still to say why nothing happens; not again, until the text is another, or was empty."""
        before, self._explained = self._explained, (cell, text) if text else None
        return self._explained is not None and self._explained != before


class LeftOutputCell:
    """Shows the output of cells of before in the user's newest cell, where the client can show only its own.

    The relay keeps such output until `is_asked_by` says that a cell is there to show it.
    """

    def __init__(self) -> None:
        # Whether there may be any: this process came to a kernel that ran before. Set by the proxy.
        self.is_expected = False
        # The request of before that the kernel works on still; empty if none. Set by the proxy.
        self.running = ""
        # The cell that shows it, and whether the relay is to keep it again once that cell has its reply.
        self._cell: Request | None = None
        # The header.sessions of this process's clients, as they stand in a header.
        self._sessions: set[bytes] = set()
        self._left = LeftOutput(CellTitles())

    def __repr__(self) -> str:
        return f"<LeftOutputCell {self._cell.id if self._cell else 'none yet'}, {self._left!r}>"

    def note(self, request: Request) -> None:
        """Take in a request of a client of this process."""
        self._sessions.add(json.dumps(str(request.header.get("session", ""))).encode())

    def is_asked_by(self, request: Request) -> bool:
        """Whether a request is the user's cell that output of before is to be shown in from now on."""
        if not (self.is_expected and request.is_cell):
            return False
        self._cell = request
        return True

    def is_over_with(self, request_id: str) -> bool:
        """Whether a reply is that of the cell: what comes later is for the next one."""
        return self._cell is not None and request_id == self._cell.id

    def learn(self, cells: Mapping[str, Sequence[Any]]) -> None:
        """Take in the titles of cells."""
        self._left.titles.add({request_id: CellTitle(*title) for request_id, title in cells.items()})

    @property
    def has_cell(self) -> bool:
        """Whether there is a cell that can show output of before."""
        return self._cell is not None

    def is_foreign(self, parent: bytes) -> bool:
        """Whether this is the parent header of a message that answers none of this process's clients."""
        return b'"session"' in parent and not any(session in parent for session in self._sessions)

    def note_status(self, parent: bytes, content: bytes) -> None:
        """Take in a status of before: the cell that ran may have ended with it."""
        if b'"idle"' in content and self.running and self.running.encode() in parent:
            self.running = ""

    def add(self, parts: Sequence[Buffer]) -> None:
        """Take in an iopub message of before."""
        self._left.add(parts)

    def add_text(self, request_id: str, text: str) -> None:
        """Take in a line of ours about a request of before."""
        self._left.add_text(request_id, text)

    def flush(self) -> list[Outgoing]:
        """Return what the cell is to show of what was taken in."""
        return [
            Outgoing(channel=IOPUB, kind=one.kind, content=one.content, parent=self._cell) for one in self._left.flush()
        ]
