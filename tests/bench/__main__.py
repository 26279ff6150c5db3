"""Prints the figures: ours beside docker run and ssh -L on this machine, in alternating pairs, a fresh kernel for each.

python -m tests.bench [--pairs N] [--only WORD]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import cuts, idle, server
from tests.bench.figures import FIGURES, Figure
from tests.bench.ways import Place
from tests.rig.whole import missing, open_rig

# The first line after a cut: so soon, after the longest pause between two attempts.
FIRST_LINE_SECONDS = 1.0
PAUSE_SECONDS = 2.0
Row = list[str]


@contextmanager
def _opened() -> Iterator[Place]:
    reason = missing()
    if reason:
        raise SystemExit(f"The bench cannot run here: {reason}")
    with open_rig() as rig, tempfile.TemporaryDirectory() as folder:
        laptop = rig.laptop(Path(folder))
        laptop.write_environment(rig.image)
        yield Place(rig=rig, laptop=laptop)


@contextmanager
def _line(place: Place, *, alias: str, far_seconds: float = 0.0) -> Iterator[Place]:
    """The line of a figure: straight, through the proxy, or also through a jump host."""
    place = replace(place, alias=alias)
    place.laptop.write_environment(place.rig.image, host={"ssh": place.alias})
    far: AbstractContextManager[object] = place.rig.proxy.delay(far_seconds) if far_seconds else nullcontext()
    with far:
        yield place


def _measure(figure: Figure, place: Place, pairs: int) -> list[tuple[float, float]]:
    found = []
    with _line(place, alias=figure.alias, far_seconds=figure.far_seconds) as reached:
        for number in range(pairs + 1):
            pair = figure.ours(reached), figure.baseline(reached)
            # The first pair warms caches and opens the link of this process.
            if number:
                found.append(pair)
    return found


def _verdict(aim: str, is_met: bool) -> str:
    return f"{aim}: {'met' if is_met else 'MISSED'}"


def _row(figure: Figure, found: list[tuple[float, float]]) -> Row:
    compared = [figure.compare(*pair) for pair in found]
    middle = statistics.median(compared)
    medians = [statistics.median(values) for values in zip(*found, strict=True)]
    spread = f"{middle:.2f} ({min(compared):.2f} .. {max(compared):.2f})"
    digits = 0 if medians[0] > 1000 else 2
    values = [f"{median:.{digits}f}" for median in medians]
    return [figure.name, *values, figure.unit, spread, _verdict(figure.aim, figure.met(middle))]


def _just_opened(place: Place, pairs: int) -> list[Row]:
    fresh = server.just_opened_ms(place)
    return [["round trip, link just opened", f"{fresh:.2f}", "-", "ms", "-", _verdict("below 15 ms", fresh < 15)]]


def _cuts(place: Place, pairs: int) -> list[Row]:
    with _line(place, alias="lab-proxied") as reached:
        seen = list(cuts.cuts(reached, pairs))
    lost, by_hand = [one.lost for one in seen], [one.lost_by_hand for one in seen]
    replies, replies_by_hand = sum(one.replies for one in seen), sum(one.replies_by_hand for one in seen)
    is_met = not any(lost) and replies == 2 * len(seen)
    first = [one.first_seconds for one in seen]
    limit = FIRST_LINE_SECONDS + PAUSE_SECONDS
    return [
        [
            "lines lost in a cut of 5 s, two cells / ssh -L", f"{statistics.median(lost):.0f}",
            f"{statistics.median(by_hand):.0f}", "lines",
            f"{min(lost)} .. {max(lost)} / {min(by_hand)} .. {max(by_hand)}", _verdict("none", is_met),
        ],
        [
            "replies that came of them", str(replies), str(replies_by_hand), "replies", f"of {2 * len(seen)}",
            _verdict("all", is_met),
        ],
        [
            "first line after a cut of 5 s", f"{statistics.median(first):.2f}", "-", "s",
            f"{statistics.median(first):.2f} ({min(first):.2f} .. {max(first):.2f})",
            _verdict(f"at most {limit:.0f} s", max(first) <= limit),
        ],
    ]  # fmt: skip


def _idle(place: Place, pairs: int) -> list[Row]:
    seen = idle.idle(place)
    there = ", ".join(f"{kind} {percent:.2f}" for kind, percent in seen.percent_there.items())
    return [
        [
            "idle, memory here for each kernel", f"{seen.mib_per_kernel:.2f}", "-", "MiB",
            f"{idle.MANY - idle.FEW} more than {idle.FEW}, which takes {seen.mib_with_few:.0f} MiB",
            _verdict("at most 2 MiB", seen.mib_per_kernel <= 2),
        ],
        [
            f"idle, {idle.MOST} kernels, processor here", f"{seen.percent:.2f}", "-", "% of a core",
            f"over {idle.WATCHED_SECONDS:.0f} s", _verdict("below 1 %", seen.percent < 1),
        ],
        [f"idle, {idle.MOST} kernels, processor there", f"{sum(seen.percent_there.values()):.2f}", "-", "% of a core",
         there, "-"],
    ]  # fmt: skip


# What is no pair of figures: the names of its rows, and what measures it.
OTHERS: dict[str, Callable[[Place, int], list[Row]]] = {
    "round trip, link just opened": _just_opened,
    "lines lost in a cut, first line after a cut": _cuts,
    "idle, memory, processor": _idle,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs for each figure")
    parser.add_argument("--only", default="", help="only figures whose name has this in it")
    wanted = parser.parse_args()
    console = Console(width=220)
    table = Table("figure", "ours", "baseline", "unit", f"median of {wanted.pairs} pairs (spread)", "aim")

    def tell(row: Row) -> None:
        console.print("  ".join(row), f"  [load {os.getloadavg()[0]:.1f}]", markup=False)
        table.add_row(*row)

    with _opened() as place:
        for figure in FIGURES:
            if wanted.only in figure.name:
                tell(_row(figure, _measure(figure, place, wanted.pairs)))
        for name, rows in OTHERS.items():
            if wanted.only in name:
                for row in rows(place, wanted.pairs):
                    tell(row)
    console.print(table)


if __name__ == "__main__":
    main()
