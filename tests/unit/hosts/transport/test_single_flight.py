"""hosts/transport/single_flight.py: one run for all who ask; who gives up ends nothing for the others."""

from __future__ import annotations

import asyncio
import gc

import pytest

from kernelbridge.hosts.transport.single_flight import ShieldedTasks, SingleFlight


class Work:
    """Counts its runs; each ends when it may, with its number or the failure."""

    def __init__(self) -> None:
        self.runs = 0
        self.may_finish = asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self) -> int:
        self.runs += 1
        number = self.runs
        await self.may_finish.wait()
        if self.failure is not None:
            raise self.failure
        return number


class GoneError(Exception):
    """The run was cancelled."""


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_all_who_ask_meanwhile_share_one_run_and_the_next_begins_another() -> None:
    flight, work = SingleFlight[int](), Work()
    asking = [asyncio.create_task(flight.join(work)) for _ in range(3)]
    await turns()
    assert repr(flight) == "<SingleFlight under way>"
    work.may_finish.set()
    assert await asyncio.gather(*asking) == [1, 1, 1]
    assert not flight.is_under_way
    assert await flight.join(work) == 2


async def test_one_who_gives_up_does_not_end_the_run_of_the_others() -> None:
    flight, work = SingleFlight[int](), Work()
    hasty, patient = (asyncio.create_task(flight.join(work)) for _ in range(2))
    await turns()
    hasty.cancel()
    await turns()
    work.may_finish.set()
    assert await patient == 1
    assert hasty.cancelled()


async def test_a_failure_is_told_to_all_and_forgotten() -> None:
    flight, work = SingleFlight[int](), Work()
    work.failure = ValueError("no")
    work.may_finish.set()
    assert await asyncio.gather(*(flight.join(work) for _ in range(2)), return_exceptions=True) == [work.failure] * 2
    work.failure = None
    assert await flight.join(work) == 2


async def test_nobody_complains_of_a_failure_that_all_have_given_up() -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    flight, work = SingleFlight[int](), Work()
    work.failure = ValueError("no")
    asking = asyncio.create_task(flight.join(work))
    await turns()
    asking.cancel()
    work.may_finish.set()
    await turns()
    flight.renew()
    gc.collect()
    await turns()
    assert complaints == []


async def test_a_run_that_is_too_old_goes_on_beside_the_new_one() -> None:
    flight, work = SingleFlight[int](), Work()
    seen: list[bool] = []

    async def looking() -> int:
        number = await work()
        seen.append(flight.is_current)
        return number

    early = asyncio.create_task(flight.join(looking))
    await turns()
    flight.renew()
    late = asyncio.create_task(flight.join(looking))
    await turns()
    work.may_finish.set()
    assert (await early, await late) == (1, 2)
    assert seen == [False, True]


async def test_a_cancelled_run_is_an_error_for_those_who_wait_where_one_is_named() -> None:
    flight, work = SingleFlight[int](), Work()
    told = asyncio.create_task(flight.join(work, cancelled=GoneError))
    plain = asyncio.create_task(flight.join(work))
    given_up = asyncio.create_task(flight.join(work, cancelled=GoneError))
    await turns()
    given_up.cancel()
    flight.cancel()
    with pytest.raises(GoneError):
        await told
    await turns()
    assert plain.cancelled()
    assert given_up.cancelled()


async def test_closing_ends_every_run_twice_over() -> None:
    flight, work = SingleFlight[int](), Work()
    early = asyncio.create_task(flight.join(work))
    await turns()
    flight.renew()
    late = asyncio.create_task(flight.join(work))
    await turns()
    await flight.aclose()
    await flight.aclose()
    assert early.cancelled() and late.cancelled()


async def test_a_task_outlives_who_waited_for_it() -> None:
    tasks, work = ShieldedTasks[int](), Work()
    task = tasks.start(work())
    waiting = asyncio.ensure_future(asyncio.shield(task))
    await turns()
    waiting.cancel()
    work.may_finish.set()
    await turns()
    assert task.result() == 1
