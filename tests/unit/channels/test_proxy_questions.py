"""channels/proxy.py: what a cell asks for a login, while there is no kernel, or no link to it."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import pytest

from kernelbridge.channels.cell_questions import CellQuestion
from kernelbridge.channels.poller import ZmqPoller
from kernelbridge.channels.proxy import KernelProxy
from kernelbridge.channels.waiting import DEFAULT_INFO
from kernelbridge.errors import LinkLost
from kernelbridge.protocol.frames import STDIN
from tests.clients.blocking import Client
from tests.made_kernel import MadeKernel, answer_to, cell_of, kind_of
from tests.rig.daemon import wait_until
from tests.unit.channels.test_proxy import DIED, heard, joined, loopback, opened


@pytest.fixture
def proxy(poller: ZmqPoller, kernel: MadeKernel) -> Iterator[KernelProxy]:
    made = KernelProxy(poller, loopback(), session="kernel", info=dict(DEFAULT_INFO), owner=kernel.owner)
    yield made
    made.close().result(5)


@pytest.fixture
def client(proxy: KernelProxy) -> Iterator[Client]:
    with joined(proxy) as made:
        yield made


class Question:
    """What a cell is asked for a login, and what came of it."""

    def __init__(self, proxy: KernelProxy, *notes: str) -> None:
        self.answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        proxy.ask(CellQuestion(prompt="(ada@lab) Code: ", notes=notes, answered=self.answers.put))

    @property
    def answer(self) -> str | None:
        return self.answers.get(timeout=10)


def test_a_waiting_cell_asks_for_a_login_and_the_answer_goes_to_no_kernel(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.progress("logging in")
    hidden = client.send("hidden", allow_stdin=True, store_history=False)
    asked = client.send("1", allow_stdin=True)
    wait_until(lambda: kernel.waiting == [True], "the cell to be told", 5)
    client.wait_for(lambda one: one["msg_type"] == "stream", seconds=10)
    assert proxy.can_ask().result(5) is True
    question = Question(proxy, "lab: Welcome")
    message = client.kernel.get_stdin_msg(timeout=5)
    assert message["content"] == {"prompt": "(ada@lab) Code: ", "password": True}
    assert message["parent_header"]["msg_id"] == asked
    # What is drawn while it is asked would take the field away.
    shown = len(client.seen())
    time.sleep(1.2)
    assert len(client.seen()) == shown
    client.kernel.input("sesame")
    assert question.answer == "sesame"
    client.wait_for(lambda one: "logging in" in str(one["content"]) and one in client.seen()[shown:], seconds=5)
    opened(proxy)
    for one in heard(kernel, 2):
        proxy.deliver(cell_of(one, "out"))
    assert client.finish(asked).text == "out"
    assert "lab: Welcome\n" in [one["content"]["text"] for one in client.finish(asked).of("stream")]
    client.finish(hidden)
    assert [kind_of(one) for one in kernel.heard] == ["execute_request", "execute_request"]


def test_where_no_cell_can_ask_the_question_comes_back_at_once(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    assert proxy.can_ask().result(5) is None
    assert Question(proxy).answer is None
    client.send("1", allow_stdin=False)
    wait_until(lambda: kernel.waiting == [True], "the cell to be told", 5)
    assert proxy.can_ask().result(5) is False
    assert Question(proxy).answer is None
    opened(proxy)
    client.send("2", allow_stdin=True)
    heard(kernel, 2)
    # It does not wait.
    assert proxy.can_ask().result(5) is None
    assert Question(proxy).answer is None


@pytest.mark.parametrize("end", ["interrupt", "signal", "shutdown", "fail", "open", "close", "cancel"])
def test_a_question_ends_with_the_wait_of_its_cell(
    proxy: KernelProxy, kernel: MadeKernel, client: Client, end: str
) -> None:
    client.send("1", allow_stdin=True)
    wait_until(lambda: kernel.waiting == [True], "the cell to be told", 5)
    question = Question(proxy)
    client.kernel.get_stdin_msg(timeout=5)
    match end:
        case "interrupt":
            client.ask("control", "interrupt_request")
        case "signal":
            proxy.interrupt()
        case "shutdown":
            client.ask("control", "shutdown_request", {"restart": False})
        case "fail":
            proxy.fail(DIED)
        case "open":
            opened(proxy)
        case "close":
            proxy.close().result(5)
        case "cancel":
            proxy.cancel_question()
    assert question.answer is None


def test_a_cell_that_waits_for_the_link_asks_too_unless_it_asks_for_the_kernel(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    client.send("input()", allow_stdin=True)
    [message] = heard(kernel, 1)
    proxy.deliver([answer_to(message, STDIN, "input_request", {"prompt": "who? ", "password": False})])
    client.kernel.get_stdin_msg(timeout=5)
    proxy.link_lost(LinkLost(host="lab"))
    assert Question(proxy).answer is None
    client.kernel.input("ada")
    assert kind_of(heard(kernel, 2)[1]) == "input_reply"
    question = Question(proxy, "lab: Welcome")
    assert client.kernel.get_stdin_msg(timeout=5)["content"]["prompt"] == "(ada@lab) Code: "
    client.wait_for_words("lab: Welcome\n")
    client.kernel.input("sesame")
    assert question.answer == "sesame"
    question = Question(proxy)
    client.kernel.get_stdin_msg(timeout=5)
    proxy.link_restored()
    assert question.answer is None
    client.kernel.input("late")
    client.send("2")
    assert [kind_of(one) for one in heard(kernel, 3)][2] == "execute_request"
    assert kernel.waiting == []


def test_a_cell_that_comes_while_the_link_is_lost_is_told_of(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    proxy.link_lost(LinkLost(host="lab"))
    client.send("1", allow_stdin=True)
    wait_until(lambda: kernel.waiting == [True], "the cell to be told", 5)
    assert proxy.can_ask().result(5) is True
