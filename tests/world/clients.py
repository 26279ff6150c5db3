"""Front-ends made up for a world: they ask, read at their own pace, and keep what they were shown."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from kernelbridge.channels.messages import Signer
from kernelbridge.protocol.frames import DELIMITER
from tests.world.kernel import TOKEN, Plan
from tests.world.laptop import KEY, Process

DROPPED = re.compile(r"dropped ([\d,]+) messages? of this output")
# How often it asks until it has heard something, at first.
_NUDGE_SECONDS = 0.5


class Client:
    """One front-end, of one process."""

    def __init__(self, process: Process, name: str, *, pace: float = 0.0) -> None:
        """`pace`: how long it takes to read one message; infinite: it reads none."""
        self.process = process
        self.identity = name.encode()
        self.pace = pace
        self._signer = Signer(KEY)
        self.is_subscribed = self.is_here = True
        self.published: deque[tuple[list[bytes], Any]] = deque()
        self._is_reading = False
        # What counts for its server's limits: when, and how much of a stream.
        self._metered: deque[tuple[float, int]] = deque()
        # What it was shown, and when; what was said to be dropped; how many replies came to each request.
        self.shown: list[tuple[float, int, int]] = []
        self.told_dropped = 0
        self.missed = 0
        self.replies: Counter[str] = Counter()
        self.idles: Counter[str] = Counter()
        self.statuses: dict[str, str] = {}
        self.asked: dict[str, float] = {}
        self._count = 0
        self._is_greeted = False
        process.connect(self)
        self._nudge(_NUDGE_SECONDS)

    def _nudge(self, seconds: float) -> None:
        if self.is_here and not self._is_greeted:
            self.ask("kernel_info_request", {})
            self._later(seconds, lambda: self._nudge(2 * seconds))

    def _later(self, seconds: float, does: Callable[[], None]) -> None:
        """Do something then, or as soon as its machine is awake."""
        machine, agenda = self.process.machine, self.process.agenda

        def is_due() -> None:
            if agenda.now < machine.asleep_until:
                agenda.at(machine.asleep_until, is_due)
            else:
                does()

        agenda.after(seconds, is_due)

    # -- it asks

    def ask(self, kind: str, content: dict[str, Any], *, channel: str = "shell") -> str:
        self._count += 1
        name = f"{self.identity.decode()}-{self._count}"
        header = {
            "msg_id": name,
            "msg_type": kind,
            "session": self.identity.decode(),
            "username": "u",
            "version": "5.3",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self.process.arrive(channel, [self.identity, DELIMITER, self._signer.sign(parts), *parts])
        if kind == "execute_request":
            self.asked[name] = self.process.agenda.now
        return name

    def execute(self, plan: Plan) -> str:
        return self.ask("execute_request", {"code": plan.code, "silent": False, "store_history": True})

    def interrupt(self) -> str:
        return self.ask("interrupt_request", {}, channel="control")

    def shutdown(self, *, restart: bool) -> str:
        return self.ask("shutdown_request", {"restart": restart}, channel="control")

    def leave(self) -> None:
        """It disconnects."""
        self.is_here = self.is_subscribed = False
        if self in self.process.clients:
            self.process.clients.remove(self)
        for _, tracker in self.published:
            tracker.waiting -= 1
        self.published.clear()

    # -- it reads

    def _meter(self, parts: list[bytes]) -> None:
        """Count as jupyter_server does, which drops what is too much within its window."""
        limits, now = self.process.limits, self.process.agenda.now
        at = parts.index(DELIMITER)
        kind = json.loads(parts[at + 2])["msg_type"]
        if limits is None or kind in ("status", "comm_open", "execute_input"):
            if kind == "status" and json.loads(parts[at + 5])["execution_state"] == "idle":
                self._metered.clear()
            return
        size = sum(map(len, parts[at + 2 :])) if kind == "stream" else 0
        self._metered.append((now, size))
        while self._metered[0][0] <= now - limits.window_seconds:
            self._metered.popleft()
        rate = len(self._metered) / limits.window_seconds
        assert rate <= max(limits.messages_per_second, 1), "more messages a second than the front-end takes"
        stream_rate = sum(bytes_of for _, bytes_of in self._metered) / limits.window_seconds
        # One that is longer than all goes alone.
        is_within = stream_rate <= limits.stream_bytes_per_second or len(self._metered) == 1
        assert is_within, "more output a second than the front-end takes"

    def publish(self, parts: list[bytes], tracker: Any) -> None:
        self._meter(parts)
        self.published.append((parts, tracker))
        if not self._is_reading and self.pace != float("inf"):
            self._is_reading = True
            self._later(self.pace, self._read)

    def read_at(self, pace: float) -> None:
        self.pace = pace
        if not self._is_reading and self.published and pace != float("inf"):
            self._is_reading = True
            self._later(pace, self._read)

    def _read(self) -> None:
        self._is_reading = False
        if self.pace == float("inf"):
            return
        while self.published:
            parts, tracker = self.published.popleft()
            tracker.waiting -= 1
            self._take(parts)
            if self.pace and self.published:
                self._is_reading = True
                self._later(self.pace, self._read)
                return

    def _take(self, parts: list[bytes]) -> None:
        at = parts.index(DELIMITER)
        assert parts[at + 1] == self._signer.sign(parts[at + 2 : at + 6]), "a message with a wrong signature"
        kind = json.loads(parts[at + 2])["msg_type"]
        parent = json.loads(parts[at + 3]).get("msg_id", "")
        content = json.loads(parts[at + 5])
        self._is_greeted = True
        now = self.process.agenda.now
        if kind == "stream":
            for launch, number in TOKEN.findall(content["text"]):
                self.shown.append((now, int(launch), int(number)))
            for count in DROPPED.findall(content["text"]):
                self.told_dropped += int(count.replace(",", ""))
        elif kind == "status":
            self.statuses[parent] = content["execution_state"]
            self.idles[parent] += content["execution_state"] == "idle"

    def reply(self, channel: str, parts: list[bytes]) -> None:
        at = parts.index(DELIMITER)
        assert parts[at + 1] == self._signer.sign(parts[at + 2 : at + 6]), "a reply with a wrong signature"
        parent = json.loads(parts[at + 3]).get("msg_id", "")
        self._is_greeted = True
        self.replies[parent] += 1
