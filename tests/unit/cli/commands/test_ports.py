"""cli/commands/ports.py: what `forward` and `tensorboard` print, and that Ctrl-C ends them."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.cli.commands import ports
from kernelbridge.errors import BoardFailed
from kernelbridge.fleet.loop import LoopThread
from kernelbridge.hosts.forwards.port_forwards import PortForwards, bound
from tests.clients.ports import free_port
from tests.fakes import FakeFleet, row
from tests.made_forwards import MadeContainer
from tests.unit.cli.conftest import Call

KERNEL = "aabb1111-0000-4000-8000-000000000001"


class PortsFleet(FakeFleet):
    """A fleet with a loop of its own, and one made container."""

    def begin(self) -> None:
        self.loop = LoopThread("made-loop")
        self.container = MadeContainer()
        # What a board says: its address, or why it ended.
        self.board_says: str | BoardFailed = "http://127.0.0.1:6006/"

    def run(self, coro: Coroutine[Any, Any, Any], seconds: float | None = None) -> Any:
        return self.loop.run(coro, seconds)

    def submit(self, coro: Coroutine[Any, Any, Any]) -> Any:
        made: Future[Any] = self.loop.submit(coro)
        return made

    async def forwards(self, prefix: str) -> PortForwards:
        return PortForwards(self._find(prefix).kernel_id[:12], self.container.workload)

    async def board(self, prefix: str, folder: str, *, port: int, ready: Callable[[str], None]) -> None:
        self._find(prefix)
        self.asked = (folder, port)
        if isinstance(self.board_says, BoardFailed):
            raise self.board_says
        ready(self.board_says)
        await asyncio.Event().wait()


@pytest.fixture
def fleet() -> Iterator[PortsFleet]:
    made = PortsFleet(rows=[row(KERNEL)])
    made.begin()
    yield made
    made.run(made.container.aclose(), 20)
    made.loop.close()


@pytest.fixture
def leaves(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have Ctrl-C come at the first look, after something was done."""

    def plan(first: Callable[[], None]) -> None:
        def sleep(seconds: float) -> None:
            first()
            raise KeyboardInterrupt

        monkeypatch.setattr(ports, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))

    return plan


def test_forward_says_where_each_port_is_and_ends_with_ctrl_c(
    call: Call, fleet: PortsFleet, leaves: Callable[[Callable[[], None]], None]
) -> None:
    # Two: the made container's ports are this machine's.
    there, here, elsewhere = free_port(), free_port(), free_port()
    answers: list[int] = []

    def look() -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{here}/")
        try:
            urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as exc:
            with exc:
                answers.append(exc.code)

    leaves(look)
    with bound(elsewhere):
        ended = call("forward", KERNEL[:8], f"{here}:{there}", f"{elsewhere}:5")
    assert ended.code == 0
    first, second, last = ended.out.splitlines()
    assert first == f"http://127.0.0.1:{here}/ -> {there} of {KERNEL[:12]}"
    assert second.startswith("http://127.0.0.1:")
    assert second.endswith(f"/ -> 5 of {KERNEL[:12]}")
    assert last == "Ctrl-C ends this."
    assert answers == [502]
    assert ended.err.splitlines() == [
        f"Nothing listens at port {there} in the container yet.",
        f"Port {elsewhere} is taken on this machine; {second.split(':')[2].split('/')[0]} is used.",
        "Nothing listens at port 5 in the container yet.",
    ]
    assert fleet.is_closed


def test_forward_says_of_a_raw_port_who_can_connect(
    call: Call, fleet: PortsFleet, leaves: Callable[[Callable[[], None]], None]
) -> None:
    leaves(lambda: None)
    port = free_port()
    ended = call("forward", KERNEL[:8], f"{port}:5", "--raw")
    assert ended.out.splitlines()[0] == f"127.0.0.1:{port} -> 5 of {KERNEL[:12]}"
    assert f"Any program of this machine (on Linux: of your login) can connect to {port}" in ended.err


def test_forward_ends_with_its_kernel(call: Call, fleet: PortsFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_ASK_SECONDS", 0.0)
    fleet.container.is_gone = True
    ended = call("forward", KERNEL[:8], f"{free_port()}:5")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "The kernel has ended.")


@pytest.mark.parametrize("written", ["0", "a", "1:2:3"])
def test_forward_refuses_what_is_no_port(call: Call, written: str) -> None:
    ended = call("forward", KERNEL[:8], written)
    assert ended.code == 2
    assert "must be a port" in ended.err


def test_forward_of_no_kernel_says_so(call: Call) -> None:
    assert call("forward", "ffff", "6006").code == 52


def test_tensorboard_opens_the_browser_and_ends_with_ctrl_c(
    call: Call, fleet: PortsFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    is_open, is_closed = threading.Event(), threading.Event()

    def open_page(address: str) -> bool:
        opened.append(address)
        is_open.set()
        return is_closed.wait(20)  # A browser of the terminal: until its user closes it.

    class Addresses(SimpleQueue[str]):
        def get(self, block: bool = True, timeout: float | None = None) -> str:
            if is_open.wait(timeout):
                raise KeyboardInterrupt
            return super().get(block, timeout)

    monkeypatch.setattr("webbrowser.open", open_page)
    monkeypatch.setattr(ports, "SimpleQueue", Addresses)
    ended = call("tensorboard", KERNEL[:8], "runs", "--port", "7007")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "http://127.0.0.1:6006/\nCtrl-C ends it.\n"
    is_closed.set()
    assert opened == ["http://127.0.0.1:6006/"]
    assert fleet.asked == ("runs", 7007)


def test_tensorboard_that_ends_says_why(call: Call, fleet: PortsFleet) -> None:
    fleet.board_says = BoardFailed(kernel="aabb1111", reason="No module named tensorboard")
    ended = call("tensorboard", KERNEL[:8], "runs", "--no-browser")
    assert ended.code == BoardFailed.exit_code
    assert "No module named tensorboard" in ended.err
