"""fleet/doctor.py: links that hold, that warn, that break, and those behind them; on a made host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.errors import EngineDown, HostUnreachable, JobRefused, KernelBridgeError
from kernelbridge.fleet import doctor
from kernelbridge.fleet.doctor import Finding, HostDoctor, LinkState
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.transport.stream import Completed
from tests.made_engines import cards, launch_request

LAB, HPC = Host(name="lab", ssh="lab"), Host(name="hpc", ssh="hpc", scheduler="slurm")
UNREACHABLE = HostUnreachable(host="lab", address="lab:22", reason="timed out")


@dataclass(kw_only=True)
class MadeHost:
    """A host's link, engine and cluster, and the pool that opens them; a field for each thing that may be broken."""

    facts_of_gpus: GpuFacts = field(default_factory=lambda: cards(2))
    login_failure: Exception | None = None
    engine_failure: KernelBridgeError | None = None
    job_failure: KernelBridgeError | None = None
    clock_is_off: float = 0.0
    free_kib: int = 100_000_000
    shell_seconds: float = 0.1
    has_image: bool = True
    log: list[str] = field(default_factory=list)

    name = "lab"
    facts = SimpleNamespace(user="ada", home="/home/ada")

    @property
    def gpus(self) -> Any:
        return SimpleNamespace(look=self._look_at_gpus)

    async def _look_at_gpus(self, *, max_age_seconds: float) -> GpuFacts:
        return self.facts_of_gpus

    def limited(self, seconds: float) -> Any:
        return asyncio.timeout(seconds)

    async def link(self, host: Host) -> Any:
        if self.login_failure is not None:
            raise self.login_failure
        return self

    async def run(self, argv: Sequence[str], *, seconds: float) -> Completed:
        said = {
            "true": "",
            "date": f"{round(time.time() + self.clock_is_off)}\n",
            "df": f"Filesystem 1024-blocks Used Available\n/dev/sda 1 1 {self.free_kib} 1% /\n"
            if self.free_kib
            else "",
        }
        return Completed(exit_code=0, stdout=said[argv[0]].encode(), stderr=b"")

    async def engine(self, host: Host) -> Any:
        if self.engine_failure is not None:
            raise self.engine_failure
        about = SimpleNamespace(transport="socket")
        return SimpleNamespace(
            about=about,
            link=self,
            info=self.info,
            gpus=self.gpus,
            gpu_way=self.gpu_way,
            image=self.image,
            check_pullable=self.check_pullable,
        )

    async def info(self) -> Mapping[str, Any]:
        return {"LiveRestoreEnabled": True, "DockerRootDir": "/var/lib/docker"}

    async def gpu_way(self, access: str) -> str:
        return "gpus"

    async def image(self, name: str) -> Any:
        return SimpleNamespace(env={}) if self.has_image else None

    async def check_pullable(self, name: str, *, seconds: float) -> None:
        self.log.append(f"asked for {name}")

    async def cluster(self, host: Host) -> Any:
        return SimpleNamespace(nodes=self.nodes, check=self.check)

    async def nodes(self) -> list[Any]:
        return [SimpleNamespace(gpus_total={"h100": 8}), SimpleNamespace(gpus_total={})]

    async def check(self, request: Any) -> None:
        if self.job_failure is not None:
            raise self.job_failure


Examine = Callable[..., list[Finding]]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Examine:
    """What is told of a host that is as a test says."""

    def run(made: MadeHost, host: Host = LAB, **keys: Any) -> list[Finding]:
        monkeypatch.setattr(doctor, "Inventory", lambda link: link.gpus)
        found: list[Finding] = []
        requests = [launch_request(hosts=(host,), **keys)] if keys else []
        asyncio.run(HostDoctor(host, requests, made, tell=found.append).examine())  # type: ignore[arg-type]
        assert all(one.host == host.name for one in found)
        return found

    return run


def states(found: Sequence[Finding], *, but: LinkState = LinkState.OK) -> dict[str, str]:
    return {one.link: one.state.value for one in found if one.state is not but}


def test_links_that_hold_say_what_was_found(examine: Examine) -> None:
    found = {one.link: one.found for one in examine(MadeHost(), gpus=1)}
    assert found.pop("engine").endswith(" by socket")
    assert found == {
        "login": "ada at lab",
        "shell": "runs commands",
        "clock": "right",
        "storage": "102 GB free in /var/lib/docker",
        "GPUs": "2 x NVIDIA A100; driver 550.54, CUDA 12.4",
        "GPUs in containers": "by gpus",
        "torch: GPUs": "1 GPU can be had",
        "torch: image": "torch:2 is there",
    }


def test_behind_a_login_that_fails_nothing_is_looked_at(examine: Examine) -> None:
    found = examine(MadeHost(login_failure=UNREACHABLE), gpus=1)
    assert found[0].to_json() == {
        "host": "lab",
        "link": "login",
        "state": "broken",
        "found": UNREACHABLE.sentence,
        "remedy": UNREACHABLE.remedy,
        "exit_code": UNREACHABLE.exit_code,
        "seconds": found[0].to_json()["seconds"],
    }
    assert {one.state for one in found[1:]} == {LinkState.SKIPPED}
    assert [one.found for one in found[1:]] == ["behind login"] * 5


def test_behind_an_engine_that_is_down_the_cards_are_seen_still(examine: Examine) -> None:
    down = EngineDown(host="lab", socket="/var/run/docker.sock")
    found = examine(MadeHost(engine_failure=down), gpus=1)
    assert states(found) == {"engine": "broken", "storage": "skipped", "torch: image": "skipped"}
    assert [one.link for one in found if one.state is LinkState.OK] == ["login", "shell", "clock", "GPUs"]


@pytest.mark.parametrize(
    ("made", "link", "said"),
    [
        (MadeHost(clock_is_off=-500), "clock", "500 s behind"),
        (MadeHost(clock_is_off=500), "clock", "500 s ahead"),
        (MadeHost(shell_seconds=2.5), "shell", "takes 2.5 s to start, each time"),
        (MadeHost(free_kib=5_000_000), "storage", "5 GB free in /var/lib/docker"),
    ],
)
def test_what_will_be_in_the_way_is_a_warning_with_a_remedy(
    examine: Examine, made: MadeHost, link: str, said: str
) -> None:
    found = examine(made)
    (warning,) = [one for one in found if one.state is not LinkState.OK]
    assert (warning.state, warning.link, warning.found) == (LinkState.WARNING, link, said)
    assert warning.remedy
    assert warning.exit_code == 0


def test_a_driver_that_fails_is_broken_and_no_environment_gets_cards(examine: Examine) -> None:
    found = examine(MadeHost(facts_of_gpus=GpuFacts(trouble="no NVML")), gpus=1)
    assert states(found) == {"GPUs": "broken", "torch: GPUs": "skipped"}


def test_more_cards_than_there_are_is_broken_and_none_is_right_where_none_is_asked_for(examine: Examine) -> None:
    assert states(examine(MadeHost(), gpus=3)) == {"torch: GPUs": "broken"}
    bare = MadeHost(facts_of_gpus=GpuFacts())
    assert states(examine(bare, gpus=1)) == {"torch: GPUs": "broken"}
    assert states(examine(bare, gpus=0)) == {}


def test_an_image_that_is_to_come_says_how(examine: Examine) -> None:
    made = MadeHost(has_image=False)
    assert examine(made, gpus=0)[-1].found == "torch:2 is pulled by the first start"
    assert made.log == ["asked for torch:2"]
    assert states(examine(made, gpus=0, pull="never")) == {"torch: image": "broken"}
    assert examine(made, gpus=0, image=None, build="~/project")[-1].found == "is built by the first start"


def test_a_login_node_is_asked_whether_it_would_take_the_job(examine: Examine) -> None:
    found = examine(MadeHost(), HPC, gpus=1)
    assert [(one.link, one.found) for one in found[3:]] == [
        ("scheduler", "Slurm, 2 nodes with 8 GPUs"),
        ("torch: job", "Slurm would take it"),
    ]
    refused = JobRefused(host="hpc", reason="Invalid account")
    assert states(examine(MadeHost(job_failure=refused), HPC, gpus=1)) == {"torch: job": "broken"}
    failed = examine(MadeHost(login_failure=UNREACHABLE), HPC, gpus=1)
    assert [one.link for one in failed] == ["login", "shell", "clock", "scheduler"]


def test_what_nobody_foresaw_and_what_takes_too_long_is_one_links(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = examine(MadeHost(login_failure=ValueError("odd")))
    assert "what it answers cannot be understood (ValueError: odd)" in first.found
    monkeypatch.setattr(doctor, "MOST_LOGIN_SECONDS", 0.05)

    async def stuck(self: MadeHost, host: Host) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(MadeHost, "link", stuck)
    (first, *_) = examine(MadeHost())
    assert (first.state, first.found) == (LinkState.BROKEN, "lab: login took longer than 0.05 s.")
    assert first.remedy == "Try again."


def test_storage_that_the_login_cannot_see_is_no_fault(examine: Examine) -> None:
    found = {one.link: one for one in examine(MadeHost(free_kib=0))}
    assert (found["storage"].state, found["storage"].found) == (
        LinkState.OK,
        "not to be seen by this login (/var/lib/docker)",
    )
