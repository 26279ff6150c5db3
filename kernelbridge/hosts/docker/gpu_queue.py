"""Queue for a host's GPUs without an agent: a ticket is a named volume, ordered by the engine's clock.

Whoever beats is alive: a beat is a volume of its own, made anew every few seconds. A laptop that sleeps is passed over
and finds its place again when it wakes; the lock that the relay holds makes every mistake here harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from kernelbridge.hosts.docker.responses import VolumeFacts, read_time
from kernelbridge.hosts.labels import LABEL_PREFIX, NAME_PREFIX, USER_LABEL

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.volumes import Volumes

# All volumes of the queue carry it; its value is the kernel's id.
QUEUE_LABEL: Final = LABEL_PREFIX + "queue"
# What the ticket asks for; see GpuRequest.to_text(). A beat has none.
REQUEST_LABEL: Final = LABEL_PREFIX + "wish"
BEAT_SECONDS: Final = 10.0
# Without a beat for so long a ticket is passed over, and then thrown away.
ASLEEP_AFTER: Final = timedelta(seconds=60)
DEAD_AFTER: Final = timedelta(hours=1)
_PREFIX: Final = NAME_PREFIX + "ticket-"


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One kernel's place in the queue."""

    kernel_id: str
    request: str
    user: str
    created: datetime
    # The last sign of life; the ticket's own making counts.
    beat: datetime
    # All volumes that belong to it.
    volumes: tuple[str, ...]

    def is_awake(self, now: datetime) -> bool:
        """Whether its process lives and its laptop does not sleep, as far as can be told."""
        return now - self.beat <= ASLEEP_AFTER


def read(volumes: Sequence[VolumeFacts]) -> list[Ticket]:
    """Return the tickets among the volumes that carry QUEUE_LABEL, first come first."""
    found: list[Ticket] = []
    for one in volumes:
        kernel_id = one.labels.get(QUEUE_LABEL, "")
        if one.name != _PREFIX + kernel_id:
            continue
        beats = [beat for beat in volumes if beat.name.startswith(f"{one.name}-")]
        found.append(
            Ticket(
                kernel_id=kernel_id,
                request=one.labels.get(REQUEST_LABEL, ""),
                user=one.labels.get(USER_LABEL, ""),
                created=one.created,
                beat=max(beat.created for beat in [one, *beats]),
                volumes=(*(beat.name for beat in beats), one.name),
            )
        )
    return sorted(found, key=lambda ticket: (ticket.created, ticket.kernel_id))


def ahead(tickets: Sequence[Ticket], kernel_id: str, now: datetime) -> list[Ticket]:
    """Return who comes before this kernel: those awake with an older ticket; all awake where it has none."""
    place = next((index for index, one in enumerate(tickets) if one.kernel_id == kernel_id), len(tickets))
    return [ticket for ticket in tickets[:place] if ticket.is_awake(now)]


def engine_now(info: Mapping[str, Any]) -> datetime:
    """Return the engine's own time, out of its GET /info."""
    return read_time(info.get("SystemTime") or datetime.now(UTC).isoformat(), "SystemTime")


class QueuePlace:
    """This process's ticket for one kernel on one engine, from `beat()` to `leave()`."""

    def __init__(self, volumes: Volumes, kernel_id: str, *, request: str, user: str) -> None:
        self._volumes = volumes
        self._name = _PREFIX + kernel_id
        self._labels = {QUEUE_LABEL: kernel_id}
        self._ticket_labels = {**self._labels, REQUEST_LABEL: request, USER_LABEL: user}
        # How many beats were made; 0 before the ticket is there.
        self._beats = 0

    def __repr__(self) -> str:
        return f"<QueuePlace {self._name}, {self._beats} beats>"

    def move(self, volumes: Volumes) -> None:
        """Reach the engine another way from now on: its link was lost meanwhile."""
        self._volumes = volumes

    async def beat(self) -> None:
        """Show that this process lives; the first beat takes the ticket. Raises KernelBridgeError."""
        number = self._beats
        self._beats += 1
        # Each time: after a long sleep others have thrown it away. One that is there stays as it is.
        await self._volumes.make(self._name, self._ticket_labels)
        if number == 0:
            return
        # The new one first: at no moment is there none.
        await self._volumes.make(f"{self._name}-{number}", self._labels)
        if number > 1:
            await self._volumes.remove(f"{self._name}-{number - 1}")

    async def leave(self) -> None:
        """Give the ticket back. Raises KernelBridgeError."""
        if self._beats:
            await throw_away(self._volumes, await self._mine())

    async def _mine(self) -> list[str]:
        label = f"{QUEUE_LABEL}={self._labels[QUEUE_LABEL]}"
        return [row.name for row in await self._volumes.list(label)]


async def throw_away(volumes: Volumes, names: Sequence[str]) -> None:
    """Remove the volumes of a ticket, the ticket itself last."""
    for name in sorted(names, key=len, reverse=True):
        await volumes.remove(name)
