"""checks.py: which hosts can give what is wanted, found out before anything is started; and whose failure is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kernelbridge.checks import Checks, Found
from kernelbridge.config import Host
from kernelbridge.errors import ConfigInvalid, HostUnreachable, KernelBridgeError, SecretMissing
from kernelbridge.gpu_errors import DriverTooOld, GpusBusy, GpuWayMissing, JobRefused
from kernelbridge.kernel_errors import GpuUnavailable, ImageMissing, MountMissing, StartTimeout
from tests.made_clock import MadeClock
from tests.made_clusters import HPC, MadeCluster
from tests.made_engines import BOBS, CARLS, LAB, MINE, TWO, MadeEngine, cards, wanted

NO_WAY = GpuWayMissing(host="lab", reason="no way", remedy="Make one.")
AWAY = HostUnreachable(host="lab", address="lab:22", reason="no route")


class Hosts:
    """`lab` and `two`, each with a card and the image; `hpc` is a cluster."""

    def __init__(self, clock: MadeClock) -> None:
        self.lab, self.two = MadeEngine(clock=clock), MadeEngine(clock=clock, name="two")
        for engine in (self.lab, self.two):
            engine.has_image()
        self.cluster = MadeCluster()
        self.away: dict[str, KernelBridgeError] = {}
        self.is_stuck = False
        self.asked: list[str] = []

    async def _reach(self, host: Host) -> Any:
        self.asked.append(host.name)
        if self.is_stuck and host.name == "lab":
            await asyncio.sleep(10_000)
        if host.name in self.away:
            raise self.away[host.name]
        return {"lab": self.lab, "two": self.two}[host.name]

    async def _cluster(self, host: Host) -> Any:
        self.asked.append(host.name)
        return self.cluster

    async def find(self, *hosts: Host, **keys: Any) -> Found:
        asked = wanted(hosts=hosts or (LAB, TWO), **keys)
        checks = Checks(asked, self._reach, self._cluster)
        assert repr(checks) == "<Checks for aaaa1111>"
        return await checks.find_hosts()


@pytest.fixture
def hosts(clock: MadeClock) -> Hosts:
    return Hosts(clock)


# -- which host


async def test_the_first_host_that_can_give_it_now_is_found_and_no_other_asked(hosts: Hosts) -> None:
    assert await hosts.find() == Found(hosts=(LAB,), image_id="sha256:1")
    assert set(hosts.asked) == {"lab"}
    assert hosts.lab.log == []


async def test_a_full_host_or_one_that_is_away_is_passed_over(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    assert (await hosts.find()).hosts == (TWO,)
    hosts.away["lab"] = AWAY
    assert (await hosts.find()).hosts == (TWO,)


async def test_where_none_can_the_first_hosts_failure_is_told(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    hosts.two.facts_of_gpus = cards(0)
    with pytest.raises(GpusBusy, match=r"^lab: "):
        await hosts.find(LAB, TWO)
    with pytest.raises(GpuUnavailable):
        await hosts.find(TWO, LAB)


async def test_where_all_are_full_who_has_what_on_each_is_told(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    hosts.two.hold(CARLS, "GPU-0")
    with pytest.raises(GpusBusy, match=r"^lab, two: 1 GPU wanted, not free: on lab GPU 0: .*; on two GPU 0: "):
        await hosts.find(LAB, TWO)


async def test_who_may_wait_is_given_every_host_that_may_later(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    hosts.two.hold(BOBS, "GPU-0")
    hosts.two.images.clear()
    assert await hosts.find(wait=600.0) == Found(hosts=(LAB, TWO), image_id="sha256:1")
    assert await hosts.find(TWO, LAB, wait=600.0) == Found(hosts=(TWO, LAB), image_id="")
    # The tickets are drawn when the start begins.
    assert (hosts.lab.volumes.there, hosts.two.volumes.there) == ({}, {})


async def test_a_host_that_can_never_is_not_waited_for(hosts: Hosts) -> None:
    hosts.lab.facts_of_gpus = cards(0)
    hosts.two.hold(BOBS, "GPU-0")
    assert (await hosts.find(wait=600.0)).hosts == (TWO,)


async def test_a_host_that_can_now_goes_before_one_that_may_later(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    assert (await hosts.find(wait=600.0)).hosts == (TWO,)


async def test_a_host_that_does_not_answer_is_passed_over_after_its_time(hosts: Hosts, clock: MadeClock) -> None:
    hosts.is_stuck = True
    assert (await hosts.find()).hosts == (TWO,)
    assert clock.now == pytest.approx(1030, abs=1)
    with pytest.raises(StartTimeout, match="the check of the host"):
        await hosts.find(LAB)


# -- what is checked


async def test_a_secret_that_is_not_set_here_is_told_before_any_host_is_asked(hosts: Hosts) -> None:
    with pytest.raises(SecretMissing, match="HF_TOKEN"):
        await hosts.find(secrets=("HF_TOKEN",), environ={"OTHER": "x"})
    assert hosts.asked == []
    assert (await hosts.find(secrets=("HF_TOKEN",), environ={"HF_TOKEN": "x"})).hosts == (LAB,)


async def test_an_engine_that_cannot_hand_out_gpus_says_so_before_the_start(hosts: Hosts) -> None:
    hosts.lab.way = NO_WAY
    with pytest.raises(GpuWayMissing):
        await hosts.find(LAB)
    assert (await hosts.find()).hosts == (TWO,)
    # Also where the GPUs would come later only.
    hosts.lab.hold(BOBS, "GPU-0")
    with pytest.raises(GpuWayMissing):
        await hosts.find(LAB, wait=600.0)
    # Who wants none is not concerned.
    assert (await hosts.find(LAB, gpus=0)).hosts == (LAB,)


async def test_a_driver_too_old_for_the_image_is_told(hosts: Hosts) -> None:
    hosts.lab.has_image(CUDA_VERSION="13.0")
    with pytest.raises(DriverTooOld, match="lab"):
        await hosts.find(LAB)
    assert (await hosts.find(LAB, gpus=0)).hosts == (LAB,)


@pytest.mark.parametrize(("pull", "is_asked"), [("missing", False), ("always", True)])
async def test_the_registry_is_asked_only_where_it_will_be_needed(hosts: Hosts, pull: str, is_asked: bool) -> None:
    found = await hosts.find(LAB, pull=pull)
    assert hosts.lab.log == (["ask the registry for torch:2"] if is_asked else [])
    assert found.image_id == ("" if is_asked else "sha256:1")


async def test_an_image_that_is_nowhere_is_told(hosts: Hosts) -> None:
    hosts.lab.images.clear()
    assert (await hosts.find(LAB)).image_id == ""
    with pytest.raises(ImageMissing, match="`pull` is never"):
        await hosts.find(LAB, pull="never")
    hosts.lab.pull_failure = ImageMissing(host="lab", image="torch:2", reason="no such image")
    with pytest.raises(ImageMissing, match="no such image"):
        await hosts.find(LAB)


async def test_a_mount_that_is_not_there_is_told_with_its_path_on_the_host(hosts: Hosts) -> None:
    hosts.lab.prints = "/data\n\n"
    with pytest.raises(MountMissing, match="/home/ada/work"):
        await hosts.find(LAB, mounts=("/data:/data", "~/work:/work"))
    hosts.lab.prints = "/data\n/home/ada/work\n"
    assert (await hosts.find(LAB, mounts=("/data:/data", "~/work:/work"))).hosts == (LAB,)


async def test_a_link_of_the_host_may_not_lead_to_what_is_refused(hosts: Hosts) -> None:
    hosts.lab.prints = "/var/run/docker.sock\n"
    with pytest.raises(ConfigInvalid):
        await hosts.find(LAB, mounts=("/data/link:/data",))


# -- a cluster


async def test_slurm_is_asked_whether_it_would_take_the_job_and_its_queue_is_no_obstacle(hosts: Hosts) -> None:
    assert await hosts.find(HPC, LAB, gpus=2) == Found(hosts=(HPC,))
    assert hosts.cluster.log == ["check"]
    (request,) = hosts.cluster.requests
    assert (request.name, request.gres, request.comment) == (f"kernelbridge-{MINE}", "gpu:2", "")


async def test_where_slurm_refuses_the_next_host_is_asked(hosts: Hosts) -> None:
    hosts.cluster.submit_failure = JobRefused(host="hpc", reason="Invalid account")
    assert (await hosts.find(HPC, LAB)).hosts == (LAB,)
    with pytest.raises(JobRefused):
        await hosts.find(HPC)
    with pytest.raises(JobRefused, match="Slurm gives GPUs by number"):
        await hosts.find(HPC, gpus="all")


async def test_a_full_engine_is_passed_over_for_a_cluster(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    assert (await hosts.find(LAB, HPC, wait=600.0)).hosts == (HPC,)
