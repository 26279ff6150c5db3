"""channels/proxy.py where clients come late, go and come back: order, held output, absent clients, a busy kernel found.

The rest of proxy.py, and the fixtures' reasons: test_proxy.py.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import zmq
from jupyter_client.session import Session

from kernelbridge.channels.poller import ZmqPoller
from kernelbridge.channels.proxy import KernelProxy
from kernelbridge.channels.rate_limit import Limits
from kernelbridge.channels.waiting import DEFAULT_INFO
from kernelbridge.errors import KernelDied
from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import CONTROL, IOPUB, SHELL, STDIN, Message
from tests.made_kernel import MadeKernel, answer_to, cell_of, kind_of
from tests.rig.daemon import SLOW, wait_until
from tests.unit.channels.test_proxy import heard, joined, loopback, opened, say

DIED = KernelDied(environment="torch", host="lab", how="exit code 3")
RUNNING = {"msg_id": "before", "msg_type": "execute_request", "session": "a page", "version": "5.3"}
MS = 50


@pytest.fixture
def proxy(poller: ZmqPoller, kernel: MadeKernel) -> Iterator[KernelProxy]:
    made = KernelProxy(poller, loopback(), session="kernel", info=dict(DEFAULT_INFO), owner=kernel.owner)
    yield made
    made.close().result(5)


class Page:
    """Sockets as jupyter_server opens them for a page, or for itself (no name): no client library in between."""

    def __init__(self, proxy: KernelProxy, name: bytes = b"") -> None:
        self._ports = proxy.endpoints.ports
        self.session = Session(key=proxy.endpoints.key)
        self._name = name
        self._context = zmq.Context()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}

    def open(self, *numbers: int) -> None:
        """Connect some proxy; shell, iopub, stdin, control have the numbers 0 to 3."""
        for number in numbers:
            sock = self._context.socket(zmq.SUB if number == IOPUB else zmq.DEALER)
            sock.linger, sock.rcvtimeo = 0, 5000
            if number == IOPUB:
                sock.subscribe(b"")
            elif self._name:
                sock.identity = self._name
            monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            sock.connect(f"tcp://127.0.0.1:{self._ports[number]}")
            # What is published before would be missed.
            assert monitor.poll(int(5000 * SLOW)), "no connection"
            sock.disable_monitor()
            monitor.close(linger=0)
            self._sockets[number] = sock

    def ask(self, kind: str, content: Any = None, *, channel: int = SHELL) -> str:
        message = self.session.msg(kind, content or {})
        self.session.send(self._sockets[channel], message)
        return str(message["header"]["msg_id"])

    def send_raw(self, content: bytes, *, kind: str = "execute_request") -> None:
        """A signed request whose content is these bytes."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind}
        parts = [json.dumps(header).encode(), b"{}", b"{}", content]
        self._sockets[SHELL].send_multipart([b"<IDS|MSG>", self.session.sign(parts), *parts])

    def next(self, channel: int) -> dict[str, Any]:
        _, parts = self.session.feed_identities(self._sockets[channel].recv_multipart())
        message: dict[str, Any] = self.session.deserialize(parts)
        return message

    def has(self, channel: int) -> bool:
        return bool(self._sockets[channel].poll(10))

    def all(self, channel: int, *, silent_ms: int = 4 * MS, is_awaited: bool = True) -> list[dict[str, Any]]:
        """What comes until nothing comes any more; the first, if it `is_awaited`, however long it takes."""
        came: list[dict[str, Any]] = []
        while self._sockets[channel].poll(int((5000 if is_awaited and not came else silent_ms) * SLOW)):
            came.append(self.next(channel))
        return came

    def close(self) -> None:
        self._context.destroy(linger=0)


@contextmanager
def page(proxy: KernelProxy, name: bytes, *numbers: int) -> Iterator[Page]:
    made = Page(proxy, name)
    made.open(*numbers)
    try:
        yield made
    finally:
        made.close()


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [one["content"]["text"] for one in messages if one["msg_type"] == "stream"]


def states(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Of which request, and what."""
    return [
        (one["parent_header"].get("msg_id", ""), one["content"]["execution_state"])
        for one in messages
        if one["msg_type"] == "status"
    ]


def request_of(who: bytes, name: str = "cell") -> Message:
    """A request that an earlier process of ours passed on."""
    header = json.dumps({**RUNNING, "msg_id": name}).encode()
    return Message(SHELL, 1, [who, b"<IDS|MSG>", b"", header, b"{}", b"{}", b"{}"])


# -- order


def test_a_reply_comes_behind_the_output_that_a_slow_client_holds_up(proxy: KernelProxy, kernel: MadeKernel) -> None:
    opened(proxy)
    with page(proxy, b"page", SHELL, CONTROL) as asker, page(proxy, b"", IOPUB) as slow:
        asker.ask("execute_request", {"code": "1"})
        [message] = heard(kernel, 1)

        def is_heard() -> bool:
            say(proxy, message, "first")
            return slow.has(IOPUB)

        wait_until(is_heard, "the subscription", 5)
        for _ in range(4000):
            say(proxy, message, "x" * 40_000)
        wait_until(lambda: proxy.acknowledged_lanes != frames.LANES, "the backlog", 10)
        proxy.deliver([answer_to(message, SHELL, "execute_reply", {"status": "ok"})])
        # Control goes by: its answer waits for no output.
        asker.ask("debug_request", channel=CONTROL)
        proxy.deliver([answer_to(heard(kernel, 2)[1], CONTROL, "debug_reply", {})])
        assert asker.next(CONTROL)["msg_type"] == "debug_reply"
        assert asker.all(SHELL, is_awaited=False) == []
        assert [len(text) for text in texts(slow.all(IOPUB, silent_ms=10 * MS)) if text != "first"] == [40_000] * 4000
        assert asker.next(SHELL)["msg_type"] == "execute_reply"


# -- a message that is none


@pytest.mark.parametrize("content", [b"[]", b"1", b"null", b"no json", b"[" * 100_000])
def test_a_content_that_is_no_table_harms_no_other_message(
    proxy: KernelProxy, kernel: MadeKernel, content: bytes
) -> None:
    proxy.set_kernel_info(dict(DEFAULT_INFO), "8.1.5")
    proxy.progress("pulling")
    with page(proxy, b"page", SHELL) as client:
        for kind in ("execute_request", "debug_request", "comm_msg", "shutdown_request", "kernel_info_request"):
            client.send_raw(content, kind=kind)
        client.ask("kernel_info_request")
        kinds = [one["msg_type"] for one in client.all(SHELL, silent_ms=10 * MS)]
        # Urgent ones do not wait for the others.
        assert sorted(kinds) == ["execute_reply", "kernel_info_reply", "kernel_info_reply", "shutdown_reply"]
        client.send_raw(content)
        opened(proxy)
        client.send_raw(content)
        client.ask("execute_request", {"code": "good"})
        wait_until(lambda: b"good" in bytes(kernel.heard[-1].parts[-1]) if kernel.heard else False, "the good one", 5)


def test_a_message_of_the_kernel_that_is_none_harms_no_other(
    proxy: KernelProxy, kernel: MadeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    opened(proxy)
    with joined_kernel(proxy, kernel) as (client, message):
        good = cell_of(message, "good")
        proxy.deliver([b"", good[0], answer_to(Message(IOPUB, 1, [b"me", b"<IDS|MSG>", b"", b"[]"]), SHELL, "x", 1)])
        proxy.deliver([b"\0", *good[1:]])
        client.wait_for(lambda one: one["msg_type"] == "stream", seconds=5)
    assert "a message of the kernel is dropped" in caplog.text


@contextmanager
def joined_kernel(proxy: KernelProxy, kernel: MadeKernel) -> Iterator[Any]:
    """A client, and a request of its."""
    with ExitStack() as stack:
        proxy.restarting()
        client = stack.enter_context(joined(proxy))
        opened(proxy)
        client.send("1")
        yield client, heard(kernel, 1)[-1]


# -- absent


def test_a_reply_to_a_client_that_is_gone_waits_for_it_and_hinders_no_other(
    proxy: KernelProxy, kernel: MadeKernel
) -> None:
    opened(proxy)
    with page(proxy, b"page", SHELL) as client:
        client.ask("execute_request", {"code": "1"})
        [message] = heard(kernel, 1)
    time.sleep(2 * MS * SLOW / 1000)
    with page(proxy, b"other", SHELL) as other:
        for count in range(2):
            proxy.deliver([answer_to(message, SHELL, "execute_reply", {"status": "ok", "execution_count": count})])
        other.ask("execute_request", {"code": "2"})
        proxy.deliver([answer_to(heard(kernel, 2)[1], SHELL, "execute_reply", {"status": "ok"})])
        assert other.next(SHELL)["msg_type"] == "execute_reply"
    with page(proxy, b"page", SHELL) as client:
        # At its first word, before the answer to that.
        client.ask("execute_request", {"code": "3"})
        proxy.deliver([answer_to(heard(kernel, 3)[2], SHELL, "execute_reply", {"execution_count": 2})])
        assert [client.next(SHELL)["content"]["execution_count"] for _ in range(3)] == [0, 1, 2]


def test_a_client_that_comes_back_and_does_not_speak_is_asked_for_input_all_the_same(
    proxy: KernelProxy, kernel: MadeKernel
) -> None:
    opened(proxy)
    request = request_of(b"page")
    proxy.deliver([answer_to(request, STDIN, "input_request", {"prompt": "who? "})])
    with page(proxy, b"page", STDIN) as client:
        assert client.next(STDIN)["content"]["prompt"] == "who? "


def test_a_reply_to_an_anonymous_client_that_is_gone_is_dropped(proxy: KernelProxy, kernel: MadeKernel) -> None:
    opened(proxy)
    with page(proxy, b"page", SHELL) as client:
        proxy.deliver([answer_to(request_of(b"\0\0\0\0\1"), SHELL, "execute_reply", {})])
        client.ask("execute_request")
        heard(kernel, 1)
    assert proxy._sockets.retry_at is None


# -- hold


def test_output_is_held_until_a_page_is_there_though_jupyter_servers_own_sockets_come_before(
    proxy: KernelProxy, kernel: MadeKernel
) -> None:
    proxy.hold_output()
    proxy.set_kernel_info(dict(DEFAULT_INFO), None)
    cell = request_of(b"page")
    with page(proxy, b"", IOPUB, SHELL, CONTROL) as server, page(proxy, b"page", IOPUB, SHELL, CONTROL) as client:
        opened(proxy)
        proxy.deliver(cell_of(cell, "missed"))
        # jupyter_server's nudge: anonymous, on both proxy, and it wants to hear something on the page's iopub.
        wait_until(lambda: nudged(server, client), "an answer to the nudge", 5)
        assert kernel.heard == []
        assert proxy.acknowledged_lanes != frames.LANES
        assert texts(server.all(IOPUB, is_awaited=False) + client.all(IOPUB, is_awaited=False)) == []
        # The page's own question is what it waited for.
        client.ask("kernel_info_request")
        said = client.all(IOPUB, silent_ms=10 * MS)
        assert texts(said) == ["missed"]
        replies = [one["msg_type"] for one in client.all(SHELL)]
        assert replies == ["kernel_info_reply", "execute_reply"]
        assert proxy.acknowledged_lanes == frames.LANES
        # From here the kernel answers.
        client.ask("kernel_info_request")
        assert kind_of(heard(kernel, 1)[0]) == "kernel_info_request"


def nudged(server: Page, client: Page) -> bool:
    """Whether a nudge had its answers."""
    for channel in (SHELL, CONTROL):
        server.ask("kernel_info_request", channel=channel)
        assert server.next(channel)["msg_type"] == "kernel_info_reply"
    return bool(states(client.all(IOPUB, silent_ms=MS, is_awaited=False)))


def test_a_client_that_subscribes_late_misses_nothing(proxy: KernelProxy, kernel: MadeKernel) -> None:
    proxy.hold_output()
    opened(proxy)
    proxy.deliver(cell_of(request_of(b"page"), "missed"))
    with page(proxy, b"page", SHELL) as client:
        client.ask("kernel_info_request")
        assert [one["msg_type"] for one in client.all(SHELL, silent_ms=20 * MS)] == ["kernel_info_reply"]
        client.open(IOPUB)
        assert texts(client.all(IOPUB, silent_ms=10 * MS)) == ["missed"]


def test_other_requests_pass_to_the_kernel_while_its_output_is_held(proxy: KernelProxy, kernel: MadeKernel) -> None:
    proxy.hold_output()
    opened(proxy)
    with page(proxy, b"", SHELL) as server:
        server.ask("complete_request")
        assert kind_of(heard(kernel, 1)[0]) == "complete_request"


def test_a_plain_client_hears_all_that_was_held(proxy: KernelProxy, kernel: MadeKernel) -> None:
    proxy.hold_output()
    opened(proxy)
    proxy.deliver(cell_of(request_of(b"page"), "missed"))
    # wait_for_ready throws away what it reads: look at its socket's own words instead.
    with page(proxy, b"plain", SHELL, IOPUB, STDIN, CONTROL) as client:
        client.ask("kernel_info_request")
        assert texts(client.all(IOPUB, silent_ms=10 * MS)) == ["missed"]


def test_a_page_that_asked_before_the_output_was_held_hears_all_that_was_held(
    proxy: KernelProxy, kernel: MadeKernel
) -> None:
    proxy.set_kernel_info(dict(DEFAULT_INFO), None)
    with page(proxy, b"page", IOPUB, SHELL) as client:
        client.ask("kernel_info_request")
        assert client.next(SHELL)["msg_type"] == "kernel_info_reply"
        proxy.hold_output()
        opened(proxy)
        proxy.deliver(cell_of(request_of(b"page"), "missed"))
        assert texts(client.all(IOPUB, silent_ms=10 * MS)) == ["missed"]
        assert proxy.acknowledged_lanes == frames.LANES


# -- a busy kernel that was found


def test_a_kernel_found_busy_is_busy_with_its_own_cell_and_its_end_is_told_there(
    proxy: KernelProxy, kernel: MadeKernel
) -> None:
    with page(proxy, b"page", SHELL, IOPUB) as client:
        client.ask("kernel_info_request")
        client.all(IOPUB)
        proxy.open(launch=1, info=dict(DEFAULT_INFO), busy=RUNNING)
        said = client.all(IOPUB)
        assert states(said) == [("before", "busy")]
        assert said[0]["parent_header"]["session"] == "a page"
        assert "1 outstanding" in repr(proxy)
        proxy.fail(DIED)
        said = client.all(IOPUB)
        assert [one["content"]["ename"] for one in said if one["msg_type"] == "error"] == ["KernelDied"]
        assert states(said) == [("before", "busy"), ("before", "idle")]
        assert said[-1]["parent_header"]["session"] == "a page"


def test_while_all_is_held_a_page_learns_that_the_kernel_is_busy_with_the_answer_to_its_question(
    proxy: KernelProxy, kernel: MadeKernel
) -> None:
    proxy.hold_output()
    proxy.open(launch=1, info=dict(DEFAULT_INFO), busy=RUNNING)
    proxy.deliver([answer_to(request_of(b"page", "before"), IOPUB, "stream", {"name": "stdout", "text": "on"})])
    with page(proxy, b"page", IOPUB, SHELL) as client:
        asked = client.ask("kernel_info_request")
        said = client.all(IOPUB, silent_ms=10 * MS)
        # One that subscribed before the thread came to `open` has heard it once already.
        assert states(said)[-3:] == [(asked, "busy"), (asked, "idle"), ("before", "busy")]
        assert set(states(said)[:-3]) <= {("before", "busy")}
        assert texts(said) == ["on"]
        proxy.deliver(cell_of(request_of(b"page", "before"))[1:])
        assert states(client.all(IOPUB, silent_ms=10 * MS)) == [("before", "idle")]
        assert "0 outstanding" in repr(proxy)


# -- notices and limits


def test_a_notice_is_printed_in_its_cell_behind_what_was_delivered(proxy: KernelProxy, kernel: MadeKernel) -> None:
    opened(proxy)
    with page(proxy, b"page", SHELL, IOPUB) as client:
        client.ask("execute_request")
        [message] = heard(kernel, 1)
        proxy.deliver(cell_of(message, "out")[:2])
        proxy.print_notice(RUNNING, "3 messages were dropped\n")
        proxy.print_notice({}, "nowhere\n")
        said = client.all(IOPUB)
    assert texts(said) == ["out", "3 messages were dropped\n", "nowhere\n"]
    assert (said[-2]["content"]["name"], said[-2]["parent_header"]) == ("stderr", RUNNING)
    assert (said[-2]["header"]["session"], said[-1]["parent_header"]) == ("kernel", {})


def test_output_that_is_paced_comes_when_it_is_due_signed_and_merged(poller: ZmqPoller, kernel: MadeKernel) -> None:
    limits = Limits(messages_per_second=50, stream_bytes_per_second=1e6, window_seconds=0.2)
    proxy = KernelProxy(poller, loopback(), session="kernel", info={}, owner=kernel.owner, limits=limits)
    opened(proxy)
    with page(proxy, b"page", SHELL, IOPUB) as client:
        client.ask("execute_request")
        [message] = heard(kernel, 1)
        began = time.monotonic()
        for number in range(100):
            say(proxy, message, f"{number} ")
        proxy.deliver([answer_to(message, SHELL, "execute_reply", {"status": "ok"})])
        assert client.next(SHELL)["msg_type"] == "execute_reply"
        assert time.monotonic() - began > 0.5
        said = texts(client.all(IOPUB))
    assert "".join(said) == "".join(f"{number} " for number in range(100))
    assert len(said) < 15
    proxy.close().result(5)
