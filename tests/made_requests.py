"""Clients' requests as Jupyter's own library signs and packs them, and answers to them in short."""

from __future__ import annotations

from typing import Any

from jupyter_client.session import Session

from kernelbridge.channels import messages
from kernelbridge.channels.messages import Outgoing, Request, Signer
from kernelbridge.protocol.frames import SHELL

KEY = b"a key"
PROBE = 'print("abc123IPyWidgets:" + _VSCODE_ipywidgets.__version__)'
STARTUP = "\ndef __VSCODE_inject_module():\n    pass"


def request(
    kind: str, content: Any = None, *, channel: int = SHELL, who: bytes = b"me", name: str = "", metadata: Any = None
) -> Request:
    """A client's message, as Jupyter's own library signs and packs it."""
    session = Session(key=KEY)
    header = {**session.msg_header(kind), "msg_id": name or kind}
    parts = session.serialize(
        {"header": header, "content": content or {}, "parent_header": {}, "metadata": metadata or {}}, ident=who
    )
    return messages.parse(channel, parts, Signer(KEY))


def execute(code: str = "1", **facts: Any) -> Request:
    options = {name: facts.pop(name) for name in ("silent", "store_history", "allow_stdin") if name in facts}
    return request("execute_request", {"code": code, "silent": False, **options}, **facts)


def hidden(code: str = "1", **facts: Any) -> Request:
    """A cell that VS Code runs for itself."""
    return execute(code, store_history=False, **facts)


def told(answers: list[Outgoing]) -> list[str]:
    """What a client hears, in short: kind, the state or error it carries, and to whom."""
    words = []
    for answer in answers:
        detail = (
            answer.content.get("execution_state") or answer.content.get("ename") or answer.content.get("status") or ""
        )
        words.append(" ".join(filter(None, (answer.kind, detail, f"({answer.parent.id})" if answer.parent else ""))))
    return words


def answered(kind: str, name: str, detail: str = "ok") -> list[str]:
    return [f"status busy ({name})", f"{kind} {detail} ({name})", f"status idle ({name})"]
