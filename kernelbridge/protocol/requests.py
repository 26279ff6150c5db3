"""Read a client's request, name the cell that an interrupt is for, and write answers in the place of a kernel. Pure.

An interrupt may come long after it was sent: the cell that it names is the only one that it may interrupt. The name
travels in the metadata, which kernels and relays that know nothing of it leave alone.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .frames import DELIMITER, IOPUB, Buffer

INTERRUPT = "interrupt_request"
_CELL_KEY = "kernelbridge_cell"
# In the content of a relay's interrupt_reply: whether the kernel was interrupted, or the cell is not running (yet).
SENT_KEY = "kernelbridge_sent"


class Asked(NamedTuple):
    """A client's request, as far as a relay reads it."""

    kind: str
    id: str
    # The id of the cell that an interrupt is for; None where it names none.
    cell: Optional[str]
    # The routing ids of the client, the header as it came, the content.
    identities: Sequence[bytes]
    header: bytes
    content: bytes


def read(parts: Sequence[Buffer]) -> Optional[Asked]:
    """Return the request in the parts of a message; None where there is none, as in comm traffic and input replies."""
    at = _delimiter(parts)
    try:
        header = bytes(parts[at + 2])
        said = json.loads(header)
        kind = str(said["msg_type"])
        if at < 0 or not kind.endswith("_request"):
            return None
        metadata = json.loads(bytes(parts[at + 4])) if kind == INTERRUPT else {}
        cell = metadata.get(_CELL_KEY) if isinstance(metadata, dict) else None
        identities = [bytes(part) for part in parts[:at]]
        name = None if cell is None else str(cell)
        return Asked(kind, str(said.get("msg_id", "")), name, identities, header, bytes(parts[at + 5]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _delimiter(parts: Sequence[Buffer]) -> int:
    """Return the index of the delimiter; -1 if there is none."""
    return next((index for index, part in enumerate(parts) if part == DELIMITER), -1)


def naming(parts: Sequence[Buffer], cell: str) -> List[Buffer]:
    """Return an interrupt request that names the cell which it is for."""
    named = list(parts)
    at = _delimiter(parts) + 4
    try:
        metadata = json.loads(bytes(named[at]))
    except ValueError:
        metadata = {}
    named[at] = json.dumps(dict(metadata if isinstance(metadata, dict) else {}, **{_CELL_KEY: cell})).encode()
    return named


class Voice(NamedTuple):
    """Writes messages as the kernel of this session writes them."""

    session: str

    def _message(self, to: Sequence[bytes], kind: str, parent: bytes, content: Mapping[str, Any]) -> List[Buffer]:
        own = {"msg_id": os.urandom(16).hex(), "session": self.session, "username": "kernel", "version": "5.3"}
        own.update(msg_type=kind, date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        return [*to, DELIMITER, b"", json.dumps(own).encode(), parent, b"{}", json.dumps(content).encode()]

    def reply(self, asked: Asked, content: Mapping[str, Any]) -> List[Buffer]:
        """Write the reply to a request."""
        kind = asked.kind[: -len("_request")] + "_reply"
        return self._message(asked.identities, kind, asked.header, content)

    def status(self, asked: Asked, state: str) -> List[Buffer]:
        """Write a status that belongs to a request: busy or idle."""
        return self._message([b"status"], "status", asked.header, {"execution_state": state})

    def error(self, asked: Asked, content: Mapping[str, Any]) -> List[Buffer]:
        """Write an error that is shown in the cell of a request."""
        return self._message([b"error"], "error", asked.header, content)

    def answer(self, channel: int, asked: Asked, content: Mapping[str, Any]) -> List[Tuple[int, List[Buffer]]]:
        """Write the reply between the busy and the idle that every request gets; clients wait for all three."""
        return [
            (IOPUB, self.status(asked, "busy")),
            (channel, self.reply(asked, content)),
            (IOPUB, self.status(asked, "idle")),
        ]


def unknown(asked: Asked) -> Dict[str, Any]:
    """Return the content of the reply to a request that the kernel has no handler for."""
    text = "This kernel does not answer %s." % asked.kind
    if asked.kind != "debug_request":
        return {"status": "error", "ename": "NotImplementedError", "evalue": text, "traceback": []}
    try:
        said = json.loads(asked.content)
        number, command = said.get("seq", 0), said.get("command", "")
    except (ValueError, AttributeError):
        number, command = 0, ""
    # The debug adapter protocol has replies of its own.
    return {
        "type": "response",
        "request_seq": number,
        "success": False,
        "command": command,
        "message": text,
        "seq": 0,
    }
