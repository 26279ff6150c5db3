"""protocol/handshake.py: what goes over the stream is these very objects; what comes may know more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import (
    Busy,
    DroppedEvent,
    ExitedEvent,
    FailedEvent,
    Goodbye,
    GpuLostEvent,
    GpuStatus,
    Hello,
    InputEvent,
    LeftOutputEvent,
    MismatchedGpus,
    NoticeEvent,
    ReadyEvent,
    RelayEvent,
    Status,
    TimeLeft,
    Welcome,
    event_from,
)
from kernelbridge.protocol.json_object import parse_object

EXITED: dict[str, Any] = {
    "event": "exited",
    "launch": 3,
    "code": -9,
    "out_of_memory": True,
    "wanted": False,
    "last_words": "oh",
    "why": "",
    "full": (),
    "shm_bytes": 0,
}
EVENTS: list[tuple[RelayEvent, dict[str, Any]]] = [
    (
        ReadyEvent(3, {}, "ended with exit code 1"),
        {"event": "ready", "launch": 3, "info": {}, "entrypoint": "ended with exit code 1"},
    ),
    (ReadyEvent(3, {"banner": "x"}), {"event": "ready", "launch": 3, "info": {"banner": "x"}}),
    (FailedEvent(3, lacks="ipykernel"), {"event": "failed", "launch": 3, "lacks": "ipykernel"}),
    (
        FailedEvent(3, reason="exit code 1", setup="make"),
        {"event": "failed", "launch": 3, "reason": "exit code 1", "setup": "make"},
    ),
    (FailedEvent(3, reason="no folder"), {"event": "failed", "launch": 3, "reason": "no folder"}),
    (
        FailedEvent(3, gpus=MismatchedGpus(["GPU-0"], 2)),
        {"event": "failed", "launch": 3, "gpus": {"wanted": ["GPU-0"], "seen": 2}},
    ),
    (
        FailedEvent(3, gpus=MismatchedGpus(["GPU-0"], [])),
        {"event": "failed", "launch": 3, "gpus": {"wanted": ["GPU-0"], "seen": []}},
    ),
    (ExitedEvent(3, code=-9, out_of_memory=True, wanted=False, last_words="oh"), EXITED),
    (
        ExitedEvent(3, code=0, out_of_memory=False, wanted=True, last_words="", why="lost_grace"),
        {**EXITED, "code": 0, "out_of_memory": False, "wanted": True, "last_words": "", "why": "lost_grace"},
    ),
    (
        ExitedEvent(3, code=-7, out_of_memory=False, wanted=False, last_words="", full=("/dev/shm",), shm_bytes=64),
        {**EXITED, "code": -7, "out_of_memory": False, "last_words": "", "full": ("/dev/shm",), "shm_bytes": 64},
    ),
    (GpuLostEvent(3, {"msg_id": "m"}), {"event": "gpu_lost", "launch": 3, "parent": {"msg_id": "m"}}),
    (GpuLostEvent(3, None), {"event": "gpu_lost", "launch": 3, "parent": None}),
    (
        NoticeEvent(1, "refused", "/data", "Permission denied"),
        {"event": "notice", "launch": 1, "kind": "refused", "path": "/data", "reason": "Permission denied"},
    ),
    (InputEvent(3, 1 << 40), {"event": "input", "launch": 3, "taken_bytes": 1 << 40}),
    (LeftOutputEvent(3, {"m1": [3, "x = 1"]}), {"event": "left_output", "launch": 3, "cells": {"m1": [3, "x = 1"]}}),
    (
        DroppedEvent(3, {}, 2, 70),
        {"event": "dropped", "launch": 3, "parent": {}, "messages": 2, "bytes": 70},
    ),
]
STATUS: dict[str, Any] = {
    "version": 2,
    "release": "0.1.0",
    "way": "socket",
    "launch": 3,
    "session": "s",
    "ready": True,
    "info": {"banner": "x"},
    "running": {"msg_id": "m"},
    "lacks": "",
    "outcome": None,
    "state": "busy",
    "quiet_seconds": 1.5,
    "alone_seconds": None,
    "undelivered_bytes": 7,
    "deadline": {"seconds": 5.0, "why": "idle_timeout"},
    "persist": False,
    "claim": True,
    "gpus": {"ids": ["GPU-0"], "seen": ["GPU-0"], "lost": False},
    "owner": "m:1@2:x",
    "who": "ada@laptop",
    "held_seconds": 9.0,
    "used": False,
}


@pytest.mark.parametrize(("event", "said"), EVENTS, ids=[type(event).__name__ for event, _ in EVENTS])
def test_an_event_is_said_in_these_words_and_understood(event: RelayEvent, said: dict[str, Any]) -> None:
    assert event.to_dict() == said
    assert event_from(json.loads(json.dumps(said))) == event
    assert event_from({**said, "of a newer version": 1}) == event


def test_an_event_of_a_newer_version_is_none() -> None:
    assert event_from({"event": "sleepy", "launch": 3}) is None


@pytest.mark.parametrize("said", [said for _, said in EVENTS], ids=[said["event"] for _, said in EVENTS])
def test_an_event_without_its_launch_is_an_error(said: dict[str, Any]) -> None:
    with pytest.raises(frames.WireError, match="launch"):
        event_from({key: value for key, value in said.items() if key != "launch"})


def test_a_status_is_said_in_these_words_and_understood() -> None:
    status = Status.from_dict({**STATUS, "of a newer version": 1})
    assert (status.deadline, status.gpus) == (TimeLeft(5.0, "idle_timeout"), GpuStatus(["GPU-0"], ["GPU-0"], False))
    assert status.to_dict() == STATUS
    ended = Status.from_dict({**STATUS, "outcome": EXITED, "deadline": None})
    assert ended.outcome == ExitedEvent(3, code=-9, out_of_memory=True, wanted=False, last_words="oh")
    assert ended.to_dict() == {**STATUS, "outcome": EXITED, "deadline": None}


def test_what_this_side_does_not_need_may_be_missing_in_a_status() -> None:
    optional = {"version", "release", "session", "quiet_seconds", "gpus", "used", "way"}
    status = Status.from_dict({key: value for key, value in STATUS.items() if key not in optional})
    assert status.gpus.ids == ()
    assert status.used, "one that does not know may have been"
    none = {"info", "running", "outcome", "deadline", "owner", "alone_seconds"}
    for key in STATUS.keys() - optional - none:
        with pytest.raises(frames.WireError, match=key):
            Status.from_dict({name: value for name, value in STATUS.items() if name != key})


def test_a_welcome_is_a_status_and_where_both_numberings_are() -> None:
    said = {**STATUS, "received": [1, 2], "epoch": "e"}
    welcome = Welcome.from_dict(said)
    assert (welcome.status.launch, welcome.received, welcome.epoch) == (3, [1, 2], "e")
    [frame] = frames.Decoder().feed(welcome.frame())
    assert (frame.kind, json.loads(bytes(frame.payload))) == (frames.WELCOME, said)


def test_a_hello_says_only_what_it_asks_for() -> None:
    first = Hello("k", owner="o", who="w", stream="s", received=[0, 0], take=False, claim="")
    said = {"kernel": "k", "owner": "o", "who": "w", "stream": "s", "received": [0, 0], "version": frames.VERSION}
    assert first.to_dict() == {**said, "take": False, "claim": ""}
    assert Hello.from_dict(first.to_dict()) == first
    assert Hello.from_dict(said).take is None
    assert not Hello.from_dict({**said, "ask": "attach"}).only_asks
    assert Hello.from_dict({"kernel": "k", "version": frames.VERSION, "ask": "logs"}).only_asks


@pytest.mark.parametrize("key", ["owner", "stream", "received"])
def test_who_wants_the_kernel_must_say_who_that_is_unless_it_speaks_another_version(key: str) -> None:
    said = Hello("k", owner="o", stream="s", received=[0, 0]).to_dict()
    del said[key]
    with pytest.raises(frames.WireError, match=key):
        Hello.from_dict(said)
    assert Hello.from_dict({**said, "version": 1}).version == 1
    del said["version"]
    assert Hello.from_dict(said).version is None


def test_a_refusal_says_who_has_it_where_that_is_why() -> None:
    held = {"reason": "held", "who": "ada@laptop", "owner": "o", "held_seconds": 3.0}
    assert Busy.from_dict(held).to_dict() == held
    assert Busy("taken", who="").to_dict() == {"reason": "taken", "who": ""}
    assert Busy("other kernel or version").to_dict() == {"reason": "other kernel or version"}
    assert Busy.from_dict({}) == Busy("")


def test_a_goodbye_without_words_ends_nothing() -> None:
    assert Goodbye.from_dict({}) == Goodbye(end=False, claim="")


def test_a_hello_says_who_asks_for_what() -> None:
    said = Hello(kernel="k", owner="o", stream="s", received=[1, 2], ask="logs", take=True).frame()
    [frame] = frames.Decoder().feed(said)
    assert frame.kind == frames.HELLO
    assert json.loads(bytes(frame.payload)) == {
        "kernel": "k",
        "owner": "o",
        "who": "",
        "stream": "s",
        "received": [1, 2],
        "ask": "logs",
        "take": True,
        "version": frames.VERSION,
    }


def test_a_goodbye_says_whether_the_kernel_is_to_end_and_who_may_come_again() -> None:
    [frame] = frames.Decoder().feed(Goodbye(end=True, claim="c").frame())
    assert (frame.kind, json.loads(bytes(frame.payload))) == (
        frames.GOODBYE,
        {"end": True, "claim": "c", "lacks": False},
    )


def test_an_end_that_an_older_relay_tells_has_no_folders() -> None:
    old = {key: value for key, value in EXITED.items() if key not in ("full", "shm_bytes")}
    assert event_from(old) == ExitedEvent(3, code=-9, out_of_memory=True, wanted=False, last_words="oh")


# -- what no relay of ours says

FOREIGN: list[Any] = [None, True, 7, -1, 1.5, 1e300, float("inf"), "x", "1", [], [1], [[1]], {}, {"x": {}}, 10**30]
WHOLE: list[tuple[Any, dict[str, Any]]] = [
    (Status.from_dict, STATUS),
    (Welcome.from_dict, {**STATUS, "received": [1, 2], "epoch": "e"}),
    (Busy.from_dict, {"reason": "held", "who": "ada@laptop", "owner": "o", "held_seconds": 3.0}),
    (Goodbye.from_dict, {"end": True, "claim": "c"}),
    (Hello.from_dict, Hello("k", owner="o", stream="s", received=[0, 0], take=True, claim="", ask="attach").to_dict()),
    *((event_from, said) for _, said in EVENTS),
]


@pytest.mark.parametrize(("read", "said"), WHOLE, ids=[f"{read.__qualname__} {len(said)}" for read, said in WHOLE])
def test_a_value_of_any_kind_in_any_place_is_understood_within_bounds_or_a_wire_error(
    read: Any, said: dict[str, Any]
) -> None:
    for key, inner in said.items():
        for wrong in FOREIGN:
            others = [{**said, key: wrong}]
            if isinstance(inner, dict):
                others += [{**said, key: {**inner, name: wrong}} for name in inner]
            for other in others:
                try:
                    read(other)
                except frames.WireError:
                    continue
    for wrong in FOREIGN:
        if not isinstance(wrong, dict):
            with pytest.raises(frames.WireError):
                read(wrong)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("launch", "1"),
        ("launch", -1),
        ("launch", True),
        ("ready", 1),
        ("undelivered_bytes", "x"),
        ("undelivered_bytes", 10**30),
        ("deadline", []),
        ("deadline", {"seconds": "1", "why": "x"}),
        ("deadline", {"seconds": None, "why": "x"}),
        ("gpus", {"ids": [1]}),
        ("gpus", {"ids": "GPU-0"}),
        ("gpus", {"ids": ["x"] * 2000}),
        ("outcome", [1]),
        ("outcome", {**EXITED, "code": "3"}),
        ("state", 5),
        ("running", "x"),
        ("running", {"x": "y" * 100_000}),
        ("info", [1]),
        ("held_seconds", "9"),
        ("alone_seconds", []),
    ],
)
def test_a_status_of_wrong_types_is_no_status(key: str, value: Any) -> None:
    with pytest.raises(frames.WireError):
        Status.from_dict({**STATUS, key: value})


def test_times_are_brought_within_a_century_and_texts_are_cut_and_plain() -> None:
    status = Status.from_dict(
        {
            **STATUS,
            "deadline": {"seconds": 1e300, "why": "x"},
            "held_seconds": -1e300,
            "who": "a\x1b[2J\nb" + "c" * 9999,
        }
    )
    assert status.deadline is not None
    assert (status.deadline.seconds, status.held_seconds) == (100 * 365 * 86400.0, -100 * 365 * 86400.0)
    assert status.who.startswith("a?[2J?bccc")
    assert len(status.who) == 4096
    event = ExitedEvent.from_dict({**EXITED, "last_words": "\x1b]52;c;aGk=\x07"})
    assert event.last_words == "?]52;c;aGk=?"


@pytest.mark.parametrize(
    ("info", "kept"),
    [
        ({"banner": "x", "supported_features": None}, {"banner": "x"}),
        ({"supported_features": [1]}, {}),
        ({"supported_features": "debugger"}, {}),
        ({"language_info": "python", "protocol_version": 5}, {}),
        ({"help_links": ["x"], "debugger": True}, {"debugger": True}),
        ({"banner": "x" * 30_000_000}, {"banner": "x" * 4096}),
        ({"of an extension": [1, 2]}, {"of an extension": [1, 2]}),
        ({"status": "ok", "of an extension": "x" * 100_000, "language_info": {"x": "y" * 100_000}}, {"status": "ok"}),
    ],
)
def test_a_kernel_info_has_the_types_that_clients_expect_and_is_short(info: dict[str, Any], kept: Any) -> None:
    assert ReadyEvent.from_dict({"event": "ready", "launch": 3, "info": info}).info == kept
    assert Status.from_dict({**STATUS, "info": info}).info == kept


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"x", b"[]", b"null", b'"x"', b"\xff", b'{"a": NaN}', b'{"a": Infinity}'),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 5000 + b"}"),
    ],
)
def test_what_is_no_json_object_is_a_wire_error(payload: bytes) -> None:
    with pytest.raises(frames.WireError):
        parse_object(payload)
