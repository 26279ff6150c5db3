"""start/launch.py: from GPUs to a joined relay; what is tried again where another was faster, what a try leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.container_paths import LOCKS_FOLDER
from kernelbridge.config.schema import Host, Workspace
from kernelbridge.errors import (
    ContainerFailed,
    DriverTooOld,
    GpusBusy,
    GpuTaken,
    GpuWayMissing,
    ImageUnusable,
    JobEnded,
    JobRefused,
    KernelBridgeError,
    StartTimeout,
    WorkspaceFailed,
)
from kernelbridge.files.project import Project
from kernelbridge.hosts.backend import Over
from kernelbridge.hosts.docker.images.derived_image import FLOORS
from kernelbridge.hosts.docker.responses import ImageFacts, PullProgress
from kernelbridge.hosts.labels import Labels
from kernelbridge.kernel.placement import Placement
from kernelbridge.kernel.process_mark import ProcessMark
from kernelbridge.kernel.records import Records
from kernelbridge.kernel.relay_client import LockMissing, PackagesMissing
from kernelbridge.kernel.request import KernelServices, LaunchRequest
from kernelbridge.kernel.start.launch import Launcher, WorkloadHandle
from kernelbridge.protocol.handshake import Owner
from tests.made_clock import MadeClock
from tests.made_clusters import HPC, RUNNING, MadeCluster, queued
from tests.made_engines import BOBS, LAB, MINE, TWO, MadeEngine, cards, image, launch_request
from tests.made_pythons import made_python

NAME = f"kernelbridge-{MINE}"
TAKEN = GpuTaken(host="lab")


class Start:
    """A kernel that is being opened; joining its relay comes to what the test says, time after time."""

    def __init__(
        self, folder: Path, asked: LaunchRequest, *sites: MadeEngine, cluster: MadeCluster | None = None
    ) -> None:
        self.sites = {site.name: site for site in sites}
        self.cluster = cluster
        self.records = Records(folder)
        # What the next joins come to; then each comes about.
        self.joins: list[Exception | Callable[[], None]] = []
        self.said: list[str] = []
        self.order: dict[str, Any] = {"do": "spawn", "launch": 1}
        self.log: list[str] = sites[0].log if sites else (cluster or MadeCluster()).log
        nothing: Any = None
        self.services = KernelServices(
            poller=nothing,
            records=self.records,
            owner=Owner(mark="m:1@1.00:x", who="ada@laptop"),
            mark=ProcessMark("1@1.00"),
            config="/kernelbridge.toml",
            limits=None,
            labels=self._labels,
            engine=self._reach,
            cluster=self._cluster,
            backend=self._reach,
            rest=nothing,
            observe=nothing,
        )
        self.placement = Placement(asked, self.services, session="s", image_known=lambda *_: None)
        self.housing = WorkloadHandle(asked, late_seconds=0)
        # To which hosts the workspace was brought, and whether there is one.
        self.brought: list[str] = []
        self.has_workspace = False
        # What happens meanwhile.
        self.bringing: Callable[[], object] = lambda: None

    def _labels(self, asked: LaunchRequest, gpu_ids: Sequence[str]) -> Labels:
        return Labels(kernel=asked.kernel_id, environment="torch", owner="m", gpus=",".join(gpu_ids))

    async def _reach(self, host: Host) -> Any:
        return self.sites[host.name]

    async def _cluster(self, host: Host) -> Any:
        return self.cluster

    async def join(self) -> None:
        self.log.append("join")
        assert self.log.count("join") < 20, "it never ends"
        outcome = self.joins.pop(0) if self.joins else None
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            outcome()

    async def open(self) -> None:
        launcher = Launcher(
            placement=self.placement,
            workload=self.housing,
            services=self.services,
            order=self.order,
            say=lambda news: self.said.append(str(news)),
            tell=self.said.append,
            join=self.join,
            bring=self.bring,
        )
        await launcher.launch()

    async def bring(self, host: Host) -> bool:
        """The workspace; there is none in most tests."""
        self.brought.append(host.name)
        self.bringing()
        return self.has_workspace

    @property
    def tries(self) -> list[str]:
        """The GPUs of each container that was made."""
        return [spec["Labels"]["kernelbridge.gpus"] for site in self.sites.values() for spec in site.specs]


@pytest.fixture
def lab(clock: MadeClock) -> MadeEngine:
    engine = MadeEngine(clock=clock, facts_of_gpus=cards(2))
    engine.has_image()
    return engine


# -- on an engine


async def test_a_container_gets_its_gpus_its_order_and_is_joined(lab: MadeEngine, tmp_path: Path) -> None:
    start = Start(tmp_path, launch_request(gpus=2), lab)
    await start.open()
    assert lab.log == [f"create {NAME}", "order given", f"start {NAME}", "join"]
    (spec,) = lab.specs
    assert spec["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["GPU-0", "GPU-1"]
    (line,) = lab.orders
    assert json.loads(line)["gpus"] == {"ids": ["GPU-0", "GPU-1"], "locks": LOCKS_FOLDER}
    assert (start.placement.host, start.placement.gpu_ids, start.placement.job) == (LAB, ("GPU-0", "GPU-1"), "")
    record = start.records.kernel(MINE)
    assert record is not None
    assert (record.host, record.gpus) == ("lab", ("GPU-0", "GPU-1"))
    assert start.said == ["starting the container"]
    # Not even a moment in the queue.
    assert lab.volumes.there == {}


@pytest.mark.parametrize(
    ("entrypoint", "written", "more"),
    [
        (("/entry.sh", "--gpu"), {}, "; the image's ENTRYPOINT /entry.sh --gpu runs before the kernel"),
        (("/entry.sh", "--gpu"), {"entrypoint": "off"}, ""),
        # It starts what it is given, and sets nothing up.
        (("/usr/bin/tini", "--"), {}, ""),
    ],
)
async def test_an_entrypoint_that_sets_something_up_is_run_before_the_kernel_without_a_secret(
    lab: MadeEngine, tmp_path: Path, entrypoint: tuple[str, ...], written: dict[str, Any], more: str
) -> None:
    lab.images["torch:2"] = image(entrypoint=entrypoint)
    start = Start(tmp_path, launch_request(gpus=0, env={"A": "1"}, start_seconds=50, **written), lab)
    await start.open()
    assert start.said == [f"starting the container{more}"]
    wanted = {"argv": list(entrypoint), "env": {"A": "1"}, "seconds": 5.0} if more else None
    assert json.loads(lab.orders[0])["spawn"].get("entrypoint") == wanted


async def test_without_gpus_nothing_is_asked_about_them(lab: MadeEngine, tmp_path: Path) -> None:
    lab.way = GpuWayMissing(host="lab", reason="no way", remedy="Make one.")
    start = Start(tmp_path, launch_request(gpus=0), lab)
    await start.open()
    assert lab.looks == []
    assert start.tries == [""]
    assert json.loads(lab.orders[0])["gpus"] == {"ids": [], "locks": ""}


async def test_the_engine_is_asked_for_gpus_its_own_way(lab: MadeEngine, tmp_path: Path) -> None:
    lab.way = "cdi"
    await Start(tmp_path, launch_request(), lab).open()
    assert lab.specs[0]["HostConfig"]["DeviceRequests"][0]["Driver"] == "cdi"


async def test_where_another_was_faster_its_container_goes_before_the_next_gpu_is_tried(
    lab: MadeEngine, tmp_path: Path
) -> None:
    start = Start(tmp_path, launch_request(), lab)
    start.joins = [TAKEN]
    await start.open()
    assert start.tries == ["GPU-0", "GPU-1"]
    made = [f"create {NAME}", "order given", f"start {NAME}", "join"]
    assert lab.log == [*made, f"remove {NAME}", *made]
    assert start.placement.gpu_ids == ("GPU-1",)


async def test_where_all_are_taken_meanwhile_the_start_says_who_has_them(lab: MadeEngine, tmp_path: Path) -> None:
    start = Start(tmp_path, launch_request(gpus=2), lab)
    start.joins = [TAKEN]
    with pytest.raises(GpusBusy, match="a kernel that starts of another since"):
        await start.open()
    assert lab.log[-1] == f"remove {NAME}"


async def test_where_all_are_taken_meanwhile_who_may_wait_waits(lab: MadeEngine, tmp_path: Path) -> None:
    start = Start(tmp_path, launch_request(gpus=2, wait=600.0), lab)
    start.joins = [TAKEN]
    await start.open()
    assert start.tries == ["GPU-0,GPU-1", "GPU-0,GPU-1"]
    assert any(text.startswith("waiting for 2 GPUs, place in the queue: 1 on lab") for text in start.said)
    assert lab.volumes.there == {}


async def test_where_another_was_faster_the_next_host_is_tried(
    lab: MadeEngine, clock: MadeClock, tmp_path: Path
) -> None:
    two = MadeEngine(clock=clock, name="two", log=lab.log)
    two.has_image()
    start = Start(tmp_path, launch_request(gpus=2, hosts=(LAB, TWO)), lab, two)
    two.facts_of_gpus = cards(2)
    start.joins = [TAKEN]
    await start.open()
    assert start.placement.host == TWO
    assert (len(lab.specs), len(two.specs)) == (1, 1)


async def test_locks_that_are_missing_are_made_and_the_same_start_tried_again(lab: MadeEngine, tmp_path: Path) -> None:
    start = Start(tmp_path, launch_request(), lab)
    start.joins = [LockMissing()]
    await start.open()
    assert start.tries == ["GPU-0", "GPU-0"]
    made = [f"create {NAME}", "order given", f"start {NAME}", "join"]
    # Of all cards of the host: who comes next has them.
    assert lab.log == [*made, "folders GPU-0,GPU-1 in kernelbridge-locks", f"remove {NAME}", *made]


async def test_what_an_image_lacks_is_looked_for_and_the_same_start_tried_again(
    lab: MadeEngine, tmp_path: Path
) -> None:
    found = made_python(packages={"ipykernel": "6", "debugpy": "1", "pyzmq": "27"})
    lab.log_text = f"kernelbridge has found {json.dumps(found.to_dict())}"
    start = Start(tmp_path, launch_request(gpus=0), lab)
    start.joins = [PackagesMissing("ipykernel")]
    await start.open()
    assert lab.log.count(f"create {NAME}") == lab.log.count("join") == 2
    assert lab.log.index(f"remove {NAME}") < lab.log.index("join", lab.log.index("join") + 1)
    assert [spec["Entrypoint"] for spec in lab.specs] == [["python3"], ["python3"], ["/usr/bin/python3"]]
    # Where it stands others find it, from other machines too.
    assert lab.specs[-1]["Labels"]["kernelbridge.python"] == "/usr/bin/python3"
    record = start.records.kernel(MINE)
    assert record is not None
    assert record.python == "/usr/bin/python3"
    assert json.loads(lab.orders[0])["spawn"]["floors"] == dict(FLOORS)
    # The next start knows it.
    again = Start(tmp_path, launch_request(BOBS, gpus=0), lab)
    await again.open()
    assert lab.specs[-1]["Entrypoint"] == ["/usr/bin/python3"]


@pytest.mark.parametrize(
    ("keys", "outcome", "sentence"),
    [
        ({}, PackagesMissing("debugpy"), "The image torch:2 has no debugpy."),
        ({"python": "/my/python"}, ImageUnusable(image="torch:2", lacks="`/my/python`"), "has no `/my/python`."),
        # Another Python is for the same processor.
        ({}, ImageUnusable(image="torch:2", fault="is for arm64, lab is x86_64"), "is for arm64, lab is x86_64."),
    ],
)
async def test_what_cannot_be_helped_ends_the_start(
    lab: MadeEngine, tmp_path: Path, keys: dict[str, Any], outcome: Exception, sentence: str
) -> None:
    found = made_python(packages={"ipykernel": "6", "debugpy": "1", "pyzmq": "27"})
    lab.log_text = f"kernelbridge has found {json.dumps(found.to_dict())}"
    start = Start(tmp_path, launch_request(gpus=0, **keys), lab)
    start.joins = [outcome] * 3
    with pytest.raises(ImageUnusable, match=sentence):
        await start.open()


async def test_where_locks_cannot_be_had_at_all_the_start_fails(lab: MadeEngine, tmp_path: Path) -> None:
    # The engine's volumes are on a file system without locks on folders, as NFS.
    start = Start(tmp_path, launch_request(), lab)
    start.joins = [LockMissing() for _ in range(100)]
    with pytest.raises(KernelBridgeError):
        await start.open()
    assert lab.log.count("join") <= 3


async def test_an_image_is_fetched_first_and_gpus_picked_again_then(lab: MadeEngine, tmp_path: Path) -> None:
    lab.images.clear()
    pull = lab.pull

    async def slow(name: str, progress: Any) -> ImageFacts:
        found = await pull(name, progress)
        lab.hold(BOBS, "GPU-0")
        return found

    lab.pull = slow  # type: ignore[method-assign]
    start = Start(tmp_path, launch_request(), lab)
    await start.open()
    assert start.tries == ["GPU-1"]
    assert lab.log[:2] == ["pull torch:2", f"create {NAME}"]
    assert start.said[0] == "pulling torch:2"


async def test_a_pull_of_which_nothing_more_comes_is_said_to_stand_still(lab: MadeEngine, tmp_path: Path) -> None:
    lab.images.clear()
    pull = lab.pull

    async def stalling(name: str, progress: Any) -> ImageFacts:
        await asyncio.sleep(1)
        progress(PullProgress(image=name, done_bytes=10_000_000, total_bytes=40_000_000))
        await asyncio.sleep(60)
        return await pull(name, lambda _: None)

    lab.pull = stalling  # type: ignore[method-assign]
    start = Start(tmp_path, launch_request(), lab)
    await start.open()
    pulls = [text for text in start.said if text.startswith("pulling")]
    assert pulls[1] == "pulling torch:2: 25 %, 10.0 of 40.0 MB, 10 MB/s, about 3 s left"
    assert pulls[-1] == "pulling torch:2: 25 %, 10.0 of 40.0 MB, 0 B/s"


async def test_an_image_that_is_always_fetched_is_fetched_once(lab: MadeEngine, tmp_path: Path) -> None:
    start = Start(tmp_path, launch_request(pull="always"), lab)
    start.joins = [TAKEN]
    await start.open()
    assert lab.log.count("pull torch:2") == 1


async def test_each_host_fetches_the_image_itself(lab: MadeEngine, clock: MadeClock, tmp_path: Path) -> None:
    two = MadeEngine(clock=clock, name="two", facts_of_gpus=cards(2))
    start = Start(tmp_path, launch_request(gpus=2, hosts=(LAB, TWO)), lab, two)
    start.joins = [TAKEN]
    await start.open()
    assert two.log[0] == "pull torch:2"


async def test_a_driver_too_old_for_what_was_fetched_ends_the_start(lab: MadeEngine, tmp_path: Path) -> None:
    lab.images.clear()
    lab.has_image(CUDA_VERSION="13.0")
    with pytest.raises(DriverTooOld):
        await Start(tmp_path, launch_request(), lab).open()
    assert lab.specs == []


async def test_any_other_failure_is_the_starts_and_its_container_is_left_to_who_undoes_it(
    lab: MadeEngine, tmp_path: Path
) -> None:
    start = Start(tmp_path, launch_request(), lab)
    start.joins = [ContainerFailed(host="lab", image="torch:2", reason="exit code 1")]
    with pytest.raises(ContainerFailed):
        await start.open()
    assert lab.log.count("join") == 1
    assert repr(start.housing) == f"<WorkloadHandle {NAME} perhaps there>"


async def test_a_container_that_does_not_come_in_time_is_told_so(
    lab: MadeEngine, clock: MadeClock, tmp_path: Path
) -> None:
    class Stuck(Start):
        async def join(self) -> None:
            await asyncio.sleep(10_000)

    with pytest.raises(StartTimeout, match="the start of the container"):
        await Stuck(tmp_path, launch_request(start_seconds=30.0), lab).open()
    assert clock.now == pytest.approx(1030, abs=1)


# -- on a cluster


async def test_a_job_is_handed_in_waited_for_given_its_order_and_joined(clock: MadeClock, tmp_path: Path) -> None:
    cluster = MadeCluster([queued(reason="Priority"), RUNNING])
    start = Start(tmp_path, launch_request("k", hosts=(HPC,), gpus=2), cluster=cluster)
    start.log = cluster.log
    await start.open()
    assert cluster.log == ["submit kernelbridge-k", "started kernelbridge-k", "join"]
    assert (start.placement.host, start.placement.gpu_ids, start.placement.job) == (HPC, (), "7")
    assert start.said == [
        "submitting the job",
        "waiting in the queue of hpc (Priority)",
        "starting the container in the job",
    ]
    assert json.loads(cluster.orders[0])["spawn"] == start.order
    record = start.records.kernel("k")
    assert record is not None
    assert record.host == "hpc"


async def test_a_job_that_slurm_refuses_is_told_so(clock: MadeClock, tmp_path: Path) -> None:
    refused = JobRefused(host="hpc", reason="Invalid account")
    start = Start(tmp_path, launch_request("k", hosts=(HPC,)), cluster=MadeCluster(submit_failure=refused))
    with pytest.raises(JobRefused, match="Invalid account"):
        await start.open()
    assert start.placement.job == ""


async def test_the_wait_in_slurms_queue_does_not_count_as_the_start(clock: MadeClock, tmp_path: Path) -> None:
    cluster = MadeCluster([queued()] * 5000 + [RUNNING])
    await Start(tmp_path, launch_request("k", hosts=(HPC,), start_seconds=10.0), cluster=cluster).open()
    assert clock.now > 5000


async def test_a_job_that_ends_in_the_queue_says_how(clock: MadeClock, tmp_path: Path) -> None:
    def explain(environment: str) -> KernelBridgeError:
        return JobEnded(environment=environment, host="hpc", job="7", how="was cancelled")

    cluster = MadeCluster([queued(), None], Over(explain=explain))
    with pytest.raises(JobEnded):
        await Start(tmp_path, launch_request("k", hosts=(HPC,)), cluster=cluster).open()
    assert cluster.orders == []


# -- a workspace


PROJECT = Project(
    workspace=Workspace(local="."),
    local_root=Path("/home/ada/thing"),
    container_root="/workspace",
    container_folder="/workspace",
    name="thing-0123456789",
)
COPY = "/home/ada/.local/share/kernelbridge/workspaces/thing-0123456789"


def asked_with_workspace(**keys: Any) -> LaunchRequest:
    return replace(launch_request(**keys), project=PROJECT)


async def test_a_workspace_is_brought_once_and_mounted(lab: MadeEngine, tmp_path: Path) -> None:
    lab.leads_to = (COPY,)
    start = Start(tmp_path, asked_with_workspace(), lab)
    start.has_workspace = True
    start.joins = [TAKEN]
    await start.open()
    assert start.brought == ["lab"]
    assert start.tries == ["GPU-0", "GPU-1"]
    for spec in lab.specs:
        (mount,) = [mount for mount in spec["HostConfig"]["Mounts"] if mount["Target"] == "/workspace"]
        assert (mount["Source"], mount["Type"], mount.get("ReadOnly", False)) == (COPY, "bind", False)


async def test_gpus_that_were_taken_while_a_workspace_was_brought_are_not_tried(
    lab: MadeEngine, tmp_path: Path
) -> None:
    lab.leads_to = (COPY,)
    start = Start(tmp_path, asked_with_workspace(), lab)
    start.has_workspace = True
    start.bringing = lambda: lab.hold(BOBS, "GPU-0")
    await start.open()
    assert (start.brought, start.tries) == (["lab"], ["GPU-1"])
    assert start.placement.gpu_ids == ("GPU-1",)


async def test_where_there_is_nothing_to_bring_the_gpus_stay_as_picked(lab: MadeEngine, tmp_path: Path) -> None:
    start = Start(tmp_path, launch_request(), lab)
    start.bringing = lambda: lab.hold(BOBS, "GPU-0")
    await start.open()
    assert (start.brought, start.tries) == (["lab"], ["GPU-0"])


async def test_each_host_that_is_tried_has_the_workspace_first(
    lab: MadeEngine, clock: MadeClock, tmp_path: Path
) -> None:
    two = MadeEngine(clock=clock, name="two", facts_of_gpus=cards(2), leads_to=(COPY,))
    two.has_image()
    lab.leads_to = (COPY,)
    start = Start(tmp_path, asked_with_workspace(gpus=2, hosts=(LAB, TWO)), lab, two)
    start.has_workspace = True
    start.joins = [TAKEN]
    await start.open()
    assert start.brought == ["lab", "two"]
    assert start.placement.host == TWO


async def test_a_workspace_that_cannot_be_brought_ends_the_start_before_anything_is_made(
    lab: MadeEngine, tmp_path: Path
) -> None:
    def fail() -> None:
        raise WorkspaceFailed(host="lab", reason="the disk is full")

    start = Start(tmp_path, asked_with_workspace(), lab)
    start.bringing = fail
    with pytest.raises(WorkspaceFailed):
        await start.open()
    assert (lab.specs, lab.log) == ([], [])


async def test_a_job_has_the_workspace_before_it_is_handed_in(clock: MadeClock, tmp_path: Path) -> None:
    cluster = MadeCluster(looks=(RUNNING,))
    start = Start(tmp_path, replace(launch_request(hosts=(HPC,), gpus=1), project=PROJECT), cluster=cluster)
    start.has_workspace = True
    start.bringing = lambda: cluster.log.append("brought")
    await start.open()
    assert start.brought == ["hpc"]
    assert cluster.log.index("brought") < cluster.log.index(f"submit {NAME}")
    assert COPY.encode() in cluster.scripts[0]
    assert b"/workspace" in cluster.scripts[0]
