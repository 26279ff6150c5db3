"""fleet/loop.py: what a loop on a thread of its own does for callers that have none, and for them at its end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest

from kernelbridge.fleet.loop import LoopThread


async def _thread_name() -> str:
    return threading.current_thread().name


async def _for_ever(begun: threading.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


def test_coroutines_run_on_its_own_thread_and_bring_back_what_they_return() -> None:
    loop = LoopThread("kernelbridge-test")
    assert loop.run(_thread_name(), 5) == "kernelbridge-test"
    assert loop.submit(_thread_name()).result(5) == "kernelbridge-test"
    loop.close()


def test_an_exception_comes_back_to_who_called() -> None:
    async def fail() -> None:
        raise ValueError("no")

    loop = LoopThread("kernelbridge-test")
    with pytest.raises(ValueError, match="no"):
        loop.run(fail(), 5)
    loop.close()


def test_a_call_that_takes_too_long_is_given_up_and_the_loop_goes_on() -> None:
    loop = LoopThread("kernelbridge-test")
    with pytest.raises(TimeoutError):
        loop.run(_for_ever(threading.Event()), 0.01)
    assert loop.run(_thread_name(), 5)
    loop.close()


def test_its_end_is_told_to_who_waits_and_can_be_asked_for_twice() -> None:
    loop, begun = LoopThread("kernelbridge-test"), threading.Event()
    future = loop.submit(_for_ever(begun))
    assert begun.wait(5)
    assert repr(loop) == "<LoopThread kernelbridge-test, running>"
    loop.close()
    with pytest.raises(CancelledError):
        future.result(5)
    loop.close()
    assert repr(loop) == "<LoopThread kernelbridge-test, closed>"
