"""Talk to a kernel as Jupyter's clients do: ask what it is, run a cell, begin to debug."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from jupyter_client.blocking.client import BlockingKernelClient

from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.doctor.trials import TALK_SECONDS, Conversation

_LOOK_SECONDS: Final = 0.2
# What clients say of themselves before they debug.
_INITIALIZE: Final = {
    "type": "request",
    "seq": 1,
    "command": "initialize",
    "arguments": {
        "clientID": "kernelbridge",
        "adapterID": "",
        "pathFormat": "path",
        "linesStartAt1": True,
        "columnsStartAt1": True,
    },
}


def converse(
    connection: Mapping[str, Any], debugs: bool, gives_up: threading.Event, *, seconds: float = TALK_SECONDS
) -> Conversation:
    """Ask a kernel for its name, a sum and, if it `debugs`, its debugger. Raises KernelBridgeError: it does not answer.

    Blocks; ends soon after `gives_up` is set.
    """
    client: Any = BlockingKernelClient()
    client.load_connection_info(dict(connection))
    client.start_channels()
    try:
        until = time.monotonic() + seconds

        def answer(take: Callable[..., Any], message: str, *kinds: str) -> Mapping[str, Any]:
            return _answer(take, message, kinds, gives_up=gives_up, until=until)

        info = answer(client.get_shell_msg, client.kernel_info(), "kernel_info_reply")
        _await_subscription(client, answer)
        cell = client.execute("1 + 1", store_history=False)
        said = answer(client.get_iopub_msg, cell, "execute_result", "error")
        if said.get("data", {}).get("text/plain") != "2":
            reason = f"{said.get('ename')}: {said.get('evalue')}" if "ename" in said else "it says something else"
            raise KernelBridgeError(f"The kernel cannot add one and one ({reason}).")
        answer(client.get_shell_msg, cell, "execute_reply")
        language = info.get("language_info", {})
        return Conversation(
            language=f"{str(language.get('name', '')).title()} {language.get('version', '')}".strip(),
            debugger_trouble=_debugger_trouble(client, answer) if debugs else "",
        )
    finally:
        client.stop_channels()


def _await_subscription(client: Any, answer: Callable[..., Any]) -> None:
    """Return once outputs come: what a kernel prints before a client's subscription is there is lost to it."""
    for _ in range(20):
        asked = client.kernel_info()
        answer(client.get_shell_msg, asked, "kernel_info_reply")
        try:
            while client.get_iopub_msg(timeout=_LOOK_SECONDS)["parent_header"].get("msg_id") != asked:
                pass
        except queue.Empty:
            continue
        return


def _debugger_trouble(client: Any, answer: Callable[..., Mapping[str, Any]]) -> str:
    """Return why the debugger does not begin; empty where it does."""
    message = client.session.msg("debug_request", dict(_INITIALIZE))
    client.control_channel.send(message)
    try:
        said = answer(client.get_control_msg, message["header"]["msg_id"], "debug_reply")
    except KernelBridgeError:
        return "no answer"
    if said.get("success"):
        return ""
    return str(said.get("message") or said.get("evalue") or "it refuses")


def _answer(
    take: Callable[..., Any], message: str, kinds: tuple[str, ...], *, gives_up: threading.Event, until: float
) -> Mapping[str, Any]:
    """Return the content of the first message of one of these kinds that answers another. Raises KernelBridgeError."""
    while time.monotonic() < until and not gives_up.is_set():
        try:
            heard = take(timeout=_LOOK_SECONDS)
        except queue.Empty:
            continue
        if heard["parent_header"].get("msg_id") == message and heard["msg_type"] in kinds:
            content: Mapping[str, Any] = heard["content"]
            return content
    raise KernelBridgeError("The kernel runs, and does not answer.", "`kernelbridge logs` may say why.")
