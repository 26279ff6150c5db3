"""A line that can fail: a TCP proxy with named faults before sshd. Its loop: see proxy_process.py."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TcpProxy:
    """Carries TCP from 127.0.0.1:`port` to a target; without a fault as fast as it can.

    Faults do not stack: each sets what the line does, and its end makes the line whole again.
    """

    def __init__(self, address: str, port: int) -> None:
        self.target = (address, port)
        self._control, theirs = socket.socketpair()
        self._answers = self._control.makefile("r")
        script = Path(__file__).with_name("proxy_process.py")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(script), address, str(port), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it
            )
        self._control.settimeout(20)
        self.port = int(json.loads(self._answers.readline())["port"])

    def __repr__(self) -> str:
        return f"<TcpProxy 127.0.0.1:{self.port} to {self.target} {self.connections} connections>"

    def _tell(self, **wish: object) -> dict[str, int]:
        self._control.sendall(json.dumps(wish).encode())
        answer: dict[str, int] = json.loads(self._answers.readline())
        return answer

    @property
    def connections(self) -> int:
        """How many connections are open through it."""
        return self._tell()["connections"]

    @property
    def carried_bytes(self) -> int:
        """Bytes carried so far, both ways together."""
        return self._tell()["carried_bytes"]

    @property
    def accepted(self) -> int:
        """How many connections were accepted so far."""
        return self._tell()["accepted"]

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Every connection is reset and new ones are refused; listens again at the end."""
        with self._fault("cut"):
            yield

    @contextmanager
    def blackhole(self) -> Iterator[None]:
        """Bytes stop in both directions and nobody is told; connections that survive go on at the end."""
        with self._fault("blackhole"):
            yield

    @contextmanager
    def blackhole_then_reset(self) -> Iterator[None]:
        """Bytes stop in both directions; at the end what was under way is gone, every connection reset."""
        with self._fault("blackhole"):
            yield
            self.reset()

    @contextmanager
    def accept_then_close(self) -> Iterator[None]:
        """Every connection is reset; new ones are accepted and closed without a byte."""
        with self._fault("accept_then_close"):
            yield

    @contextmanager
    def delay(self, round_trip_seconds: float) -> Iterator[None]:
        """The line is this much longer, half of it each way; its width stays."""
        self._tell(one_way_seconds=round_trip_seconds / 2)
        try:
            yield
        finally:
            self._tell(one_way_seconds=0)

    @contextmanager
    def rate(self, bytes_per_second: float) -> Iterator[None]:
        """Each connection carries so many bytes a second each way; the line itself holds at most 64 KiB of them."""
        self._tell(bytes_per_second=bytes_per_second)
        try:
            yield
        finally:
            self._tell(bytes_per_second=0)

    def reset(self) -> None:
        """Reset the connections of now, once; new ones are welcome."""
        self._tell(reset=True)

    @contextmanager
    def _fault(self, mode: str) -> Iterator[None]:
        self._tell(mode=mode)
        try:
            yield
        finally:
            self._tell(mode="open")

    def close(self) -> None:
        """End the proxy and its connections. Safe to call twice."""
        self._answers.close()
        self._control.close()
        self._process.wait(timeout=10)
