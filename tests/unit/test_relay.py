"""relay/replay.py: both ends of the stream, over any number of lines, and of processes at this end.

Bytes: test_wire.py. One lane's way out: test_outbox.py. What runs in the container beside them: test_relay_process.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelbridge.relay import replay, wire
from kernelbridge.relay.journal import Journal
from kernelbridge.relay.outbox import KEPT_SECONDS, Sent
from kernelbridge.relay.replay import KIB, MIB, Inbox, Peer, Window
from kernelbridge.relay.spool import Spool
from kernelbridge.relay.wire import (
    DATA,
    FRAME_BYTES,
    ORDERED,
    QUICK,
    Decoder,
    Frame,
    WireError,
)

# -- one end


def test_a_frame_that_came_before_is_no_news_and_a_hole_is_an_error() -> None:
    inbox = Inbox()
    assert inbox.accept(Frame(DATA, ORDERED, 1, b"one")) == b"one"
    assert inbox.accept(Frame(DATA, ORDERED, 1, b"one")) is None
    with pytest.raises(WireError, match="frame 3 after 1"):
        inbox.accept(Frame(DATA, ORDERED, 3, b"three"))


def sent_at(seconds: float, delivered_bytes: int = 0) -> Sent:
    return Sent(1, 0, memoryview(b""), seconds, delivered_bytes)


@pytest.mark.parametrize(
    ("rate", "round_trip_seconds", "wanted"),
    [
        (1e6, 0.01, replay.LEAST_WINDOW_BYTES),
        (20e6, 0.01, 2_000_000),  # what the line delivers in QUEUE_SECONDS
        (20e6, 0.04, 3_200_000),  # or in four round trips
        (20e6, 0.2, 7_000_000),  # but in no more than BEYOND_SECONDS more than one
        (1e9, 0.2, replay.MOST_WINDOW_BYTES),
    ],
)
def test_as_much_is_under_way_as_the_line_delivers_soon(rate: float, round_trip_seconds: float, wanted: int) -> None:
    window = Window()
    window.observe(sent_at(0), int(rate * round_trip_seconds), round_trip_seconds)
    assert window.limit_bytes == pytest.approx(wanted, rel=1e-6)
    assert repr(window) == f"<Window {wanted // KIB} KiB>"


def test_the_best_rate_of_the_last_period_counts_for_one_more() -> None:
    window = Window()
    window.observe(sent_at(10.0), 5_000_000, 10.1)
    before = window.limit_bytes
    window.observe(sent_at(16.0), 1000, 16.1)  # A period later, and hardly anything was sent.
    assert window.limit_bytes == before
    window.observe(sent_at(22.0), 1000, 22.1)
    assert window.limit_bytes == replay.LEAST_WINDOW_BYTES
    window.observe(sent_at(23.0), 10**9, 23.0)  # No time has passed: that says nothing.
    assert window.limit_bytes == replay.LEAST_WINDOW_BYTES


def test_a_line_that_is_full_all_the_time_makes_no_queue_that_grows() -> None:
    window, rate, now, delivered = Window(), 1e6, 0.0, 0
    window.observe(sent_at(0), 128_000, 0.128)  # What one acknowledgement covers.
    for _ in range(1000):
        # All that is under way stands in front of what is sent now.
        took = window.limit_bytes / rate
        now += 0.1
        delivered += int(0.1 * rate)
        window.observe(Sent(1, 0, memoryview(b""), now, delivered), delivered + int(took * rate), now + took)
    assert window.limit_bytes <= 0.45 * rate


def test_a_round_trip_that_has_become_longer_is_seen_after_a_while() -> None:
    window = Window()
    for tenth in range(10 * 60):
        round_trip = 0.05 if tenth < 100 else 0.5
        window.observe(sent_at(tenth / 10), int(1e7 * round_trip), tenth / 10 + round_trip)
    assert window.limit_bytes == pytest.approx(1e7 * 0.65)


# -- both ends


@dataclass
class Stream:
    """Two peers, the kernel's first, and the line between them; a line's bytes flow, or are lost with it."""

    now: float = 0.0
    sent: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    got: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peers = [Peer(Journal(Spool(None))), Peer()]
        self._line()

    def _line(self) -> None:
        self.wires = (bytearray(), bytearray())
        self.decoders = (Decoder(), Decoder())
        self.is_up = True

    def out(self, end: int, lane: int, message: bytes) -> None:
        self.sent.setdefault((end, lane), []).append(message)
        self.peers[end].add(lane, message)

    def put(self, end: int, *, may_acknowledge: bool = True) -> None:
        if self.is_up:
            for buffer in self.peers[end].outgoing(self.now, may_acknowledge=may_acknowledge):
                self.wires[end].extend(buffer)

    def flow(self, end: int, count: int) -> None:
        """So many bytes from this end arrive at the other."""
        self.now += 0.01
        piece = bytes(self.wires[end][:count])
        del self.wires[end][:count]
        for frame in self.decoders[1 - end].feed(piece):
            packed = self.peers[1 - end].accept(frame, self.now)
            if packed is not None:
                self.got.setdefault((end, frame.flags & wire.LANE), []).append(bytes(packed))

    def lose(self) -> None:
        """The line is cut: what was on it is gone."""
        self._line()
        self.is_up = False

    def join(self) -> None:
        """A new line: each end hears what the other has."""
        self._line()
        for peer, other in (self.peers, self.peers[::-1]):
            peer.resume(other.received)

    def replace(self) -> None:
        """The owner's process was killed, and another takes over."""
        self.peers[1] = Peer()
        self.peers[0].hand_over()
        self.join()

    @property
    def is_settled(self) -> bool:
        return not any(self.wires) and not any(
            peer.acknowledge_at is not None or box.has_work or box.sent_bytes
            for peer in self.peers
            for box in peer.outboxes
        )

    def settle(self) -> None:
        """Both ends live on and the line holds: everything arrives and is acknowledged."""
        if not self.is_up:
            self.join()
        for _ in range(10_000):
            self.now += replay.ACKNOWLEDGE_SECONDS
            for end in (0, 1):
                self.put(end)
                self.flow(end, len(self.wires[end]))
            if self.is_settled:
                return
        raise AssertionError(f"no end: {self.peers}")


ENDS, LANES = st.integers(0, 1), st.integers(0, 1)
ONE_OWNER = [
    st.tuples(st.just("out"), ENDS, LANES, st.integers(0, 3 * FRAME_BYTES)),
    st.tuples(st.just("put"), ENDS, st.booleans()),
    st.tuples(st.just("flow"), ENDS, st.one_of(st.integers(0, 40), st.integers(0, 4 * FRAME_BYTES))),
    st.tuples(st.just("lose")),
    st.tuples(st.just("join")),
]
STEPS = st.lists(st.one_of(*ONE_OWNER), max_size=60)


def play(stream: Stream, steps: Iterable[tuple[object, ...]]) -> None:
    made = random.Random(1)
    for name, *words in steps:
        match name, words:
            case "out", [int(end), int(lane), int(size)]:
                number = len(stream.sent.get((end, lane), []))
                stream.out(end, lane, b"%d:" % number + made.randbytes(size))
            case "put", [int(end), bool(may)]:
                stream.put(end, may_acknowledge=may)
            case "flow", [int(end), int(count)]:
                stream.flow(end, count)
            case "lose", []:
                stream.lose()
            case "join", []:
                stream.join()
            case "alive", []:
                stream.now += KEPT_SECONDS / 2
                stream.peers[0].alive(stream.now)


@settings(max_examples=300)
@given(steps=STEPS)
def test_whatever_is_cut_and_lost_each_message_arrives_once_and_in_order(steps: list[tuple[object, ...]]) -> None:
    stream = Stream()
    play(stream, steps)
    for lane, messages in stream.got.items():
        assert stream.sent[lane][: len(messages)] == messages
    stream.settle()
    assert stream.got == stream.sent
    assert all(box.acknowledged == box.newest for peer in stream.peers for box in peer.outboxes)
    assert stream.peers[0].is_delivered


LIFE = st.lists(st.one_of(*ONE_OWNER, st.tuples(st.just("alive"))), max_size=30)


@settings(max_examples=300)
@given(lives=st.lists(LIFE, max_size=4))
def test_whoever_takes_over_gets_in_order_all_that_may_be_lacking(lives: list[list[tuple[object, ...]]]) -> None:
    stream = Stream()
    # By lane: up to which message somebody got them all.
    known = {QUICK: 0, ORDERED: 0}
    for life in [*lives, None]:
        stream.got = {}
        if life is None:
            stream.settle()
        else:
            play(stream, life)
        for lane in known:
            run = stream.got.get((0, lane), [])
            if run:
                first = int(run[0].split(b":")[0])
                assert first <= known[lane]
                assert run == stream.sent[0, lane][first : first + len(run)]
                known[lane] = max(known[lane], first + len(run))
        stream.replace()
    assert known == {lane: len(stream.sent.get((0, lane), [])) for lane in known}


@pytest.mark.parametrize("cut", range(0, 75_000, 1111))
def test_a_cut_at_any_byte_loses_nothing_and_brings_nothing_twice(cut: int) -> None:
    stream = Stream()
    messages = [b"small", b"L" * 70_000, b"after"]
    for message in messages:
        stream.out(0, ORDERED, message)
    stream.put(0)
    stream.flow(0, cut)
    stream.lose()
    stream.settle()
    assert stream.got == {(0, ORDERED): messages}


def test_the_quick_lane_has_room_of_its_own_when_the_other_is_full() -> None:
    stream = Stream()
    stream.out(0, ORDERED, b"o" * (4 * MIB))
    stream.put(0)
    assert len(stream.wires[0]) < 2 * replay.FIRST_WINDOW_BYTES
    already = len(stream.wires[0])
    stream.out(0, QUICK, b"interrupt")
    stream.put(0)
    assert b"interrupt" in stream.wires[0][already:]


def ack_of(buffers: list[wire.Buffer]) -> list[tuple[int, int]]:
    frames = Decoder().feed(b"".join(buffers))
    return [wire.acknowledged(frame.payload) for frame in frames if frame.kind == wire.ACK]


def test_what_cannot_be_handed_on_is_not_acknowledged_but_the_quick_lane_is() -> None:
    receiver = Peer()
    receiver.accept(Frame(DATA, ORDERED, 1, b"x"), 0.0)
    assert receiver.acknowledge_at == replay.ACKNOWLEDGE_SECONDS
    assert receiver.outgoing(0.1) == []  # Not yet due.
    now = replay.ACKNOWLEDGE_SECONDS
    assert receiver.outgoing(now) == [wire.acknowledgement(0, 1)]
    receiver.accept(Frame(DATA, ORDERED, 2, b"y"), now)
    receiver.accept(Frame(DATA, QUICK, 1, b"q"), now)
    now *= 2
    assert ack_of(receiver.outgoing(now, may_acknowledge=False)) == [(1, 1)]
    assert not receiver.has_work(now)  # It is looked at again, though not at once.
    assert receiver.acknowledge_at == now + replay.ACKNOWLEDGE_SOON_SECONDS
    now = receiver.acknowledge_at
    assert receiver.outgoing(now, may_acknowledge=False) == []
    assert receiver.acknowledge_at == now + replay.ACKNOWLEDGE_SOON_SECONDS
    assert ack_of(receiver.outgoing(receiver.acknowledge_at)) == [(1, 2)]
    assert receiver.acknowledge_at is None


def test_a_quick_message_alone_is_acknowledged_while_nothing_can_be_handed_on() -> None:
    receiver = Peer()
    receiver.accept(Frame(DATA, QUICK, 1, b"q"), 0.0)
    assert ack_of(receiver.outgoing(1.0, may_acknowledge=False)) == [(1, 0)]
    assert receiver.acknowledge_at is None


def test_what_was_received_and_not_handed_on_is_still_undelivered_after_a_cut() -> None:
    stream = Stream()
    stream.out(0, ORDERED, b"shown late")
    stream.put(0)
    stream.flow(0, 100)
    stream.lose()
    stream.join()
    stream.now += 1
    stream.put(1, may_acknowledge=False)
    stream.flow(1, 100)
    assert (stream.peers[0].is_delivered, stream.peers[0].undelivered_bytes) == (False, 10)
    stream.replace()  # Killed before it was shown.
    stream.settle()
    assert stream.got == {(0, ORDERED): [b"shown late"] * 2}
    assert (stream.peers[0].is_delivered, stream.peers[0].undelivered_bytes) == (True, 0)


def test_a_lost_acknowledgement_is_said_again_on_the_next_line() -> None:
    stream = Stream()
    stream.out(0, ORDERED, b"x")
    stream.put(0)
    stream.flow(0, 100)
    stream.now += 1
    stream.put(1)
    assert any(stream.wires[1])
    stream.lose()
    stream.join()
    stream.put(1, may_acknowledge=False)
    stream.flow(1, 100)
    assert stream.peers[0].is_delivered


@pytest.mark.parametrize(("silence_seconds", "comes_again"), [(KEPT_SECONDS / 2, True), (KEPT_SECONDS * 2, False)])
def test_what_was_acknowledged_just_now_comes_again_to_a_successor(silence_seconds: float, comes_again: bool) -> None:
    stream = Stream()
    stream.out(0, ORDERED, b"output")
    stream.out(0, QUICK, b"reply")
    stream.settle()
    stream.peers[0].alive(stream.now + silence_seconds)
    stream.got = {}
    stream.replace()
    stream.settle()
    assert stream.got == ({(0, ORDERED): [b"output"], (0, QUICK): [b"reply"]} if comes_again else {})


def test_nothing_comes_twice_after_a_goodbye() -> None:
    stream = Stream()
    stream.out(0, ORDERED, b"output")
    stream.settle()
    stream.peers[0].forget_kept()
    stream.got = {}
    stream.replace()
    stream.settle()
    assert stream.got == {}


def test_after_many_bytes_an_acknowledgement_does_not_wait_for_its_time() -> None:
    receiver = Peer()
    receiver.accept(Frame(DATA, ORDERED, 1, b"x" * replay.ACKNOWLEDGE_BYTES), 0.0)
    assert receiver.outgoing(0.0) == [wire.acknowledgement(0, 1)]


def test_a_peer_says_whether_it_has_anything_to_say() -> None:
    peer = Peer()
    peer.add(QUICK, b"a")
    assert (peer.has_work(0.0), bool(peer.outgoing(0.0)), peer.has_work(0.0)) == (True, True, False)
    peer.accept(Frame(DATA, ORDERED, 1, b"x"), 0.0)
    assert [peer.has_work(now) for now in (0.0, replay.ACKNOWLEDGE_SECONDS)] == [False, True]


def test_a_peer_takes_only_its_own_frames_and_forgets_what_waits_in_both_lanes() -> None:
    peer = Peer()
    with pytest.raises(WireError, match="frame of kind 6"):
        peer.accept(Frame(wire.PING, 0, 0, b""), 0.0)
    peer.add(QUICK, b"a")
    peer.add(ORDERED, b"b")
    peer.forget_waiting()
    assert peer.outgoing(0.0) == []
    assert repr(peer).startswith("<Peer out (<Outbox 1..0, 0 bytes unacknowledged")
