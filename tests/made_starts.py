"""Starts that look for GPUs on made-up engines, and what they are heard to say; for the tests of gpu_allocator.py."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from kernelbridge.config.schema import Host
from kernelbridge.kernel.start.gpu_allocator import GpuAllocator, Lease
from tests.made_engines import LAB, MINE, TWO, MadeEngine, launch_request

TICKET = f"kernelbridge-ticket-{MINE}"


class Start:
    """One start that looks for its GPUs, and what it said meanwhile."""

    def __init__(self, *engines: MadeEngine, kernel: str = MINE, **keys: Any) -> None:
        self.engines: Mapping[str, MadeEngine] = {engine.name: engine for engine in engines}
        # Why a host cannot be reached; set and cleared by tests.
        self.away: dict[str, Exception] = {}
        self.said: list[str] = []
        hosts = [{"lab": LAB, "two": TWO}[name] for name in self.engines]
        asked: Any = launch_request(kernel, hosts=hosts, **keys)
        reach: Any = self._reach
        self.leasing = GpuAllocator(asked, hosts, reach, lambda news: self.said.append(str(news)), user="ada@laptop")

    async def _reach(self, host: Host) -> MadeEngine:
        await asyncio.sleep(0)
        if host.name in self.away:
            raise self.away[host.name]
        return self.engines[host.name]

    async def whole(self) -> Lease:
        """From the first look to the end of its waiting."""
        try:
            return await self.leasing.next()
        finally:
            await self.leasing.aclose()


def taken(lease: Lease) -> tuple[str, tuple[str, ...]]:
    return lease.host.name, lease.gpu_ids


async def begun(start: Start, *, seconds: float = 5) -> asyncio.Task[Lease]:
    """A start that has looked for so long, and found nothing."""
    task = asyncio.create_task(start.whole())
    await asyncio.sleep(seconds)
    assert not task.done(), task
    return task


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
