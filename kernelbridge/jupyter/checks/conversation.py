"""Talk to a kernel as Jupyter's clients do: ask what it is, run a cell, begin to debug."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from jupyter_client.asynchronous.client import AsyncKernelClient

from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.doctor.trials import TALK_SECONDS, Conversation
from kernelbridge.protocol.json_object import plain

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
    return asyncio.run(_Client(connection, gives_up, until=time.monotonic() + seconds).converse(debugs=debugs))


class _Client:
    """Jupyter's client of one kernel, for as long as it takes."""

    def __init__(self, connection: Mapping[str, Any], gives_up: threading.Event, *, until: float) -> None:
        self._connection = dict(connection)
        self._gives_up = gives_up
        self._until = until
        # jupyter_client's, whose methods have no types; it wants a loop that runs.
        self._client: Any = AsyncKernelClient()

    async def converse(self, *, debugs: bool) -> Conversation:
        """See above."""
        client = self._client
        client.load_connection_info(self._connection)
        client.start_channels()
        try:
            info = await self._answer(client.get_shell_msg, client.kernel_info(), "kernel_info_reply")
            await self._await_subscription()
            cell = client.execute("1 + 1", store_history=False)
            said = await self._answer(client.get_iopub_msg, cell, "execute_result", "error")
            if said.get("data", {}).get("text/plain") != "2":
                reason = plain(f"{said.get('ename')}: {said.get('evalue')}") if "ename" in said else "it is not 2"
                raise KernelBridgeError(f"The kernel cannot add one and one ({reason}).")
            await self._answer(client.get_shell_msg, cell, "execute_reply")
            language = info.get("language_info", {})
            text = f"{str(language.get('name', '')).title()} {language.get('version', '')}"
            trouble = await self._debugger_trouble() if debugs else ""
            return Conversation(language=plain(text.strip()), debugger_trouble=plain(trouble))
        finally:
            client.stop_channels()

    async def _await_subscription(self) -> None:
        """Return once outputs come: what a kernel prints before a client's subscription is there is lost to it."""
        while True:
            asked = self._client.kernel_info()
            await self._answer(self._client.get_shell_msg, asked, "kernel_info_reply")
            try:
                while (await self._client.get_iopub_msg(timeout=_LOOK_SECONDS))["parent_header"].get("msg_id") != asked:
                    pass
            except queue.Empty:
                continue
            return

    async def _debugger_trouble(self) -> str:
        """Return why the debugger does not begin; empty where it does."""
        message = self._client.session.msg("debug_request", dict(_INITIALIZE))
        self._client.control_channel.send(message)
        try:
            said = await self._answer(self._client.get_control_msg, message["header"]["msg_id"], "debug_reply")
        except KernelBridgeError:
            return "no answer"
        return "" if said.get("success") else str(said.get("message") or said.get("evalue") or "it refuses")

    async def _answer(self, take: Callable[..., Awaitable[Any]], message: str, *kinds: str) -> Mapping[str, Any]:
        """Return the content of the first message of one of these kinds that answers another.

        Raises KernelBridgeError.
        """
        while time.monotonic() < self._until and not self._gives_up.is_set():
            try:
                heard = await take(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if heard["parent_header"].get("msg_id") == message and heard["msg_type"] in kinds:
                content: Mapping[str, Any] = heard["content"]
                return content
        raise KernelBridgeError("The kernel runs, and does not answer.", "`kernelbridge logs` may say why.")
