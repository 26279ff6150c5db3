"""Carry many TCP connections over one stream of bytes, at both ends of it. Pure: no socket, no clock.

One end, on the user's machine, opens connections to ports; the other, in the container, takes or refuses them. Each
direction of each connection has a window: a sender stops when it has sent so much that the other end's reader has not
taken, so that one slow reader neither fills a memory nor holds up the others.
"""

from __future__ import annotations

import json
import struct
from typing import Dict, List, NamedTuple, Optional, Union

from .frames import Buffer, WireError
from .json_object import JsonObject, parse_object, plain

# Kinds of mux frames.
_OPEN, _OPENED, _REFUSED, _DATA, _EOF, _RESET, _WINDOW, _PING, _PONG = range(1, 10)

# In one direction of one connection, without a word that it was taken.
MUX_WINDOW_BYTES = 1024 * 1024
# A taker tells what it took after so many bytes, and not for each piece.
_GRANT_BYTES = MUX_WINDOW_BYTES // 2
# So that a long piece of one connection does not hold up another's short one.
MUX_PIECE_BYTES = 32 * 1024
# At once, on one stream; a browser opens six or so for each page.
MOST_CONNECTIONS = 256
# The end that opens pings; either end gives the stream up when it has heard nothing for so long.
MUX_PING_SECONDS = 5.0
MUX_SILENT_SECONDS = 15.0
# The line that comes before all else and says which ports may be connected to.
ORDER_BYTES = 64 * 1024
MOST_PORTS = 1024
# What the container says, in the place of frames, where its release has no forwarder.
NO_FORWARDER = b"no port forwarder here\n"

_HEAD = struct.Struct("!BIH")
_PORT = struct.Struct("!H")
_COUNT = struct.Struct("!I")
_LONGEST_ID = (1 << 32) - 1
_REASON_BYTES = 400
_SIZES = {_OPEN: _PORT.size, _OPENED: 0, _EOF: 0, _RESET: 0, _WINDOW: _COUNT.size, _PING: 0, _PONG: 0}


class MuxError(WireError):
    """The other end says what it may not, or no mux speaks there."""


class Opening(NamedTuple):
    """The other end wants a connection to a port."""

    connection: int
    port: int


class Opened(NamedTuple):
    """The connection that was asked for is there."""

    connection: int


class NotOpened(NamedTuple):
    """The connection that was asked for cannot be had; the reason is for people."""

    connection: int
    reason: str


class Received(NamedTuple):
    """Bytes came; took() is to be called when somebody has taken them."""

    connection: int
    piece: bytes


class HalfClosed(NamedTuple):
    """The other end sends nothing more on this connection."""

    connection: int


class Broken(NamedTuple):
    """The connection is over at the other end, and what was under way is lost."""

    connection: int


class Granted(NamedTuple):
    """More may be sent on this connection."""

    connection: int


MuxEvent = Union[Opening, Opened, NotOpened, Received, HalfClosed, Broken, Granted]


def port_order(ports: List[int]) -> bytes:
    """Return the line that tells the other end which ports may be connected to."""
    return json.dumps({"ports": sorted(set(ports))}).encode() + b"\n"


def ordered_ports(line: Buffer) -> List[int]:
    """Return the ports that such a line names. Raises WireError."""
    ports = JsonObject(parse_object(line)).take("ports")
    if not isinstance(ports, list) or len(ports) > MOST_PORTS:
        raise WireError("`ports` is no list")
    if not all(isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536 for port in ports):
        raise WireError("`ports` are no ports")
    return ports


class _MuxConnection:
    """What one end knows of one connection."""

    def __init__(self) -> None:
        # Whether both ends know that it is there.
        self.is_open = False
        # How much may be sent; and how much came that nobody has taken, or was told of as taken.
        self.credit_bytes = MUX_WINDOW_BYTES
        self.untaken_bytes = self.ungranted_bytes = 0
        self.has_sent_eof = self.has_received_eof = False

    @property
    def is_over(self) -> bool:
        return self.has_sent_eof and self.has_received_eof


class PortMux:
    """One end of the stream. `opens` is whether it asks for connections, or is asked."""

    def __init__(self, *, opens: bool) -> None:
        self._opens = opens
        self._connections: Dict[int, _MuxConnection] = {}
        # The newest connection that either end has named; what comes for an older one that is over is no error.
        self._newest = 0
        # What came in and is not a whole frame yet; and what is to go out.
        self._held = b""
        self._out: List[bytes] = []
        # Bytes in _out; whoever moves them asks.
        self.unsent_bytes = 0

    def __repr__(self) -> str:
        return "<PortMux %d connections, %d bytes to send>" % (len(self._connections), self.unsent_bytes)

    @property
    def is_full(self) -> bool:
        """Whether no further connection can be opened."""
        return len(self._connections) >= MOST_CONNECTIONS or self._newest >= _LONGEST_ID

    # -- out

    def take_out(self) -> bytes:
        """Return what is to be sent, and forget it."""
        taken, self._out, self.unsent_bytes = b"".join(self._out), [], 0
        return taken

    def open(self, port: int) -> int:
        """Ask for a connection, and return its number. Raises MuxError if there are too many."""
        assert self._opens
        if self.is_full:
            raise MuxError("%d connections are open" % len(self._connections))
        self._newest += 1
        self._connections[self._newest] = _MuxConnection()
        self._put(_OPEN, self._newest, _PORT.pack(port))
        return self._newest

    def accept(self, connection: int) -> None:
        """Say that a connection is there."""
        found = self._connections.get(connection)
        if found is not None:
            found.is_open = True
            self._put(_OPENED, connection)

    def refuse(self, connection: int, reason: str) -> None:
        """Say that a connection cannot be had."""
        if self._connections.pop(connection, None) is not None:
            self._put(_REFUSED, connection, reason.encode("utf-8", "replace")[:_REASON_BYTES])

    def credit(self, connection: int) -> int:
        """Return how many bytes may be sent on a connection now."""
        found = self._connections.get(connection)
        return found.credit_bytes if found is not None and found.is_open and not found.has_sent_eof else 0

    def is_receiving(self, connection: int) -> bool:
        """Whether something may come on a connection."""
        found = self._connections.get(connection)
        return found is not None and not found.has_received_eof

    def send(self, connection: int, piece: Buffer) -> None:
        """Send bytes, no more than credit(); on a connection that is over they are dropped."""
        found = self._connections.get(connection)
        if found is None or found.has_sent_eof:
            return
        assert found.is_open and len(piece) <= found.credit_bytes
        found.credit_bytes -= len(piece)
        view = memoryview(piece)
        for start in range(0, len(view), MUX_PIECE_BYTES):
            self._put(_DATA, connection, bytes(view[start : start + MUX_PIECE_BYTES]))

    def took(self, connection: int, count: int) -> None:
        """Say that somebody has taken so many bytes of what came."""
        found = self._connections.get(connection)
        if found is None:
            return
        found.untaken_bytes -= count
        found.ungranted_bytes += count
        assert found.untaken_bytes >= 0
        if found.ungranted_bytes >= _GRANT_BYTES and not found.has_received_eof:
            self._put(_WINDOW, connection, _COUNT.pack(found.ungranted_bytes))
            found.ungranted_bytes = 0

    def send_eof(self, connection: int) -> None:
        """Say that nothing more is sent on a connection; the other direction stays open."""
        found = self._connections.get(connection)
        if found is None or found.has_sent_eof:
            return
        found.has_sent_eof = True
        self._put(_EOF, connection)
        self._forget_if_over(connection)

    def reset(self, connection: int) -> None:
        """End a connection at once, whatever is under way. Safe to call twice."""
        if self._connections.pop(connection, None) is not None:
            self._put(_RESET, connection)

    def ping(self) -> None:
        """Ask the other end for a sign of life; for the end that opens."""
        assert self._opens
        self._put(_PING, 0)

    def _put(self, kind: int, connection: int, payload: bytes = b"") -> None:
        self._out.append(_HEAD.pack(kind, connection, len(payload)) + payload)
        self.unsent_bytes += _HEAD.size + len(payload)

    def _forget_if_over(self, connection: int) -> None:
        if self._connections[connection].is_over:
            del self._connections[connection]

    # -- in

    def feed(self, piece: Buffer) -> List[MuxEvent]:
        """Take the next bytes of the stream; return what they mean. Raises MuxError."""
        self._held += piece
        events: List[MuxEvent] = []
        at, end = 0, len(self._held)
        while end - at >= _HEAD.size:
            kind, connection, length = _HEAD.unpack_from(self._held, at)
            self._check_head(kind, connection, length)
            if end - at < _HEAD.size + length:
                break
            at += _HEAD.size
            events += self._took_in(kind, connection, self._held[at : at + length])
            at += length
        self._held = self._held[at:]
        return events

    def _check_head(self, kind: int, connection: int, length: int) -> None:
        """Refuse what no frame begins with, before its payload is waited for."""
        wanted = _SIZES.get(kind)
        if kind == _DATA:
            is_right = 0 < length <= MUX_PIECE_BYTES
        elif kind == _REFUSED:
            is_right = length <= _REASON_BYTES
        else:
            is_right = wanted == length
        if not is_right or (kind in (_PING, _PONG)) != (connection == 0):
            raise MuxError("no mux frame: kind %d, connection %d, %d bytes" % (kind, connection, length))

    def _took_in(self, kind: int, connection: int, payload: bytes) -> List[MuxEvent]:
        if kind in (_PING, _PONG):
            # One end asks: else an end that only asks would have the other pile up answers.
            if self._opens == (kind == _PING):
                raise MuxError("kind %d is this end's to say" % kind)
            if kind == _PING:
                self._put(_PONG, 0)
            return []
        if kind == _OPEN:
            return self._asked(connection, _PORT.unpack(payload)[0])
        if not 0 < connection <= self._newest:
            raise MuxError("connection %d was never opened" % connection)
        found = self._connections.get(connection)
        if found is None:
            return []  # Over here, and the other end did not know yet.
        if kind in (_OPENED, _REFUSED):
            return self._answered(kind, connection, found, payload)
        if kind == _RESET:
            del self._connections[connection]
            return [Broken(connection)]
        if not found.is_open:
            raise MuxError("kind %d on connection %d, which is not open" % (kind, connection))
        return self._moved(kind, connection, found, payload)

    def _asked(self, connection: int, port: int) -> List[MuxEvent]:
        if self._opens or connection != self._newest + 1 or not port:
            raise MuxError("connection %d to port %d may not be opened" % (connection, port))
        self._newest = connection
        is_full = len(self._connections) >= MOST_CONNECTIONS
        self._connections[connection] = _MuxConnection()
        if is_full:
            self.refuse(connection, "%d connections are open" % MOST_CONNECTIONS)
            return []
        return [Opening(connection, port)]

    def _answered(self, kind: int, connection: int, found: _MuxConnection, payload: bytes) -> List[MuxEvent]:
        if not self._opens or found.is_open:
            raise MuxError("connection %d was not asked for" % connection)
        if kind == _OPENED:
            found.is_open = True
            return [Opened(connection)]
        del self._connections[connection]
        return [NotOpened(connection, plain(payload.decode("utf-8", "replace")))]

    def _moved(self, kind: int, connection: int, found: _MuxConnection, payload: bytes) -> List[MuxEvent]:
        """Take in what comes on a connection that is open."""
        if kind == _WINDOW:
            (count,) = _COUNT.unpack(payload)
            if not 0 < count <= MUX_WINDOW_BYTES - found.credit_bytes:
                raise MuxError("connection %d may not have %d bytes more" % (connection, count))
            found.credit_bytes += count
            return [] if found.has_sent_eof else [Granted(connection)]
        if found.has_received_eof:
            raise MuxError("kind %d on connection %d after its end" % (kind, connection))
        if kind == _EOF:
            found.has_received_eof = True
            self._forget_if_over(connection)
            return [HalfClosed(connection)]
        if found.untaken_bytes + found.ungranted_bytes + len(payload) > MUX_WINDOW_BYTES:
            raise MuxError("connection %d sent more than it may" % connection)
        found.untaken_bytes += len(payload)
        return [Received(connection, payload)]


def is_no_forwarder(beginning: bytes) -> Optional[bool]:
    """Whether a stream's first bytes say that the release in the container has no forwarder; None: not known yet."""
    if beginning.startswith(NO_FORWARDER):
        return True
    return None if NO_FORWARDER.startswith(beginning) else False
