"""Who may hold the kernel: lines that knock, the one line that holds it, what goes over it. What it holds: __main__.py.

A line of the same owner replaces the one before; another owner hears who has it, unless it takes it (design,
decision 16). A question is answered and disturbs nobody.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, Dict, List, Optional, Protocol

from . import wire
from .line import Line
from .replay import Peer

# The bridge pings; a line without a sign of life for so long is given up (design, decision 8).
SILENCE_SECONDS = 15.0


class Holder(Protocol):
    """The relay behind the door."""

    kernel: str

    def obey(self, message: wire.Message) -> None:
        """A message of the owner's."""

    def answer(self, ask: str) -> Dict[str, Any]:
        """Return what is asked for: status or logs."""

    def joined(self) -> None:
        """Somebody holds the kernel from now on."""

    def left(self) -> None:
        """The line ended."""

    def goodbye(self, said: Dict[str, Any]) -> None:
        """The owner leaves in good order."""

    def may_claim(self, claim: str) -> bool:
        """Whether the kernel was left under this claim, and nobody has taken it since."""


class Door:
    """The listener, the lines behind it, and the stream to whoever holds the kernel."""

    def __init__(self, path: str, epoch: str, peer: Peer, holder: Holder) -> None:
        self.epoch = epoch
        self.peer = peer
        self._holder = holder
        self.line: Optional[Line] = None
        # Lines that said no HELLO yet.
        self.strangers: List[Line] = []
        # Names the numbering of the process that held the kernel last; empty before the first.
        self._stream = ""
        # Wall clock of the machine here; told to others as a span.
        self._held_since = 0.0
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # It has its name only when it listens: whoever sees it can connect.
        self.listener.bind(path + ".new")
        self.listener.listen(8)
        os.rename(path + ".new", path)
        self.listener.setblocking(False)

    @property
    def lines(self) -> List[Line]:
        """All lines that are open."""
        return [*self.strangers, *([self.line] if self.line else [])]

    def holder_facts(self, now: float) -> Dict[str, Any]:
        """Who holds the kernel, and for how many seconds; empty words if nobody does."""
        line = self.line
        if line is None:
            return {"owner": None, "who": "", "held_seconds": 0.0}
        return {"owner": line.owner, "who": line.who, "held_seconds": now - self._held_since}

    def knock(self) -> None:
        """Let a new line in."""
        self.strangers.append(Line(self.listener.accept()[0]))

    def read(self, line: Line, now: float) -> None:
        """Take in what came over a line; it is given up when it ends or is not our protocol."""
        try:
            if not line.is_adopted:
                line.adopt()
                return
            piece = line.read()
            line.heard = now
            for frame in line.decoder.feed(piece):
                self._take(line, frame, now)
        except BlockingIOError:
            return
        except (OSError, wire.WireError, ValueError, KeyError):
            self.lose(line)

    def _take(self, line: Line, frame: wire.Frame, now: float) -> None:
        if frame.kind == wire.HELLO:
            self._greet(line, json.loads(bytes(frame.payload)), now)
            return
        if line is self.line:
            self.peer.alive(now)
        if frame.kind == wire.PING:
            line.write([wire.frame(wire.PONG, bytes(frame.payload))])
        elif line is not self.line:
            return
        elif frame.kind == wire.GOODBYE:
            self.peer.forget_kept()
            self._holder.goodbye(json.loads(bytes(frame.payload)))
            line.write([wire.frame(wire.GOODBYE)])
            self.lose(line)
        else:
            packed = self.peer.accept(frame, now)
            if packed is not None:
                self._holder.obey(wire.unpack(packed))

    def _greet(self, line: Line, hello: Dict[str, Any], now: float) -> None:
        refusal = self._refusal(hello, now)
        if refusal is not None:
            line.write([wire.frame(wire.BUSY, json.dumps(refusal).encode())])
        elif hello.get("ask", "attach") != "attach":
            line.write([wire.frame(wire.ANSWER, json.dumps(self._holder.answer(hello["ask"])).encode())])
        else:
            self._admit(line, hello, now)

    def _refusal(self, hello: Dict[str, Any], now: float) -> Optional[Dict[str, Any]]:
        """Return why a HELLO is refused; None if it is welcome."""
        if hello.get("kernel") != self._holder.kernel or hello.get("version") != wire.VERSION:
            return {"reason": "other kernel or version"}
        if hello.get("ask", "attach") != "attach":
            return None
        claim = hello.get("claim")
        if claim and not self._holder.may_claim(claim):
            return {"reason": "not left under this claim"}
        if self.line is not None and self.line.owner != hello["owner"] and not hello.get("take"):
            return dict(self.holder_facts(now), reason="held")
        return None

    def _admit(self, line: Line, hello: Dict[str, Any], now: float) -> None:
        if self.line is not None and self.line.owner != hello["owner"]:
            # The loser must not come back: two that take it from each other would do so for ever.
            said = {"reason": "taken", "who": hello.get("who", "")}
            try:
                self.line.write([wire.frame(wire.BUSY, json.dumps(said).encode())])
            except OSError:
                pass  # It has gone already.
        self.close_line()
        self.strangers.remove(line)
        line.owner, line.who = hello["owner"], hello.get("who", "")
        if hello["stream"] != self._stream:
            if self._stream:
                self.peer.hand_over()
            # Seconds on the relay's clock; a line that is only renewed is held since before.
            self._stream, self._held_since = hello["stream"], now
        self.line = line
        self._holder.joined()
        welcome = dict(self._holder.answer("status"), received=self.peer.received, epoch=self.epoch)
        line.write([wire.frame(wire.WELCOME, json.dumps(welcome).encode())])
        self.peer.resume(hello["received"])

    def close_line(self) -> None:
        """Give up the line in use, if there is one."""
        if self.line is not None:
            self.line.close()
            self.line = None

    def lose(self, line: Line) -> None:
        """Forget a line that ended."""
        if line is self.line:
            self.close_line()
            self._holder.left()
        elif line in self.strangers:
            self.strangers.remove(line)
            line.close()

    def flush(self, now: float) -> None:
        """Put on the line what may go."""
        line = self.line
        if line is None:
            return
        try:
            line.write([] if line.unsent else self.peer.outgoing(now))
        except OSError:
            self.lose(line)

    def serve(self, ready: Dict[Any, int], now: float) -> None:
        """Do what the poll found, and give up lines that are silent."""
        if self.listener.fileno() in ready:
            self.knock()
        for line in self.lines:
            if line.is_adopted and line.source in ready:
                self.read(line, now)
            elif line.sock.fileno() in ready:
                if line.is_adopted:
                    self.lose(line)  # The bridge says nothing more: it has gone.
                else:
                    self.read(line, now)
            elif now - line.heard > SILENCE_SECONDS:
                self.lose(line)

    def close(self) -> None:
        """Write what the pipes still take, then close all."""
        until = time.monotonic() + 1
        while self.line is not None and self.line.unsent and time.monotonic() < until:
            self.flush(time.monotonic())
            time.sleep(0.005)
        for line in self.lines:
            line.close()
        self.listener.close()
