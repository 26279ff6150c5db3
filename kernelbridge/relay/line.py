"""One bridge's connection to the relay's socket, and a poll without pyzmq. The frames on it: wire.py."""

from __future__ import annotations

import array
import os
import select
import socket
import time
from typing import Any, List, Optional

from . import wire

CHUNK_BYTES = 256 * 1024


class Line:
    """One bridge's connection: bytes in and out, never blocking. They move on the exec's own pipes (see bridge.py)."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        # Its end is the bridge's end; nothing but the pipes comes over it.
        self.sock = sock
        # The pipes from and to the link; none before adopt().
        self.source = self.sink = -1
        self.decoder = wire.Decoder()
        self.heard = time.monotonic()
        # Whether its HELLO was accepted, and who it said it is.
        self.owner: Optional[str] = None
        # The same for people: login@machine.
        self.who = ""
        # What the pipe did not take yet.
        self.unsent: List[wire.Buffer] = []

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

    def read(self) -> bytes:
        """Return what is there. Raises OSError at the end of the stream."""
        piece = os.read(self.source, CHUNK_BYTES)
        if not piece:
            raise OSError("end of stream")
        return piece

    def write(self, buffers: List[wire.Buffer]) -> None:
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
            if descriptor >= 0:
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
