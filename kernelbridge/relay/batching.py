"""Decide how long the kernel's output waits for more to go with it: each piece costs work in five processes. Pure."""

from __future__ import annotations

from typing import Callable, Optional

# Output alone waits so long; a reply takes it along at once.
GATHER_SECONDS = 0.001
# After so many messages of output alone, that came at least so many at a time, they are not even looked at for longer:
# here each one would be a wake-up. A reply behind them waits as well.
FLOOD_MESSAGES = 64
FLOOD_AT_ONCE = 2
FLOOD_SECONDS = 0.003


class Batcher:
    """Holds back what has come from the kernel and is not on its way yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Since when output waits for more; None when it does not. And whether anything waits at all.
        self._since: Optional[float] = None
        self._has_news = False
        # Messages of output that wait; and those before them that came in such company, with nothing else between.
        self._count = 0
        self._flood = 0

    def __repr__(self) -> str:
        return "<Batcher %d after %d>" % (self._count, self._flood)

    @property
    def is_on(self) -> bool:
        """Whether output waits for more."""
        return self._since is not None

    @property
    def nap_seconds(self) -> float:
        """How long nothing needs to be looked at; 0 unless output floods."""
        return FLOOD_SECONDS if self.is_on and self._flood >= FLOOD_MESSAGES else 0.0

    def output(self) -> None:
        """Note that output has come."""
        self._count += 1
        if self._since is None and not self._has_news:
            self._since = self._clock()
        self._has_news = True

    def other(self) -> None:
        """Note that something has come that waits for nobody, and takes along what does."""
        self._since, self._has_news = None, True
        self._count = self._flood = 0

    def waits(self, now: float) -> bool:
        """Whether what has come should wait on."""
        return self._since is not None and now - self._since < GATHER_SECONDS

    def went(self) -> None:
        """Note that all that had come is on its way."""
        if self._count:
            self._flood = self._flood + self._count if self._count >= FLOOD_AT_ONCE else 0
        self._count = 0
        self._since, self._has_news = None, False
