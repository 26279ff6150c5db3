"""An engine that becomes another one under an open link: Docker is upgraded, goes back, is away, gives way to Podman.

The other engine is a stand-in before the real one, which carries out what the other takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import pytest

from kernelbridge import errors
from kernelbridge.hosts.docker.engine import Engine, Missing, Running
from kernelbridge.hosts.transport.stream import Collector
from tests.clients.notebook import Notebook, another, notebook
from tests.real.test_engine import NAME, engine_of, spec
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slow_engine import DOCKER_29, REAL_API, Guise
from tests.rig.whole import Rig

PODMAN = Guise(
    answer=b'{"Version":"5.6.0","ApiVersion":"1.41","MinAPIVersion":"1.24","Components":[{"Name":"Podman Engine"}]}'
)
ODD = (b"<html>", b'{"hello": 1}', b'{"ApiVersion": null}', b'{"ApiVersion": "new"}', b'["1.52"]')


def test_a_kernel_and_its_server_outlive_an_upgrade_of_docker_and_the_way_back(rig: Rig, bridge_env: Laptop) -> None:
    with rig.slow_engine() as slow:
        bridge_env.write_environment(rig.image, host={"ssh": "lab", "socket": str(slow.path)})
        with notebook(bridge_env) as first:
            first.run("import os, time")
            began = time.monotonic()
            counting = first.client.execute("for n in range(20):\n    print(n, flush=True)\n    time.sleep(0.1)")
            slow.becomes(DOCKER_29)
            with another(bridge_env) as second:
                assert second.value("6 * 7") == 42
                second.manager.restart_kernel()
                second.client.wait_for_ready(timeout=60 * SLOW)
                assert second.value("6 * 7") == 42
            # The shutdown of the second has removed its container, and only that.
            wait_until(lambda: len(rig.engine.kernels()) == 1, "the container to be gone", 20)
            assert shown(first, counting) == [str(n) for n in range(20)]
            assert time.monotonic() - began < 60 * SLOW
            slow.becomes(None)
            assert first.value("[2 * n for n in (1, 2)]") == [2, 4]
            first.manager.restart_kernel()
            first.client.wait_for_ready(timeout=60 * SLOW)
            assert first.value("6 * 7") == 42
        wait_until(lambda: rig.engine.kernels() == [], "the container to be gone", 20)


def shown(book: Notebook, cell: str) -> list[str]:
    """What a cell has printed when it is done."""
    printed = ""
    while True:
        message = book.client.get_iopub_msg(timeout=60 * SLOW)
        if message["parent_header"].get("msg_id") != cell:
            continue
        if message["msg_type"] == "stream":
            printed += message["content"]["text"]
        elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return printed.split()


async def test_what_answers_is_asked_anew_when_it_refuses_our_version_or_ended_a_connection(
    rig: Rig, bridge_env: Laptop
) -> None:
    with rig.slow_engine() as slow:
        async with engine_of("lab", str(slow.path)) as engine:
            await engine.create(NAME, spec(rig))
            await engine.start(NAME)
            asked = slow.requests.count("GET /version")
            slow.becomes(DOCKER_29)
            # All who are refused at a time ask once more.
            states = await asyncio.gather(*(engine.state(NAME) for _ in range(5)))
            assert all(isinstance(state, Running) for state in states)
            assert engine.api_version == "1.52"
            assert slow.requests.count("GET /version") - asked <= 2
            collector = Collector()
            await engine.exec_stream(NAME, ["echo", "here"], collector)
            await asyncio.wait_for(collector.wait_ended(), 10 * SLOW)
            assert bytes(collector.received) == b"here\n"
            slow.becomes(PODMAN)
            assert await eventually(engine, lambda: engine.about.is_podman)
            for odd in ODD:
                slow.becomes(Guise(answer=odd))
                assert await eventually(engine, lambda: slow.requests[-1] == "GET /version")
                with pytest.raises(errors.EngineFailed, match=r"Docker could not (say its version|be understood)"):
                    await engine.state(NAME)
            slow.becomes(Guise(answer=b'{"Version": "18.09.9", "ApiVersion": "1.39"}'))
            with pytest.raises(errors.EngineTooOld):
                await engine.state(NAME)
            slow.becomes(None)
            await engine.stop(NAME, seconds=1)
            await engine.remove(NAME)
            assert await engine.state(NAME) == Missing()
            assert (engine.about.is_podman, engine.api_version) == (False, REAL_API)


async def eventually(engine: Engine, holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold while the engine is asked: that a connection has ended takes its way here."""
    async with asyncio.timeout(10 * SLOW):
        while not holds():
            with contextlib.suppress(errors.KernelBridgeError):
                await engine.state(NAME)
    return True
