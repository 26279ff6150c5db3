"""Cells that number what they print, and the count of what came of it: lost, twice, out of order, replies, idles.

Who runs them, and is watched meanwhile: watched.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_LINE = re.compile(r"L(\d{5})")
# One thing that a client got: when, and the number of each line in it.
Arrival = tuple[float, Sequence[int]]


def printing(lines: int, *, every_seconds: float = 0.1, first: int = 0) -> str:
    """A cell that prints so many lines, each at once and in a message of its own. `first`: the first one's number."""
    return f"""\
import time
began = time.monotonic()
for n in range({lines}):
    print(f'L{{n + {first}:05d}}', flush=True)
    time.sleep(max(0.0, began + (n + 1) * {every_seconds} - time.monotonic()))"""


def displaying(count: int) -> str:
    """A cell that displays so many lines as fast as it can."""
    display = "display({'text/plain': f'L{n:05d}'}, raw=True)"
    return f"from IPython.display import display\nfor n in range({count}):\n    {display}"


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a client got for one numbered cell. `flaws` is empty where nothing is missing and nothing is too much."""

    wanted: int
    # In the order in which they came.
    numbers: tuple[int, ...]
    # The status in each reply.
    replies: tuple[str, ...]
    idles: int
    # What came and is no line of the cell.
    strange: tuple[str, ...] = ()
    # The longest time without a line, between the first and the last.
    silence_seconds: float = 0.0

    @property
    def lost(self) -> list[int]:
        """The numbers that never came."""
        return sorted(set(range(self.wanted)) - set(self.numbers))

    @property
    def twice(self) -> list[int]:
        """The numbers that came more than once."""
        return sorted(number for number, times in Counter(self.numbers).items() if times > 1)

    @property
    def is_in_order(self) -> bool:
        """Whether no number came behind a larger one."""
        return list(self.numbers) == sorted(self.numbers)

    @property
    def flaws(self) -> list[str]:
        """What is wrong, a sentence each."""
        wrong = {
            f"{len(self.lost)} of {self.wanted} lost: {spans(self.lost)}": self.lost,
            f"{len(self.twice)} came twice: {spans(self.twice)}": self.twice,
            f"not in order: {self.numbers[:200]}": not self.is_in_order,
            f"replies: {self.replies}": self.replies != ("ok",),
            f"{self.idles} times idle": self.idles != 1,
            f"also came: {self.strange[:5]}": self.strange,
        }
        return [sentence for sentence, is_wrong in wrong.items() if is_wrong]


def spans(numbers: Iterable[int]) -> str:
    """Numbers as a person writes them: 3-7, 12."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in found)


class Counting:
    """Takes the messages of one cell as they come."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._numbers: list[int] = []
        self._replies: list[str] = []
        self._idles = 0
        self._strange: list[str] = []
        # When lines came, and the beginning of one whose end has not come yet.
        self._times: list[float] = []
        self._begun = ""

    def __repr__(self) -> str:
        return f"<Counting {self.shown} of {self._wanted}, {len(self._replies)} replies, {self._idles} idles>"

    @property
    def shown(self) -> int:
        """How many lines have come."""
        return len(self._numbers)

    @property
    def is_answered(self) -> bool:
        """Whether the reply has come."""
        return bool(self._replies)

    @property
    def is_finished(self) -> bool:
        """Whether reply and idle have come."""
        return self.is_answered and self._idles > 0

    def take(self, at: float, kind: str, content: dict[str, Any]) -> None:
        """Take a message: when it came, its type, its content."""
        match kind:
            case "stream":
                self._take_text(at, content["text"])
            case "display_data":
                self._take_text(at, content["data"]["text/plain"] + "\n")
            case "execute_reply":
                self._replies.append(content["status"])
            case "status":
                self._idles += content["execution_state"] == "idle"
            case "execute_input":
                pass
            case _:
                self._strange.append(f"{kind} {content}")

    def _take_text(self, at: float, text: str) -> None:
        *lines, self._begun = (self._begun + text).split("\n")
        self._times.append(at)
        for line in lines:
            if found := _LINE.fullmatch(line):
                self._numbers.append(int(found[1]))
            else:
                self._strange.append(line)

    def blame(self, fault: str) -> None:
        """Note what else went wrong."""
        self._strange.append(fault)

    def count(self) -> Count:
        """What came so far."""
        pauses = [later - earlier for earlier, later in zip(self._times, self._times[1:], strict=False)]
        return Count(
            wanted=self._wanted,
            numbers=tuple(self._numbers),
            replies=tuple(self._replies),
            idles=self._idles,
            strange=(*self._strange, *([self._begun] if self._begun else [])),
            silence_seconds=max(pauses, default=0.0),
        )
