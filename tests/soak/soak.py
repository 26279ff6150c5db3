"""Run a soak: everybody works, faults happen, everybody goes; then count what is lost, twice and left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from tests.clients.terminal import kernelbridge
from tests.rig.daemon import SLOW, RigError
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.whole import Rig
from tests.soak import events, leftovers
from tests.soak.figures import Growth, Watcher, table
from tests.soak.scene import Scene, opened
from tests.soak.schedule import ENDS_THE_SERVER, made
from tests.soak.tally import PROMISED_SECONDS, counted
from tests.soak.turns import Turns, doubles

Say = Callable[[str], None]
# A machine on which much else computes is behind by so much, and the promise of 2 s is counted by its clock.
SLACK_SECONDS = 2.0 * SLOW
# Containers end 15 s after a goodbye; the engine removes them, and processes end, in some seconds.
LEFT_SECONDS = 45.0 * SLOW
_FEWEST_LOOKS = 12


@dataclass(kw_only=True)
class Outcome:
    """What a soak came to. It holds where nothing is wrong, nothing is left, and all is flat."""

    seed: int
    minutes: float
    happened: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    # How long before a hand-over that was shown which came again, at the most.
    oldest_repeat_seconds: float = 0.0
    flaws: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every oracle holds."""
        return not self.flaws and not self.left and all(one.is_flat for one in self.growths)

    def of(self, words: str) -> int:
        """Count the flaws of one kind."""
        return sum(1 for flaw in self.flaws if f": {words}:" in flaw)

    def report(self) -> list[str]:
        """Return the summary as lines of text."""
        other = [flaw for flaw in self.flaws if not any(f": {words}:" in flaw for words in ("lost", "twice"))]
        lines = [
            f"seed {self.seed}, {self.minutes:.1f} minutes",
            "happened:  " + ", ".join(f"{kind} {count}" for kind, count in sorted(self.happened.items())),
            "came of it:  " + ", ".join(f"{what} {count:,}" for what, count in sorted(self.counts.items())),
            f"shown again behind a hand-over: at most {self.oldest_repeat_seconds:.1f} s old"
            f" (promised: {PROMISED_SECONDS:.0f} s, and {SLACK_SECONDS:.0f} s for this machine)",
            *table(self.growths),
            f"{self.of('lost')} lost, {self.of('twice')} twice, {len(other)} otherwise wrong, {len(self.left)} left"
            f", {'all flat' if all(one.is_flat for one in self.growths) else 'not flat'}",
        ]
        return [*lines, *(f"WRONG  {flaw}" for flaw in self.flaws), *(f"LEFT  {one}" for one in self.left)]


def run(rig: Rig, slurm: SlurmRig | None, *, minutes: float, kernels: int, seed: int, say: Say = print) -> Outcome:
    """Run for so long; the rig has to be quiet before, and is afterwards."""
    outcome = Outcome(seed=seed, minutes=minutes)
    with rig.engine.client() as client:
        volumes = [str(one.name) for one in client.volumes.list()]
    with opened(rig, slurm, kernels=kernels, seed=seed, say=say) as scene:
        every = max(0.5, min(10.0, minutes * 60 / _FEWEST_LOOKS / 2))
        with closing(Watcher(lambda: list(scene.watched()), every_seconds=every)) as watcher:
            for seat in scene.seats:
                seat.begin()
            for user in scene.users:
                user.begin()
            began = time.monotonic()
            _play(scene, outcome, minutes=minutes, seed=seed, say=say)
            outcome.growths = watcher.watch.growths(began, time.monotonic())
        say("everybody comes to an end")
        _finish(scene, outcome, say)
        say("everybody goes")
        _go(scene, outcome)
        say("what is left?")
        outcome.left = left_by(scene.laptops, rig, slurm, volumes)
    return outcome


def _play(scene: Scene, outcome: Outcome, *, minutes: float, seed: int, say: Say) -> None:
    """Have events happen until the time is over."""
    began = time.monotonic()
    ends = began + minutes * 60
    told = 0
    # In a short run each pause and each fault is shorter, so that all kinds come.
    for event in made(seed, scale=min(1.0, minutes / 5)):
        if time.monotonic() + event.pause_seconds + event.seconds > ends:
            break
        is_late = time.monotonic() > (began + ends) / 2
        if is_late and event.kind in ENDS_THE_SERVER:
            continue
        time.sleep(event.pause_seconds)
        at = time.monotonic() - began
        try:
            whom = events.apply(scene, event)
            outcome.happened[event.kind] += 1
        except events.Skipped as why:
            whom = f"skipped: {why}"
            outcome.happened["skipped"] += 1
        except Exception as exc:
            whom = f"{type(exc).__name__}: {exc}"
            outcome.flaws.append(f"event {event}: {whom}")
        say(f"{at:7.1f} s {event}{f' ({whom})' if whom else ''}")
        told = _tell_troubles(scene, told, say)
    time.sleep(max(0.0, ends - time.monotonic()))


def _tell_troubles(scene: Scene, told: int, say: Say) -> int:
    """Say what has gone wrong since: a person looks at it while it runs. Return how much that is in all."""
    lists = [*(one.troubles for one in scene.seats), scene.gpu_turns.troubles, scene.job_turns.troubles]
    troubles = [trouble for one in lists for trouble in one]
    for trouble in troubles[told:]:
        say(f"          wrong: {trouble[:700]}")
    return len(troubles)


def _finish(scene: Scene, outcome: Outcome, say: Say) -> None:
    """Everybody ends the cell that runs; what came of all is counted."""
    for user in scene.users:
        user.stop()
    for seat in scene.seats:
        if (tally := seat.running) is not None:
            say(f"  {seat.name}: {tally}")
        seat.finish()
    for user in scene.users:
        user.finish(600 * SLOW)
    for seat in scene.seats:
        seat.check_ran()
        outcome.counts.update(counted(seat.tallies))
        outcome.flaws += seat.flaws(slack_seconds=SLACK_SECONDS)
        outcome.oldest_repeat_seconds = max(
            [outcome.oldest_repeat_seconds, *(ago for one in seat.tallies for _, ago in one.repeats)]
        )
        outcome.counts["notices"] += sum(len(one.notices) for one in seat.tallies)
    for name, turns in (("GPU", scene.gpu_turns), ("job", scene.job_turns)):
        _count_turns(name, turns, outcome)
    outcome.flaws += [f"GPUs: twice: {double}" for double in doubles(scene.gpu_turns.holds)]
    outcome.counts["GPU holds"] = len(scene.gpu_turns.holds)


def _count_turns(name: str, turns: Turns, outcome: Outcome) -> None:
    outcome.counts.update({f"{name} {what}": count for what, count in turns.counts.items()})
    outcome.counts.update(counted(turns.tallies))
    outcome.flaws += turns.troubles


def _go(scene: Scene, outcome: Outcome) -> None:
    """Everybody goes in the way of their kind."""
    for seat in (*scene.pages, *scene.launchers, *scene.roaming, *scene.scripts):
        before = len(seat.troubles)
        try:
            seat.close()
        except Exception as exc:
            seat.troubles.append(f"its end: {type(exc).__name__}: {exc}")
        outcome.flaws += [f"{seat.name}: {trouble}" for trouble in seat.troubles[before:]]
    if scene.holder is not None:
        scene.holder.close()
    scene.server.close(timeout=60)


def left_by(laptops: Sequence[Laptop], rig: Rig, slurm: SlurmRig | None, volumes: Sequence[str]) -> list[str]:
    """Wait until nothing is left of these users' kernels; what still is when the time is over."""
    until = time.monotonic() + LEFT_SECONDS
    while True:
        found = list(_look(laptops, rig, slurm, volumes))
        if not found or time.monotonic() > until:
            return found
        time.sleep(2)


def _look(laptops: Sequence[Laptop], rig: Rig, slurm: SlurmRig | None, volumes: Sequence[str]) -> Iterable[str]:
    for laptop in laptops:
        # As a user would look; it removes what is done with.
        listed = kernelbridge(laptop, "ps", "--json")
        try:
            yield from (f"listed: {row['kernel_id']} {row['state']}" for row in listed.json["kernels"])
        except ValueError:
            yield f"kernelbridge ps: {listed.err}"
    yield from leftovers.processes_of(laptops)
    for laptop in laptops:
        yield from leftovers.on_a_laptop(laptop)
    try:
        yield from leftovers.on_the_host(rig, slurm, volumes)
    except RigError as exc:
        yield str(exc)
