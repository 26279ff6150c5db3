"""start/gpu_allocator.py: how a start waits for GPUs that others have, who comes first, and that nothing of it
stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from kernelbridge.errors import GpusBusy, HostUnreachable, LinkLost, LoginRefused
from kernelbridge.hosts.backend import ContainerFacts
from kernelbridge.hosts.docker import gpu_queue
from kernelbridge.kernel.start.gpu_allocator import NEXT_LOOK_SECONDS, QUEUE_LOOK_SECONDS, tidy
from tests.made_clock import MadeClock
from tests.made_engines import BOBS, CARLS, MINE, MadeEngine, cards
from tests.made_starts import TICKET, Start, begun, cancelled, taken


@pytest.fixture
def lab(clock: MadeClock) -> MadeEngine:
    return MadeEngine(clock=clock)


# -- the queue


async def test_who_waits_has_a_ticket_on_every_host_and_is_told_its_place(lab: MadeEngine, clock: MadeClock) -> None:
    two = MadeEngine(clock=clock, name="two")
    for engine in (lab, two):
        engine.hold(BOBS, "GPU-0")
    await two.queue(CARLS)
    await asyncio.sleep(2)
    start = Start(lab, two, wait=600.0, gpu_model="A100")
    task = await begun(start)
    for engine in (lab, two):
        ticket = engine.volumes.there[TICKET]
        assert ticket.labels["kernelbridge.wish"] == '{"number":1,"model":"A100"}'
        assert ticket.labels["kernelbridge.user"] == "ada@laptop"
    assert start.said[-1].startswith(
        "waiting for 1 GPU of A100, place in the queue: 1 on lab, 2 on two (on lab GPU 0: pytorch of bob@desk since "
    )
    assert repr(start.leasing) == "<GpuAllocator 1 GPU of A100 for aaaa1111 in the queue>"
    two.boxes.clear()
    lab.boxes.clear()
    assert taken(await task) == ("lab", ("GPU-0",))
    assert lab.volumes.there == {}
    assert set(two.volumes.there) == {f"kernelbridge-ticket-{CARLS}"}


async def test_a_card_that_comes_free_is_taken_at_the_next_look(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    task = await begun(Start(lab, wait=600.0))
    lab.boxes.clear()
    freed = clock.now
    assert taken(await task) == ("lab", ("GPU-0",))
    assert clock.now - freed <= NEXT_LOOK_SECONDS + 0.1
    assert lab.volumes.there == {}


async def test_who_is_not_next_looks_less_often(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    await lab.queue(CARLS)
    await asyncio.sleep(2)
    start = Start(lab, wait=600.0)
    task = await begun(start)
    looks = len(start.said)
    await asyncio.sleep(20)
    assert 20 / QUEUE_LOOK_SECONDS - 1 <= len(start.said) - looks <= 20 / QUEUE_LOOK_SECONDS + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("seconds", [5, 25])
async def test_a_start_that_is_cancelled_gives_its_tickets_back(lab: MadeEngine, seconds: float) -> None:
    lab.hold(BOBS, "GPU-0")
    task = await begun(Start(lab, wait=600.0), seconds=seconds)
    assert TICKET in lab.volumes.there
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lab.volumes.there == {}


async def test_a_start_that_is_cancelled_as_it_joins_the_queue_gives_its_ticket_back(lab: MadeEngine) -> None:
    lab.hold(BOBS, "GPU-0")
    task = asyncio.create_task(Start(lab, wait=600.0).whole())
    while TICKET not in lab.volumes.there:  # noqa: ASYNC110 - one turn of the loop each
        await asyncio.sleep(0)
    await cancelled(task)
    assert lab.volumes.there == {}


async def test_a_sign_of_life_under_way_at_the_end_leaves_nothing(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    task = await begun(Start(lab, wait=600.0))
    make = lab.volumes.make
    under_way: list[asyncio.Task[None]] = []

    async def late(name: str, labels: Mapping[str, str]) -> None:
        # As the engine's threads: who stops waiting for one does not stop it.
        async def work() -> None:
            await asyncio.sleep(1)
            await make(name, labels)

        under_way.append(asyncio.create_task(work()))
        await asyncio.shield(under_way[-1])

    lab.volumes.make = late  # type: ignore[method-assign]
    while not under_way:  # noqa: ASYNC110 - the clock is made up
        await asyncio.sleep(0.5)
    await cancelled(task)
    await asyncio.gather(*under_way)
    await asyncio.sleep(1)
    assert lab.volumes.there == {}


async def test_who_waits_shows_that_it_lives(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    task = await begun(Start(lab, wait=600.0), seconds=300)
    youngest = max(volume.created for volume in lab.volumes.there.values())
    assert (clock.engines - youngest).total_seconds() <= 11
    assert len(lab.volumes.there) <= 3
    await cancelled(task)


async def test_the_wait_has_an_end_that_says_how_long_it_was(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    began = clock.now
    with pytest.raises(GpusBusy, match=r"^lab: 1 GPU requested, but not free after 5 min in the queue: GPU 0: pytorch"):
        await Start(lab, wait=300.0).whole()
    assert 300 <= clock.now - began <= 300 + 2 * QUEUE_LOOK_SECONDS
    assert lab.volumes.there == {}


async def test_of_two_who_wait_the_older_gets_the_card_and_then_the_other(lab: MadeEngine) -> None:
    lab.hold(CARLS, "GPU-0")
    older = await begun(Start(lab, kernel=BOBS, wait=600.0))
    # Its id comes first, and it looks no less often.
    younger = await begun(Start(lab, kernel=MINE, wait=600.0), seconds=20)
    lab.boxes.clear()
    assert taken(await older) == ("lab", ("GPU-0",))
    lab.hold(BOBS, "GPU-0")
    await asyncio.sleep(20)
    assert not younger.done()
    lab.boxes.clear()
    assert taken(await younger) == ("lab", ("GPU-0",))
    assert lab.volumes.there == {}


async def test_what_one_who_waits_could_use_is_not_given_to_a_newcomer(lab: MadeEngine) -> None:
    lab.facts_of_gpus = cards(2)
    lab.hold(CARLS, "GPU-0")
    older = await begun(Start(lab, kernel=BOBS, gpus=2, wait=600.0))
    with pytest.raises(GpusBusy, match="GPU 1: reserved for a waiting kernel"):
        await Start(lab).whole()
    await cancelled(older)
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-1",))


async def test_one_who_sleeps_is_passed_over_and_keeps_its_ticket(lab: MadeEngine, clock: MadeClock) -> None:
    await lab.queue(BOBS)
    with pytest.raises(GpusBusy, match="reserved for a waiting kernel"):
        await Start(lab).whole()
    clock.skip(120)
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))
    assert f"kernelbridge-ticket-{BOBS}" in lab.volumes.there
    await lab.queue(BOBS)  # It wakes up.
    with pytest.raises(GpusBusy, match="reserved for a waiting kernel"):
        await Start(lab).whole()


async def test_the_ticket_of_one_who_is_no_more_is_thrown_away(lab: MadeEngine, clock: MadeClock) -> None:
    await lab.queue(BOBS)
    await lab.queue(BOBS)
    clock.skip(3700)
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))
    assert lab.volumes.there == {}


async def test_a_ticket_is_kept_for_an_hour_without_a_sign_of_life_and_no_longer(
    lab: MadeEngine, clock: MadeClock
) -> None:
    await lab.queue(BOBS)
    clock.skip(gpu_queue.DEAD_AFTER.total_seconds())
    before = len(lab.log)
    await tidy(lab)  # type: ignore[arg-type]
    # It is dead a moment later.
    assert not [line for line in lab.log[before:] if "ticket" in line]
    clock.skip(1)
    await tidy(lab)  # type: ignore[arg-type]
    assert f"remove kernelbridge-ticket-{BOBS}" in lab.log[before:]


async def test_carriers_that_were_never_started_are_removed_after_a_minute(lab: MadeEngine) -> None:
    now = lab.clock.engines.timestamp()
    cases = (
        ("kernelbridge-old", 61, "created"),
        ("kernelbridge-new", 60, "created"),
        ("kernelbridge-runs", 61, "running"),
        ("another-old", 61, "created"),
    )
    lab.carriers = [
        ContainerFacts(id=name, name=name, image="x", labels={}, state=state, created=now - age)
        for name, age, state in cases
    ]
    await tidy(lab)  # type: ignore[arg-type]
    assert lab.log == ["remove kernelbridge-old"]


async def test_a_wish_that_cannot_be_read_keeps_nobody_out(lab: MadeEngine) -> None:
    await lab.queue(BOBS, wish="[" * 5000)
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))


async def test_a_link_that_is_lost_for_now_does_not_cost_the_place(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(CARLS, "GPU-0")
    start = Start(lab, kernel=BOBS, wait=6000.0)
    older = await begun(start)
    taken_at = lab.volumes.there[f"kernelbridge-ticket-{BOBS}"].created
    younger = await begun(Start(lab, wait=6000.0))
    start.away["lab"] = HostUnreachable(host="lab", address="lab:22", reason="no route")
    await asyncio.sleep(200)
    assert start.said[-1].startswith("waiting for 1 GPU, place in the queue: not known (lab: lab:22 cannot be")
    assert not older.done()
    start.away.clear()
    await asyncio.sleep(20)
    assert lab.volumes.there[f"kernelbridge-ticket-{BOBS}"].created == taken_at
    lab.boxes.clear()
    assert taken(await older) == ("lab", ("GPU-0",))
    await cancelled(younger)


async def test_a_link_that_was_never_there_is_not_waited_for(lab: MadeEngine) -> None:
    start = Start(lab, wait=600.0)
    start.away["lab"] = HostUnreachable(host="lab", address="lab:22", reason="no route")
    with pytest.raises(HostUnreachable):
        await start.whole()


async def test_what_waiting_does_not_mend_ends_it(lab: MadeEngine) -> None:
    lab.hold(BOBS, "GPU-0")
    start = Start(lab, wait=600.0)
    task = await begun(start)
    start.away["lab"] = LoginRefused(host="lab", user="ada")
    with pytest.raises(LoginRefused):
        await task


async def test_a_host_that_is_away_at_the_end_does_not_hold_the_end_up(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    start = Start(lab, wait=600.0)
    task = await begun(start)
    start.away["lab"] = LinkLost(host="lab")
    began = clock.now
    await cancelled(task)
    await start.leasing.aclose()
    assert clock.now - began < 11


async def test_two_hosts_whose_tickets_cannot_all_be_made_are_waited_for_all_the_same(
    lab: MadeEngine, clock: MadeClock
) -> None:
    two = MadeEngine(clock=clock, name="two")
    lab.hold(BOBS, "GPU-0")
    two.hold(BOBS, "GPU-0")
    start = Start(lab, two, wait=600.0)
    start.away["two"] = LinkLost(host="two")
    task = await begun(start)
    assert place_text(start.said) == "1 on lab"
    start.away.clear()
    await asyncio.sleep(5)
    assert place_text(start.said) == "1 on lab, 1 on two"
    two.boxes.clear()
    assert taken(await task) == ("two", ("GPU-0",))
    assert (lab.volumes.there, two.volumes.there) == ({}, {})


def place_text(said: Sequence[str]) -> str:
    return said[-1].partition("place in the queue: ")[2].partition(" (")[0]
