"""How long a kernel lives without its owner: which moment ends it, and by which key of the config. Pure.

All times are seconds of one clock that goes on while the machine sleeps. Source: design, decisions 12 and 13.
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Optional

# After a goodbye, so that an editor's restart finds its container again.
GOODBYE_SECONDS = 15.0
# After the kernel's end and the last acknowledgement, for one who comes just now.
LINGER_SECONDS = 2.0
# Of a kernel that was never asked anything: whoever started it died on the way, and it may hold GPUs.
UNJOINED_SECONDS = 60.0
# What the container exits with, by what ended it: so that an engine's listing tells why.
EXIT_CODES = {
    "goodbye": 0,
    "delivered": 80,
    "lost_grace": 81,
    "idle_timeout": 82,
    "max_lifetime": 83,
    "keep_exited": 84,
    "unjoined": 85,
}
# The same where nothing was started: another kernel has one of the GPUs; there is no lock for one; no order came.
EXIT_TAKEN = 75
EXIT_NO_LOCK = 76
EXIT_NO_ORDER = 77


def key_of(exit_code: int) -> str:
    """Return the key of the config that ended a container with this exit code; empty if none did."""
    found = (key for key, code in EXIT_CODES.items() if code == exit_code and key in Terms._fields)
    return next(found, "")


class Terms(NamedTuple):
    """What the environment says; None is never."""

    persist: bool = False
    lost_grace: float = 86400.0
    max_lifetime: Optional[float] = None
    idle_timeout: Optional[float] = None
    keep_exited: float = 259200.0


def terms_of(order: Mapping[str, Any]) -> Terms:
    """Return the terms in an order; keys of a newer version are left out."""
    return Terms(**{key: order[key] for key in Terms._fields if key in order})


class Deadline(NamedTuple):
    """When the kernel ends if nothing happens, and why: a key of the config, `goodbye`, `delivered` or `unjoined`."""

    at: float
    why: str


class Lifetime:
    """What has happened so far; `deadline` says what follows from it."""

    def __init__(self, terms: Terms, now: float) -> None:
        self.terms = terms
        self.started_at = now
        # Since when nobody is joined; None while somebody is.
        self.alone_since: Optional[float] = now
        # Whether its owner has ever asked it something.
        self._is_used = False
        # The last moment at which a cell ran or output waited to be delivered.
        self.quiet_since = now
        self._is_quiet = True
        # Set by a goodbye, cleared when somebody joins.
        self.goodbye_until: Optional[float] = None
        # When the kernel process ended; None while there is one.
        self.ended_at: Optional[float] = None
        # Whether it ended by a deadline or a goodbye: no restart follows.
        self.is_over = False

    def __repr__(self) -> str:
        return "<Lifetime %s%s>" % ("alone" if self.alone_since is not None else "joined", ", over" * self.is_over)

    def joined(self) -> None:
        """Somebody holds the kernel now."""
        self.alone_since, self.goodbye_until = None, None

    def used(self) -> None:
        """Its owner has asked it something: it has a state that somebody may want back."""
        self._is_used = True

    def left(self, now: float) -> None:
        """The line ended, and nobody said why."""
        if self.alone_since is None:
            self.alone_since = now

    def goodbye(self, now: float, *, ends: bool) -> None:
        """The owner has left in good order; `ends` unless the kernel is to run on without it."""
        self.left(now)
        self.used()
        if ends and not self.terms.persist:
            self.goodbye_until = now + GOODBYE_SECONDS

    def launched(self, now: float) -> None:
        """There is a kernel process."""
        self.ended_at, self.quiet_since, self.is_over = None, now, False

    def ended(self, now: float) -> None:
        """The kernel process is no more."""
        self.ended_at = now

    def look(self, now: float, *, is_busy: bool, is_delivered: bool) -> Optional[Deadline]:
        """Take in what the kernel does now, and return what ends it first; None if nothing will."""
        is_quiet = is_delivered and (not is_busy or self.ended_at is not None)
        if not (is_quiet and self._is_quiet):
            self.quiet_since = now
        self._is_quiet = is_quiet
        found = [self._for_good(), self._by_goodbye(), self._by_silence()]
        if self.ended_at is not None:
            found.append(self._after_the_end(self.ended_at, is_delivered))
        elif is_quiet:
            found += [self._by_idleness(), self._by_loneliness()]
        return min((deadline for deadline in found if deadline is not None), default=None)

    def _for_good(self) -> Optional[Deadline]:
        if self.terms.max_lifetime is None or self.is_over:
            return None
        return Deadline(self.started_at + self.terms.max_lifetime, "max_lifetime")

    def _by_goodbye(self) -> Optional[Deadline]:
        return None if self.goodbye_until is None else Deadline(self.goodbye_until, "goodbye")

    def _by_silence(self) -> Optional[Deadline]:
        if self._is_used or self.alone_since is None:
            return None
        return Deadline(self.alone_since + UNJOINED_SECONDS, "unjoined")

    def _by_idleness(self) -> Optional[Deadline]:
        if self.terms.idle_timeout is None:
            return None
        return Deadline(self.quiet_since + self.terms.idle_timeout, "idle_timeout")

    def _by_loneliness(self) -> Optional[Deadline]:
        if self.alone_since is None or self.terms.persist:
            return None
        return Deadline(max(self.quiet_since, self.alone_since) + self.terms.lost_grace, "lost_grace")

    def _after_the_end(self, ended_at: float, is_delivered: bool) -> Optional[Deadline]:
        """Without a kernel process the relay stays for what it still has to deliver, or for a restart."""
        if self.goodbye_until is not None or (self.alone_since is None and not self.is_over):
            return None
        since = max(ended_at, self.alone_since or 0.0)
        if not is_delivered:
            return Deadline(since + self.terms.keep_exited, "keep_exited")
        if self.is_over:
            return Deadline(max(since, self.quiet_since) + LINGER_SECONDS, "delivered")
        return Deadline(max(since, self.quiet_since) + GOODBYE_SECONDS, "delivered")
