"""The proxy's own process: one loop that carries TCP connections and does to them what it is told. See proxy.py.

A process of its own, so that it takes no turn of the interpreter lock from what is measured beside it.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 1 << 18
# What may be under way in one direction: a long fat line (16 MiB window) is never narrower for the proxy's sake.
LINE_BYTES = 64 << 20
# A slow line holds little itself: what it does not carry must wait at its sender, as before a slow modem.
SLOW_LINE_BYTES = 16 << 10
SLOW_PIECE_BYTES = 4 << 10
SLOW_SOCKET_BYTES = 16 << 10  # Linux makes it twice that, its own book-keeping included.
# Linux's SO_BUF_LOCK; 0 lets it size the buffers by itself again.
_BUFFER_LOCK = 72


@dataclass
class Lane:
    """One direction of one connection: bytes that have left one side and are due at the other at a given time."""

    source: socket.socket
    sink: socket.socket
    queue: deque[tuple[float, memoryview | None]] = field(default_factory=deque)
    waiting_bytes: int = 0
    # Set when the source has sent its end of file.
    is_drained: bool = False
    # Set when the end of file was passed on.
    is_finished: bool = False
    # Set while the sink takes no more; the loop waits until it does.
    is_full: bool = False
    # Until when a slow line is taken by what went last; moved by write().
    taken_until: float = 0.0

    @property
    def due(self) -> float:
        """When the next piece may go."""
        return max(self.queue[0][0], self.taken_until)

    def read(self, one_way_seconds: float, most_bytes: int) -> None:
        """Take what the source has."""
        try:
            received = self.source.recv(most_bytes)
        except BlockingIOError:
            return
        due = time.monotonic() + one_way_seconds
        if not received:
            self.is_drained = True
            self.queue.append((due, None))
            return
        self.waiting_bytes += len(received)
        self.queue.append((due, memoryview(received)))

    def write(self, bytes_per_second: float) -> int:
        """Hand on what is due, no faster than told (0: as fast as it can); the number of bytes that went."""
        sent_bytes = 0
        while self.queue and self.due <= time.monotonic():
            due, chunk = self.queue.popleft()
            if chunk is None:
                self.is_finished = True
                self.sink.shutdown(socket.SHUT_WR)
                break
            try:
                sent = self.sink.send(chunk[:SLOW_PIECE_BYTES] if bytes_per_second else chunk)
            except BlockingIOError:
                sent = 0
                self.is_full = True
            sent_bytes += sent
            self.waiting_bytes -= sent
            if sent < len(chunk):
                self.queue.appendleft((due, chunk[sent:]))
            if bytes_per_second:
                # A pause of this machine's is made up for, up to 10 ms of it.
                self.taken_until = max(self.taken_until, time.monotonic() - 0.01) + sent / bytes_per_second
            elif sent < len(chunk):
                self.is_full = True
            if self.is_full:
                break
        return sent_bytes


class Proxy:
    """Listens on loopback; each connection is two lanes to the target."""

    def __init__(self, target: tuple[str, int], control: socket.socket) -> None:
        self.target = target
        self.control = control
        self.port = 0
        self.listener: socket.socket | None = None
        self.lanes: list[Lane] = []
        # What the line does at this moment; changed by the control socket only.
        self.one_way_seconds = 0.0
        # Of each connection, each way; 0 is no limit.
        self.bytes_per_second = 0.0
        self.mode = "open"
        self.carried_bytes = 0
        # Connections accepted so far.
        self.accepted = 0
        self._listen()

    def _listen(self) -> None:
        if self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            self.listener.setblocking(False)
            self.port = self.listener.getsockname()[1]

    def _refuse(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def _reset_all(self) -> None:
        for one in {one for lane in self.lanes for one in (lane.source, lane.sink)}:
            # Linger 0: the other side sees a reset, not an orderly end.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        self.lanes.clear()

    def obey(self, wish: dict[str, object]) -> dict[str, object]:
        """Change what the line does; the answer tells what it is now."""
        if "one_way_seconds" in wish:
            self.one_way_seconds = float(str(wish["one_way_seconds"]))
        if "bytes_per_second" in wish:
            self.bytes_per_second = float(str(wish["bytes_per_second"]))
            for lane in self.lanes:
                lane.taken_until = 0.0
                self._fit_buffers(lane.source)
        if "mode" in wish:
            self.mode = str(wish["mode"])
            if self.mode == "cut":
                self._refuse()
            else:
                self._listen()
            if self.mode in ("cut", "accept_then_close"):
                self._reset_all()
        if wish.get("reset"):
            self._reset_all()
        return {
            "port": self.port,
            "connections": len(self.lanes) // 2,
            "carried_bytes": self.carried_bytes,
            "accepted": self.accepted,
        }

    def _fit_buffers(self, one: socket.socket) -> None:
        """Keep little in the sockets of a slow line; let Linux size those of a fast one."""
        if self.bytes_per_second:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                one.setsockopt(socket.SOL_SOCKET, option, SLOW_SOCKET_BYTES)
        else:
            with suppress(OSError):  # Linux before 5.14 does not know it: small they stay.
                one.setsockopt(socket.SOL_SOCKET, _BUFFER_LOCK, 0)

    def _accept(self) -> None:
        if self.listener is None:
            return
        try:
            near, _ = self.listener.accept()
        except BlockingIOError:
            return
        self.accepted += 1
        if self.mode == "accept_then_close":
            near.close()
            return
        try:
            far = socket.create_connection(self.target, timeout=5)
        except OSError:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            near.close()
            return
        for one in (near, far):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.bytes_per_second:
                self._fit_buffers(one)
        self.lanes += [Lane(near, far), Lane(far, near)]

    def _drop(self, ended: Lane) -> None:
        pair = {ended.source, ended.sink}
        self.lanes = [lane for lane in self.lanes if lane.source not in pair]
        for one in pair:
            one.close()

    def _pause_seconds(self) -> float:
        if self.mode == "blackhole":
            return 1.0
        dues = [lane.due for lane in self.lanes if lane.queue and not lane.is_full]
        return max(0.0, min([due - time.monotonic() for due in dues], default=1.0))

    def turn(self) -> bool:
        """Wait for one event and act on it; false when the owner is gone."""
        readers: list[socket.socket] = [self.control]
        writers: list[socket.socket] = []
        if self.listener is not None and self.mode != "blackhole":
            readers.append(self.listener)
        if self.mode != "blackhole":
            most = SLOW_LINE_BYTES if self.bytes_per_second else LINE_BYTES
            readers += [lane.source for lane in self.lanes if not lane.is_drained and lane.waiting_bytes < most]
            writers += [lane.sink for lane in self.lanes if lane.is_full]
        # select, not epoll: its time limit is exact to microseconds, epoll's to milliseconds.
        readable, writable, _ = select.select(readers, writers, [], self._pause_seconds())
        if self.control in readable:
            line = self.control.recv(4096)
            if not line:
                return False
            self.control.sendall(json.dumps(self.obey(json.loads(line))).encode() + b"\n")
            return True
        if self.listener in readable:
            self._accept()
        if self.mode != "blackhole":
            self._carry(set(readable), set(writable))
        return True

    def _carry(self, readable: set[socket.socket], writable: set[socket.socket]) -> None:
        for lane in list(self.lanes):
            if lane not in self.lanes:
                continue
            if lane.sink in writable:
                lane.is_full = False
            try:
                if lane.source in readable and not lane.is_drained:
                    lane.read(self.one_way_seconds, SLOW_PIECE_BYTES if self.bytes_per_second else CHUNK_BYTES)
                if not lane.is_full:
                    self.carried_bytes += lane.write(self.bytes_per_second)
            except OSError:
                self._drop(lane)
                continue
            back = next(other for other in self.lanes if other.source is lane.sink)
            if lane.is_finished and back.is_finished:
                self._drop(lane)


def main() -> None:
    """Serve until the owner's end of the control socket closes."""
    address, port, handle = sys.argv[1:4]
    control = socket.socket(fileno=int(handle))
    proxy = Proxy((address, int(port)), control)
    control.sendall(json.dumps(proxy.obey({})).encode() + b"\n")
    while proxy.turn():
        pass


if __name__ == "__main__":
    main()
