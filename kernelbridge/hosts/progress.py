"""Say how far a piece of work on a host is: how much of it is done, how fast it goes, how long it still takes. Pure."""

from __future__ import annotations

import enum
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

# Over so long a speed is the mean; none is told before there is so much to take it from.
WINDOW_SECONDS: Final = 5.0
LEAST_SECONDS: Final = 1.0
# Of what comes faster, the newest counts alone.
_STEP_SECONDS: Final = 0.1
# No time that is left is told beyond.
_MOST_LEFT_SECONDS: Final = 99 * 3600.0


class Unit(enum.Enum):
    """What is counted."""

    BYTES = "bytes"
    STEPS = "steps"
    CELLS = "cells"


@dataclass(frozen=True, kw_only=True)
class WorkProgress:
    """How far one piece of work is. As text it is one line."""

    what: str
    done: float = 0
    # None: not known. `grows` says that more of it may turn up: then there is no percentage.
    total: float | None = None
    grows: bool = False
    unit: Unit = Unit.BYTES
    # None: not known, or not a thing that has a speed.
    per_second: float | None = None
    # Of what waits: its place, which begins with 1, how long it has waited, and how long at most.
    place: int | None = None
    waited_seconds: float | None = None
    most_wait_seconds: float | None = None
    # How long it takes still, where that is known from elsewhere than from a speed.
    known_left_seconds: float | None = None
    # More to show. It may be the words of a builder or of another user: shown, and never logged.
    detail: str = ""

    @property
    def percent(self) -> int | None:
        """The part that is done; 100 only at the end."""
        if not self.total or self.grows:
            return None
        return min(100, math.floor(100 * self.done / self.total))

    @property
    def left_seconds(self) -> float | None:
        """How long it takes still at the speed of now; None while nobody can know."""
        if self.known_left_seconds is not None:
            return self.known_left_seconds
        if not self.per_second or self.total is None or self.grows:
            return None
        left = max(0.0, self.total - self.done) / self.per_second
        return left if left <= _MOST_LEFT_SECONDS else None

    def __str__(self) -> str:
        return _joined(self._head, [*self._numbers, *filter(None, [self.detail])]) + self._wait

    @property
    def _head(self) -> str:
        return self.what

    @property
    def _numbers(self) -> list[str]:
        """What there is to say in numbers; from the end on the first to be left out."""
        said = [f"{self.percent} %"] if self.percent is not None and self.unit is Unit.BYTES else []
        if amount := self._amount:
            said.append(amount)
        if self.unit is Unit.BYTES and self.per_second is not None:
            said.append(f"{size_text(self.per_second)}/s")
        if self.left_seconds is not None and self.known_left_seconds is None:
            said.append(f"about {duration_text(self.left_seconds)} left")
        return said

    @property
    def _amount(self) -> str:
        if self.unit is not Unit.BYTES:
            one = self.unit.value.removesuffix("s")
            return f"{one} {self.done:,.0f} of {self.total:,.0f}" if self.total else ""
        if self.total:
            return f"{amount_text(self.done, self.total)}" if not self.grows else self._growing
        return size_text(self.done) if self.done else ""

    @property
    def _growing(self) -> str:
        return amount_text(self.done, self.total or 0).replace(" of ", " of at least ")

    @property
    def _wait(self) -> str:
        if self.waited_seconds is None or self.waited_seconds < 60:
            return ""
        most = f" of at most {duration_text(self.most_wait_seconds)}" if self.most_wait_seconds else ""
        return f", waited {duration_text(self.waited_seconds)}{most}"

    @property
    def logged(self) -> str:
        """What of it may stand in a log: our own words, and numbers."""
        return _joined(self._head, self._numbers)

    def on(self, host: str) -> WorkProgress:
        """Return it with the host's name in front."""
        return replace(self, what=f"{host}: {self.what}")

    def fitted(self, columns: int) -> str:
        """Return as much of it as a line has room for: of numbers and name the numbers, the percentage first."""
        if len(str(self)) <= columns:
            return str(self)
        for count in range(len(self._numbers), 0, -1):
            text = _joined(self._head, self._numbers[:count])
            if len(text) <= columns:
                return text
        if self._numbers and self.percent is not None:
            return cropped(f"{self._numbers[0]} {self._head}", columns)
        return cropped(str(self), columns)

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it, for programs."""
        known: dict[str, Any] = {
            "what": self.what,
            "done": self.done if self.total is not None or self.done else None,
            "total": self.total if not self.grows else None,
            "unit": self.unit.value if self.total is not None or self.done else None,
            "percent": self.percent,
            "per_second": None if self.per_second is None else round(self.per_second, 1),
            "seconds_left": None if self.left_seconds is None else round(self.left_seconds, 1),
            "place": self.place,
            "seconds_waited": None if self.waited_seconds is None else round(self.waited_seconds, 1),
        }
        return {key: value for key, value in known.items() if value is not None}


# Takes what is being done: words, or how far it is.
Say = Callable[[str | WorkProgress], None]


def _joined(head: str, more: list[str]) -> str:
    return f"{head}: {', '.join(more)}" if more else head


def amount_text(done: float, total: float) -> str:
    """Write a part of a size: `1.72 of 4.00 GB`."""
    for unit, name, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 0)):
        if total >= unit:
            return f"{done / unit:,.{digits}f} of {total / unit:,.{digits}f} {name}"
    return f"{done:.0f} of {total:.0f} B"


def size_text(size: float) -> str:
    """Write a size with three digits or so."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * unit:
            count = size / unit
            return f"{count:.0f} {name}" if count >= 10 else f"{count:.1f} {name}"
    return f"{size:.0f} B"


def duration_text(seconds: float) -> str:
    """Write a time as people say it: what is far away is not exact."""
    if seconds < 9.5:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds < 58:
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest and hours < 10 else f"{hours} h"


def cropped(text: str, columns: int) -> str:
    """Return a text that is not longer than a line."""
    return text if len(text) <= columns else text[: max(0, columns - 1)] + "…"[: max(0, columns)]


class Rate:
    """The speed of something that grows: the mean of the last WINDOW_SECONDS."""

    def __init__(self) -> None:
        # When there was how much; filled by note().
        self._seen: deque[tuple[float, float]] = deque()

    def __repr__(self) -> str:
        return f"<Rate of {len(self._seen)} looks>"

    def note(self, at: float, done: float) -> None:
        """Take how much there is at a moment."""
        seen = self._seen
        if seen and done < seen[-1][1]:
            seen.clear()  # It began again.
        if len(seen) > 1 and at - seen[-2][0] < _STEP_SECONDS:
            seen.pop()
        seen.append((at, done))
        while len(seen) > 2 and seen[1][0] <= at - WINDOW_SECONDS:
            seen.popleft()

    def per_second(self, now: float) -> float | None:
        """Return the speed; None as long as there is nothing to take it from. Where nothing comes it falls to 0."""
        if not self._seen or now - self._seen[0][0] < LEAST_SECONDS:
            return None
        begins = now - WINDOW_SECONDS
        first = self._seen[0]
        for one in self._seen:
            if one[0] > begins:
                break
            first = one
        # What lies before the window counts as its beginning.
        return (self._seen[-1][1] - first[1]) / (now - max(first[0], begins))


class Meter:
    """Counts one piece of work in bytes, and says how far it is."""

    def __init__(self, what: str, total: float | None = None, *, clock: Callable[[], float] | None = None) -> None:
        """`clock` is the monotonic one, unless a test has another."""
        self._clock = clock or time.monotonic
        self._rate = Rate()
        self._rate.note(self._clock(), 0)
        # As it was counted last; replaced by at().
        self._progress = WorkProgress(what=what, total=total)

    def __repr__(self) -> str:
        return f"<Meter {self.progress}>"

    def at(self, done: float, total: float | None = None, **more: Any) -> WorkProgress:
        """Set how much is done, and what else has changed; return how far it is."""
        if more.get("what", self._progress.what) != self._progress.what:
            self._rate = Rate()  # Another piece of work.
        self._rate.note(self._clock(), done)
        total = total if total is not None else self._progress.total
        self._progress = replace(self._progress, done=done, total=total, **more)
        return self.progress

    @property
    def progress(self) -> WorkProgress:
        """How far it is now, with the speed of now."""
        rate = self._rate.per_second(self._clock()) if self._progress.done else None
        return replace(self._progress, per_second=rate)
