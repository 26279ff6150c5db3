"""One line to a relay: two ways of bytes with a delay, a rate and every fault; and the network that lines share."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.world.clock import Agenda

PIPE_BYTES = 256 * 1024
_PUMP_BYTES = 64 * 1024


class Network:
    """Between the laptop and the host."""

    def __init__(self, agenda: Agenda, chance: random.Random) -> None:
        self.agenda = agenda
        self.chance = chance
        self.delay_seconds = 0.01
        self.bytes_per_second = 10_000_000.0
        # Until when nothing goes through, and until when no new line can be made.
        self.stalled_until = self.away_until = 0.0

    @property
    def is_away(self) -> bool:
        return self.agenda.now < self.away_until


class _Way:
    """One direction: pieces on their way, each with the time of its arrival; what is swallowed never arrives."""

    def __init__(self, network: Network, arrive: Callable[[bytes], None]) -> None:
        self._network = network
        self._arrive = arrive
        self._free_at = 0.0
        self.under_way: deque[bytes] = deque()
        self.is_swallowed = self.is_over = False

    def send(self, piece: bytes) -> float:
        """Put bytes on the way; return when the way is free for more."""
        network = self._network
        now = network.agenda.now
        self._free_at = max(self._free_at, now) + len(piece) / network.bytes_per_second
        self.under_way.append(piece)
        network.agenda.at(self._free_at + network.delay_seconds, self._arrives)
        return self._free_at

    def _arrives(self) -> None:
        if self.is_over or not self.under_way:
            return
        if self._network.agenda.now < self._network.stalled_until:
            self._network.agenda.at(self._network.stalled_until, self._arrives)
            return
        piece = self.under_way.popleft()
        if not self.is_swallowed:
            self._arrive(piece)

    def end(self, share: float) -> None:
        """Let a share of what is under way arrive, up to any byte, and then nothing."""
        whole = b"".join(self.under_way)
        self.is_over = True
        self.under_way.clear()
        kept = whole[: int(len(whole) * share)]
        if kept and not self.is_swallowed:
            self._arrive(kept)


class Line:
    """An exec stream: what a RelayClient writes to and hears from, and the bridge's pipes at the relay."""

    def __init__(self, network: Network, receiver: Any, *, post: Callable[..., None], ring: Callable[[], None]) -> None:
        """`post` runs a function in the client's process when that is awake; `ring` wakes the relay."""
        self._network = network
        self._receiver = receiver
        self._post = post
        self._ring = ring
        self._up = _Way(network, self._arrives_up)
        self._down = _Way(network, self._arrives_down)
        # At the relay: what it can read, whether that has an end, what it has written; and whether it closed its ends.
        self.source = bytearray()
        self.has_ended = False
        self.sink = bytearray()
        self.is_closed_there = self.is_closed_here = False
        # When the relay last read something.
        self.heard_there_at = 0.0
        self._is_pumping = False

    # -- the client's end

    def write(self, data: bytes | memoryview) -> None:
        if not self.is_closed_here and data:
            self._up.send(bytes(data))

    def close(self) -> None:
        """The client has closed it: what is under way towards the relay is lost or not, as it happens."""
        if not self.is_closed_here:
            self.is_closed_here = True
            self._receiver.closed(None)
            chance = self._network.chance
            self._network.agenda.after(self._network.delay_seconds, lambda: self._end_there(chance.random()))

    def _closed_here(self) -> None:
        if not self.is_closed_here:
            self.is_closed_here = True
            self._receiver.closed(None)

    def _hears(self, piece: bytes) -> None:
        if not self.is_closed_here:
            self._receiver.data_received(piece)

    def _arrives_down(self, piece: bytes) -> None:
        self._post(self._hears, piece)

    # -- the relay's end

    def _arrives_up(self, piece: bytes) -> None:
        if not self.is_closed_there:
            self.source += piece
            if not self._up.is_over:  # What comes with an end may be half a frame.
                self.heard_there_at = self._network.agenda.now
            self._ring()

    def _end_there(self, share: float) -> None:
        self._up.end(share)
        self.has_ended = True
        self._ring()

    def room(self) -> int:
        return PIPE_BYTES - len(self.sink)

    def put(self, data: bytes) -> None:
        """The relay has written."""
        self.sink += data
        if not self._is_pumping:
            self._pump()

    def _pump(self) -> None:
        self._is_pumping = False
        if not self.sink or self._down.is_over:
            return
        was_full = self.room() <= 0
        size = min(len(self.sink), self._network.chance.choice((_PUMP_BYTES, _PUMP_BYTES, 1000, 7)))
        piece = bytes(self.sink[:size])
        del self.sink[:size]
        free_at = self._down.send(piece)
        if self.sink:
            self._is_pumping = True
            self._network.agenda.at(free_at, self._pump)
        elif self.is_closed_there:
            self._network.agenda.at(free_at + self._network.delay_seconds, self._end_here)
        if was_full:
            self._ring()

    def _end_here(self) -> None:
        if self._down.under_way:  # It comes behind what is under way.
            self._network.agenda.after(self._network.delay_seconds, self._end_here)
        else:
            self._post(self._closed_here)

    def close_there(self) -> None:
        """The relay has closed its pipes, and the bridge ends with that."""
        if not self.is_closed_there:
            self.is_closed_there = True
            if not self.sink:
                self._network.agenda.after(self._network.delay_seconds, self._end_here)

    # -- faults

    def swallow(self, *, up: bool, down: bool) -> None:
        """What is written from now on is taken, and gets nowhere."""
        self._up.is_swallowed |= up
        self._down.is_swallowed |= down

    def cut(self, *, up: float, down: float, is_seen_here: bool, is_seen_there: bool) -> None:
        """It ends: such shares of what is under way arrive. Who does not see it hears nothing for ever."""
        self.sink.clear()
        self._down.end(down)
        if is_seen_here:
            self._post(self._closed_here)
        if is_seen_there:
            self._end_there(up)
        else:
            self._up.end(up)

    def abandon(self, *, is_seen: bool) -> None:
        """The client's process was killed; the relay sees an end, or nothing."""
        self.is_closed_here = True
        self._down.end(0.0)
        if is_seen:
            chance = self._network.chance
            self._network.agenda.after(self._network.delay_seconds, lambda: self._end_there(chance.random()))
        else:
            self._up.is_swallowed = True
