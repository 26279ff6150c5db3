"""Run worlds: `python -m tests.world --seed N --schedules K`. Exits with 1 where one fails; prints it made short."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys

from tests.world import runs
from tests.world.kept import KEPT


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.world", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first world; the next has the next")
    parser.add_argument("--schedules", type=int, default=1000, help="how many worlds")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--no-table", action="store_true", help="print failures alone, not made short")
    given = parser.parse_args()
    schedules = runs.from_seed(given.seed, given.schedules)
    if not given.seed:
        schedules = itertools.chain(KEPT.values(), schedules)
    figures = runs.run(schedules, most_seconds=given.seconds)
    for schedule, how in figures.failures:
        print(f"seed {schedule if isinstance(schedule, int) else schedule.seed}: {how}")
        if not given.no_table and not isinstance(schedule, int):
            logging.disable(logging.CRITICAL)
            print(f"made short: {runs.shortened(schedule)!r}")
    if not given.no_table:
        print(
            f"{figures.schedules:,} schedules, {figures.simulated_hours:,.0f} simulated hours"
            f" in {figures.seconds:.0f} s ({figures.hours_per_minute:,.0f} hours a minute)"
        )
        for name in runs.SOMETIMES:
            print(f"{figures.counts[name]:9,}  {name}")
        for name in sorted(set(figures.counts) - set(runs.SOMETIMES)):
            print(f"{figures.counts[name]:9,}  ({name})")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
