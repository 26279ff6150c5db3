"""Choose what happens to whom and for how long, by a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

# What happens, how often beside the others, and for how many seconds. What happens at once has none.
KINDS: dict[str, tuple[float, float, float]] = {
    "cut": (3, 0.5, 8),
    "stall": (3, 1, 18),
    "swallow": (3, 1, 18),
    "half-open": (2, 0.5, 8),
    "reset": (3, 0, 0),
    "cable out": (2, 1, 10),
    "slow line": (1, 4, 10),
    "sshd killed": (2, 0, 0),
    "sshd away": (2, 1, 6),
    "bridges killed": (2, 0, 0),
    "dockerd restarted": (2, 0, 0),
    "dockerd stands": (2, 1, 10),
    "relay stands": (2, 1, 8),
    "laptop sleeps": (3, 5, 40),
    "launcher sleeps": (2, 2, 20),
    "page reloaded": (2, 0, 0),
    "kernel restarted": (1, 0, 0),
    "server stopped": (2, 0.5, 4),
    "server killed": (2, 0.5, 4),
    "owner killed": (3, 0, 2),
    "owner leaves": (2, 0, 2),
    "taken": (3, 0, 0),
    "GPU holder killed": (2, 0, 0),
    "Slurm's controller away": (1, 2, 8),
}
# These end the server's process: they come in the first half, so that in the second its memory can be looked at.
ENDS_THE_SERVER = ("server stopped", "server killed")
PAUSE_SECONDS = (1.0, 9.0)


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happens after a pause. `pick` is 0 to 1: which of those to whom it can happen."""

    number: int
    pause_seconds: float
    kind: str
    seconds: float
    pick: float

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.number:3} {self.kind}{lasts}"


def made(seed: int, *, scale: float = 1.0) -> Iterator[Event]:
    """Make events without end; the same for the same seed. `scale` makes pauses and faults shorter or longer.

    Every kind comes once before one comes again at random, so that a short run has met each.
    """
    chance = random.Random(seed)
    order = list(KINDS)
    chance.shuffle(order)
    weights = [often for often, _, _ in KINDS.values()]
    number = 0
    while True:
        kind = order.pop() if order else chance.choices(list(KINDS), weights)[0]
        _, least, most = KINDS[kind]
        pause, lasts, pick = chance.uniform(*PAUSE_SECONDS), chance.uniform(least, most), chance.random()
        yield Event(number=number, pause_seconds=pause * scale, kind=kind, seconds=lasts * scale, pick=pick)
        number += 1
