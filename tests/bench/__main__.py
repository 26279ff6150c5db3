"""Prints the figures: ours beside docker run and ssh -L on this machine, in alternating pairs, a fresh kernel for each.

python -m tests.bench [--pairs N] [--only WORD]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import measures, server, ways
from tests.bench.ways import Place, Reached, Way
from tests.rig.whole import missing, open_rig

FAR_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: what is measured on which two ways, how they are compared, and what was aimed at."""

    name: str
    unit: str
    ours: Way
    baseline: Way
    measure: Callable[[Reached], float]
    compare: Callable[[float, float], float]
    aim: str
    met: Callable[[float], bool]
    is_far: bool = False


def ratio(ours: float, baseline: float) -> float:
    """How many times the baseline ours is."""
    return ours / baseline


def difference(ours: float, baseline: float) -> float:
    """How much more ours is than the baseline."""
    return ours - baseline


def start(reached: Reached) -> float:
    """Launch to first execute reply, in seconds."""
    return reached.start_seconds


def trip(reached: Reached) -> float:
    """Execute round trip, p50 in ms."""
    return measures.round_trip_ms(reached.client)


def output(reached: Reached) -> float:
    """iopub in 1 MB messages, in MB/s."""
    return measures.output_mb_per_second(reached.client)


def at_most(limit: float) -> Callable[[float], bool]:
    """Whether a figure is small enough."""
    return lambda found: found <= limit


def at_least(limit: float) -> Callable[[float], bool]:
    """Whether a figure is large enough."""
    return lambda found: found >= limit


FIGURES = [
    Figure(
        name="start, modules loaded and link open / docker run", unit="s", ours=ways.provisioner,
        baseline=ways.docker_run, measure=start, compare=ratio, aim="at most 1.35 times", met=at_most(1.35),
    ),
    Figure(
        name="start, cold launcher / docker run", unit="s", ours=ways.launcher,
        baseline=ways.docker_run, measure=start, compare=ratio, aim="at most 1.9 times", met=at_most(1.9),
    ),
    Figure(
        name="round trip, launcher - ssh -L", unit="ms", ours=ways.launcher,
        baseline=ways.ssh_tunnel, measure=trip, compare=difference, aim="at most 1.0 ms more", met=at_most(1.0),
    ),
    Figure(
        name="round trip, jupyter_server - ssh -L under jupyter_server", unit="ms", ours=server.ours,
        baseline=server.ssh_tunnel, measure=trip, compare=difference, aim="at most 0.8 ms more", met=at_most(0.8),
    ),
    Figure(
        name="1 MB iopub messages, launcher / ssh -L", unit="MB/s", ours=ways.launcher,
        baseline=ways.ssh_tunnel, measure=output, compare=ratio, aim="at least 0.6 times", met=at_least(0.6),
    ),
    Figure(
        name="1 MB iopub messages at 50 ms, launcher / ssh -L", unit="MB/s", ours=ways.launcher,
        baseline=ways.ssh_tunnel, measure=output, compare=ratio, aim="at least 2.5 times", met=at_least(2.5),
        is_far=True,
    ),
]  # fmt: skip


@contextmanager
def _opened() -> Iterator[Place]:
    reason = missing()
    if reason:
        raise SystemExit(f"The bench cannot run here: {reason}")
    with open_rig() as rig, tempfile.TemporaryDirectory() as folder:
        laptop = rig.laptop(Path(folder))
        laptop.write_environment(rig.image)
        yield Place(rig=rig, laptop=laptop)


def _measure(figure: Figure, place: Place, pairs: int) -> list[tuple[float, float]]:
    far: AbstractContextManager[object] = nullcontext()
    if figure.is_far:
        far = place.rig.proxy.delay(FAR_SECONDS)
        place = replace(place, alias="lab-proxied")
    place.laptop.write_environment(place.rig.image, host={"ssh": place.alias})
    found = []
    with far:
        for number in range(pairs + 1):
            pair = []
            for way in (figure.ours, figure.baseline):
                with way(place) as reached:
                    pair.append(figure.measure(reached))
            # The first pair warms caches and opens the link of this process.
            if number:
                found.append((pair[0], pair[1]))
    return found


def _row(figure: Figure, found: list[tuple[float, float]]) -> list[str]:
    compared = [figure.compare(*pair) for pair in found]
    middle = statistics.median(compared)
    verdict = "met" if figure.met(middle) else "MISSED"
    medians = [statistics.median(values) for values in zip(*found, strict=True)]
    return [
        figure.name,
        f"{medians[0]:.2f}",
        f"{medians[1]:.2f}",
        figure.unit,
        f"{middle:.2f} ({min(compared):.2f} .. {max(compared):.2f})",
        f"{figure.aim}: {verdict}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs for each figure")
    parser.add_argument("--only", default="", help="only figures whose name has this in it")
    wanted = parser.parse_args()
    console = Console(width=200)
    table = Table("figure", "ours", "baseline", "unit", f"median of {wanted.pairs} pairs (spread)", "aim")
    with _opened() as place:
        for figure in FIGURES:
            if wanted.only in figure.name:
                row = _row(figure, _measure(figure, place, wanted.pairs))
                console.print("  ".join(row))
                table.add_row(*row)
        if wanted.only in "round trip, link just opened":
            fresh = server.just_opened_ms(place)
            verdict = "met" if fresh < 15 else "MISSED"
            table.add_row("round trip, link just opened", f"{fresh:.2f}", "-", "ms", "-", f"below 15 ms: {verdict}")
    console.print(table)


if __name__ == "__main__":
    main()
