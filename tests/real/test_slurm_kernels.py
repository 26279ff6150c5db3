"""Kernels as jobs of a real Slurm, whose containers are Docker's or rootless Podman's: cells, cards, the queue.

The four cards are STAND-INS; who gets which is real. How such kernels end: test_slurm_ends.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from kernelbridge.errors import ConfigInvalid
from tests.clients.blocking import started
from tests.clients.cluster import shows, write_cluster
from tests.clients.notebook import CellFailed, fleet_closed_after, notebook
from tests.clients.refusals import refusal_of_manager
from tests.real.test_images import old_python
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)
SEEN = "subprocess.run(['nvidia-smi', '--query-gpu=uuid', '--format=csv,noheader'], capture_output=True, text=True)"


def test_a_cell_runs_in_a_container_inside_a_job_with_two_of_four_cards(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    with rig.lab.home_files("kbtest", {"data/file": "here"}), links(rig, link="data", rootlink="/"):
        write_cluster(bridge_env, rig, {"test": {"mounts": ["~/rootlink:/data:ro"]}})
        refused = refusal_of_manager(bridge_env)
        assert (type(refused), "the whole host (/)" in refused.sentence) == (ConfigInvalid, True)
        keys = {"gpus": 2, "memory": "600m", "cpus": 2, "mounts": ["~/link:/data:ro"]}
        write_cluster(bridge_env, rig, {"test": keys})
        runs_in_a_job(rig, cluster, bridge_env)


@contextmanager
def links(rig: Rig, **ends: str) -> Iterator[None]:
    """Links of this name in the login's home."""
    home = rig.lab.home("kbtest")
    for name, end in ends.items():
        (home / name).symlink_to(end)
    try:
        yield
    finally:
        for name in ends:
            (home / name).unlink()


def runs_in_a_job(rig: Rig, cluster: SlurmRig, laptop: Laptop) -> None:
    with notebook(laptop) as kernel:
        assert kernel.value("6 * 7") == 42
        assert kernel.value("open('/data/file').read()") == "here"
        kernel.run("import os, subprocess, time")
        cards = kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",")
        assert len(cards) == 2 and set(cards) < set(UUIDS)
        assert kernel.value(f"{SEEN}.stdout").split() == sorted(cards)
        (container,) = rig.engine.kernels()
        limits = container.attrs["HostConfig"]
        assert (limits["Memory"], limits["NanoCpus"]) == (600 << 20, 2_000_000_000)
        assert kernel.debug("initialize", clientID="test", adapterID="")["success"]
        # A restart is in place: the same job and container, the same cards.
        jobs = cluster.jobs()
        kernel.run("kept = 1")
        kernel.run("import pathlib, tempfile; left = pathlib.Path(tempfile.gettempdir(), 'left'); left.touch()")
        left, home = kernel.value("str(left), os.path.expanduser('~')")
        kernel.run("board = subprocess.Popen(['sleep', '987'], start_new_session=True)")
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=30 * SLOW)
        assert kernel.value("'kept' in dir()") is False
        kernel.run("import os, subprocess, time")
        # So are its folders, and nothing runs on that it had started.
        assert kernel.value(f"os.path.exists({left!r}), os.path.expanduser('~')") == (True, home)
        assert not [words for words in container.top()["Processes"] if "sleep 987" in " ".join(words)]
        assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']").split(",") == cards
        assert cluster.jobs() == jobs
        assert [one.id for one in rig.engine.kernels()] == [container.id]
        interrupted = kernel.client.execute("print('asleep', flush=True); time.sleep(60)")
        wait_until(lambda: kernel.client.get_iopub_msg(timeout=5)["msg_type"] == "stream", "the cell", 10)
        kernel.manager.interrupt_kernel()
        reply = kernel.client.get_shell_msg(timeout=10 * SLOW)
        assert reply["parent_header"]["msg_id"] == interrupted
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        # The job is ended from outside, and the user restarts: that is another job.
        cluster.as_user("kbtest", ["scancel", *jobs])
        with pytest.raises(CellFailed, match=f"JobEnded: The job {jobs[0]} of .* was cancelled. Start it again"):
            kernel.run("time.sleep(60)")
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=30 * SLOW)
        assert kernel.value("6 * 7") == 42
        assert len(cluster.jobs()) == 1 and cluster.jobs() != jobs
    # shutdown_kernel has returned: it waited for this.
    assert cluster.jobs() == []
    assert rig.engine.kernels() == []


def test_a_python_that_is_too_old_is_told_by_its_version(rig: Rig, cluster: SlurmRig, bridge_env: Laptop) -> None:
    with old_python(rig) as image:
        write_cluster(bridge_env, rig, {"test": {"image": image, "python": "/py/python3"}})
        with notebook(bridge_env) as kernel, pytest.raises(CellFailed, match="ImageUnusable") as caught:
            kernel.run("1")
    assert f"The image {image} has Python 3.7; kernelbridge needs 3.8." in " ".join(caught.value.text.split())
    assert cluster.jobs() == []


def test_of_five_kernels_for_four_cards_one_waits_and_runs_when_another_ends(
    rig: Rig, cluster: SlurmRig, bridge_env: Laptop
) -> None:
    write_cluster(bridge_env, rig, {"test": {"gpus": 1, "time_limit": "30m"}})
    with fleet_closed_after(bridge_env), ExitStack() as ends:
        kernels = [ends.enter_context(started("kernelbridge-test", ready=False)) for _ in range(4)]
        read = [client.send("import os; os.environ['NVIDIA_VISIBLE_DEVICES']") for _, client in kernels]
        taken = [client.finish(cell).result for (_, client), cell in zip(kernels, read, strict=True)]
        assert sorted(map(str, taken)) == sorted(f"'{uuid}'" for uuid in UUIDS)
        manager, client = ends.enter_context(started("kernelbridge-test", ready=False))
        cell = client.send("import os; os.environ['NVIDIA_VISIBLE_DEVICES']")
        shows(client, cell, "Docker-GPU (remote) on test: waiting in the queue of test (Resources), expected start ")
        another, cancelled = ends.enter_context(started("kernelbridge-test", ready=False))
        never = cancelled.send("1")
        # A kernel that is shut down while it waits takes its job out of the queue.
        shows(cancelled, never, "waiting in the queue of test (")
        assert len(cluster.jobs()) == 6
        another.shutdown_kernel()
        assert cancelled.finish(never).reply["status"] in ("aborted", "error")
        wait_until(lambda: len(cluster.jobs()) == 5, "the job to be cancelled", 5)
        kernels[1][0].shutdown_kernel()
        assert client.finish(cell).result == taken[1]
        assert client.run("6 * 7").result == "42"
        assert manager.is_alive()
