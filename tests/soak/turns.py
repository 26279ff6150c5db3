"""Users who start a kernel, use it and end it, again and again: with fewer GPUs than users, or in Slurm's jobs.

No GPU may be two kernels' at one time, whatever happens to who holds it.
"""

from __future__ import annotations

import ast
import random
import re
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from tests.rig.daemon import RigError
from tests.soak.seats import Desk, LauncherSeat, NotStarted, SeatStuck
from tests.soak.tally import Tally

# Why a start may come to nothing while faults are in force: the link, the engine, the controller is away. All of these
# are sentences to a user, who starts again.
MAY_REFUSE = (
    "HostUnreachable", "HostRefused", "LinkLost", "EngineDown", "EngineFailed", "SchedulerSilent", "StartTimeout",
    "SshFailed", "ContainerFailed",
)  # fmt: skip
_CARDS = "__import__('os').environ['NVIDIA_VISIBLE_DEVICES'].split(',')"
# VS Code begins another launcher on another port; so soon after one that came to nothing.
_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A card, and from when to when a kernel had it for certain."""

    card: str
    user: str
    began_at: float
    ended_at: float


def doubles(holds: list[Hold]) -> list[str]:
    """Return which cards were two kernels' at one time. Pure."""
    found = []
    for card in {one.card for one in holds}:
        mine = sorted((one for one in holds if one.card == card), key=lambda one: one.began_at)
        for first, second in pairwise(mine):
            if second.began_at < first.ended_at:
                found.append(
                    f"{card}: {first.user} until {first.ended_at:.1f}, {second.user} from {second.began_at:.1f}"
                )
    return found


@dataclass
class Turns:
    """What all users of one kind have come to."""

    counts: Counter[str] = field(default_factory=Counter)
    holds: list[Hold] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class TurnUser:
    """One such user."""

    def __init__(self, name: str, seed: int, desk: Desk, environment: str, turns: Turns) -> None:
        self.name = name
        self.environment = environment
        self._desk = desk
        self._turns = turns
        self._chance = random.Random(seed)
        self._is_over = threading.Event()
        # What it has now; None between two turns.
        self.seat: LauncherSeat | None = None
        # Set by the schedule: this turn ends with a SIGKILL.
        self.kill_next = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._number = 0
        # When this turn's start began.
        self._began_at = 0.0

    def begin(self) -> None:
        """Take turns until `finish`."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no other turn."""
        self._is_over.set()

    def finish(self, seconds: float) -> None:
        """Wait for the end of the last turn."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._turns.troubles.append(f"{self.name}: its turn does not end: {self.seat}")

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self._turn()
            except Exception as exc:
                with self._turns.lock:
                    self._turns.troubles.append(f"{self.name}, turn {self._number}: {type(exc).__name__}: {exc}")
                if self.seat is not None:
                    self.seat.end_processes()
                self._is_over.wait(_AGAIN_SECONDS)
            self.seat = None

    def _turn(self) -> None:
        self._number += 1
        seat = LauncherSeat(f"{self.name}-{self._number}", self._chance.getrandbits(32), self._desk, self.environment)
        self.seat = seat
        self._count("starts")
        self._began_at = time.monotonic()
        try:
            seat.open()
        except (NotStarted, SeatStuck, RigError, OSError) as exc:
            self._refused(seat, exc)
            return
        cards = ast.literal_eval(seat.value(_CARDS)) if self.environment == "gpu" else []
        began_at = time.monotonic()
        self._use(seat, cards, began_at)

    def _use(self, seat: LauncherSeat, cards: list[str], began_at: float) -> None:
        for _ in range(self._chance.randint(1, 3)):
            seat.run_cell()
            if self._is_over.is_set():
                break
        seat.check_ran()
        ended_at = time.monotonic()
        if self.kill_next.is_set():
            self.kill_next.clear()
            seat.kill_and_stop()
            self._count("ended by SIGKILL, and stopped")
        else:
            seat.end()
            self._count("ended by VS Code")
        if self._ended_with_dockerd():
            self._count("ended with dockerd")
            return
        with self._turns.lock:
            held = {"user": seat.name, "began_at": began_at, "ended_at": ended_at}
            self._turns.holds += [Hold(card=card, **held) for card in cards]  # type: ignore[arg-type]
            self._turns.tallies += seat.tallies
            self._turns.troubles += [f"{seat.name}: {trouble}" for trouble in seat.troubles]
            for one in seat.tallies:
                self._turns.troubles += [f"{seat.name}: {flaw}" for flaw in one.flaws()]

    def _refused(self, seat: LauncherSeat, exc: Exception) -> None:
        """A start came to nothing: it has to have said why, in a sentence that allows for it."""
        try:
            seat.process.wait(60)
        except subprocess.TimeoutExpired:
            seat.end_processes()
        seat.zmq.part()
        why = re.match(r"(\w+): ", seat.told)
        reason = why[1] if why else "nothing was said"
        self._count(f"refused: {reason}")
        if self._ended_with_dockerd():
            self._count("ended with dockerd")
        elif reason not in MAY_REFUSE and "because the link was lost" not in seat.told:
            with self._turns.lock:
                self._turns.troubles.append(f"{seat.name}: did not start ({exc}): {seat.told[-600:]}")
        seat.end_processes()
        self._is_over.wait(_AGAIN_SECONDS)

    def _ended_with_dockerd(self) -> bool:
        """Whether dockerd was restarted under a job whose script waits for it: that ends the job."""
        return self.environment == "job" and any(at >= self._began_at for at in self._desk.restarts)

    def _count(self, what: str) -> None:
        with self._turns.lock:
            self._turns.counts[what] += 1
