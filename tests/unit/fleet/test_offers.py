"""fleet/offers.py: which images and partitions of a host are offered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.fleet import offers
from kernelbridge.hosts.docker.responses import ListedImage
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.transport.facts import SocketFacts
from kernelbridge.hosts.transport.stream import Completed
from tests.made_engines import LAB, cards, image

USABLE = SocketFacts(path="/run/docker.sock", exists=True, is_writable=True)
OF_OTHERS = replace(USABLE, is_writable=False)


def engine(facts: GpuFacts, *names: str) -> Any:
    """An engine with these images, the oldest first; CUDA 13 is what those called `new` need."""
    listed = [
        ListedImage(id=name, names=(name,) if name != "nameless" else (), labels={}, size_bytes=1, created=float(at))
        for at, name in enumerate(names)
    ]

    async def find(name: str) -> Any:
        return image(NVIDIA_REQUIRE_CUDA="cuda>=13.0") if name.startswith("new") else image()

    return SimpleNamespace(
        link=SimpleNamespace(name="lab"),
        images=SimpleNamespace(others=lambda: asyncio.sleep(0, listed)),
        gpus=SimpleNamespace(look=lambda **more: asyncio.sleep(0, facts)),
        image=find,
    )


def test_images_that_the_driver_does_not_run_are_left_out_and_the_newest_come_first() -> None:
    found = asyncio.run(offers.images(engine(cards(1), "a:1", "new:2", "b:1", "nameless", "c:1"), most=3))
    assert [one.names for one in found.fitting] == [("c:1",), ("b:1",)]
    assert list(found.too_new) == ["new:2"]
    assert "cuda>=13.0" in found.too_new["new:2"]
    assert not asyncio.run(offers.images(engine(GpuFacts(), "new:2"), most=3)).too_new


class Link:
    """A login node, whose sinfo answers so."""

    name = "lab"
    is_open = True
    shell_seconds = 0.0

    def __init__(self, answer: str, exit_code: int = 0, **facts: Any) -> None:
        made_up = {"usable_sockets": (), "may_sudo_docker": False, "engine": "", "user": "ada", "home": "/home/ada"}
        self.facts: Any = SimpleNamespace(**{**made_up, **facts})
        self._completed = Completed(exit_code=exit_code, stdout=answer.encode(), stderr=b"")

    async def run(self, argv: Any, *, stdin: bytes = b"", seconds: float) -> Completed:
        return self._completed

    async def ask_login_shell(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("link", "names"),
    [
        (Link("cpu|(null)\nmain*|gpu:h100:8(S:0-1)\n"), ["main", "cpu"]),
        (Link("main*|(null)\n", usable_sockets=(USABLE,)), []),
        (Link("main*|(null)\n", may_sudo_docker=True), []),
        (Link("", exit_code=127), []),
        (Link("", exit_code=1), []),
    ],
)
def test_partitions_are_those_of_a_host_without_an_engine(link: Any, names: list[str]) -> None:
    found = asyncio.run(offers.partitions(link, LAB))
    assert [one.name for one in found] == names
