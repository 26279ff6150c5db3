"""A kernel that is not there yet: what is answered meanwhile, and how soon, by whatever manager started it.

The stand-in before the engine (tests/rig/slow_engine.py) makes the start take as long as a test likes. Starts that
fail: test_late_failures.py. VS Code and JupyterLab: test_vscode_raw.py, test_lab_browser.py.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager

from tests.clients.blocking import Client, connected, started
from tests.clients.notebook import NAME, fleet_closed_after, write_specs
from tests.clients.rest import started_by
from tests.clients.server import JupyterServer
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slow_engine import SlowEngine
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(120)

ABSENT = "kernelbridge-test/absent:1"
CREATE = r"POST /containers/create"
AT_ONCE = 1.0 * SLOW


@pytest.fixture(scope="module")
def slow(rig: Rig, module_env: Laptop) -> Iterator[SlowEngine]:
    """The engine of host `lab`, for the whole file; its delays are each test's own."""
    with rig.slow_engine() as engine, fleet_closed_after(module_env):
        table = 'hosts = ["lab"]\nimage = '
        environments = f'[environments.test]\n{table}"{rig.image}"\n\n[environments.absent]\n{table}"{ABSENT}"\n'
        # All that a start does goes through the engine, so that each step of it can be held up.
        host = f'[hosts.lab]\nssh = "lab-proxied"\nsocket = "{engine.path}"\nshort_way = false\n\n'
        module_env.write_config(f"{host}{environments}")
        write_specs(module_env)
        yield engine


@pytest.fixture(scope="module")
def server(slow: SlowEngine, module_env: Laptop) -> Iterator[JupyterServer]:
    with JupyterServer(module_env.home / "server", lab=False, env=module_env.variables) as running:
        yield running


@pytest.fixture
def creating(rig: Rig, slow: SlowEngine) -> Iterator[Callable[[], bool]]:
    """The engine takes a minute to create a container; the value tells whether it was asked to, by now.

    Behind the test the engine does what it was asked for; no container may be left of that.
    """
    before = len(slow.requests)

    def is_asked() -> bool:
        return any("/containers/create" in one for one in slow.requests[before:])

    with slow.delays(CREATE, 60):
        yield is_asked
    expect_nothing_left(rig, slow, before)


def expect_nothing_left(rig: Rig, slow: SlowEngine, before: int) -> None:
    """Each container that was asked for is asked away again, and none is there then."""
    wait_until(lambda: len(set(deletions(slow.requests[before:]))) >= creations(slow.requests[before:]), "removals", 15)
    wait_until(lambda: not rig.engine.kernels(), "the containers to be gone", 5)


def creations(requests: list[str]) -> int:
    return len([one for one in requests if one.startswith("POST /containers/create")])


def deletions(requests: list[str]) -> list[str]:
    return [one for one in requests if one.startswith("DELETE /containers/")]


@contextmanager
def waiting_kernel(is_asked: Callable[[], bool]) -> Iterator[tuple[KernelManager, Client]]:
    with started(ready=False) as (manager, client):
        wait_until(is_asked, "the engine to be asked for the container", 15)
        yield manager, client


def seconds_of(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


async def seconds_of_async(act: Awaitable[object]) -> float:
    began = time.monotonic()
    await act
    return time.monotonic() - began


# -- messages


def test_kernel_info_is_answered_at_once_on_both_channels(creating: Callable[[], bool]) -> None:
    with waiting_kernel(creating) as (_, client):
        for channel in ("shell", "control"):
            began = time.monotonic()
            answer = client.answer(client.ask(channel, "kernel_info_request"))
            assert time.monotonic() - began < AT_ONCE
            assert answer["content"]["language_info"]["name"] == "python"
        assert seconds_of(lambda: client.kernel.wait_for_ready(timeout=10)) < 3 * SLOW
        assert client.kernel.is_alive()


def test_a_shutdown_request_cancels_the_start_at_once_and_says_so_in_the_cell(creating: Callable[[], bool]) -> None:
    with waiting_kernel(creating) as (manager, client):
        cell = client.send("print('never')")
        began = time.monotonic()
        answer = client.answer(client.ask("control", "shutdown_request", {"restart": False}))
        assert answer["content"]["status"] == "ok"
        assert client.finish(cell).reply["status"] == "aborted"
        wait_until(lambda: not manager.is_alive(), "the kernel to be seen as ended", 1)
        assert time.monotonic() - began < AT_ONCE
        assert "cancelled" in client.run("1").error


def test_an_interrupt_ends_the_waiting_cells_at_once_and_the_start_goes_on(slow: SlowEngine) -> None:
    with slow.delays(CREATE, 4), started(ready=False) as (manager, client):
        cells = [client.send(f"print({n})") for n in range(2)]
        client.answer(client.ask("control", "kernel_info_request"))
        began = time.monotonic()
        answer = client.answer(client.ask("control", "interrupt_request"))
        assert answer["content"]["status"] == "ok"
        for cell in cells:
            assert client.finish(cell).reply["ename"] == "KeyboardInterrupt"
        assert time.monotonic() - began < AT_ONCE
        assert manager.is_alive()
        assert client.run("6 * 7").result == "42"


def test_progress_appears_in_the_waiting_cell_and_is_gone_when_its_own_output_comes(slow: SlowEngine) -> None:
    with slow.delays(CREATE, 4), started(ready=False) as (_, client):
        first, second = client.send("print('one'); 1"), client.send("print('two')")
        shown = client.wait_for(lambda message: message["msg_type"] == "stream", seconds=10)
        assert shown["parent_header"]["msg_id"] == first
        assert shown["content"]["text"].startswith("Docker-GPU (remote), test on lab: ")
        cell = client.finish(first)
        assert cell.states == ["busy", "idle"]  # Jupyter's own suite refuses a second busy.
        assert (cell.text, cell.result) == ("one\n", "1")
        assert "clear_output" in cell.kinds
        assert client.finish(second).kinds == ["status", "execute_input", "stream", "status"]


def test_requests_that_waited_are_carried_out_in_their_order(slow: SlowEngine) -> None:
    with (
        slow.delays(CREATE, 4),
        started(ready=False) as (manager, client),
        connected(manager.connection_file) as other,
    ):
        client.send("seen = []")
        cells = []
        for number in range(8):
            time.sleep(0.2)  # Two clients' connections have no order between them but that of time.
            cells.append((client if number % 2 else other).send(f"seen.append({number})"))
        completed = client.ask("shell", "complete_request", {"code": "seen.appe", "cursor_pos": 9})
        assert client.run("seen").result == str(list(range(8)))
        assert client.answer(completed)["content"]["matches"] == ["append"]
        assert [client.finish(cell).reply["execution_count"] for cell in cells[1::2]] == [3, 5, 7, 9]


# -- managers


def test_a_blocking_manager_interrupts_restarts_and_shuts_down_within_a_second(creating: Callable[[], bool]) -> None:
    with waiting_kernel(creating) as (manager, client):
        cell = client.send("print('never')")
        client.answer(client.ask("control", "kernel_info_request"))
        assert seconds_of(manager.interrupt_kernel) < AT_ONCE
        assert client.finish(cell, seconds=1).reply["ename"] == "KeyboardInterrupt"
        assert seconds_of(manager.restart_kernel) < AT_ONCE
        assert manager.is_alive()
        assert seconds_of(lambda: manager.restart_kernel(now=True)) < AT_ONCE
        assert manager.is_alive()
        assert seconds_of(manager.shutdown_kernel) < AT_ONCE
        assert not manager.is_alive()


def test_a_restart_during_the_start_uses_that_start(rig: Rig, slow: SlowEngine) -> None:
    before = len(slow.requests)
    with slow.delays(CREATE, 4), started(ready=False) as (manager, client):
        dropped = client.send("print('before')")
        client.answer(client.ask("control", "kernel_info_request"))
        manager.restart_kernel()
        assert client.finish(dropped).reply["status"] in ("aborted", "error")
        assert client.run("6 * 7").result == "42"
        assert creations(slow.requests[before:]) == 1
        assert len(rig.engine.kernels()) == 1


async def test_an_async_manager_interrupts_restarts_and_shuts_down_within_a_second(
    creating: Callable[[], bool],
) -> None:
    manager = AsyncKernelManager(kernel_name=NAME)
    await manager.start_kernel()
    try:
        await asyncio.to_thread(wait_until, creating, "the engine to be asked for the container", 15)
        client = manager.client()
        client.start_channels()
        assert await seconds_of_async(client.wait_for_ready(timeout=10)) < 3 * SLOW
        assert await seconds_of_async(manager.interrupt_kernel()) < AT_ONCE
        assert await seconds_of_async(manager.restart_kernel()) < AT_ONCE
        assert await manager.is_alive()
        assert await seconds_of_async(manager.shutdown_kernel()) < AT_ONCE
        assert not await manager.is_alive()
        client.stop_channels()
    finally:
        if manager.has_kernel:
            await manager.shutdown_kernel(now=True)


def test_a_server_interrupts_restarts_and_shuts_down_within_a_second(
    server: JupyterServer, creating: Callable[[], bool]
) -> None:
    with started_by(server, NAME) as kernel:
        wait_until(creating, "the engine to be asked for the container", 15)
        cell = kernel.send("print('never')")
        # The websocket and the REST have no order between them; the progress says that the cell has come.
        kernel.wait_heard(cell)
        assert kernel.timed("POST", "interrupt") < AT_ONCE
        assert kernel.finish(cell, seconds=2).reply["ename"] == "KeyboardInterrupt"
        assert kernel.timed("POST", "restart") < AT_ONCE
        assert kernel.state in ("starting", "restarting", "busy", "idle")
        assert kernel.timed("DELETE") < AT_ONCE
        assert kernel.state == "gone"


def test_a_server_carries_out_what_waited_through_its_start(server: JupyterServer, slow: SlowEngine) -> None:
    with slow.delays(CREATE, 3), started_by(server, NAME) as kernel:
        cells = [kernel.send(code) for code in ("kept = 6", "kept * 7")]
        assert [kernel.finish(cell).result for cell in cells] == [None, "42"]


# -- a start cancelled half way

STEPS = {
    "at its creation": CREATE,
    "before its start": r"POST /containers/[^/]+/start",
    "before the stream": r"POST /containers/[^/]+/exec",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_start_cancelled_half_way_leaves_no_container(rig: Rig, slow: SlowEngine, step: str) -> None:
    before = len(slow.requests)

    def is_there() -> bool:
        return any(re.search(STEPS[step], one) for one in slow.requests[before:])

    with slow.delays(STEPS[step], 60), started(ready=False) as (manager, _):
        wait_until(is_there, "the start to be that far", 10)
        assert seconds_of(manager.shutdown_kernel) < AT_ONCE
    expect_nothing_left(rig, slow, before)


def test_a_link_lost_while_the_container_is_made_is_told_and_leaves_no_container(rig: Rig, slow: SlowEngine) -> None:
    before = len(slow.requests)
    with slow.delays(CREATE, 3), started(ready=False) as (_, client):
        cell = client.send("print('never')")
        wait_until(lambda: creations(slow.requests[before:]) == 1, "the engine to be asked for the container", 10)
        with rig.proxy.cut():
            assert "on lab did not start because the link was lost." in client.finish(cell).error
    # What the engine was asked for comes late and without an answer: so it is removed twice.
    wait_until(lambda: len(deletions(slow.requests[before:])) >= 2, "the second removal", 15)
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 5)


def test_a_pull_that_is_cancelled_is_given_up_and_nothing_is_created(slow: SlowEngine, module_env: Laptop) -> None:
    before = len(slow.requests)
    with (
        slow.answers(200, r"GET /distribution/", "the registry has it"),
        slow.delays(r"POST /images/create", 60),
        started("kernelbridge-absent", ready=False) as (manager, client),
    ):
        cell = client.send("print('never')")
        words = "pulling kernelbridge-test/absent:1"
        client.wait_for(lambda message: words in message["content"].get("text", ""), seconds=10)
        assert seconds_of(manager.shutdown_kernel) < AT_ONCE
        assert client.finish(cell).reply["status"] in ("aborted", "error")
    assert not [one for one in slow.requests[before:] if "/containers/create" in one]
