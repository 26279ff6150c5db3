"""Take the relay's order where stdin is not ours, as in a job of a cluster: over a socket that bridge.py joins.

Its text is a part of the command of a job's first process (bootstrap.py), which has nothing else of ours yet: standard
library only, and no import from the future.
"""

import array
import os
import select
import socket
import time
from typing import List, Optional, Union

_PIECE_BYTES = 64 * 1024
ORDER_TAKEN = b"ok\n"


class Caller:
    """One connection, which may bring the order."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        # The pipes that bridge.py hands over: from and to whoever runs it. None before they came.
        self._source = self._sink = -1
        self._said = b""

    def fileno(self) -> int:
        """Name where the next news come from; called by select."""
        return self._source if self._source >= 0 else self._connection.fileno()

    def hear(self) -> bytes:
        """Take in what came; return the line when it is whole. Raises OSError at the end of what comes."""
        if self._source < 0:
            self._adopt()
            return b""
        piece = os.read(self._source, _PIECE_BYTES)
        if not piece:
            raise OSError("end of stream")
        self._said += piece
        return self._said if b"\n" in piece else b""

    def _adopt(self) -> None:
        # As Connection.adopt() of the relay's server, which this text cannot import: it is all that the process has.
        descriptors = array.array("i")
        said, ancillary, _, _ = self._connection.recvmsg(1, socket.CMSG_SPACE(2 * descriptors.itemsize))
        for level, kind, sent in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(sent[: len(sent) - len(sent) % descriptors.itemsize])
        if not said or len(descriptors) != 2:
            raise OSError("no pipes came")
        self._source, self._sink = descriptors

    def answer(self) -> None:
        """Say that the order has come."""
        try:
            os.write(self._sink, ORDER_TAKEN)
        except OSError:
            pass  # Its sender has gone; the order counts all the same.

    def close(self) -> None:
        """Close the pipes; the bridge ends with that."""
        for descriptor in (self._source, self._sink):
            if descriptor >= 0:
                os.close(descriptor)
        self._connection.close()


def heard(caller: Caller) -> Optional[bytes]:
    """Return a caller's line, empty while it is not whole; None when the caller ended before."""
    try:
        return caller.hear()
    except BlockingIOError:
        return b""
    except OSError:
        return None


def take(path: str, seconds: float) -> bytes:
    """Return the first line that comes whole over the socket at `path`; empty if none does in so many seconds."""
    until = time.monotonic() + seconds
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # It has its name only when it listens: whoever sees it can connect.
    listener.bind(path + ".new")
    listener.listen(8)
    os.rename(path + ".new", path)
    callers: List[Caller] = []
    line = b""
    while not line and time.monotonic() < until:
        watched: List[Union[socket.socket, Caller]] = [listener, *callers]
        ready, _, _ = select.select(watched, [], [], max(0.0, until - time.monotonic()))
        for caller in [one for one in callers if one in ready]:
            said = heard(caller)
            if said is None:
                callers.remove(caller)
                caller.close()
            elif said and not line:
                line = said
                caller.answer()
        if listener in ready:
            callers.append(Caller(listener.accept()[0]))
    os.unlink(path)
    listener.close()
    for caller in callers:
        caller.close()
    return line
