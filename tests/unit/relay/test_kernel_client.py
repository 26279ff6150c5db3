"""relay/kernel_client.py: what the kernel works on, what a late request gets, and what is done in a kernel's place."""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.protocol import frames, requests
from kernelbridge.relay import kernel_client
from kernelbridge.relay.kernel_client import (
    BEGIN_SECONDS,
    INTERRUPTED_REPLY_SECONDS,
    REPLY_SECONDS,
    UNTOLD_BEGIN_SECONDS,
    KernelClient,
)


@pytest.fixture
def talk() -> KernelClient:
    return KernelClient(lambda channel, parts: None, lambda info: None, lambda: None, lambda *bad: None)


def request(kind: str = "execute_request") -> frames.Message:
    header = json.dumps({"msg_id": "m1", "msg_type": kind}).encode()
    return frames.Message(frames.SHELL, 3, [b"client", frames.DELIMITER, b"", header, b"{}", b"{}", b'{"code": "1"}'])


def test_a_request_for_a_kernel_process_that_is_no_more_is_aborted_between_busy_and_idle(talk: KernelClient) -> None:
    busy, answer, idle = talk.refusal(request())
    assert [(one.channel, one.launch) for one in (busy, answer, idle)] == [
        (frames.IOPUB, 3),
        (frames.SHELL, 3),
        (frames.IOPUB, 3),
    ]
    assert [json.loads(bytes(one.parts[-1]))["execution_state"] for one in (busy, idle)] == ["busy", "idle"]
    identity, delimiter, signature, header, parent, metadata, content = answer.parts
    assert (identity, delimiter, signature, metadata) == (b"client", frames.DELIMITER, b"", b"{}")
    assert json.loads(bytes(header))["msg_type"] == "execute_reply"
    assert json.loads(bytes(parent))["msg_id"] == "m1"
    assert json.loads(bytes(content))["status"] == "aborted"


@pytest.mark.parametrize("parts", [[b"no", b"message"], [frames.DELIMITER], [b"x", frames.DELIMITER, b"", b"[]"]])
def test_what_is_no_request_gets_no_answer(talk: KernelClient, parts: list[bytes]) -> None:
    assert talk.refusal(frames.Message(frames.SHELL, 3, parts)) == []
    assert talk.refusal(request("comm_msg")) == []


def told(talk: KernelClient, state: str, **parent: Any) -> None:
    talk._note(json.dumps(parent).encode(), json.dumps({"execution_state": state}).encode())


def test_the_kernel_is_busy_until_all_that_it_began_is_idle_and_the_cell_that_runs_is_known(talk: KernelClient) -> None:
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


# -- what is done in the kernel's place


class Desk:
    """A client whose kernel is ready: what it was sent, what was said in its place, how often it was interrupted."""

    def __init__(self, *, handlers: list[str] | None = None, mode: str = "signal", **info: Any) -> None:
        self.sent: list[int] = []
        self.said: list[dict[str, Any]] = []
        self.interrupts = 0
        self.bad: list[tuple[int, int, str]] = []
        self.talk = KernelClient(self._heard, lambda info: None, self._interrupt, self._heard_bad)
        self.talk.is_ready, self.talk.info = True, info
        known = None if handlers is None else frozenset(handlers)
        self.talk._process = SimpleNamespace(interrupt_mode=mode, handlers=known)  # type: ignore[assignment]
        for channel in (frames.SHELL, frames.CONTROL):
            self.talk.sockets[channel] = SimpleNamespace(
                send_multipart=lambda parts, channel=channel: self.sent.append(channel), close=lambda: None
            )

    def _heard(self, channel: int, parts: list[Any]) -> None:
        kind, content = json.loads(parts[-4])["msg_type"], json.loads(parts[-1])
        self.said.append({"channel": channel, "kind": kind, **content})

    def _interrupt(self) -> None:
        self.interrupts += 1

    def _heard_bad(self, messages: int, size_bytes: int, why: str) -> None:
        self.bad.append((messages, size_bytes, why))

    def ask(self, kind: str, *, channel: int = frames.CONTROL, cell: str | None = None) -> None:
        parts = list(request(kind).parts)
        self.talk.say(channel, parts if cell is None else requests.naming(parts, cell))

    def hears(self, kind: str, cell: str, state: str = "") -> None:
        """The kernel says something on iopub that belongs to a cell."""
        parent = json.dumps({"msg_id": cell, "msg_type": "execute_request"}).encode()
        content = json.dumps({"execution_state": state}).encode()
        self.talk._is_ours(
            frames.IOPUB, [b"kernel.x." + kind.encode(), frames.DELIMITER, b"", b"{}", parent, b"{}", content]
        )

    def begins(self, cell: str) -> None:
        self.hears("status", cell, "busy")
        self.hears("execute_input", cell)


@pytest.mark.parametrize("channel", [frames.SHELL, frames.CONTROL])
def test_an_interrupt_is_a_signal_and_answered_at_once_on_the_channel_where_it_came(channel: int) -> None:
    desk = Desk()
    desk.ask("interrupt_request", channel=channel)
    assert (desk.interrupts, desk.sent) == (1, [])
    assert [(one["channel"], one["kind"]) for one in desk.said] == [
        (frames.IOPUB, "status"),
        (channel, "interrupt_reply"),
        (frames.IOPUB, "status"),
    ]
    assert desk.said[1]["status"] == "ok"


def test_a_kernel_that_wants_the_message_gets_it() -> None:
    desk = Desk(mode="message")
    desk.ask("interrupt_request")
    assert (desk.interrupts, desk.sent, desk.said) == (0, [frames.CONTROL], [])


def test_a_kernel_that_has_not_answered_yet_would_end_by_an_interrupt() -> None:
    desk = Desk()
    desk.talk.is_ready = False
    desk.ask("interrupt_request", cell="c1")
    desk.ask("interrupt_request")
    assert (desk.interrupts, [one["kind"] for one in desk.said].count("interrupt_reply")) == (0, 2)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell can be interrupted as soon as it has begun."""
    monkeypatch.setattr(kernel_client, "BEGIN_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_an_interrupt_that_names_its_cell_interrupts_that_one_while_it_runs_and_no_other() -> None:
    desk = Desk()
    desk.begins("c1")
    desk.ask("interrupt_request", cell="c1")
    assert (desk.interrupts, desk.said[1]["kernelbridge_sent"]) == (1, True)
    desk.hears("status", "c1", "idle")
    desk.begins("c2")
    desk.ask("interrupt_request", cell="c1")
    desk.hears("status", "c2", "idle")
    desk.talk.do_due(time.monotonic() + 60)
    assert (desk.interrupts, desk.said[4]["kernelbridge_sent"]) == (1, False), "c1 had ended"


def test_an_interrupt_waits_until_the_cells_own_code_runs() -> None:
    desk = Desk()
    desk.begins("c1")
    desk.ask("interrupt_request", cell="c2")
    desk.ask("interrupt_request", cell="c2")
    desk.hears("status", "c1", "idle")
    assert desk.talk.due_at == math.inf
    desk.hears("status", "c2", "busy")
    now = time.monotonic()
    assert now < desk.talk.due_at <= now + UNTOLD_BEGIN_SECONDS
    desk.hears("execute_input", "c2")
    now = time.monotonic()
    assert desk.talk.due_at <= now + BEGIN_SECONDS
    desk.talk.do_due(now)
    assert desk.interrupts == 0
    desk.talk.do_due(now + BEGIN_SECONDS)
    desk.talk.do_due(now + 60)
    assert (desk.interrupts, desk.talk.due_at) == (1, math.inf)


@pytest.mark.parametrize("comes_first", ["busy", "interrupt"])
def test_a_silent_cell_whose_start_is_not_told_is_interrupted_a_moment_after_its_busy(comes_first: str) -> None:
    desk = Desk()
    steps = [lambda: desk.hears("status", "c1", "busy"), lambda: desk.ask("interrupt_request", cell="c1")]
    for step in steps if comes_first == "busy" else reversed(steps):
        step()
    now = time.monotonic()
    desk.talk.do_due(now)
    assert desk.interrupts == 0
    desk.talk.do_due(now + UNTOLD_BEGIN_SECONDS)
    assert desk.interrupts == 1


@pytest.mark.usefixtures("at_once")
def test_interrupts_of_an_ended_kernel_and_old_ones_are_forgotten() -> None:
    desk = Desk()
    for number in range(200):
        desk.ask("interrupt_request", cell=f"c{number}")
    desk.begins("c0")
    desk.talk.do_due(time.monotonic())
    assert desk.interrupts == 0
    desk.begins("c199")
    desk.talk.do_due(time.monotonic())
    assert desk.interrupts == 1
    desk.talk.close()
    desk.begins("c198")
    desk.talk.do_due(time.monotonic() + 60)
    assert desk.interrupts == 1


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("reply", ["before its idle", "after its idle", "never"])
def test_a_cell_that_ends_by_an_interrupt_without_a_reply_gets_one_here(names: bool, reply: str) -> None:
    desk = Desk()
    desk.ask("execute_request", channel=frames.SHELL)
    desk.begins("m1")
    desk.ask("interrupt_request", cell="m1" if names else None)
    desk.said.clear()
    parent = json.dumps({"msg_id": "m1"}).encode()
    said = [b"client", frames.DELIMITER, b"", b"{}", parent, b"{}", b"{}"]
    if reply == "before its idle":
        desk.talk._is_ours(frames.SHELL, said)
    desk.hears("status", "m1", "idle")
    if reply == "after its idle":
        desk.talk._is_ours(frames.SHELL, said)
    now = time.monotonic()
    desk.talk.do_due(now)
    assert desk.said == []
    desk.talk.do_due(now + INTERRUPTED_REPLY_SECONDS)
    desk.talk.do_due(now + 60)
    assert [(one["channel"], one["kind"], one["ename"]) for one in desk.said] == (
        []
        if reply != "never"
        else [
            (frames.IOPUB, "error", "KeyboardInterrupt"),
            (frames.SHELL, "execute_reply", "KeyboardInterrupt"),
        ]
    )


def test_a_cell_that_the_kernel_could_not_read_gets_a_reply_here() -> None:
    desk = Desk()
    desk.ask("execute_request", channel=frames.SHELL)
    desk.begins("m1")
    desk.talk.do_due(time.monotonic() + 600)
    desk.hears("status", "m1", "idle")
    now = time.monotonic()
    desk.talk.do_due(now + INTERRUPTED_REPLY_SECONDS)
    assert desk.said == []
    desk.talk.do_due(now + REPLY_SECONDS)
    assert [(one["kind"], one["ename"]) for one in desk.said] == [("error", "NoReply"), ("execute_reply", "NoReply")]


def test_a_reply_that_is_no_message_is_passed_on_all_the_same() -> None:
    desk = Desk()
    desk.ask("execute_request", channel=frames.SHELL)
    for parts in ([b"x"], [b"x", frames.DELIMITER], [b"x", frames.DELIMITER, b"", b"{}", b"no json", b"{}", b"{}"]):
        assert not desk.talk._is_ours(frames.SHELL, parts)


@pytest.mark.parametrize(
    ("facts", "kind", "is_answered_here"),
    [
        # By the kernel's own list.
        ({"handlers": ["shutdown_request"]}, "debug_request", True),
        ({"handlers": ["shutdown_request"]}, "create_subshell_request", True),
        ({"handlers": ["shutdown_request"]}, "usage_request", True),
        ({"handlers": ["debug_request"]}, "debug_request", False),
        ({"handlers": ["debug_request"]}, "list_subshell_request", True),
        # By kernel_info.
        ({}, "debug_request", True),
        ({"debugger": True}, "debug_request", False),
        ({"supported_features": ["debugger"]}, "debug_request", False),
        ({"supported_features": ["debugger"]}, "delete_subshell_request", True),
        ({"supported_features": ["kernel subshells"]}, "create_subshell_request", False),
        ({"supported_features": None}, "usage_request", False),
        # What every kernel has, and what an extension may have added.
        ({"handlers": []}, "shutdown_request", False),
        ({"handlers": []}, "my_own_request", False),
        ({"handlers": []}, "comm_msg", False),
    ],
)
def test_what_the_kernel_has_no_handler_for_is_answered_here(
    facts: dict[str, Any], kind: str, is_answered_here: bool
) -> None:
    desk = Desk(**facts)
    desk.ask(kind)
    assert desk.sent == ([] if is_answered_here else [frames.CONTROL])
    assert [one["kind"] for one in desk.said] == (
        ["status", kind.replace("_request", "_reply"), "status"] if is_answered_here else []
    )


# -- what is no message


class Again(Exception):
    """There is nothing to read."""


def hear(heard: list[list[bytes]], *said: list[bytes], pack: bool = True) -> list[tuple[int, int, str]]:
    """What a client hands on of what a kernel says on iopub, and what it tells of the rest."""
    told: list[tuple[int, int, str]] = []

    def take(channel: int, parts: list[Any]) -> None:
        frames.pack(frames.Message(channel, 1, parts))
        heard.append(parts)

    talk = KernelClient(take, lambda info: None, lambda: None, lambda *bad: told.append(bad))
    left = list(said)

    def receive(flags: int) -> list[bytes]:
        if not left:
            raise Again
        return left.pop(0)

    talk.zmq = SimpleNamespace(Again=Again, NOBLOCK=1)
    talk.is_ready, talk.info = True, {}
    talk.sockets[frames.IOPUB] = SimpleNamespace(recv_multipart=receive, close=lambda: None)
    talk._drain(frames.IOPUB)
    return told


GOOD = [b"stream", frames.DELIMITER, b"", b'{"msg_type": "stream"}', b"{}", b"{}", b"{}"]


@pytest.mark.parametrize(
    "bad",
    [
        [b"garbage"],
        [b""],
        [b"x.status", frames.DELIMITER],
        [b"x.status", frames.DELIMITER, b"", b"{}", b"nojson", b"{}", b'"busy"'],
        [b"x.status", frames.DELIMITER, b"", b"{}", b"[1]", b"{}", b'"busy"'],
        [b"x.status", frames.DELIMITER, b"", b"{}", b"[" * 100_000, b"{}", b'"busy"'],
        [b"stream", frames.DELIMITER, b"", b"{}", b"{}", b"{}", *[b""] * 70_000],
    ],
    ids=lambda bad: f"{len(bad)} parts: {bad[-1][:12]!r}",
)
def test_a_bad_message_costs_itself_alone(bad: list[bytes]) -> None:
    heard: list[list[bytes]] = []
    told = hear(heard, GOOD, bad, bad, GOOD)
    assert heard == [GOOD, GOOD]
    assert told == [(1, sum(map(len, bad)), "invalid")], "the second one is told of later"


def test_a_message_that_is_too_long_is_told_of_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MESSAGE_BYTES", 1000)
    heard: list[list[bytes]] = []
    long = [*GOOD[:-1], b"x" * 1000]
    assert hear(heard, GOOD, long, long, GOOD) == [(1, sum(map(len, long)), "size")] * 2
    assert heard == [GOOD, GOOD]


def test_a_header_that_is_too_long_is_kept_as_its_id() -> None:
    desk = Desk()
    parent = json.dumps({"msg_id": "c", "msg_type": "execute_request", "x": "y" * 100_000}).encode()
    desk.talk._note(parent, b'{"execution_state": "busy"}')
    assert desk.talk.running == {"msg_id": "c", "msg_type": "execute_request"}
