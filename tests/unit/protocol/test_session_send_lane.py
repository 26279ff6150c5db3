"""protocol/session.py: one lane's messages on their way out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kernelbridge.protocol import session
from kernelbridge.protocol.flow_control import MIB, Sent
from kernelbridge.protocol.frames import DATA, FRAME_BYTES, MORE, ORDERED, Frame
from kernelbridge.protocol.session import Queue, ReceiveLane, SendLane


def numbers(taken: Sequence[Sent]) -> list[int]:
    return [sent.number for sent in taken]


def outbox(*messages: bytes, keeps: bool = False) -> SendLane:
    box = SendLane(ORDERED, Queue(), keeps=keeps)
    for message in messages:
        box.waiting.add(message)
    return box


def all_of(box: SendLane) -> list[bytes]:
    return [bytes(sent.payload) for sent in box.take(10 * MIB, 0.0, 0)]


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
    inbox = ReceiveLane()
    whole = [inbox.accept(Frame(DATA, sent.flags, sent.number, sent.payload)) for sent in taken]
    assert whole == [None, None, message]


def test_no_more_goes_on_the_wire_than_there_is_room_for_but_for_one_frame() -> None:
    box = outbox(*[b"x" * 100 for _ in range(5)])
    assert numbers(box.take(150, 0.0, 0)) == [1, 2]
    assert numbers(box.take(1, 0.0, 0)) == [3]


def test_only_an_acknowledgement_forgets_frames() -> None:
    box = outbox(b"a", b"bb", b"ccc")
    box.take(100, 5.0, 0)
    done_bytes, last = box.acknowledge(2, 6.0)
    assert last is not None
    assert (done_bytes, last.number, last.at_seconds, box.sent_bytes) == (3, 2, 5.0, 3)
    assert box.acknowledge(2, 6.0) == (0, None)
    assert repr(box) == "<SendLane 3..3, 3 bytes unacknowledged, 0 bytes waiting, 0 bytes kept>"


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
    assert (box.sent_bytes, box.undelivered_bytes) == (10, 10)  # It has not said that it handed them on.
    assert box.acknowledge(4, 3.0)[0] == 10


def test_what_waits_can_be_forgotten_but_not_the_rest_of_a_message_begun() -> None:
    box = outbox(b"x" * (FRAME_BYTES + 5), b"later")
    box.take(1, 0.0, 0)
    box.drop_waiting()
    assert box.waiting_bytes == 5
    assert [len(sent.payload) for sent in box.take(MIB, 0.0, 0)] == [5]
    fresh = outbox(b"never")
    fresh.drop_waiting()
    assert (fresh.has_work, fresh.waiting_bytes) == (False, 0)


def test_a_successor_gets_whole_messages_kept_ones_first_then_what_was_under_way_then_what_waits() -> None:
    large = b"L" * (2 * FRAME_BYTES + 5)
    box = outbox(b"kept", b"sent", large, b"waits", keeps=True)
    box.take(8, 0.0, 0)
    box.acknowledge(1, 0.0)
    box.take(FRAME_BYTES + 1, 0.0, 0)
    box.acknowledge(3, 0.0)  # `sent`, and a piece of the large one.
    box.hand_over()
    assert (box.newest, box.acknowledged, box.sent_bytes, box.has_work) == (0, 0, 0, True)
    assert box.undelivered_bytes == 4 + 4 + len(large) + 5
    box.take(9, 0.0, 0)
    box.acknowledge(1, 0.0)
    box.hand_over()  # That one ended early too.
    box.waiting.add(b"new")
    assert b"".join(all_of(box)) == b"keptsent" + large + b"waitsnew"
    assert box.newest == 7


def test_a_line_that_is_lost_before_the_hand_over_changes_nothing() -> None:
    box = outbox(b"a", b"b", b"c", keeps=True)
    box.take(3, 0.0, 0)
    box.rewind(1)
    box.take(1, 0.0, 0)
    box.hand_over()
    assert all_of(box) == [b"a", b"b", b"c"]


def test_kept_messages_are_bounded_and_the_oldest_go_first() -> None:
    half = session.REPLAY_BYTES // 2
    box = outbox(b"1" * half, b"2" * half, b"3", keeps=True)
    box.take(3 * half, 0.0, 0)
    box.acknowledge(box.newest, 5.0)
    assert f"{half + 1} bytes kept" in repr(box)
    box.forget_kept(5.0)
    assert f"{half + 1} bytes kept" in repr(box)
    box.forget_kept(5.1)
    assert " 0 bytes kept" in repr(box)
    box.hand_over()
    assert not box.has_work


@pytest.mark.parametrize("keeps", [True, False])
def test_only_the_kernels_end_keeps_what_was_acknowledged(keeps: bool) -> None:
    box = outbox(b"a", keeps=keeps)
    box.take(1, 0.0, 0)
    box.acknowledge(1, 0.0)
    box.hand_over()
    assert box.has_work is keeps


def test_a_queue_says_how_much_it_holds() -> None:
    queue = Queue()
    queue.add(b"abc")
    assert repr(queue) == "<Queue 3 bytes>"
    assert (queue.pop(), queue.pop(), queue.held_bytes) == (b"abc", None, 0)
