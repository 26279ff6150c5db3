"""TCP ports of loopback for servers that are to be told theirs: each is handed out once, none is another test's.

Below those that the system gives to whoever asks for any (from 32768 on Linux), so that no connection takes one first.
"""

from __future__ import annotations

import itertools
import os
import socket

FIRST, EACH = 10_000, 2_000
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_numbers = itertools.count(os.getpid() % EACH)


def free_port() -> int:
    """A port of this process that nobody has at this moment."""
    while True:
        port = FIRST + _worker % 10 * EACH + next(_numbers) % EACH
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether nobody listens on a port at this moment."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
