"""housing.py: a container is removed for good, whatever was cancelled or lost while the engine made it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from kernelbridge import creation
from kernelbridge.config import Environment, Host
from kernelbridge.container import GpuAsk, Labels
from kernelbridge.errors import HostUnreachable, LinkLost
from kernelbridge.host.site import InContainer
from kernelbridge.housing import Housing
from kernelbridge.kernel_errors import ContainerFailed
from kernelbridge.wanted import Wanted

WANTED = Wanted(
    kernel_id="k1",
    environment=Environment(name="torch", image="torch:2"),
    display_name="Torch",
    hosts=(Host(name="lab", ssh="lab"),),
    environ={},
)
LABELS = Labels(kernel="k1", environment="torch", owner="me")


class SlowEngine:
    """An engine that makes a container when it is told to, and keeps what it was asked for in `asked`."""

    def __init__(self, *, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[str] = []
        self.there: set[str] = set()
        self.image_user = ""
        self.goes_on = asyncio.Event()
        self.facts: Any = type("Facts", (), {"uid": 1, "gid": 1, "home": "/home/ada"})()

    async def create(self, name: str, spec: object) -> str:
        self.asked.append("create")
        await self.goes_on.wait()
        if self.failure is not None:
            raise self.failure
        self.there.add(name)
        return "id"

    async def image(self, name: str) -> Any:
        return type("Image", (), {"user": self.image_user})()

    async def make_folder(self, name: str, parent: str, folder: str) -> None:
        self.asked.append(f"make {parent}/{folder}")

    def runtime(self, name: str, environment: Environment) -> Any:
        assert environment == WANTED.environment
        return InContainer(self, name, environment.python)  # type: ignore[arg-type]

    async def remove(self, name: str) -> None:
        self.asked.append("remove")
        self.there.discard(name)

    def reach(self) -> Callable[[], Awaitable[Any]]:
        async def reached() -> Any:
            return self

        return reached


def slow_engine(*, failure: Exception | None = None) -> Any:
    return SlowEngine(failure=failure)


def making(engine: Any) -> Coroutine[Any, Any, None]:
    return creation.create_container(engine, WANTED, labels=LABELS, gpus=GpuAsk())


async def begun(engine: Any, housing: Housing) -> asyncio.Task[None]:
    """A creation that the engine has begun."""
    task = asyncio.create_task(housing.make(making(engine)))
    while not engine.asked:  # noqa: ASYNC110 - one turn of the loop each
        await asyncio.sleep(0)
    return task


async def test_where_nothing_was_asked_for_nothing_is_removed() -> None:
    engine = slow_engine()
    assert await Housing(WANTED).remove("lab", engine.reach())
    assert engine.asked == []


async def test_a_container_is_made_and_removed_once_however_often_that_is_asked_for() -> None:
    engine, housing = slow_engine(), Housing(WANTED)
    engine.goes_on.set()
    await housing.make(making(engine))
    assert engine.there == {"kernelbridge-k1"}
    assert repr(housing) == "<Housing kernelbridge-k1 perhaps there>"
    assert await asyncio.gather(*(housing.remove("lab", engine.reach()) for _ in range(3))) == [True] * 3
    assert engine.asked == ["create", "remove"]
    assert repr(housing) == "<Housing kernelbridge-k1>"


async def test_a_container_that_comes_after_its_start_was_cancelled_is_removed() -> None:
    engine, housing = slow_engine(), Housing(WANTED)
    start = await begun(engine, housing)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    removal = asyncio.create_task(housing.remove("lab", engine.reach()))
    await asyncio.sleep(0.01)
    assert engine.asked == ["create"]  # Before the engine has made it there is nothing to remove.
    engine.goes_on.set()
    assert await removal
    assert engine.there == set()


async def test_a_refusal_by_the_engine_is_removed_at_once() -> None:
    engine, housing = slow_engine(failure=ContainerFailed(host="lab", image="x", reason="no")), Housing(WANTED)
    engine.goes_on.set()
    with pytest.raises(ContainerFailed):
        await housing.make(making(engine))
    assert await housing.remove("lab", engine.reach())
    assert engine.asked == ["create", "remove"]


async def test_a_container_that_comes_after_the_link_was_lost_is_removed() -> None:
    engine, housing = slow_engine(failure=LinkLost(host="lab")), Housing(WANTED, late_seconds=0.05)
    engine.goes_on.set()
    with pytest.raises(LinkLost):
        await housing.make(making(engine))
    removal = asyncio.create_task(housing.remove("lab", engine.reach()))
    while "remove" not in engine.asked:  # noqa: ASYNC110 - one turn of the loop each
        await asyncio.sleep(0)
    engine.there.add("kernelbridge-k1")  # The engine had heard of it all the same.
    assert await removal
    assert engine.there == set()


async def test_a_host_that_cannot_be_reached_keeps_it_and_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    engine, housing = slow_engine(), Housing(WANTED)
    engine.goes_on.set()
    await housing.make(making(engine))

    async def unreachable() -> Any:
        raise HostUnreachable(host="lab", address="lab:22", reason="no route")

    assert not await housing.remove("lab", unreachable)
    assert "[lab k=k1] container not removed: lab: lab:22 cannot be reached" in caplog.text
    assert await housing.remove("lab", engine.reach())
    assert engine.there == set()


@pytest.mark.parametrize(("image_user", "is_made"), [("", False), ("root", False), ("0:0", False), ("jovyan", True)])
async def test_a_user_who_is_not_root_gets_a_folder_for_the_journal(image_user: str, is_made: bool) -> None:
    engine = slow_engine()
    engine.image_user = image_user
    engine.goes_on.set()
    await Housing(WANTED).make(making(engine))
    made = ["make /var/lib/kernelbridge/journal"] if is_made else []
    assert engine.asked == ["create", *made]


async def test_a_container_that_is_anothers_now_is_left_alone_and_one_that_was_there_before_is_ours() -> None:
    engine = slow_engine()
    housing = Housing(WANTED)
    housing.is_there()
    housing.leave()
    assert await housing.remove("lab", engine.reach())
    assert engine.asked == []
    housing.is_there()
    assert await housing.remove("lab", engine.reach())
    assert engine.asked == ["remove"]
