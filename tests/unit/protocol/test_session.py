"""protocol/session.py: both ends of the stream, over any number of lines, and of processes at this end.

Bytes: test_wire.py. One lane's way out: test_outbox.py. What runs in the container beside them: test_relay_process.py.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelbridge.protocol import flow_control, frames, session
from kernelbridge.protocol.flow_control import MIB
from kernelbridge.protocol.frames import (
    DATA,
    FRAME_BYTES,
    MORE,
    ORDERED,
    QUICK,
    Decoder,
    Frame,
    MessageTooLong,
    WireError,
)
from kernelbridge.protocol.session import REPLAY_SECONDS, Queue, ReceiveLane, Session
from kernelbridge.relay.journal import Journal
from kernelbridge.relay.spool import Spool
from tests.outputs import said

# -- one end


def test_a_frame_that_came_before_is_no_news_and_a_hole_is_an_error() -> None:
    inbox = ReceiveLane()
    assert inbox.accept(Frame(DATA, ORDERED, 1, b"one")) == b"one"
    assert inbox.accept(Frame(DATA, ORDERED, 1, b"one")) is None
    with pytest.raises(WireError, match="frame 3 after 1"):
        inbox.accept(Frame(DATA, ORDERED, 3, b"three"))


# -- both ends


@dataclass
class Stream:
    """Two peers, the kernel's first, and the line between them; a line's bytes flow, or are lost with it."""

    now: float = 0.0
    sent: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)
    got: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.peers = [Session(Journal(Spool(None))), Session()]
        self._line()

    def _line(self) -> None:
        self.wires = (bytearray(), bytearray())
        self.decoders = (Decoder(), Decoder())
        self.is_up = True

    def out(self, end: int, lane: int, message: bytes) -> None:
        self.sent.setdefault((end, lane), []).append(message)
        self.peers[end].add(lane, message)

    def put(self, end: int, *, acknowledges: Sequence[int] = frames.LANES) -> None:
        if self.is_up:
            for buffer in self.peers[end].outgoing(self.now, acknowledges=acknowledges):
                self.wires[end].extend(buffer)

    def flow(self, end: int, count: int) -> None:
        """So many bytes from this end arrive at the other."""
        self.now += 0.01
        piece = bytes(self.wires[end][:count])
        del self.wires[end][:count]
        for frame in self.decoders[1 - end].feed(piece):
            packed = self.peers[1 - end].accept(frame, self.now)
            if packed is not None:
                self.got.setdefault((end, frame.flags & frames.LANE), []).append(bytes(packed))

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
        self.peers[1] = Session()
        self.peers[0].hand_over()
        self.join()

    @property
    def is_settled(self) -> bool:
        return not any(self.wires) and not any(
            peer.acknowledge_at is not None or box.has_work or box.sent_bytes
            for peer in self.peers
            for box in peer.send_lanes
        )

    def settle(self) -> None:
        """Both ends live on and the line holds: everything arrives and is acknowledged."""
        if not self.is_up:
            self.join()
        for _ in range(10_000):
            self.now += session.ACKNOWLEDGE_SECONDS
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
                stream.put(end, acknowledges=frames.LANES if may else (QUICK,))
            case "flow", [int(end), int(count)]:
                stream.flow(end, count)
            case "lose", []:
                stream.lose()
            case "join", []:
                stream.join()
            case "alive", []:
                stream.now += REPLAY_SECONDS / 2
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
    assert all(box.acknowledged == box.newest for peer in stream.peers for box in peer.send_lanes)
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
    assert len(stream.wires[0]) < 2 * flow_control.FIRST_WINDOW_BYTES
    already = len(stream.wires[0])
    stream.out(0, QUICK, b"interrupt")
    stream.put(0)
    assert b"interrupt" in stream.wires[0][already:]


def ack_of(buffers: list[frames.Buffer]) -> list[tuple[int, int]]:
    batch = Decoder().feed(b"".join(buffers))
    return [frames.acknowledged(frame.payload) for frame in batch if frame.kind == frames.ACK]


def test_what_cannot_be_handed_on_is_not_acknowledged_but_the_quick_lane_is() -> None:
    receiver = Session()
    receiver.accept(Frame(DATA, ORDERED, 1, b"x"), 0.0)
    assert receiver.acknowledge_at == session.ACKNOWLEDGE_SECONDS
    assert receiver.outgoing(0.1) == []  # Not yet due.
    now = session.ACKNOWLEDGE_SECONDS
    assert receiver.outgoing(now) == [frames.acknowledgement(0, 1)]
    receiver.accept(Frame(DATA, ORDERED, 2, b"y"), now)
    receiver.accept(Frame(DATA, QUICK, 1, b"q"), now)
    now *= 2
    assert ack_of(receiver.outgoing(now, acknowledges=(QUICK,))) == [(1, 1)]
    assert not receiver.has_work(now)  # It is looked at again, though not at once.
    assert receiver.acknowledge_at == now + session.ACKNOWLEDGE_SOON_SECONDS
    now = receiver.acknowledge_at
    assert receiver.outgoing(now, acknowledges=(QUICK,)) == []
    assert receiver.acknowledge_at == now + session.ACKNOWLEDGE_SOON_SECONDS
    assert ack_of(receiver.outgoing(receiver.acknowledge_at)) == [(1, 2)]
    assert receiver.acknowledge_at is None


def test_a_quick_message_alone_is_acknowledged_while_nothing_can_be_handed_on() -> None:
    receiver = Session()
    receiver.accept(Frame(DATA, QUICK, 1, b"q"), 0.0)
    assert ack_of(receiver.outgoing(1.0, acknowledges=(QUICK,))) == [(1, 0)]
    assert receiver.acknowledge_at is None


def test_what_was_received_and_not_handed_on_is_still_undelivered_after_a_cut() -> None:
    stream = Stream()
    stream.out(0, ORDERED, b"shown late")
    stream.put(0)
    stream.flow(0, 100)
    stream.lose()
    stream.join()
    stream.now += 1
    stream.put(1, acknowledges=(QUICK,))
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
    stream.put(1, acknowledges=(QUICK,))
    stream.flow(1, 100)
    assert stream.peers[0].is_delivered


@pytest.mark.parametrize(("silence_seconds", "comes_again"), [(REPLAY_SECONDS / 2, True), (REPLAY_SECONDS * 2, False)])
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


def test_a_line_of_output_after_which_nothing_comes_is_safe_after_two_seconds() -> None:
    """Whoever is killed later than that, though before anything else is said, does not make it come twice."""
    kernel, owner = Session(journal=Queue()), Session()
    kernel.add(ORDERED, b"output")
    for frame in Decoder().feed(b"".join(kernel.outgoing(0.0))):
        owner.accept(frame, 0.0)
    assert owner.acknowledge_at == session.ACKNOWLEDGE_SECONDS
    # What `_take` of the relay's server does, a tenth of a second late each time.
    for now in (session.ACKNOWLEDGE_SECONDS, session.ACKNOWLEDGE_SECONDS + session.REPEAT_SECONDS):
        for frame in Decoder().feed(b"".join(owner.outgoing(now))):
            kernel.alive(now + 0.1)
            kernel.accept(frame, now + 0.1)
    assert now <= 2.0
    assert owner.repeat_at is None
    kernel.hand_over()
    assert not kernel.has_work(now)


@settings(max_examples=40)
@given(
    every=st.integers(1, 25),
    first=st.integers(0, 50),
    late=st.lists(st.integers(0, 2), min_size=1),
    kill=st.integers(300, 400),
)
def test_two_seconds_of_a_steady_output_come_twice_at_most(every: int, first: int, late: list[int], kill: int) -> None:
    """All in hundredths of a second: an acknowledgement goes out a little late, and the kill comes at any moment."""
    stream = Stream()
    relay, owner = stream.peers
    relay.add(ORDERED, b"0")
    acknowledgements = 0
    for tick in range(kill):
        stream.now = tick / 100
        if tick >= first and (tick - first) % every == 0:
            relay.add(ORDERED, b"%d" % tick)
        stream.put(0)
        stream.flow(0, 1000)
        due = owner.acknowledge_at
        if due is not None and tick / 100 >= due + late[acknowledgements % len(late)] / 100:
            acknowledgements += 1
            stream.put(1)
            relay.alive(stream.now)
            stream.flow(1, 1000)
    before = [int(line) for line in stream.got[0, ORDERED]]
    stream.got = {}
    stream.replace()
    stream.settle()
    again = [int(line) for line in stream.got[0, ORDERED]]
    # As late as the acknowledgements were, and a line more: the time between two belongs to none of them.
    assert kill - again[0] <= 200 + every + 3 * (1 + max(late))
    # What was not handed on when it was acknowledged, which may last a second, comes again.
    assert [line for line in before if line >= kill - 100] == [line for line in again if line >= kill - 100]


@pytest.mark.parametrize(("received", "is_forgotten"), [([0, 2], False), ([0, 3], False), ([0, 1], True)])
def test_a_peer_sees_that_the_other_end_has_begun_anew(received: list[int], is_forgotten: bool) -> None:
    peer = Session()
    for word in (b"1", b"2", b"3"):
        peer.add(ORDERED, word)
    peer.outgoing(0.0)
    peer.accept(Frame(frames.ACK, 0, 0, frames.acknowledgement(0, 2)[14:]), 0.0)
    assert peer.is_forgotten(received) is is_forgotten


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
    receiver = Session()
    receiver.accept(Frame(DATA, ORDERED, 1, b"x" * session.ACKNOWLEDGE_BYTES), 0.0)
    assert receiver.outgoing(0.0) == [frames.acknowledgement(0, 1)]


def test_a_peer_says_whether_it_has_anything_to_say() -> None:
    peer = Session()
    peer.add(QUICK, b"a")
    assert (peer.has_work(0.0), bool(peer.outgoing(0.0)), peer.has_work(0.0)) == (True, True, False)
    peer.accept(Frame(DATA, ORDERED, 1, b"x"), 0.0)
    assert [peer.has_work(now) for now in (0.0, session.ACKNOWLEDGE_SECONDS)] == [False, True]


def test_a_peer_takes_only_its_own_frames_and_forgets_what_waits_in_both_lanes() -> None:
    peer = Session()
    with pytest.raises(WireError, match="frame of kind 6"):
        peer.accept(Frame(frames.PING, 0, 0, b""), 0.0)
    peer.add(QUICK, b"a")
    peer.add(ORDERED, b"b")
    peer.drop_waiting()
    assert peer.outgoing(0.0) == []
    assert repr(peer).startswith("<Session out (<SendLane 1..0, 0 bytes unacknowledged")


def test_a_message_without_end_is_given_up_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PACKED_BYTES", 100_000)
    peer, piece = Session(), b"x" * 60_000
    assert peer.accept(Frame(DATA, ORDERED | MORE, 1, piece), 0.0) is None
    with pytest.raises(MessageTooLong):
        peer.accept(Frame(DATA, ORDERED | MORE, 2, piece), 0.0)
    assert peer.accept(Frame(DATA, ORDERED, 3, b"next"), 0.0) == b"next"


def test_two_messages_without_end_are_given_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "UNFINISHED_BYTES", 100_000)
    peer, piece = Session(), b"x" * 60_000
    assert peer.accept(Frame(DATA, ORDERED | MORE, 1, piece), 0.0) is None
    with pytest.raises(MessageTooLong, match="two messages of more than 100000 bytes"):
        peer.accept(Frame(DATA, QUICK | MORE, 1, piece), 0.0)


def test_the_beginning_of_a_message_keeps_nothing_of_what_came_beside_it() -> None:
    lane = ReceiveLane()
    tracemalloc.start()
    for number in range(1, 1001):
        lane.accept(Frame(DATA, ORDERED | MORE, number, memoryview(b"x" * 60_000)[:1]))
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert lane.accept(Frame(DATA, ORDERED, 1001, b"")) == b"x" * 1000
    assert held_bytes < 100_000


@pytest.mark.parametrize("size", [0, 60_000])
@pytest.mark.parametrize(("lane", "acknowledged"), [(ORDERED, (QUICK,)), (ORDERED, ()), (QUICK, ())])
def test_more_than_any_window_without_an_acknowledgement_is_refused_until_there_is_one(
    size: int, lane: int, acknowledged: tuple[int, ...]
) -> None:
    peer, number, payload = Session(), 0, b"x" * size
    with pytest.raises(WireError, match="not acknowledged"):
        for number in range(1, 1 << 20):
            peer.accept(Frame(DATA, lane, number, payload), 0.0)
            assert number * size < 40 * MIB
            if number % 1000 == 0:
                peer.outgoing(number / 1000, acknowledges=acknowledged)
    assert number * max(size, session.LEAST_COUNTED_BYTES) > flow_control.MOST_WINDOW_BYTES + FRAME_BYTES
    with pytest.raises(WireError, match="not acknowledged"):
        peer.accept(Frame(DATA, lane, number, payload), 0.0)
    peer.outgoing(1e6)
    assert peer.accept(Frame(DATA, lane, number, payload), 0.0) == payload


def test_a_message_longer_than_the_journal_goes_out_while_somebody_hears_and_in_its_place() -> None:
    before, long, after = (said("stream", {"text": text}) for text in ("before", "x" * 5000, "after"))
    for is_heard in (True, False):
        peer = Session(Journal(Spool(None), limit_bytes=1000))
        for packed in (before, long, after):
            peer.add(ORDERED, packed, is_heard=is_heard)
        sent = list(map(bytes, peer.outgoing(1.0)))[1::2]
        assert (sent == [before, long, after]) is is_heard
        assert (long in sent) is is_heard
