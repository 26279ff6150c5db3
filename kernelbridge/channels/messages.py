"""A Jupyter message as ZMQ parts and back: found, signed, checked, made. Pure.

Source: Jupyter messaging protocol, "The wire protocol". What to answer while the kernel is away: see waiting.py.
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

from kernelbridge.relay.wire import IOPUB, SHELL, Buffer

DELIMITER = b"<IDS|MSG>"
PROTOCOL_VERSION = "5.3"


class MessageInvalid(Exception):
    """The parts are no Jupyter message, or its signature is wrong."""


class Signer:
    """Signs for one front-end, with the key that it gave in the connection file."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod=hashlib.sha256) if key else None

    def sign(self, parts: Sequence[Buffer]) -> bytes:
        """Return the signature of header, parent header, metadata and content; empty without a key."""
        if self._keyed is None:
            return b""
        digest = self._keyed.copy()
        for part in parts:
            digest.update(part)
        return digest.hexdigest().encode()


@dataclass(frozen=True, kw_only=True)
class Request:
    """A client's message, checked: where it came in, who asks (routing ids), what."""

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
        """The content, parsed at each call; empty where it is no table: what that means is the kernel's to say."""
        try:
            content = json.loads(bytes(self.parts[len(self.identities) + 5]))
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Say:
    """A message of ours: an answer to `parent`, or output of it on iopub."""

    channel: int
    kind: str
    content: Mapping[str, Any]
    parent: Request | None


def parse(channel: int, parts: Sequence[bytes], signer: Signer) -> Request:
    """Return the request in `parts`. Raises MessageInvalid when it is none or its signature is wrong."""
    try:
        at = list(parts).index(DELIMITER)
        signature, header = parts[at + 1], json.loads(parts[at + 2])
        signed = parts[at + 2 : at + 6]
    except (ValueError, IndexError, RecursionError) as exc:
        raise MessageInvalid("not a Jupyter message") from exc
    if len(signed) != 4 or not isinstance(header, dict):
        raise MessageInvalid("not a Jupyter message")
    if not hmac.compare_digest(signature, signer.sign(signed)):
        raise MessageInvalid("wrong signature")
    clean = (*parts[: at + 1], b"", *parts[at + 2 :])
    return Request(channel=channel, identities=tuple(parts[:at]), header=header, parts=clean)


def recalled(header: Mapping[str, Any]) -> Request:
    """Return a request of which only the header is known: what is said to it on iopub is heard, replies go nowhere."""
    parts = (DELIMITER, b"", json.dumps(dict(header)).encode(), b"{}", b"{}", b"{}")
    return Request(channel=SHELL, identities=(), header=header, parts=parts)


def signed(parts: Sequence[Buffer], signer: Signer) -> list[Buffer]:
    """Return a message of the kernel's with the signature that this front-end expects."""
    at = delimiter_index(parts)
    return [*parts[: at + 1], signer.sign(parts[at + 2 : at + 6]), *parts[at + 2 :]]


def delimiter_index(parts: Sequence[Buffer]) -> int:
    """Return where the delimiter stands. Raises MessageInvalid if it does not."""
    for index, part in enumerate(parts):
        if part == DELIMITER:
            return index
    raise MessageInvalid("no delimiter")


def parent_id(parts: Sequence[Buffer]) -> str:
    """Return the id of the request that a message of the kernel's answers; empty if none."""
    parent = json.loads(bytes(parts[delimiter_index(parts) + 3]))
    return str(parent.get("msg_id", ""))


def build(say: Say, session: str) -> list[Buffer]:
    """Return the unsigned parts of a message of ours, under the kernel's own session id.

    Beside a foreign session id JupyterLab and VS Code drop status, comm and debug events (design, waiting).
    """
    header = {
        "msg_id": uuid.uuid4().hex,
        "session": session,
        "username": "kernel",
        "date": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "msg_type": say.kind,
        "version": PROTOCOL_VERSION,
    }
    parent = dict(say.parent.header) if say.parent else {}
    if say.channel == IOPUB:
        to: tuple[bytes, ...] = (say.kind.encode(),)
    else:
        to = say.parent.identities if say.parent else ()
    return [*to, DELIMITER, b"", *(json.dumps(part).encode() for part in (header, parent, {}, dict(say.content)))]


def status(state: str, parent: Request | None) -> Say:
    """Return a status message: busy, idle or starting."""
    return Say(channel=IOPUB, kind="status", content={"execution_state": state}, parent=parent)


def reply(request: Request, content: Mapping[str, Any]) -> Say:
    """Return the answer to a request, on the channel where it came in."""
    kind = request.kind.removesuffix("_request") + "_reply"
    return Say(channel=request.channel, kind=kind, content=content, parent=request)


def between_busy_and_idle(request: Request, *says: Say) -> list[Say]:
    """Return `says` between the busy and the idle that every request gets."""
    return [status("busy", request), *says, status("idle", request)]


def error_answer(request: Request, name: str, text: str, *, shown: bool) -> list[Say]:
    """Return what a request gets that failed: an error reply of its own type; `shown` also prints it as output.

    Messages that want no reply (comm traffic, input replies) get none.
    """
    if not request.kind.endswith("_request"):
        return []
    content: dict[str, Any] = {"status": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
    if request.kind == "debug_request":
        asked = request.content
        content = {"type": "response", "request_seq": asked.get("seq", 0), "success": False}
        content |= {"command": asked.get("command", ""), "message": text, "seq": 0}
    says = [reply(request, content)]
    if request.kind == "execute_request":
        if shown and not request.content.get("silent"):
            error = {key: content[key] for key in ("ename", "evalue", "traceback")}
            says.insert(0, Say(channel=IOPUB, kind="error", content=error, parent=request))
        content |= {"execution_count": 0, "user_expressions": {}, "payload": []}
    return between_busy_and_idle(request, *says)


def aborted_answer(request: Request) -> list[Say]:
    """Return what an execute request gets that stood behind one that failed."""
    return between_busy_and_idle(request, reply(request, {"status": "aborted", "execution_count": 0}))
