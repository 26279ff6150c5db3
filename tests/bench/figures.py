"""The figures that are compared in pairs: what is measured, on which two ways, and what was aimed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import cuts, loading, measures, server, ways, workspaces
from tests.bench.ways import Place, Reached, Way


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: how it is measured, ours and the baseline, how these are compared, and what was aimed at."""

    name: str
    unit: str
    ours: Callable[[Place], float]
    baseline: Callable[[Place], float]
    compare: Callable[[float, float], float]
    aim: str
    met: Callable[[float], bool]
    # The way to the host (see Place), and how much longer the proxy makes each round trip.
    alias: str = "lab"
    far_seconds: float = 0.0


def on(way: Way, measure: Callable[[Reached], float]) -> Callable[[Place], float]:
    """Measure on a fresh kernel."""

    def measured(place: Place) -> float:
        with way(place) as reached:
            return measure(reached)

    return measured


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


def large(reached: Reached) -> float:
    """iopub in 1 MB messages, in MB/s."""
    return measures.output_mb_per_second(reached.client)


def small(reached: Reached) -> float:
    """iopub in messages of 200 bytes, how many a second."""
    return measures.small_messages_per_second(reached.client)


def many(reached: Reached) -> float:
    """How long a plain kernel takes for as many messages as the backlog has, in seconds."""
    return measures.delivery_seconds(reached.client, cuts.BACKLOG)


def at_most(limit: float) -> Callable[[float], bool]:
    """Whether a figure is small enough."""
    return lambda found: found <= limit


def at_least(limit: float) -> Callable[[float], bool]:
    """Whether a figure is large enough."""
    return lambda found: found >= limit


FIGURES = [
    Figure(
        name="start, modules loaded and link open / docker run", unit="s", ours=on(ways.provisioner, start),
        baseline=on(ways.docker_run, start), compare=ratio, aim="at most 1.35 times", met=at_most(1.35),
    ),
    Figure(
        name="start, cold launcher / docker run", unit="s", ours=on(ways.launcher, start),
        baseline=on(ways.docker_run, start), compare=ratio, aim="at most 1.9 times", met=at_most(1.9),
    ),
    Figure(
        name="kernelbridge --help / python -c pass", unit="s", ours=loading.command("--help"), baseline=loading.python,
        compare=ratio, aim="at most 8 times", met=at_most(8),
    ),
    Figure(
        name="kernelbridge --version / python -c pass", unit="s", ours=loading.command("--version"),
        baseline=loading.python, compare=ratio, aim="at most 8 times", met=at_most(8),
    ),
    Figure(
        name="kernelbridge ps without SSH / python -c pass", unit="s", ours=loading.command("ps"),
        baseline=loading.python, compare=ratio, aim="at most 40 times", met=at_most(40),
    ),
    Figure(
        name="kernelbridge ps / ssh HOST true", unit="s", ours=loading.listing("ps"), baseline=loading.ssh_true,
        compare=ratio, aim="at most 1.5 times", met=at_most(1.5), alias="lab-proxied",
    ),
    Figure(
        name="kernelbridge ps at 50 ms / ssh HOST true", unit="s", ours=loading.listing("ps"),
        baseline=loading.ssh_true, compare=ratio, aim="at most 1.5 times", met=at_most(1.5), alias="lab-proxied",
        far_seconds=0.05,
    ),
    Figure(
        name="kernelbridge gpus / ssh HOST true", unit="s", ours=loading.listing("gpus"), baseline=loading.ssh_true,
        compare=ratio, aim="at most 1.5 times", met=at_most(1.5), alias="lab-proxied",
    ),
    Figure(
        name="kernelbridge gpus at 50 ms / ssh HOST true", unit="s", ours=loading.listing("gpus"),
        baseline=loading.ssh_true, compare=ratio, aim="at most 1.5 times", met=at_most(1.5), alias="lab-proxied",
        far_seconds=0.05,
    ),
    Figure(
        name="launcher until its ports are bound / python -c pass", unit="s", ours=loading.bound_launcher,
        baseline=loading.python, compare=ratio, aim="at most 30 times", met=at_most(30),
    ),
    Figure(
        name="round trip, launcher - ssh -L", unit="ms", ours=on(ways.launcher, trip),
        baseline=on(ways.ssh_tunnel, trip), compare=difference, aim="at most 0.29 ms more", met=at_most(0.29),
    ),
    Figure(
        name="round trip, jupyter_server - ssh -L under jupyter_server", unit="ms", ours=on(server.ours, trip),
        baseline=on(server.ssh_tunnel, trip), compare=difference, aim="at most 1.54 ms more", met=at_most(1.54),
    ),
    Figure(
        name="1 MB iopub messages, launcher / ssh -L", unit="MB/s", ours=on(ways.launcher, large),
        baseline=on(ways.ssh_tunnel, large), compare=ratio, aim="at least 0.57 times", met=at_least(0.57),
    ),
    Figure(
        name="1 MB iopub messages at 50 ms, launcher / ssh -L", unit="MB/s", ours=on(ways.launcher, large),
        baseline=on(ways.ssh_tunnel, large), compare=ratio, aim="at least 2.57 times", met=at_least(2.57),
        alias="lab-proxied", far_seconds=0.05,
    ),
    Figure(
        name="1 MB iopub messages at 50 ms through a jump host, launcher / ssh -L", unit="MB/s",
        ours=on(ways.launcher, large), baseline=on(ways.ssh_tunnel, large), compare=ratio, aim="at least 1.5 times",
        met=at_least(1.5), alias="lab-behind", far_seconds=0.05,
    ),
    Figure(
        name="200 byte iopub messages, launcher / docker run", unit="1/s", ours=on(ways.launcher, small),
        baseline=on(ways.docker_run, small), compare=ratio, aim="at least 0.8 times", met=at_least(0.8),
    ),
    Figure(
        name="60,000 messages: backlog after a cut, nbclient's way / docker run", unit="s",
        ours=cuts.backlog_seconds, baseline=on(ways.docker_run, many), compare=ratio, aim="at most 2 times",
        met=at_most(2), alias="lab-proxied",
    ),
    Figure(
        name="workspace, first copy of 5,000 files / rsync", unit="s", ours=workspaces.first_copy(workspaces.MANY),
        baseline=workspaces.rsync_copy(workspaces.MANY), compare=ratio, aim="at most 1.3 times", met=at_most(1.3),
    ),
    Figure(
        name="workspace, first copy of 300 MB / rsync", unit="s", ours=workspaces.first_copy(workspaces.LARGE),
        baseline=workspaces.rsync_copy(workspaces.LARGE), compare=ratio, aim="at most 1.3 times", met=at_most(1.3),
    ),
    Figure(
        name="workspace, one changed file of 5,000 / rsync", unit="s", ours=workspaces.one_change,
        baseline=workspaces.rsync_change, compare=ratio, aim="at most 0.5 times", met=at_most(0.5),
    ),
]  # fmt: skip
