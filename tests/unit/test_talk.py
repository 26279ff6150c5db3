"""relay/talk.py: what the kernel works on, as its own status messages tell, and what a late request gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernelbridge.relay import wire
from kernelbridge.relay.talk import Talk

DELIMITER = b"<IDS|MSG>"


@pytest.fixture
def talk() -> Talk:
    return Talk(lambda channel, parts: None, lambda info: None)


def request(kind: str = "execute_request") -> wire.Message:
    header = json.dumps({"msg_id": "m1", "msg_type": kind}).encode()
    return wire.Message(wire.SHELL, 3, [b"client", DELIMITER, b"", header, b"{}", b"{}", b'{"code": "1"}'])


def test_a_request_for_a_kernel_process_that_is_no_more_is_aborted(talk: Talk) -> None:
    answer = talk.refusal(request())
    assert answer is not None
    assert (answer.channel, answer.launch) == (wire.SHELL, 3)
    identity, delimiter, signature, header, parent, metadata, content = answer.parts
    assert (identity, delimiter, signature, metadata) == (b"client", DELIMITER, b"", b"{}")
    assert json.loads(bytes(header))["msg_type"] == "execute_reply"
    assert json.loads(bytes(parent))["msg_id"] == "m1"
    assert json.loads(bytes(content))["status"] == "aborted"


@pytest.mark.parametrize("parts", [[b"no", b"message"], [DELIMITER], [b"x", DELIMITER, b"", b"[]"]])
def test_what_is_no_request_gets_no_answer(talk: Talk, parts: list[bytes]) -> None:
    assert talk.refusal(wire.Message(wire.SHELL, 3, parts)) is None
    assert talk.refusal(request("comm_msg")) is None


def told(talk: Talk, state: str, **parent: Any) -> None:
    talk._note(json.dumps(parent).encode(), json.dumps({"execution_state": state}).encode())


def test_the_kernel_is_busy_until_all_that_it_began_is_idle_and_the_cell_that_runs_is_known(talk: Talk) -> None:
    assert not talk.is_busy
    told(talk, "busy", msg_id="c1", msg_type="kernel_info_request")
    told(talk, "busy", msg_id="m1", msg_type="execute_request")
    assert talk.running == {"msg_id": "m1", "msg_type": "execute_request"}
    told(talk, "idle", msg_id="c1", msg_type="kernel_info_request")
    assert talk.is_busy
    told(talk, "idle", msg_id="m1", msg_type="execute_request")
    assert (talk.is_busy, talk.running) == (False, None)
    told(talk, "busy", msg_id="m2", msg_type="execute_request")
    talk.close()  # Its process has ended.
    assert not talk.is_busy
