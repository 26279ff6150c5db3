"""tests/fuzz: some hundred examples for each target, the same ones each time; and that a bug would be found.

More of them: `python -m tests.fuzz --minutes 10 --target NAME`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz import runs
from tests.fuzz.kept import KEPT
from tests.fuzz.limits import TooLarge, TooSlow, bounded
from tests.fuzz.mutations import mutated_json
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused_in_a_bounded_time(name: str) -> None:
    figures = runs.run(TARGETS[name], examples=TARGETS[name].examples)
    assert figures.failure is None
    assert figures.examples >= TARGETS[name].examples // 2


@pytest.mark.parametrize(("name", "example"), KEPT, ids=[f"{at} {name}" for at, (name, _) in enumerate(KEPT)])
def test_what_failed_once_does_not_again(name: str, example: Any) -> None:
    runs.check(TARGETS[name], example, counts_memory=False)


def test_a_number_makes_the_same_examples_again() -> None:
    seen: list[list[Any]] = [[], []]
    for examples in seen:
        runs.run(Target(TARGETS["slurm"].made, examples.append), examples=100, number=3)
    assert seen[0] == seen[1]
    assert len({repr(one) for one in seen[0]}) > 25


# -- that it would tell


def _trusting(answer: Any) -> None:
    assert answer["State"]["ExitCode"] is not None


def _hanging(text: str) -> None:
    while "(null)" in text:
        continue


def _greedy(text: str) -> None:
    if "|" in text:
        bytearray(50_000_000)


def test_a_bug_is_found_and_its_example_made_short() -> None:
    figures = runs.run(Target(mutated_json([{"State": {"ExitCode": 0}}]), _trusting), examples=500)
    assert figures.failure is not None
    example, exc = figures.failure
    assert isinstance(exc, TypeError | KeyError | AssertionError)
    assert len(repr(example)) < 60


def test_what_hangs_is_ended() -> None:
    with pytest.raises(TooSlow, match="no end"), bounded("(null)", counts_memory=False, seconds=0.1):
        _hanging("(null)")


def test_memory_has_a_bound() -> None:
    with pytest.raises(TooLarge, match="bytes of memory for an example of 3"):
        runs.check(Target(st.none(), _greedy), "1|2")
