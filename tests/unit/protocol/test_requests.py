"""protocol/requests.py: requests are read, interrupts named, and answers written in the place of a kernel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelbridge.protocol import requests
from kernelbridge.protocol.frames import CONTROL, DELIMITER, IOPUB, Buffer


def parts(kind: str = "interrupt_request", metadata: bytes = b"{}", content: bytes = b"{}") -> list[Buffer]:
    header = json.dumps({"msg_type": kind, "msg_id": "m1"}).encode()
    return [b"one", b"two", DELIMITER, b"", header, b"{}", metadata, memoryview(content), b"buffer"]


def test_a_request_is_read_as_far_as_a_relay_needs_it() -> None:
    asked = requests.read(parts("execute_request", content=b'{"code": "1"}'))
    assert asked is not None
    assert (asked.kind, asked.cell, asked.identities) == ("execute_request", None, [b"one", b"two"])
    assert (json.loads(asked.header)["msg_id"], asked.content) == ("m1", b'{"code": "1"}')


@pytest.mark.parametrize(
    "said",
    [
        [],
        [b"x"],
        [DELIMITER],
        [b"x", DELIMITER, b"", b"no json", b"{}", b"{}", b"{}"],
        [b"x", DELIMITER, b"", b"[]", b"{}", b"{}", b"{}"],
        [b"x", DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"],
        [b"x", DELIMITER, b"", b'{"msg_type": "execute_request"}', b"{}"],
        parts("comm_msg"),
        parts("input_reply"),
        parts(metadata=b"no json"),
    ],
)
def test_what_is_no_request_is_none(said: list[Buffer]) -> None:
    assert requests.read(said) is None


@pytest.mark.parametrize("metadata", [b"{}", b'{"mine": 1}', b"[]", b"no json"])
def test_an_interrupt_names_its_cell_and_nothing_else_of_it_changes(metadata: bytes) -> None:
    before = parts(metadata=metadata)
    named = requests.naming(before, "c1")
    asked = requests.read(named)
    assert asked is not None
    assert asked.cell == "c1"
    assert [one for at, one in enumerate(named) if at != 6] == [one for at, one in enumerate(before) if at != 6]
    assert json.loads(bytes(named[6])).get("mine") == (1 if b"mine" in metadata else None)


@pytest.mark.parametrize("metadata", [b"{}", b"[]", b'{"kernelbridge_cell": null}'])
def test_an_interrupt_of_an_older_version_names_none(metadata: bytes) -> None:
    asked = requests.read(parts(metadata=metadata))
    assert asked is not None
    assert asked.cell is None


def test_an_answer_is_a_reply_between_busy_and_idle_in_the_kernels_own_session() -> None:
    asked = requests.read(parts())
    assert asked is not None
    said = requests.Voice("s1").answer(CONTROL, asked, {"status": "ok"})
    assert [channel for channel, _ in said] == [IOPUB, CONTROL, IOPUB]
    read = [(own[: own.index(DELIMITER)], *map(json.loads, map(bytes, own[-4:]))) for _, own in said]
    assert [(to, header["msg_type"], content) for to, header, _, _, content in read] == [
        ([b"status"], "status", {"execution_state": "busy"}),
        ([b"one", b"two"], "interrupt_reply", {"status": "ok"}),
        ([b"status"], "status", {"execution_state": "idle"}),
    ]
    assert {(header["session"], parent["msg_id"]) for _, header, parent, _, _ in read} == {("s1", "m1")}
    assert len({header["msg_id"] for _, header, _, _, _ in read}) == 3


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("create_subshell_request", b"{}", {"status": "error", "ename": "NotImplementedError"}),
        (
            "debug_request",
            b'{"seq": 4, "command": "debugInfo"}',
            {"success": False, "request_seq": 4, "command": "debugInfo"},
        ),
        ("debug_request", b"[]", {"success": False, "request_seq": 0, "type": "response"}),
        ("debug_request", b"no json", {"success": False, "message": "This kernel does not answer debug_request."}),
    ],
)
def test_what_a_kernel_has_no_handler_for_is_refused_in_the_words_of_its_protocol(
    kind: str, content: bytes, expected: dict[str, Any]
) -> None:
    asked = requests.read(parts(kind, content=content))
    assert asked is not None
    said = requests.unknown(asked)
    assert {key: said[key] for key in expected} == expected
