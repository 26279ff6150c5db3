"""A stand-in for a slow or failing engine: a proxy before the real engine's socket that delays or refuses some answers.

All else is the real engine's, upgraded streams (101) too. Use: `socket = "<path>"` in [hosts.lab] of the config.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Delay:
    """Requests whose `METHOD /path` matches wait this long before the engine sees them."""

    request: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Requests whose `METHOD /path` matches get this answer; the engine never sees them."""

    request: str
    status: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Guise:
    """Another engine that answers in the real one's place: what it says to GET /version, and the API that it takes."""

    answer: bytes
    # Numbers behind the `1.` of an API version; the calls that it takes are carried out by the real engine.
    oldest: int = 0
    newest: int = 999


# Docker 29, as it answers what asks for its version.
DOCKER_29 = Guise(
    answer=b'{"Version":"29.0.0","ApiVersion":"1.52","MinAPIVersion":"1.44","Arch":"amd64"}', oldest=44, newest=52
)
# The real engine speaks this one.
REAL_API = "1.41"


class SlowEngine:
    """Listens at `path`; rules are regular expressions on `POST /containers/create?name=...`, without the version."""

    def __init__(self, path: Path, *, engine: Path, mode: int = 0o660, gid: int = 0) -> None:
        self.path = path
        self._engine = engine
        self._rules: tuple[Delay | Refusal, ...] = ()
        # Set by becomes(); None: the real engine answers itself.
        self._guise: Guise | None = None
        # Every request line seen, oldest first; a test may read it.
        self.requests: list[str] = []
        self._is_closed = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        os.chown(path, 0, gid)
        path.chmod(mode)
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._serve, name="slow-engine", daemon=True)]
        self._threads[0].start()

    def __repr__(self) -> str:
        return f"<SlowEngine (stand-in) {self.path} {len(self.requests)} requests, rules {self._rules}>"

    @contextmanager
    def delays(self, request: str, seconds: float) -> Iterator[None]:
        """Requests that match wait so long first; those that wait go on at once at the end."""
        with self._rule(Delay(request=request, seconds=seconds)):
            yield

    @contextmanager
    def answers(self, status: int, request: str = "", message: str = "refused by the stand-in") -> Iterator[None]:
        """Requests that match get this status and the engine's form of a message."""
        with self._rule(Refusal(request=request, status=status, message=message)):
            yield

    def becomes(self, guise: Guise | None) -> None:
        """Another engine answers from here on, or the real one again; open connections end, as by a restart."""
        self._guise = guise
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _rule(self, rule: Delay | Refusal) -> Iterator[None]:
        before = self._rules
        self._rules = (*before, rule)
        try:
            yield
        finally:
            self._rules = before

    def _serve(self) -> None:
        while not self._is_closed.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(near,), name="slow-engine", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, near: socket.socket) -> None:
        far = socket.socket(socket.AF_UNIX)
        self._open |= {near, far}
        back = threading.Thread(target=_pump, args=(far, near), name="slow-engine", daemon=True)
        with near, far, suppress(OSError):
            far.connect(str(self._engine))
            back.start()
            with suppress(OSError):
                self._requests_through(near, far)
            # A client that has no more to say still hears: its half of the stream only.
            far.shutdown(socket.SHUT_WR)
            back.join()
        self._open -= {near, far}

    def _requests_through(self, near: socket.socket, far: socket.socket) -> None:
        """Pass requests one by one while their bodies can be measured, then bytes only."""
        pending = b""
        while not self._is_closed.is_set():
            while b"\r\n\r\n" not in pending:
                received = near.recv(_CHUNK_BYTES)
                if not received:
                    return
                pending += received
            head, _, pending = pending.partition(b"\r\n\r\n")
            line = head.split(b"\r\n", 1)[0].decode(errors="replace")
            wanted = re.sub(r"^(\w+) (?:/v[\d.]+)?(\S*) HTTP/.*$", r"\1 \2", line)
            self.requests.append(wanted)
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            left = int(length.group(1)) if length else 0
            answer = self._in_guise(line)
            if (refusal := self._obey(wanted)) is not None:
                answer = (refusal.status, f'{{"message":"{refusal.message}"}}'.encode())
            if answer is not None:
                # A client that still writes when the line is closed hears nothing of the answer.
                while len(pending) < left and (more := near.recv(_CHUNK_BYTES)):
                    pending += more
                status, body = answer
                text = f"HTTP/1.1 {status} Told\r\nContent-Type: application/json\r\nConnection: close\r\n"
                near.sendall(text.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
                return
            if self._guise is not None:
                head = re.sub(rb"^(\w+ /v)[\d.]+/", rb"\g<1>%s/" % REAL_API.encode(), head)
            far.sendall(head + b"\r\n\r\n")
            if re.search(rb"(?i)\r\n(upgrade:|transfer-encoding:)", head):
                far.sendall(pending)
                _pump(near, far)
                return
            while left > 0:
                if not pending:
                    pending = near.recv(_CHUNK_BYTES)
                    if not pending:
                        return
                far.sendall(pending[:left])
                left, pending = left - len(pending[:left]), pending[left:]

    def _in_guise(self, line: str) -> tuple[int, bytes] | None:
        """What another engine answers: its version, and to an API that it does not speak."""
        guise = self._guise
        if guise is None:
            return None
        if re.match(r"GET (/v[\d.]+)?/version ", line):
            return 200, guise.answer
        asked = re.match(r"\w+ /v1\.(\d+)/", line)
        number = int(asked[1]) if asked else guise.oldest
        if guise.oldest <= number <= guise.newest:
            return None
        words = f"client version 1.{number} is too " + (
            f"old. Minimum supported API version is 1.{guise.oldest}, please upgrade your client to a newer version"
            if number < guise.oldest
            else f"new. Maximum supported API version is 1.{guise.newest}"
        )
        return 400, f'{{"message":"{words}"}}'.encode()

    def _obey(self, wanted: str) -> Refusal | None:
        for rule in self._rules:
            if not re.search(rule.request, wanted):
                continue
            if isinstance(rule, Refusal):
                return rule
            deadline = time.monotonic() + rule.seconds
            while rule in self._rules and time.monotonic() < deadline and not self._is_closed.wait(0.02):
                pass
        return None

    def close(self) -> None:
        """End every connection and the listener. Safe to call twice."""
        self._is_closed.set()
        for one in (self._listener, *list(self._open)):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)
        self.path.unlink(missing_ok=True)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Carry bytes until the source ends, then end the sink's input."""
    with suppress(OSError):
        while received := source.recv(_CHUNK_BYTES):
            sink.sendall(received)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
