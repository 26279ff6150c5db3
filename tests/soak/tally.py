"""The count of one cell over everything that happens to it: each line once and in order, one answer. Pure.

After a kill or a take-over of the process that held the kernel, what it had shown in its last moments may come again:
how much is promised stands in docs/explanation/protocol.md, and is counted here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.clients.numbered import spans

# Of what was shown before a kill so much may come again (protocol.md).
PROMISED_SECONDS = 2.0
# What the bridge shows in a cell that waits begins so; it is cleared again.
OWN_WORDS = "Docker-GPU (remote), "
_LINE = re.compile(r"L(\d{5})")


def cell(number: int, lines: int, *, every_seconds: float, displays: bool = False) -> str:
    """Return a numbered cell's code; it also writes down in its kernel that it ran."""
    show = "print(f'L{n:05d}\\n', end='', flush=True)"
    if displays:
        show = "display({'text/plain': f'L{n:05d}'}, raw=True)"
    return f"""\
import time
from IPython.display import display
ran = globals().get('ran', [])
ran.append({number})
for n in range({lines}):
    {show}
    time.sleep({every_seconds})"""


@dataclass(kw_only=True)
class Handover:
    """A moment at which another process began to hold the kernel: how much had come by then, and when it was."""

    how: str
    at: float
    # When the process before it showed something last, or ended.
    ended_at: float
    lines: int
    replies: int
    idles: int


@dataclass(kw_only=True)
class Tally:
    """What came of one request."""

    request: str
    number: int
    wanted: int
    began_at: float
    # Whether it takes its time.
    is_steady: bool = True
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    replies: list[tuple[float, str]] = field(default_factory=list)
    idles: list[float] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    # What else was shown: the bridge's own words, and what nobody expects.
    notices: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    # Why no flaw of it is counted: its kernel was restarted or ended by the schedule.
    excused: str = ""
    # When something of it came last.
    heard_at: float = 0.0
    # The beginning of a line whose end has not come yet.
    _begun: str = ""

    def __str__(self) -> str:
        how = ", ".join(f"{one.how} at {one.lines}" for one in self.handovers)
        rest = f"{len(self.replies)} replies{self._moments()}, {len(self.idles)} idles{f', {how}' if how else ''}"
        return f"cell {self.number}, {len(self.numbers)} of {self.wanted} lines, {rest}, {self.notices[-2:]}"

    def _moments(self) -> str:
        times = [at - self.began_at for at, _ in self.replies]
        ends = [one.ended_at - self.began_at for one in self.handovers]
        return f" at {[round(one, 1) for one in times]} (ends {[round(one, 1) for one in ends]})" if ends else ""

    def take(self, at: float, kind: str, content: dict[str, Any]) -> None:
        """Take a message: when it came, its type, its content."""
        self.heard_at = at
        match kind:
            case "stream" if content["name"] == "stdout":
                self._take_text(at, content["text"])
            case "stream":
                self.notices.append(content["text"].strip())
            case "display_data":
                self._take_text(at, content["data"]["text/plain"] + "\n")
            case "execute_reply":
                self.replies.append((at, content["status"]))
            case "status" if content["execution_state"] == "idle":
                self.idles.append(at)
            case "status" | "execute_input" | "clear_output":
                pass
            case _:
                self.strange.append(f"{kind} {content}"[:300])

    def _take_text(self, at: float, text: str) -> None:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if found := _LINE.fullmatch(line):
                self.numbers.append(int(found[1]))
                self.times.append(at)
            else:
                (self.notices if line.startswith(OWN_WORDS) or not line else self.strange).append(line[:300])

    def handed_over(self, at: float, how: str, ended_at: float) -> None:
        """Another process holds the kernel from here on; the one before it ended at that time."""
        # Half a line was shown, and all of it may come again.
        self._begun = ""
        # A line that was lost before takes its acknowledgements with it: the promise counts from what was shown last.
        ended_at = min(ended_at, self.heard_at or ended_at)
        counts = {"lines": len(self.numbers), "replies": len(self.replies), "idles": len(self.idles)}
        self.handovers.append(Handover(how=how, at=at, ended_at=ended_at, **counts))

    @property
    def is_finished(self) -> bool:
        """Whether reply and idle have come."""
        return bool(self.replies and self.idles)

    @property
    def repeats(self) -> list[tuple[str, float]]:
        """What came again behind a hand-over: how that was, and how long before it the thing had been shown."""
        found = []
        seen: dict[int, int] = {}
        for position, number in enumerate(self.numbers):
            if number in seen and (between := self._between(seen[number], position, "lines")):
                found.append((between.how, between.ended_at - self.times[seen[number]]))
            seen.setdefault(number, position)
        for name, times in (("replies", [at for at, _ in self.replies]), ("idles", self.idles)):
            for position in range(1, len(times)):
                if between := self._between(position - 1, position, name):
                    found.append((between.how, between.ended_at - times[position - 1]))
        return found

    def _between(self, first: int, second: int, what: str) -> Handover | None:
        """Return the hand-over that lies between the coming of two things of one kind."""
        return next((one for one in self.handovers if first < getattr(one, what) <= second), None)

    @property
    def twice(self) -> list[int]:
        """The lines that came again with no hand-over in between."""
        seen: dict[int, int] = {}
        found = []
        for position, number in enumerate(self.numbers):
            if number in seen and self._between(seen[number], position, "lines") is None:
                found.append(number)
            seen[number] = position
        return found

    @property
    def is_in_order(self) -> bool:
        """Whether no line came behind a larger one, but for a new beginning behind a hand-over."""
        starts = [0, *(one.lines for one in self.handovers), len(self.numbers)]
        pieces = [self.numbers[start:end] for start, end in pairwise(starts)]
        return all(piece == sorted(piece) for piece in pieces)

    def flaws(self, *, slack_seconds: float = 0.0) -> list[str]:
        """Return what is wrong, a sentence each, with whether it is something lost, twice or else at its front."""
        if self.excused:
            return []
        lost = sorted(set(range(self.wanted)) - set(self.numbers))
        late = [ago for _, ago in self.repeats if ago > PROMISED_SECONDS + slack_seconds]
        spare = len(self.handovers)
        wrong = {
            f"lost: lines {spans(lost)} of {self.wanted}": lost,
            f"twice: lines {spans(self.twice)}": self.twice,
            f"twice: shown up to {max(late, default=0):.1f} s before the hand-over": late,
            f"order: {spans(self.numbers)}": not self.is_in_order,
            "lost: the reply": not self.replies,
            "lost: the idle": not self.idles,
            f"twice: {len(self.replies)} replies": len(self.replies) > 1 + self._repeated("replies", spare),
            f"twice: {len(self.idles)} times idle": len(self.idles) > 1 + self._repeated("idles", spare),
            f"answer: {self.replies[:1]}": any(status != "ok" for _, status in self.replies),
            f"strange: {self.strange[:3]}": self.strange,
        }
        return [f"cell {self.number}: {sentence}" for sentence, is_wrong in wrong.items() if is_wrong]

    def _repeated(self, what: str, most: int) -> int:
        """Return how often a thing that comes once may have come besides: once more for each hand-over behind it."""
        return min(most, sum(1 for one in self.handovers if getattr(one, what)))


def counted(tallies: Iterable[Tally]) -> Counter[str]:
    """Return what all of them together came to."""
    counts: Counter[str] = Counter()
    for one in tallies:
        counts["cells"] += 1
        counts["lines"] += len(set(one.numbers))
        counts["excused"] += bool(one.excused)
        for how, _ in one.repeats:
            counts[f"came again after: {how}"] += 1
    return counts
