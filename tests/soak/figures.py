"""Memory, threads and descriptors of each process of ours, looked at again and again; how they grow, and the bounds."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# By the line of best fit, over the second half of a run: no process may grow by more. Memory is what is the process's
# own (USS); a heap breathes by some megabytes, which is why it is a bound on the whole and not on a rate.
MEMORY_MB, THREADS, DESCRIPTORS = 6.0, 2.0, 4.0
# A process that is a minute old still loads what it needs later, and opens links.
OF_MINUTES = {"memory (MB)": 30.0, "threads": 10.0, "descriptors": 40.0}
SHORT_MINUTES = 5.0
BOUNDS = {"memory (MB)": MEMORY_MB, "threads": THREADS, "descriptors": DESCRIPTORS}
# A process that was there for less of the second half is shown, and not judged.
LEAST_SHARE = 0.5
_PAGE_BYTES = 1e6


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at one process."""

    at: float
    memory_mb: float
    threads: int
    descriptors: int

    @property
    def values(self) -> dict[str, float]:
        """Each by its name."""
        return dict(zip(BOUNDS, (self.memory_mb, self.threads, self.descriptors), strict=True))


def look(process: psutil.Process, at: float) -> Sample | None:
    """Look at a process; None where it has ended."""
    with suppress(OSError, psutil.Error):
        private = 0
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_"):
                private += int(line.split()[1]) << 10
        with process.oneshot():
            return Sample(
                at=at, memory_mb=private / _PAGE_BYTES, threads=process.num_threads(), descriptors=process.num_fds()
            )
    return None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line of best fit."""
    if len({at for at, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([at for at, _ in points], [value for _, value in points]).slope


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How one figure of one process grew."""

    role: str
    pid: int
    figure: str
    first: float
    last: float
    per_minute: float
    minutes: float
    is_judged: bool

    @property
    def by_the_line(self) -> float:
        """By how much it grew over the time looked at, by the line of best fit."""
        return self.per_minute * self.minutes

    @property
    def is_flat(self) -> bool:
        """Whether it kept within its bound, or was there for too short a time to tell."""
        return not self.is_judged or self.by_the_line <= self.bound

    @property
    def bound(self) -> float:
        """By how much it may have grown."""
        return (OF_MINUTES if self.minutes < SHORT_MINUTES / 2 else BOUNDS)[self.figure]


@dataclass
class Watch:
    """All that was seen, by role and process."""

    seen: dict[tuple[str, int], list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def add(self, role: str, process: psutil.Process, at: float) -> None:
        """Look at a process once."""
        if (sample := look(process, at)) is not None:
            self.seen[role, process.pid].append(sample)

    def growths(self, began_at: float, ended_at: float) -> list[Growth]:
        """Return how each grew in the second half of a time."""
        half = (began_at + ended_at) / 2
        found = []
        for (role, pid), samples in self.seen.items():
            late = [one for one in samples if half <= one.at <= ended_at]
            if len(late) < 4:
                continue
            minutes = (late[-1].at - late[0].at) / 60
            for figure in BOUNDS:
                points = [(one.at / 60, one.values[figure]) for one in late]
                share = (late[-1].at - late[0].at) / (ended_at - half)
                facts = {"first": points[0][1], "last": points[-1][1], "per_minute": slope(points)}
                found.append(
                    Growth(role=role, pid=pid, figure=figure, minutes=minutes, is_judged=share >= LEAST_SHARE, **facts)
                )
        return found


class Watcher:
    """Looks at all processes every so many seconds, on a thread of its own."""

    def __init__(self, processes: Callable[[], Iterable[tuple[str, psutil.Process]]], *, every_seconds: float) -> None:
        self.watch = Watch()
        self._processes = processes
        self._every = every_seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)
        self.began_at = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(self._every):
            for role, process in self._processes():
                self.watch.add(role, process, time.monotonic())

    def close(self) -> None:
        """Look no more. Safe to call twice."""
        self._is_over.set()
        self._thread.join(60)


def table(growths: Iterable[Growth]) -> list[str]:
    """Return lines of text: for each role and figure the worst process that is judged, and the median of all."""
    groups: dict[tuple[str, str], list[Growth]] = defaultdict(list)
    for one in growths:
        groups[one.role, one.figure].append(one)
    lines = [f"{'':16} {'':12} {'processes':>9} {'first':>8} {'last':>8} {'slope/min':>10} {'grown':>7} {'bound':>6}"]
    for (role, figure), mine in sorted(groups.items()):
        judged = [one for one in mine if one.is_judged]
        worst = max(judged or mine, key=lambda one: one.by_the_line)
        mark = "" if all(one.is_flat for one in mine) else "  NOT FLAT"
        note = "" if judged else "  (none was there long enough)"
        lines.append(
            f"{role:16} {figure:12} {len(judged):4}/{len(mine):<4} {worst.first:8.1f} {worst.last:8.1f}"
            f" {worst.per_minute:10.3f} {worst.by_the_line:7.2f} {worst.bound:6.1f}{mark}{note}"
        )
    return lines
