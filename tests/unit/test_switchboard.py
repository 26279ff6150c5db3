"""channels/switchboard.py: one thread for the sockets of all kernels, which no error ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest
import zmq

from kernelbridge.channels.switchboard import Switchboard
from tests.rig.daemon import wait_until


@pytest.fixture
def board() -> Iterator[Switchboard]:
    made = Switchboard()
    yield made
    made.close()


def test_an_error_on_the_thread_goes_to_who_called_and_the_thread_lives_on(
    board: Switchboard, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        board.call(fail).result(5)
    with caplog.at_level(logging.ERROR):
        board.post(fail)
        threads: list[str] = []
        board.call(lambda: threads.append(threading.current_thread().name)).result(5)
    assert "channels failed" in caplog.text
    assert threads == ["kernelbridge-channels"]


class FailingReader:
    """Served sockets whose reader fails at the first message."""

    patience_ms = 1000

    def __init__(self) -> None:
        self.read = 0

    def bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.sock = context.socket(zmq.PULL)
        self.sock.bind("inproc://failing")
        self.out = context.socket(zmq.PUSH)
        self.out.connect("inproc://failing")

    def sockets(self) -> dict[zmq.Socket[bytes], Callable[[zmq.Socket[bytes]], None]]:
        return {self.sock: self._read}

    def _read(self, sock: zmq.Socket[bytes]) -> None:
        sock.recv()
        self.read += 1
        if self.read == 1:
            raise ValueError("cannot read this")

    def tick(self) -> None:
        return

    def close(self) -> None:
        self.sock.close()
        self.out.close()


def test_one_message_that_cannot_be_read_does_not_end_the_thread(
    board: Switchboard, caplog: pytest.LogCaptureFixture
) -> None:
    served = FailingReader()
    board.add(served)
    for _ in range(2):
        board.call(lambda: served.out.send(b"x")).result(5)
    wait_until(lambda: served.read == 2, "both messages", 5)
    assert "cannot read this" in caplog.text
    board.call(lambda: board.forget(served)).result(5)
    board.call(served.close).result(5)
