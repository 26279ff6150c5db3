"""Connect to ports of the container for the other end of stdin and stdout, which carry all connections (PortMux).

One such program runs for each forwarding program on the user's machine. It connects only where its first line allows,
and ends with its stdin, or when nothing has come for a while.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
import sys
import time
from typing import Dict, FrozenSet, List, Optional, Tuple

from ...protocol import port_mux
from ...protocol.frames import WireError
from ...protocol.port_mux import Broken, Granted, HalfClosed, MuxEvent, Opening, PortMux, Received

_CHUNK_BYTES = 256 * 1024
# Nothing more is read of connections while so much waits for the link.
_UNSENT_BYTES = 1024 * 1024
_PIPE_BYTES = 1024 * 1024
# Linux's F_SETPIPE_SZ; the module has the name from Python 3.10 on.
_SET_PIPE_SIZE = 1031
_CONNECT_SECONDS = 10.0
_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class _Outlet:
    """One connection of a program in the container; its socket never blocks."""

    def __init__(self, number: int, port: int) -> None:
        self.number = number
        self.port = port
        # Addresses not tried yet, and the socket of the one that is tried or answers.
        self.untried = list(_ADDRESSES)
        self.sock: Optional[socket.socket] = None
        self.is_connected = False
        self.give_up_at = time.monotonic() + _CONNECT_SECONDS
        # Bytes for the program that its socket did not take; and whether an end follows them.
        self.unwritten: List[bytes] = []
        self.ends_after = False
        # Whether the program sends nothing more.
        self.has_ended = False

    def write(self) -> int:
        """Write what the socket takes; return how much that was. Raises OSError."""
        assert self.sock is not None
        written = 0
        while self.unwritten:
            try:
                count = self.sock.send(self.unwritten[0])
            except BlockingIOError:
                return written
            written += count
            rest = self.unwritten[0][count:]
            self.unwritten[:1] = [rest] if rest else []
        if self.ends_after:
            self.ends_after = False
            self.sock.shutdown(socket.SHUT_WR)
        return written


class PortForwarder:
    """All connections of one stream, moved by one thread."""

    def __init__(self, source: int, sink: int, ports: FrozenSet[int]) -> None:
        self._source, self._sink = source, sink
        self._ports = ports
        self._mux = PortMux(opens=False)
        self._outlets: Dict[int, _Outlet] = {}
        self._selector = selectors.DefaultSelector()
        # What the pipe to the link did not take yet.
        self._unsent = b""
        self._heard_at = time.monotonic()
        for descriptor in (source, sink):
            os.set_blocking(descriptor, False)
            try:
                fcntl.fcntl(descriptor, _SET_PIPE_SIZE, _PIPE_BYTES)
            except OSError:
                pass  # Not a pipe, or over the user's limit: slower, and right.
        self._selector.register(source, selectors.EVENT_READ, None)

    def __repr__(self) -> str:
        return "<PortForwarder %d connections, %r>" % (len(self._outlets), self._mux)

    def run(self, beginning: bytes = b"") -> None:
        """Forward until the other end is gone. Raises MuxError for what it may not say; OSError."""
        self._obey(beginning)
        while time.monotonic() - self._heard_at < port_mux.MUX_SILENT_SECONDS:
            self._send()
            self._watch()
            for key, mask in self._selector.select(1.0):
                if key.fileobj == self._source:
                    piece = os.read(self._source, _CHUNK_BYTES)
                    if not piece:
                        return
                    self._heard_at = time.monotonic()
                    self._obey(piece)
                elif key.data is not None:
                    # The link may just have ended it.
                    outlet = self._outlets.get(key.data.number)
                    if outlet is not None:
                        self._move(outlet, mask)
            self._give_up_slow()

    def close(self) -> None:
        """End all connections."""
        for outlet in list(self._outlets.values()):
            self._drop(outlet)
        self._selector.close()

    # -- the link

    def _obey(self, piece: bytes) -> None:
        for event in self._mux.feed(piece):
            self._take(event)

    def _take(self, event: MuxEvent) -> None:
        if isinstance(event, Opening):
            self._open(event)
            return
        outlet = self._outlets.get(event.connection)
        if outlet is None:
            return
        if isinstance(event, Broken):
            self._drop(outlet)
        elif isinstance(event, Received):
            outlet.unwritten.append(event.piece)
            self._write(outlet)
        elif isinstance(event, HalfClosed):
            outlet.ends_after = True
            self._write(outlet)
        else:
            assert isinstance(event, Granted)

    def _send(self) -> None:
        """Give the link what it takes."""
        self._unsent += self._mux.take_out()
        while self._unsent:
            try:
                count = os.write(self._sink, self._unsent)
            except BlockingIOError:
                return
            self._unsent = self._unsent[count:]

    # -- connections

    def _open(self, wanted: Opening) -> None:
        if wanted.port not in self._ports:
            self._mux.refuse(wanted.connection, "port %d is not forwarded" % wanted.port)
            return
        outlet = _Outlet(wanted.connection, wanted.port)
        self._outlets[wanted.connection] = outlet
        self._try_next(outlet, "nothing listens there")

    def _try_next(self, outlet: _Outlet, reason: str) -> None:
        """Connect to the next address; refuse where there is none."""
        while outlet.untried:
            self._unwatch(outlet)
            family, address = outlet.untried.pop(0)
            try:
                outlet.sock = socket.socket(family, socket.SOCK_STREAM)
                outlet.sock.setblocking(False)
                outlet.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                outlet.sock.connect((address, outlet.port))
            except BlockingIOError:
                return
            except OSError:
                continue
            self._accept(outlet)
            return
        self._outlets.pop(outlet.number, None)
        self._unwatch(outlet)
        self._mux.refuse(outlet.number, "port %d: %s" % (outlet.port, reason))

    def _accept(self, outlet: _Outlet) -> None:
        outlet.is_connected = True
        self._mux.accept(outlet.number)

    def _move(self, outlet: _Outlet, mask: int) -> None:
        assert outlet.sock is not None
        if not outlet.is_connected:
            if outlet.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._try_next(outlet, "nothing listens there")
            else:
                self._accept(outlet)
            return
        if mask & selectors.EVENT_WRITE:
            self._write(outlet)
        if mask & selectors.EVENT_READ and outlet.number in self._outlets:
            self._read(outlet)

    def _write(self, outlet: _Outlet) -> None:
        try:
            written = outlet.write()
        except OSError:
            self._break(outlet)
            return
        self._mux.took(outlet.number, written)
        self._drop_if_over(outlet)

    def _read(self, outlet: _Outlet) -> None:
        assert outlet.sock is not None
        try:
            piece = outlet.sock.recv(min(self._mux.credit(outlet.number), port_mux.MUX_PIECE_BYTES))
        except BlockingIOError:
            return
        except OSError:
            self._break(outlet)
            return
        if piece:
            self._mux.send(outlet.number, piece)
            return
        outlet.has_ended = True
        self._mux.send_eof(outlet.number)
        self._drop_if_over(outlet)

    def _break(self, outlet: _Outlet) -> None:
        self._mux.reset(outlet.number)
        self._drop(outlet)

    def _drop_if_over(self, outlet: _Outlet) -> None:
        """Let go of a connection that both sides have ended, once all is written."""
        if outlet.has_ended and not self._mux.is_receiving(outlet.number) and not outlet.unwritten:
            self._drop(outlet)

    def _drop(self, outlet: _Outlet) -> None:
        self._outlets.pop(outlet.number, None)
        self._unwatch(outlet)

    def _give_up_slow(self) -> None:
        now = time.monotonic()
        for outlet in list(self._outlets.values()):
            if not outlet.is_connected and now > outlet.give_up_at:
                outlet.untried = []
                self._try_next(outlet, "no answer")

    # -- what is waited for

    def _watch(self) -> None:
        """Ask for what can be used of each connection now, and of the link."""
        is_full = len(self._unsent) > _UNSENT_BYTES
        if self._unsent:
            self._set(self._sink, selectors.EVENT_WRITE, None)
        else:
            self._set(self._sink, 0, None)
        for outlet in self._outlets.values():
            if outlet.sock is None:
                continue
            if not outlet.is_connected:
                self._set(outlet.sock, selectors.EVENT_WRITE, outlet)
                continue
            may_read = not outlet.has_ended and not is_full and self._mux.credit(outlet.number) > 0
            mask = (selectors.EVENT_READ if may_read else 0) | (selectors.EVENT_WRITE if outlet.unwritten else 0)
            self._set(outlet.sock, mask, outlet)

    def _set(self, file: "int | socket.socket", mask: int, outlet: Optional[_Outlet]) -> None:
        known = self._selector.get_map().get(file)
        if known is None:
            if mask:
                self._selector.register(file, mask, outlet)
        elif not mask:
            self._selector.unregister(file)
        elif known.events != mask:
            self._selector.modify(file, mask, outlet)

    def _unwatch(self, outlet: _Outlet) -> None:
        if outlet.sock is not None:
            self._set(outlet.sock, 0, None)
            outlet.sock.close()
            outlet.sock = None


def read_order(source: int) -> Tuple[FrozenSet[int], bytes]:
    """Return the ports that may be connected to, and what came behind their line. Raises WireError; OSError."""
    held = b""
    while b"\n" not in held:
        piece = os.read(source, _CHUNK_BYTES)
        held += piece
        if not piece or (b"\n" not in held and len(held) > port_mux.ORDER_BYTES):
            raise WireError("no order came")
    line, _, rest = held.partition(b"\n")
    return frozenset(port_mux.ordered_ports(line)), rest


def main() -> None:
    """Forward the ports that the first line of stdin names."""
    try:
        ports, rest = read_order(0)
        forwarder = PortForwarder(0, 1, ports)
        try:
            forwarder.run(rest)
        finally:
            forwarder.close()
    except (WireError, OSError) as exc:
        sys.exit(str(exc))
