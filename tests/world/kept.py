"""Schedules that failed once, made short: each stands for a bug that was found here."""

from __future__ import annotations

from tests.world.kernel import Plan
from tests.world.schedule import Happening, Schedule

KEPT = {
    # The kernel ends while a cell is on its way: the cell got its reason here, and a refusal from the relay as well.
    "a cell is answered once, though its kernel ended before it came": Schedule(
        seed=35,
        happenings=(
            Happening(3.224, "stall", number=2.834),
            Happening(4.530, "kernel dies"),
            Happening(4.824, "cell", plan=Plan(outputs=60, at_once=30, pause=0.02, size=200)),
        ),
    ),
    # A restart ended the interrupt here; its own reply came all the same.
    "an interrupt is answered once, though a restart ends it": Schedule(
        seed=193,
        happenings=(
            Happening(34.776, "cell", plan=Plan(outputs=60, at_once=30, pause=0.02, size=200)),
            Happening(43.653, "cell", plan=Plan(outputs=20, pause=0.3)),
            Happening(43.837, "cell", plan=Plan(outputs=0)),
            Happening(44.122, "interrupt"),
            Happening(44.128, "restart"),
        ),
    ),
    # A refusal was a reply alone: clients wait for the idle too.
    "a cell that came too late has an idle": Schedule(
        seed=41,
        happenings=(
            Happening(9.802, "swallow"),
            Happening(9.802, "restart"),
            Happening(9.802, "cell", plan=Plan()),
        ),
    ),
    # The first process did not hear that it was taken over; it came back with numbers of before, and missed as many.
    "who comes back after a take-over that it did not hear of loses nothing": Schedule(
        seed=18,
        happenings=(
            Happening(10.037, "cell", plan=Plan(outputs=3, pause=0.2, size=150_000)),
            Happening(10.174, "take", number=0.196),
            Happening(11.363, "cut", number=0.22),
        ),
        bytes_per_second=200_000.0,
        farewell="amid",
    ),
    # With an acknowledgement due, and nobody to hear it, the relay woke up each millisecond, for as long as the cut.
    "a relay that is alone sleeps": Schedule(
        seed=79,
        happenings=(Happening(5.0, "cell", plan=Plan()), Happening(5.1, "offline", number=600.0)),
    ),
    # A start was cancelled before it joined, and the restart behind it ordered launch 1, which the relay had had.
    "a restart has a number of its own, though the start before it was cancelled": Schedule(
        seed=291,
        happenings=(
            Happening(4.376, "restart", number=0.307),
            Happening(4.539, "stall", number=0.983, flag=True),
            Happening(4.539, "take", number=0.022, flag=True),
            Happening(5.147, "shutdown", number=24.339),
        ),
    ),
}
