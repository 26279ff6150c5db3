"""Run a target: so many examples, or so long; what fails is made short."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.limits import COUNTED_EVERY, bounded
from tests.fuzz.targets import Target

# Of one round of a long run: then another seed begins, as Hypothesis goes on near what it has.
_ROUND = 3000


@dataclass
class Figures:
    """What a run has done."""

    examples: int = 0
    seconds: float = 0.0
    # The shortest example that failed and what it raised; None if none did.
    failure: tuple[Any, Exception] | None = None


def check(target: Target, example: Any, *, counts_memory: bool = True) -> None:
    """Check one example. Raises what does not hold."""
    with bounded(example, counts_memory=counts_memory):
        target.check(example)


def run(target: Target, *, examples: int, number: int = 0, until: float = float("inf")) -> Figures:
    """Run so many examples, the same ones for the same number; or until a time, monotonic."""
    figures, began = Figures(), time.monotonic()
    last: list[Any] = [None]

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.made)
    def one(example: Any) -> None:
        if time.monotonic() > until and figures.failure is None:
            return
        figures.examples += 1
        last[0] = example
        try:
            check(target, example, counts_memory=figures.examples % COUNTED_EVERY == 0)
        except Exception as exc:
            figures.failure = (example, exc)
            raise

    try:
        one()
    except Exception as exc:
        # Hypothesis has made it short, and has run that last.
        figures.failure = figures.failure or (last[0], exc)
    figures.seconds = time.monotonic() - began
    return figures


def run_long(target: Target, *, minutes: float, number: int = 0) -> Figures:
    """Run for so long, or until something fails."""
    total, began = Figures(), time.monotonic()
    until = began + minutes * 60
    while time.monotonic() < until and total.failure is None:
        figures = run(target, examples=_ROUND, number=number, until=until)
        total.examples += figures.examples
        total.failure = figures.failure
        number += 1
    total.seconds = time.monotonic() - began
    return total
