"""channels/sockets.py: replies wait for clients that are not connected. The sockets themselves: test_proxy.py."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zmq

from kernelbridge.channels import endpoints
from kernelbridge.channels.messages import Signer
from kernelbridge.channels.sockets import (
    KEPT_SECONDS,
    REPLY_RETRY_SECONDS,
    UNREAD_BYTES,
    KernelSockets,
    PendingReplies,
    ReplyAddress,
)
from kernelbridge.protocol.frames import CONTROL, DELIMITER, IOPUB, SHELL, Buffer

PAGE, OTHER = (SHELL, b"page"), (CONTROL, b"other")


class Present:
    """Who is there."""

    def __init__(self, *present: ReplyAddress) -> None:
        self.present = present
        self.got: list[tuple[ReplyAddress, bytes]] = []

    def send(self, address: ReplyAddress, parts: Sequence[Buffer]) -> bool:
        if address in self.present:
            self.got.append((address, bytes(parts[-1])))
        return address in self.present


def test_replies_wait_for_their_client_in_order_and_do_not_hinder_others() -> None:
    pending = PendingReplies()
    for number, address in enumerate([PAGE, OTHER, PAGE]):
        assert pending.keep(address, [address[1], memoryview(b"%d" % number)], 100.0) == 0
    assert repr(pending) == "<PendingReplies 2 clients, 16 bytes>"
    there = Present(OTHER)
    assert pending.retry(100.0 + REPLY_RETRY_SECONDS - 0.1, there.send) == 0
    assert there.got == []
    assert pending.retry(100.0 + REPLY_RETRY_SECONDS, there.send) == 0
    assert there.got == [(OTHER, b"1")]
    assert (PAGE in pending, OTHER in pending) == (True, False)
    there.present = (PAGE,)
    pending.offer(PAGE, lambda parts: there.send(PAGE, parts))
    assert there.got[1:] == [(PAGE, b"0"), (PAGE, b"2")]
    assert (bool(pending), pending.bytes) == (False, 0)


def test_replies_to_who_does_not_come_back_are_forgotten_after_a_while() -> None:
    pending = PendingReplies()
    pending.keep(PAGE, [b"old"], 0.0)
    pending.keep(PAGE, [b"new"], 5.0)
    assert pending.retry(KEPT_SECONDS + 1, Present().send) == 1
    assert pending.bytes == 3
    assert pending.retry(KEPT_SECONDS + 10, Present().send) == 1
    assert not pending


def test_over_the_bound_the_oldest_replies_go_whoever_they_are_for() -> None:
    pending = PendingReplies(limit_bytes=10)
    for at, address in enumerate([PAGE, OTHER, PAGE]):
        assert pending.keep(address, [b"four"], float(at)) == (1 if at == 2 else 0)
    there = Present(PAGE, OTHER)
    pending.retry(100.0, there.send)
    assert sorted(address for address, _ in there.got) == [PAGE, OTHER]


# -- clients that do not read

PIECE = 4 << 20


class Stopped:
    """A kernel's sockets, and clients of them that do not read until they are told to."""

    def __init__(self, folder: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets = KernelSockets(Signer(b"k"))
        made = endpoints.made(runtime_folder=str(folder))
        bound = self.sockets.bind(self._context, made)
        made.publish()
        self.subscriber = self._context.socket(zmq.SUB)
        self.subscriber.subscribe(b"")
        self.asker = self._context.socket(zmq.DEALER)
        self.asker.routing_id = b"page"
        for sock, name in ((self.subscriber, "iopub"), (self.asker, "shell")):
            sock.rcvhwm, sock.linger = 1, 0
            sock.connect(bound.address(name))
        assert self.sockets.by_name["iopub"].poll(10_000)
        self.sockets.drain_subscriptions()
        self.asker.send(b"hello")
        assert self.sockets.by_name["shell"].poll(10_000)
        self.sockets.by_name["shell"].recv_multipart()

    def fill(self, channel: int, size: int = PIECE) -> int:
        """Send until there is no room; how many bytes went."""
        sent, refused_at = 0, None
        while refused_at is None or time.monotonic() - refused_at < 0.3:
            if self.sockets.send(channel, [b"page", b"x" * size]):
                sent, refused_at = sent + size, None
                assert sent < 10 * UNREAD_BYTES, "no end"
            else:
                refused_at = refused_at or time.monotonic()
                time.sleep(0.01)
        return sent

    def close(self) -> None:
        for sock in (self.subscriber, self.asker):
            sock.close()
        self.sockets.close()
        self._context.destroy(linger=0)


@pytest.fixture
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    made = Stopped(tmp_path_factory.mktemp("s"))
    yield made
    made.close()


@pytest.mark.parametrize("channel", [IOPUB, SHELL])
def test_a_client_that_does_not_read_holds_so_many_bytes_and_no_more(stopped: Stopped, channel: int) -> None:
    sent = stopped.fill(channel)
    # What the system's buffers and the client's own take comes on top.
    assert UNREAD_BYTES // 2 <= sent <= UNREAD_BYTES + 8 * PIECE
    sock = stopped.subscriber if channel == IOPUB else stopped.asker
    for _ in range(sent // PIECE):
        assert sock.poll(10_000)
        assert len(sock.recv_multipart()[-1]) == PIECE
    assert stopped.fill(channel) >= UNREAD_BYTES // 2, "who reads again gets more"


def test_a_client_that_is_gone_holds_nothing(stopped: Stopped) -> None:
    stopped.fill(IOPUB)
    stopped.subscriber.close()
    until = time.monotonic() + 20
    while stopped.sockets._unread[IOPUB].bytes > 2 * PIECE:
        assert time.monotonic() < until
        stopped.sockets.send(IOPUB, [b"t", b"x" * PIECE])
        time.sleep(0.01)


def test_a_message_longer_than_the_bound_goes_where_nothing_is_unread(stopped: Stopped) -> None:
    assert stopped.sockets.send(IOPUB, [b"t", b"x" * (UNREAD_BYTES + 1)])
    assert stopped.subscriber.poll(10_000)
    assert len(stopped.subscriber.recv_multipart()[-1]) == UNREAD_BYTES + 1


def test_where_a_client_is_to_lose_messages_nothing_waits_for_it(stopped: Stopped) -> None:
    stopped.fill(IOPUB)
    stopped.sockets.set_lossy(True)
    for _ in range(50):
        assert stopped.sockets.send(IOPUB, [b"t", DELIMITER, b"", b"{}", b'{"msg_id": "a"}', b"{}", b"x" * PIECE])
    assert stopped.sockets._unread[IOPUB].bytes <= UNREAD_BYTES
    assert stopped.sockets.take_lost() == {}, "who loses messages would lose that too"
    stopped.sockets.set_lossy(False)
    [(parent, (count, size_bytes))] = stopped.sockets.take_lost().items()
    assert parent == b'{"msg_id": "a"}'
    assert 40 < count <= 50
    assert PIECE * count < size_bytes < (PIECE + 100) * count
    assert stopped.sockets.take_lost() == {}
