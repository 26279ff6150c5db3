"""Decide when a kernel without its owner ends, and by which key of the config. Pure.

All times are seconds of one clock that goes on while the machine sleeps. See decisions.md, 12 and 13.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from ..protocol.exit_codes import CLAIM_SECONDS, UNJOINED_SECONDS, UNUSED_SECONDS, Terms

# After the kernel's end and the last acknowledgement, for one who comes just now.
LINGER_SECONDS = 2.0


class Deadline(NamedTuple):
    """The moment of the kernel's end if nothing happens. Why: a config key or a word of EXIT_CODES."""

    at: float
    why: str


class Lifetime:
    """Remembers what has happened so far; `deadline` says what follows from it."""

    def __init__(self, terms: Terms, now: float) -> None:
        self.terms = terms
        self.started_at = now
        # Since when nobody is joined; None while somebody is.
        self.detached_since: Optional[float] = now
        # Whether its owner has ever asked it something.
        self._is_used = False
        # Whether anybody has run a cell in it; what front-ends run for themselves is none.
        self.has_run_cell = False
        # The last moment at which a cell ran or output waited to be delivered.
        self.idle_since = now
        self._is_idle = True
        # Set by a goodbye, cleared when somebody joins.
        self.goodbye_until: Optional[float] = None
        # When the kernel process ended; None while there is one.
        self.ended_at: Optional[float] = None
        # Whether it ended by a deadline or a goodbye: no restart follows.
        self.is_over = False

    def __repr__(self) -> str:
        return "<Lifetime %s%s>" % ("alone" if self.detached_since is not None else "joined", ", over" * self.is_over)

    def joined(self) -> None:
        """Note that somebody holds the kernel now."""
        self.detached_since, self.goodbye_until = None, None

    def used(self) -> None:
        """Note that its owner has asked it something: it has a state that somebody may want back."""
        self._is_used = True

    def left(self, now: float) -> None:
        """Note that the line ended, and nobody said why."""
        if self.detached_since is None:
            self.detached_since = now

    def goodbye(self, now: float, *, ends: bool) -> None:
        """Note that the owner has left in good order; `ends` unless the kernel is to run on without it."""
        self.left(now)
        self.used()
        if ends and not (self.terms.persist and self.has_run_cell):
            self.goodbye_until = now + CLAIM_SECONDS

    def launched(self, now: float) -> None:
        """Note that there is a kernel process."""
        self.ended_at, self.idle_since, self.is_over = None, now, False

    def ended(self, now: float) -> None:
        """Note that the kernel process is no more."""
        self.ended_at = now

    def look(self, now: float, *, is_busy: bool, is_delivered: bool) -> Optional[Deadline]:
        """Take in what the kernel does now, and return what ends it first; None if nothing will."""
        is_idle = is_delivered and (not is_busy or self.ended_at is not None)
        if not (is_idle and self._is_idle):
            self.idle_since = now
        self._is_idle = is_idle
        found = [self._by_max_lifetime(), self._by_goodbye(), self._by_unjoined()]
        if self.ended_at is not None:
            found.append(self._after_the_end(self.ended_at, is_delivered))
        elif is_idle:
            found += [self._by_idle_timeout(), self._by_lost_grace()]
        if self.ended_at is None and not is_busy:
            found.append(self._by_unused())
        return min((deadline for deadline in found if deadline is not None), default=None)

    def _by_max_lifetime(self) -> Optional[Deadline]:
        if self.terms.max_lifetime is None or self.is_over:
            return None
        return Deadline(self.started_at + self.terms.max_lifetime, "max_lifetime")

    def _by_goodbye(self) -> Optional[Deadline]:
        return None if self.goodbye_until is None else Deadline(self.goodbye_until, "goodbye")

    def _by_unjoined(self) -> Optional[Deadline]:
        if self._is_used or self.detached_since is None:
            return None
        return Deadline(self.detached_since + UNJOINED_SECONDS, "unjoined")

    def _by_unused(self) -> Optional[Deadline]:
        if self.has_run_cell or self.detached_since is None:
            return None
        return Deadline(self.detached_since + UNUSED_SECONDS, "unused")

    def _by_idle_timeout(self) -> Optional[Deadline]:
        if self.terms.idle_timeout is None:
            return None
        return Deadline(self.idle_since + self.terms.idle_timeout, "idle_timeout")

    def _by_lost_grace(self) -> Optional[Deadline]:
        if self.detached_since is None or self.terms.persist:
            return None
        return Deadline(max(self.idle_since, self.detached_since) + self.terms.lost_grace, "lost_grace")

    def _after_the_end(self, ended_at: float, is_delivered: bool) -> Optional[Deadline]:
        """Let the relay stay without a kernel process for what it still has to deliver, or for a restart."""
        if self.goodbye_until is not None or (self.detached_since is None and not self.is_over):
            return None
        since = max(ended_at, self.detached_since or 0.0)
        if not is_delivered:
            return Deadline(since + self.terms.keep_exited, "keep_exited")
        if self.is_over:
            return Deadline(max(since, self.idle_since) + LINGER_SECONDS, "delivered")
        return Deadline(max(since, self.idle_since) + CLAIM_SECONDS, "delivered")
