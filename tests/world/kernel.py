"""A kernel made up for a world: numbered output, each request once, one after the other; it can be ended any time."""

from __future__ import annotations

import json
import re
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kernelbridge.protocol.handshake import ExitedEvent

if TYPE_CHECKING:
    from tests.world.host import Host

DELIMITER = b"<IDS|MSG>"
TOKEN = re.compile(r"<(\d+)\.(\d+)>")


@dataclass(frozen=True)
class Plan:
    """What a cell does: so many outputs, `at_once` together, each `size` long, with pauses; then it may die."""

    outputs: int = 1
    at_once: int = 1
    pause: float = 0.1
    size: int = 10
    dies: bool = False

    @property
    def code(self) -> str:
        return json.dumps(asdict(self))


def token(launch: int, number: int) -> str:
    return f"<{launch}.{number}>"


class MadeProcess:
    """One launch, in the place of KernelProcess: both the process and what runs in it."""

    def __init__(self, host: Host, launch: int, order: Mapping[str, Any]) -> None:
        self.host = host
        self.launch = launch
        self.session: str = order["session"]
        self.interrupt_mode = "signal"
        self.moved = self.pipes = self.handlers = None
        self.outputs: list[int] = []
        self.end_wanted = False
        self.code: int | None = None
        self.sockets: dict[str, Any] = {}
        self.popen = self
        self.pid = 10_000 + launch
        # What was asked before it listened, and what waits; then what it does now: header, identities, what is left.
        self._early: list[tuple[str, list[bytes]]] = []
        self._is_up = False
        self._waiting: deque[list[bytes]] = deque()
        self._cell: tuple[list[bytes], Plan] | None = None
        self._left = self._count = 0
        self._beat = 0
        # How many outputs it ever made.
        self.said = 0
        host.agenda.after(host.chance.choice((0.05, 0.3, 1.0)), self._up)

    # -- the process

    def poll(self) -> int | None:
        return self.code

    def wait(self) -> None: ...
    def close(self) -> None: ...
    def read_output(self) -> bool:
        return False

    def setup_state(self) -> None: ...

    def address(self, port: int) -> str:
        return f"ipc:///{self.launch}/k-{port}"

    def signal_group(self, number: int) -> None:
        if self.code is not None:
            return
        if number == signal.SIGINT:
            if self._cell is not None:
                self.host.counts["interrupted"] += 1
                self._finish(is_interrupted=True)
        else:
            self.end(-number)

    def stop(self, number: int = signal.SIGKILL) -> None:
        self.end_wanted = True
        self.signal_group(number)

    def end(self, code: int) -> None:
        if self.code is None:
            self.code = code
            self.host.bell_rings()

    def outcome(self) -> ExitedEvent | None:
        if self.code is None:
            return None
        return ExitedEvent(
            launch=self.launch, code=self.code, out_of_memory=False, wanted=self.end_wanted, last_words=""
        )

    # -- what runs in it

    @property
    def is_idle(self) -> bool:
        return self._cell is None and not self._waiting

    def _up(self) -> None:
        self._is_up = True
        early, self._early = self._early, []
        for channel, parts in early:
            self.hear(channel, parts)

    def hear(self, channel: str, parts: list[bytes]) -> None:
        if self.code is not None:
            return
        if not self._is_up:
            self._early.append((channel, parts))
            return
        at = parts.index(DELIMITER)
        header = json.loads(parts[at + 2])
        if header["msg_type"] == "shutdown_request":
            self.host.counts["a kernel shut down as it was asked to"] += 1
            self._reply(parts, {"status": "ok", **json.loads(parts[at + 5])}, channel=channel)
            self.host.agenda.after(0.02, lambda: self.end(0))
            return
        if header["msg_type"] == "execute_request":
            self.host.ran[header["msg_id"]] += 1
        self._waiting.append(parts)
        if self._cell is None:
            self.host.agenda.after(0.0005, self._next)

    def _next(self) -> None:
        if self._cell is not None or not self._waiting or self.code is not None:
            return
        parts = self._waiting.popleft()
        at = parts.index(DELIMITER)
        header = json.loads(parts[at + 2])
        self._say("status", header, execution_state="busy")
        if header["msg_type"] != "execute_request":
            info = {"status": "ok", "banner": "made up", "protocol_version": "5.3", "language_info": {"name": "p"}}
            self._reply(parts, info)
            self._say("status", header, execution_state="idle")
            self.host.agenda.after(0.0005, self._next)
            return
        content = json.loads(parts[at + 5])
        self._count += 1
        self._say("execute_input", header, code="cell", execution_count=self._count)
        self._cell = (parts, Plan(**json.loads(content["code"])))
        self._left = self._cell[1].outputs
        self._beat += 1
        self.host.agenda.after(0.001, lambda beat=self._beat: self._work(beat))  # type: ignore[misc]

    def _work(self, beat: int) -> None:
        if self._cell is None or beat != self._beat or self.code is not None:
            return
        parts, plan = self._cell
        header = json.loads(parts[parts.index(DELIMITER) + 2])
        for _ in range(min(plan.at_once, self._left)):
            self.said += 1
            text = token(self.launch, self.said).ljust(plan.size, ".")
            self.host.printed.append((self.launch, self.said))
            self._say("stream", header, name="stdout", text=text + "\n")
        self._left -= min(plan.at_once, self._left)
        if self._left:
            self.host.agenda.after(plan.pause, lambda: self._work(beat))
        elif plan.dies:
            self.end(1)
        else:
            self._finish()

    def _finish(self, *, is_interrupted: bool = False) -> None:
        assert self._cell is not None
        parts, _ = self._cell
        header = json.loads(parts[parts.index(DELIMITER) + 2])
        content: dict[str, Any] = {"status": "ok", "execution_count": self._count}
        if is_interrupted:
            content |= {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
            self._say("error", header, ename="KeyboardInterrupt", evalue="", traceback=[])
        self._reply(parts, content)
        self._say("status", header, execution_state="idle")
        self._cell = None
        self._beat += 1
        self.host.agenda.after(0.0005, self._next)

    def _reply(self, parts: Sequence[bytes], content: Mapping[str, Any], *, channel: str = "shell") -> None:
        at = parts.index(DELIMITER)
        header = json.loads(parts[at + 2])
        kind = header["msg_type"].replace("_request", "_reply")
        self._put(channel, [*parts[1:at], *self._message(kind, header, content)])

    def _say(self, kind: str, parent: Mapping[str, Any], **content: Any) -> None:
        self._put("iopub", [f"k.{kind}".encode(), *self._message(kind, parent, content)])

    def _message(self, kind: str, parent: Mapping[str, Any], content: Mapping[str, Any]) -> list[bytes]:
        own = {"msg_id": self.host.name_one(), "msg_type": kind, "session": self.session, "version": "5.3"}
        return [DELIMITER, b"", *(json.dumps(part).encode() for part in (own, parent, {}, content))]

    def _put(self, channel: str, parts: list[bytes]) -> None:
        sock = self.sockets.get(channel)
        if sock is not None:
            sock.arrived.append(parts)
            self.host.ring()
