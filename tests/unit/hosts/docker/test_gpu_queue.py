"""hosts/docker/gpu_queue.py: who waits on an engine, in which order, who is awake; and what a place leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from kernelbridge.errors import HostRefused
from kernelbridge.hosts.docker import gpu_queue
from kernelbridge.hosts.docker.gpu_queue import QueuePlace
from kernelbridge.hosts.docker.responses import VolumeFacts
from tests.made_engines import MadeVolumes

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
WISH = '{"number":1}'


def volume(name: str, seconds: float, *, kernel: str = "", wish: str = "") -> VolumeFacts:
    """One that carries the queue's label, made so long after noon."""
    labels = {gpu_queue.QUEUE_LABEL: kernel or name, **({gpu_queue.REQUEST_LABEL: wish} if wish else {})}
    return VolumeFacts(name=f"kernelbridge-ticket-{name}", labels=labels, created=NOON + timedelta(seconds=seconds))


class Clock:
    """An engine's clock."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def place(volumes: MadeVolumes, kernel: str = "a") -> QueuePlace:
    return QueuePlace(volumes, kernel, request=WISH, user="ada@laptop")  # type: ignore[arg-type]


async def waiting(volumes: MadeVolumes, kernel: str, now: datetime) -> list[str]:
    found = gpu_queue.read(await volumes.list(gpu_queue.QUEUE_LABEL))
    return [ticket.kernel_id for ticket in gpu_queue.ahead(found, kernel, now)]


# -- what stands there is read


def test_tickets_come_in_the_order_of_the_engines_clock_and_of_their_ids_within_one_second() -> None:
    rows = [volume("b", 5), volume("c", 0), volume("a", 5), volume("a-1", 9, kernel="a")]
    assert [ticket.kernel_id for ticket in gpu_queue.read(rows)] == ["c", "a", "b"]


def test_a_beat_is_a_sign_of_life_and_no_ticket() -> None:
    rows = [volume("a", 0, wish=WISH), volume("a-7", 70, kernel="a"), volume("a-8", 80, kernel="a")]
    (ticket,) = gpu_queue.read(rows)
    assert (ticket.created, ticket.beat) == (NOON, NOON + timedelta(seconds=80))
    assert ticket.request == WISH
    assert sorted(ticket.volumes) == [f"kernelbridge-ticket-a{more}" for more in ("", "-7", "-8")]
    # What is left of a ticket that is gone is none.
    assert gpu_queue.read(rows[1:]) == []


def test_a_volume_whose_name_and_label_do_not_agree_is_no_ticket() -> None:
    foreign = VolumeFacts(name="data", labels={gpu_queue.QUEUE_LABEL: "a"}, created=NOON)
    assert gpu_queue.read([foreign, volume("a", 0, kernel="b")]) == []


@pytest.mark.parametrize(("silent_seconds", "is_awake"), [(0, True), (60, True), (61, False)])
def test_without_a_sign_of_life_for_a_minute_one_sleeps(silent_seconds: float, is_awake: bool) -> None:
    (ticket,) = gpu_queue.read([volume("a", -500), volume("a-1", 0, kernel="a")])
    assert ticket.is_awake(NOON + timedelta(seconds=silent_seconds)) is is_awake


@pytest.mark.parametrize(
    ("kernel", "now_seconds", "expected"),
    [
        ("a", 10, []),
        ("c", 10, ["a", "b"]),
        ("new", 10, ["a", "b", "c"]),
        ("c", 70, ["b"]),  # "a" has not beaten for 70 s, "b" for 20 s.
        ("new", 200, []),
    ],
)
def test_before_one_come_those_who_are_awake_and_came_earlier(
    kernel: str, now_seconds: float, expected: Sequence[str]
) -> None:
    rows = [volume("a", 0), volume("b", 1), volume("b-1", 50, kernel="b"), volume("c", 2)]
    found = gpu_queue.ahead(gpu_queue.read(rows), kernel, NOON + timedelta(seconds=now_seconds))
    assert [ticket.kernel_id for ticket in found] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T12:00:00.123456789Z", NOON),
        ("2026-01-02T12:00:00Z", NOON),
        ("2026-01-02T12:00:00.5+02:00", NOON - timedelta(hours=2)),
        ("2026-01-02T12:00:00+02:00", NOON - timedelta(hours=2)),
        ("2026-01-02T12:00:00.999999999-05:30", NOON + timedelta(hours=5, minutes=30)),
    ],
)
def test_an_engines_time_has_a_zone_and_nanoseconds(text: str, expected: datetime) -> None:
    now = gpu_queue.engine_now({"SystemTime": text})
    assert abs(now - expected) < timedelta(seconds=1)
    assert now.tzinfo is not None


def test_an_engine_that_tells_no_time_has_ours_and_one_that_tells_nonsense_is_told_of() -> None:
    assert abs(gpu_queue.engine_now({}) - datetime.now(UTC)) < timedelta(minutes=5)
    assert gpu_queue.engine_now({}).tzinfo is not None
    with pytest.raises(ValueError, match="SystemTime"):
        gpu_queue.engine_now({"SystemTime": 5})


def test_a_ticket_without_labels_asks_for_nothing_and_is_nobodys() -> None:
    bare = VolumeFacts(name="kernelbridge-ticket-", labels={}, created=NOON)
    (ticket,) = gpu_queue.read([bare])
    assert (ticket.kernel_id, ticket.request, ticket.user) == ("", "", "")


def test_zones_of_volumes_and_of_the_engine_need_not_agree() -> None:
    berlin = timezone(timedelta(hours=1))
    row = VolumeFacts(
        name="kernelbridge-ticket-a", labels={gpu_queue.QUEUE_LABEL: "a"}, created=NOON.astimezone(berlin)
    )
    (ticket,) = gpu_queue.read([row])
    assert ticket.is_awake(gpu_queue.engine_now({"SystemTime": "2026-01-02T12:00:59.1Z"}))
    assert not ticket.is_awake(gpu_queue.engine_now({"SystemTime": "2026-01-02T12:01:01.1Z"}))


# -- a place of one's own


async def test_at_no_moment_there_is_a_ticket_without_its_newest_sign_of_life() -> None:
    clock = Clock()
    volumes = MadeVolumes(now=clock)
    mine = place(volumes)
    assert repr(mine) == "<QueuePlace kernelbridge-ticket-a, 0 beats>"
    for _ in range(4):
        await mine.beat()
        clock.pass_by(gpu_queue.BEAT_SECONDS)
    assert repr(mine) == "<QueuePlace kernelbridge-ticket-a, 4 beats>"
    assert set(volumes.there) == {"kernelbridge-ticket-a", "kernelbridge-ticket-a-3"}
    # Once there is a beat, there is always one; and the ticket itself never goes.
    first = next(index for index, names in enumerate(volumes.moments) if len(names) > 1)
    for names in volumes.moments[first:]:
        assert "kernelbridge-ticket-a" in names
        assert [name for name in names if name.startswith("kernelbridge-ticket-a-")]


async def test_a_ticket_says_what_is_wished_and_by_whom_and_its_beats_only_whose_they_are() -> None:
    volumes = MadeVolumes(now=Clock())
    mine = place(volumes)
    await mine.beat()
    await mine.beat()
    ticket, beat = (volumes.there[name] for name in sorted(volumes.there))
    assert dict(ticket.labels) == {
        "kernelbridge.queue": "a",
        "kernelbridge.wish": WISH,
        "kernelbridge.user": "ada@laptop",
    }
    assert dict(beat.labels) == {"kernelbridge.queue": "a"}
    (read,) = gpu_queue.read(list(volumes.there.values()))
    assert (read.kernel_id, read.request, read.user) == ("a", WISH, "ada@laptop")
    # Nothing was removed: there was no beat before the first.
    assert not [line for line in volumes.log if line.startswith("remove")]


async def test_all_that_was_made_is_removed_at_the_end_the_ticket_last_and_nobody_elses() -> None:
    volumes = MadeVolumes(now=Clock())
    mine, other = place(volumes), place(volumes, "b")
    for one in (mine, other, mine, mine):
        await one.beat()
    # Another process of ours died before it had removed it.
    await volumes.make("kernelbridge-ticket-a-1", {gpu_queue.QUEUE_LABEL: "a"})
    volumes.log.clear()
    await mine.leave()
    assert set(volumes.there) == {"kernelbridge-ticket-b"}
    assert volumes.log[-1] == "remove kernelbridge-ticket-a"


async def test_who_never_took_a_ticket_has_none_to_give_back() -> None:
    volumes = MadeVolumes(now=Clock(), failure=HostRefused(host="lab", address="lab:22"))
    await place(volumes).leave()


async def test_a_place_whose_link_was_lost_goes_on_over_another_one() -> None:
    clock = Clock()
    lost, again = MadeVolumes(now=clock), MadeVolumes(now=clock)
    mine = place(lost)
    await mine.beat()
    lost.failure = HostRefused(host="lab", address="lab:22")
    with pytest.raises(HostRefused):
        await mine.beat()
    again.there = lost.there
    mine.move(again)  # type: ignore[arg-type]
    clock.pass_by(30)
    await mine.beat()
    (ticket,) = gpu_queue.read(list(again.there.values()))
    assert ticket.beat == clock.now


async def test_who_sleeps_is_passed_over_and_has_its_place_again_when_it_wakes() -> None:
    clock = Clock()
    volumes = MadeVolumes(now=clock)
    sleeper, other = place(volumes), place(volumes, "b")
    await sleeper.beat()
    clock.pass_by(5)
    await other.beat()
    assert await waiting(volumes, "b", clock.now) == ["a"]
    clock.pass_by(57)
    await other.beat()
    assert await waiting(volumes, "b", clock.now) == []
    assert await waiting(volumes, "new", clock.now) == ["b"]
    await sleeper.beat()
    assert await waiting(volumes, "b", clock.now) == ["a"]
    assert await waiting(volumes, "a", clock.now) == []


async def test_who_slept_until_its_ticket_was_thrown_away_queues_anew() -> None:
    clock: Any = Clock()
    volumes = MadeVolumes(now=clock)
    sleeper, other = place(volumes), place(volumes, "b")
    await sleeper.beat()
    await sleeper.beat()
    clock.pass_by(2 * 3600)
    await other.beat()
    dead, _ = gpu_queue.read(await volumes.list(gpu_queue.QUEUE_LABEL))
    await gpu_queue.throw_away(volumes, dead.volumes)  # type: ignore[arg-type]
    clock.pass_by(1)
    await sleeper.beat()
    assert await waiting(volumes, "new", clock.now) == ["b", "a"]
    await sleeper.leave()
    assert set(volumes.there) == {"kernelbridge-ticket-b"}
