"""The system calls of a relay's machine, as far as a relay makes them: sockets, pipes, poll, a disk that may fail."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import zmq

from tests.world.kernel import TOKEN
from tests.world.line import Line

if TYPE_CHECKING:
    from tests.world.host import Host

_FIRST_DESCRIPTOR = 1000
_READ, _WRITE = int(zmq.POLLIN), int(zmq.POLLOUT)


class Descriptors:
    """Open files by number."""

    def __init__(self) -> None:
        self._newest = _FIRST_DESCRIPTOR
        self.open: dict[int, Any] = {}

    def add(self, thing: Any) -> int:
        self._newest += 1
        self.open[self._newest] = thing
        return self._newest


class Bell:
    """One end of the socket pair that wakes a relay's loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._number = host.descriptors.add(self)
        self.rings = deque[bytes]()
        self.other = self

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def fileno(self) -> int:
        return self._number

    def send(self, data: bytes) -> int:
        self.other.rings.append(data)
        self._host.ring()
        return len(data)

    def recv(self, size: int) -> bytes:
        return self.rings.popleft() if self.rings else b""

    @property
    def is_readable(self) -> bool:
        return bool(self.rings)


class BridgeSocket:
    """A bridge's connection: hands its pipes over, and is there for as long as the bridge lives."""

    def __init__(self, host: Host, line: Line) -> None:
        self._host = host
        self.line = line
        self._number = host.descriptors.add(self)
        self._is_taken = False

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def fileno(self) -> int:
        return self._number

    def recvmsg(self, size: int, ancillary_size: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        self._is_taken = True
        ends = array.array("i", [self._host.descriptors.add(end) for end in (Source(self.line), Sink(self.line))])
        return b"\0", [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ends.tobytes())], 0, None

    def send(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        self._host.descriptors.open.pop(self._number, None)
        self.line.close_there()

    @property
    def is_readable(self) -> bool:
        return not self._is_taken


class Source:
    """The pipe from the link."""

    def __init__(self, line: Line) -> None:
        self.line = line

    @property
    def is_readable(self) -> bool:
        return bool(self.line.source) or self.line.has_ended

    def read(self, size: int) -> bytes:
        piece = bytes(self.line.source[:size])
        if not piece and not self.line.has_ended:
            raise BlockingIOError
        del self.line.source[: len(piece)]
        return piece


class Sink:
    """The pipe to the link."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.is_readable = False

    @property
    def is_writable(self) -> bool:
        return self.line.room() > 0 or self.line.has_ended

    def write(self, data: bytes) -> int:
        if self.line.has_ended:
            raise BrokenPipeError
        taken = min(len(data), self.line.room())
        if taken <= 0:
            raise BlockingIOError
        self.line.put(data[:taken])
        return taken


class Listener:
    """The relay's socket."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._number = host.descriptors.add(self)
        self.waiting = deque[BridgeSocket]()
        host.listener = self

    def bind(self, path: str) -> None: ...
    def listen(self, backlog: int) -> None: ...
    def setblocking(self, flag: bool) -> None: ...
    def close(self) -> None:
        while self.waiting:
            self.waiting.popleft().close()

    def fileno(self) -> int:
        return self._number

    def accept(self) -> tuple[BridgeSocket, str]:
        return self.waiting.popleft(), ""

    @property
    def is_readable(self) -> bool:
        return bool(self.waiting)


class SocketModule:
    """`socket`, in the place of the module."""

    AF_UNIX, SOCK_STREAM = socket.AF_UNIX, socket.SOCK_STREAM
    SOL_SOCKET, SCM_RIGHTS = socket.SOL_SOCKET, socket.SCM_RIGHTS
    CMSG_SPACE = staticmethod(socket.CMSG_SPACE)

    def __init__(self, host: Host) -> None:
        self._host = host

    def socket(self, family: int, kind: int) -> Listener:
        return Listener(self._host)

    def socketpair(self) -> tuple[Bell, Bell]:
        ends = Bell(self._host), Bell(self._host)
        ends[0].other, ends[1].other = ends[1], ends[0]
        return ends


class OsModule:
    """`os`, in the place of the module; what is not here is the real one's."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def read(self, number: int, size: int) -> bytes:
        found: bytes = self._host.descriptors.open[number].read(size)
        return found

    def writev(self, number: int, buffers: Sequence[Any]) -> int:
        written: int = self._host.descriptors.open[number].write(b"".join(buffers))
        return written

    def close(self, number: int) -> None:
        self._host.descriptors.open.pop(number, None)

    def rename(self, old: str, new: str) -> None: ...

    # -- the disk

    def makedirs(self, path: str, mode: int, exist_ok: bool) -> None: ...

    def access(self, path: str, mode: int) -> bool:
        return True

    def pwritev(self, number: int, pieces: Sequence[bytes], at: int) -> int:
        return self.pwrite(number, b"".join(pieces), at)

    def pwrite(self, number: int, data: Any, at: int) -> int:
        return self._host.disk.write(number, bytes(data), at)

    def pread(self, number: int, size: int, at: int) -> bytes:
        return self._host.disk.read(number, size, at)

    def ftruncate(self, number: int, size: int) -> None:
        del self._host.disk.files[number][size:]

    def unlink(self, path: str) -> None:
        self._host.disk.files.pop(int(path), None)


class Disk:
    """The files of a spool. It may be full, take part of a write, or not give back what it has."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.files: dict[int, bytearray] = {}
        self.is_full = self.is_broken = self.has_been_full = False
        self.writes = 0
        # At which of its writes it is full next.
        self.full_at_write: int | None = None

    def mkstemp(self, prefix: str, dir: str) -> tuple[int, str]:
        if self.is_full:
            raise OSError(errno.ENOSPC, "full")
        number = self._host.descriptors.add(self)
        self.files[number] = bytearray()
        return number, str(number)

    def write(self, number: int, data: bytes, at: int) -> int:
        self.writes += 1
        size = len(data)
        if self.full_at_write is not None and self.writes >= self.full_at_write:
            self.full_at_write = None
            self.has_been_full = True
            self._host.counts["a disk was full at one write"] += 1
            self.files[number][at:] = data[: self._host.chance.randrange(size + 1)]
            raise OSError(errno.ENOSPC, "full")
        if self.is_full:
            # What there was room for is written before that is noticed.
            self.files[number][at:] = data[: size // 3]
            raise OSError(errno.ENOSPC, "full")
        if size > 10 and self._host.chance.random() < 0.2:
            size = self._host.chance.randrange(1, size)
        self.files[number][at : at + size] = data[:size]
        return size

    def read(self, number: int, size: int, at: int) -> bytes:
        if self.is_broken:
            raise OSError(errno.EIO, "broken")
        if size > 10 and self._host.chance.random() < 0.2:
            size = self._host.chance.randrange(1, size)
        return bytes(self.files[number][at : at + size])


class KernelSocket:
    """A relay's ZMQ socket to its kernel."""

    def __init__(self, host: Host, kind: int) -> None:
        self._host = host
        self._kind = kind
        self.linger = self.reconnect_ivl = self.rcvhwm = self.sndhwm = 0
        self.routing_id = b""
        self.arrived = deque[list[bytes]]()
        self._kernel: Any = None
        self._channel = ""

    def subscribe(self, topic: bytes) -> None: ...

    def connect(self, address: str) -> None:
        launch, _, port = address.rpartition("/k-")
        self._channel = ("shell", "iopub", "stdin", "control")[int(port) - 1]
        self._kernel = self._host.kernels[int(launch.rpartition("/")[2])]
        self._kernel.sockets[self._channel] = self

    def send_multipart(self, parts: Sequence[Any]) -> None:
        self._kernel.hear(self._channel, [self.routing_id, *map(bytes, parts)])

    def recv_multipart(self, flags: int) -> list[bytes]:
        if not self.arrived:
            raise zmq.Again
        return self.arrived.popleft()

    def close(self) -> None:
        for parts in self.arrived:
            found = TOKEN.findall(bytes(parts[-1]).decode()) if self._channel == "iopub" else []
            self._host.unread.update((int(launch), int(number)) for launch, number in found)
        self.arrived.clear()
        if self._kernel.sockets.get(self._channel) is self:
            del self._kernel.sockets[self._channel]

    @property
    def is_readable(self) -> bool:
        return bool(self.arrived)


class Poller:
    """zmq.Poller, which never waits here."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sources: list[tuple[Any, int]] = []

    def register(self, source: Any, mask: int) -> None:
        self._sources.append((source, mask))

    def poll(self, patience_ms: int) -> list[tuple[Any, int]]:
        found = []
        for source, mask in self._sources:
            thing = self._host.descriptors.open.get(source) if isinstance(source, int) else source
            if thing is None:
                continue
            if (mask & _READ and thing.is_readable) or (mask & _WRITE and thing.is_writable):
                found.append((source, mask))
        return found


class ZmqModule:
    """`zmq`, as a relay uses it; and its Context."""

    POLLIN, POLLOUT, NOBLOCK, SUB, DEALER = _READ, _WRITE, zmq.NOBLOCK, zmq.SUB, zmq.DEALER
    Again = zmq.Again

    def __init__(self, host: Host) -> None:
        self._host = host
        self.Poller: Callable[[], Poller] = lambda: Poller(host)

    def socket(self, kind: int) -> KernelSocket:
        return KernelSocket(self._host, kind)
