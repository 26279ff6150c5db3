"""channels/proxy.py: what clients that drop all but their own see of cells from before, and of their kernel's news."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kernelbridge.channels.poller import ZmqPoller
from kernelbridge.channels.proxy import KernelProxy
from kernelbridge.channels.waiting import DEFAULT_INFO
from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import COMMAND, DELIMITER, IOPUB, SHELL, Message
from tests.clients.blocking import Client
from tests.made_kernel import MadeKernel, answer_to, cell_of
from tests.rig.daemon import wait_until
from tests.unit.channels.test_proxy import joined, loopback, opened

BEFORE = {"msg_id": "m9", "msg_type": "execute_request", "session": "another window's"}


@pytest.fixture
def proxy(poller: ZmqPoller, kernel: MadeKernel) -> Iterator[KernelProxy]:
    owner = replace(kernel.owner, only_own=True)
    made = KernelProxy(poller, loopback(), session="kernel", info=dict(DEFAULT_INFO), owner=owner)
    yield made
    made.close().result(5)


@pytest.fixture
def client(proxy: KernelProxy) -> Iterator[Client]:
    with joined(proxy) as made:
        yield made


def of_before(kind: str, content: Any, *, channel: int = IOPUB) -> bytes:
    """What the kernel says of a request of before."""
    header = json.dumps(BEFORE).encode()
    return answer_to(Message(SHELL, 1, [b"gone", DELIMITER, b"", header, b"{}", b"{}", b"{}"]), channel, kind, content)


def printed(text: str) -> bytes:
    return of_before("stream", {"name": "stdout", "text": text})


def orders(kernel: MadeKernel) -> list[bool]:
    """Whether the relay was told to show what it keeps, or to keep it."""
    asked = [json.loads(bytes(one.parts[0])) for one in kernel.heard if one.channel == COMMAND]
    assert {one["do"] for one in asked} <= {"output"}
    return [one["show"] for one in asked]


def cell(kernel: MadeKernel, count: int) -> Message:
    """The newest request at the kernel, once there are so many besides orders."""

    def requests() -> list[Message]:
        return [one for one in kernel.heard if one.channel != COMMAND]

    wait_until(lambda: len(requests()) >= count, f"{count} requests", 5)
    return requests()[-1]


def test_output_of_before_is_shown_by_the_users_cell_and_asked_for_while_it_runs(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.expect_left_output()
    opened(proxy)
    client.send("hidden", store_history=False)
    cell(kernel, 1)
    assert orders(kernel) == []
    asked = client.send("1")
    message = cell(kernel, 2)
    assert orders(kernel) == [True]
    assert kernel.heard[-2].channel == COMMAND, "what was left goes out before the kernel hears of the cell"
    proxy.learn_titles({"m9": [7, "train()"]})
    proxy.deliver([
        printed("epoch 1\n"),
        of_before("status", {"execution_state": "idle"}),
        of_before("error", {"ename": "E", "evalue": "v", "traceback": ["Traceback"]}),
        of_before("execute_reply", {"status": "error"}, channel=SHELL),
        of_before("comm_msg", {"comm_id": "c", "data": {}}),
        *cell_of(message, "own\n"),
    ])  # fmt: skip
    shown = client.finish(asked)
    assert shown.text == (
        "[kernelbridge: output of cell [7]: train(), which no client was there to show]\nepoch 1\nTraceback\nown\n"
    )
    assert shown.states == ["busy", "idle"]
    assert (shown.reply["status"], shown.error) == ("ok", "")
    wait_until(lambda: orders(kernel) == [True, False], "the order to keep it again", 5)
    # What was on its way when that was said.
    proxy.deliver([printed("late\n")])
    client.wait_for(lambda one: one["content"].get("text") == "late\n" and one["parent_header"]["msg_id"] == asked)
    proxy.print_notice(BEFORE, "some of it was dropped\n")
    notice = client.wait_for(lambda one: "dropped" in one["content"].get("text", ""))
    assert notice["parent_header"]["msg_id"] == asked


def test_a_cell_that_runs_since_before_keeps_the_client_from_nothing_and_the_users_cell_says_so(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.expect_left_output()
    proxy.open(launch=1, info=dict(DEFAULT_INFO), busy=BEFORE)
    asked = client.send("1")
    message = cell(kernel, 1)
    proxy.deliver([of_before("status", {"execution_state": "idle"}), *cell_of(message, "own\n")])
    shown = client.finish(asked)
    assert shown.text == "[kernelbridge: a cell from before is still running; this one runs after it]\nown\n"
    states = [one for one in client.seen() if one["msg_type"] == "status"]
    assert "m9" not in [one["parent_header"].get("msg_id") for one in states]
    again = client.send("2")
    proxy.deliver(cell_of(cell(kernel, 2), "own\n"))
    assert client.finish(again).text == "own\n"


def test_a_kernel_that_was_started_here_has_nothing_from_before(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    asked = client.send("1")
    proxy.deliver(cell_of(cell(kernel, 1), "own\n"))
    assert client.finish(asked).text == "own\n"
    assert orders(kernel) == []


def test_news_stand_at_the_top_of_the_users_next_cell(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    proxy.tell_next_cell("this is a new container")
    opened(proxy)
    asked = client.send("1")
    proxy.deliver(cell_of(cell(kernel, 1), "own\n"))
    shown = client.finish(asked)
    assert shown.text == "[kernelbridge: this is a new container]\nown\n"
    assert shown.states == ["busy", "idle"]


def test_the_messages_of_a_kernel_that_was_taken_up_have_the_session_that_clients_know(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.rename_session("its own")
    opened(proxy)
    asked = client.send("1")
    message = cell(kernel, 1)
    proxy.deliver(under_its_own(cell_of(message)))
    client.finish(asked)
    assert {one["header"]["session"] for one in client.seen()} == {"kernel"}


def under_its_own(packed: list[bytes]) -> list[bytes]:
    """The same messages, from a kernel with another session."""
    found = []
    for one in packed:
        message = frames.unpack(one)
        parts = [bytes(part).replace(b'"session": "kernel"', b'"session": "its own"') for part in message.parts]
        found.append(frames.pack(message._replace(parts=parts)))
    return found
