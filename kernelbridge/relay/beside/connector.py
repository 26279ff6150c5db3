"""Join stdin and stdout to a TCP port or a unix socket that the container reaches: one connection, then the end.

Run beside the relay: `... tcp HOST PORT` or `... unix PATH`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Sequence

CONNECT_SECONDS = 20.0
_PIECE_BYTES = 64 * 1024


def connect(words: Sequence[str]) -> socket.socket:
    """Return the connection that the words name. Raises OSError."""
    if words[0] == "unix":
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(CONNECT_SECONDS)
        made.connect(words[1])
    else:
        made = socket.create_connection((words[1], int(words[2])), CONNECT_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.settimeout(None)
    return made


def pump(made: socket.socket, source: int = 0, sink: int = 1) -> None:
    """Move bytes both ways until the connection has ended."""
    # Each way by itself: the other end may take nothing until what it sends is taken.
    threading.Thread(target=_send, args=(made, source), daemon=True).start()
    while True:
        piece = made.recv(_PIECE_BYTES)
        if not piece:
            return
        view = memoryview(piece)
        while view:
            view = view[os.write(sink, view) :]


def _send(made: socket.socket, source: int) -> None:
    try:
        while True:
            piece = os.read(source, _PIECE_BYTES)
            if not piece:
                break
            made.sendall(piece)
        made.shutdown(socket.SHUT_WR)
    except OSError:
        return  # Whoever receives hears of it, too.


def main() -> None:
    """Connect, and pump."""
    try:
        pump(connect(sys.argv[1:]))
    except OSError as exc:
        sys.exit(exc.strerror or str(exc))
    except ValueError as exc:
        sys.exit("not a name that can be looked up: %s" % exc)
