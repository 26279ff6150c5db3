"""What happens in one world: settings, and a list of faults and requests, made from a seed; how it is made short."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.world.kernel import Plan


@dataclass(frozen=True)
class Happening:
    """One thing that happens, so many seconds after the start. What `kind` can be: see World."""

    at: float
    kind: str
    number: float = 0.0
    flag: bool = False
    plan: Plan | None = None


@dataclass(frozen=True)
class Schedule:
    """A world's whole course, but for what its parts draw from `seed` themselves."""

    seed: int
    happenings: tuple[Happening, ...]
    delay_seconds: float = 0.01
    bytes_per_second: float = 10_000_000.0
    # Whether its front-end drops what comes too fast.
    is_limited: bool = False
    journal_bytes: int = 1 << 28
    lost_grace: float = 3600.0
    idle_timeout: float | None = None
    max_lifetime: float | None = None
    persist: bool = False
    # How its last process goes: `stop`, `stop twice`, `detach`, `end` (it may be claimed), without a word (`vanish`),
    # or so while a cell runs (`amid`).
    farewell: str = "vanish"


_PLANS = (
    Plan(),
    Plan(outputs=0),
    Plan(outputs=5, pause=0.05),
    Plan(outputs=20, pause=0.3),
    Plan(outputs=12, pause=5.0),
    Plan(outputs=60, at_once=30, pause=0.02, size=200),
    Plan(outputs=40, at_once=8, pause=0.1, size=3000),
    Plan(outputs=3, pause=0.2, size=150_000),
    Plan(outputs=240, at_once=80, pause=0.1, size=4000),
)
# How often each comes; cells come besides.
_KINDS = {
    "cut": 6, "swallow": 4, "stall": 3, "offline": 3, "sleep": 3, "kill": 5, "take": 3, "detach": 2, "restart": 2,
    "kernel dies": 1, "relay dies": 0.3, "disk full": 1, "disk broken": 0.3, "interrupt": 2, "slow client": 1,
    "stuck client": 0.5, "reload": 2, "relay stopped": 1, "slow line": 2, "host sleeps": 0.5,
    "busy laptop": 3, "shutdown": 2, "rival": 1, "full at write": 1.5,
}  # fmt: skip


def made(seed: int) -> Schedule:
    """Return a schedule."""
    chance = random.Random(seed)
    happenings: list[Happening] = []
    at = chance.choice((0.0, 0.5, 3.0))
    for _ in range(chance.randrange(3, 14)):
        at += chance.choice((0.0, 0.01, 0.3, 0.3, 2.0, 2.0, 10.0, 30.0)) * chance.random()
        if chance.random() < 0.4:
            plan = chance.choice(_PLANS)
            if chance.random() < 0.03:
                plan = replace(plan, dies=True)
            happenings.append(Happening(at, "cell", plan=plan))
            if chance.random() < 0.35:
                # While its output, or the word that it has come, is on the way.
                at += chance.choice((0.1, 0.3, 1.0)) * chance.random()
                kind = chance.choice(("kill", "kill", "take", "cut", "swallow", "swallow"))
                happenings.append(Happening(at, kind, number=chance.random(), flag=chance.random() < 0.5))
            continue
        kind = chance.choices(list(_KINDS), list(_KINDS.values()))[0]
        number = chance.choice((0.1, 1.0, 5.0, 20.0, 60.0)) * chance.random()
        if kind in ("sleep", "offline", "host sleeps") and chance.random() < 0.2:
            number = chance.choice((600.0, 86400.0)) if kind == "sleep" else 600.0
        happenings.append(Happening(at, kind, number=round(number, 3), flag=chance.random() < 0.5))
    return Schedule(
        seed=seed,
        happenings=tuple(happenings),
        delay_seconds=chance.choice((0.001, 0.01, 0.01, 0.1, 0.3)),
        bytes_per_second=chance.choice((1e7, 1e7, 1e6, 2e5)),
        is_limited=chance.random() < 0.5,
        journal_bytes=chance.choice((1 << 28, 1 << 28, 64 * 1024)),
        lost_grace=chance.choice((600.0, 3600.0, 200_000.0)),
        idle_timeout=chance.choice((None, None, 1800.0)),
        farewell=chance.choice(("vanish", "amid", "stop", "detach", "stop twice", "end")),
        max_lifetime=chance.choice((None, None, None, None, 60.0, 5000.0)),
        persist=chance.random() < 0.15,
    )


def shrunk(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Return a schedule that fails still, of which nothing can be left out: happenings by halves, then one by one."""
    size = max(1, len(schedule.happenings) // 2)
    while True:
        is_shorter = False
        at = 0
        while at < len(schedule.happenings):
            kept = schedule.happenings[:at] + schedule.happenings[at + size :]
            tried = replace(schedule, happenings=kept)
            if fails(tried):
                schedule, is_shorter = tried, True
            else:
                at += size
        if size == 1 and not is_shorter:
            break
        size = max(1, size // 2)
    plain = Schedule(seed=schedule.seed, happenings=())
    for name in (
        "delay_seconds",
        "bytes_per_second",
        "is_limited",
        "journal_bytes",
        "lost_grace",
        "idle_timeout",
        "max_lifetime",
        "persist",
    ):
        tried = replace(schedule, **{name: getattr(plain, name)})
        if tried != schedule and fails(tried):
            schedule = tried
    return schedule
