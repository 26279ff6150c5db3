"""Run many worlds, count what they reach, and make what fails short: for the command line and for the tests."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.world.clock import FIRST_MOMENT
from tests.world.gpus import GpuWorld
from tests.world.schedule import Schedule, made, shrunk
from tests.world.world import World, system_calls

# Every so many worlds one of GPUs comes besides.
GPUS_EVERY = 5
# Rare branches, by what a world counts: a run of the suite's length has to reach each of them.
SOMETIMES = (
    "cell", "interrupt", "interrupted", "cut", "swallow", "stall", "offline", "sleep", "host sleeps", "slow line",
    "busy laptop",
    "kill", "take", "detach", "goodbye", "restart", "kernel dies", "relay dies", "relay stopped",
    "disk full", "disk broken", "slow client", "stuck client", "reload",
    "output came twice", "output came twice after a kill, as little as was promised",
    "output was dropped, and that was told",
    "ended by lost_grace", "ended by idle_timeout", "ended by unused", "ended by unjoined", "ended by delivered",
    "output waited longer than lost_grace", "a kernel got its cards", "another was faster",
    "a container is kept for its output", "gpus: kill", "gpus: sleep",
    "gpus: away", "gpus: end",
    "shutdown", "a kernel shut down as it was asked to", "a shutdown was asked while the kernel could not be asked",
    "rival", "full at write", "a disk was full at one write", "a stuck client has lost output",
    "ended by goodbye", "ended by max_lifetime", "kept for ever", "farewell: stop twice",
    "a start died between its container and its kernel",
)  # fmt: skip


@dataclass
class Figures:
    """What a run of many worlds came to."""

    schedules: int = 0
    simulated_hours: float = 0.0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    # Of the worlds that failed: the schedule (of one of GPUs: its seed), and how.
    failures: list[tuple[Schedule | int, str]] = field(default_factory=list)

    @property
    def hours_per_minute(self) -> float:
        return self.simulated_hours / max(self.seconds, 1e-9) * 60

    @property
    def never(self) -> list[str]:
        """What should have been reached and was not."""
        return [name for name in SOMETIMES if not self.counts[name]]


def failure(schedule: Schedule) -> str:
    """Return how a world fails; empty where it does not. Outside of `run`."""
    with system_calls() as calls:
        try:
            World(schedule, calls).run()
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"
    return ""


def run(schedules: Iterable[Schedule], *, most_failures: int = 1, most_seconds: float = float("inf")) -> Figures:
    """Run worlds until enough have failed, or the time is over."""
    figures = Figures()
    # Of the processor: other programs take nothing from it.
    clock = time.process_time
    began = clock()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with system_calls() as calls:
            for schedule in schedules:
                world = World(schedule, calls)
                try:
                    world.run()
                except Exception as exc:
                    figures.failures.append((schedule, f"{type(exc).__name__}: {exc}"))
                figures.schedules += 1
                figures.simulated_hours += world.seconds / 3600
                figures.counts.update(world.counts)
                if schedule.seed % GPUS_EVERY == 0:
                    gpus = GpuWorld(schedule.seed, figures.counts)
                    try:
                        gpus.run()
                    except Exception as exc:
                        figures.failures.append((schedule.seed, f"{type(exc).__name__}: {exc}"))
                    figures.schedules += 1
                    figures.simulated_hours += (gpus.agenda.now - FIRST_MOMENT) / 3600
                if len(figures.failures) >= most_failures or clock() - began > most_seconds:
                    break
    finally:
        logging.disable(level)
    figures.seconds = clock() - began
    return figures


def from_seed(first: int, count: int) -> Iterable[Schedule]:
    return map(made, range(first, first + count))


def shortened(schedule: Schedule) -> Schedule:
    """Return the shortest schedule that fails in the same way, by its first words."""
    words = failure(schedule)[:20]
    return shrunk(schedule, lambda tried: failure(tried)[:20] == words) if words else schedule
