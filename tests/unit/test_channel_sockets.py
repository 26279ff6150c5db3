"""channels/sockets.py: Jupyter's own client on real ZMQ sockets of loopback, and a made kernel behind them.

What is said while the kernel is away, case by case: test_channels.py. The thread that polls: test_switchboard.py.
"""

from __future__ import annotations

import json
import math
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

from kernelbridge.channels import endpoints, messages
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.sockets import Channels
from kernelbridge.channels.switchboard import Switchboard
from kernelbridge.channels.waiting import DEFAULT_INFO, Wish
from kernelbridge.errors import LinkLost
from kernelbridge.kernel_errors import KernelDied
from kernelbridge.relay.wire import CONTROL, IOPUB, STDIN, Message
from tests.clients.blocking import Client
from tests.clients.ports import is_free
from tests.made_kernel import MadeKernel, answer_to, cell_of, kind_of
from tests.rig.daemon import wait_until

DIED = KernelDied(environment="torch", host="lab", how="exit code 3")
PROBE = 'print("p1IPyWidgets:" + _VSCODE_ipywidgets.__version__)'


@pytest.fixture
def board() -> Iterator[Switchboard]:
    made = Switchboard()
    yield made
    made.close()


@pytest.fixture
def kernel() -> MadeKernel:
    return MadeKernel()


def loopback() -> Endpoints:
    return Endpoints(transport="tcp", ip="127.0.0.1", ports=(0, 0, 0, 0, 0), key=b"a key")


@pytest.fixture
def channels(board: Switchboard, kernel: MadeKernel) -> Iterator[Channels]:
    made = Channels(board, loopback(), session="kernel", info=dict(DEFAULT_INFO), owner=kernel)
    yield made
    made.close().result(5)


@contextmanager
def joined(channels: Channels) -> Iterator[Client]:
    """A client whose iopub is known to be heard."""
    client = BlockingKernelClient()
    client.load_connection_info(cast(KernelConnectionInfo, channels.endpoints.connection_info()))
    client.start_channels()
    try:
        client.wait_for_ready(timeout=10)
        yield Client(client)
    finally:
        client.stop_channels()


@pytest.fixture
def client(channels: Channels) -> Iterator[Client]:
    with joined(channels) as made:
        yield made


def opened(channels: Channels, *, refuse_debug: str = "") -> None:
    channels.open(launch=1, info=dict(DEFAULT_INFO), refuse_debug=refuse_debug)


def heard(kernel: MadeKernel, count: int) -> list[Message]:
    wait_until(lambda: len(kernel.heard) >= count, f"{count} requests at the kernel", 5)
    return kernel.heard


# -- waiting, then open


def test_what_waited_goes_to_the_kernel_in_order_unsigned_and_with_its_launch(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    channels.know(dict(DEFAULT_INFO), None)
    for number in range(5):
        client.send(f"{number}")
    client.ask("shell", "complete_request", {"code": "x", "cursor_pos": 1})
    client.answer(client.ask("shell", "kernel_info_request"))  # Behind all of them, so they have come.
    assert kernel.heard == []
    opened(channels)
    sent = heard(kernel, 6)
    assert [kind_of(message) for message in sent] == ["execute_request"] * 5 + ["complete_request"]
    assert {message.launch for message in sent} == {1}
    parts = [bytes(part) for part in sent[0].parts]
    assert parts[parts.index(messages.DELIMITER) + 1] == b""
    assert json.loads(parts[-1])["code"] == "0"


def test_what_a_client_wishes_of_the_start_is_passed_on(channels: Channels, kernel: MadeKernel, client: Client) -> None:
    client.answer(client.ask("control", "shutdown_request", {"restart": False}), seconds=5)
    wait_until(lambda: kernel.wishes == [Wish.CANCEL], "the wish", 5)


def test_an_answer_goes_to_the_client_that_asked_and_output_to_all(channels: Channels, kernel: MadeKernel) -> None:
    with joined(channels) as first, joined(channels) as second:
        opened(channels)
        asked = first.send("1")
        [message] = heard(kernel, 1)
        channels.deliver(cell_of(message, "out"))
        assert first.finish(asked).text == "out"
        wait_until(lambda: len(second.seen()) >= 3, "the output at the other client", 5)
        assert not second.has_answer(asked)


def test_buffers_pass_unchanged_both_ways(channels: Channels, kernel: MadeKernel, client: Client) -> None:
    opened(channels)
    session = client.kernel.session
    session.send(client.kernel.shell_channel.socket, session.msg("comm_msg"), buffers=[b"one", b"two" * 1000])
    [message] = heard(kernel, 1)
    assert [bytes(part) for part in message.parts[-2:]] == [b"one", b"two" * 1000]
    channels.deliver([answer_to(message, IOPUB, "comm_msg", {}, buffers=(b"three",))])
    echo = client.wait_for(lambda one: one["msg_type"] == "comm_msg", seconds=5)
    assert [bytes(buffer) for buffer in echo["buffers"]] == [b"three"]


def test_input_is_asked_of_the_client_that_ran_the_cell(channels: Channels, kernel: MadeKernel, client: Client) -> None:
    opened(channels)
    client.send("input()")
    [message] = heard(kernel, 1)
    channels.deliver([answer_to(message, STDIN, "input_request", {"prompt": "who? ", "password": False})])
    assert client.kernel.get_stdin_msg(timeout=5)["content"]["prompt"] == "who? "
    client.kernel.input("ada")
    assert kind_of(heard(kernel, 2)[1]) == "input_reply"
    assert kernel.heard[1].channel == STDIN


def test_a_message_with_another_key_is_dropped_and_the_next_is_served(
    channels: Channels, kernel: MadeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    opened(channels)
    key, client.kernel.session.key = client.kernel.session.key, b"another"
    client.send("evil")
    client.kernel.session.key = key
    client.send("good")
    [message] = heard(kernel, 1)
    assert json.loads(bytes(message.parts[-1]))["code"] == "good"
    assert "a message on channel 0 is dropped: wrong signature" in caplog.text


def test_progress_is_said_once_and_the_kernels_own_busy_is_swallowed(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    asked = client.send("1")
    channels.progress("pulling")
    client.wait_for(lambda one: one["msg_type"] == "stream", seconds=10)
    opened(channels)
    channels.deliver(cell_of(heard(kernel, 1)[0], "out"))
    cell = client.finish(asked)
    assert (cell.states, cell.text) == (["busy", "idle"], "out")


def test_a_hidden_cell_answered_early_is_run_later_and_what_it_says_then_is_discarded(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    channels.know(dict(DEFAULT_INFO), "8.1.5")
    probe = client.run(PROBE)
    assert probe.text == "p1IPyWidgets:8.1.5\n"
    seen = len(client.seen())
    opened(channels)
    channels.deliver(cell_of(heard(kernel, 1)[0], "p1IPyWidgets:8.1.5\n"))
    asked = client.send("1")
    channels.deliver(cell_of(heard(kernel, 2)[1]))
    client.finish(asked)
    assert {one["parent_header"]["msg_id"] for one in client.seen()[seen:]} == {asked}
    assert kernel.widgets == []


def test_the_version_that_the_probe_really_prints_is_learned(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    opened(channels)
    asked = client.send(PROBE)
    channels.deliver(cell_of(heard(kernel, 1)[0], "p1IPyWidgets:8.1.5\n"))
    assert client.finish(asked).text == "p1IPyWidgets:8.1.5\n"
    assert kernel.widgets == ["8.1.5"]


def test_debugging_is_refused_where_it_must_be_off(channels: Channels, kernel: MadeKernel, client: Client) -> None:
    opened(channels, refuse_debug="not on the host's network")
    request = client.ask("control", "debug_request", {"seq": 1, "command": "initialize"})
    said = client.answer(request, seconds=5)["content"]
    assert (said["success"], said["message"]) == (False, "not on the host's network")
    assert kernel.heard == []


# -- lost, ended, again


def test_a_lost_link_keeps_cells_for_later_and_answers_what_is_urgent(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    opened(channels)
    running = client.send("long")
    [message] = heard(kernel, 1)
    channels.deliver(cell_of(message)[:1])
    channels.lose(LinkLost(host="lab"))
    info = client.ask("shell", "kernel_info_request")
    assert client.answer(info, seconds=5)["content"]["status"] == "ok"
    # Its idle does not hide that a cell runs there.
    client.wait_for(lambda one: states_of(client)[-1:] == [(running, "busy")], seconds=5)
    interrupted = client.answer(client.ask("control", "interrupt_request"), seconds=5)["content"]
    assert (interrupted["status"], interrupted["ename"]) == ("error", "LinkLost")
    assert client.answer(client.ask("control", "shutdown_request"), seconds=5)["content"]["status"] == "ok"
    client.send("later")
    assert kind_of(heard(kernel, 2)[1]) == "execute_request"
    assert client.kernel.is_alive()
    channels.find()
    client.ask("control", "interrupt_request")
    assert kind_of(heard(kernel, 3)[2]) == "interrupt_request"
    assert kernel.heard[2].channel == CONTROL


def states_of(client: Client) -> list[tuple[str, str]]:
    return [
        (one["parent_header"]["msg_id"], one["content"]["execution_state"])
        for one in client.seen()
        if one["msg_type"] == "status"
    ]


def test_the_end_of_a_kernel_is_told_to_all_who_wait_and_to_all_who_ask_later(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    opened(channels)
    first, second = client.send("os._exit(3)"), client.send("2")
    completed = client.ask("shell", "complete_request")
    heard(kernel, 3)
    channels.end(DIED)
    channels.end(DIED)  # Told twice, said once.
    assert "exit code 3" in client.finish(first).error
    assert client.finish(second).reply["status"] == "aborted"
    assert client.answer(completed, seconds=5)["content"]["ename"] == "KernelDied"
    assert "exit code 3" in client.run("3").error
    assert client.answer(client.ask("shell", "kernel_info_request"), seconds=5)["content"]["status"] == "ok"
    for restart, wish in ((True, Wish.RESTART), (False, Wish.CANCEL)):
        asked = client.ask("control", "shutdown_request", {"restart": restart})
        assert client.answer(asked, seconds=5)["content"] == {"status": "ok", "restart": restart}
        wait_until(partial(kernel.has_last, wish), "the wish", 5)
    wait_until(lambda: not client.kernel.is_alive(), "the heart to stop", 10)
    assert repr(channels) == "<Channels ended, 0 outstanding, 0 bytes held>"


def test_an_end_is_heard_once_a_cell_has_been_told(channels: Channels, kernel: MadeKernel, client: Client) -> None:
    channels.know(dict(DEFAULT_INFO), None)
    completed = client.ask("shell", "complete_request")
    channels.end(DIED)
    client.answer(completed, seconds=5)
    assert channels.end_heard_at is None
    before = time.monotonic()
    client.run("1")
    wait_until(lambda: channels.end_heard_at is not None and channels.end_heard_at >= before, "the end to be heard", 5)
    at = channels.end_heard_at
    client.run("2")
    assert channels.end_heard_at == at
    channels.wait("restarting the kernel")
    waits = client.send("3")
    client.answer(client.ask("shell", "kernel_info_request"), seconds=5)
    assert channels.end_heard_at is None
    channels.end(DIED)
    client.finish(waits)
    wait_until(lambda: channels.end_heard_at is not None, "the end to be heard", 5)


@pytest.mark.parametrize("has_ended", [False, True])
def test_an_end_that_a_client_asks_for_needs_no_cell(channels: Channels, client: Client, has_ended: bool) -> None:
    if has_ended:
        channels.end(DIED)
    # A restart joins the start that is under way.
    client.answer(client.ask("control", "shutdown_request", {"restart": True}), seconds=5)
    wait_until(lambda: channels.end_heard_at == (-math.inf if has_ended else None), "the wish", 5)
    client.answer(client.ask("control", "shutdown_request", {"restart": False}), seconds=5)
    wait_until(lambda: channels.end_heard_at == -math.inf, "the wish", 5)


def test_after_a_restart_cells_wait_again_and_go_to_the_new_launch(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    opened(channels)
    old = client.send("os._exit(0)")
    heard(kernel, 1)
    channels.wait("the kernel has ended", DIED)
    assert "exit code 3" in client.finish(old).error
    channels.wait("restarting the kernel")
    asked = client.send("1")
    client.answer(client.ask("shell", "kernel_info_request"), seconds=5)
    assert len(kernel.heard) == 1
    channels.open(launch=2, info=dict(DEFAULT_INFO))
    assert heard(kernel, 2)[1].launch == 2
    channels.deliver(cell_of(kernel.heard[1]))
    assert client.finish(asked).states == ["busy", "idle"]


# -- a client that does not read


def test_output_that_a_client_does_not_read_is_held_back_and_none_is_lost(
    channels: Channels, kernel: MadeKernel, client: Client
) -> None:
    opened(channels)
    client.send("flood")
    [message] = heard(kernel, 1)
    with zmq.Context() as context, context.socket(zmq.SUB) as slow:
        slow.rcvhwm, slow.rcvtimeo = 10, 5000
        slow.subscribe(b"stream")
        slow.connect(f"tcp://127.0.0.1:{channels.endpoints.ports[1]}")

        def is_heard() -> bool:
            say(channels, message, "first")
            return bool(slow.poll(10))

        wait_until(is_heard, "the subscription", 5)
        count, piece = 1900, "x" * 40_000
        for number in range(count):
            say(channels, message, f"{number:08d}{piece}")
        wait_until(lambda: channels.is_congested, "the backlog", 10)
        assert "bytes held" in repr(channels)
        numbers: list[int] = []
        while len(numbers) < count:
            if (text := json.loads(slow.recv_multipart()[-1])["text"]) != "first":
                numbers.append(int(text[:8]))
        assert numbers == list(range(count))
        assert not channels.is_congested


def say(channels: Channels, message: Message, text: str) -> None:
    """The kernel prints something."""
    channels.deliver([answer_to(message, IOPUB, "stream", {"name": "stdout", "text": text})])


# -- binding


def test_what_comes_after_the_end_goes_nowhere_and_is_no_error(
    board: Switchboard, kernel: MadeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    channels = Channels(board, loopback(), session="s", info={}, owner=kernel)
    channels.close().result(5)
    asked = Message(IOPUB, 1, [b"me", messages.DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"])
    channels.deliver(cell_of(asked, "out"))
    channels.end(DIED)
    board.call(lambda: None).result(5)
    assert caplog.text == ""


def test_ports_that_are_taken_are_an_error_and_none_stays_bound(board: Switchboard, kernel: MadeKernel) -> None:
    first = Channels(board, loopback(), session="s", info={}, owner=kernel)
    ports = first.endpoints.ports
    free = endpoints.given({**first.endpoints.connection_info(), "key": "k", "shell_port": 0, "hb_port": ports[4]})
    with pytest.raises(OSError, match=r"cannot bind tcp endpoints at 127\.0\.0\.1"):
        Channels(board, free, session="s", info={}, owner=kernel)
    assert repr(board) == "<Switchboard 1 kernels>"
    first.close().result(5)
    # ZMQ's own thread gives the ports back, a moment after the sockets were closed.
    wait_until(lambda: all(is_free(port) for port in ports), "the ports to be free again", 5)
    again = Channels(board, first.endpoints, session="s", info={}, owner=kernel)
    assert again.endpoints.ports == ports
    again.close().result(5)
    assert repr(board) == "<Switchboard 0 kernels>"


def test_the_names_of_ipc_sockets_can_be_put_back_when_jupyter_has_unlinked_them(
    board: Switchboard, kernel: MadeKernel, tmp_path: Path
) -> None:
    made = endpoints.made(runtime_folder=str(tmp_path))
    assert made.folder is not None
    channels = Channels(board, made, session="s", info=dict(DEFAULT_INFO), owner=kernel)
    with joined(channels):
        pass
    for port in made.ports:
        Path(f"{made.ip}-{port}").unlink()
    channels.endpoints.publish()
    with joined(channels):
        pass
    channels.close().result(5)
    assert not made.folder.exists()
