"""The pure part of channels/: messages made and checked, what is answered while the kernel is away.

The sockets themselves: test_channel_sockets.py. Where they are: test_endpoints.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from jupyter_client.session import Session

from kernelbridge.channels import hidden_cells, messages
from kernelbridge.channels.messages import MessageInvalid, Request, Say, Signer
from kernelbridge.channels.waiting import DEFAULT_INFO, Waiting, Wish
from kernelbridge.errors import LinkLost
from kernelbridge.kernel_errors import StartCancelled
from kernelbridge.relay.wire import CONTROL, IOPUB, SHELL

KEY = b"a key"
PROBE = 'print("abc123IPyWidgets:" + _VSCODE_ipywidgets.__version__)'
STARTUP = "\ndef __VSCODE_inject_module():\n    pass"


def request(kind: str, content: Any = None, *, channel: int = SHELL, who: bytes = b"me", name: str = "") -> Request:
    """A client's message, as Jupyter's own library signs and packs it."""
    session = Session(key=KEY)
    header = {**session.msg_header(kind), "msg_id": name or kind}
    parts = session.serialize(
        {"header": header, "content": content or {}, "parent_header": {}, "metadata": {}}, ident=who
    )
    return messages.parse(channel, parts, Signer(KEY))


def execute(code: str = "1", **facts: Any) -> Request:
    silent = facts.pop("silent", False)
    return request("execute_request", {"code": code, "silent": silent}, **facts)


def told(says: list[Say]) -> list[str]:
    """What a client hears, in short: kind, the state or error it carries, and to whom."""
    words = []
    for say in says:
        detail = say.content.get("execution_state") or say.content.get("ename") or say.content.get("status") or ""
        words.append(" ".join(filter(None, (say.kind, detail, f"({say.parent.id})" if say.parent else ""))))
    return words


def answered(kind: str, name: str, detail: str = "ok") -> list[str]:
    return [f"status busy ({name})", f"{kind} {detail} ({name})", f"status idle ({name})"]


# -- messages.py


def test_a_message_is_read_as_jupyters_library_wrote_it_and_goes_on_without_its_signature() -> None:
    session = Session(key=KEY)
    parts = session.serialize(session.msg("execute_request", {"code": "é"}), ident=[b"one", b"two"])
    read = messages.parse(SHELL, [*parts, b"buffer"], Signer(KEY))
    assert (read.kind, read.identities, read.content) == ("execute_request", (b"one", b"two"), {"code": "é"})
    assert read.id == read.header["msg_id"]
    assert read.parts == (b"one", b"two", messages.DELIMITER, b"", *parts[4:], b"buffer")


def good() -> list[bytes]:
    session = Session(key=KEY)
    return list(session.serialize(session.msg("x"), ident=b"me"))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "not a Jupyter message"),
        ([b"me", b"no delimiter"], "not a Jupyter message"),
        ([messages.DELIMITER], "not a Jupyter message"),
        ([messages.DELIMITER, b"", b"no json", b"{}", b"{}", b"{}"], "not a Jupyter message"),
        ([messages.DELIMITER, b"", b"[]", b"{}", b"{}", b"{}"], "not a Jupyter message"),
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
    for say in (messages.reply(asked, {"status": "ok"}), messages.status("busy", asked), messages.status("idle", None)):
        parts = messages.signed(messages.build(say, "the kernel's"), Signer(KEY))
        session = Session(key=KEY)
        identities, rest = session.feed_identities([bytes(part) for part in parts])
        read = session.deserialize(rest)
        assert read["header"]["session"] == "the kernel's"
        assert read["msg_type"] == say.kind
        assert read["content"] == say.content
        assert read["parent_header"].get("msg_id") == (say.parent.id if say.parent else None)
        assert identities == ([say.kind.encode()] if say.channel == IOPUB else [b"me"])
    assert messages.build(Say(channel=SHELL, kind="x", content={}, parent=None), "s")[0] == messages.DELIMITER


def test_the_parent_of_a_message_is_found_and_what_has_no_delimiter_is_no_message() -> None:
    parent = json.dumps({"msg_id": "m1"}).encode()
    assert messages.parent_id([b"topic", messages.DELIMITER, b"", b"{}", parent, b"{}", b"{}"]) == "m1"
    assert messages.parent_id([messages.DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"]) == ""
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
    [_, say, _] = messages.error_answer(asked, "Oh", "no", shown=False)
    assert say.channel == CONTROL
    assert say.content == {
        "type": "response", "request_seq": 7, "success": False, "command": "attach", "message": "no", "seq": 0,
    }  # fmt: skip


def test_an_aborted_cell_is_told_so() -> None:
    assert told(messages.aborted_answer(execute(name="e"))) == answered("execute_reply", "e", "aborted")


# -- hidden_cells.py


@pytest.mark.parametrize(
    ("asked", "widgets", "printed"),
    [
        (execute(PROBE), "8.1.5", ["abc123IPyWidgets:8.1.5\n"]),
        (execute(PROBE), hidden_cells.NOT_INSTALLED, []),
        (execute(STARTUP), "8.1.5", []),
    ],
)
def test_hidden_cells_are_answered_as_the_kernel_would(asked: Request, widgets: str, printed: list[str]) -> None:
    says = hidden_cells.early_answer(asked, widgets)
    assert [say.content["text"] for say in says if say.kind == "stream"] == printed
    assert [say.content["status"] for say in says if say.kind == "execute_reply"] == ["ok"]


@pytest.mark.parametrize(
    ("asked", "widgets"),
    [(execute(PROBE), None), (execute("1"), "8.1.5"), (request("complete_request"), "8.1.5")],
)
def test_no_other_cell_and_no_unknown_image_is_answered_early(asked: Request, widgets: str | None) -> None:
    assert hidden_cells.early_answer(asked, widgets) == []


@pytest.mark.parametrize(
    ("printed", "version"),
    [(["noise\nP:8.1.5\n"], "8.1.5"), (["P:", "8.1.5"], "8.1.5"), (["P:"], ""), ([], ""), (["other"], "")],
)
def test_the_version_is_read_from_what_the_probe_printed(printed: list[str], version: str) -> None:
    assert hidden_cells.printed_version("P:", printed) == version


# -- waiting.py


def test_urgent_requests_are_answered_at_once_and_all_else_waits_in_order() -> None:
    wait = Waiting(DEFAULT_INFO)
    queued = [execute(name="e1"), request("complete_request"), request("comm_open"), request("debug_request")]
    for one in queued:
        assert wait.receive(one) == ([], None)
    for channel in (SHELL, CONTROL):
        says, wish = wait.receive(request("kernel_info_request", channel=channel))
        assert told(says) == answered("kernel_info_reply", "kernel_info_request")
        assert (says[1].channel, wish) == (channel, None)
    assert wait.queue == queued
    assert repr(wait) == "<Waiting 4 queued, ''>"
    assert wait.release() == ([], queued, "")
    assert wait.queue == []


def test_no_client_is_promised_subshells_by_a_kernel_that_is_not_there() -> None:
    info = {**DEFAULT_INFO, "supported_features": ["debugger", "kernel subshells"]}
    [_, reply, _], _ = Waiting(info).receive(request("kernel_info_request"))
    assert reply.content["supported_features"] == ["debugger"]


def test_who_asks_again_after_a_guess_waits_for_the_truth_and_who_asks_a_third_time_does_not() -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    first, second, third, fourth = (request("kernel_info_request", name=f"i{n}") for n in range(1, 5))
    other = request("kernel_info_request", name="o1", who=b"other")
    control = request("kernel_info_request", name="c1", channel=CONTROL)
    for one in (first, other, control):
        assert told(wait.receive(one)[0]) == answered("kernel_info_reply", one.id)
    assert wait.receive(second) == ([], None)
    assert told(wait.receive(third)[0]) == answered("kernel_info_reply", "i2") + answered("kernel_info_reply", "i3")
    assert wait.receive(fourth) == ([], None)
    assert wait.release()[1] == [fourth]


def test_a_held_question_is_answered_as_soon_as_the_image_is_known() -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    wait.receive(request("kernel_info_request"))
    wait.receive(request("kernel_info_request", name="again"))
    wait.receive(execute(PROBE, name="probe"))
    says = wait.know({**DEFAULT_INFO, "banner": "true"}, "8.1.5")
    assert told(says)[:3] == answered("kernel_info_reply", "again")
    assert says[1].content["banner"] == "true"
    assert told(says)[3:] == [
        "status busy (probe)",
        "stream (probe)",
        "execute_reply ok (probe)",
        "status idle (probe)",
    ]
    assert wait.answered == {"probe"}
    assert [one.id for one in wait.queue] == ["probe"]
    assert told(wait.receive(request("kernel_info_request", name="more"))[0]) == answered("kernel_info_reply", "more")


def test_a_hidden_cell_answered_early_is_neither_aborted_nor_failed_later() -> None:
    for end in ("interrupt_request", "shutdown_request"):
        wait = Waiting(DEFAULT_INFO, widgets="8.1.5")
        wait.receive(execute(PROBE, name="probe"))
        says, _ = wait.receive(request(end))
        assert not [one for one in told(says) if "(probe)" in one]
    wait = Waiting(DEFAULT_INFO, widgets="8.1.5")
    wait.receive(execute(PROBE, name="probe"))
    assert wait.fail(StartCancelled(environment="e")) == []


def test_an_interrupt_ends_the_cells_that_wait_and_nothing_else() -> None:
    wait = Waiting(DEFAULT_INFO)
    for one in (execute(name="e1"), request("complete_request"), execute(name="e2")):
        wait.receive(one)
    says, wish = wait.receive(request("interrupt_request", channel=CONTROL))
    ended = [one for one in told(says) if one.startswith("execute_reply")]
    assert ended == ["execute_reply KeyboardInterrupt (e1)", "execute_reply KeyboardInterrupt (e2)"]
    assert told(says)[-3:] == answered("interrupt_reply", "interrupt_request")
    assert ([one.kind for one in wait.queue], wish) == (["complete_request"], None)


@pytest.mark.parametrize(("restart", "wish"), [(True, Wish.RESTART), (False, Wish.CANCEL)])
def test_a_shutdown_clears_the_queue_and_says_what_is_wished(restart: bool, wish: Wish) -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    for one in (execute(name="e1"), request("comm_msg"), *(request("kernel_info_request", name=f"i{n}") for n in "12")):
        wait.receive(one)
    says, wished = wait.receive(request("shutdown_request", {"restart": restart}, channel=CONTROL))
    assert told(says) == [
        *answered("kernel_info_reply", "i2"),
        *answered("execute_reply", "e1", "aborted"),
        *answered("shutdown_reply", "shutdown_request"),
    ]
    assert (says[-2].content["restart"], wished, wait.queue) == (restart, wish, [])


def test_progress_is_shown_in_the_first_cell_that_a_user_sees_after_a_while_and_is_cleared() -> None:
    wait = Waiting(DEFAULT_INFO)
    for one in (
        request("complete_request"),
        execute(PROBE, name="p"),
        execute("x", silent=True, name="silent"),
        execute(channel=CONTROL, name="c"),
    ):
        wait.receive(one)
    wait.progress("pulling")
    assert wait.show(1.9) == []
    assert wait.show(2.0) == []  # Nobody sees any of these.
    wait.receive(execute(name="e1"))
    wait.receive(execute(name="e2"))
    assert told(wait.show(2.1)) == ["status busy (e1)", "stream (e1)"]
    assert wait.show(2.2) == []
    wait.progress("starting")
    says = wait.show(2.3)
    assert told(says) == ["clear_output (e1)", "stream (e1)"]
    assert (says[0].content["wait"], says[1].content["text"]) == (True, "starting (2 s)\n")
    says, _, had_busy = wait.release()
    assert told(says) == ["clear_output (e1)"]
    assert (says[0].content["wait"], had_busy) == (False, "e1")


def test_a_new_cell_takes_the_progress_over_when_the_first_was_interrupted() -> None:
    wait = Waiting(DEFAULT_INFO)
    wait.receive(execute(name="e1"))
    wait.progress("pulling")
    wait.show(3)
    assert told(wait.receive(request("interrupt_request"))[0])[0] == "clear_output (e1)"
    wait.receive(execute(name="e2"))
    assert told(wait.show(4)) == ["status busy (e2)", "stream (e2)"]


def test_a_failure_is_shown_once_and_the_rest_is_aborted_or_refused() -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    silent, first, second = execute(silent=True, name="s"), execute(name="e1"), execute(name="e2")
    infos = [request("kernel_info_request", name=f"i{n}") for n in "12"]
    for one in (silent, request("complete_request"), first, *infos, second, request("comm_msg")):
        wait.receive(one)
    says = wait.fail(LinkLost(host="lab"))
    assert told(says) == [
        *answered("kernel_info_reply", "i2"),
        *answered("execute_reply", "s", "LinkLost"),
        *answered("complete_reply", "complete_request", "LinkLost"),
        *["status busy (e1)", "error LinkLost (e1)", "execute_reply LinkLost (e1)", "status idle (e1)"],
        *answered("execute_reply", "e2", "aborted"),
    ]
    assert "lab: the link is lost." in next(say for say in says if say.kind == "error").content["evalue"]
    assert wait.queue == []


def test_the_guess_of_an_unknown_image_is_complete() -> None:
    assert set(DEFAULT_INFO["language_info"]) >= {"name", "version", "mimetype", "file_extension", "pygments_lexer"}
