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
from dataclasses import dataclass, field

CHUNK_BYTES = 1 << 18
# What may be under way in one direction: a long fat line (16 MiB window) is never narrower for the proxy's sake.
LINE_BYTES = 64 << 20


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

    def read(self, one_way_seconds: float) -> None:
        """Take what the source has."""
        try:
            received = self.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        due = time.monotonic() + one_way_seconds
        if not received:
            self.is_drained = True
            self.queue.append((due, None))
            return
        self.waiting_bytes += len(received)
        self.queue.append((due, memoryview(received)))

    def write(self) -> int:
        """Hand on what is due; the number of bytes that went."""
        sent_bytes = 0
        while self.queue and self.queue[0][0] <= time.monotonic():
            due, chunk = self.queue.popleft()
            if chunk is None:
                self.is_finished = True
                self.sink.shutdown(socket.SHUT_WR)
                break
            try:
                sent = self.sink.send(chunk)
            except BlockingIOError:
                sent = 0
            sent_bytes += sent
            self.waiting_bytes -= sent
            if sent < len(chunk):
                self.queue.appendleft((due, chunk[sent:]))
                self.is_full = True
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
        self.mode = "open"
        self.carried_bytes = 0
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
        return {"port": self.port, "connections": len(self.lanes) // 2, "carried_bytes": self.carried_bytes}

    def _accept(self) -> None:
        if self.listener is None:
            return
        try:
            near, _ = self.listener.accept()
        except BlockingIOError:
            return
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
        self.lanes += [Lane(near, far), Lane(far, near)]

    def _drop(self, ended: Lane) -> None:
        pair = {ended.source, ended.sink}
        self.lanes = [lane for lane in self.lanes if lane.source not in pair]
        for one in pair:
            one.close()

    def _pause_seconds(self) -> float:
        if self.mode == "blackhole":
            return 1.0
        dues = [lane.queue[0][0] for lane in self.lanes if lane.queue and not lane.is_full]
        return max(0.0, min([due - time.monotonic() for due in dues], default=1.0))

    def turn(self) -> bool:
        """Wait for one event and act on it; false when the owner is gone."""
        readers: list[socket.socket] = [self.control]
        writers: list[socket.socket] = []
        if self.listener is not None and self.mode != "blackhole":
            readers.append(self.listener)
        if self.mode != "blackhole":
            readers += [lane.source for lane in self.lanes if not lane.is_drained and lane.waiting_bytes < LINE_BYTES]
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
                    lane.read(self.one_way_seconds)
                if not lane.is_full:
                    self.carried_bytes += lane.write()
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
