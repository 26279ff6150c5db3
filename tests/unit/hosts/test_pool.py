"""hosts/pool.py: which backend a host gets, that all who ask share it, and when it is opened anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.errors import HostUnreachable
from kernelbridge.hosts.pool import BackendPool
from kernelbridge.hosts.slurm.cluster import Cluster
from kernelbridge.hosts.transport.pool import Pool

HERE, HPC = Host(name="here", ssh="local"), Host(name="hpc", ssh="local", scheduler="slurm")


class FakeLink:
    """A link that is lost when a test says so."""

    def __init__(self, host: Host) -> None:
        self.name = host.name
        self.lost = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return not self.lost.is_set()

    async def wait_lost(self) -> None:
        await self.lost.wait()

    async def aclose(self) -> None:
        self.lost.set()


class FakeEngine:
    """An engine that knows its link, and whether it was closed."""

    def __init__(self, link: Any) -> None:
        self.link = link
        self.is_closed = False

    async def aclose(self) -> None:
        self.is_closed = True


class Rig:
    """A pool over links and engines in memory, and what happened to them."""

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.engines: list[FakeEngine] = []
        self.told: list[str] = []
        self.loads = 0
        # What open_engine() was given of what was asked ahead.
        self.aheads: list[Any] = []
        self.is_down = False
        self.pool = BackendPool(
            opened=lambda host: self.told.append(host.name),
            links=Pool(opener=self._open_link),  # type: ignore[arg-type]
            load_engine=self._load,
        )

    async def _open_link(self, host: Host) -> FakeLink:
        if self.is_down:
            raise HostUnreachable(host=host.name, address="x:22", reason="timed out")
        self.links.append(FakeLink(host))
        return self.links[-1]

    async def _open_link_alone(self, host: Host, meanwhile: Any = None) -> FakeLink:
        return await self._open_link(host)

    def _load(self) -> Any:
        self.loads += 1

        async def open_engine(link: Any, host: Host, ahead: Any = None) -> FakeEngine:
            self.aheads.append(ahead)
            self.engines.append(FakeEngine(link))
            return self.engines[-1]

        return open_engine


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.pool.aclose()


async def test_all_who_ask_share_one_engine_and_it_is_told_once(rig: Rig) -> None:
    found = await asyncio.gather(*(rig.pool.engine(HERE) for _ in range(5)))
    assert len({id(engine) for engine in found}) == 1
    assert (len(rig.links), rig.loads, rig.told) == (1, 1, ["here"])


async def test_a_host_with_a_scheduler_is_a_cluster_and_needs_no_engine(rig: Rig) -> None:
    assert isinstance(await rig.pool.backend(HPC), Cluster)
    assert await rig.pool.backend(HPC) is await rig.pool.cluster(HPC)
    assert (rig.loads, rig.told) == (0, ["hpc"])
    assert await rig.pool.backend(HERE) is rig.engines[0]  # type: ignore[comparison-overlap]


async def test_over_a_new_link_there_is_a_new_engine_and_the_old_one_is_closed(rig: Rig) -> None:
    first = await rig.pool.engine(HERE)
    rig.links[0].lost.set()
    assert await rig.pool.engine(HERE) is not first
    assert [engine.is_closed for engine in rig.engines] == [True, False]
    assert (rig.loads, rig.told) == (1, ["here", "here"])


async def test_a_cluster_over_a_new_link_knows_what_the_one_before_it_knew(rig: Rig) -> None:
    first = await rig.pool.cluster(HPC)
    rig.links[0].lost.set()
    second = await rig.pool.cluster(HPC)
    assert second is not first
    assert second.endings is first.endings


async def test_a_host_that_cannot_be_reached_has_no_engine_until_it_can(rig: Rig) -> None:
    rig.is_down = True
    with pytest.raises(HostUnreachable):
        await rig.pool.engine(HERE)
    rig.is_down = False
    assert (await rig.pool.engine(HERE)).link is rig.links[0]  # type: ignore[comparison-overlap]


async def test_its_end_closes_the_engines_and_then_the_links(rig: Rig) -> None:
    await rig.pool.engine(HERE)
    await rig.pool.cluster(HPC)
    assert repr(rig.pool) == "<BackendPool 1 engines, 1 clusters, <Pool here open, hpc open>>"
    await rig.pool.aclose()
    assert rig.engines[0].is_closed
    assert not any(link.is_open for link in rig.links)


# -- an engine that is asked while its host is asked for its facts


class _Route:
    def __init__(self, link: Any) -> None:
        self.link = link


def asked_ahead(rig: Rig, *, answers: bool = True) -> BackendPool:
    """A pool whose links are open before their hosts have told their facts."""
    asked: list[str] = []

    async def open_link(host: Host, meanwhile: Any = None) -> Any:
        link = await rig._open_link(host)
        if meanwhile is not None:
            meanwhile(link)
            await asyncio.sleep(0)
        return link

    async def ask_ahead(link: Any, host: Host) -> Any:
        asked.append(host.name)
        return (_Route(link), {"Version": "28"}) if answers else None

    return BackendPool(open_link=open_link, load_engine=rig._load, load_ask_ahead=lambda: ask_ahead)


async def test_what_an_engine_said_while_its_host_told_its_facts_is_used_once(rig: Rig) -> None:
    pool = asked_ahead(rig)
    await pool.engine(HERE)
    rig.links[0].lost.set()
    await pool.engine(HERE)
    assert [ahead[0].link for ahead in rig.aheads] == rig.links
    await pool.aclose()


async def test_an_engine_that_said_nothing_ahead_is_looked_for(rig: Rig) -> None:
    pool = asked_ahead(rig, answers=False)
    await pool.engine(HERE)
    assert rig.aheads == [None]
    await pool.aclose()


async def test_what_was_said_over_another_link_is_not_used(rig: Rig) -> None:
    pool = asked_ahead(rig)
    await pool.link(HERE)
    rig.links[0].lost.set()
    pool._open_link = rig._open_link_alone  # type: ignore[assignment]
    await pool.engine(HERE)
    assert rig.aheads == [None]
    await pool.aclose()


async def test_a_cluster_is_not_asked_for_an_engine(rig: Rig) -> None:
    pool = asked_ahead(rig)
    await pool.backend(HPC)
    assert not pool._ahead
    await pool.aclose()


async def test_a_login_that_was_begun_is_the_one_that_is_used(rig: Rig) -> None:
    await rig.pool.begin(HERE)
    await rig.pool.begin(HERE)
    await rig.pool.engine(HERE)
    assert len(rig.links) == 1
