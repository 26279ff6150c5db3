"""How long a kernel lives without whoever started it, what ends it, and that nothing of it is left then."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kernelbridge.config import load as configs
from kernelbridge.fleet.fleet import Fleet
from tests.clients import gate
from tests.clients.blocking import Client, connected
from tests.clients.goodbyes import expect_left, kernel_processes
from tests.clients.launched import Launched, launched
from tests.clients.notebook import notebook, write_specs
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def fleet(bridge_env: Laptop) -> Iterator[Fleet]:
    """A terminal's fleet of this user, for listing and sweeping."""
    found = Fleet(configs.load(bridge_env.config))
    yield found
    found.close()


# Ten lines a second, for 15 s.
PRINTING = """\
import time
for n in range(150):
    print(f'<{n}>', flush=True)
    time.sleep(0.1)
print('end of it')
"""
# A program that holds a kernel until its stdin ends.
HOLDING = """\
import sys
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name='kernelbridge-test')
manager.start_kernel()
print('up', flush=True)
sys.stdin.readline()
manager.shutdown_kernel()
"""


def states(rig: Rig) -> list[str]:
    """How the engine names the state of each container of ours."""
    return sorted(one.status for one in rig.engine.kernels())


def exit_codes(rig: Rig) -> list[int]:
    return sorted(one.attrs["State"]["ExitCode"] for one in rig.engine.kernels())


def swept(fleet: Fleet) -> list[Any]:
    """What a listing shows, after it has swept what is done with."""
    return list(fleet.run(fleet.list_kernels(), 60).kernels)


def running_processes(rig: Rig) -> list[str]:
    """Command lines of all containers' processes, zombies too."""
    found: list[str] = []
    for one in rig.engine.kernels():
        if one.status == "running":
            top = one.top(ps_args="-eo pid,stat,args")
            found += [f"{stat} {command}" for _, stat, command, *_ in top["Processes"]]
    return found


# -- an editor that ends


def test_after_the_editors_goodbye_the_kernel_ends_at_once_and_the_container_soon(
    rig: Rig, bridge_env: Laptop, fleet: Fleet
) -> None:
    with launched(bridge_env) as one:
        with one.client() as client:
            assert client.run("6 * 7").result == "42"
        assert one.end() < 1.5 * SLOW
    assert one.process.returncode == 0
    wait_until(lambda: not any("ipykernel" in line for line in running_processes(rig)), "the kernel to be gone", 3)
    assert states(rig) == ["running"]  # The relay: a restart would find its container.
    wait_until(lambda: states(rig) == ["exited"], "the container to end", 25)
    assert exit_codes(rig) == [0]
    assert swept(fleet) == []
    assert rig.engine.kernels() == []


def test_a_restart_by_the_editor_finds_its_container_and_files_again(rig: Rig, bridge_env: Laptop) -> None:
    with launched(bridge_env) as first, first.client() as client:
        client.run("open('/tmp/kept', 'w').write('here'); kept = 1")
        before = [one.id for one in rig.engine.kernels()]
        first.end()
    with launched(bridge_env) as second, second.client() as client:
        assert client.run("open('/tmp/kept').read(), 'kept' in globals()").result == "('here', False)"
        assert [one.id for one in rig.engine.kernels()] == before
        # And again: what was restarted once can be restarted twice.
        second.end()
    with launched(bridge_env) as third, third.client() as client:
        assert client.run("open('/tmp/kept').read()").result == "'here'"
        third.end()
    expect_left(rig, bridge_env)


def test_of_two_that_were_left_at_once_none_is_taken(rig: Rig, bridge_env: Laptop) -> None:
    with launched(bridge_env) as first, launched(bridge_env) as second:
        for one in (first, second):
            with one.client() as client:
                client.run("open('/tmp/kept', 'w').write('here')")
        first.end()
        second.end()
    with launched(bridge_env) as third, third.client() as client:
        assert client.run("import os; os.path.exists('/tmp/kept')").result == "False"
        assert len(rig.engine.kernels()) == 3
        third.end()
    wait_until(lambda: kernel_processes(rig) == [], "all kernels to be gone", 5)
    rig.engine.sweep()


def test_a_kernel_that_is_to_persist_outlives_its_editor_and_comes_back_with_all_it_said(
    rig: Rig, bridge_env: Laptop, fleet: Fleet
) -> None:
    bridge_env.write_environment(rig.image, persist=True)
    with launched(bridge_env) as first, first.client() as client:
        client.run("kept = 41")
        # Not before a cell has run: a client is ready when the launcher answers, which it does before the container is.
        kernel_id = swept(fleet)[0].kernel_id
        cell = client.send(gate.held("for n in range(20):\n    print(n, flush=True)\n    time.sleep(0.2)", ""))
        # Not what the first cell was told of its start.
        client.wait_for(lambda one: one["msg_type"] == "stream" and one["parent_header"]["msg_id"] == cell)
        first.end()
    row = swept(fleet)[0]
    assert (row.state, row.link, row.held_by, row.deadline) == ("busy", "detached", "", None)
    gate.open_gates(rig)
    wait_until(lambda: swept(fleet)[0].state == "idle", "the cell to end", 15)
    assert swept(fleet)[0].undelivered_bytes > 0
    # From another folder: the same one would be taken for a restart by the editor.
    elsewhere = launched(bridge_env, folder=bridge_env.data_dir, KERNELBRIDGE_KERNEL=kernel_id)
    # Not ready=True: jupyter_client throws away what comes while it waits for that.
    with elsewhere as second, second.client(ready=False) as client:
        assert client.run("kept + 1").result == "42"
        said = "".join(one["content"]["text"] for one in client.seen() if one["msg_type"] == "stream")
        assert said.split()[-10:] == [str(n) for n in range(10, 20)]
        assert swept(fleet)[0].link == "held"
    fleet.run(fleet.stop_by_id(kernel_id), 60)
    assert rig.engine.kernels() == []


# -- silence


def test_a_sleeping_laptops_busy_kernel_lives_and_its_idle_one_ends_after_the_grace(
    rig: Rig, bridge_env: Laptop, fleet: Fleet
) -> None:
    bridge_env.write_environment(rig.image, lost_grace="4s")
    with launched(bridge_env) as busy, launched(bridge_env) as idle:
        with busy.client() as working:
            with idle.client() as resting:
                resting.run("1")
            # What was not acknowledged counts as undelivered, and then no grace runs.
            wait_until(lambda: [row.undelivered_bytes for row in swept(fleet)] == [0, 0], "all to be delivered", 10)
            cell = working.send("import time\nfor n in range(45):\n    print(n, flush=True)\n    time.sleep(1)")
            working.wait_for_words("0\n")
            with busy.asleep(), idle.asleep():
                began = time.monotonic()
                wait_until(lambda: states(rig) == ["exited", "running"], "the idle one to end", 60)
                # Silence is noticed after 15 s; then the grace runs.
                assert 15 < time.monotonic() - began < 40
                assert exit_codes(rig) == [0, 81]  # The running one counts as 0.
            done = working.finish(cell, seconds=90)
            assert done.text.split() == [str(n) for n in range(45)]
        wait_until(lambda: idle.process.poll() is not None, "its launcher to hear of the end", 30)
        assert "on lab was ended by `lost_grace` of its environment" in idle.told
        busy.end()
    wait_until(lambda: states(rig) == ["exited"] * 2, "both to be over", 25)
    # One ended by its user is swept; one that ended by itself is kept for its log, until `clean`.
    assert [row.state for row in swept(fleet)] == ["exited"]
    assert len(fleet.run(fleet.clean(dry_run=False, discard=False), 60).kernels) == 1
    assert rig.engine.kernels() == []


@pytest.mark.parametrize(("key", "code"), [("idle_timeout", "1"), ("max_lifetime", "import time; time.sleep(60)")])
def test_a_limit_of_the_environment_ends_the_kernel_says_so_and_nothing_restarts_it(
    rig: Rig, bridge_env: Laptop, fleet: Fleet, caplog: pytest.LogCaptureFixture, key: str, code: str
) -> None:
    limit: dict[str, Any] = {key: f"{6 * SLOW:g}s"}
    bridge_env.write_environment(rig.image, **limit)
    with notebook(bridge_env) as shown:
        with connected(shown.manager.connection_file) as client:
            cell = client.send(code)
            # From the kernel itself: before it is joined, that nobody has joined it comes first.
            client.wait_for(lambda message: message["msg_type"] == "execute_input")
            deadline = swept(fleet)[0]
            assert deadline.deadline_key in (key, "")
            if key == "max_lifetime":
                ended = client.finish(cell, seconds=30)
                assert ended.error.startswith("KernelExpired:")
                assert f"was ended by `{key}`" in ended.error
            else:
                client.finish(cell)
            wait_until(lambda: not shown.manager.is_alive(), "Jupyter to see the end", 30)
            after = client.run("1 + 1", seconds=10)
            assert f"was ended by `{key}`" in after.error
        wait_until(lambda: states(rig) == ["exited"], "the container to end", 15)
        assert exit_codes(rig) == [{"idle_timeout": 82, "max_lifetime": 83}[key]]
    # Nobody waits long for the end of a kernel that has ended: what it takes longer goes on in the fleet's loop.
    wait_until(lambda: rig.engine.kernels() == [], "the container to be gone", 10)
    assert rig.engine.kernels() == []
    # The end of its container is no news after that of the kernel.
    logged = [one.getMessage() for one in caplog.records if "was ended by" in one.getMessage()]
    assert len(logged) == 1, logged


def test_no_process_of_a_kernel_becomes_a_zombie(rig: Rig, bridge_env: Laptop) -> None:
    with notebook(bridge_env) as book:
        book.run("import subprocess, sys\nfor _ in range(5):\n    subprocess.Popen(['sh', '-c', 'sleep 0.1 & exit'])")
        for _ in range(3):
            book.manager.restart_kernel()
            book.client.wait_for_ready(timeout=60 * SLOW)
        book.run("1")
        lines = running_processes(rig)
        assert [line for line in lines if line.startswith("Z")] == []
        assert len([line for line in lines if "ipykernel_launcher" in line]) == 1


# -- our own end without a word


def test_nothing_is_lost_when_our_process_is_killed_and_at_most_two_seconds_come_twice(
    rig: Rig, bridge_env: Laptop, fleet: Fleet
) -> None:
    with launched(bridge_env) as first:
        kernel_id, seen = killed_while_it_prints(first, fleet)
    time.sleep(3)
    with launched(bridge_env, KERNELBRIDGE_KERNEL=kernel_id) as second, second.client(ready=False) as client:
        client.send("1")
        client.wait_for(lambda message: "end of it" in message["content"].get("text", ""), seconds=60)
        again = numbers(client)
        # Ten lines a second.
        assert again[0] <= seen[-1] + 1
        assert again[0] >= seen[-1] - 10 * (2 + 1 * SLOW)
        assert sorted(set(seen) | set(again)) == list(range(150))
        assert again == sorted(set(again))  # In order, and what comes twice comes once from each process.
        assert client.run("1 + 1").result == "2"
        second.end()
    expect_left(rig, bridge_env)


def killed_while_it_prints(one: Launched, fleet: Fleet) -> tuple[str, list[int]]:
    """Run a cell that prints 150 numbers in 15 s, and kill the launcher after a third; its kernel, what was seen."""
    with one.client() as client:
        client.run("1")  # A client is ready when the launcher answers, which it does before there is a container.
        kernel_id = swept(fleet)[0].kernel_id
        client.send(PRINTING)
        client.wait_for(lambda message: "<50>" in message["content"].get("text", ""))
        one.kill()
        return str(kernel_id), numbers(client)


def numbers(client: Client) -> list[int]:
    text = "".join(one["content"]["text"] for one in client.seen() if one["msg_type"] == "stream")
    return [int(word.strip("<>")) for word in text.split() if word.startswith("<")]


# -- stops


def test_a_stop_without_a_link_is_carried_out_when_the_host_is_there_again(
    rig: Rig, bridge_env: Laptop, fleet: Fleet
) -> None:
    bridge_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    fleet.config = configs.load(bridge_env.config)
    write_specs(bridge_env)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING], env=bridge_env.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    with rig.proxy.cut():
        time.sleep(0.5)
        process.stdin.close()
        process.wait(30 * SLOW)
        listing = fleet.run(fleet.list_kernels(), 60)
        assert [(row.state, row.host) for row in listing.kernels] == [("stopping", "lab")]
        assert len(listing.problems) == 1
    process.stdout.close()
    assert swept(fleet) == []
    assert rig.engine.kernels() == []
