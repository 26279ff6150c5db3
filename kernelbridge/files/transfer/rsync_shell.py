"""The remote shell of our rsync: a program that joins its stdin and stdout to a socket that it inherits.

Run by rsync as `python rsync_shell.py DESCRIPTOR HOST COMMAND ...`, apart from the package. At the socket's other end
waits the process that has the link. First it sends the command, as a line of JSON; then bytes go both ways.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading

_BLOCK_BYTES = 256 << 10


def main(words: list[str]) -> int:
    """Join both, until the host's side ends."""
    if sys.platform != "win32":  # Where there is no rsync.
        for descriptor in (0, 1):
            # Its own end does not block, and what it gives its shell neither.
            os.set_blocking(descriptor, True)
    with socket.socket(fileno=int(words[0])) as joined:
        joined.sendall(json.dumps(words[2:]).encode() + b"\n")
        threading.Thread(target=_send, args=(joined,), daemon=True).start()
        while block := joined.recv(_BLOCK_BYTES):
            view = memoryview(block)
            while view:
                view = view[os.write(1, view) :]
    return 0


def _send(joined: socket.socket) -> None:
    try:
        while block := os.read(0, _BLOCK_BYTES):
            joined.sendall(block)
        joined.shutdown(socket.SHUT_WR)
    except OSError:
        # The other end is gone, which main() sees too.
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
