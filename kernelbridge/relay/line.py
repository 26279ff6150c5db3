"""One bridge's connection to the relay's socket, and a poll without pyzmq. The frames on it: wire.py."""

from __future__ import annotations

import select
import socket
import time
from typing import Any, List, Optional

from . import wire


class Line:
    """One bridge's connection: bytes in and out, never blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = wire.Decoder()
        self.heard = time.monotonic()
        # Whether its HELLO was accepted, and who it said it is.
        self.owner: Optional[str] = None
        # What the socket did not take yet.
        self.unsent: List[wire.Buffer] = []

    def write(self, buffers: List[wire.Buffer]) -> None:
        """Write what the socket takes; keep the rest. Raises OSError when the bridge has gone."""
        self.unsent.extend(buffers)
        while self.unsent:
            try:
                written = self.sock.sendmsg(self.unsent[:64])
            except BlockingIOError:
                return
            done = 0
            while done < len(self.unsent) and written >= len(self.unsent[done]):
                written -= len(self.unsent[done])
                done += 1
            del self.unsent[:done]
            if written:
                self.unsent[0] = memoryview(self.unsent[0])[written:]


class PlainPoller:
    """select.poll with zmq.Poller's habits, for an image without pyzmq: it must still say so."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register

    def poll(self, patience_ms: int) -> List[Any]:
        return list(self._poll.poll(patience_ms))
