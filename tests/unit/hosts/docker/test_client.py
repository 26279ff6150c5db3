"""hosts/docker/client.py: blocking calls in threads of their own, and sockets that are opened on the loop for them."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from kernelbridge.hosts.docker.client import OpenError, Sockets, in_thread
from kernelbridge.hosts.transport.stream import Receiver, Stream
from kernelbridge.mailbox import LoopMailbox
from tests.rig.daemon import wait_until


async def test_a_call_in_a_thread_gives_its_result_or_its_error() -> None:
    assert await in_thread(lambda: threading.current_thread().name, name="the call") == "kernelbridge the call"
    with pytest.raises(ValueError, match="no number"):
        await in_thread(lambda: int("no number"), name="the call")


async def test_what_a_call_posts_comes_before_its_result() -> None:
    came: list[int] = []
    mailbox = LoopMailbox()

    def work() -> None:
        for number in range(100):
            mailbox.post(came.append, number)

    await in_thread(work, name="the call")
    assert came == list(range(100))


async def test_a_cancelled_call_is_abandoned_and_its_thread_left_to_itself() -> None:
    is_over, ended, abandoned = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        is_over.wait(30)
        ended.set()

    call = asyncio.create_task(in_thread(work, name="the call", abandon=abandoned.set))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert abandoned.is_set()
    is_over.set()
    assert ended.wait(5)
    await asyncio.sleep(0.01)


def test_a_call_that_ends_after_its_loop_is_no_error() -> None:
    is_over, threads = threading.Event(), []

    def work() -> None:
        threads.append(threading.current_thread())
        is_over.wait(30)

    async def begin() -> None:
        call = asyncio.create_task(in_thread(work, name="the call"))
        await asyncio.sleep(0.01)
        call.cancel()

    asyncio.run(begin())
    is_over.set()
    wait_until(lambda: not threads[0].is_alive(), "the end of the thread", 5)


# -- Sockets


class Echo:
    """A stream that gives back what it is sent."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def write(self, data: bytes | memoryview) -> None:
        self._receiver.data_received(bytes(data))

    def unsent_bytes(self) -> int:
        return 0

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    async def drain(self) -> None:
        return

    def write_eof(self) -> None:
        return

    def close(self) -> None:
        return


async def test_a_connection_that_the_other_side_ends_is_noted_and_one_that_we_end_is_not() -> None:
    receivers: list[Receiver] = []

    async def keep(receiver: Receiver) -> Stream:
        receivers.append(receiver)
        return Echo(receiver)

    sockets = Sockets(keep)
    ours = await in_thread(sockets.connect, name="the call")
    ours.close()
    await asyncio.sleep(0.01)
    receivers[0].closed(None)
    assert not sockets.has_lost_one
    theirs = await in_thread(sockets.connect, name="the call")
    receivers[1].closed(None)
    assert sockets.has_lost_one
    theirs.close()


async def echo(receiver: Receiver) -> Stream:
    return Echo(receiver)


async def test_a_socket_that_is_opened_in_a_thread_leads_to_a_stream_of_the_loop() -> None:
    sockets = Sockets(echo)

    def ask() -> bytes:
        with sockets.connect() as sock:
            sock.settimeout(5)
            sock.sendall(b"hello")
            return sock.recv(5)

    assert await in_thread(ask, name="the call") == b"hello"
    await asyncio.sleep(0.01)
    assert repr(sockets) == "<Sockets 0 open>"


async def test_why_a_socket_cannot_be_opened_is_told_to_the_thread() -> None:
    async def refuse(receiver: Receiver) -> Stream:
        raise ConnectionRefusedError("not here")

    sockets = Sockets(refuse)
    with pytest.raises(OpenError) as told:
        await in_thread(sockets.connect, name="the call")
    assert isinstance(told.value.reason, ConnectionRefusedError)


def test_a_socket_that_is_opened_after_the_loop_has_closed_is_an_error_at_once() -> None:
    async def made() -> Sockets:
        return Sockets(echo)

    sockets = asyncio.run(made())
    opened: list[socket.socket] = []
    with pytest.raises(OpenError, match="loop is closed"):
        opened.append(sockets.connect())
    assert opened == []
