"""A cell with a breakpoint, over a kernel client's control channel: what an editor's debugger does.

Needs jupyter_client alone: scripts/first_hour.py carries this file to a machine that has nothing else. As a program it
starts a kernel spec, runs a cell and stops at the breakpoint: `python debugging.py KERNEL`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

DEBUGGED = """\
def mean(values):
    total = sum(values)
    count = len(values)
    return total / count

mean([1, 2, 3, 10])"""
BREAKPOINT_LINE = 4
FIRST = "import platform; print(platform.node(), platform.python_version())"
STEP_SECONDS = 60.0
# A first start makes an image.
START_SECONDS = 600.0


@dataclass
class Debugging:
    """One debug session: requests over the control channel, events from iopub."""

    client: AsyncKernelClient
    sequence: int = 0

    async def request(self, command: str, **arguments: object) -> dict[str, Any]:
        """Send one DAP request and return the body of its answer."""
        self.sequence += 1
        content = {"type": "request", "seq": self.sequence, "command": command, "arguments": arguments}
        message = self.client.session.msg("debug_request", content)
        self.client.control_channel.send(message)
        async with asyncio.timeout(STEP_SECONDS):
            while True:
                reply = await self.client.control_channel.get_msg(timeout=STEP_SECONDS)
                if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                    break
        answer: dict[str, Any] = reply["content"]
        if not answer.get("success", False):
            raise RuntimeError(f"the debugger refused {command}: {answer}")
        return dict(answer.get("body") or {})

    async def event(self, name: str) -> dict[str, Any]:
        """Wait for one debug event and return its body."""
        async with asyncio.timeout(STEP_SECONDS):
            while True:
                message = await self.client.iopub_channel.get_msg(timeout=STEP_SECONDS)
                if message["msg_type"] == "debug_event" and message["content"].get("event") == name:
                    return dict(message["content"].get("body") or {})


async def stop_at_breakpoint(client: AsyncKernelClient) -> list[tuple[str, str, str]]:
    """Run a cell into a breakpoint; name, type and value of each local there. The cell then runs to its end."""
    debugging = Debugging(client)
    await debugging.request(
        "initialize",
        clientID="demo",
        clientName="kernelbridge demo",
        adapterID="",
        pathFormat="path",
        linesStartAt1=True,
        columnsStartAt1=True,
        supportsVariableType=True,
    )
    await debugging.request("attach")
    source = (await debugging.request("dumpCell", code=DEBUGGED))["sourcePath"]
    wanted = [{"line": BREAKPOINT_LINE}]
    await debugging.request("setBreakpoints", source={"path": source}, breakpoints=wanted, sourceModified=False)
    await debugging.request("configurationDone")
    client.execute(DEBUGGED)
    stopped = await debugging.event("stopped")
    thread = stopped["threadId"]
    frames = (await debugging.request("stackTrace", threadId=thread))["stackFrames"]
    if frames[0]["line"] != BREAKPOINT_LINE:
        raise RuntimeError(f"the debugger stopped in line {frames[0]['line']}, not in {BREAKPOINT_LINE}")
    scopes = (await debugging.request("scopes", frameId=frames[0]["id"]))["scopes"]
    found = (await debugging.request("variables", variablesReference=scopes[0]["variablesReference"]))["variables"]
    await debugging.request("continue", threadId=thread)
    await debugging.event("continued")
    await debugging.request("disconnect", restart=False, terminateDebuggee=False)
    return [(one["name"], one.get("type", ""), one["value"]) for one in found if not one["name"].endswith("variables")]


class _Shown:
    """Prints what a cell prints, and each step of a start once: a notebook would show them in one line's place."""

    def __init__(self) -> None:
        self._last = ""

    def output(self, message: dict[str, Any]) -> None:
        """Take a message of iopub."""
        text = message["content"].get("text", "") if message["msg_type"] == "stream" else ""
        step = text.rpartition(" (")[0] or text
        if step and step != self._last:
            print(text, end="", flush=True)
            self._last = step


async def _run(kernel: str) -> None:
    began = time.monotonic()
    manager = AsyncKernelManager(kernel_name=kernel)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=START_SECONDS)
        show = _Shown()
        await client.execute_interactive(FIRST, output_hook=show.output)
        print(f"  (the first cell was done after {time.monotonic() - began:.1f} s)")
        variables = await stop_at_breakpoint(client)
        print(f"Stopped in line {BREAKPOINT_LINE}: " + ", ".join(f"{name} = {value}" for name, _, value in variables))
        print(f"  (after {time.monotonic() - began:.1f} s)")
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=False)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1]))
