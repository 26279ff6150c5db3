"""See that an interrupt reaches the cell that it is for, and no other, also over a lost link. Pure.

Each is passed on with the name of the cell that runs (protocol/requests.py). Where the kernel cannot answer soon, the
client gets its reply here and the cell a line that says why; what the kernel answers later is dropped. Only the idle of
such an interrupt waits until it was carried out: VS Code takes a reply and an idle for "done", gives the cell 10 s from
then, and offers a restart that loses all variables. An interrupt that is not done after 10 s it lets be. Source:
vscode-jupyter, src/kernels/kernel.ts, interruptExecution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernelbridge.channels import messages
from kernelbridge.channels.messages import Outgoing, Request
from kernelbridge.protocol import frames, requests
from kernelbridge.protocol.frames import CONTROL, IOPUB, ORDERED, QUICK, SHELL, Buffer

# A line that is up answers much sooner; clients wait for 10 s.
UNANSWERED_SECONDS = 2.0
_LATE = "no answer from the host yet; the interrupt is carried out as soon as it is reached"
# On shell, replies come in the order of the requests: that to an interrupt waits so long for the cell's own.
IN_ORDER_SECONDS = 1.0
_TOO_LATE = "this cell had ended before the interrupt could be sent"


@dataclass(kw_only=True)
class _Interrupt:
    """One that was passed on and is not answered yet; `cell` is what it is for, until that has its reply."""

    request: Request
    cell: Request | None
    late_at: float
    # The kernel's reply, while it waits for the cell's.
    reply: Mapping[str, Any] | None = None
    # Whether the client has its reply already, and waits for the idle.
    is_answered: bool = False


class Interrupts:
    """The interrupts of one kernel that are under way."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Interrupt] = {}
        # Cells that show that they are to be interrupted, and have not been, as far as is known.
        self._waiting_cells: set[str] = set()

    def __repr__(self) -> str:
        return f"<Interrupts {len(self._under_way)} under way>"

    def __bool__(self) -> bool:
        """Whether anything that the kernel says must be looked at."""
        return bool(self._under_way or self._waiting_cells)

    @property
    def ids(self) -> list[str]:
        """The ids of those under way."""
        return list(self._under_way)

    @property
    def due_at(self) -> float | None:
        """When `late` has something to do; None while nothing waits for a time."""
        return min((one.late_at for one in self._under_way.values() if not one.is_answered), default=None)

    def pass_on(self, request: Request, cell: Request | None, *, launch: int, now: float) -> tuple[int, bytes]:
        """Note an interrupt; return it packed for the kernel, with its lane.

        One for a cell overtakes all else: the name keeps it from any other. One for what else the kernel may do comes
        before all that is asked later, which it must not interrupt.
        """
        self._under_way[request.id] = _Interrupt(request=request, cell=cell, late_at=now + UNANSWERED_SECONDS)
        parts = list(request.parts) if cell is None else requests.naming(request.parts, cell.id)
        # Never on shell, where a kernel reads nothing while a cell runs.
        packed = frames.pack(frames.Message(CONTROL, launch, parts))
        return (ORDERED if cell is None else QUICK), packed

    def late(self, now: float) -> list[Outgoing]:
        """Answer those that have waited for too long."""
        overdue = [one for one in self._unanswered() if now >= one.late_at]
        return [answer for one in overdue for answer in self._postpone(one, _LATE)]

    def postpone(self, why: str) -> list[Outgoing]:
        """Answer all that wait: the kernel cannot do so for a while."""
        return [answer for one in self._unanswered() for answer in self._postpone(one, why)]

    def _unanswered(self) -> list[_Interrupt]:
        return [one for one in self._under_way.values() if not one.is_answered]

    def _postpone(self, one: _Interrupt, why: str) -> list[Outgoing]:
        if one.reply is not None:
            return self._release(one, one.reply)
        one.is_answered = True
        answers: list[Outgoing] = []
        if _is_asked_for(one.request):
            answers += [messages.status("busy", one.request), messages.reply(one.request, {"status": "ok"})]
        if one.cell is not None and one.cell.id not in self._waiting_cells:
            self._waiting_cells.add(one.cell.id)
            answers.append(notice(one.cell, why))
        return answers

    def _release(self, one: _Interrupt, reply: Mapping[str, Any]) -> list[Outgoing]:
        del self._under_way[one.request.id]
        return [messages.reply(one.request, reply)]

    def replied(self, parent: str, parts: Sequence[Buffer], *, now: float) -> tuple[Request | None, list[Outgoing]]:
        """Take in a reply of the kernel's; return the interrupt that it answers, if any, and what is said in its place.

        The reply itself goes on only where nothing is returned; `cell_replied` comes after it.
        """
        one = self._under_way.get(parent)
        if one is None:
            return None, []
        content = _content(parts)
        if one.cell is not None and content.get("status") == "ok" and content.get(requests.SENT_KEY, True):
            self._waiting_cells.discard(one.cell.id)
        plain = {key: value for key, value in content.items() if key != requests.SENT_KEY}
        if one.request.channel == SHELL and one.cell is not None and not one.is_answered:
            one.reply, one.late_at = plain, now + IN_ORDER_SECONDS
            return one.request, []
        answers = self._release(one, plain)
        if not _is_asked_for(one.request):
            return one.request, []
        return one.request, [messages.status("idle", one.request)] if one.is_answered else answers

    def cell_replied(self, cell: str) -> list[Outgoing]:
        """Take in that a cell has its reply; return those to interrupts that waited for it."""
        answers: list[Outgoing] = []
        for one in list(self._under_way.values()):
            if one.cell is not None and one.cell.id == cell:
                one.cell = None
                answers += self._release(one, one.reply) if one.reply is not None else []
        return answers

    def heard(self, parent: str, parts: Sequence[Buffer]) -> list[Outgoing]:
        """Take in what the kernel says on iopub; return what comes before it: a cell's end without its interrupt."""
        if parent not in self._waiting_cells:
            return []
        content = _content(parts)
        if content.get("ename") == "KeyboardInterrupt":
            self._waiting_cells.discard(parent)
        elif content.get("execution_state") == "idle":
            self._waiting_cells.discard(parent)
            header = json.loads(bytes(parts[messages.delimiter_index(parts) + 3]))
            return [notice(messages.recalled(header), _TOO_LATE)]
        return []

    def end(self) -> list[Outgoing]:
        """Answer all: the kernel is gone, and its cells with it."""
        answers: list[Outgoing] = []
        for one in self._under_way.values():
            if not one.is_answered:
                answers += done(one.request)
            elif _is_asked_for(one.request):
                answers.append(messages.status("idle", one.request))
        self._under_way.clear()
        self._waiting_cells.clear()
        return answers


def done(request: Request) -> list[Outgoing]:
    """Return the whole answer to an interrupt that has nothing to do, or was carried out here."""
    if not _is_asked_for(request):
        return []
    return messages.between_busy_and_idle(request, messages.reply(request, {"status": "ok"}))


def notice(cell: Request, text: str) -> Outgoing:
    """Return a line of ours in a cell."""
    stream = {"name": "stderr", "text": f"[kernelbridge: {text}]\n"}
    return Outgoing(channel=IOPUB, kind="stream", content=stream, parent=cell)


def own(identity: str) -> Request:
    """Return an interrupt that no client has asked for: its answers go nowhere."""
    header = {"msg_id": identity, "msg_type": requests.INTERRUPT, "username": "", "session": "", "version": "5.3"}
    parts = (frames.DELIMITER, b"", json.dumps(header).encode(), b"{}", b"{}", b"{}")
    return Request(channel=CONTROL, identities=(), header=header, parts=parts)


def _is_asked_for(request: Request) -> bool:
    """Whether a client waits for its answer."""
    return bool(request.identities)


def _content(parts: Sequence[Buffer]) -> Mapping[str, Any]:
    try:
        content = json.loads(bytes(parts[messages.delimiter_index(parts) + 5]))
    except (ValueError, IndexError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
