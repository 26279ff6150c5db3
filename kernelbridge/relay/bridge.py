"""Join an exec'd stdin and stdout to the relay: hand both to it, and stay for as long as it uses them.

Run in the container by one link: `python bridge.py SOCKET`. The relay reads and writes the exec's own pipes, so no byte
takes a detour through this process; it lives because the engine keeps an exec's streams only while its process lives.
"""

import array
import fcntl
import os
import socket
import sys

PIPE_BYTES = 1024 * 1024
ADOPT_SECONDS = 20.0
# Linux's F_SETPIPE_SZ; the module has the name from Python 3.10 on.
_SET_PIPE_SIZE = 1031


def main(path: str) -> None:
    """Hand stdin and stdout to whoever listens at `path`; return when it is done with them."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A relay that is stopped takes nothing, and with each try of the link another bridge would wait for it.
    sock.settimeout(ADOPT_SECONDS)
    sock.connect(path)
    for descriptor in (0, 1):
        os.set_blocking(descriptor, False)
        try:
            fcntl.fcntl(descriptor, _SET_PIPE_SIZE, PIPE_BYTES)
        except OSError:
            pass  # Not a pipe, or over the user's limit: slower, and right.
    sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))])
    # The relay alone decides from now on when these streams end.
    for descriptor in (0, 1):
        os.close(descriptor)
    try:
        if sock.recv(1):
            sock.settimeout(None)
            sock.recv(1)
    except OSError:
        pass  # The relay went away, or took nothing; that is an end like any other.


if __name__ == "__main__":
    main(sys.argv[1])
