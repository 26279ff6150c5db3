"""Several kernels on one link, and what a link that is lost and found again does to them: nothing.

How a link itself fails and is opened again: test_link.py. How fast it all is: tests/bench.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager

from tests.clients.blocking import Client, started
from tests.clients.notebook import NAME, fleet_closed_after, write_specs
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)

MANY = 10
CUT_SECONDS = 10.0
# A megabyte each half second, so that a cut falls into the middle of something.
WORK = "import time\nfor n in range(16):\n    print(f'{n:02d}' * 500_000)\n    time.sleep(0.5)"


@pytest.fixture(scope="module")
def user(rig: Rig, module_env: Laptop) -> Iterator[Laptop]:
    """All goes through the proxy, where lines can be counted and cut."""
    module_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    write_specs(module_env)
    with fleet_closed_after(module_env):
        yield module_env


@pytest.fixture(scope="module")
def running(user: Laptop) -> Iterator[tuple[KernelManager, Client]]:
    """The kernel that all cuts of this file are made under."""
    with started() as both:
        yield both


# -- before any other kernel: the link is just opened


def test_a_round_trip_on_a_link_just_opened_is_short(running: tuple[KernelManager, Client]) -> None:
    running[1].run("1")
    kernel = running[1].kernel
    seconds: list[float] = []
    for _ in range(30):
        began = time.perf_counter()
        request = kernel.execute("1")
        while kernel.get_shell_msg(timeout=10)["parent_header"]["msg_id"] != request:
            pass
        seconds.append(time.perf_counter() - began)
    # Until a session was opened on it sshd leaves Nagle on: 44 ms for each cell.
    assert statistics.quantiles(seconds, n=4)[0] < 0.015 * SLOW


# -- several on one link


def test_two_kernels_share_one_login_and_nothing_else(rig: Rig, running: tuple[KernelManager, Client]) -> None:
    before = len(rig.engine.kernels())
    _, first = running
    with started() as (_, second):
        requests = {client: client.send(f"mine = '{name}'; mine") for client, name in ((first, "a"), (second, "b"))}
        assert [client.finish(request).result for client, request in requests.items()] == ["'a'", "'b'"]
        assert rig.proxy.connections == 1
        assert len(rig.engine.kernels()) == before + 1
        assert (first.run("mine").result, second.run("mine").result) == ("'a'", "'b'")
    assert first.run("mine").result == "'a'"
    wait_until(lambda: len(rig.engine.kernels()) == before, "the second's container to be gone", 10)


async def test_ten_kernels_started_at_once_all_answer_for_themselves_and_all_go(rig: Rig, user: Laptop) -> None:
    before = len(rig.engine.kernels())
    managers = [AsyncKernelManager(kernel_name=NAME) for _ in range(MANY)]
    try:
        await asyncio.gather(*(manager.start_kernel() for manager in managers))
        answers = await asyncio.gather(*(answer(manager, number) for number, manager in enumerate(managers)))
        assert [said.split()[0] for said in answers] == [str(number) for number in range(MANY)]
        assert len({said.split()[1] for said in answers}) == MANY  # Host names: each has a container of its own.
        assert len(rig.engine.kernels()) == before + MANY
        assert rig.proxy.connections == 1
    finally:
        await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in managers if manager.has_kernel))
    await asyncio.to_thread(wait_until, lambda: len(rig.engine.kernels()) == before, "all containers to be gone", 20)


async def answer(manager: AsyncKernelManager, number: int) -> str:
    """What the kernel prints of a number that only it was told, and of its machine."""
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60 * SLOW)
        printed: list[str] = []
        code = f"mine = {number}\nimport platform; print(mine, platform.node())"
        await client.execute_interactive(
            code,
            timeout=60 * SLOW,
            output_hook=lambda message: printed.append(message["content"].get("text", "")),
        )
        return "".join(printed).splitlines()[-1]
    finally:
        client.stop_channels()


# -- a link that is lost


@contextmanager
def killed(rig: Rig) -> Iterator[None]:
    """The connection ends at the far end, and can be made again at once."""
    rig.sshd.kill_connections()
    yield


# What happens to the line, and for how long.
FAULTS: dict[str, tuple[Callable[[Rig], AbstractContextManager[object]], float]] = {
    "line cut": (lambda rig: rig.proxy.cut(), CUT_SECONDS),
    "packets lost": (lambda rig: rig.proxy.blackhole(), CUT_SECONDS),
    "cable out": (lambda rig: rig.lab.unplugged(), CUT_SECONDS),
    "sshd killed": (killed, 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_its_variables_and_its_running_cell_outlive(
    rig: Rig, running: tuple[KernelManager, Client], fault: str
) -> None:
    manager, client = running
    began = client.run("import os; kept = object(); (os.getpid(), id(kept))").result
    container = [one.id for one in rig.engine.kernels()]
    cell = client.send(WORK)
    client.wait_for(lambda message: message["msg_type"] == "stream" and message["parent_header"]["msg_id"] == cell)
    lose, seconds = FAULTS[fault]
    with lose(rig):
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            assert manager.is_alive()  # The provisioner's poll: unknown is not gone.
            time.sleep(0.1)
        queued = client.send("(os.getpid(), id(kept))")
    done = client.finish(cell, seconds=30)
    assert done.reply["status"] == "ok"
    assert done.text == "".join(f"{n:02d}" * 500_000 + "\n" for n in range(16))
    assert client.finish(queued).result == began
    assert client.run("(os.getpid(), id(kept))").result == began
    assert [one.id for one in rig.engine.kernels()] == container


def test_an_interrupt_without_a_link_is_answered_at_once_said_in_its_cell_and_carried_out_when_it_is_back(
    rig: Rig, running: tuple[KernelManager, Client]
) -> None:
    manager, client = running

    def is_done(interrupt: str) -> bool:
        return any(
            one["msg_type"] == "status" and one["content"]["execution_state"] == "idle"
            for one in client.seen()
            if one["parent_header"].get("msg_id") == interrupt
        )

    for fault, words in (("cut", "the link to lab is lost"), ("blackhole", "no answer from the host yet")):
        cell = client.send(f"import time\nprint('{fault}', flush=True)\nwhile True: time.sleep(0.1)")
        client.wait_for_words(fault)
        with getattr(rig.proxy, fault)():
            began = time.monotonic()
            interrupt = client.ask("control", "interrupt_request")
            assert client.answer(interrupt)["content"]["status"] == "ok"
            assert time.monotonic() - began < 5 * SLOW
            told = client.wait_for_words(f"[kernelbridge: {words}; the interrupt is ")
            assert told["parent_header"]["msg_id"] == cell
            # VS Code offers a restart 10 s after it was done, unless the cell has ended.
            assert not is_done(interrupt)
            # Nor does a client believe that its kernel is gone.
            assert manager.is_alive()
            if fault == "cut":
                assert client.answer(client.ask("shell", "kernel_info_request"), seconds=2)["content"]["status"] == "ok"
        done = client.finish(cell)
        assert (done.reply["status"], done.reply["ename"]) == ("error", "KeyboardInterrupt")
        wait_until(partial(is_done, interrupt), "the interrupt to be done", 10)


def test_an_interrupt_whose_cell_ended_meanwhile_interrupts_no_other_and_one_for_a_cell_to_come_waits_for_it(
    rig: Rig, running: tuple[KernelManager, Client]
) -> None:
    _, client = running
    first = client.send(
        "import pathlib, time\nprint('one', flush=True)\nwhile not pathlib.Path('/tmp/go').exists(): time.sleep(0.05)"
    )
    second = client.send("time.sleep(2); pathlib.Path('/tmp/ended').touch(); 'not interrupted'")
    client.wait_for_words("one")
    (container,) = rig.engine.kernels()
    folder = rig.engine.root_of(container) / "tmp"
    with rig.proxy.cut():
        client.ask("control", "interrupt_request")
        client.wait_for_words("; the interrupt is ")
        (folder / "go").touch()
        wait_until(lambda: (folder / "ended").exists(), "the second cell to end", 10)
    assert client.finish(first).text.endswith("this cell had ended before the interrupt could be sent]\n")
    assert client.finish(second).result == "'not interrupted'"
    with rig.proxy.cut():
        third = client.send("while True: time.sleep(0.1)")
        client.ask("control", "interrupt_request")
        told = client.wait_for(lambda one: one["parent_header"].get("msg_id") == third)
        assert "; the interrupt is " in told["content"]["text"]
    assert client.finish(third).reply["ename"] == "KeyboardInterrupt"


def test_kernels_on_one_link_all_come_back_and_by_one_login(rig: Rig, running: tuple[KernelManager, Client]) -> None:
    with ExitStack() as kernels:
        clients = [running[1], *(kernels.enter_context(started())[1] for _ in range(2))]
        for number, client in enumerate(clients):
            client.run(f"mine = {number}")
        with rig.proxy.cut():
            requests = [client.send("mine") for client in clients]
            time.sleep(1)
        assert [client.finish(request).result for client, request in zip(clients, requests, strict=True)] == [*"012"]
        assert rig.proxy.connections == 1


def test_a_restart_without_a_link_is_carried_out_when_it_is_back(
    rig: Rig, running: tuple[KernelManager, Client]
) -> None:
    manager, client = running
    client.run("kept = 1")
    container = [one.id for one in rig.engine.kernels()]
    with rig.proxy.cut():
        time.sleep(0.5 * SLOW)
        began = time.monotonic()
        manager.restart_kernel()
        assert time.monotonic() - began < 3 * SLOW
        waiting = client.send("'kept' in globals()")
    assert client.finish(waiting).result == "False"
    assert [one.id for one in rig.engine.kernels()] == container


def test_a_shutdown_without_a_link_returns_soon_and_the_container_goes_when_it_is_back(rig: Rig, user: Laptop) -> None:
    before = len(rig.engine.kernels())
    with started() as (manager, client):
        client.run("1")
        with rig.proxy.cut():
            time.sleep(0.5 * SLOW)
            began = time.monotonic()
            manager.shutdown_kernel()
            assert time.monotonic() - began < 3 * SLOW
            assert len(rig.engine.kernels()) == before + 1
    wait_until(lambda: len(rig.engine.kernels()) == before, "the container to be gone", 20)
