"""relay/journal.py: what waits, in memory and in blocks, and what of it is left when it is too much."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import EVENT, IOPUB, ORDERED, SHELL, STDIN, Decoder, Message
from kernelbridge.protocol.session import Session
from kernelbridge.relay.journal import BLOCK_BYTES, MEMORY_BYTES, Journal
from kernelbridge.relay.spool import Spool
from tests.outputs import MemorySpool, event, read, said, update

# No test here reaches these bounds unless it sets them.
FAR = 1 << 40


def drained(journal: Journal) -> Iterator[bytes]:
    while (packed := journal.pop()) is not None:
        yield packed


def text(number: int, size: int = 0, parent: str = "cell") -> bytes:
    return said("stream", {"text": "x" * size}, number=number, parent=parent)


def numbers(messages: Iterable[bytes]) -> list[int]:
    return [read(packed)[0]["number"] for packed in messages if event(packed) is None]


def dropped(messages: Iterable[bytes]) -> Counter[str]:
    """How many messages the notices count, by request."""
    counted: Counter[str] = Counter()
    for packed in messages:
        notice = event(packed)
        if notice is not None:
            counted[notice["parent"].get("msg_id", "")] += notice["messages"]
    return counted


def in_blocks(*, limit: float = FAR, memory: float = FAR, spool: MemorySpool | None = None) -> Journal:
    """A journal of small blocks; the bounds are in units of 200 bytes, about one message."""
    return Journal(cast(Any, spool or MemorySpool()), limit_bytes=int(limit * 200), memory_bytes=int(memory * 200))


# -- one thing after the other


def test_what_fits_in_memory_is_in_no_file() -> None:
    spool = MemorySpool()
    journal = Journal(cast(Any, spool))
    message = text(0, 10_000)
    for _ in range(MEMORY_BYTES // len(message)):
        journal.add(message)
    assert spool.written == 0
    assert journal.memory_bytes == journal.held_bytes <= MEMORY_BYTES


def test_what_does_not_is_written_once_and_read_once_and_order_is_kept() -> None:
    spool = MemorySpool()
    journal = Journal(cast(Any, spool))
    count = 4 * MEMORY_BYTES // len(text(0, 10_000))
    for number in range(count):
        journal.add(text(number, 10_000))
    assert journal.memory_bytes <= MEMORY_BYTES + 2 * BLOCK_BYTES
    assert count / 2 < spool.written < count
    assert numbers(drained(journal)) == list(range(count))
    assert (spool.read_again, spool.blocks) == (spool.written, {})
    assert repr(journal) == "<Journal 0 bytes, 0 of them in memory, <Notices 0 waiting, 0 dropped>>"


def test_over_the_bound_the_oldest_output_goes_and_replies_stay() -> None:
    journal = in_blocks(limit=100)
    for number in range(0, 1000, 2):
        journal.add(text(number))
        journal.add(said("execute_reply", number=number + 1, channel=SHELL) if number % 100 == 0 else text(number + 1))
    assert 0.9 * 20_000 < journal.held_bytes < 1.1 * 20_000
    messages = list(drained(journal))
    left = numbers(messages)
    newest = left[left.index(801) + 1 :]
    assert left[: left.index(801) + 1] == list(range(1, 802, 100))
    assert newest == list(range(1000 - len(newest), 1000))
    assert dropped(messages) == {"cell": 1000 - len(left)}
    assert event(messages[0]) is not None


def test_a_message_that_is_too_large_alone_goes_too() -> None:
    journal = in_blocks(limit=100)
    journal.add(text(1, 30_000))
    assert dropped(drained(journal)) == {"cell": 1}


def test_far_over_the_bound_results_go_and_what_somebody_waits_for_stays() -> None:
    journal = in_blocks(limit=50)
    staying = [("status", 1), ("error", 1), ("execute_reply", SHELL), ("input_request", STDIN)]
    for number in range(400):
        journal.add(said("execute_result", number=-1))
        if number % 50 == 0:
            for kind, channel in staying:
                journal.add(said(kind, number=number, channel=channel))
    messages = list(drained(journal))
    assert [number for number in numbers(messages) if number >= 0] == [n for n in range(0, 400, 50) for _ in staying]
    assert 250 < sum(dropped(messages).values()) < 330


def test_all_that_must_stay_is_looked_at_a_few_times_however_much_it_is() -> None:
    spool = MemorySpool()
    journal = in_blocks(limit=2000, memory=16, spool=spool)
    for number in range(5000):
        journal.add(said("status", number=number))
    # As it came, and after each of the two levels.
    assert 5000 < spool.written <= 3 * 5000
    assert spool.read_again <= 2 * 5000
    assert numbers(drained(journal)) == list(range(5000))


def test_notices_and_survivors_come_through_the_spool() -> None:
    spool = MemorySpool()
    journal = in_blocks(limit=200, memory=16, spool=spool)
    for number in range(5000):
        journal.add(said("status", number=number) if number % 10 == 0 else text(number, parent=f"cell {number // 100}"))
    assert len(spool.blocks) > 5
    assert journal.memory_bytes < 50 * 200
    messages = list(drained(journal))
    assert [number for number in numbers(messages) if number % 10 == 0] == list(range(0, 5000, 10))
    assert sum(dropped(messages).values()) + len(numbers(messages)) == 5000
    assert spool.blocks == {}


def test_on_a_full_disk_the_oldest_goes_and_what_must_stay_stays_in_memory() -> None:
    spool = MemorySpool()
    journal = in_blocks(memory=100, spool=spool)
    with spool.full():
        for number in range(1000):
            journal.add(said("status", number=number) if number % 50 == 0 else text(number))
        assert journal.memory_bytes == journal.held_bytes < 150 * 200
        for number in range(1000, 1500):
            journal.add(said("error", number=number))
    for number in range(1500, 2000):
        journal.add(text(number))
    assert spool.blocks  # There is room again.
    messages = list(drained(journal))
    left = numbers(messages)
    assert [number for number in left if number % 50 == 0 and number < 1000] == list(range(0, 1000, 50))
    assert [number for number in left if number >= 1000] == list(range(1000, 2000))
    assert sum(dropped(messages).values()) + len(left) == 2000


def test_on_a_full_disk_results_go_when_memory_is_full_twice() -> None:
    journal = Journal(Spool(None), memory_bytes=20_000)
    for number in range(1000):
        journal.add(said("execute_result", number=number))
    assert journal.memory_bytes < 45_000
    messages = list(drained(journal))
    assert dropped(messages)["cell"] + len(numbers(messages)) == 1000


def test_what_a_broken_disk_lost_is_counted_and_the_rest_comes() -> None:
    spool = MemorySpool()
    journal = in_blocks(limit=500, memory=32, spool=spool)
    for number in range(2000):
        journal.add(said("status", number=number) if number % 10 == 0 else text(number))
    held_blocks = len(spool.blocks)
    with spool.broken():
        messages = list(drained(journal))
    assert held_blocks > 10
    left = numbers(messages)
    assert left == sorted(left)
    assert left
    assert dropped(messages)["cell"] > 0
    assert dropped(messages)[""] > 0
    assert sum(dropped(messages).values()) + len(left) == 2000
    assert (journal.held_bytes, journal.memory_bytes, spool.blocks) == (0, 0, {})


def test_the_newest_blocks_can_be_looked_at_up_to_so_many_bytes() -> None:
    """Also those in the spool; and a notice's place is no message."""
    journal = in_blocks(memory=16)
    said = [text(number) for number in range(64)]
    for packed in said:
        journal.add(packed)
    assert journal.peek(0) == []
    newest = journal.peek(1)
    assert 0 < len(newest) < 8
    assert newest == said[-len(newest) :]
    # So many bytes are one block; another one is begun for one more.
    size = sum(map(len, newest))
    assert journal.peek(size) == newest
    assert len(journal.peek(size + 1)) > len(newest)
    assert journal.peek(FAR) == said
    assert list(drained(journal)) == said
    over = in_blocks(limit=16)
    for packed in said:
        over.add(packed)
    kept = over.peek(FAR)
    assert kept == said[-len(kept) :]


def test_all_can_be_forgotten_and_its_room_is_given_back() -> None:
    spool = MemorySpool()
    journal = in_blocks(limit=100, memory=16, spool=spool)
    for number in range(300):
        journal.add(text(number))
    assert spool.blocks
    journal.clear()
    assert (spool.blocks, journal.held_bytes, journal.pop()) == ({}, 0, None)
    journal.add(text(7))
    assert numbers(drained(journal)) == [7]


def test_a_peer_takes_its_output_from_the_journal() -> None:
    peer = Session(in_blocks(limit=100, memory=16))
    for number in range(500):
        peer.add(ORDERED, text(number))
    assert (peer.is_delivered, peer.undelivered_bytes > 50 * 200) == (False, True)
    receiver, arrived = Session(), []
    for now in range(100):
        for frame in Decoder().feed(b"".join(peer.outgoing(float(now)))):
            packed = receiver.accept(frame, float(now))
            if packed is not None:
                arrived.append(bytes(packed))
        for frame in Decoder().feed(b"".join(receiver.outgoing(now + 0.5))):
            peer.accept(frame, now + 0.5)
    assert peer.is_delivered
    assert dropped(arrived)["cell"] + len(numbers(arrived)) == 500


# -- any order of things


STAYING = [("status", 1), ("error", 1), ("execute_reply", SHELL), ("input_request", STDIN)]
PARENTS = st.sampled_from(["one", "two", ""])
SAY = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(["stream", "display_data", "execute_result"]), PARENTS),
    st.tuples(st.just("stay"), st.sampled_from(STAYING), PARENTS),
)
COMM = st.tuples(
    st.just("comm"),
    st.sampled_from(["update"] * 6 + ["buffers", "custom", "open", "close"]),
    st.sampled_from("ab"),
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), max_size=2),
)
POP = st.tuples(st.just("pop"), st.integers(1, 20))
FAULT = st.tuples(st.just("full"), st.booleans())
Step = tuple[Any, ...]


def made(step: Step, number: int) -> bytes:
    match step:
        case "say", str(kind), str(parent):
            return said(kind, number=number, parent=parent)
        case "stay", (str(kind), int(channel)), str(parent):
            return said(kind, number=number, parent=parent, channel=channel)
        case "comm", ("update" | "buffers") as kind, str(comm), state:
            return update(comm, state, number=number, buffers=[b"b"] if kind == "buffers" else [])
        case "comm", kind, str(comm), state:
            data = {"state": state} if kind == "open" else {"method": kind, "content": state}
            name = "comm_msg" if kind == "custom" else f"comm_{kind}"
            return said(name, {"comm_id": comm, "data": data}, number=number)
        case _:
            raise AssertionError(step)


def played(journal: Journal, spool: MemorySpool, steps: list[Step]) -> tuple[list[bytes], list[bytes]]:
    """What was added and what came out, in order."""
    added: list[bytes] = []
    came: list[bytes] = []
    for step in steps:
        if step[0] == "pop":
            popped = (journal.pop() for _ in range(step[1]))
            came += [packed for packed in popped if packed is not None]
        elif step[0] == "full":
            spool.is_full = step[1]
        else:
            added.append(made(step, len(added)))
            journal.add(added[-1])
    came += drained(journal)
    assert (journal.held_bytes, journal.memory_bytes, spool.blocks) == (0, 0, {})
    return added, came


def by_parent(messages: Iterable[bytes]) -> Counter[str]:
    return Counter(read(packed)[1].get("msg_id", "") for packed in messages if event(packed) is None)


@settings(max_examples=200)
@given(
    steps=st.lists(st.one_of(SAY, SAY, COMM, POP, FAULT), max_size=150),
    limit=st.integers(1, 60),
    memory=st.integers(1, 60),
)
def test_what_came_and_what_the_notices_count_is_what_was_said(steps: list[Step], limit: int, memory: int) -> None:
    spool = MemorySpool()
    added, came = played(in_blocks(limit=limit, memory=memory, spool=spool), spool, steps)
    assert by_parent(came) + dropped(came) == by_parent(added)
    kinds = {kind for kind, _ in STAYING}

    def staying(messages: list[bytes]) -> list[bytes]:
        return [one for one in messages if event(one) is None and read(one)[0]["msg_type"] in kinds]

    assert staying(came) == staying(added)
    # An update may come earlier than it was said; nothing else changes its place, or anything at all.
    others = [one for one in came if event(one) is None and "comm" not in read(one)[0]["msg_type"]]
    assert numbers(others) == sorted(numbers(others))
    assert set(others) <= set(added)


def widgets(messages: list[bytes]) -> tuple[list[str], dict[str, dict[str, int]]]:
    """What a page saw, widget by widget, at each thing but an update; and each widget's state in the end."""
    states: dict[str, dict[str, int]] = {}
    scenes = []
    for packed in messages:
        if event(packed) is not None or "comm" not in read(packed)[0]["msg_type"]:
            continue
        header, _, content, buffers = read(packed)
        comm, data = content["comm_id"], content["data"]
        is_plain = data.get("method") == "update" and not buffers
        if not is_plain:
            scenes.append(f"{comm}: {json.dumps(states.get(comm), sort_keys=True)}, {header['number']}")
        if header["msg_type"] == "comm_open":
            states[comm] = dict(data["state"])
        elif header["msg_type"] == "comm_close":
            states.pop(comm, None)
        elif data["method"] == "update":
            states.setdefault(comm, {}).update(data["state"])
    return scenes, states


@settings(max_examples=200)
@given(steps=st.lists(st.one_of(COMM, COMM, COMM, SAY, POP, FAULT), max_size=200), memory=st.integers(1, 60))
def test_over_the_bound_every_widget_is_as_it_would_be(steps: list[Step], memory: int) -> None:
    # Over half of all that is said: never far over the bound, in the spool or for lack of it.
    total = sum(len(made(step, 0)) + 3 for step in steps if step[0] not in ("pop", "full"))
    spool = MemorySpool()
    journal = Journal(cast(Any, spool), limit_bytes=total // 2 + 1, memory_bytes=max(memory * 200, total // 2 + 1))
    added, came = played(journal, spool, steps)
    assert widgets(came) == widgets(added)


def test_a_progress_bar_of_hours_is_a_few_messages() -> None:
    spool = MemorySpool()
    journal = in_blocks(limit=100, memory=32, spool=spool)
    for number in range(8000):
        journal.add(update(f"bar {number % 8}", {"value": number}, number=number))
    messages = list(drained(journal))
    assert len(numbers(messages)) < 130
    assert dropped(messages)["cell"] + len(numbers(messages)) == 8000
    assert widgets(messages)[1] == {f"bar {number % 8}": {"value": number} for number in range(7992, 8000)}


@pytest.mark.parametrize(("kind", "channel"), [*STAYING, ("comm_open", IOPUB), ("execute_result", IOPUB)])
def test_at_last_everything_is_bounded_but_what_the_relay_says_itself(kind: str, channel: int) -> None:
    journal = in_blocks(limit=100)
    event_first = frames.pack(Message(EVENT, 1, [b'{"event": "of the relay"}']))
    journal.add(event_first)
    for number in range(5000):
        journal.add(said(kind, number=number, channel=channel))
    assert journal.held_bytes < 5 * 100 * 200
    first, *messages = drained(journal)
    assert first == event_first
    assert sum(dropped(messages).values()) + len(numbers(messages)) == 5000
