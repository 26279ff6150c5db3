"""protocol/frames.py: frames as bytes and back, messages as bytes and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import CONTROL, DATA, EVENT, IOPUB, ORDERED, QUICK, SHELL, Decoder, Message, WireError

MIB = 1024 * 1024


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The bytes in pieces, cut at these places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


FRAMES = st.lists(
    st.tuples(st.integers(1, 8), st.integers(0, 3), st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=8
)


@given(sent=FRAMES, cuts=st.lists(st.integers(0, 5000), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_bytes_were_cut(
    sent: list[tuple[int, int, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frames.head(kind, len(body), flags, number) + body for kind, flags, number, body in sent)
    decoder = Decoder()
    got = [frame for piece in pieces(stream, cuts) for frame in decoder.feed(piece)]
    assert [(frame.kind, frame.flags, frame.number, bytes(frame.payload)) for frame in got] == sent


def test_frames_come_out_when_each_byte_comes_alone() -> None:
    decoder = Decoder()
    stream = frames.frame(frames.PING, b"abc") + frames.frame(frames.PONG)
    got = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert [(frame.kind, bytes(frame.payload)) for frame in got] == [(frames.PING, b"abc"), (frames.PONG, b"")]
    assert repr(decoder) == "<Decoder 0 of 14 bytes>"


def test_a_frame_longer_than_any_of_ours_is_not_our_protocol() -> None:
    with pytest.raises(WireError, match="frame of 16777217 bytes"):
        Decoder().feed(frames.head(DATA, 16 * MIB + 1))


@given(
    parts=st.lists(st.binary(max_size=200), max_size=12),
    channel=st.integers(0, 5),
    launch=st.integers(0, 2**32 - 1),
)
def test_a_message_comes_out_as_it_went_in(parts: list[bytes], channel: int, launch: int) -> None:
    message = frames.unpack(frames.pack(Message(channel, launch, parts)))
    assert (message.channel, message.launch) == (channel, launch)
    assert [bytes(part) for part in message.parts] == parts


@pytest.mark.parametrize(
    "packed",
    [b"", b"\x01\x00", frames.pack(Message(SHELL, 1, [b"ab"]))[:-1], frames.pack(Message(SHELL, 1, [b"ab"])) + b"x"],
)
def test_bytes_that_are_no_message_are_refused(packed: bytes) -> None:
    with pytest.raises(WireError):
        frames.unpack(packed)


def test_an_acknowledgement_carries_both_lanes_numbers() -> None:
    [frame] = Decoder().feed(frames.acknowledgement(7, 2**40))
    assert (frame.kind, frames.acknowledged(frame.payload)) == (frames.ACK, (7, 2**40))
    with pytest.raises(WireError):
        frames.acknowledged(b"short")


def test_each_channel_has_its_lane() -> None:
    assert {channel for channel, lane in frames.LANE_OF.items() if lane == ORDERED} == {SHELL, IOPUB, EVENT}
    assert frames.LANE_OF[CONTROL] == frames.LANE_OF[frames.STDIN] == frames.LANE_OF[frames.COMMAND] == QUICK


@pytest.mark.parametrize("payload", [b"", b"x" * 15, b"x" * 17])
def test_an_acknowledgement_of_a_wrong_length_is_not_our_protocol(payload: bytes) -> None:
    with pytest.raises(frames.WireError):
        frames.acknowledged(payload)
