"""relay/eviction.py: which messages go, how a widget's updates become one, and what is told of the rest."""

from __future__ import annotations

import json

import pytest

from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import CONTROL, EVENT, IOPUB, SHELL, STDIN, Message
from kernelbridge.relay.eviction import FAR_OVER, LAST, NEVER, OVER, PLACE, Batch, Notices, look, merged
from tests.outputs import event, read, said, update


@pytest.mark.parametrize(
    ("level", "packed"),
    [
        *[(OVER, said(kind)) for kind in ("stream", "display_data", "update_display_data")],
        *[(LAST, said(kind)) for kind in ("status", "error")],
        *[(FAR_OVER, said(kind)) for kind in ("execute_input", "execute_result", "clear_output", "debug_event", "new")],
        (FAR_OVER, said("comm_open", {"comm_id": "c"})),
        (FAR_OVER, update("c", {})),
        (LAST, said("execute_reply", channel=SHELL)),
        (LAST, said("stream", channel=SHELL)),
        (LAST, said("input_request", channel=STDIN)),
        (LAST, said("debug_reply", channel=CONTROL)),
        (NEVER, frames.pack(Message(EVENT, 1, [b"{}"]))),
        # What cannot be read stays as long as can be.
        (NEVER, b"\x01"),
        (LAST, frames.pack(Message(IOPUB, 1, [b"no delimiter"]))),
        (LAST, frames.pack(Message(IOPUB, 1, [b"", b"<IDS|MSG>", b"", b"{no json"]))),
        (LAST, frames.pack(Message(IOPUB, 1, [b"", b"<IDS|MSG>", b"", b"[]", b"{}", b"{}", b"{}"]))),
        (LAST, frames.pack(Message(IOPUB, 1, [b"", b"<IDS|MSG>", b"", b'{"msg_type": []}', b"{}", b"{}", b"{}"]))),
        (LAST, said("comm_msg", {"data": {}})),
    ],
)
def test_each_message_goes_at_its_level(level: int, packed: bytes) -> None:
    seen = look(packed)
    assert (seen.level, seen.size_bytes) == (level, len(packed))


@pytest.mark.parametrize(
    ("is_update", "packed"),
    [
        (True, update("c", {"value": 1})),
        (False, update("c", {"value": 1}, buffers=[b"b"])),
        (False, said("comm_open", {"comm_id": "c", "data": {"state": {}}})),
        (False, said("comm_close", {"comm_id": "c", "data": {}})),
        (False, said("comm_msg", {"comm_id": "c", "data": {"method": "custom", "content": {}}})),
        (False, said("comm_msg", {"comm_id": "c", "data": {"method": "update", "state": [1]}})),
        (False, said("comm_msg", {"comm_id": "c", "data": {"method": "update", "state": {}, "buffer_paths": [["x"]]}})),
        (False, said("comm_msg", {"comm_id": "c", "data": "text"})),
        (False, said("comm_msg", {"comm_id": "c"})),
    ],
)
def test_only_what_sets_nothing_but_a_widgets_state_is_an_update(is_update: bool, packed: bytes) -> None:
    seen = look(packed)
    assert (seen.comm, seen.is_update) == ("c", is_update)


def test_updates_become_the_newest_with_all_that_they_set() -> None:
    whole = merged(
        [update("c", {"a": 1, "b": [1]}, number=1), update("c", {"b": [2, 3], "text": "höhe \ud83d"}, number=2)]
    )
    header, parent, content, buffers = read(whole)
    assert (header["number"], parent, buffers) == (2, {"msg_id": "cell"}, 0)
    assert content["data"] == {
        "method": "update",
        "state": {"a": 1, "b": [2, 3], "text": "höhe \ud83d"},
        "buffer_paths": [],
    }
    assert frames.unpack(merged([update("c", {"text": "höhe"})])).parts[6].tobytes().decode().count("höhe") == 1  # type: ignore[union-attr]


def sifted(messages: list[bytes], level: int = OVER) -> tuple[list[object], dict[str, tuple[int, int]]]:
    """What is left, by number (a notice's place is "notice"), and the notices by request."""
    notices, batch = Notices(), Batch()
    for packed in messages:  # One at a time: batches make no difference.
        batch.evict([packed], level, notices)
    assert batch.held_bytes == sum(map(len, batch.messages))
    numbers: list[object] = []
    told = {}
    for packed in list(batch.messages):
        if packed[0] != PLACE:
            numbers.append(read(packed)[0]["number"])
            continue
        numbers.append("notice")
        dropped = event(notices.take_out(packed))
        assert dropped is not None
        told[dropped["parent"].get("msg_id", "")] = (dropped["messages"], dropped["bytes"])
    assert notices.dropped == sum(messages for messages, _ in told.values())
    return numbers, told


def test_what_goes_is_counted_by_request_where_the_first_of_it_was() -> None:
    messages = [
        said("status", number=1),
        said("stream", number=2, parent="one"),
        said("error", number=3),
        said("stream", number=4, parent="two"),
        said("display_data", number=5, parent="one"),
        said("execute_result", number=6),
        said("stream", number=7, parent=""),
    ]
    numbers, told = sifted(messages)
    assert numbers == [1, "notice", 3, "notice", 6, "notice"]
    sizes = [len(packed) for packed in messages]
    assert told == {"one": (2, sizes[1] + sizes[4]), "two": (1, sizes[3]), "": (1, sizes[6])}


def test_far_over_the_bound_everything_goes_that_nobody_waits_for() -> None:
    kinds = ["execute_input", "status", "comm_open", "clear_output", "error", "execute_result"]
    messages = [said(kind, {"comm_id": "c"}, number=number) for number, kind in enumerate(kinds)]
    assert sifted([*messages, said("execute_reply", number=9, channel=SHELL)], FAR_OVER)[0] == ["notice", 1, 4, 9]


def test_updates_of_one_widget_become_one_and_what_is_between_for_it_ends_that() -> None:
    messages = [
        update("a", {"x": 1}, number=1, parent="one"),
        update("b", {"y": 1}, number=2),
        update("a", {"x": 2}, number=3, parent="two"),
        update("a", {"z": 3}, number=4),
        update("a", {"x": 5}, number=5, buffers=[b"b"]),
        update("a", {"x": 6}, number=6),
        update("b", {"y": 7}, number=7),
        said("comm_close", {"comm_id": "a"}, number=8),
        update("a", {"x": 9}, number=9),
        update("a", {"x": 10}, number=10, launch=2),
    ]
    numbers, told = sifted(messages)
    assert numbers == [4, 7, "notice", "notice", 5, 6, "notice", 8, 9, 10]
    assert {parent: count for parent, (count, _) in told.items()} == {"one": 1, "two": 1, "cell": 1}


def test_an_update_that_has_left_takes_in_no_more() -> None:
    notices, batch = Notices(), Batch()
    batch.evict([update("a", {"x": 1}, number=1), said("status", number=2)], OVER, notices)
    assert read(batch.pop())[0]["number"] == 1
    batch.evict([update("a", {"x": 3}, number=3), update("a", {"x": 4}, number=4)], OVER, notices)
    assert [read(packed)[0]["number"] for packed in batch.messages if packed[0] != PLACE] == [2, 4]
    assert repr(batch) == f"<Batch 3 messages, {batch.held_bytes} bytes>"


def test_a_notice_grows_while_it_waits_and_then_another_begins() -> None:
    notices = Notices()
    seen = look(said("stream"))
    place = notices.count(seen)
    assert place
    assert notices.count(seen) == b""
    assert repr(notices) == "<Notices 1 waiting, 2 dropped>"
    dropped = event(notices.take_out(place))
    assert dropped == {
        "event": "dropped",
        "launch": 1,
        "parent": {"msg_id": "cell"},
        "messages": 2,
        "bytes": 2 * seen.size_bytes,
    }
    assert notices.count(seen) not in (b"", place)


def test_a_parent_that_is_no_json_is_nobody() -> None:
    notices = Notices()
    parts = [b"", b"<IDS|MSG>", b"", json.dumps({"msg_type": "stream"}).encode(), b"?", b"{}", b"{}"]
    dropped = event(notices.take_out(notices.count(look(frames.pack(Message(IOPUB, 1, parts))))))
    assert dropped is not None
    assert dropped["parent"] == {}
