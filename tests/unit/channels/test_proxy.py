"""channels/proxy.py: Jupyter's own client on real ZMQ sockets of loopback, and a made kernel behind them.

What is said while the kernel is away, case by case: test_waiting.py. The thread that polls: test_poller.py.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import KernelConnectionInfo

from kernelbridge.channels import endpoints, interrupts
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.poller import ZmqPoller
from kernelbridge.channels.proxy import KernelProxy
from kernelbridge.channels.waiting import DEFAULT_INFO, TRY_AGAIN, ShutdownIntent
from kernelbridge.errors import HostRefused, KernelDied, LinkLost
from kernelbridge.protocol import frames, requests
from kernelbridge.protocol.frames import CONTROL, DELIMITER, IOPUB, STDIN, Message
from tests.clients.blocking import Client
from tests.clients.ports import is_free
from tests.made_kernel import MadeKernel, answer_to, cell_of, kind_of
from tests.rig.daemon import wait_until

DIED = KernelDied(environment="torch", host="lab", how="exit code 3")
PROBE = 'print("p1IPyWidgets:" + _VSCODE_ipywidgets.__version__)'


def loopback() -> Endpoints:
    return Endpoints(transport="tcp", ip="127.0.0.1", ports=(0, 0, 0, 0, 0), key=b"a key")


@pytest.fixture
def proxy(poller: ZmqPoller, kernel: MadeKernel) -> Iterator[KernelProxy]:
    made = KernelProxy(poller, loopback(), session="kernel", info=dict(DEFAULT_INFO), owner=kernel.owner)
    yield made
    made.close().result(5)


@contextmanager
def joined(proxy: KernelProxy) -> Iterator[Client]:
    """A client whose iopub is known to be heard."""
    client = BlockingKernelClient()
    client.load_connection_info(cast(KernelConnectionInfo, proxy.endpoints.connection_info()))
    client.start_channels()
    try:
        client.wait_for_ready(timeout=10)
        yield Client(client)
    finally:
        client.stop_channels()


@pytest.fixture
def client(proxy: KernelProxy) -> Iterator[Client]:
    with joined(proxy) as made:
        yield made


def opened(proxy: KernelProxy, *, refuse_debug: str = "") -> None:
    proxy.open(launch=1, info=dict(DEFAULT_INFO), refuse_debug=refuse_debug)


def heard(kernel: MadeKernel, count: int) -> list[Message]:
    wait_until(lambda: len(kernel.heard) >= count, f"{count} requests at the kernel", 5)
    return kernel.heard


# -- waiting, then open


def test_what_waited_goes_to_the_kernel_in_order_unsigned_and_with_its_launch(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.set_kernel_info(dict(DEFAULT_INFO), None)
    for number in range(5):
        client.send(f"{number}")
    client.ask("shell", "complete_request", {"code": "x", "cursor_pos": 1})
    client.answer(client.ask("shell", "kernel_info_request"))  # Behind all of them, so they have come.
    assert kernel.heard == []
    opened(proxy)
    sent = heard(kernel, 6)
    assert [kind_of(message) for message in sent] == ["execute_request"] * 5 + ["complete_request"]
    assert {message.launch for message in sent} == {1}
    parts = [bytes(part) for part in sent[0].parts]
    assert parts[parts.index(DELIMITER) + 1] == b""
    assert json.loads(parts[-1])["code"] == "0"


def test_what_a_client_wishes_of_the_start_is_passed_on(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    client.answer(client.ask("control", "shutdown_request", {"restart": False}), seconds=5)
    wait_until(lambda: kernel.wishes == [ShutdownIntent.CANCEL], "the wish", 5)


def test_an_answer_goes_to_the_client_that_asked_and_output_to_all(proxy: KernelProxy, kernel: MadeKernel) -> None:
    with joined(proxy) as first, joined(proxy) as second:
        opened(proxy)
        asked = first.send("1")
        [message] = heard(kernel, 1)
        proxy.deliver(cell_of(message, "out"))
        assert first.finish(asked).text == "out"
        wait_until(lambda: len(second.seen()) >= 3, "the output at the other client", 5)
        assert not second.has_answer(asked)


def test_buffers_pass_unchanged_both_ways(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    opened(proxy)
    session = client.kernel.session
    session.send(client.kernel.shell_channel.socket, session.msg("comm_msg"), buffers=[b"one", b"two" * 1000])
    [message] = heard(kernel, 1)
    assert [bytes(part) for part in message.parts[-2:]] == [b"one", b"two" * 1000]
    proxy.deliver([answer_to(message, IOPUB, "comm_msg", {}, buffers=(b"three",))])
    echo = client.wait_for(lambda one: one["msg_type"] == "comm_msg", seconds=5)
    assert [bytes(buffer) for buffer in echo["buffers"]] == [b"three"]


def test_input_is_asked_of_the_client_that_ran_the_cell(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    opened(proxy)
    client.send("input()")
    [message] = heard(kernel, 1)
    proxy.deliver([answer_to(message, STDIN, "input_request", {"prompt": "who? ", "password": False})])
    assert client.kernel.get_stdin_msg(timeout=5)["content"]["prompt"] == "who? "
    client.kernel.input("ada")
    assert kind_of(heard(kernel, 2)[1]) == "input_reply"
    assert kernel.heard[1].channel == STDIN


def test_a_message_with_another_key_is_dropped_and_the_next_is_served(
    proxy: KernelProxy, kernel: MadeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    opened(proxy)
    key, client.kernel.session.key = client.kernel.session.key, b"another"
    client.send("evil")
    client.kernel.session.key = key
    client.send("good")
    [message] = heard(kernel, 1)
    assert json.loads(bytes(message.parts[-1]))["code"] == "good"
    assert "a message on channel 0 is dropped: wrong signature" in caplog.text


def test_a_request_that_is_too_long_is_answered_here_and_the_next_is_served(
    proxy: KernelProxy, kernel: MadeKernel, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(proxy)
    monkeypatch.setattr(frames, "MESSAGE_BYTES", 10_000)
    reply = client.answer(client.send("x" * 20_000))
    assert reply["content"]["ename"] == "MessageTooLong"
    client.send("good")
    [message] = heard(kernel, 1)
    assert json.loads(bytes(message.parts[-1]))["code"] == "good"


def test_progress_is_said_once_and_the_kernels_own_busy_is_swallowed(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    asked = client.send("1")
    proxy.progress("pulling")
    client.wait_for(lambda one: one["msg_type"] == "stream", seconds=10)
    opened(proxy)
    proxy.deliver(cell_of(heard(kernel, 1)[0], "out"))
    cell = client.finish(asked)
    assert (cell.states, cell.text) == (["busy", "idle"], "out")


def test_a_hidden_cell_answered_early_is_run_later_and_what_it_says_then_is_discarded(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.set_kernel_info(dict(DEFAULT_INFO), "8.1.5")
    probe = client.run(PROBE)
    assert probe.text == "p1IPyWidgets:8.1.5\n"
    seen = len(client.seen())
    opened(proxy)
    proxy.deliver(cell_of(heard(kernel, 1)[0], "p1IPyWidgets:8.1.5\n"))
    asked = client.send("1")
    proxy.deliver(cell_of(heard(kernel, 2)[1]))
    client.finish(asked)
    assert {one["parent_header"]["msg_id"] for one in client.seen()[seen:]} == {asked}
    assert kernel.widgets == ["8.1.5"]


def test_the_version_that_vscode_was_told_is_a_guess_until_its_probe_has_run(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.guess_widgets("7.7.1")
    # Nothing tells what the image has; a start that takes longer must not keep VS Code from sending the user's cell.
    assert client.run(PROBE).text == "p1IPyWidgets:7.7.1\n"
    opened(proxy)
    proxy.deliver(cell_of(heard(kernel, 1)[0], "p1IPyWidgets:8.1.5\n"))
    wait_until(lambda: kernel.widgets == ["8.1.5"], "the version to be learned", 5)


def test_a_kernel_that_did_not_come_is_interrupted_without_a_fault_and_says_why_again(
    proxy: KernelProxy, client: Client
) -> None:
    proxy.fail(HostRefused(host="lab", address="lab:22"))
    assert client.answer(client.ask("control", "interrupt_request"))["content"] == {"status": "ok"}
    for _ in range(2):
        shown = client.run("1").reply
        assert (shown["ename"], shown["traceback"][-1]) == ("HostRefused", TRY_AGAIN)
    assert not proxy.is_end_asked_for


def test_the_version_that_the_probe_really_prints_is_learned(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    asked = client.send(PROBE)
    proxy.deliver(cell_of(heard(kernel, 1)[0], "p1IPyWidgets:8.1.5\n"))
    assert client.finish(asked).text == "p1IPyWidgets:8.1.5\n"
    assert kernel.widgets == ["8.1.5"]


def test_debugging_is_refused_where_it_must_be_off(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    opened(proxy, refuse_debug="not on the host's network")
    request = client.ask("control", "debug_request", {"seq": 1, "command": "initialize"})
    said = client.answer(request, seconds=5)["content"]
    assert (said["success"], said["message"]) == (False, "not on the host's network")
    assert kernel.heard == []


def test_the_owner_hears_of_requests_wishes_and_widgets_in_the_order_in_which_they_happened(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    asked = client.send(PROBE)
    [probe] = heard(kernel, 1)
    with kernel.blocked():
        client.send("before")
        wait_until(lambda: "2 outstanding" in repr(proxy), "the request", 5)
        proxy.deliver(cell_of(probe, "p1IPyWidgets:8.1.5\n"))
        client.finish(asked)
        proxy.restarting()
        client.answer(client.ask("control", "shutdown_request", {"restart": False}), seconds=5)
        opened(proxy)
        client.send("after")
        wait_until(lambda: "1 outstanding" in repr(proxy), "the next request", 5)
    came = [json.loads(bytes(one.parts[-1]))["code"] if isinstance(one, Message) else one for one in kernel.events]
    assert came == [PROBE, "before", "8.1.5", ShutdownIntent.CANCEL, "after"]


# -- lost, failed, again


def test_a_lost_link_keeps_cells_for_later_and_answers_what_is_urgent(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    running = client.send("long")
    [message] = heard(kernel, 1)
    proxy.deliver(cell_of(message)[:1])
    proxy.link_lost(LinkLost(host="lab"))
    info = client.ask("shell", "kernel_info_request")
    assert client.answer(info, seconds=5)["content"]["status"] == "ok"
    # Its idle does not hide that a cell runs there.
    client.wait_for(lambda one: states_of(client)[-1:] == [(running, "busy")], seconds=5)
    interrupt = client.ask("control", "interrupt_request")
    assert client.answer(interrupt, seconds=5)["content"] == {"status": "ok"}
    waits = "[kernelbridge: the link to lab is lost; the interrupt is sent when it is back]\n"
    client.wait_for(lambda one: one["content"].get("text") == waits, seconds=5)
    assert client.answer(client.ask("control", "shutdown_request"), seconds=5)["content"]["status"] == "ok"
    client.send("later")
    assert [kind_of(one) for one in heard(kernel, 3)[1:]] == ["interrupt_request", "execute_request"]
    assert client.kernel.is_alive()
    assert cell_named_by(kernel.heard[1]) == running
    proxy.link_restored()
    proxy.deliver([answer_to(kernel.heard[1], CONTROL, "interrupt_reply", {"status": "ok", "kernelbridge_sent": True})])
    # Only now is it done.
    client.wait_for(lambda one: states_of(client)[-1:] == [(interrupt, "idle")], seconds=5)


def test_a_cell_says_once_why_nothing_happens_and_so_does_the_next(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    proxy.explain_wait("paused")  # Nothing runs that could say so.
    first, second = client.send("1"), client.send("2")
    heard(kernel, 2)
    for text in ("paused", "paused", "", "paused", "no key"):
        proxy.explain_wait(text)
    proxy.deliver(cell_of(kernel.heard[0]))
    proxy.explain_wait("no key")
    proxy.link_lost(LinkLost(host="lab"))
    proxy.link_restored()
    proxy.explain_wait("no key")
    proxy.deliver(cell_of(kernel.heard[1]))
    assert client.finish(first).text == "".join(f"[kernelbridge: {text}]\n" for text in ("paused", "paused", "no key"))
    assert client.finish(second).text == "[kernelbridge: no key]\n" * 2


def cell_named_by(message: Message) -> str | None:
    asked = requests.read(message.parts)
    assert asked is not None
    return asked.cell


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_an_interrupt_goes_by_the_control_channel_with_its_cells_name_and_is_answered_where_it_came(
    proxy: KernelProxy, kernel: MadeKernel, client: Client, channel: str
) -> None:
    opened(proxy)
    running = client.send("long")
    heard(kernel, 1)
    interrupt = client.ask(channel, "interrupt_request")
    message = heard(kernel, 2)[1]
    assert (message.channel, cell_named_by(message)) == (CONTROL, running)
    proxy.deliver([answer_to(message, CONTROL, "interrupt_reply", {"status": "ok", "kernelbridge_sent": True})])
    if channel == "shell":
        # Answers come in the order of the requests.
        assert not client.has_answer(interrupt)
    else:
        assert client.answer(interrupt, seconds=5)["content"] == {"status": "ok"}
    proxy.deliver(cell_of(kernel.heard[0]))
    client.finish(running)
    assert client.answer(interrupt, seconds=5)["content"] == {"status": "ok"}
    # Now nothing runs that could be named.
    client.ask(channel, "interrupt_request")
    assert cell_named_by(heard(kernel, 3)[2]) is None


def test_an_interrupt_that_is_not_answered_in_time_is_answered_here_and_its_cell_says_so(
    proxy: KernelProxy, kernel: MadeKernel, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "UNANSWERED_SECONDS", 0.05)
    opened(proxy)
    running = client.send("long")
    heard(kernel, 1)
    interrupt = client.ask("control", "interrupt_request")
    assert client.answer(interrupt, seconds=5)["content"]["status"] == "ok"
    told = client.wait_for(lambda one: "no answer from the host yet" in one["content"].get("text", ""), seconds=5)
    assert told["parent_header"]["msg_id"] == running
    # The cell ends before the interrupt comes to it.
    proxy.deliver(cell_of(kernel.heard[0], "out"))
    assert client.finish(running).text.endswith("this cell had ended before the interrupt could be sent]\n")


def test_an_interrupt_by_signal_names_its_cell_too_and_is_answered_to_nobody(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    proxy.set_kernel_info(dict(DEFAULT_INFO), None)
    waits = client.send("waits")
    client.answer(client.ask("shell", "kernel_info_request"))  # Behind the cell, so that has come.
    proxy.interrupt()
    assert client.finish(waits, seconds=5).reply["ename"] == "KeyboardInterrupt"
    opened(proxy)
    running = client.send("long")
    heard(kernel, 1)
    proxy.interrupt()
    message = heard(kernel, 2)[1]
    assert cell_named_by(message) == running
    before = len(client.seen())
    proxy.deliver([answer_to(message, IOPUB, "status", {"execution_state": "busy"})])
    proxy.deliver([answer_to(message, CONTROL, "interrupt_reply", {"status": "ok"})])
    proxy.deliver(cell_of(kernel.heard[0]))
    client.finish(running)
    assert {one["parent_header"]["msg_id"] for one in client.seen()[before:]} == {running}
    proxy.fail(DIED)
    proxy.interrupt()
    client.answer(client.ask("control", "kernel_info_request"), seconds=5)
    assert len(kernel.heard) == 2


def states_of(client: Client) -> list[tuple[str, str]]:
    return [
        (one["parent_header"]["msg_id"], one["content"]["execution_state"])
        for one in client.seen()
        if one["msg_type"] == "status"
    ]


def test_the_end_of_a_kernel_is_told_to_all_who_wait_and_to_all_who_ask_later(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    first, second = client.send("os._exit(3)"), client.send("2")
    completed = client.ask("shell", "complete_request")
    heard(kernel, 3)
    proxy.fail(DIED)
    proxy.fail(DIED)  # Told twice, said once.
    assert "exit code 3" in client.finish(first).error
    assert client.finish(second).reply["status"] == "aborted"
    assert client.answer(completed, seconds=5)["content"]["ename"] == "KernelDied"
    assert "exit code 3" in client.run("3").error
    assert client.answer(client.ask("shell", "kernel_info_request"), seconds=5)["content"]["status"] == "ok"
    for restart, intent in ((True, ShutdownIntent.RESTART), (False, ShutdownIntent.CANCEL)):
        asked = client.ask("control", "shutdown_request", {"restart": restart})
        assert client.answer(asked, seconds=5)["content"] == {"status": "ok", "restart": restart}
        wait_until(partial(kernel.has_last, intent), "the wish", 5)
    wait_until(lambda: not client.kernel.is_alive(), "the heart to stop", 10)
    assert repr(proxy) == "<KernelProxy ended, 0 outstanding, 0 bytes held>"


def test_an_end_is_heard_once_a_cell_has_been_told(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    proxy.set_kernel_info(dict(DEFAULT_INFO), None)
    completed = client.ask("shell", "complete_request")
    proxy.fail(DIED)
    client.answer(completed, seconds=5)
    assert proxy.end_heard_at is None
    before = time.monotonic()
    client.run("1")
    wait_until(lambda: proxy.end_heard_at is not None and proxy.end_heard_at >= before, "the end to be heard", 5)
    at = proxy.end_heard_at
    client.run("2")
    assert proxy.end_heard_at == at
    proxy.restarting("restarting the kernel")
    wait_until(lambda: proxy.end_heard_at is None, "the end to be over", 5)
    waits = client.send("3")
    client.answer(client.ask("shell", "kernel_info_request"), seconds=5)
    assert proxy.end_heard_at is None
    proxy.fail(DIED)
    client.finish(waits)
    wait_until(lambda: proxy.end_heard_at is not None, "the end to be heard", 5)


@pytest.mark.parametrize("has_ended", [False, True])
def test_an_end_that_a_client_asks_for_needs_no_cell(proxy: KernelProxy, client: Client, has_ended: bool) -> None:
    if has_ended:
        proxy.fail(DIED)
    # A restart joins the start that is under way.
    client.answer(client.ask("control", "shutdown_request", {"restart": True}), seconds=5)
    wait_until(lambda: proxy.end_heard_at == (-math.inf if has_ended else None), "the wish", 5)
    client.answer(client.ask("control", "shutdown_request", {"restart": False}), seconds=5)
    wait_until(lambda: proxy.end_heard_at == -math.inf, "the wish", 5)
    assert proxy.is_end_asked_for


def test_who_has_an_answer_gets_no_other(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    opened(proxy)
    cell, interrupt = client.send("1"), client.ask("control", "interrupt_request")
    late = {kind_of(one): one for one in heard(kernel, 2)}
    proxy.restarting("the kernel has ended", DIED)
    assert (client.finish(cell).error != "", client.answer(interrupt)["content"]["status"]) == (True, "ok")
    proxy.deliver([answer_to(late["execute_request"], frames.SHELL, "execute_reply", {"status": "aborted"})])
    proxy.deliver([answer_to(late["interrupt_request"], CONTROL, "interrupt_reply", {"status": "ok"})])
    for name, read in (("shell", client.kernel.get_shell_msg), ("control", client.kernel.get_control_msg)):
        last = client.ask(name, "kernel_info_request")
        assert read(timeout=5)["parent_header"]["msg_id"] == last


def test_after_a_restart_cells_wait_again_and_go_to_the_new_launch(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    old = client.send("os._exit(0)")
    heard(kernel, 1)
    proxy.restarting("the kernel has ended", DIED)
    assert "exit code 3" in client.finish(old).error
    proxy.restarting("restarting the kernel")
    asked = client.send("1")
    client.answer(client.ask("shell", "kernel_info_request"), seconds=5)
    assert len(kernel.heard) == 1
    proxy.open(launch=2, info=dict(DEFAULT_INFO))
    assert heard(kernel, 2)[1].launch == 2
    proxy.deliver(cell_of(kernel.heard[1]))
    assert client.finish(asked).states == ["busy", "idle"]


# -- a client that does not read


def test_output_that_a_client_does_not_read_is_held_back_and_none_is_lost(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    client.send("flood")
    [message] = heard(kernel, 1)
    with zmq.Context() as context, context.socket(zmq.SUB) as slow:
        slow.rcvhwm, slow.rcvtimeo = 10, 5000
        slow.subscribe(b"stream")
        slow.connect(f"tcp://127.0.0.1:{proxy.endpoints.ports[1]}")

        def is_heard() -> bool:
            say(proxy, message, "first")
            return bool(slow.poll(10))

        wait_until(is_heard, "the subscription", 5)
        count, piece = 1900, "x" * 40_000
        for number in range(count):
            say(proxy, message, f"{number:08d}{piece}")
        wait_until(lambda: proxy.acknowledged_lanes != frames.LANES, "the backlog", 10)
        assert "bytes held" in repr(proxy)
        numbers: list[int] = []
        while len(numbers) < count:
            if (text := json.loads(slow.recv_multipart()[-1])["text"]) != "first":
                numbers.append(int(text[:8]))
        assert numbers == list(range(count))
        assert proxy.acknowledged_lanes == frames.LANES


def test_what_waits_for_its_turn_is_not_acknowledged(proxy: KernelProxy, kernel: MadeKernel, client: Client) -> None:
    opened(proxy)
    client.send("flood")
    [message] = heard(kernel, 1)
    is_over = threading.Event()
    proxy._poller.post(is_over.wait, 30)
    for _ in range(17):
        assert proxy.acknowledged_lanes == frames.LANES
        say(proxy, message, "x" * 1_000_000)
    assert proxy.acknowledged_lanes == ()
    is_over.set()
    wait_until(lambda: proxy.acknowledged_lanes == frames.LANES, "its turn", 10)


def test_a_flood_of_what_is_no_message_is_logged_once(
    proxy: KernelProxy, kernel: MadeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    opened(proxy)
    client.send("1")
    [message] = heard(kernel, 1)
    with caplog.at_level(logging.INFO):
        proxy.deliver([b"x"] * 10_000)
        proxy.deliver(cell_of(message, "out"))
        wait_until(lambda: proxy.settled().result(5), "all", 10)
    assert [record.getMessage() for record in caplog.records] == [
        "a message of the kernel is dropped: WireError: message too short"
    ]


def test_what_all_lost_because_one_does_not_read_is_told_in_its_cell(
    proxy: KernelProxy, kernel: MadeKernel, client: Client
) -> None:
    opened(proxy)
    cell = client.send("flood")
    [message] = heard(kernel, 1)
    lost = frames.unpack(answer_to(message, IOPUB, "display_data", {"data": "x" * 2_000_000})).parts

    def lose_two() -> None:
        # Long headers are not looked into before.
        for odd in (b"x" * 20_000, b"[" * 20_000, b"[]"):
            proxy._sockets._note_lost([b"display_data", frames.DELIMITER, b"", b"{}", odd, b"{}", b"{}"])
        proxy._sockets._note_lost(lost)
        proxy._sockets._note_lost(lost)

    proxy._poller.call(lose_two).result(5)
    words = "[kernelbridge: dropped 2 messages of this output (4.0 MB): a client has read nothing for a minute]\n"
    assert client.wait_for_words(words)["parent_header"]["msg_id"] == cell


def say(proxy: KernelProxy, message: Message, text: str) -> None:
    """The kernel prints something."""
    proxy.deliver([answer_to(message, IOPUB, "stream", {"name": "stdout", "text": text})])


# -- binding


def test_what_comes_after_the_end_goes_nowhere_and_is_no_error(
    poller: ZmqPoller, kernel: MadeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = KernelProxy(poller, loopback(), session="s", info={}, owner=kernel.owner)
    proxy.close().result(5)
    asked = Message(IOPUB, 1, [b"me", DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"])
    proxy.deliver(cell_of(asked, "out"))
    proxy.fail(DIED)
    poller.call(lambda: None).result(5)
    assert caplog.text == ""


def test_ports_that_are_taken_are_an_error_and_none_stays_bound(poller: ZmqPoller, kernel: MadeKernel) -> None:
    first = KernelProxy(poller, loopback(), session="s", info={}, owner=kernel.owner)
    ports = first.endpoints.ports
    free = endpoints.given({**first.endpoints.connection_info(), "key": "k", "shell_port": 0, "hb_port": ports[4]})
    with pytest.raises(OSError, match=r"cannot bind tcp endpoints at 127\.0\.0\.1"):
        KernelProxy(poller, free, session="s", info={}, owner=kernel.owner)
    assert repr(poller) == "<ZmqPoller 1 kernels>"
    first.close().result(5)
    # ZMQ's own thread gives the ports back, a moment after the sockets were closed.
    wait_until(lambda: all(is_free(port) for port in ports), "the ports to be free again", 5)
    again = KernelProxy(poller, first.endpoints, session="s", info={}, owner=kernel.owner)
    assert again.endpoints.ports == ports
    again.close().result(5)
    assert repr(poller) == "<ZmqPoller 0 kernels>"


def test_the_names_of_ipc_sockets_can_be_put_back_when_jupyter_has_unlinked_them(
    poller: ZmqPoller, kernel: MadeKernel, tmp_path: Path
) -> None:
    made = endpoints.made(runtime_folder=str(tmp_path))
    assert made.folder is not None
    proxy = KernelProxy(poller, made, session="s", info=dict(DEFAULT_INFO), owner=kernel.owner)
    with joined(proxy):
        pass
    for port in made.ports:
        Path(f"{made.ip}-{port}").unlink()
    proxy.endpoints.publish()
    with joined(proxy):
        pass
    proxy.close().result(5)
    assert not made.folder.exists()
