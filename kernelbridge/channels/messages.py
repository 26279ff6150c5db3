"""Parse, check, sign and build Jupyter messages as ZMQ parts. Pure.

Source: Jupyter messaging protocol, "The wire protocol".
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kernelbridge.protocol.cells import is_cell
from kernelbridge.protocol.frames import DELIMITER, IOPUB, SHELL, Buffer

PROTOCOL_VERSION = "5.3"
# How many signatures are remembered; as jupyter_client does.
_MOST_SIGNATURES = 1 << 16
_CHECKED_BYTES = 16 * 1024


class MessageInvalid(Exception):
    """The parts are not a Jupyter message, or its signature is wrong."""


class Signer:
    """Sign and check messages with the key of one front-end's connection file."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod=hashlib.sha256) if key else None
        # The newest signatures of clients, oldest first: each is taken once, so that a message sent again runs once.
        self._taken: dict[bytes, None] = {}

    def sign(self, parts: Sequence[Buffer]) -> bytes:
        """Return the signature of header, parent header, metadata and content; empty without a key."""
        if self._keyed is None:
            return b""
        digest = self._keyed.copy()
        for part in parts:
            digest.update(part)
        return digest.hexdigest().encode()

    def check(self, signature: bytes, parts: Sequence[Buffer]) -> None:
        """Take a signature once. Raises MessageInvalid if it is wrong, or was taken already."""
        if not hmac.compare_digest(signature, self.sign(parts)):
            raise MessageInvalid("wrong signature")
        if self._keyed is None:
            return
        if signature in self._taken:
            raise MessageInvalid("a signature that was used already")
        self._taken[signature] = None
        if len(self._taken) > _MOST_SIGNATURES:
            del self._taken[next(iter(self._taken))]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A client's message, checked: channel, routing ids of the client, header, parts."""

    channel: int
    identities: tuple[bytes, ...]
    header: Mapping[str, Any]
    # All parts as they go to the kernel: identities, delimiter, no signature, header ... buffers.
    parts: tuple[Buffer, ...]

    @property
    def kind(self) -> str:
        """The message type."""
        return str(self.header.get("msg_type", ""))

    @property
    def id(self) -> str:
        """The message id."""
        return str(self.header.get("msg_id", ""))

    @property
    def content(self) -> dict[str, Any]:
        """The content, parsed at each call; empty where it is not a JSON object, which is the kernel's to refuse."""
        return self._object(5)

    @property
    def parent_header(self) -> dict[str, Any]:
        """The parent header, like the content."""
        return self._object(3)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata, like the content."""
        return self._object(4)

    @property
    def is_cell(self) -> bool:
        """Whether it is a user's cell."""
        return self.kind == "execute_request" and is_cell(self.kind, self.content)

    def _object(self, part: int) -> dict[str, Any]:
        try:
            parsed = json.loads(bytes(self.parts[len(self.identities) + part]))
        except (ValueError, RecursionError):
            return {}
        return parsed if isinstance(parsed, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A message of ours: an answer to `parent`, or output of it on iopub."""

    channel: int
    kind: str
    content: Mapping[str, Any]
    parent: Request | None
    # Where its answer is to be known by it; else each message gets a new one.
    id: str = ""


def parse(channel: int, parts: Sequence[bytes], signer: Signer) -> Request:
    """Return the request in `parts`. Raises MessageInvalid if there is none or its signature is wrong."""
    try:
        at = list(parts).index(DELIMITER)
        signature, header = parts[at + 1], json.loads(parts[at + 2])
        signed = parts[at + 2 : at + 6]
    except (ValueError, IndexError, RecursionError) as exc:
        raise MessageInvalid("not a Jupyter message") from exc
    if len(signed) != 4 or not isinstance(header, dict):
        raise MessageInvalid("not a Jupyter message")
    signer.check(signature, signed)
    clean = (*parts[: at + 1], b"", *parts[at + 2 :])
    return Request(channel=channel, identities=tuple(parts[:at]), header=header, parts=clean)


def recalled(header: Mapping[str, Any]) -> Request:
    """Return a request of which only the header is known: its output reaches all clients, its replies go nowhere."""
    parts = (DELIMITER, b"", json.dumps(dict(header)).encode(), b"{}", b"{}", b"{}")
    return Request(channel=SHELL, identities=(), header=header, parts=parts)


def signed(parts: Sequence[Buffer], signer: Signer) -> list[Buffer]:
    """Return a message of the kernel with the signature that this front-end expects."""
    at = delimiter_index(parts)
    return [*parts[: at + 1], signer.sign(parts[at + 2 : at + 6]), *parts[at + 2 :]]


class SessionName:
    """The header.session that clients know, in place of the one that the kernel has.

    They differ where a client was greeted before it was known which kernel it gets.
    """

    def __init__(self, own: str) -> None:
        self.own = own
        self._own = own.encode()
        # Set by rename; empty where both are the same.
        self._kernels = b""

    def __repr__(self) -> str:
        return f"<SessionName {self.own}{' for another' if self._kernels else ''}>"

    def rename(self, kernels: str) -> None:
        """Set which one the kernel has."""
        self._kernels = kernels.encode() if kernels != self.own else b""

    def renamed(self, parts: Sequence[Buffer]) -> Sequence[Buffer]:
        """Return a message of the kernel as clients are to see it."""
        if not self._kernels:
            return parts
        at = delimiter_index(parts) + 2
        return [*parts[:at], bytes(parts[at]).replace(self._kernels, self._own, 1), *parts[at + 1 :]]


def check(parts: Sequence[Buffer]) -> None:
    """Know that clients can read a message of the kernel. Raises MessageInvalid: some would end over it.

    Long content is not parsed: that would cost more than all else.
    """
    at = delimiter_index(parts)
    whole = [part for part in parts[at + 2 : at + 6] if len(part) <= _CHECKED_BYTES]
    try:
        tables = [json.loads(bytes(part)) for part in whole]
    except (ValueError, RecursionError) as exc:
        raise MessageInvalid("not a Jupyter message") from exc
    if len(parts) < at + 6 or not all(isinstance(table, dict) for table in tables):
        raise MessageInvalid("not a Jupyter message")
    if len(parts[at + 2]) <= _CHECKED_BYTES and not {"msg_id", "msg_type"} <= tables[0].keys():
        raise MessageInvalid("a header without msg_id or msg_type")


def delimiter_index(parts: Sequence[Buffer]) -> int:
    """Return the index of the delimiter. Raises MessageInvalid if there is none."""
    for index, part in enumerate(parts):
        if part == DELIMITER:
            return index
    raise MessageInvalid("no delimiter")


def parent_id(parts: Sequence[Buffer]) -> str:
    """Return the id of the request that a message of the kernel answers; empty if none. Raises MessageInvalid."""
    try:
        parent = json.loads(bytes(parts[delimiter_index(parts) + 3]))
    except (ValueError, LookupError, RecursionError) as exc:
        raise MessageInvalid("no parent header") from exc
    return str(parent.get("msg_id", "")) if isinstance(parent, dict) else ""


def build(message: Outgoing, session: str) -> list[Buffer]:
    """Return the unsigned parts of a message of ours, under the kernel's own session id.

    Beside a foreign session id JupyterLab and VS Code drop status, comm and debug events (architecture.md, waiting).
    """
    header = {
        "msg_id": message.id or uuid.uuid4().hex,
        "session": session,
        "username": "kernel",
        "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "msg_type": message.kind,
        "version": PROTOCOL_VERSION,
    }
    parent = dict(message.parent.header) if message.parent else {}
    if message.channel == IOPUB:
        to: tuple[bytes, ...] = (message.kind.encode(),)
    else:
        to = message.parent.identities if message.parent else ()
    return [*to, DELIMITER, b"", *(json.dumps(part).encode() for part in (header, parent, {}, dict(message.content)))]


def status(state: str, parent: Request | None) -> Outgoing:
    """Return a status message: busy, idle or starting."""
    return Outgoing(channel=IOPUB, kind="status", content={"execution_state": state}, parent=parent)


def reply(request: Request, content: Mapping[str, Any]) -> Outgoing:
    """Return the answer to a request, on the channel where it came in."""
    kind = request.kind.removesuffix("_request") + "_reply"
    return Outgoing(channel=request.channel, kind=kind, content=content, parent=request)


def between_busy_and_idle(request: Request, *answers: Outgoing) -> list[Outgoing]:
    """Return `answers` between the busy and the idle that every request gets."""
    return [status("busy", request), *answers, status("idle", request)]


def error_answer(request: Request, name: str, text: str, *, shown: bool, lines: Sequence[str] = ()) -> list[Outgoing]:
    """Return the answer to a request that failed: an error reply of its own type; `shown` also prints it as output.

    Clients print `lines` in the place of a traceback, and nothing else (VS Code wraps no line of an output). Messages
    that expect no reply (comm traffic, input replies) get none.
    """
    if not request.kind.endswith("_request"):
        return []
    content: dict[str, Any] = {
        "status": "error",
        "ename": name,
        "evalue": text,
        "traceback": list(lines) or [f"{name}: {text}"],
    }
    if request.kind == "debug_request":
        asked = request.content
        content = {"type": "response", "request_seq": asked.get("seq", 0), "success": False}
        content |= {"command": asked.get("command", ""), "message": text, "seq": 0}
    answers = [reply(request, content)]
    if request.kind == "execute_request":
        if shown and not request.content.get("silent"):
            error = {key: content[key] for key in ("ename", "evalue", "traceback")}
            answers.insert(0, Outgoing(channel=IOPUB, kind="error", content=error, parent=request))
        content |= {"execution_count": 0, "user_expressions": {}, "payload": []}
    return between_busy_and_idle(request, *answers)


def aborted_answer(request: Request) -> list[Outgoing]:
    """Return the answer to an execute request that was queued behind one that failed."""
    return between_busy_and_idle(request, reply(request, {"status": "aborted", "execution_count": 0}))
