"""relay/server.py: who brings no pipes is turned away, and a poll without pyzmq does as zmq's."""

from __future__ import annotations

import socket
import threading

import pytest

from kernelbridge.relay.server import Connection, PlainPoller


def test_who_brings_no_pipes_is_no_line() -> None:
    ours, theirs = socket.socketpair()
    line = Connection(ours)
    with pytest.raises(BlockingIOError):
        line.adopt()
    theirs.send(b"GET / HTTP/1.1")
    with pytest.raises(OSError, match="no pipes came"):
        line.adopt()
    line.close()
    theirs.close()


def test_without_pyzmq_a_plain_poll_has_the_same_habits() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller = PlainPoller()
        poller.register(ours.fileno(), 1)
        assert poller.poll(0) == []
        threading.Timer(0.01, theirs.send, [b"x"]).start()
        assert dict(poller.poll(5000)) == {ours.fileno(): 1}
