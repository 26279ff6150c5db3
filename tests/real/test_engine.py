"""The engine over a real sshd: containers, streams into them, each way to reach it, each way in which it says no."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    ContainerFailed,
    GpuToolkitMissing,
    ImageMissing,
    ImagePullFailed,
    ImageUnusable,
    MountMissing,
    UlimitRefused,
)
from kernelbridge.hosts.docker.engine import Created, Engine, Exited, Missing, PullProgress, Running, open_engine
from kernelbridge.hosts.docker.registry_auth import find_login
from kernelbridge.hosts.transport.ssh import open_link
from kernelbridge.hosts.transport.stream import Collector
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

LAB = Host(name="lab", ssh="lab")
NAME = "kernelbridge-test-engine"
MIB = 1 << 20


class Digest:
    """A receiver that keeps only how much came and its hash."""

    def __init__(self) -> None:
        self.count = 0
        self.hash = hashlib.sha256()
        self.failure: Exception | None = None
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self.hash.update(data)

    def closed(self, exc: Exception | None) -> None:
        self.failure = exc
        self.ended.set()


@asynccontextmanager
async def engine_of(alias: str = "lab", socket: str | None = None) -> AsyncIterator[Engine]:
    host = Host(name="lab", ssh=alias, socket=socket)
    async with await open_link(host) as link, await open_engine(link, host) as opened:
        yield opened


@pytest.fixture
async def engine(rig: Rig, bridge_env: Laptop) -> AsyncIterator[Engine]:
    """The engine as user kbtest reaches it, through the proxy."""
    async with engine_of("lab-proxied") as opened:
        yield opened
        if opened.link.is_open:
            await opened.remove(NAME)


def spec(rig: Rig, *argv: str, **host_config: Any) -> dict[str, object]:
    return {
        "Image": rig.image,
        "Cmd": list(argv or ("sleep", "1000")),
        "Labels": {"kernelbridge-test": "engine"},
        "HostConfig": {"Init": True, "NetworkMode": "none", **host_config},
    }


@pytest.fixture
async def running(rig: Rig, engine: Engine) -> Engine:
    """The engine with one running container."""
    await engine.create(NAME, spec(rig))
    await engine.start(NAME)
    return engine


# -- containers


async def test_a_container_is_missing_created_running_exited_and_missing(rig: Rig, engine: Engine) -> None:
    assert await engine.state(NAME) == Missing()
    made = await engine.create(
        NAME, spec(rig, "sh", "-c", "echo out; echo err >&2; while [ ! -e /tmp/go ]; do sleep 0.1; done; exit 3")
    )
    assert await engine.state(NAME) == Created(error="")
    await engine.start(NAME)
    assert isinstance(await engine.state(NAME), Running)
    [found] = await engine.list("kernelbridge-test=engine")
    assert (found.id, found.name, found.image, found.state) == (made, NAME, rig.image, "running")
    await engine.exec_stream(NAME, ["touch", "/tmp/go"], Collector())
    for _ in range(100):
        state = await engine.state(NAME)
        if not isinstance(state, Running):
            break
        await asyncio.sleep(0.1)
    assert isinstance(state, Exited)
    assert (state.code, state.oom_killed) == (3, False)
    assert sorted((await engine.logs(NAME, 10)).split()) == ["err", "out"]
    await engine.remove(NAME)
    await engine.remove(NAME)
    assert await engine.state(NAME) == Missing()
    assert await engine.list("kernelbridge-test=engine") == []


async def test_a_stop_is_success_however_often_it_is_asked_for(running: Engine) -> None:
    await running.stop(NAME, seconds=5)
    assert isinstance(await running.state(NAME), Exited)
    await running.stop(NAME, seconds=5)
    await running.remove(NAME)
    await running.stop(NAME, seconds=5)


async def test_stdin_opened_before_the_start_reaches_the_process_to_its_end(rig: Rig, engine: Engine) -> None:
    reading = spec(rig, "sh", "-c", "cat; echo then") | {"OpenStdin": True, "StdinOnce": True}
    await engine.create(NAME, reading)
    stdin = await engine.open_stdin(NAME)
    await engine.start(NAME)
    lines = "".join(f"line {number}\n" for number in range(5000))
    stdin.write(lines.encode())
    stdin.write_eof()
    for _ in range(50):
        if isinstance(await engine.state(NAME), Exited):
            break
        await asyncio.sleep(0.1)
    assert (await engine.logs(NAME, 6000)) == lines + "then\n"


async def test_an_image_is_described_and_one_that_is_not_there_is_none(rig: Rig, engine: Engine) -> None:
    found = await engine.image(rig.image)
    assert found is not None
    assert found.id.startswith("sha256:")
    assert "PATH" in found.env
    assert await engine.image("kernelbridge-test/none:1") is None


# -- streams


async def test_fifty_megabytes_come_back_intact(running: Engine) -> None:
    digest, sent = Digest(), os.urandom(50 * MIB)
    stream = await running.exec_stream(NAME, ["cat"], digest)
    for begin in range(0, len(sent), MIB):
        stream.write(memoryview(sent)[begin : begin + MIB])
        await stream.drain()
        assert stream.unsent_bytes() < 4 * MIB
    stream.write_eof()
    await asyncio.wait_for(digest.ended.wait(), 60)
    assert (digest.count, digest.failure) == (len(sent), None)
    assert digest.hash.digest() == hashlib.sha256(sent).digest()


async def test_the_other_direction_stays_open_after_eof(running: Engine) -> None:
    collector = Collector()
    stream = await running.exec_stream(NAME, ["sh", "-c", "wc -c; sleep 0.3; echo after"], collector)
    stream.write(b"x" * 1000)
    stream.write_eof()
    await asyncio.wait_for(collector.wait_ended(), 10)
    assert bytes(collector.received).split() == [b"1000", b"after"]


async def test_stderr_does_not_mix_with_the_stream(running: Engine) -> None:
    collector = Collector()
    await running.exec_stream(NAME, ["sh", "-c", "echo one; echo no >&2; echo two"], collector)
    await asyncio.wait_for(collector.wait_ended(), 10)
    assert bytes(collector.received) == b"one\ntwo\n"


async def test_closing_ends_the_command_and_tells_the_receiver_once(running: Engine) -> None:
    collector = Collector()
    stream = await running.exec_stream(NAME, ["cat"], collector)
    stream.close()
    stream.close()
    await asyncio.wait_for(collector.wait_ended(), 5)
    assert collector.failure is None
    names = [b"cat"]
    async with asyncio.timeout(10 * SLOW):
        while b"cat" in names:
            listing = Collector()
            await running.exec_stream(NAME, ["sh", "-c", "head -qn1 /proc/[0-9]*/comm"], listing)
            await asyncio.wait_for(listing.wait_ended(), 10)
            names = bytes(listing.received).split()
    assert b"sleep" in names


async def test_a_command_that_is_not_in_the_image_is_an_error_and_no_output(running: Engine) -> None:
    collector = Collector()
    with pytest.raises(errors.EngineFailed, match="executable file not found"):
        await running.exec_stream(NAME, ["kernelbridge-no-such"], collector)
        await asyncio.wait_for(collector.wait_ended(), 10)
        raise collector.failure or AssertionError("it ended as if all were well")
    assert not collector.received


async def test_a_container_that_does_not_run_gives_no_stream(rig: Rig, engine: Engine) -> None:
    await engine.create(NAME, spec(rig))
    with pytest.raises(errors.EngineFailed, match="is not running"):
        await engine.exec_stream(NAME, ["cat"], Collector())


async def test_a_cut_ends_the_stream_and_the_next_call_with_link_lost(rig: Rig, running: Engine) -> None:
    collector = Collector()
    await running.exec_stream(NAME, ["cat"], collector)
    rig.proxy.reset()
    await asyncio.wait_for(collector.wait_ended(), 5)
    assert type(collector.failure) is errors.LinkLost
    with pytest.raises(errors.LinkLost):
        await running.state(NAME)
    with pytest.raises(errors.LinkLost):
        await running.exec_stream(NAME, ["cat"], Collector())
    async with engine_of() as again:
        assert isinstance(await again.state(NAME), Running), "unknown is not gone"
        await again.remove(NAME)


async def test_a_cut_in_the_middle_of_a_call_is_link_lost_and_not_an_answer(rig: Rig, bridge_env: Laptop) -> None:
    with rig.slow_engine() as slow:
        async with engine_of("lab-proxied", str(slow.path)) as engine:
            with slow.delays("GET /containers/", 30):
                waiting = asyncio.create_task(engine.state(NAME))
                await asyncio.sleep(0.5)
                rig.proxy.reset()
                with pytest.raises(errors.LinkLost):
                    await asyncio.wait_for(waiting, 5)


# -- slowness


async def test_slow_calls_do_not_delay_a_poll_and_can_be_given_up(rig: Rig, bridge_env: Laptop) -> None:
    with rig.slow_engine() as slow, slow.delays("POST /containers/.*/stop", 60):
        async with engine_of("lab", str(slow.path)) as engine:
            tasks = [asyncio.create_task(engine.stop(NAME, seconds=1)) for _ in range(30)]
            loop = asyncio.get_running_loop()
            await asyncio.sleep(1)
            began = loop.time()
            for _ in range(10):
                assert await engine.state(NAME) == Missing()
            assert loop.time() - began < 3 * SLOW
            for task in tasks:
                task.cancel()
            told = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 2)
            assert {type(exc) for exc in told} == {asyncio.CancelledError}


async def test_a_registry_that_does_not_answer_refuses_nothing(rig: Rig, bridge_env: Laptop) -> None:
    with rig.slow_engine() as slow, slow.delays("GET /distribution/", 60):
        async with engine_of("lab", str(slow.path)) as engine:
            await engine.check_pullable("kernelbridge-test/none:1", seconds=0.5)


@pytest.mark.parametrize("status", [500, 503, 409])
async def test_an_error_of_the_engine_is_not_taken_for_a_container_that_is_gone(
    rig: Rig, bridge_env: Laptop, status: int
) -> None:
    with rig.slow_engine() as slow, slow.answers(status, "GET /containers/"):
        async with engine_of("lab", str(slow.path)) as engine:
            with pytest.raises(errors.EngineFailed, match="refused by the stand-in"):
                await engine.state(NAME)


# -- the engine says no


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (
            {"Image": "kernelbridge-test/none:1"},
            ImageMissing,
            "there is no image kernelbridge-test/none:1",
        ),
        # With Init it is a start that succeeds and a container that ends with 127.
        (
            {"Cmd": ["kernelbridge-no-such"], "HostConfig": {}},
            ImageUnusable,
            "has no `kernelbridge-no-such`",
        ),
        (
            {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/no/such", "Target": "/x"}]}},
            MountMissing,
            "the mount source /no/such does not exist",
        ),
        ({"HostConfig": {"Runtime": "nvidia"}}, GpuToolkitMissing, "cannot hand GPUs"),
        (
            {"HostConfig": {"Ulimits": [{"Name": "memlock", "Soft": -1, "Hard": -1}]}},
            UlimitRefused,
            "is not allowed to set the requested limits",
        ),
        ({"User": "nobody-there"}, ContainerFailed, "nobody-there"),
    ],
)
async def test_a_container_that_cannot_be_says_why(
    rig: Rig, engine: Engine, change: dict[str, object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(errors.KernelBridgeError) as caught:
        await engine.create(NAME, spec(rig) | change)
        await engine.start(NAME)
    assert type(caught.value) is kind
    assert words in caught.value.sentence
    assert not isinstance(await engine.state(NAME), Running)


async def test_an_engine_without_gpus_is_told_at_the_start(rig: Rig, bridge_env: Laptop) -> None:
    request = {"Driver": "", "DeviceIDs": [UUIDS[0]], "Capabilities": [["gpu"]]}
    with rig.engine.without_gpus():
        async with engine_of() as engine:
            await engine.create(NAME, spec(rig, DeviceRequests=[request]))
            with pytest.raises(GpuToolkitMissing):
                await engine.start(NAME)
            await engine.remove(NAME)


async def test_an_image_that_no_registry_has_is_missing(engine: Engine) -> None:
    seen: list[PullProgress] = []
    with pytest.raises(ImageMissing, match="kernelbridge-test/none:1"):
        await engine.check_pullable("kernelbridge-test/none:1", seconds=20)
    with pytest.raises((ImageMissing, ImagePullFailed)):
        await engine.pull("kernelbridge-test/none:1", seen.append)


async def test_a_pull_brings_the_credentials_of_the_login_on_the_host(rig: Rig, engine: Engine) -> None:
    home = engine.facts.home
    auth = base64.b64encode(b"ada:pass:word").decode()
    config = json.dumps({"auths": {"registry.example": {"auth": auth}}, "credHelpers": {"other.example": "none"}})
    await engine.link.run(["mkdir", "-p", f"{home}/.docker"], seconds=10)
    await engine.link.run(["tee", f"{home}/.docker/config.json"], stdin=config.encode(), seconds=10)
    found = await find_login(engine.link, "registry.example/team/image:1")
    assert found.credentials == {"username": "ada", "password": "pass:word", "serveraddress": "registry.example"}
    assert (await find_login(engine.link, "other.example/image")).credentials == {}
    assert (await find_login(engine.link, "python:3.12")).credentials == {}
    await engine.link.run(["rm", "-r", f"{home}/.docker"], seconds=10)
    assert (await find_login(engine.link, "registry.example/team/image:1")).credentials == {}
