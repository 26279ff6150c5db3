"""Decide how many bytes may be under way, from the rate and the round trip that acknowledgements show. Pure."""

from __future__ import annotations

from typing import NamedTuple, Optional

from .frames import Buffer

KIB = 1024
MIB = 1024 * KIB

# Bytes under way: what the line delivers in QUEUE_SECONDS, or in ROUND_TRIPS (more than one, so that the rate seen can
# grow) but no more than BEYOND_SECONDS beyond one, between these bounds. A reply on the quick lane waits for that.
LEAST_WINDOW_BYTES = 256 * KIB
MOST_WINDOW_BYTES = 16 * MIB
# What may be under way before anything was measured: a far host costs fewer round trips to get going.
FIRST_WINDOW_BYTES = 1 * MIB
QUEUE_SECONDS = 0.1
ROUND_TRIPS = 4
BEYOND_SECONDS = 0.15
# A full line never shows its round trip, only its queue: the least that was seen counts, and every so often the queue
# is drained for a moment to see it anew.
RENEW_SECONDS = 30.0
DRAIN_SECONDS = 0.3


class Sent(NamedTuple):
    """A frame on the wire and not acknowledged yet."""

    number: int
    flags: int
    payload: Buffer
    at_seconds: float
    delivered_bytes: int
    # The message that it is a piece of.
    packed: bytes = b""


class SendWindow:
    """Limits how many bytes may be under way, by the rate and the round trip seen."""

    def __init__(self) -> None:
        self.limit_bytes = FIRST_WINDOW_BYTES
        self._rate = 0.0
        self._since_seconds = 0.0
        # The best rate of the period before this one, so that a period's start forgets nothing.
        self._rate_before = 0.0
        self._round_trip_seconds = float("inf")
        # When the round trip was last looked for; and since when it is looked for now, with the least of it so far.
        self._renewed_at = float("-inf")
        self._draining_since: Optional[float] = None
        self._least_seconds = float("inf")

    def __repr__(self) -> str:
        return "<SendWindow %d KiB>" % (self.limit_bytes // KIB)

    def observe(self, sent: Sent, delivered_bytes: int, now: float) -> None:
        """Take the acknowledgement of `sent` at `now` into account; `delivered_bytes` is the total delivered."""
        took = now - sent.at_seconds
        if took <= 0:
            return
        if now - self._since_seconds > 5:
            self._rate_before, self._rate, self._since_seconds = self._rate, 0.0, now
        self._rate = max(self._rate, (delivered_bytes - sent.delivered_bytes) / took)
        self._round_trip_seconds = min(self._round_trip_seconds, took)
        self._renew(sent, took, now)
        rate = max(self._rate, self._rate_before)
        queued_seconds = min(ROUND_TRIPS * self._round_trip_seconds, self._round_trip_seconds + BEYOND_SECONDS)
        wanted = rate * max(QUEUE_SECONDS, queued_seconds)
        if self._draining_since is not None:
            wanted = LEAST_WINDOW_BYTES
        self.limit_bytes = int(min(MOST_WINDOW_BYTES, max(LEAST_WINDOW_BYTES, wanted)))

    def _renew(self, sent: Sent, took: float, now: float) -> None:
        """Look for the round trip anew, now and then: it grows when a laptop goes from one network to another."""
        if self._renewed_at == float("-inf"):
            self._renewed_at = now
        if self._draining_since is None and now - self._renewed_at > RENEW_SECONDS:
            self._draining_since, self._least_seconds = now, float("inf")
        elif self._draining_since is not None:
            if sent.at_seconds >= self._draining_since:
                self._least_seconds = min(self._least_seconds, took)
            if now - self._draining_since > DRAIN_SECONDS and self._least_seconds < float("inf"):
                self._round_trip_seconds, self._draining_since, self._renewed_at = self._least_seconds, None, now
