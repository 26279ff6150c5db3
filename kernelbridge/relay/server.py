"""Accept connections to the relay, decide who may hold the kernel, and move bytes to and from the one who does.

A line of the same owner replaces the one before; another owner hears who has it, unless it takes it (decisions.md,
16). A process after which another one had it does not come back. A question is answered and disturbs nobody.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, NamedTuple, Optional, Tuple

from ..protocol import frames
from ..protocol.handshake import DOOR_GREETING, OTHER_RELAY, Busy, Goodbye, HeldBy, Hello, Status, Welcome
from ..protocol.json_object import parse_object
from ..protocol.session import SILENCE_SECONDS, Session

CHUNK_BYTES = 256 * 1024
# Of so many processes that had the kernel it is known that another one had it after them.
FORMER_STREAMS = 1000
# Linux's struct ucred: process, user, group.
_PEER = struct.Struct("3i")
# What Linux calls a process that the container's own cannot see: one of the host's, such as sshd.
_OUTSIDE = 0


class Connection:
    """One line's connection: bytes in and out, never blocking.

    A bridge's bytes move on the exec's own pipes (see bridge.py), those of who came by the door on the socket itself.
    """

    def __init__(self, sock: socket.socket, *, by_door: bool = False) -> None:
        sock.setblocking(False)
        # Its end is the bridge's end; nothing but the pipes comes over it.
        self.sock = sock
        self.by_door = by_door
        # What is read and written: the pipes from and to the link; none before adopt().
        self.source = self.sink = sock.fileno() if by_door else -1
        self.decoder = frames.Decoder()
        self.heard = time.monotonic()
        # Whether its HELLO was accepted, and who it said it is.
        self.owner: Optional[str] = None
        # The same for people: login@machine.
        self.who = ""
        # What the pipe did not take yet.
        self.unsent: List[frames.Buffer] = []

    @property
    def is_adopted(self) -> bool:
        """Whether the pipes are here."""
        return self.source >= 0

    def adopt(self) -> None:
        """Take the pipes from the bridge. Raises OSError when it sent something else, or has gone."""
        descriptors = array.array("i")
        said, ancillary, _, _ = self.sock.recvmsg(1, socket.CMSG_SPACE(2 * descriptors.itemsize))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        if not said or len(descriptors) != 2:
            raise OSError("no pipes came")
        self.source, self.sink = descriptors
        # Till then the bridge waits for a moment only.
        self.sock.send(b"\0")

    def read(self) -> bytes:
        """Return what is there. Raises OSError at the end of the stream."""
        piece = os.read(self.source, CHUNK_BYTES)
        if not piece:
            raise OSError("end of stream")
        return piece

    def write(self, buffers: List[frames.Buffer]) -> None:
        """Write what the pipe takes; keep the rest. Raises OSError when nobody reads it any more."""
        self.unsent.extend(buffers)
        while self.unsent:
            try:
                written = os.writev(self.sink, self.unsent[:64])
            except BlockingIOError:
                return
            done = 0
            while done < len(self.unsent) and written >= len(self.unsent[done]):
                written -= len(self.unsent[done])
                done += 1
            del self.unsent[:done]
            if written:
                self.unsent[0] = memoryview(self.unsent[0])[written:]

    def close(self) -> None:
        """Close the pipes; the bridge ends with that."""
        for descriptor in (self.source, self.sink):
            if descriptor >= 0 and not self.by_door:
                os.close(descriptor)
        self.source = self.sink = -1
        self.sock.close()


class PlainPoller:
    """select.poll with zmq.Poller's habits, for an image without pyzmq: it must still say so."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register

    def poll(self, patience_ms: int) -> List[Any]:
        return list(self._poll.poll(patience_ms))


class Door(NamedTuple):
    """Another socket to listen at, in a folder of the host's, and whose processes of the host are let in there."""

    path: str
    uid: int


def door_of(order: Dict[str, Any]) -> Optional[Door]:
    """Read what an order says of a door."""
    said = order.get("door")
    return None if said is None else Door(str(said["path"]), int(said["uid"]))


def _listen(path: str, mode: Optional[int] = None) -> socket.socket:
    """Listen at a path. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # It has its name only when it listens: whoever sees it can connect.
        listener.bind(path + ".new")
        listener.listen(8)
        if mode is not None:
            os.chmod(path + ".new", mode)
        os.rename(path + ".new", path)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _open_door(door: Door) -> Optional[socket.socket]:
    """Listen at a door; None where that may not be: then there are bridges."""
    try:
        # The login has another number than this process, maybe. Nobody else passes the folder above it on the host.
        return _listen(door.path, 0o666)
    except OSError:
        return None


def _peer(sock: socket.socket) -> Tuple[int, int]:
    """Return the process that has connected, and its user's number."""
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    process, uid, _ = _PEER.unpack(said)
    return process, uid


class ServerHolder(NamedTuple):
    """The functions that the server calls of whoever runs the kernel."""

    kernel: str
    # With each message of the owner's.
    obey: Callable[[frames.Message], None]
    # How the relay and its kernel do; the last that the kernel process wrote to its own stdout and stderr.
    status: Callable[[], Status]
    log_text: Callable[[], str]
    # The output of cells that nobody has shown yet.
    output_text: Callable[[], str]
    # Somebody holds the kernel from now on; the line ended; the owner leaves in good order, saying this.
    joined: Callable[[], None]
    # Another process has it than before; whether it can show only output of its own clients' requests.
    handed_over: Callable[[bool], None]
    left: Callable[[], None]
    goodbye: Callable[[Goodbye], None]
    # Whether the kernel was left under this claim, and nobody has taken it since.
    may_claim: Callable[[str], bool]


class Server:
    """The listener, the lines behind it, and the stream to whoever holds the kernel."""

    def __init__(
        self, path: str, epoch: str, session: Session, supervisor: ServerHolder, *, door: Optional[Door] = None
    ) -> None:
        """Listen at `path` for bridges, and at a `door`."""
        self.epoch = epoch
        self.session = session
        self._supervisor = supervisor
        self.connection: Optional[Connection] = None
        # Lines that said no HELLO yet.
        self.pending: List[Connection] = []
        # Names the numbering of the process that held the kernel last, and it for people; empty before the first.
        self._stream, self._who = "", ""
        # The numberings of those before: what they lacked has gone to another one, under other numbers.
        self._former: Deque[str] = deque(maxlen=FORMER_STREAMS)
        # Wall clock of the machine here; told to others as a span.
        self._held_since = 0.0
        self.listener = _listen(path)
        self._door = door
        self.door = None if door is None else _open_door(door)

    @property
    def listeners(self) -> List[socket.socket]:
        """What is listened at."""
        return [self.listener, *([self.door] if self.door is not None else [])]

    @property
    def way(self) -> str:
        """How the owner is joined: `socket` or `exec`; empty without one."""
        return "" if self.connection is None else "socket" if self.connection.by_door else "exec"

    @property
    def connections(self) -> List[Connection]:
        """All lines that are open."""
        return [*self.pending, *([self.connection] if self.connection else [])]

    @property
    def takes_more(self) -> bool:
        """Whether somebody is joined whose line has taken all so far: else nothing can be said, however much is due."""
        return self.connection is not None and not self.connection.unsent

    def held_by(self, now: float) -> HeldBy:
        """Who holds the kernel, and for how many seconds."""
        owner = self.connection
        return HeldBy() if owner is None else HeldBy(owner.owner, owner.who, now - self._held_since)

    def accept(self) -> None:
        """Let a new line in."""
        self.pending.append(Connection(self.listener.accept()[0]))

    def accept_by_door(self) -> None:
        """Let a new line of the login's in, and nobody else, who hears nothing."""
        assert self.door is not None and self._door is not None
        sock = self.door.accept()[0]
        if _peer(sock) != (_OUTSIDE, self._door.uid):
            sock.close()
            return
        connection = Connection(sock, by_door=True)
        try:
            connection.write([DOOR_GREETING])
        except OSError:
            connection.close()
            return
        self.pending.append(connection)

    def read(self, connection: Connection, now: float) -> None:
        """Take in what came over a line; it is given up when it ends or is not our protocol."""
        try:
            if not connection.is_adopted:
                connection.adopt()
                return
            piece = connection.read()
            connection.heard = now
            for frame in connection.decoder.feed(piece):
                self._take(connection, frame, now)
        except BlockingIOError:
            return
        except (OSError, frames.WireError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self.disconnect(connection)

    def _take(self, connection: Connection, frame: frames.Frame, now: float) -> None:
        if frame.kind == frames.HELLO:
            self._greet(connection, Hello.from_dict(parse_object(frame.payload)), now)
            return
        if connection is self.connection:
            self.session.alive(now)
        if frame.kind == frames.PING:
            connection.write([frames.frame(frames.PONG, bytes(frame.payload))])
        elif connection is not self.connection:
            return
        elif frame.kind == frames.GOODBYE:
            goodbye = Goodbye.from_dict(parse_object(frame.payload))
            if not goodbye.lacks:
                self.session.forget_kept()
            self._supervisor.goodbye(goodbye)
            connection.write([frames.frame(frames.GOODBYE)])
            self.disconnect(connection)
        else:
            packed = self.session.accept(frame, now)
            if packed is not None:
                self._supervisor.obey(frames.unpack(packed))

    def _greet(self, connection: Connection, hello: Hello, now: float) -> None:
        refusal = self._refusal(hello, now)
        if refusal is not None:
            connection.write([refusal.frame()])
        elif hello.only_asks:
            supervisor = self._supervisor
            texts = {"logs": supervisor.log_text, "output": supervisor.output_text}
            answer = {"text": texts[hello.ask]()} if hello.ask in texts else supervisor.status().to_dict()
            connection.write([frames.frame(frames.ANSWER, json.dumps(answer).encode())])
        else:
            self._admit(connection, hello, now)

    def _refusal(self, hello: Hello, now: float) -> Optional[Busy]:
        """Return why a HELLO is refused; None if it is welcome."""
        if hello.kernel != self._supervisor.kernel:
            return Busy(OTHER_RELAY)
        if hello.only_asks:
            return None  # Of whatever version.
        if hello.version != frames.VERSION:
            return Busy(OTHER_RELAY, version=frames.VERSION, release=self._supervisor.status().release)
        if hello.stream in self._former:
            # It did not hear that it lost the kernel, and its numbers mean nothing here any more.
            return Busy("taken", who=self._who)
        if hello.claim and not self._supervisor.may_claim(hello.claim):
            return Busy("not left under this claim")
        if self.connection is not None and self.connection.owner != hello.owner and not hello.take:
            return Busy("held", **self.held_by(now)._asdict())
        return None

    def _admit(self, connection: Connection, hello: Hello, now: float) -> None:
        if self.connection is not None and self.connection.owner != hello.owner:
            # The loser must not come back: two that take it from each other would do so for ever.
            try:
                self.connection.write([Busy("taken", who=hello.who).frame()])
            except OSError:
                pass  # It has gone already.
        self.close_connection()
        self.pending.remove(connection)
        connection.owner, connection.who = hello.owner, hello.who
        if hello.stream != self._stream:
            if self._stream:
                self._former.append(self._stream)
                self.session.hand_over()
            self._supervisor.handed_over(bool(hello.only_own))
            # Seconds on the relay's clock; a line that is only renewed is held since before.
            self._stream, self._who, self._held_since = hello.stream, hello.who, now
        self.connection = connection
        self._supervisor.joined()
        connection.write([Welcome(self._supervisor.status(), self.session.received, self.epoch).frame()])
        self.session.resume(hello.received)

    def close_connection(self) -> None:
        """Give up the line in use, if there is one."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def disconnect(self, connection: Connection) -> None:
        """Forget a line that ended."""
        if connection is self.connection:
            self.close_connection()
            self._supervisor.left()
        elif connection in self.pending:
            self.pending.remove(connection)
            connection.close()

    def flush(self, now: float) -> None:
        """Put on the line what may go."""
        connection = self.connection
        if connection is None:
            return
        try:
            connection.write(self.session.outgoing(now) if self.takes_more else [])
        except OSError:
            self.disconnect(connection)

    def serve(self, ready: Dict[Any, int], now: float) -> None:
        """Do what the poll found, and give up lines that are silent."""
        if self.listener.fileno() in ready:
            self.accept()
        if self.door is not None and self.door.fileno() in ready:
            self.accept_by_door()
        for connection in self.connections:
            if connection.is_adopted and connection.source in ready:
                self.read(connection, now)
            elif connection.sock.fileno() in ready:
                if connection.is_adopted:
                    self.disconnect(connection)  # The bridge says nothing more: it has gone.
                else:
                    self.read(connection, now)
            elif now - connection.heard > SILENCE_SECONDS:
                self.disconnect(connection)

    def close(self) -> None:
        """Write what the pipes still take, then close all."""
        until = time.monotonic() + 1
        while self.connection is not None and self.connection.unsent and time.monotonic() < until:
            self.flush(time.monotonic())
            time.sleep(0.005)
        for connection in self.connections:
            connection.close()
        for listener in self.listeners:
            listener.close()
        if self.door is not None and self._door is not None:
            try:
                os.unlink(self._door.path)
            except OSError:
                pass  # The folder went first.
