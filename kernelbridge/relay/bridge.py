"""Joins an exec'd stdin and stdout to the relay's socket; pumps and knows nothing else.

Run in the container by one link: `python bridge.py SOCKET`. Ends when either side ends, or when nothing came from the
link for SILENCE_SECONDS (the link pings): a line that is cut gives no end of file.
"""

import fcntl
import os
import select
import socket
import sys
import time

SILENCE_SECONDS = 15.0
CHUNK_BYTES = 256 * 1024
# Linux's F_SETPIPE_SZ; the module has the name from Python 3.10 on.
_SET_PIPE_SIZE = 1031
_PR_SET_DUMPABLE = 4


class Way:
    """One direction: reads when it holds nothing, writes what it holds."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self._buffer = bytearray(CHUNK_BYTES)
        # What was read and is not written yet.
        self.held = memoryview(b"")

    def read(self) -> bool:
        """Read what is there; False at the end of the stream."""
        count = os.readv(self.source, [self._buffer])
        self.held = memoryview(self._buffer)[:count]
        return count > 0

    def write(self) -> None:
        """Write what fits."""
        self.held = self.held[os.write(self.sink, self.held) :]


def pump(up: Way, down: Way) -> None:
    """Move bytes both ways until one side ends or the link is silent."""
    heard = time.monotonic()
    while True:
        poll = select.poll()
        masks: dict[int, int] = {}
        for way in (up, down):
            if way.held:
                masks[way.sink] = masks.get(way.sink, 0) | select.POLLOUT
            else:
                masks[way.source] = masks.get(way.source, 0) | select.POLLIN
        for descriptor, mask in masks.items():
            poll.register(descriptor, mask)
        ready = dict(poll.poll(1000))
        now = time.monotonic()
        if now - heard > SILENCE_SECONDS:
            return
        for way in (up, down):
            if way.held and ready.get(way.sink):
                way.write()
            elif not way.held and ready.get(way.source):
                if not way.read():
                    return
                if way is up:
                    heard = now
                # Most often the sink has room: one round of polling saved for each chunk.
                try:
                    way.write()
                except BlockingIOError:
                    pass


def shut_memory() -> None:
    """Nobody of our own login may read this process's memory: a restart's order has secrets in it."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # A Python without libffi.


def main(path: str) -> None:
    """Join this process's stdin and stdout to the socket at `path`."""
    shut_memory()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    for size in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, size, 1024 * 1024)
    for descriptor in (0, 1, sock.fileno()):
        os.set_blocking(descriptor, False)
        try:
            fcntl.fcntl(descriptor, _SET_PIPE_SIZE, 1024 * 1024)
        except OSError:
            pass  # Not a pipe, or over the user's limit: slower, and right.
    try:
        pump(Way(0, sock.fileno()), Way(sock.fileno(), 1))
    except OSError:
        pass  # Either side went away; that is an end like any other.


if __name__ == "__main__":
    main(sys.argv[1])
