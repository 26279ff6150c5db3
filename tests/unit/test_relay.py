"""relay/wire.py and relay/replay.py: frames as bytes and back; both ends of the stream, over any number of lines.

What runs in the container beside them (child, line, bridge): test_relay_process.py.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelbridge.relay import replay, wire
from kernelbridge.relay.replay import KIB, MIB, Inbox, Outbox, Peer, Sent, Window
from kernelbridge.relay.wire import (
    CONTROL,
    DATA,
    EVENT,
    FRAME_BYTES,
    IOPUB,
    MORE,
    ORDERED,
    QUICK,
    SHELL,
    Decoder,
    Frame,
    Message,
    WireError,
)

# -- wire.py


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The bytes in pieces, cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


FRAMES = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 3), st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=8
)


@given(frames=FRAMES, cuts=st.lists(st.integers(0, 5000), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_bytes_were_cut(
    frames: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(wire.head(kind, len(body), flags, number) + body for kind, flags, number, body in frames)
    decoder = Decoder()
    got = [frame for piece in pieces(stream, cuts) for frame in decoder.feed(piece)]
    assert [(frame.kind, frame.flags, frame.number, bytes(frame.payload)) for frame in got] == frames


def test_frames_come_out_when_each_byte_comes_alone() -> None:
    decoder = Decoder()
    stream = wire.frame(wire.PING, b"abc") + wire.frame(wire.PONG)
    got = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert [(frame.kind, bytes(frame.payload)) for frame in got] == [(wire.PING, b"abc"), (wire.PONG, b"")]
    assert repr(decoder) == "<Decoder 0 of 14 bytes>"


def test_a_frame_longer_than_any_of_ours_is_not_our_protocol() -> None:
    with pytest.raises(WireError, match="frame of 16777217 bytes"):
        Decoder().feed(wire.head(DATA, 16 * MIB + 1))


@given(
    parts=st.lists(st.binary(max_size=200), max_size=12),
    channel=st.integers(0, 5),
    launch=st.integers(0, 2**32 - 1),
)
def test_a_message_comes_out_as_it_went_in(parts: list[bytes], channel: int, launch: int) -> None:
    message = wire.unpack(wire.pack(Message(channel, launch, parts)))
    assert (message.channel, message.launch) == (channel, launch)
    assert [bytes(part) for part in message.parts] == parts


@pytest.mark.parametrize(
    "packed",
    [b"", b"\x01\x00", wire.pack(Message(SHELL, 1, [b"ab"]))[:-1], wire.pack(Message(SHELL, 1, [b"ab"])) + b"x"],
)
def test_bytes_that_are_no_message_are_refused(packed: bytes) -> None:
    with pytest.raises(WireError):
        wire.unpack(packed)


def test_an_acknowledgement_carries_both_lanes_numbers() -> None:
    [frame] = Decoder().feed(wire.acknowledgement(7, 2**40))
    assert (frame.kind, wire.acknowledged(frame.payload)) == (wire.ACK, (7, 2**40))
    with pytest.raises(struct.error):
        wire.acknowledged(b"short")


def test_each_channel_has_its_lane() -> None:
    assert {channel for channel, lane in wire.LANE_OF.items() if lane == ORDERED} == {SHELL, IOPUB, EVENT}
    assert wire.LANE_OF[CONTROL] == wire.LANE_OF[wire.STDIN] == wire.LANE_OF[wire.COMMAND] == QUICK


# -- replay.py: one end


def numbers(taken: Sequence[Sent]) -> list[int]:
    return [sent.number for sent in taken]


def outbox(*messages: bytes, limit_bytes: int = 256 * MIB) -> Outbox:
    box = Outbox(ORDERED, limit_bytes)
    for message in messages:
        box.add(message)
    return box


def test_a_message_gets_its_number_when_it_goes_on_the_wire() -> None:
    box = outbox(b"a", b"bb")
    assert (box.newest, box.waiting_bytes, box.has_work) == (0, 3, True)
    assert numbers(box.take(100, 0.0, 0)) == [1, 2]
    assert (box.newest, box.waiting_bytes, box.sent_bytes, box.has_work) == (2, 0, 3, False)


def test_a_large_message_travels_as_several_frames() -> None:
    message = bytes(range(256)) * 600  # 2.3 frames
    taken = outbox(message).take(MIB, 0.0, 0)
    assert [sent.flags & MORE for sent in taken] == [MORE, MORE, 0]
    assert [len(sent.payload) for sent in taken] == [FRAME_BYTES, FRAME_BYTES, len(message) - 2 * FRAME_BYTES]
    inbox = Inbox()
    whole = [inbox.accept(Frame(DATA, sent.flags, sent.number, sent.payload)) for sent in taken]
    assert whole == [None, None, message]


def test_no_more_goes_on_the_wire_than_there_is_room_for_but_for_one_frame() -> None:
    box = outbox(*[b"x" * 100 for _ in range(5)])
    assert numbers(box.take(150, 0.0, 0)) == [1, 2]
    assert numbers(box.take(1, 0.0, 0)) == [3]


def test_only_an_acknowledgement_forgets_frames() -> None:
    box = outbox(b"a", b"bb", b"ccc")
    box.take(100, 5.0, 0)
    done_bytes, last = box.acknowledge(2)
    assert last is not None
    assert (done_bytes, last.number, last.at_seconds, box.sent_bytes) == (3, 2, 5.0, 3)
    assert box.acknowledge(2) == (0, None)
    assert repr(box) == "<Outbox 3..3, 3 bytes unacknowledged, 0 bytes waiting, 0 dropped>"


def test_a_new_line_carries_again_only_what_the_other_end_lacks_and_in_order() -> None:
    box = outbox(b"a", b"bb", b"ccc", b"dddd")
    box.take(6, 0.0, 0)
    box.rewind(1)
    assert box.has_work
    assert numbers(box.take(2, 1.0, 0)) == [2]
    box.rewind(1)  # Lost again, half way.
    assert numbers(box.take(100, 2.0, 0)) == [2, 3, 4]
    box.rewind(3)
    box.rewind(4)  # The other end had more than it said the time before.
    assert not box.has_work


def test_over_the_bound_the_oldest_output_goes_and_what_must_stay_stays() -> None:
    box = Outbox(ORDERED, 10)
    for message, may_drop in ((b"reply1", False), (b"out1", True), (b"out2", True), (b"reply2", False)):
        box.add(message, may_drop=may_drop)
    assert (box.dropped, box.waiting_bytes) == (2, 12)
    assert [bytes(sent.payload) for sent in box.take(100, 0.0, 0)] == [b"reply1", b"reply2"]


def test_output_that_is_partly_on_the_wire_is_not_dropped() -> None:
    box = Outbox(ORDERED, FRAME_BYTES + 10)
    box.add(b"x" * (FRAME_BYTES + 5), may_drop=True)
    assert numbers(box.take(1, 0.0, 0)) == [1]
    box.add(b"y" * FRAME_BYTES, may_drop=True)
    box.add(b"z" * FRAME_BYTES, may_drop=True)
    assert box.dropped == 1
    assert [bytes(sent.payload[:1]) for sent in box.take(MIB, 0.0, 0)] == [b"x", b"z"]


def test_what_waits_can_be_forgotten_but_not_the_rest_of_a_message_begun() -> None:
    box = outbox(b"x" * (FRAME_BYTES + 5), b"later")
    box.take(1, 0.0, 0)
    box.forget_waiting()
    assert box.waiting_bytes == 5
    assert [len(sent.payload) for sent in box.take(MIB, 0.0, 0)] == [5]
    fresh = outbox(b"never")
    fresh.forget_waiting()
    assert (fresh.has_work, fresh.waiting_bytes) == (False, 0)


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
        (20e6, 0.2, 12_000_000),  # or in three round trips
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


# -- replay.py: both ends


@dataclass
class Stream:
    """Two peers and the line between them; a line's bytes are in `wires` until they flow, or are lost with it."""

    limit_bytes: int = 256 * MIB
    now: float = 0.0
    sent: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    got: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peers = (Peer(limit_bytes=self.limit_bytes), Peer(limit_bytes=self.limit_bytes))
        self._line()

    def _line(self) -> None:
        self.wires = (bytearray(), bytearray())
        self.decoders = (Decoder(), Decoder())
        self.is_up = True

    def out(self, end: int, lane: int, message: bytes) -> None:
        self.sent.setdefault((end, lane), []).append(message)
        self.peers[end].add(lane, message)

    def put(self, end: int, *, acknowledge: bool = False, may_acknowledge: bool = True) -> None:
        if self.is_up:
            peer = self.peers[end]
            for buffer in peer.outgoing(self.now, acknowledge=acknowledge, may_acknowledge=may_acknowledge):
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

    def settle(self) -> None:
        """Both ends live on and the line holds: everything arrives and is acknowledged."""
        if not self.is_up:
            self.join()
        for _ in range(10_000):
            for end in (0, 1):
                self.put(end, acknowledge=True)
                self.flow(end, len(self.wires[end]))
            has_work = any(box.has_work for peer in self.peers for box in peer.outboxes)
            if not any(self.wires) and not has_work and not any(peer.owes_acknowledgement for peer in self.peers):
                return
        raise AssertionError(f"no end: {self.peers}")


ENDS, LANES = st.integers(0, 1), st.integers(0, 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("out"), ENDS, LANES, st.integers(0, 3 * FRAME_BYTES)),
        st.tuples(st.just("put"), ENDS, st.booleans(), st.booleans()),
        st.tuples(st.just("flow"), ENDS, st.one_of(st.integers(0, 40), st.integers(0, 4 * FRAME_BYTES))),
        st.tuples(st.just("lose")),
        st.tuples(st.just("join")),
    ),
    max_size=60,
)


def play(stream: Stream, steps: Iterable[tuple[object, ...]]) -> None:
    made = random.Random(1)
    for name, *words in steps:
        match name, words:
            case "out", [int(end), int(lane), int(size)]:
                stream.out(end, lane, made.randbytes(size + 1))
            case "put", [int(end), bool(acknowledge), bool(may)]:
                stream.put(end, acknowledge=acknowledge, may_acknowledge=may)
            case "flow", [int(end), int(count)]:
                stream.flow(end, count)
            case "lose", []:
                stream.lose()
            case "join", []:
                stream.join()


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_whatever_is_cut_and_lost_each_message_arrives_once_and_in_order(steps: list[tuple[object, ...]]) -> None:
    stream = Stream()
    play(stream, steps)
    for lane, messages in stream.got.items():
        assert stream.sent[lane][: len(messages)] == messages
    stream.settle()
    assert stream.got == stream.sent
    assert all(box.acknowledged == box.newest and box.sent_bytes == 0 for peer in stream.peers for box in peer.outboxes)


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


def test_what_cannot_be_handed_on_is_not_acknowledged() -> None:
    stream = Stream()
    stream.out(0, ORDERED, b"x")
    stream.put(0)
    stream.flow(0, 100)
    receiver = stream.peers[1]
    assert receiver.owes_acknowledgement
    assert receiver.outgoing(0.0) == []  # Not yet due.
    assert receiver.outgoing(0.0, acknowledge=True, may_acknowledge=False) == []
    assert receiver.outgoing(0.0, acknowledge=True) == [wire.acknowledgement(0, 1)]
    assert not receiver.owes_acknowledgement


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
