"""relay/batching.py: how long output waits for company, and when it is a flood."""

from __future__ import annotations

import pytest

from kernelbridge.relay.batching import FLOOD_AT_ONCE, FLOOD_MESSAGES, FLOOD_SECONDS, GATHER_SECONDS, Batcher


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def flooded(gathering: Batcher, clock: Clock, *, at_once: int = FLOOD_AT_ONCE) -> None:
    for _ in range(FLOOD_MESSAGES // at_once + 1):
        for _ in range(at_once):
            gathering.output()
        clock.now += GATHER_SECONDS
        gathering.went()


def test_output_waits_for_more_from_the_first_message_on() -> None:
    clock = Clock()
    gathering = Batcher(clock)
    assert (gathering.is_on, gathering.waits(clock.now)) == (False, False)
    gathering.output()
    assert (gathering.is_on, gathering.waits(clock.now)) == (True, True)
    clock.now += GATHER_SECONDS * 0.9
    gathering.output()
    assert gathering.waits(clock.now)
    clock.now += GATHER_SECONDS * 0.2
    assert not gathering.waits(clock.now)
    gathering.went()
    assert not gathering.is_on


def test_a_reply_waits_for_nothing_and_takes_output_along_even_what_comes_behind_it() -> None:
    gathering = Batcher(Clock())
    gathering.output()
    gathering.other()
    gathering.output()
    assert (gathering.is_on, gathering.waits(100.0), gathering.nap_seconds) == (False, False, 0.0)
    gathering.went()
    gathering.output()
    assert gathering.is_on


def test_a_flood_is_looked_at_less_often_and_only_while_it_lasts() -> None:
    clock = Clock()
    gathering = Batcher(clock)
    flooded(gathering, clock)
    assert gathering.nap_seconds == 0.0  # Nothing is there yet: the first message is to be waited for, not slept over.
    gathering.output()
    assert gathering.nap_seconds == FLOOD_SECONDS
    assert repr(gathering) == f"<Batcher 1 after {FLOOD_AT_ONCE * (FLOOD_MESSAGES // FLOOD_AT_ONCE + 1)}>"
    gathering.went()  # One alone.
    gathering.output()
    assert gathering.nap_seconds == 0.0


def test_a_turn_in_which_nothing_came_does_not_end_a_flood() -> None:
    clock = Clock()
    gathering = Batcher(clock)
    flooded(gathering, clock)
    gathering.went()
    gathering.output()
    assert gathering.nap_seconds == FLOOD_SECONDS


@pytest.mark.parametrize("at_once", range(1, FLOOD_AT_ONCE))
def test_output_that_comes_by_the_piece_is_no_flood(at_once: int) -> None:
    clock = Clock()
    gathering = Batcher(clock)
    flooded(gathering, clock, at_once=at_once)
    gathering.output()
    assert gathering.nap_seconds == 0.0


def test_a_reply_ends_a_flood() -> None:
    clock = Clock()
    gathering = Batcher(clock)
    flooded(gathering, clock)
    gathering.other()
    gathering.went()
    gathering.output()
    assert gathering.nap_seconds == 0.0


def test_all_that_comes_behind_a_reply_goes_with_it() -> None:
    gathering = Batcher(Clock())
    gathering.other()
    for _ in range(3):
        gathering.output()
    assert not gathering.is_on


@pytest.mark.parametrize("ends", ["a reply", "one alone"])
def test_a_flood_is_so_many_messages_since_something_else_and_not_one_fewer(ends: str) -> None:
    gathering = Batcher(Clock())
    if ends == "a reply":
        gathering.other()
    else:
        gathering.output()
    gathering.went()
    for _ in range(FLOOD_MESSAGES - 1):
        gathering.output()
    gathering.went()
    gathering.output()
    assert gathering.nap_seconds == 0.0
    gathering.output()
    gathering.went()
    gathering.output()
    assert gathering.nap_seconds == FLOOD_SECONDS


def test_a_moment_is_over_when_it_is_over() -> None:
    clock = Clock()
    clock.now = 0.0
    gathering = Batcher(clock)
    gathering.output()
    assert gathering.waits(GATHER_SECONDS * 0.999)
    assert not gathering.waits(GATHER_SECONDS)
