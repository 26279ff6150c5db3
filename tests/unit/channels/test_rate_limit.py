"""channels/rate_limit.py: nothing that we hand out is dropped by jupyter_server's own limiter, which is called here.

The queue without a pace: test_output_queue.py.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_server.services.kernels.connection import channels as jupyter

from kernelbridge.channels import rate_limit
from kernelbridge.channels.messages import MessageInvalid
from kernelbridge.channels.output_queue import OutputQueue
from kernelbridge.channels.rate_limit import PIECE_BYTES, SHARE, STALL_SECONDS, Cost, Limits, RateLimiter
from kernelbridge.protocol.frames import DELIMITER, IOPUB, Buffer
from tests.made_clients import MadeClients, in_short, made, part_of, put, reply, status, stream

# jupyter_server's defaults.
LIMITS = Limits(messages_per_second=1000, stream_bytes_per_second=1_000_000, window_seconds=3)
NARROW = Limits(messages_per_second=10, stream_bytes_per_second=10_000, window_seconds=1)


class Limiter:
    """jupyter_server's `_limit_rate`, at a clock of its own, for one websocket."""

    def __init__(self, limits: Limits) -> None:
        self.stderr: list[str] = []
        self._websocket: Any = SimpleNamespace(
            limit_rate=True,
            iopub_msg_rate_limit=limits.messages_per_second,
            iopub_data_rate_limit=limits.stream_bytes_per_second,
            rate_limit_window=limits.window_seconds,
            session=SimpleNamespace(unpack=json.loads),
            write_stderr=lambda text, _: self.stderr.append(text),
            _iopub_window_msg_count=0,
            _iopub_window_byte_count=0,
            _iopub_msgs_exceeded=False,
            _iopub_data_exceeded=False,
            _iopub_window_byte_queue=[],
        )
        websocket_class: Any = jupyter.ZMQChannelsWebsocketConnection
        self._websocket.get_part = partial(websocket_class.get_part, self._websocket)

    def drops(self, parts: list[Buffer], at: float) -> bool:
        """Whether a message that arrives at this time is dropped."""
        Now.at = at
        message = {"header": None, "parent_header": None, "content": None}
        wire = [bytes(part) for part in parts[3:]]
        return bool(jupyter.ZMQChannelsWebsocketConnection._limit_rate(self._websocket, "iopub", message, wire))


class Now:
    """The limiter's clock."""

    at = 0.0

    @classmethod
    def current(cls) -> type[Now]:
        return cls

    @classmethod
    def time(cls) -> float:
        return cls.at


@pytest.fixture(autouse=True)
def limiters_clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jupyter, "IOLoop", Now)
        yield


def dropped(clients: MadeClients, limits: Limits, *, stalls: tuple[float, ...] = ()) -> int:
    """How many messages the limiter drops, where its loop stands still for STALL_SECONDS from each of these times."""
    limiter, count, last = Limiter(limits), 0, 0.0
    for sent_at, channel, parts in clients.taken:
        if channel == IOPUB:
            ends = [start + STALL_SECONDS for start in stalls if start <= sent_at < start + STALL_SECONDS]
            last = max(last, sent_at, *ends)
            count += limiter.drops(parts, last)
    return count


def paced(limits: Limits = LIMITS) -> tuple[MadeClients, OutputQueue]:
    clients = MadeClients()
    return clients, clients.queue(limits)


# -- cost


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (made("display_data"), Cost(1, 0)),
        (made("error"), Cost(1, 0)),
        (made("comm_msg"), Cost(1, 0)),
        (made("comm_open"), Cost(0, 0)),
        (made("execute_input"), Cost(0, 0)),
        (status("busy"), Cost(0, 0)),
        (status("idle"), Cost(0, 0, is_reset=True)),
    ],
)
def test_a_message_costs_what_the_limiter_counts(parts: list[bytes], expected: Cost) -> None:
    assert rate_limit.cost(parts) == expected


def test_a_stream_message_costs_all_its_bytes_but_topic_and_signature() -> None:
    parts = stream("out")
    assert rate_limit.cost(parts) == Cost(1, sum(map(len, parts)) - len(b"topic<IDS|MSG>"))


# -- the window


def test_a_burst_within_the_share_passes_and_the_rest_waits_for_the_window() -> None:
    pace = RateLimiter(LIMITS)
    for _ in range(2400):
        assert pace.due(Cost(1, 0), 0.0) == 0.0
        pace.spend(Cost(1, 0), 0.0)
    assert pace.due(Cost(1, 0), 1.0) == pytest.approx(3 + STALL_SECONDS, abs=0.05)
    assert pace.due(Cost(0, 0), 1.0) == 1.0
    assert repr(pace) == "<RateLimiter 2400 messages, 0 bytes in the window>"
    pace.spend(Cost(0, 0, is_reset=True), 1.0)
    assert pace.due(Cost(1, 0), 1.0) == 1.0


def test_a_limit_of_zero_is_none() -> None:
    pace = RateLimiter(Limits(messages_per_second=0, stream_bytes_per_second=0, window_seconds=3))
    for _ in range(10):
        assert pace.due(Cost(10**6, 10**9), 0.0) == 0.0
        pace.spend(Cost(10**6, 10**9), 0.0)
    assert (pace.piece_bytes, pace.seconds_for(10**6, 10**9)) == (PIECE_BYTES, 0)


def test_what_is_larger_than_the_window_goes_in_an_empty_one() -> None:
    pace = RateLimiter(NARROW)
    assert pace.due(Cost(1, 10**6), 0.0) == 0.0
    pace.spend(Cost(1, 10**6), 0.0)
    assert pace.due(Cost(1, 10**6), 0.0) == pytest.approx(1 + STALL_SECONDS, abs=0.05)


def test_the_real_limiter_drops_what_is_not_paced() -> None:
    """Else the tests below prove nothing."""
    clients = MadeClients()
    queue = clients.queue()
    put(queue, *(stream("x" * 1000) for _ in range(4000)))
    assert dropped(clients, LIMITS) > 1000


# -- the flow


def test_a_flood_of_small_output_is_merged_and_goes_on_evenly_without_a_busy_loop() -> None:
    clients, queue = paced()
    for _ in range(100):
        put(queue, *(stream("x" * 200) for _ in range(100)))
        clients.live(queue, 0.01)
    assert queue.is_congested
    clients.live(queue, 60)
    assert "".join(clients.heard) == "x" * 200 * 100 * 100
    assert dropped(clients, LIMITS) == 0
    assert len(clients.taken) < 2600
    late = [at - 1000 for at, _, _ in clients.taken if at > 1000 + 3 + STALL_SECONDS + 0.1]
    assert max(b - a for a, b in pairwise(late)) < 0.2
    assert clients.wakes < 200
    assert queue.due_at is None


def test_the_pace_is_near_what_the_limiter_allows() -> None:
    clients, queue = paced()
    total = 20_000_000
    put(queue, *(stream("x" * 10_000) for _ in range(total // 10_000)))
    clients.live(queue, 100)
    assert clients.taken[-1][0] - 1000 < total / 1e6 / SHARE * (1 + STALL_SECONDS / 3) + 1
    assert dropped(clients, LIMITS) == 0


def test_one_print_that_is_larger_than_the_whole_window_arrives_in_pieces_each_with_a_name_of_its_own() -> None:
    clients, queue = paced()
    text = "".join(f"line {number} é \x1b[31m\n" for number in range(250_000))
    put(queue, status("busy"), stream(text), reply(), status("idle"))
    clients.live(queue, 60)
    texts = clients.heard[1:-2]
    assert "".join(texts) == text
    assert clients.heard[-2:] == ["execute_reply", "idle"]
    assert dropped(clients, LIMITS) == 0
    names = [part_of(parts, 0)["msg_id"] for _, _, parts in clients.taken]
    assert len(set(names)) == len(names)
    pieces = [parts for _, _, parts in clients.taken[1:-2]]
    assert max(len(bytes(parts[-1])) for parts in pieces) <= PIECE_BYTES
    assert {part_of(parts, 0)["session"] for parts in pieces} == {"kernel"}
    assert {part_of(parts, 1)["msg_id"] for parts in pieces} == {"cell"}


def test_a_full_window_is_congestion_at_once_however_little_waits() -> None:
    """Who acknowledged that would have it here for longer than the relay remembers."""
    clients, queue = paced()
    put(queue, *(stream("x" * 9_000) for _ in range(240)))
    assert not queue.is_congested
    put(queue, *(stream("x" * 9_000) for _ in range(40)))
    assert queue.is_congested
    clients.live(queue, 4)
    assert not queue.is_congested


def test_after_an_idle_all_that_fits_goes_at_once() -> None:
    clients, queue = paced()
    for _ in range(10):
        put(queue, *(made("display_data") for _ in range(2000)), status("idle"))
    assert len(clients.taken) == 10 * 2001
    assert dropped(clients, LIMITS) == 0


# -- merging


def merged(*messages: list[bytes]) -> list[str]:
    """What comes of messages that waited."""
    clients, queue = paced()
    queue.gate.close()
    put(queue, *messages)
    queue.gate.subscribed(clients.now)
    queue.gate.asked((b"page",), clients.now)
    clients.live(queue, 60)
    return clients.heard


def test_only_neighbours_of_one_cell_and_one_name_are_merged() -> None:
    assert merged(stream("a"), stream("b")) == ["ab"]
    assert merged(stream("a"), stream("b", name="stderr"), stream("c")) == ["a", "b", "c"]
    assert merged(stream("a"), stream("b", parent="other")) == ["a", "b"]
    assert merged(stream("a"), made("clear_output"), stream("b")) == ["a", "clear_output", "b"]
    assert merged(stream("a"), reply(), stream("b")) == ["a", "execute_reply", "b"]
    assert merged(stream("x" * 40_000), stream("y" * 40_000)) == ["x" * 40_000, "y" * 40_000]


def test_what_is_more_than_plain_text_passes_as_it_is() -> None:
    strange = [
        made("stream", {"name": "stdout", "text": "a", "more": 1}),
        made("stream", {"name": "stdout", "text": ["a"]}),
        made("stream", {"name": 1, "text": "a"}),
        [*stream("a"), b"a buffer"],
        [*stream("a")[:-1], b"no json"],
        [*stream("a")[:-1], b"[]"],
    ]
    clients, queue = paced()
    queue.gate.close()
    for parts in strange:
        queue.put(IOPUB, parts)
        queue.put(IOPUB, parts)
    queue.gate.subscribed(clients.now)
    queue.gate.asked((b"page",), clients.now)
    clients.live(queue, 1)
    assert [parts[3:] for _, _, parts in clients.taken] == [parts[3:] for parts in strange for _ in range(2)]


def test_half_a_surrogate_pair_does_no_harm() -> None:
    assert merged(stream("a\ud83d"), stream("b")) == ["a\ud83db"]
    assert repr(rate_limit.text_of(stream("abc"))) == "<Text of stdout, 1 pieces, 33 bytes>"


def test_a_held_flood_of_small_messages_takes_little_memory() -> None:
    clients, queue = paced()
    queue.gate.close()
    one = stream("x" * 200)
    tracemalloc.start()
    try:
        for _ in range(20_000):
            queue.put(IOPUB, one)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 10_000_000
    assert clients.taken == []


# -- all of it

texts = st.one_of(
    st.text(max_size=20),
    st.builds(
        lambda unit, count: unit * count, st.sampled_from(["x", "é", "\n", "\x1b", "😀"]), st.integers(1, 15_000)
    ),
)
streams = st.builds(
    lambda text, name, parent: stream(text, name=name, parent=parent),
    texts,
    st.sampled_from(["stdout", "stderr"]),
    st.sampled_from(["one", "two"]),
)
others = st.sampled_from(["display_data", "idle", "busy", "comm_open", "comm_msg", "execute_reply", "clear_output"])
steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.3, 1.2]),
        st.integers(1, 20),
        st.one_of(streams, streams, others.map(lambda kind: status(kind) if kind in ("idle", "busy") else made(kind))),
    ),
    max_size=15,
)


def words(taken: list[list[Buffer]]) -> list[tuple[str, str, str]]:
    """All but the borders between stream messages: (parent, name or type, text), neighbours joined."""
    said: list[tuple[str, str, str]] = []
    for parts in taken:
        kind, content = part_of(parts, 0)["msg_type"], part_of(parts, 3)
        who = (part_of(parts, 1)["msg_id"], content["name"] if kind == "stream" else kind)
        if kind == "stream" and said and said[-1][:2] == who:
            said[-1] = (*who, said[-1][2] + content["text"])
        elif kind != "stream" or content["text"]:
            said.append((*who, in_short(parts)))
    return said


@settings(max_examples=60)
@given(
    steps=steps,
    limits=st.sampled_from([LIMITS, NARROW]),
    stalls=st.lists(st.floats(1000, 1060), max_size=8),
    is_held=st.booleans(),
)
def test_whatever_is_printed_arrives_whole_and_in_order_however_late_the_server_reads_it(
    steps: list[tuple[float, int, list[bytes]]], limits: Limits, stalls: list[float], is_held: bool
) -> None:
    clients, queue = paced(limits)
    if is_held:
        queue.gate.close()
    said: list[list[Buffer]] = []
    for pause, count, message in steps:
        clients.live(queue, pause)
        said += [list(message)] * count
        put(queue, *[message] * count)
    queue.gate.subscribed(clients.now)
    queue.gate.asked((b"page",), clients.now)
    clients.live(queue, 100_000)
    assert words([parts for _, _, parts in clients.taken]) == words(said)
    assert dropped(clients, limits, stalls=tuple(stalls)) == 0
    assert (queue.bytes, queue.due_at, queue.is_congested) == (0, None, False)


@pytest.mark.parametrize(
    "header", [b"nojson", b"[]", b"7", b"{}", b'{"msg_type": "status"}', b"[" * 100_000, b"\xff", b'{"msg_type": []}']
)
def test_the_cost_of_what_is_no_message_is_told_or_a_message_invalid(header: bytes) -> None:
    for content in (b"[]", b"nojson", b"7", b"[" * 100_000):
        try:
            rate_limit.cost([b"t", DELIMITER, b"", header, b"{}", b"{}", content])
        except MessageInvalid:
            continue
