"""Four STAND-IN cards that many want at once: no card twice, no start lost, the queue fair, nothing stays taken.

The locks, the queue, the engine and the processes that are killed are real.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import GpuUnavailable
from kernelbridge.hosts.labels import LOCKS_VOLUME
from tests.clients.launched import launched
from tests.clients.notebook import CellFailed, notebook, write_specs
from tests.clients.starter import Starter, starting
from tests.clients.terminal import kernelbridge
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)
# Of the starters here, so that no test waits for a minute; see starter.py.
UNJOINED_SECONDS = 12.0
# From one holder's last word to the next one's first: its container is removed and found to be gone, another is made,
# its kernel runs a cell. 3 s where nothing else wants the processors.
IDLE_SECONDS = 5.0


@pytest.fixture(autouse=True)
def nothing_in_the_queue(rig: Rig) -> Iterator[None]:
    """At the end no ticket is left; the next test does not suffer where one is."""
    yield
    try:
        wait_until(lambda: tickets(rig) == [], "the queue to be empty", 10)
    finally:
        sweep_tickets(rig)


def tickets(rig: Rig) -> list[str]:
    with rig.engine.client() as client:
        return [volume.name for volume in client.volumes.list(filters={"label": "kernelbridge.queue"})]


def kernels_in_queue(rig: Rig) -> set[str]:
    return {name.removeprefix("kernelbridge-ticket-")[:36] for name in tickets(rig)}


class Shown(Exception):
    """The waiting cell shows what was waited for."""


def raise_at(words: str) -> Callable[[dict[str, Any]], None]:
    """Return an output hook that raises Shown."""

    def hook(message: dict[str, Any]) -> None:
        if words in str(message["content"]):
            raise Shown

    return hook


def ready(rig: Rig, laptop: Laptop, **keys: object) -> Laptop:
    """Kernels of this user get one card each unless said otherwise."""
    laptop.write_environment(rig.image, host=None, **{"gpus": 1, **keys})
    write_specs(laptop)
    return laptop


@pytest.fixture
def root_laptop(rig: Rig) -> Iterator[Laptop]:
    """A colleague's, who has another login on the host."""
    folder = Path(tempfile.mkdtemp(prefix="kbt-"))
    yield rig.laptop(folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_sixteen_starts_at_once_share_four_cards_and_no_card_is_there_twice(
    rig: Rig, bridge_env: Laptop, root_laptop: Laptop
) -> None:
    ready(rig, bridge_env, wait="10m")
    root_laptop.write_environment(rig.image, host={"ssh": "lab-root"}, gpus=1, wait="10m")
    assert kernelbridge(root_laptop, "install").code == 0
    with ExitStack() as undo:
        starters = [
            undo.enter_context(starting(laptop, count=4, hold_seconds=1.0))
            for laptop in (bridge_env, root_laptop, bridge_env, root_laptop)
        ]
        for one in starters:
            one.process.wait(240)
        assert [line for one in starters for line in one.said("failed")] == []
        got = [line for one in starters for line in one.said("got")]
        freed = [line for one in starters for line in one.said("freed")]
    assert len(got) == 16
    assert {line["cards"][0] for line in got} == set(UUIDS)
    for card in UUIDS:
        begins = sorted(line["at"] for line in got if line["cards"] == [card])
        ends = sorted(line["at"] for line in freed if line["cards"] == [card])
        assert all(end < begin for end, begin in zip(ends, begins[1:], strict=False)), card
    assert rig.engine.kernels() == []


def test_who_waits_longest_is_next_and_who_sleeps_is_passed_over_until_it_wakes(rig: Rig, bridge_env: Laptop) -> None:
    ready(rig, bridge_env, gpus=["2"], wait="10m")
    asleep_seconds = 6.0
    with ExitStack() as undo:

        def begin(**facts: float) -> Starter:
            return undo.enter_context(starting(bridge_env, asleep_seconds=asleep_seconds, **facts))

        holder = begin(hold_seconds=200.0)
        holder.wait_said("got")
        sleeper, second, third = (begin(hold_seconds=200.0) for _ in range(3))
        # In the order of their first words, whoever was faster to load.
        queue = sorted((sleeper, second, third), key=lambda one: one.wait_said("step", "place in the queue")["at"])
        sleeper, second, third = queue
        order: dict[Starter, str] = {}

        def is_known() -> bool:
            order.update({one: one.said("step")[-1]["text"].split("place in the queue: ")[1][0] for one in queue})
            return sorted(order.values()) == ["1", "2", "3"]

        wait_until(is_known, "the three places in the queue", 20)
        sleeper, second, third = sorted(queue, key=order.__getitem__)
        sleeper.sleep()
        time.sleep(asleep_seconds + 2)
        holder.release()
        second.wait_said("got")
        woken_at = time.time()
        sleeper.wake()
        wait_until(lambda: sleeper.said("step")[-1]["at"] > woken_at + 4, "the sleeper to be awake", 30)
        second.release()
        for one in (sleeper, third):
            one.wait_said("got")
            one.release()
        at = [one.said("got")[0]["at"] for one in (second, sleeper, third)]
    # It came first, slept while its turn was, and is before the third again.
    assert at == sorted(at)


@pytest.mark.parametrize("how", ["killed", "asleep"])
def test_a_laptop_that_dies_or_sleeps_at_any_step_of_a_start_leaves_no_card_taken(
    rig: Rig, bridge_env: Laptop, how: str
) -> None:
    ready(rig, bridge_env, wait="10m")
    with ExitStack() as undo:
        starters = []
        # One after the other: none may come so far that it has asked its kernel something.
        for step in ("a container", "starting the container", "starting the kernel"):
            there = {str(container.name) for container in rig.engine.kernels()}
            one = undo.enter_context(starting(bridge_env, asleep_seconds=UNJOINED_SECONDS))
            starters.append(one)
            if step == "a container":
                wait_until(partial(another_is_there, rig, there), step, 30)
            else:
                one.wait_said("step", step)
            one.process.kill() if how == "killed" else one.sleep()
        # The first may have come to no container at all; none may hold a card for longer than a relay waits.
        until = time.monotonic() + (UNJOINED_SECONDS + 15) * SLOW
        while any(one.status == "running" for one in rig.engine.kernels()) and time.monotonic() < until:
            time.sleep(1)
        assert [one.status for one in rig.engine.kernels() if one.status == "running"] == []
        ready(rig, bridge_env, gpus="all")
        with notebook(bridge_env) as kernel:
            kernel.run("import os")
            assert set(kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",")) == set(UUIDS)
        for one in starters:
            one.close()
    rig.engine.sweep()
    sweep_tickets(rig)


def another_is_there(rig: Rig, before: set[str]) -> bool:
    return not {str(container.name) for container in rig.engine.kernels()} <= before


def sweep_tickets(rig: Rig) -> None:
    with rig.engine.client() as client:
        for volume in client.volumes.list(filters={"label": "kernelbridge.queue"}):
            volume.remove(force=True)


def test_a_full_host_says_who_has_what_and_with_wait_the_cell_shows_its_place_and_then_runs(
    rig: Rig, bridge_env: Laptop
) -> None:
    ready(rig, bridge_env, gpus="all")
    with starting(bridge_env, hold_seconds=200.0) as holder:
        holder.wait_said("got")
        ready(rig, bridge_env)
        busy = r"1 GPU requested, but not free: GPU 0: test of .* since \d\d:\d\d"
        with pytest.raises(Exception, match=busy), notebook(bridge_env):
            pytest.fail("it started on a full host")
        ready(rig, bridge_env, wait="5m")
        with starting(bridge_env) as waiting:
            line = waiting.wait_said("step", "place in the queue: 1 on lab")
            assert "GPU 0: test of" in line["text"]
            time.sleep(1)  # The engine tells the time of a ticket in whole seconds; within one, ids decide.
            with notebook(bridge_env) as gives_up:
                hook = raise_at("place in the queue: 2 on lab")
                with pytest.raises(Shown):
                    gives_up.client.execute_interactive("1", output_hook=hook, timeout=60)
                assert len(kernels_in_queue(rig)) == 2
            # Its shutdown gives the ticket back.
            wait_until(lambda: kernels_in_queue(rig) == {line["kernel"]}, "the other to leave the queue", 10)
            holder.release()
            waiting.wait_said("got")
            waiting.process.wait(30)


def test_a_wait_that_is_over_ends_with_who_has_it(rig: Rig, bridge_env: Laptop) -> None:
    ready(rig, bridge_env, gpus="all")
    with starting(bridge_env, hold_seconds=200.0) as holder:
        holder.wait_said("got")
        ready(rig, bridge_env, wait="3s")
        with notebook(bridge_env) as kernel, pytest.raises(CellFailed, match=r"GpusBusy.*in the queue: GPU 0: test of"):
            kernel.run("1")
        holder.release()


def test_a_card_on_which_a_stranger_computes_is_left_alone_unless_said_otherwise(rig: Rig, bridge_env: Laptop) -> None:
    rig.engine.gpus.occupy(*UUIDS[:3])
    try:
        ready(rig, bridge_env)
        with notebook(bridge_env) as kernel:
            kernel.run("import os")
            assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']") == UUIDS[3]
        ready(rig, bridge_env, gpus=2)
        with (
            pytest.raises(Exception, match=r"2 GPUs requested, but not free: GPU 0: process 4242"),
            notebook(bridge_env),
        ):
            pytest.fail("it started beside a stranger")
        ready(rig, bridge_env, gpus=2, busy_gpus="use")
        with notebook(bridge_env) as kernel:
            kernel.run("import os")
            assert len(kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",")) == 2
    finally:
        rig.engine.gpus.occupy()


def test_a_card_is_free_again_at_the_moment_its_container_is_killed(rig: Rig, bridge_env: Laptop) -> None:
    ready(rig, bridge_env, gpus=["1"])
    with notebook(bridge_env) as kernel:
        kernel.run("1")
        (container,) = rig.engine.kernels()
        mounts = {mount["Name"]: mount["RW"] for mount in container.attrs["Mounts"] if "Name" in mount}
        assert mounts[LOCKS_VOLUME] is False
        container.kill()
        with starting(bridge_env) as another:
            assert another.wait_said("got", seconds=15)["cards"] == [UUIDS[1]]
            another.process.wait(30)
    # Nor is it idle for long between kernels that race for it: who lost sees at once that the winner is done.
    ready(rig, bridge_env, gpus=["1"], wait="5m")
    with starting(bridge_env, count=3, hold_seconds=0.7) as three:
        three.process.wait(60 * SLOW)
        freed, got = (sorted(line["at"] for line in three.said(what)) for what in ("freed", "got"))
    idle = [begin - end for end, begin in zip(freed, got[1:], strict=False)]
    print("idle between two of three that wait:", [f"{seconds:.1f} s" for seconds in idle])
    assert len(got) == 3
    assert max(idle) <= IDLE_SECONDS * SLOW, idle


def test_a_card_that_its_kernel_gave_back_is_free_to_all_who_look_though_its_output_is_kept(
    rig: Rig, bridge_env: Laptop
) -> None:
    ready(rig, bridge_env, gpus=["1"], max_lifetime=f"{10 * SLOW:g}s")

    def card() -> str:
        return str(kernelbridge(bridge_env, "gpus", "--json").json["gpus"][1]["state"])

    def kernels() -> list[tuple[str, bool]]:
        rows = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        return [(row["state"], row["undelivered_bytes"] > 0) for row in rows]

    with launched(bridge_env) as editor:
        with editor.client() as client:
            client.send("import time\nwhile True:\n    print('some words', flush=True)\n    time.sleep(0.05)")
            client.wait_for_words("some words")
            assert card() == "leased"
            editor.kill()
        wait_until(lambda: kernels() == [("exited", True)], "the kernel's end by its limit", 40)
        (container,) = rig.engine.kernels()
        assert (container.status, card()) == ("running", "free")
    rig.engine.sweep()


def test_labels_that_an_image_brings_hold_no_card_and_are_nobodys_kernel(rig: Rig, bridge_env: Laptop) -> None:
    labels = [f"LABEL kernelbridge.kernel=evil kernelbridge.gpus={','.join(UUIDS)} kernelbridge.owner=evil"]
    with rig.engine.changed(rig.image, *labels) as image:
        rig.engine.cli("run", "-d", "--entrypoint", "sleep", "--name", "kernelbridge-evil", image, "60")
        try:
            ready(rig, bridge_env, gpus="all")
            with notebook(bridge_env) as kernel:
                kernel.run("import os")
                assert len(kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",")) == 4
        finally:
            rig.engine.cli("rm", "-f", "kernelbridge-evil")


def test_a_restart_in_another_container_takes_the_config_as_it_is_now_or_says_why_not(
    rig: Rig, bridge_env: Laptop
) -> None:
    ready(rig, bridge_env)
    with notebook(bridge_env) as kernel:
        kernel.run("import os")
        with rig.engine.client() as client:
            client.containers.list()[0].kill()
        wait_until(lambda: not kernel.manager.is_alive(), "Jupyter to see the end", 30)
        ready(rig, bridge_env, gpus=9)
        with pytest.raises(GpuUnavailable, match="9 GPUs requested"):
            kernel.manager.restart_kernel()
        with pytest.raises(CellFailed, match="9 GPUs requested"):
            kernel.run("1")
        ready(rig, bridge_env, gpus=2)
        kernel.manager.restart_kernel()
        kernel.run("import os")
        assert len(kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",")) == 2
    assert rig.engine.kernels() == []
