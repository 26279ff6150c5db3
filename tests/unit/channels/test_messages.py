"""channels/messages.py: messages made, signed and checked as Jupyter's own library does it."""

from __future__ import annotations

import json

import pytest
from jupyter_client.session import Session

from kernelbridge.channels import messages
from kernelbridge.channels.messages import MessageInvalid, Outgoing, Request, Signer
from kernelbridge.protocol.frames import CONTROL, DELIMITER, IOPUB, SHELL
from tests.made_requests import KEY, answered, execute, request, told


def test_a_message_is_read_as_jupyters_library_wrote_it_and_goes_on_without_its_signature() -> None:
    session = Session(key=KEY)
    parts = session.serialize(session.msg("execute_request", {"code": "é"}), ident=[b"one", b"two"])
    read = messages.parse(SHELL, [*parts, b"buffer"], Signer(KEY))
    assert (read.kind, read.identities, read.content) == ("execute_request", (b"one", b"two"), {"code": "é"})
    assert read.id == read.header["msg_id"]
    assert read.parts == (b"one", b"two", DELIMITER, b"", *parts[4:], b"buffer")


HEADER = b'{"msg_id": "m", "msg_type": "stream"}'


def good() -> list[bytes]:
    session = Session(key=KEY)
    return list(session.serialize(session.msg("x"), ident=b"me"))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "not a Jupyter message"),
        ([b"me", b"no delimiter"], "not a Jupyter message"),
        ([DELIMITER], "not a Jupyter message"),
        ([DELIMITER, b"", b"no json", b"{}", b"{}", b"{}"], "not a Jupyter message"),
        ([DELIMITER, b"", b"[]", b"{}", b"{}", b"{}"], "not a Jupyter message"),
        (good()[:-1], "not a Jupyter message"),
        ([*good()[:2], b"0" * 64, *good()[3:]], "wrong signature"),
        ([*good()[:2], b"", *good()[3:]], "wrong signature"),
        ([*good()[:-1], b'{"changed": 1}'], "wrong signature"),
    ],
)
def test_what_is_no_message_or_not_signed_with_our_key_is_refused(parts: list[bytes], why: str) -> None:
    with pytest.raises(MessageInvalid, match=why):
        messages.parse(SHELL, parts, Signer(KEY))


def test_without_a_key_nothing_is_signed() -> None:
    assert Signer(b"").sign([b"x"]) == b""
    unsigned = Session(key=b"")
    assert messages.parse(SHELL, unsigned.serialize(unsigned.msg("x")), Signer(b"")).kind == "x"


def test_what_we_say_and_what_we_pass_on_is_signed_as_jupyters_library_checks_it() -> None:
    asked = request("kernel_info_request")
    for answer in (
        messages.reply(asked, {"status": "ok"}),
        messages.status("busy", asked),
        messages.status("idle", None),
    ):
        parts = messages.signed(messages.build(answer, "the kernel's"), Signer(KEY))
        session = Session(key=KEY)
        identities, rest = session.feed_identities([bytes(part) for part in parts])
        read = session.deserialize(rest)
        assert read["header"]["session"] == "the kernel's"
        assert read["msg_type"] == answer.kind
        assert read["content"] == answer.content
        assert read["parent_header"].get("msg_id") == (answer.parent.id if answer.parent else None)
        assert identities == ([answer.kind.encode()] if answer.channel == IOPUB else [b"me"])
    assert messages.build(Outgoing(channel=SHELL, kind="x", content={}, parent=None), "s")[0] == DELIMITER


def test_the_parent_of_a_message_is_found_and_what_has_no_delimiter_is_no_message() -> None:
    parent = json.dumps({"msg_id": "m1"}).encode()
    assert messages.parent_id([b"topic", DELIMITER, b"", b"{}", parent, b"{}", b"{}"]) == "m1"
    assert messages.parent_id([DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"]) == ""
    with pytest.raises(MessageInvalid, match="no delimiter"):
        messages.parent_id([b"x"])


@pytest.mark.parametrize(
    ("asked", "shown", "heard"),
    [
        (execute(name="e"), True, ["status busy (e)", "error Oh (e)", "execute_reply Oh (e)", "status idle (e)"]),
        (execute(name="e"), False, answered("execute_reply", "e", "Oh")),
        (execute(name="e", silent=True), True, answered("execute_reply", "e", "Oh")),
        (request("complete_request"), True, answered("complete_reply", "complete_request", "Oh")),
        (request("comm_msg"), True, []),
        (request("input_reply"), True, []),
    ],
)
def test_each_kind_of_request_gets_the_error_that_its_client_expects(
    asked: Request, shown: bool, heard: list[str]
) -> None:
    assert told(messages.error_answer(asked, "Oh", "no", shown=shown)) == heard


def test_a_debug_request_is_refused_in_the_debuggers_own_words() -> None:
    asked = request("debug_request", {"seq": 7, "command": "attach"}, channel=CONTROL)
    [_, answer, _] = messages.error_answer(asked, "Oh", "no", shown=False)
    assert answer.channel == CONTROL
    assert answer.content == {
        "type": "response", "request_seq": 7, "success": False, "command": "attach", "message": "no", "seq": 0,
    }  # fmt: skip


def test_an_aborted_cell_is_told_so() -> None:
    assert told(messages.aborted_answer(execute(name="e"))) == answered("execute_reply", "e", "aborted")


def test_a_signed_message_is_taken_once() -> None:
    signer, parts = Signer(KEY), good()
    messages.parse(SHELL, parts, signer)
    for channel in (SHELL, CONTROL):
        with pytest.raises(MessageInvalid, match="used already"):
            messages.parse(channel, [b"another id", *parts[1:]], signer)
    messages.parse(SHELL, good(), signer)


def test_signatures_are_remembered_up_to_a_bound() -> None:
    signer = Signer(KEY)
    for number in range(70_000):
        signer.check(signer.sign([b"%d" % number]), [b"%d" % number])
    assert len(signer._taken) == 1 << 16
    with pytest.raises(MessageInvalid, match="used already"):
        signer.check(signer.sign([b"69999"]), [b"69999"])


@pytest.mark.parametrize("parent", [b"nojson", b"[" * 100_000, b""])
def test_a_message_without_a_parent_header_is_none(parent: bytes) -> None:
    with pytest.raises(MessageInvalid):
        messages.parent_id([DELIMITER, b"", b"{}", parent, b"{}", b"{}"])
    assert messages.parent_id([DELIMITER, b"", b"{}", b"[1]"]) == ""


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"t"],
        [b"t", DELIMITER],
        [b"t", DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"],
        [b"t", DELIMITER, b"", b"nojson", b"{}", b"{}", b"{}"],
        [b"t", DELIMITER, b"", HEADER, b"[]", b"{}", b"{}"],
        [b"t", DELIMITER, b"", HEADER, b"{}", b"7", b"{}"],
        [b"t", DELIMITER, b"", HEADER, b"{}", b"{}", b"[" * 9000],
        [b"t", DELIMITER, b"", HEADER, b"{}", b"{}", b"\xff"],
        [b"t", DELIMITER, b"", HEADER, b"{}", b"{}"],
    ],
)
def test_what_would_end_a_client_is_no_message(parts: list[bytes]) -> None:
    with pytest.raises(MessageInvalid):
        messages.check(parts)


def test_messages_of_kernels_pass_however_long_they_are() -> None:
    messages.check(good())
    for size in (1, 1 << 20):
        messages.check([b"t", DELIMITER, b"", HEADER, b"{}", b"{}", b'{"text": "%b"}' % (b"x" * size), b"buffer"])
