"""relay/beside/port_forwarder.py: the container's end of forwarded ports, with real sockets and pipes."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kernelbridge.protocol import port_mux
from kernelbridge.protocol.frames import WireError
from kernelbridge.protocol.port_mux import (
    MUX_WINDOW_BYTES,
    Broken,
    HalfClosed,
    MuxEvent,
    NotOpened,
    Opened,
    PortMux,
    Received,
)
from kernelbridge.relay.beside import port_forwarder
from kernelbridge.relay.beside.port_forwarder import PortForwarder, read_order

SECONDS = 20.0


class Far:
    """The user's end of a forwarder that runs on a thread."""

    def __init__(self, *ports: int) -> None:
        their_in, self._to = os.pipe()
        self._from, their_out = os.pipe()
        self._theirs = (their_in, their_out)
        self.mux = PortMux(opens=True)
        self._forwarder = PortForwarder(their_in, their_out, frozenset(ports))
        self.ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._forwarder.run()
        finally:
            self._forwarder.close()
            for descriptor in self._theirs:
                os.close(descriptor)
            self.ended.set()

    def say(self) -> None:
        os.write(self._to, self.mux.take_out())

    def hear(self) -> list[MuxEvent]:
        """The next events, at least one."""
        while True:
            piece = os.read(self._from, 1 << 20)
            assert piece, "the forwarder ended"
            if events := self.mux.feed(piece):
                return events

    def opened(self, port: int) -> int:
        number = self.mux.open(port)
        self.say()
        assert self.hear() == [Opened(number)]
        return number

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._to)
        assert self.ended.wait(SECONDS)
        os.close(self._from)


@contextmanager
def far(*ports: int) -> Iterator[Far]:
    made = Far(*ports)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family, address = request.param
    with socket.socket(family) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            pytest.skip("no such address here")
        sock.listen(4)
        sock.settimeout(SECONDS)
        yield sock


def test_a_port_of_either_loopback_answers_and_both_directions_end(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with far(port) as there:
        number = there.opened(port)
        program, _ = listener.accept()
        with program:
            there.mux.send(number, b"ping")
            there.mux.send_eof(number)
            there.say()
            assert program.makefile("rb").read() == b"ping"
            program.sendall(b"pong")
            assert there.hear() == [Received(number, b"pong")]
        assert there.hear() == [HalfClosed(number)]
    assert repr(there._forwarder) == "<PortForwarder 0 connections, <PortMux 0 connections, 0 bytes to send>>"


def test_a_port_that_nobody_listens_at_or_that_is_not_allowed_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with far(port) as there:
        numbers = there.mux.open(port), there.mux.open(port + 1 if port < 65535 else 1)
        there.say()
        told: list[MuxEvent] = []
        while len(told) < 2:
            told += there.hear()
        reasons = {event.connection: event.reason for event in told if isinstance(event, NotOpened)}
        assert reasons[numbers[0]] == f"port {port}: nothing listens there"
        assert reasons[numbers[1]].endswith("is not forwarded")


def test_more_than_a_window_comes_through_both_ways_and_a_slow_reader_holds_up_nobody(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    size = 3 * MUX_WINDOW_BYTES
    with far(port) as there:
        stuck = there.opened(port)
        first, _ = listener.accept()
        number = there.opened(port)
        second, _ = listener.accept()
        with first, second:
            threading.Thread(target=first.sendall, args=(b"s" * MUX_WINDOW_BYTES,), daemon=True).start()
            threading.Thread(target=second.sendall, args=(b"x" * size,), daemon=True).start()
            got = 0
            while got < size:
                for event in there.hear():
                    assert isinstance(event, Received)
                    if event.connection == number:
                        got += len(event.piece)
                        there.mux.took(number, len(event.piece))
                there.say()
            assert there.mux.is_receiving(stuck)
            sent = 0
            echoed = bytearray()
            while sent < size:
                while allowed := min(there.mux.credit(number), size - sent, 65536):
                    there.mux.send(number, b"y" * allowed)
                    sent += allowed
                    there.say()
                    second.settimeout(SECONDS)
                    while len(echoed) < sent:
                        echoed += second.recv(1 << 16)
                if sent < size:
                    there.hear()
            assert len(echoed) == size


def test_a_program_that_breaks_its_connection_is_told_of(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with far(port) as there:
        number = there.opened(port)
        program, _ = listener.accept()
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        program.close()
        assert there.hear() == [Broken(number)]


def test_a_connection_that_the_user_breaks_ends_at_the_program(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with far(port) as there:
        number = there.opened(port)
        program, _ = listener.accept()
        with program:
            there.mux.reset(number)
            there.say()
            assert program.recv(1) == b""


def test_a_program_may_say_something_while_the_user_breaks_its_connection(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link's bytes and the program's are there at once, the link's first."""
    port = listener.getsockname()[1]
    both = threading.Event()

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            found = super().select(timeout)
            if both.is_set() and found:
                time.sleep(0.1)
                found = sorted(super().select(timeout), key=lambda one: one[0].data is not None)
            return found

    monkeypatch.setattr(selectors, "DefaultSelector", Selector)
    with far(port) as there:
        number = there.opened(port)
        program, _ = listener.accept()
        with program:
            both.set()
            there.mux.reset(number)
            program.sendall(b"hello")
            there.say()
            other = there.opened(port)
        assert other == number + 1


def test_it_ends_with_its_stdin_and_when_nothing_has_come_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_mux, "MUX_SILENT_SECONDS", 0.1)
    there = Far(1)
    assert there.ended.wait(SECONDS)
    there.close()


def test_what_is_no_mux_ends_it() -> None:
    source, sink = os.pipe()
    with contextlib.suppress(OSError):
        forwarder = PortForwarder(source, sink, frozenset())
        with pytest.raises(WireError):
            forwarder.run(b"HTTP/1.1 200 OK")
        forwarder.close()
    os.close(source)
    os.close(sink)


def test_the_order_comes_first_and_what_stands_behind_it_is_kept() -> None:
    source, sink = os.pipe()
    os.write(sink, port_mux.port_order([5, 6]) + b"rest")
    assert read_order(source) == (frozenset({5, 6}), b"rest")
    os.close(sink)
    with pytest.raises(WireError, match="no order came"):
        read_order(source)
    os.close(source)


def test_the_program_says_in_one_line_that_no_order_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: int) -> tuple[frozenset[int], bytes]:
        raise WireError("no order came")

    monkeypatch.setattr(port_forwarder, "read_order", fail)
    with pytest.raises(SystemExit, match="no order came"):
        port_forwarder.main()
