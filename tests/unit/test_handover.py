"""handover.py: messages come to the loop in order, in batches, from another thread."""

from __future__ import annotations

import asyncio

from kernelbridge.handover import Handover

Batch = list[tuple[int, bytes]]


async def test_what_comes_before_the_loop_looks_is_one_batch() -> None:
    batches: list[Batch] = []
    handover = Handover(batches.append)
    for number in range(3):
        handover.put([(0, b"%d" % number)])
    assert repr(handover) == "<Handover 3 waiting>"
    assert batches == []
    await asyncio.sleep(0)
    assert batches == [[(0, b"0"), (0, b"1"), (0, b"2")]]
    handover.put([(1, b"next")])
    await asyncio.sleep(0)
    assert batches[1:] == [[(1, b"next")]]


async def test_nothing_is_lost_between_threads_and_the_order_stays() -> None:
    batches: list[Batch] = []
    handover = Handover(batches.append)

    def put() -> None:
        for number in range(1000):
            handover.put([(0, b"%d" % number)])

    await asyncio.to_thread(put)
    await asyncio.sleep(0.01)
    came = [one for batch in batches for one in batch]
    assert came == [(0, b"%d" % number) for number in range(1000)]
    assert all(batches)
