"""protocol/port_mux.py: many connections over one stream, and what the other end may not say."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelbridge.protocol import port_mux
from kernelbridge.protocol.frames import WireError
from kernelbridge.protocol.port_mux import (
    MOST_CONNECTIONS,
    MUX_PIECE_BYTES,
    MUX_WINDOW_BYTES,
    Broken,
    Granted,
    HalfClosed,
    MuxError,
    MuxEvent,
    NotOpened,
    Opened,
    Opening,
    PortMux,
    Received,
)


class Both:
    """Two ends and nothing between them."""

    def __init__(self) -> None:
        self.here, self.there = PortMux(opens=True), PortMux(opens=False)

    def exchange(self) -> tuple[list[MuxEvent], list[MuxEvent]]:
        """What each end hears of what the other had to say, here first."""
        mine, theirs = self.here.take_out(), self.there.take_out()
        return self.here.feed(theirs), self.there.feed(mine)

    def opened(self, port: int = 6006) -> int:
        number = self.here.open(port)
        assert self.exchange() == ([], [Opening(number, port)])
        self.there.accept(number)
        assert self.exchange() == ([Opened(number)], [])
        return number


@pytest.fixture
def both() -> Both:
    return Both()


def frame(kind: int, connection: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BIH", kind, connection, len(payload)) + payload


def test_a_connection_carries_bytes_both_ways_and_ends_when_both_sides_have_ended(both: Both) -> None:
    number = both.opened()
    both.here.send(number, b"question")
    both.here.send_eof(number)
    assert both.exchange() == ([], [Received(number, b"question"), HalfClosed(number)])
    assert not both.there.is_receiving(number)
    both.there.send(number, b"answer")
    both.there.send_eof(number)
    assert both.exchange() == ([Received(number, b"answer"), HalfClosed(number)], [])
    assert repr(both.here) == "<PortMux 0 connections, 0 bytes to send>"
    assert repr(both.there) == repr(both.here)
    # What somebody still does with it is nothing.
    both.here.took(number, 6)
    both.here.send(number, b"late")
    both.here.send_eof(number)
    both.here.reset(number)
    assert both.here.take_out() == b""


def test_a_connection_that_is_refused_says_why_in_plain_text(both: Both) -> None:
    number = both.here.open(81)
    both.exchange()
    both.there.refuse(number, "nothing\x1b listens")
    assert both.exchange() == ([NotOpened(number, "nothing? listens")], [])
    assert both.here.credit(number) == both.there.credit(number) == 0


def test_a_sender_stops_at_the_window_until_somebody_has_taken_half_of_it(both: Both) -> None:
    number = both.opened()
    both.here.send(number, b"x" * MUX_WINDOW_BYTES)
    assert both.here.credit(number) == 0
    _, got = both.exchange()
    assert {len(event.piece) for event in got if isinstance(event, Received)} == {MUX_PIECE_BYTES}
    both.there.took(number, MUX_WINDOW_BYTES // 2 - 1)
    assert both.exchange() == ([], [])
    both.there.took(number, 1)
    assert both.exchange() == ([Granted(number)], [])
    assert both.here.credit(number) == MUX_WINDOW_BYTES // 2


def test_a_reset_ends_a_connection_and_what_was_under_way_is_nobodys(both: Both) -> None:
    number = both.opened()
    both.there.send(number, b"under way")
    both.here.reset(number)
    assert both.exchange() == ([], [Broken(number)])
    assert both.exchange() == ([], [])


def test_connections_do_not_disturb_each_other(both: Both) -> None:
    first, second = both.opened(), both.opened(7)
    both.here.send(first, b"1")
    both.here.reset(second)
    both.here.send(first, b"2")
    assert both.exchange()[1] == [Received(first, b"1"), Broken(second), Received(first, b"2")]


def test_a_ping_is_answered(both: Both) -> None:
    both.here.ping()
    assert both.exchange() == ([], [])
    assert both.there.unsent_bytes == len(frame(9, 0))
    assert both.there.take_out() == frame(9, 0)


def test_no_more_connections_are_opened_than_a_program_can_hold(both: Both) -> None:
    for _ in range(MOST_CONNECTIONS):
        both.here.open(1)
    assert both.here.is_full
    with pytest.raises(MuxError, match="256 connections are open"):
        both.here.open(1)
    both.there.feed(both.here.take_out())
    assert both.there.feed(frame(1, MOST_CONNECTIONS + 1, b"\0\1")) == []
    assert both.there.take_out() == frame(3, MOST_CONNECTIONS + 1, b"256 connections are open")


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(frame(0, 1), id="an unknown kind"),
        pytest.param(frame(10, 1), id="an unknown kind, above"),
        pytest.param(b"HTTP/1.1 200 OK", id="another protocol"),
        pytest.param(frame(1, 3, b"\0\1"), id="a number out of order"),
        pytest.param(frame(1, 1, b"\0\1"), id="a number for the second time"),
        pytest.param(frame(1, 2, b"\0\0"), id="port 0"),
        pytest.param(frame(1, 2, b"\0"), id="half a port"),
        pytest.param(frame(4, 1), id="no bytes"),
        pytest.param(struct.pack("!BIH", 4, 1, MUX_PIECE_BYTES + 1), id="too many bytes in a piece"),
        pytest.param(frame(4, 9, b"x"), id="a connection that never was"),
        pytest.param(frame(2, 1), id="an answer where nobody asked"),
        pytest.param(frame(7, 1, b"\0\0\0\0"), id="nothing granted"),
        pytest.param(frame(7, 1, b"\0\0\0\1"), id="more granted than was sent"),
        pytest.param(frame(7, 1, b"\1"), id="a grant of a wrong length"),
        pytest.param(frame(5, 1) + frame(4, 1, b"x"), id="bytes after the end"),
        pytest.param(frame(5, 1) + frame(5, 1), id="two ends"),
        pytest.param(frame(8, 1), id="a ping of a connection"),
        pytest.param(frame(9, 0), id="a pong where nobody pinged"),
        pytest.param(frame(5, 0), id="an end of no connection"),
        pytest.param(frame(3, 1, b"x" * 401), id="a long reason"),
    ],
)
def test_what_the_other_end_may_not_say_is_an_error(both: Both, said: bytes) -> None:
    both.opened()
    with pytest.raises(MuxError):
        both.there.feed(said)


def test_what_the_container_may_not_say_is_an_error(both: Both) -> None:
    with pytest.raises(MuxError, match="may not be opened"):
        both.here.feed(frame(1, 1, b"\0\1"))
    asking = PortMux(opens=True)
    with pytest.raises(MuxError, match="this end's to say"):
        asking.feed(frame(8, 0))
    asking = PortMux(opens=True)
    number = asking.open(1)
    with pytest.raises(MuxError, match="not open"):
        asking.feed(frame(4, number, b"x"))


def test_more_than_the_window_is_an_error(both: Both) -> None:
    number = both.opened()
    piece = frame(4, number, b"x" * MUX_PIECE_BYTES)
    both.there.feed(piece * (MUX_WINDOW_BYTES // MUX_PIECE_BYTES))
    with pytest.raises(MuxError, match="sent more than it may"):
        both.there.feed(frame(4, number, b"x"))


@given(said=st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error(said: bytes) -> None:
    for opens in (True, False):
        mux = PortMux(opens=opens)
        if opens:
            mux.open(1)
        with contextlib.suppress(MuxError):
            mux.feed(said)


@settings(max_examples=50)
@given(
    sent=st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.binary(min_size=1, max_size=90_000)), max_size=12),
    cut=st.integers(1, 70_000),
)
def test_bytes_arrive_whole_and_in_order_however_the_stream_was_cut(
    sent: list[tuple[bool, int, bytes]], cut: int
) -> None:
    both = Both()
    numbers = [both.opened(port) for port in (1, 2, 3)]
    wanted: dict[tuple[bool, int], bytes] = {}
    got: dict[tuple[bool, int], bytes] = {}
    for from_here, which, piece in sent:
        sender, taker = (both.here, both.there) if from_here else (both.there, both.here)
        allowed = piece[: sender.credit(numbers[which])]
        if allowed:
            sender.send(numbers[which], allowed)
        wanted[from_here, which] = wanted.get((from_here, which), b"") + allowed
        stream = sender.take_out()
        for start in range(0, len(stream), cut):
            for event in taker.feed(stream[start : start + cut]):
                if isinstance(event, Received):
                    at = from_here, numbers.index(event.connection)
                    got[at] = got.get(at, b"") + event.piece
                    taker.took(event.connection, len(event.piece))
    assert {key: one for key, one in wanted.items() if one} == got


def test_the_order_names_ports_once_and_is_read_back() -> None:
    line = port_mux.port_order([6006, 80, 6006])
    assert line == b'{"ports": [80, 6006]}\n'
    assert port_mux.ordered_ports(line) == [80, 6006]


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b'{"ports": 1}', b'{"ports": ["1"]}', b'{"ports": [0]}', b'{"ports": [65536]}', b'{"ports": [true]}'],
)
def test_an_order_that_is_none_is_an_error(line: bytes) -> None:
    with pytest.raises(WireError):
        port_mux.ordered_ports(line)


@pytest.mark.parametrize(
    ("beginning", "told"),
    [
        (b"", None),
        (b"no port", None),
        (port_mux.NO_FORWARDER, True),
        (port_mux.NO_FORWARDER + b"x", True),
        (b"\2", False),
    ],
)
def test_an_older_relay_says_that_it_has_no_forwarder(beginning: bytes, told: bool | None) -> None:
    assert port_mux.is_no_forwarder(beginning) is told
