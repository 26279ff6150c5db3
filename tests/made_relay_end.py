"""A relay's end of the stream, in this process: what a RelayClient joins, cuts and all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kernelbridge.hosts.backend import ContainerState, Running
from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import COMMAND, DATA, EVENT, IOPUB, Message
from kernelbridge.protocol.handshake import Busy, Goodbye, Hello, RelayEvent, Welcome
from kernelbridge.protocol.session import Session
from tests import made_events


class Line:
    """One exec stream to the relay."""

    def __init__(self, relay: RelayEnd, heard: Any) -> None:
        self._relay = relay
        self._heard = heard
        self._decoder = frames.Decoder()
        self.is_closed = False
        # The kinds of frames that came over it.
        self.kinds: list[int] = []

    def write(self, data: bytes) -> None:
        if self.is_closed or self._relay.is_deaf:
            return
        for frame in self._decoder.feed(bytes(data)):
            self.kinds.append(frame.kind)
            self._relay.hear(self, frame)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._heard.closed(None)

    def say(self, *framed: bytes) -> None:
        """Bytes that arrive at once, in the loop's next turn."""
        asyncio.get_running_loop().call_soon(self._arrive, b"".join(framed))

    def _arrive(self, data: bytes) -> None:
        if not self.is_closed:
            self._heard.data_received(data)

    def cut(self) -> None:
        """It ends, after all that was said."""
        asyncio.get_running_loop().call_soon(self.close)


Answer = Callable[[Line], None]


def refusing(reason: str, **facts: Any) -> Answer:
    return lambda line: line.say(Busy(reason, **facts).frame())


def output(text: str, *, channel: int = IOPUB) -> bytes:
    return frames.pack(Message(channel, 1, [text.encode()]))


@dataclass(kw_only=True)
class RelayEnd:
    """The relay, and the container that it runs in."""

    epoch: str = "epoch 1"
    container: ContainerState = field(default_factory=Running)
    log_text: str = ""
    # What the next tries to open a line come to, and what the next HELLOs do; then all goes well.
    attach_failures: list[Exception] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    # Faults: nothing gets through in either direction; it says nothing to a goodbye.
    is_deaf: bool = False
    is_rude: bool = False
    session: Session = field(default_factory=Session)
    lines: list[Line] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    pinged_at: list[float] = field(default_factory=list)
    goodbyes: list[Goodbye] = field(default_factory=list)
    # What it was told of what has arrived: quick lane, ordered lane.
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    # Messages to the kernel, and orders to itself.
    requests: list[str] = field(default_factory=list)
    orders: list[Any] = field(default_factory=list)

    # -- what a client asks of a Workload

    async def attach(self, receiver: Any) -> Any:
        await asyncio.sleep(0)
        if self.attach_failures:
            raise self.attach_failures.pop(0)
        self.lines.append(Line(self, receiver))
        return self.lines[-1]

    async def state(self) -> ContainerState:
        await asyncio.sleep(0)
        return self.container

    async def logs(self, tail: int) -> str:
        return "\n".join(self.log_text.splitlines()[-tail:])

    async def architectures(self, image: str) -> tuple[str, str]:
        return "arm64", "x86_64"

    async def end(self) -> None:
        raise AssertionError("who is joined to a relay does not end its container")

    # -- the relay

    @property
    def line(self) -> Line:
        """The newest."""
        return self.lines[-1]

    def hear(self, line: Line, frame: frames.Frame) -> None:
        now = asyncio.get_running_loop().time()
        if frame.kind == frames.HELLO:
            self.hellos.append(Hello.from_dict(json.loads(bytes(frame.payload))))
            answer = self.answers.pop(0) if self.answers else self.welcome
            answer(line)
        elif frame.kind == frames.PING:
            self.pinged_at.append(now)
            line.say(frames.frame(frames.PONG))
        elif frame.kind == frames.GOODBYE:
            self.goodbyes.append(Goodbye.from_dict(json.loads(bytes(frame.payload))))
            if not self.is_rude:
                line.say(frames.frame(frames.GOODBYE))
        else:
            if frame.kind == frames.ACK:
                self.acknowledged.append(frames.acknowledged(frame.payload))
            packed = self.session.accept(frame, now)
            if packed is not None:
                self._obey(frames.unpack(packed))

    def _obey(self, message: Message) -> None:
        said = bytes(message.parts[0]).decode()
        if message.channel == COMMAND:
            self.orders.append(json.loads(said))
        else:
            self.requests.append(said)

    def welcome(self, line: Line) -> None:
        """Let the newest HELLO in, and send what its line lacks."""
        welcome = Welcome(made_events.status(), self.session.received, self.epoch)
        self.session.resume(self.hellos[-1].received)
        line.say(welcome.frame())
        self.flush()

    def flush(self) -> None:
        # What a deaf one says is lost on the way, and is as good as sent.
        sent = self.session.outgoing(asyncio.get_running_loop().time())
        if sent and not self.is_deaf:
            self.line.say(*map(bytes, sent))

    def say(self, *said: str | RelayEvent, channel: int = IOPUB) -> None:
        """Output of the kernel, and events, in one piece."""
        for one in said:
            if isinstance(one, str):
                self.session.add(frames.LANE_OF[channel], output(one, channel=channel))
            else:
                told = json.dumps(one.to_dict()).encode()
                self.session.add(frames.LANE_OF[EVENT], frames.pack(Message(EVENT, one.launch, [told])))
        self.flush()

    def count(self, kind: int = DATA) -> int:
        """How many frames of a kind came over the newest line."""
        return self.line.kinds.count(kind)
