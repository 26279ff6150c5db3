"""hosts/transport/stream.py: the end of a stream is told once, and who waits for room is let go."""

from __future__ import annotations

import asyncio

import pytest

from kernelbridge.hosts.transport.stream import Collector, Ending, OutputTooLong
from tests.unit.hosts.transport.test_pool import turns


class Broken:
    """A receiver with a bug."""

    def __init__(self) -> None:
        self.ends: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        raise RuntimeError("a bug")

    def closed(self, exc: Exception | None) -> None:
        self.ends.append(exc)


async def test_the_end_is_told_once_and_no_data_comes_after_it() -> None:
    collector = Collector()
    ending = Ending(collector)
    assert ending.hand_on(b"one")
    ending.end(None)
    ending.end(ValueError("late"))
    assert ending.hand_on(b"two")
    await collector.wait_ended()
    assert (bytes(collector.received), collector.failure) == (b"one", None)


async def test_a_receiver_with_a_bug_ends_its_own_stream_only() -> None:
    broken = Broken()
    ending = Ending(broken)
    assert not ending.hand_on(b"x")
    assert ending.has_ended
    await turns()
    assert [type(exc) for exc in broken.ends] == [RuntimeError]


async def test_output_without_end_ends_its_own_stream(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector(limit_bytes=5 << 20)
    ending = Ending(collector)
    assert all(ending.hand_on(b"x" * (1 << 20)) for _ in range(5))
    assert not ending.hand_on(b"x")
    await collector.wait_ended()
    assert isinstance(collector.failure, OutputTooLong)
    assert str(collector.failure) == "more than 5 MiB"
    assert caplog.records == []


async def test_who_waits_for_a_short_queue_is_let_go_at_the_end() -> None:
    ending = Ending(Collector())
    ending.pause_writing()
    waiting = asyncio.create_task(ending.wait_writable())
    await turns()
    assert not waiting.done()
    ending.end(None)
    await asyncio.wait_for(waiting, 5)


async def test_who_is_told_by_other_means_hears_no_end() -> None:
    broken = Broken()
    ending = Ending(broken)
    ending.abandon()
    ending.end(None)
    assert ending.hand_on(b"x")
    await turns()
    assert broken.ends == []
