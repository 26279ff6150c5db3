"""start/gpu_allocator.py: which GPUs a start takes, and on which of its hosts.

How it waits: test_gpu_allocator_queue.py.
"""

from __future__ import annotations

import pytest

from kernelbridge.errors import GpusBusy, GpuUnavailable, HostUnreachable, LinkLost, LoginRefused
from kernelbridge.kernel.start.gpu_allocator import LAST_SECONDS, LOST_SECONDS, NEXT_LOOK_SECONDS
from tests.made_clock import MadeClock
from tests.made_engines import BOBS, CARLS, MINE, MadeEngine, cards
from tests.made_starts import Start, begun, taken


@pytest.fixture
def lab(clock: MadeClock) -> MadeEngine:
    return MadeEngine(clock=clock)


# -- who has what


async def test_a_card_that_is_free_is_taken_at_once(lab: MadeEngine) -> None:
    start = Start(lab)
    lease = await start.whole()
    assert taken(lease) == ("lab", ("GPU-0",))
    assert lease.facts == lab.facts_of_gpus
    # No queue is joined and nobody is told of one.
    assert (lab.log, start.said) == ([], [])
    assert repr(start.leasing) == "<GpuAllocator 1 GPU for aaaa1111>"


async def test_where_no_gpu_is_wanted_no_host_is_asked(lab: MadeEngine) -> None:
    lab.failure = LinkLost(host="lab")
    assert taken(await Start(lab, gpus=0).whole()) == ("lab", ())


@pytest.mark.parametrize("state", ["running", "paused", "restarting", "removing"])
async def test_what_a_container_of_ours_holds_is_not_taken(lab: MadeEngine, state: str) -> None:
    lab.facts_of_gpus = cards(2)
    lab.hold(BOBS, "GPU-0", state=state)
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-1",))


@pytest.mark.parametrize("state", ["exited", "dead"])
async def test_what_a_container_held_that_has_ended_is_free(lab: MadeEngine, state: str) -> None:
    lab.hold(BOBS, "GPU-0", state=state)
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))


async def test_what_a_container_only_claims_that_was_not_started_comes_last(lab: MadeEngine) -> None:
    lab.facts_of_gpus = cards(2)
    lab.hold(BOBS, "GPU-0", state="created")
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-1",))
    # The start that made it may be no more: a claim alone keeps nobody out.
    lab.facts_of_gpus = cards(1)
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))


async def test_what_the_same_kernel_held_before_is_no_obstacle(lab: MadeEngine) -> None:
    lab.hold(MINE, "GPU-0")
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))


async def test_a_container_whose_name_and_labels_do_not_agree_holds_nothing(lab: MadeEngine) -> None:
    lab.hold(BOBS, "GPU-0")
    lab.boxes = {CARLS: lab.boxes[BOBS]}
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))


async def test_without_wait_a_full_host_says_at_once_who_has_it_since_when(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    began = clock.now
    with pytest.raises(GpusBusy) as caught:
        await Start(lab).whole()
    assert clock.now - began < 1
    (holder,) = caught.value.holders
    assert holder.startswith("GPU 0: pytorch of bob@desk since ")
    assert caught.value.sentence == f"lab: 1 GPU requested, but not free: {holder}."
    assert lab.log == []


async def test_what_a_host_can_never_give_is_not_waited_for(lab: MadeEngine) -> None:
    with pytest.raises(GpuUnavailable):
        await Start(lab, gpus=2, wait=600.0).whole()
    assert lab.log == []


async def test_a_kernel_that_has_given_its_gpus_back_holds_none_whatever_its_labels_say(lab: MadeEngine) -> None:
    lab.hold(BOBS, "GPU-0", says=())
    assert taken(await Start(lab).whole()) == ("lab", ("GPU-0",))


async def test_a_relay_that_does_not_answer_holds_what_its_labels_say(lab: MadeEngine, clock: MadeClock) -> None:
    lab.hold(BOBS, "GPU-0")
    lab.boxes[BOBS].status = None
    with pytest.raises(GpusBusy):
        await Start(lab).whole()
    lab.boxes[BOBS].status = {"gpus": {}}  # Of another version.
    with pytest.raises(GpusBusy):
        await Start(lab).whole()


# -- another was faster


async def test_a_card_that_was_lost_to_somebody_unknown_is_left_alone_for_a_moment(
    lab: MadeEngine, clock: MadeClock
) -> None:
    lab.facts_of_gpus = cards(2)
    leasing = Start(lab).leasing
    first = await leasing.next()
    leasing.lost(first)
    second = await leasing.next()
    assert [taken(first), taken(second)] == [("lab", ("GPU-0",)), ("lab", ("GPU-1",))]
    leasing.lost(second)
    with pytest.raises(GpusBusy, match="GPU 0: a kernel that starts of another since"):
        await leasing.next()
    clock.skip(LOST_SECONDS)
    assert taken(await leasing.next()) == ("lab", ("GPU-0",))


async def test_a_card_that_was_lost_comes_after_those_that_were_not(lab: MadeEngine, clock: MadeClock) -> None:
    lab.facts_of_gpus = cards(2)
    leasing = Start(lab).leasing
    leasing.lost(await leasing.next())
    clock.skip(LOST_SECONDS)
    assert taken(await leasing.next()) == ("lab", ("GPU-1",))
    clock.skip(LAST_SECONDS)
    assert taken(await leasing.next()) == ("lab", ("GPU-0",))


async def test_a_lost_card_is_taken_at_the_first_look_after_its_winner(lab: MadeEngine, clock: MadeClock) -> None:
    start = Start(lab, wait=600.0)
    start.leasing.lost(await start.leasing.next())
    lab.hold(BOBS, "GPU-0")
    task = await begun(start)
    lab.boxes.clear()
    freed = clock.now
    assert taken(await task) == ("lab", ("GPU-0",))
    assert clock.now - freed <= NEXT_LOOK_SECONDS + 0.1


async def test_who_took_a_lost_card_is_named_as_soon_as_its_labels_are_seen(lab: MadeEngine) -> None:
    leasing = Start(lab).leasing
    leasing.lost(await leasing.next())
    lab.hold(BOBS, "GPU-0")
    with pytest.raises(GpusBusy, match="pytorch of bob@desk since"):
        await leasing.next()


# -- several hosts


async def test_the_first_host_that_can_give_it_is_taken(lab: MadeEngine, clock: MadeClock) -> None:
    two = MadeEngine(clock=clock, name="two")
    assert taken(await Start(lab, two).whole()) == ("lab", ("GPU-0",))
    lab.hold(BOBS, "GPU-0")
    assert taken(await Start(lab, two).whole()) == ("two", ("GPU-0",))
    two.hold(CARLS, "GPU-0")
    lab.boxes.clear()
    assert taken(await Start(two, lab).whole()) == ("lab", ("GPU-0",))


async def test_a_host_that_is_away_does_not_keep_the_next_from_being_asked(lab: MadeEngine, clock: MadeClock) -> None:
    start = Start(lab, MadeEngine(clock=clock, name="two"))
    start.away["lab"] = HostUnreachable(host="lab", address="lab:22", reason="no route")
    assert taken(await start.whole()) == ("two", ("GPU-0",))


async def test_of_several_failures_the_queue_that_can_be_joined_is_told(lab: MadeEngine, clock: MadeClock) -> None:
    two = MadeEngine(clock=clock, name="two")
    two.hold(BOBS, "GPU-0")
    start = Start(lab, two)
    start.away["lab"] = LoginRefused(host="lab", user="ada")
    with pytest.raises(GpusBusy, match=r"^two: "):
        await start.whole()
