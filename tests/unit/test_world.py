"""tests/world: thousands of made-up courses of things, with the code of both ends; and that they would tell.

More of them: `python -m tests.world`. That each rule of the code is needed: `python -m tests.world.mutants`.
"""

from __future__ import annotations

import os
from unittest import mock

import pytest

from kernelbridge.protocol.session import SendLane
from tests.world import runs
from tests.world.kept import KEPT
from tests.world.mutants import MUTANTS, ROOT, Mutant
from tests.world.schedule import Schedule, made

# Each takes some 40 ms of a processor. scripts/mutants has fewer.
ENOUGH = 640
SCHEDULES = int(os.environ.get("KERNELBRIDGE_TEST_WORLDS", ENOUGH))


def test_nothing_is_lost_nothing_comes_twice_and_nothing_stays_behind_whatever_happens() -> None:
    """And each rare branch was reached: else this would tell less than it says."""
    figures = runs.run(runs.from_seed(0, SCHEDULES))
    assert figures.failures == []
    assert SCHEDULES < ENOUGH or figures.never == []


@pytest.mark.parametrize("name", KEPT)
def test_what_failed_once_does_not_again(name: str) -> None:
    assert runs.failure(KEPT[name]) == ""


def test_a_seed_tells_all_of_a_world() -> None:
    first, second = (runs.run([made(3), made(4)]) for _ in range(2))
    assert first.counts == second.counts
    assert first.simulated_hours == second.simulated_hours


def test_a_bug_is_found_and_its_schedule_made_short() -> None:
    """What was begun is forgotten at each new line."""
    forgets = mock.patch.object(SendLane, "rewind", lambda lane, number: (lane._sent.clear(), lane._again.clear()))
    with forgets:
        figures = runs.run(runs.from_seed(0, 100))
        ((schedule, how),) = figures.failures
        assert isinstance(schedule, Schedule)
        short = runs.shortened(schedule)
        assert how.partition(":")[0] in ("Broken", "AssertionError")
        assert len(short.happenings) < len(schedule.happenings)
        assert runs.failure(short)
    assert runs.failure(short) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_finds_what_it_breaks(mutant: Mutant) -> None:
    assert (ROOT / "kernelbridge" / mutant.path).read_text("utf-8").count(mutant.old) == 1
