"""Run a command beside the relay for as long as stdin is open; its words come over stdin, where nobody else reads them.

Run in the container by one link, as text: no file of it need be there. The first line out says which port the command
was given; its own output follows, and, where it ends by itself, a last line with its exit code.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

# How long it may take to end when it is asked to.
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.2


def free_port(wanted: int) -> int:
    """Return the port if nobody listens at it, else another."""
    for port in (wanted, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    raise OSError("no port is free")


def is_over(source: int) -> bool:
    """Whether stdin has ended; waits for a moment."""
    return bool(select.select([source], [], [], _LOOK_SECONDS)[0]) and not os.read(source, 4096)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a command with all that it started."""
    until = time.monotonic() + _END_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except OSError:
            pass  # It has ended.
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    child.wait()


def main() -> None:
    """Run what the first line of stdin says."""
    order = json.loads(sys.stdin.buffer.readline())
    port = free_port(order["port"])
    replaced = {"{python}": sys.executable, "{port}": str(port)}
    os.write(1, json.dumps({"port": port}).encode() + b"\n")
    child = subprocess.Popen(
        [replaced.get(word, word) for word in order["words"]],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        cwd=order["folder"] or None,
        start_new_session=True,
    )
    try:
        while child.poll() is None:
            if is_over(0):
                return
    finally:
        end(child)
    os.write(1, b"\0ended %d\n" % child.returncode)


if __name__ == "__main__":
    main()
