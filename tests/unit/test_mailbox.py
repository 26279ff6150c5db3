"""mailbox.py: calls come to the loop in order, in batches, from any thread, and no closed loop is an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial

import pytest

from kernelbridge.mailbox import LoopMailbox
from tests.rig.daemon import wait_until


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread of its own, as a fleet's does."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    with contextlib.suppress(RuntimeError):
        made.call_soon_threadsafe(made.stop)
    thread.join(5)
    made.close()


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread has woken it."""

    wakes = 0

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: object, **options: object) -> asyncio.Handle:
        self.wakes += 1
        return super().call_soon_threadsafe(callback, *args, **options)  # type: ignore[arg-type]


@pytest.fixture
def still() -> Iterator[CountingLoop]:
    """A loop that runs only when a test lets it."""
    made = CountingLoop()
    yield made
    made.close()


def turn(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop do what it has been asked up to now."""
    loop.run_until_complete(asyncio.sleep(0))


# -- post


async def test_what_comes_before_the_loop_looks_is_one_batch_in_order() -> None:
    came: list[int] = []
    mailbox = LoopMailbox()
    for number in range(3):
        mailbox.post(came.append, number)
    assert repr(mailbox) == "<LoopMailbox 3 waiting>"
    assert came == []
    await asyncio.sleep(0)
    assert came == [0, 1, 2]
    mailbox.post(came.append, 3)
    await asyncio.sleep(0)
    assert came == [0, 1, 2, 3]


def test_one_wake_up_serves_all_that_came_meanwhile(still: CountingLoop) -> None:
    came: list[int] = []
    mailbox = LoopMailbox(still)
    for number in range(100):
        mailbox.post(came.append, number)
    assert still.wakes == 1
    turn(still)
    assert came == list(range(100))
    mailbox.post(came.append, 100)
    assert still.wakes == 2


def test_what_is_posted_while_the_loop_is_at_it_comes_at_its_next_turn(still: CountingLoop) -> None:
    came: list[str] = []
    mailbox = LoopMailbox(still)

    def first() -> None:
        came.append("first")
        still.call_soon(came.append, "another's")
        mailbox.post(came.append, "third")

    mailbox.post(first)
    mailbox.post(came.append, "second")
    turn(still)
    assert came == ["first", "second", "another's", "third"]


def test_each_thread_keeps_its_order_and_nothing_is_lost(loop: asyncio.AbstractEventLoop) -> None:
    came: list[tuple[int, int]] = []
    mailbox = LoopMailbox(loop)

    def post(who: int) -> None:
        for number in range(5000):
            mailbox.post(came.append, (who, number))

    threads = [threading.Thread(target=post, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    wait_until(lambda: len(came) >= 10_000, "all calls", 10)
    for who in range(2):
        assert [number for one, number in came if one == who] == list(range(5000))


def test_calls_run_on_the_loops_thread(loop: asyncio.AbstractEventLoop) -> None:
    threads: list[threading.Thread] = []
    LoopMailbox(loop).post(lambda: threads.append(threading.current_thread()))
    wait_until(lambda: bool(threads), "the call", 5)
    assert threads[0] is not threading.current_thread()


def test_an_error_in_one_call_is_logged_and_the_next_is_made(
    still: CountingLoop, caplog: pytest.LogCaptureFixture
) -> None:
    came: list[int] = []
    mailbox = LoopMailbox(still)
    mailbox.post(int, "no number")
    mailbox.post(came.append, 1)
    with caplog.at_level(logging.ERROR):
        turn(still)
    assert came == [1]
    assert "no number" in caplog.text


# -- call


async def later(seconds: float, result: int) -> int:
    await asyncio.sleep(seconds)
    return result


async def fail() -> None:
    raise ValueError("no")


def test_a_coroutine_gives_its_result_or_its_error_to_the_thread_that_waits(loop: asyncio.AbstractEventLoop) -> None:
    mailbox = LoopMailbox(loop)
    assert mailbox.call(later(0.01, 7)).result(5) == 7
    with pytest.raises(ValueError, match="no"):
        mailbox.call(fail()).result(5)


def test_a_call_begins_after_what_was_posted_before_and_before_what_is_posted_after(still: CountingLoop) -> None:
    came: list[str] = []
    mailbox = LoopMailbox(still)

    async def middle() -> None:
        came.append("called")

    mailbox.post(came.append, "before")
    done = mailbox.call(middle())
    mailbox.post(lambda: still.call_soon(came.append, "after"))
    turn(still)
    turn(still)
    assert came == ["before", "called", "after"]
    assert done.result(0) is None


def test_a_cancelled_future_cancels_its_coroutine(loop: asyncio.AbstractEventLoop) -> None:
    began, ended = threading.Event(), Future[str]()

    async def endless() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.set_result("cancelled")
            raise

    future = LoopMailbox(loop).call(endless())
    assert began.wait(5)
    assert future.cancel()
    assert ended.result(5) == "cancelled"


def test_a_coroutine_that_is_cancelled_on_the_loop_cancels_its_future(loop: asyncio.AbstractEventLoop) -> None:
    async def cancel_me() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    with pytest.raises(CancelledError):
        LoopMailbox(loop).call(cancel_me()).result(5)


# -- a closed loop


def test_after_the_loop_is_closed_posting_does_nothing_and_calling_fails_at_once(still: CountingLoop) -> None:
    came: list[int] = []
    mailbox = LoopMailbox(still)
    mailbox.post(came.append, 0)  # Its loop closes before it comes.
    still.close()
    for number in range(3):
        mailbox.post(came.append, number)
    assert repr(mailbox) == "<LoopMailbox 0 waiting>"
    with pytest.raises(RuntimeError, match="loop is closed"):
        mailbox.call(later(0, 1)).result(0)
    assert came == []


def test_a_loop_that_closes_while_threads_post_is_no_error_to_them() -> None:
    loop = asyncio.new_event_loop()
    mailbox = LoopMailbox(loop)
    errors: list[BaseException] = []
    is_over = threading.Event()

    def post() -> None:
        try:
            while not is_over.is_set():
                mailbox.post(time.monotonic)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    loop.call_later(0.05, partial(loop.stop))
    loop.run_forever()
    loop.close()
    time.sleep(0.02)
    is_over.set()
    for thread in threads:
        thread.join(5)
    assert errors == []
