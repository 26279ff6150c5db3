"""start/preflight.py: which hosts can give what is wanted, found out before anything is started; and whose failure is
told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Host, Workspace
from kernelbridge.errors import (
    CacheFailed,
    ConfigInvalid,
    DriverTooOld,
    GpusBusy,
    GpuUnavailable,
    GpuWayMissing,
    HostUnreachable,
    ImageMissing,
    JobRefused,
    KernelBridgeError,
    LoginAttempt,
    LoginRefused,
    MountMissing,
    SecretMissing,
    StartTimeout,
)
from kernelbridge.files.project import Project
from kernelbridge.hosts import mounts
from kernelbridge.hosts.transport.login.stage import Hearer, LoginStage
from kernelbridge.hosts.transport.stream import Completed
from kernelbridge.kernel.start import preflight
from kernelbridge.kernel.start.preflight import Candidates, Preflight
from tests.made_clock import MadeClock
from tests.made_clusters import HPC, MadeCluster
from tests.made_engines import BOBS, CARLS, LAB, MINE, TWO, MadeEngine, cards, image, launch_request

IMAGE = image()
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
        self.asked: list[str] = []
        self.config = Path("/k.toml")

    async def _reach(self, host: Host) -> Any:
        self.asked.append(host.name)
        if host.name in self.away:
            raise self.away[host.name]
        return {"lab": self.lab, "two": self.two}[host.name]

    async def _cluster(self, host: Host) -> Any:
        self.asked.append(host.name)
        return self.cluster

    async def find(self, *hosts: Host, **keys: Any) -> Candidates:
        asked = launch_request(hosts=hosts or (LAB, TWO), **keys)
        checks = Preflight(asked, self._reach, self._cluster, config=self.config)
        assert repr(checks) == "<Preflight for aaaa1111>"
        return await checks.find_hosts()


@pytest.fixture
def hosts(clock: MadeClock) -> Hosts:
    return Hosts(clock)


async def test_a_file_of_requirements_is_read_before_any_host_is_asked(hosts: Hosts, tmp_path: Path) -> None:
    hosts.config = tmp_path / "kernelbridge.toml"
    with pytest.raises(ConfigInvalid, match=r"environments\.torch\.requirements: .*more\.txt cannot be read"):
        await hosts.find(requirements="more.txt")
    (tmp_path / "more.txt").write_text("six\n-r other.txt\n")
    with pytest.raises(ConfigInvalid, match=r"more\.txt: `-r other\.txt` is an option of pip"):
        await hosts.find(requirements="more.txt")
    assert hosts.asked == []
    (tmp_path / "more.txt").write_text("six\n")
    assert (await hosts.find(requirements="more.txt")).hosts == (LAB,)


# -- which host


async def test_the_first_host_that_can_give_it_now_is_found_and_no_other_asked(hosts: Hosts) -> None:
    assert await hosts.find() == Candidates(hosts=(LAB,), image=IMAGE)
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


async def test_a_person_is_asked_for_before_another_failure_is_told(hosts: Hosts) -> None:
    needs_person = LoginRefused(host="two", user="ada", attempt=LoginAttempt(unanswered="Code:"))
    hosts.away |= {"lab": AWAY, "two": needs_person}
    with pytest.raises(LoginRefused):
        await hosts.find(LAB, TWO)
    # Nobody has to come where another host can.
    hosts.away = {"lab": needs_person}
    assert (await hosts.find(LAB, TWO)).hosts == (TWO,)


async def test_where_all_are_full_who_has_what_on_each_is_told(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    hosts.two.hold(CARLS, "GPU-0")
    with pytest.raises(GpusBusy, match=r"^lab, two: 1 GPU requested, but not free: on lab GPU 0: .*; on two GPU 0: "):
        await hosts.find(LAB, TWO)


async def test_who_may_wait_is_given_every_host_that_may_later(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    hosts.two.hold(BOBS, "GPU-0")
    hosts.two.images.clear()
    assert await hosts.find(wait=600.0) == Candidates(hosts=(LAB, TWO), image=IMAGE)
    assert await hosts.find(TWO, LAB, wait=600.0) == Candidates(hosts=(TWO, LAB))
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
    hosts.lab.is_stuck = True
    assert (await hosts.find()).hosts == (TWO,)
    assert clock.now == pytest.approx(1060, abs=1)
    # Each command there waits for start-up files.
    hosts.lab.shell_seconds = 12.0
    with pytest.raises(StartTimeout, match=r"the check of the host took longer than 132 s\. Try again"):
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
    assert found.image == (None if is_asked else IMAGE)


async def test_an_image_that_is_nowhere_is_told(hosts: Hosts) -> None:
    hosts.lab.images.clear()
    assert (await hosts.find(LAB)).image is None
    with pytest.raises(ImageMissing, match="`pull` is never"):
        await hosts.find(LAB, pull="never")
    hosts.lab.pull_failure = ImageMissing(host="lab", image="torch:2", reason="no such image")
    with pytest.raises(ImageMissing, match="no such image"):
        await hosts.find(LAB)


async def test_a_mount_that_is_not_there_is_told_with_its_path_on_the_host(hosts: Hosts) -> None:
    hosts.lab.leads_to = ("/data", "")
    with pytest.raises(MountMissing, match="/home/ada/work"):
        await hosts.find(LAB, mounts=("/data:/data", "~/work:/work"))
    hosts.lab.leads_to = ("/data", "/home/ada/work")
    assert (await hosts.find(LAB, mounts=("/data:/data", "~/work:/work"))).hosts == (LAB,)


async def test_a_link_of_the_host_may_not_lead_to_what_is_refused(hosts: Hosts) -> None:
    hosts.lab.leads_to = ("/var/run/docker.sock",)
    with pytest.raises(ConfigInvalid):
        await hosts.find(LAB, mounts=("/data/link:/data",))


async def test_the_folder_of_the_caches_is_one_of_the_logins_mounts(hosts: Hosts) -> None:
    hosts.lab.leads_to = ("/data", "/home/ada/.cache/kernelbridge/shared")
    environment = launch_request(mounts=("/data:/data",), cache=True).environment
    found = await preflight.resolve_mounts(environment, hosts.lab)  # type: ignore[arg-type]
    assert [(mount.source, mount.target, mount.read_only) for mount in found] == [
        ("/data", "/data", False),
        ("/home/ada/.cache/kernelbridge/shared", "/var/cache/kernelbridge", False),
    ]
    full = MadeLink(Completed(exit_code=1, stdout=b"", stderr=b"mkdir: Disk quota exceeded\n"))
    with pytest.raises(CacheFailed, match=r"/home/ada/\.cache/kernelbridge/shared .*Disk quota exceeded"):
        await preflight.make_cache(full)  # type: ignore[arg-type]
    assert full.asked == [["sh", "-c", mounts.MAKE_SCRIPT, "mkdir", "/home/ada/.cache/kernelbridge/shared"]]


class MadeLink:
    """A link whose commands all end alike."""

    name = "lab"
    facts = type("Facts", (), {"home": "/home/ada"})()

    def __init__(self, ended: Completed) -> None:
        self.ended = ended
        self.asked: list[list[str]] = []

    async def run(self, argv: list[str], *, seconds: float) -> Completed:
        self.asked.append(argv)
        return self.ended


# -- a cluster


async def test_slurm_is_asked_whether_it_would_take_the_job_and_its_queue_is_no_obstacle(hosts: Hosts) -> None:
    assert await hosts.find(HPC, LAB, gpus=2) == Candidates(hosts=(HPC,))
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


async def test_a_mount_that_leads_on_the_login_node_to_what_is_forbidden_is_refused_there(hosts: Hosts) -> None:
    hosts.cluster.run_answer = b"-\0=/\0-\0"
    with pytest.raises(ConfigInvalid, match=r"~/link: environments\.\w+\.mounts: the whole host"):
        await hosts.find(HPC, mounts=["/on/nodes/alone:/a", "~/link:/b"])
    hosts.cluster.run_answer = b"-\0=/nfs/data\0-\0"
    assert (await hosts.find(HPC, mounts=["/on/nodes/alone:/a", "~/link:/b"])).hosts == (HPC,)
    assert hosts.cluster.log == ["check", "run readlink"] * 2


async def test_a_full_engine_is_passed_over_for_a_cluster(hosts: Hosts) -> None:
    hosts.lab.hold(BOBS, "GPU-0")
    assert (await hosts.find(LAB, HPC, wait=600.0)).hosts == (HPC,)


# -- what is said meanwhile


async def test_each_step_of_a_check_is_said_with_its_host(hosts: Hosts) -> None:
    said: list[str] = []

    @contextmanager
    def watch(host: Host, hearer: Hearer) -> Iterator[None]:
        hearer(LoginStage(text="logging in"))
        yield

    asked = launch_request(hosts=(LAB, TWO), mounts=("/data:/data",))
    hosts.away["lab"] = AWAY
    say = lambda host, text: said.append(f"{host.name}: {text}")  # noqa: E731
    checks = Preflight(asked, hosts._reach, hosts._cluster, config=hosts.config, watch_login=watch, say=say)
    hosts.two.leads_to = ("/data",)
    assert (await checks.find_hosts()).hosts == (TWO,)
    image = asked.environment.image
    assert said == [
        *("lab: connecting", "lab: logging in"),
        *("two: connecting", "two: logging in", "two: looking for free GPUs", f"two: looking for the image {image}"),
        "two: looking for what is to be mounted",
    ]


# -- a workspace


COPY = "/home/ada/.local/share/kernelbridge/workspaces/thing-0123456789"


def project(**keys: str) -> Project:
    return Project(
        workspace=Workspace.model_validate({"local": ".", **keys}),
        local_root=Path("/home/ada/thing"),
        container_root="/workspace",
        container_folder="/workspace",
        name="thing-0123456789",
    )


class Asked:
    """What a host was asked to run; the folder that is made there may fail."""

    def __init__(self, engine: Any) -> None:
        self._run = engine.run
        self.made: list[str] = []
        self.resolved: list[str] = []
        self.stderr = b""

    async def run(self, argv: Any, *, seconds: float) -> Completed:
        if argv[2] == mounts.MAKE_SCRIPT:
            self.made += argv[4:]
            return Completed(exit_code=1 if self.stderr else 0, stdout=b"", stderr=self.stderr)
        self.resolved += argv[4:]
        found: Completed = await self._run(argv, seconds=seconds)
        return found


async def find(hosts: Hosts, asked: Project, *on: Host, **keys: Any) -> Candidates:
    request = replace(launch_request(hosts=on, **keys), project=asked)
    return await Preflight(request, hosts._reach, hosts._cluster, config=hosts.config).find_hosts()


async def test_the_folder_of_a_workspaces_copy_is_not_made_by_who_looks(hosts: Hosts) -> None:
    """A copy that was removed would look as one that was emptied, and not as one that is new."""
    asked = Asked(hosts.lab)
    hosts.lab.run = asked.run  # type: ignore[method-assign]
    hosts.lab.leads_to = ("/data",)
    assert (await find(hosts, project(), LAB, mounts=("/data:/data",))).hosts == (LAB,)
    assert (asked.made, asked.resolved) == ([], ["/data", "/srv/docker.sock"])


async def test_a_folder_that_the_host_has_is_not_made_and_must_be_there(hosts: Hosts) -> None:
    asked = Asked(hosts.lab)
    hosts.lab.run = asked.run  # type: ignore[method-assign]
    hosts.lab.leads_to = ("/nfs/thing",)
    assert (await find(hosts, project(host="/nfs/thing"), LAB)).hosts == (LAB,)
    assert (asked.made, asked.resolved) == ([], ["/nfs/thing", "/srv/docker.sock"])
    hosts.lab.leads_to = ("",)
    with pytest.raises(MountMissing, match="/nfs/thing"):
        await find(hosts, project(host="/nfs/thing"), LAB)
