"""A numbered cell that runs while the test does something to the line; the same for each kind of client.

What the cell prints and how it is counted: numbered.py.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

from tests.clients.blocking import Message
from tests.clients.driver import NodeClient
from tests.clients.numbered import Count, Counting
from tests.rig.daemon import SLOW


class Hearing(Protocol):
    """A client of one kernel in this process: blocking.Client and rest.ServerKernel."""

    def send(self, code: str) -> str:
        """Send an execute request and give its id."""

    def listen(self, seconds: float) -> Message | None:
        """The next message; None if none comes in that time."""


AnyClient = Hearing | NodeClient


class WatchedCell:
    """A cell that is running; `client` belongs to its thread until `finish`, which waits no longer than `seconds`."""

    def __init__(self, client: Hearing, code: str, *, lines: int, seconds: float) -> None:
        self._client = client
        self._limit = time.monotonic() + seconds * SLOW
        self._counting = Counting(lines)
        self._request = client.send(code)
        # Set to stop listening before reply and idle have come.
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._listen, name=f"cell {self._request}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<WatchedCell {self._counting!r}>"

    def _listen(self) -> None:
        while not self._counting.is_finished and not self._enough.is_set() and time.monotonic() < self._limit:
            self._take(0.1)
        # What comes twice comes soon after the end.
        limit = time.monotonic() + 0.2
        while time.monotonic() < limit:
            self._take(0.05)

    def _take(self, seconds: float) -> Message | None:
        """Count the next message, or give it back if it belongs to another request."""
        message = self._client.listen(seconds)
        if message is None or message["parent_header"].get("msg_id") != self._request:
            return message
        self._counting.take(time.monotonic(), message["header"]["msg_type"], message["content"])
        return None

    @property
    def shown(self) -> int:
        """How many lines have come."""
        return self._counting.shown

    @property
    def is_answered(self) -> bool:
        """Whether the reply has come."""
        return self._counting.is_answered

    def give_up(self) -> None:
        """Wait no longer for what has not come."""
        self._enough.set()

    def finish(self) -> Count:
        """What has come when reply and idle are here, or when the time is over; raises nothing."""
        self._thread.join()
        return self._counting.count()

    def result_after(self, expression: str, *, seconds: float = 10) -> str:
        """What the next cell gives; empty where nothing comes of it. What comes of this one is still counted."""
        self._thread.join()
        request, value = self._client.send(expression), ""
        # Reply and idle, in either order.
        awaited = {"execute_reply", "idle"}
        limit = time.monotonic() + seconds * SLOW
        while time.monotonic() < limit:
            message = self._take(0.1)
            if message is None or message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "execute_result":
                value = content["data"]["text/plain"]
            awaited -= {kind, content.get("execution_state")}
            if not awaited:
                return value
        return ""


class WatchedNodeCell:
    """The same in VS Code's process. One at a time."""

    def __init__(self, client: NodeClient, code: str, *, lines: int, seconds: float) -> None:
        self._client = client
        self._lines = lines
        self._seconds = seconds * SLOW
        client.ask("tally")
        self._job = client.begin("execute", code=code, timeout_ms=int(self._seconds * 1000))

    def __repr__(self) -> str:
        return f"<WatchedNodeCell job {self._job}>"

    @property
    def shown(self) -> int:
        """How many messages with lines have come; before a fault each has one line."""
        return int(self._client.ask("counts")["received"].get("stream", 0))

    def finish(self) -> Count:
        """What has come when reply and idle are here, or nothing when the time is over."""
        answer = self._client.finish(self._job, timeout=self._seconds + 10, check=False)
        counting = Counting(self._lines)
        for output in answer.get("outputs", []):
            counting.take(output["at"], output["type"], output)
        for state in answer.get("statuses", []):
            counting.take(0.0, "status", {"execution_state": state})
        if "status" in answer:
            counting.take(0.0, "execute_reply", answer)
        for fault in [*answer["faults"], *([answer["error"]] if not answer["ok"] else [])]:
            counting.blame(fault)
        return counting.count()

    def result_after(self, expression: str, *, seconds: float = 10) -> str:
        """What the next cell gives. Raises StepFailed, also for what came twice meanwhile."""
        return str(self._client.execute(expression, timeout=seconds * SLOW)["screen"])


def watch(client: AnyClient, code: str, *, lines: int, seconds: float) -> WatchedCell | WatchedNodeCell:
    """Run a numbered cell; `finish` gives its count, after so many seconds at the latest."""
    if isinstance(client, NodeClient):
        return WatchedNodeCell(client, code, lines=lines, seconds=seconds)
    return WatchedCell(client, code, lines=lines, seconds=seconds)
