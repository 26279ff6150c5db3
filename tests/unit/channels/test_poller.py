"""channels/poller.py: one thread for the sockets of all kernels, which no error ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from kernelbridge.channels.poller import PolledSockets, Reader, ZmqPoller
from tests.rig.daemon import wait_until


@pytest.fixture
def poller() -> Iterator[ZmqPoller]:
    made = ZmqPoller()
    yield made
    made.close()


def test_an_error_on_the_thread_goes_to_who_called_and_the_thread_lives_on(
    poller: ZmqPoller, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        poller.call(fail).result(5)
    with caplog.at_level(logging.ERROR):
        poller.post(fail)
        threads: list[str] = []
        poller.call(lambda: threads.append(threading.current_thread().name)).result(5)
    assert "channels failed" in caplog.text
    assert threads == ["kernelbridge-channels"]


class FailingReader:
    """Sockets whose reader fails at the first message."""

    def __init__(self) -> None:
        self.read = 0
        self.polled = PolledSockets(bind=self._bind, patience_ms=lambda: 1000, tick=lambda: None)

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> dict[zmq.Socket[bytes], Reader]:
        self.sock = context.socket(zmq.PULL)
        self.sock.bind("inproc://failing")
        self.out = context.socket(zmq.PUSH)
        self.out.connect("inproc://failing")
        return {self.sock: self._read}

    def _read(self, sock: zmq.Socket[bytes]) -> None:
        sock.recv()
        self.read += 1
        if self.read == 1:
            raise ValueError("cannot read this")

    def close(self) -> None:
        self.sock.close()
        self.out.close()


def test_one_message_that_cannot_be_read_does_not_end_the_thread(
    poller: ZmqPoller, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FailingReader()
    poller.add(failing.polled)
    for _ in range(2):
        poller.call(lambda: failing.out.send(b"x")).result(5)
    wait_until(lambda: failing.read == 2, "both messages", 5)
    assert "cannot read this" in caplog.text
    poller.call(lambda: poller.remove(failing.polled)).result(5)
    poller.call(failing.close).result(5)


def test_what_is_posted_and_called_is_run_in_order_and_a_call_gives_its_result(poller: ZmqPoller) -> None:
    came: list[int] = []
    for number in range(100):
        poller.post(came.append, number)
    assert poller.call(lambda: list(came)).result(5) == list(range(100))


def test_a_flood_of_calls_does_not_keep_the_sockets_from_being_read(poller: ZmqPoller) -> None:
    reader, is_over = FailingReader(), threading.Event()
    reader.read = 1  # It fails at the first alone.
    poller.add(reader.polled)
    took: list[float] = []

    def flood() -> None:
        time.sleep(0.001)
        if not is_over.is_set():
            poller.post(flood)

    def send() -> None:
        reader.out.send(b"x")
        took.append(time.monotonic())

    for _ in range(50):
        poller.post(flood)
    try:
        poller.call(send).result(5)
        wait_until(lambda: reader.read == 2, "the message", 5)
        assert time.monotonic() - took[0] < 1
    finally:
        is_over.set()
    poller.call(lambda: poller.remove(reader.polled)).result(5)
    poller.call(reader.close).result(5)


def test_a_flood_of_calls_of_one_does_not_delay_those_of_another(poller: ZmqPoller) -> None:
    came: list[str] = []

    def one() -> None:
        time.sleep(0.002)
        came.append("one")

    for _ in range(500):
        poller.post(one, of="one")
    poller.call(lambda: came.append("other"), of="other").result(5)
    assert came.index("other") < 100
    poller.call(lambda: None, of="one").result(5)
    assert came.count("one") == 500


def test_what_was_posted_before_the_end_is_done(poller: ZmqPoller) -> None:
    came: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.01)
        came.append(number)

    for number in range(20):
        poller.post(slow, number)
    poller.close()
    assert came == list(range(20))


def test_a_call_that_nobody_waits_for_any_more_is_made_and_harms_no_other(
    poller: ZmqPoller, caplog: pytest.LogCaptureFixture
) -> None:
    came: list[int] = []
    is_going_on = threading.Event()
    poller.post(is_going_on.wait, 5)
    for number in range(2):
        assert poller.call(lambda number=number: came.append(number)).cancel()  # type: ignore[misc]
    is_going_on.set()
    assert poller.call(lambda: len(came)).result(5) == 2
    assert caplog.text == ""
