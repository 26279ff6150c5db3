"""jupyter/vscode_launcher.py: how the launcher hears of its end. What it does meanwhile: the real tests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from kernelbridge.hosts.docker.client import CALL_SECONDS
from kernelbridge.jupyter.vscode_launcher import LAUNCHER_STOP_SECONDS, ParentWatcher
from kernelbridge.kernel.start.launch import REMOVE_SECONDS

# How many lines of Python a wait runs through, at most.
MOST_STEPS = 25


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_is_not_over_while_the_parent_lives_and_nothing_was_said() -> None:
    assert not ParentWatcher().is_over()


@pytest.mark.parametrize("step", range(MOST_STEPS))
def test_a_signal_ends_it_at_whatever_step_of_the_wait_it_comes(step: int) -> None:
    watch, steps = ParentWatcher(), iter(range(MOST_STEPS))

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if next(steps, None) == step:
            signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        watch.is_over()
    finally:
        sys.settrace(before)
    signal.raise_signal(signal.SIGTERM)
    assert watch.is_over()


def test_it_stays_until_what_an_engine_was_asked_for_is_made_and_removed_again() -> None:
    assert LAUNCHER_STOP_SECONDS > CALL_SECONDS + REMOVE_SECONDS
