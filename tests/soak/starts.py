"""Start and stop kernels one after the other, some hundreds of them: nothing may be left of any, nothing may grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import psutil

from tests.clients.page import ReturningServer
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig
from tests.soak.figures import Watch, slope
from tests.soak.scene import end_server, new_laptop, tree_of
from tests.soak.seats import Desk, LauncherSeat, PageSeat
from tests.soak.soak import left_by

Say = Callable[[str], None]
# Each fourth is a launcher's, which is a process of its own; the others are the server's.
LAUNCHER_EVERY = 4
# A launcher's container ends 15 s after its goodbye, and is removed by the next start on that host.
_MOST_AT_ONCE = 30
# By the line of best fit over the second half of the server's starts, for one start more. A heap breathes by megabytes,
# of which a short run has no more than a long one.
MEMORY_KB, THREADS, DESCRIPTORS = 30.0, 0.02, 0.02
# Shown, and not judged: another's heap; and what grows in a run of a few.
NOT_OURS = ("dockerd",)
FEWEST_JUDGED = 20
BREATHES = {"memory (MB)": 6.0, "threads": 2.0, "descriptors": 4.0}
PER_START = {"memory (MB)": MEMORY_KB / 1000, "threads": THREADS, "descriptors": DESCRIPTORS}


@dataclass(kw_only=True)
class StartsOutcome:
    """What so many starts and stops came to."""

    starts: int = 0
    seconds: float = 0.0
    flaws: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    # By role and figure: the value after the first start and after the last, and how much a start adds.
    grown: dict[tuple[str, str], tuple[float, float, float]] = field(default_factory=dict)

    @property
    def not_flat(self) -> list[str]:
        """What has grown by more than its bound: by the start, and by more than a heap breathes."""
        found = []
        for (role, figure), (_, _, each) in self.grown.items():
            if role in NOT_OURS or self.starts < FEWEST_JUDGED:
                continue
            if each > PER_START[figure] and each * self.starts / 2 > BREATHES[figure]:
                found.append(f"{role}: {figure} grows by {each:.3f} with each start")
        return found

    @property
    def holds(self) -> bool:
        """Whether every oracle holds."""
        return not self.flaws and not self.left and not self.not_flat

    def report(self) -> list[str]:
        """Return the summary as lines of text."""
        lines = [f"{self.starts} starts and stops in {self.seconds / 60:.1f} minutes"]
        lines.append(f"{'':16} {'':12} {'first':>8} {'last':>8} {'per start':>10} {'bound':>7}")
        for (role, figure), (first, last, each) in sorted(self.grown.items()):
            lines.append(f"{role:16} {figure:12} {first:8.1f} {last:8.1f} {each:10.4f} {PER_START[figure]:7.3f}")
        lines.append(f"{len(self.flaws)} wrong, {len(self.left)} left, {'not flat' if self.not_flat else 'all flat'}")
        wrong = [f"WRONG  {flaw}" for flaw in (*self.flaws, *self.not_flat)]
        return [*lines, *wrong, *(f"LEFT  {one}" for one in self.left)]


def run(rig: Rig, slurm: SlurmRig | None, *, starts: int, say: Say = print) -> StartsOutcome:
    """Start, use and stop so many kernels, one after the other."""
    outcome = StartsOutcome()
    with rig.engine.client() as client:
        volumes = [str(one.name) for one in client.volumes.list()]
    began = time.monotonic()
    with ExitStack() as undo:
        laptop = undo.enter_context(new_laptop(rig, ssh="lab-proxied", persists=False))
        server = ReturningServer(laptop.home / "server", env=laptop.variables)
        undo.callback(end_server, server)
        server.wait_ready()
        watch = Watch()
        for number in range(starts):
            try:
                _one(rig, laptop, server, number, outcome, undo)
            except Exception as exc:
                outcome.flaws.append(f"start {number}: {type(exc).__name__}: {exc}")
            for role, process in _watched(rig, server):
                watch.add(role, process, float(number))
            outcome.starts += 1
            if (number + 1) % 10 == 0:
                wrong = f", {len(outcome.flaws)} wrong" if outcome.flaws else ""
                say(f"{time.monotonic() - began:7.1f} s {number + 1} starts and stops{wrong}")
        outcome.grown = _grown(watch, starts)
        server.close(timeout=60)
        outcome.left = left_by((laptop,), rig, slurm, volumes)
    outcome.seconds = time.monotonic() - began
    return outcome


def _one(
    rig: Rig, laptop: Laptop, server: ReturningServer, number: int, outcome: StartsOutcome, undo: ExitStack
) -> None:
    if number % LAUNCHER_EVERY == 0:
        launcher = LauncherSeat(f"start-{number}", number, Desk(rig=rig, laptops=(laptop, laptop)))
        with ExitStack() as ends:
            ends.callback(launcher.end_processes)
            launcher.open()
            launcher.run_cell()
            launcher.check_ran()
            launcher.end()
        seat: LauncherSeat | PageSeat = launcher
    else:
        page = PageSeat(f"start-{number}", number, server)
        page.run_cell()
        page.check_ran()
        page.close()
        seat = page
    outcome.flaws += seat.flaws(slack_seconds=0.0)
    # Of the server's, and of launchers once their 15 s are over: what is stopped is gone before long.
    if (many := len(rig.engine.kernels())) > _MOST_AT_ONCE:
        outcome.flaws.append(f"start {number}: there are {many} containers")


def _watched(rig: Rig, server: ReturningServer) -> list[tuple[str, psutil.Process]]:
    found = [
        ("server" if number == 0 else "server's child", one) for number, one in enumerate(tree_of(server.process.pid))
    ]
    return [*found, ("dockerd", psutil.Process(rig.engine.pid))]


def _grown(watch: Watch, starts: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    found = {}
    for (role, _), samples in watch.seen.items():
        late = [one for one in samples if one.at >= starts / 2]
        if len(late) < 2:
            continue
        for figure in PER_START:
            points = [(one.at, one.values[figure]) for one in late]
            found[role, figure] = (samples[0].values[figure], late[-1].values[figure], slope(points))
    return found
