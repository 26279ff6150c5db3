"""start/launch.py: a container is removed for good, whatever was cancelled or lost while the engine made it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import pytest

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import ContainerFailed, EngineFailed, HostUnreachable, LinkLost
from kernelbridge.hosts.docker.container_spec import GpuAsk
from kernelbridge.hosts.docker.engine import ContainerWorkload
from kernelbridge.hosts.docker.images.prepared_image import PreparedImage
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.labels import SNAPSHOT_LABEL, Labels
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.start import launch
from kernelbridge.kernel.start.launch import WorkloadHandle
from tests.made_hosts import no_short_ways

WANTED = LaunchRequest(
    kernel_id="k1",
    environment=Environment(name="torch", image="torch:2", user="image"),
    display_name="Torch",
    hosts=(Host(name="lab", ssh="lab"),),
    environ={},
)
LAB = Host(name="lab", ssh="lab")
LABELS = Labels(kernel="k1", environment="torch", owner="me")


class SlowEngine:
    """An engine that makes a container when it is told to, and keeps what it was asked for in `asked`."""

    def __init__(self, *, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[str] = []
        self.there: set[str] = set()
        self.image_user = ""
        self.image_labels: dict[str, str] = {}
        self.goes_on = asyncio.Event()
        self.options: list[str] = []
        self.short_ways = no_short_ways()
        self.link: Any = LAB
        self.facts: Any = type("Facts", (), {"user": "ada", "uid": 1000, "gid": 5, "groups": (), "home": "/home/ada"})()

    async def create(self, name: str, spec: object) -> str:
        self.asked.append("create")
        await self.goes_on.wait()
        if self.failure is not None:
            raise self.failure
        self.there.add(name)
        return "id"

    async def info(self) -> Any:
        return {"SecurityOptions": self.options}

    @property
    def volumes(self) -> SlowEngine:
        return self

    async def give(self, names: list[str], user: str, *, image: str, labels: Mapping[str, str]) -> None:
        assert (image, labels) == ("torch:2", {"kernelbridge.locks": "k1"})
        self.asked.append(f"give {','.join(names)} to {user}")

    async def make_folder(self, name: str, parent: str, folder: str) -> None:
        self.asked.append(f"make {parent}/{folder}")

    async def enter_user(self, name: str, user: str, wanted_name: str) -> None:
        self.asked.append(f"enter {user} {wanted_name}".rstrip())
        raise EngineFailed(host="lab", action="write /etc/passwd", reason="read-only")

    def workload(self, name: str, environment: Environment) -> Any:
        assert environment == WANTED.environment
        return ContainerWorkload(self, name, environment.python)  # type: ignore[arg-type]

    async def remove(self, name: str) -> None:
        self.asked.append("remove")
        self.there.discard(name)

    def reach(self) -> Callable[[], Awaitable[Any]]:
        async def reached() -> Any:
            return self

        return reached


def slow_engine(*, failure: Exception | None = None) -> Any:
    return SlowEngine(failure=failure)


def making(
    engine: Any, request: LaunchRequest = WANTED, tell: Callable[[str], None] = print
) -> Coroutine[Any, Any, None]:
    facts = ImageFacts(id="sha256:1", env={}, user=engine.image_user, labels=engine.image_labels, size_bytes=1)
    image = PreparedImage(name="torch:2", facts=facts, python="python3")
    return launch.create_container(engine, request, image, labels=LABELS, gpus=GpuAsk(), tell=tell)


async def begun(engine: Any, handle: WorkloadHandle) -> asyncio.Task[None]:
    """A creation that the engine has begun."""
    task = asyncio.create_task(handle.create(making(engine)))
    while not engine.asked:  # noqa: ASYNC110 - one turn of the loop each
        await asyncio.sleep(0)
    return task


async def test_where_nothing_was_asked_for_nothing_is_removed() -> None:
    engine = slow_engine()
    assert await WorkloadHandle(WANTED).remove("lab", engine.reach())
    assert engine.asked == []


async def test_a_container_is_made_and_removed_once_however_often_that_is_asked_for() -> None:
    engine, handle = slow_engine(), WorkloadHandle(WANTED)
    engine.goes_on.set()
    await handle.create(making(engine))
    assert engine.there == {"kernelbridge-k1"}
    assert repr(handle) == "<WorkloadHandle kernelbridge-k1 perhaps there>"
    assert await asyncio.gather(*(handle.remove("lab", engine.reach()) for _ in range(3))) == [True] * 3
    assert engine.asked == ["create", "remove"]
    assert repr(handle) == "<WorkloadHandle kernelbridge-k1>"


async def test_a_container_that_comes_after_its_start_was_cancelled_is_removed() -> None:
    engine, handle = slow_engine(), WorkloadHandle(WANTED)
    start = await begun(engine, handle)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    removal = asyncio.create_task(handle.remove("lab", engine.reach()))
    await asyncio.sleep(0.01)
    assert engine.asked == ["create"]  # Before the engine has made it there is nothing to remove.
    engine.goes_on.set()
    assert await removal
    assert engine.there == set()


async def test_a_refusal_by_the_engine_is_removed_at_once() -> None:
    engine, handle = slow_engine(failure=ContainerFailed(host="lab", image="x", reason="no")), WorkloadHandle(WANTED)
    engine.goes_on.set()
    with pytest.raises(ContainerFailed):
        await handle.create(making(engine))
    assert await handle.remove("lab", engine.reach())
    assert engine.asked == ["create", "remove"]


async def test_a_container_that_comes_after_the_link_was_lost_is_removed() -> None:
    engine, handle = slow_engine(failure=LinkLost(host="lab")), WorkloadHandle(WANTED, late_seconds=0.05)
    engine.goes_on.set()
    with pytest.raises(LinkLost):
        await handle.create(making(engine))
    removal = asyncio.create_task(handle.remove("lab", engine.reach()))
    while "remove" not in engine.asked:  # noqa: ASYNC110 - one turn of the loop each
        await asyncio.sleep(0)
    engine.there.add("kernelbridge-k1")  # The engine had heard of it all the same.
    assert await removal
    assert engine.there == set()


async def test_a_host_that_cannot_be_reached_keeps_it_and_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    engine, handle = slow_engine(), WorkloadHandle(WANTED)
    engine.goes_on.set()
    await handle.create(making(engine))

    async def unreachable() -> Any:
        raise HostUnreachable(host="lab", address="lab:22", reason="no route")

    assert not await handle.remove("lab", unreachable)
    assert "[lab k=k1] container not removed: lab: lab:22 cannot be reached" in caplog.text
    assert await handle.remove("lab", engine.reach())
    assert engine.there == set()


@pytest.mark.parametrize(
    ("user", "asked"),
    [("1000:5", ["give models to 1000:5", "create", "make /var/lib/kernelbridge/journal"]), ("0:0", ["create"])],
)
async def test_a_volume_that_is_written_to_is_given_to_a_kernel_that_is_not_root(user: str, asked: list[str]) -> None:
    engine = slow_engine()
    engine.goes_on.set()
    environment = Environment.model_validate(
        {"name": "torch", "image": "torch:2", "user": user, "mounts": ["models:/m", "fixed:/f:ro"]}
    )
    await making(engine, replace(WANTED, environment=environment))
    assert engine.asked[: len(asked)] == asked


async def test_the_relays_folder_of_a_snapshot_is_opened_to_a_kernel_that_is_not_root() -> None:
    engine = slow_engine()
    engine.goes_on.set()
    engine.image_labels = {SNAPSHOT_LABEL: "laptop"}
    await making(engine, replace(WANTED, environment=WANTED.environment.model_copy(update={"user": "1000:5"})))
    assert engine.asked[:3] == ["create", "make /var/lib/kernelbridge/journal", "make /run/kernelbridge"]


JOURNAL_MADE = "make /var/lib/kernelbridge/journal"


@pytest.mark.parametrize(
    ("image_user", "made"),
    [
        ("", []),
        ("root", []),
        ("0:0", []),
        ("jovyan", [JOURNAL_MADE]),
        ("jovyan:users", [JOURNAL_MADE]),
        # One that is only a number may be one that the image does not know.
        ("1234", [JOURNAL_MADE, "enter 1234"]),
        ("1234:5", [JOURNAL_MADE, "enter 1234:5"]),
    ],
)
async def test_a_user_who_is_not_root_gets_a_folder_for_the_journal_and_a_name_where_that_can_be(
    image_user: str, made: list[str]
) -> None:
    engine = slow_engine()
    engine.image_user = image_user
    engine.goes_on.set()
    await WorkloadHandle(WANTED).create(making(engine))
    assert engine.asked == ["create", *made]


@pytest.mark.parametrize(
    ("options", "made", "told"),
    [
        ([], [JOURNAL_MADE, "enter 1000:5 ada"], 0),
        (["name=rootless"], [], 0),
        (["name=userns"], [JOURNAL_MADE, "enter 1234"], 1),
    ],
)
async def test_the_login_is_the_kernels_user_with_its_own_name_where_the_engine_has_its_number(
    options: list[str], made: list[str], told: int
) -> None:
    engine = slow_engine()
    lines: list[str] = []
    engine.image_user, engine.options = "1234", options
    engine.goes_on.set()
    as_login = replace(WANTED, environment=Environment(name="torch", image="torch:2"))
    await making(engine, as_login, lines.append)
    assert engine.asked == ["create", *made]
    assert [line for line in lines if line.startswith("on lab the kernel runs as the image's user")] == lines
    assert len(lines) == told


async def test_a_container_that_is_anothers_now_is_left_alone_and_one_that_was_there_before_is_ours() -> None:
    engine = slow_engine()
    handle = WorkloadHandle(WANTED)
    handle.adopt()
    handle.forget()
    assert await handle.remove("lab", engine.reach())
    assert engine.asked == []
    handle.adopt()
    assert await handle.remove("lab", engine.reach())
    assert engine.asked == ["remove"]
