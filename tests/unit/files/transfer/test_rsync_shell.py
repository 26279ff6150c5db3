"""files/transfer/rsync_shell.py, as rsync runs it: with a stdout that does not block."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from kernelbridge.files.transfer import rsync_shell

if sys.platform == "win32":
    pytest.skip("there is no rsync on Windows", allow_module_level=True)

BYTES = bytes(range(256)) * 40_000


def test_bytes_go_both_ways_though_rsync_is_slow_to_take_them() -> None:
    ours, theirs = socket.socketpair()
    rsync_end, shell_end = socket.socketpair()
    # As rsync makes both ends of its pipes.
    shell_end.setblocking(False)
    with ours, rsync_end:
        words = [sys.executable, "-I", "-S", rsync_shell.__file__, str(theirs.fileno()), "host", "rsync", "--server"]
        with subprocess.Popen(
            words, stdin=shell_end.fileno(), stdout=shell_end.fileno(), pass_fds=[theirs.fileno()]
        ) as shell:
            shell_end.close()
            theirs.close()
            host = ours.makefile("rb")
            assert json.loads(host.readline()) == ["rsync", "--server"]

            def send() -> None:
                ours.sendall(BYTES)
                ours.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send)
            sending.start()
            time.sleep(0.5)  # All that the way holds is full by now.
            assert rsync_end.makefile("rb").read(len(BYTES)) == BYTES
            sending.join()
            assert shell.wait(20) == 0


def test_what_rsync_sends_reaches_the_host_and_its_end_too() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        words = [sys.executable, "-I", "-S", rsync_shell.__file__, str(theirs.fileno()), "host", "rsync"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]) as shell:
            theirs.close()
            host = ours.makefile("rb")
            assert json.loads(host.readline()) == ["rsync"]
            assert shell.stdin is not None
            shell.stdin.write(b"to the host")
            shell.stdin.close()
            assert host.read() == b"to the host"
            ours.shutdown(socket.SHUT_WR)
            assert shell.wait(20) == 0
