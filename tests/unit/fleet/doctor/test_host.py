"""fleet/doctor/host.py: links that hold, that warn, that break, and those behind them; on a made host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.config.schema import LOCAL, Host
from kernelbridge.errors import (
    EngineDown,
    EngineTooOld,
    ForwardingForbidden,
    GpuWayMissing,
    HostUnreachable,
    JobRefused,
    KernelBridgeError,
)
from kernelbridge.fleet.doctor import host as host_module
from kernelbridge.fleet.doctor.finding import Finding, LinkName, LinkState
from kernelbridge.fleet.doctor.host import HostDoctor
from kernelbridge.hosts.docker.images.python_probe import FoundPython
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.transport.facts import SocketFacts
from kernelbridge.hosts.transport.stream import Completed, LoginEntry
from tests.made_engines import cards, image, launch_request

LAB, HPC, HERE = Host(name="lab", ssh="lab"), Host(name="hpc", ssh="hpc", scheduler="slurm"), Host(name="h", ssh=LOCAL)
UNREACHABLE = HostUnreachable(host="lab", address="lab:22", reason="timed out")
SOCKET = SocketFacts(path="/run/docker.sock", exists=True, is_writable=True)
PYTHON = FoundPython(
    path="/usr/bin/python3",
    version="3.11.2",
    packages={"ipykernel": "7.0", "debugpy": "1.8", "pyzmq": "27"},
    markers={},
)
OF_HOST = ["shell", "clock", "forwarding", "engine", "API version", "live-restore", "storage", "NVIDIA driver"]
OF_HOST += ["toolkit", "CDI"]


@dataclass(kw_only=True)
class MadeHost:
    """A host's link, engine and cluster, and the pool that opens them; a field for each thing that may be broken."""

    facts_of_gpus: GpuFacts = field(default_factory=lambda: cards(2))
    # What is told of the way there; None: it leads there.
    broken_way: LinkName | None = None
    engine_failure: KernelBridgeError | None = None
    job_failure: KernelBridgeError | None = None
    socket_failure: Exception | None = None
    gpu_failure: KernelBridgeError | None = None
    clock_is_off: float = 0.0
    free_kib: int = 100_000_000
    shell_seconds: float = 0.1
    entry: LoginEntry = field(default_factory=LoginEntry)
    has_image: bool = True
    has_docker_command: bool = False
    live_restore: bool = True
    way: str = "gpus"
    version: str = "28.2"
    # What GET /info has beside, and what commands of the host print.
    more_info: dict[str, Any] = field(default_factory=lambda: {"Runtimes": {"nvidia": {}}})
    says: dict[str, str] = field(default_factory=dict)
    python: FoundPython | KernelBridgeError | None = PYTHON
    log: list[str] = field(default_factory=list)

    name = "lab"

    @property
    def facts(self) -> Any:
        return SimpleNamespace(
            user="ada", home="/home/ada", sockets=(SOCKET,), has_docker_command=self.has_docker_command
        )

    @property
    def gpus(self) -> Any:
        return SimpleNamespace(look=self._look_at_gpus)

    async def _look_at_gpus(self, *, max_age_seconds: float) -> GpuFacts:
        return self.facts_of_gpus

    async def log_in(self) -> tuple[Any, LinkName]:
        return (self, LinkName.LOGIN) if self.broken_way is None else (None, self.broken_way)

    async def link(self, host: Host) -> Any:
        return self

    def limited(self, seconds: float) -> Any:
        return asyncio.timeout(seconds)

    def watch_login(self, host: Host, hearer: object) -> Any:
        raise AssertionError("the way there is made")

    async def open_socket(self, path: str, receiver: object) -> Any:
        assert path == SOCKET.path
        if self.socket_failure is not None:
            raise self.socket_failure
        return SimpleNamespace(close=lambda: None)

    async def run(self, argv: Sequence[str], *, seconds: float) -> Completed:
        said = {
            "true": "",
            "date": f"{round(time.time() + self.clock_is_off)}\n",
            "df": f"Filesystem 1024-blocks Used Available\n/dev/sda 1 1 {self.free_kib} 1% /\n"
            if self.free_kib
            else "",
            **self.says,
        }
        name = argv[3] if argv[0] == "sh" else argv[0]
        return Completed(exit_code=0, stdout=said.get(name, "").encode(), stderr=b"")

    async def engine(self, host: Host) -> Any:
        if self.engine_failure is not None:
            raise self.engine_failure
        about = SimpleNamespace(transport="socket", is_podman=False, version=self.version)
        return SimpleNamespace(
            about=about,
            api_version="1.50",
            link=self,
            info=self.info,
            gpus=self.gpus,
            gpu_way=self.gpu_way,
            image=self.image,
            check_pullable=self.check_pullable,
        )

    async def info(self) -> Mapping[str, Any]:
        return {"LiveRestoreEnabled": self.live_restore, "DockerRootDir": "/var/lib/docker", **self.more_info}

    async def gpu_way(self, access: str) -> str:
        if self.gpu_failure is not None:
            raise self.gpu_failure
        return self.way

    async def image(self, name: str) -> Any:
        return image() if self.has_image else None

    async def check_pullable(self, name: str, *, seconds: float) -> None:
        self.log.append(f"asked for {name}")

    async def find_python(self, engine: object, environment: object, image: object, examine: bool) -> Any:
        assert not examine
        if isinstance(self.python, KernelBridgeError):
            raise self.python
        return self.python

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
    """What is told of a host that is as a test says, behind its login."""

    def run(made: MadeHost, host: Host = LAB, **keys: Any) -> list[Finding]:
        monkeypatch.setattr(host_module, "Inventory", lambda link: link.gpus)
        monkeypatch.setattr(host_module, "WayExaminer", lambda *words, **more: made)
        found: list[Finding] = []
        requests = [launch_request(hosts=(host,), **keys)] if keys else []
        doctor = HostDoctor(
            host,
            requests,
            made,  # type: ignore[arg-type]
            find_python=made.find_python,
            trials=None,
            tell=found.append,
        )
        asyncio.run(doctor.examine())
        assert all(one.host == host.name for one in found)
        return found

    return run


def states(found: Sequence[Finding]) -> dict[str, str]:
    """What does not hold, but for what is only tried where somebody wants that."""
    return {
        one.link.value: one.state.value
        for one in found
        if one.state is not LinkState.OK and not one.found.startswith("not tried: `kernelbridge doctor torch`")
    }


def test_links_that_hold_say_what_was_found(examine: Examine) -> None:
    found = {one.link.value: one.found for one in examine(MadeHost(), gpus=1)}
    assert found.pop("engine").endswith(" by socket")
    assert found == {
        "shell": "runs commands, and prints nothing of its own",
        "clock": "right",
        "forwarding": "allowed (/run/docker.sock)",
        "API version": "1.50; 1.40 is enough",
        "live-restore": "on: kernels outlive a restart of Docker",
        "storage": "102 GB free in /var/lib/docker",
        "NVIDIA driver": "2 x NVIDIA A100; driver 550.54, CUDA 12.4",
        "toolkit": "its engine has the runtime `nvidia`; GPUs go by `gpus`",
        "CDI": "not used: GPUs go by `gpus`",
        "GPUs": "1 GPU can be had",
        "image": "torch:2 is there",
        "image's Python": "Python 3.11.2 (/usr/bin/python3, ipykernel 7.0, debugpy 1.8)",
        "container": "not tried: `kernelbridge doctor torch` starts them",
        "kernel": "not tried: `kernelbridge doctor torch` starts them",
    }


def test_this_machines_own_engine_has_no_links_of_ssh(examine: Examine) -> None:
    assert [one.link.value for one in examine(MadeHost(), HERE)] == [
        name for name in OF_HOST if name not in ("clock", "forwarding")
    ]


@pytest.mark.parametrize("broken", [LinkName.ROUTE, LinkName.LOGIN, LinkName.SECOND_FACTOR])
def test_behind_a_way_that_leads_nowhere_nothing_is_looked_at(examine: Examine, broken: LinkName) -> None:
    found = examine(MadeHost(broken_way=broken), gpus=1, mounts=["/data:/data"])
    assert {(one.state, one.found) for one in found} == {(LinkState.SKIPPED, f"behind {broken}")}
    environment = ["GPUs", "image", "mounts", "image's Python", "container", "kernel"]
    assert [one.link.value for one in found] == OF_HOST + environment


def test_a_shell_that_runs_no_commands_was_told_already(examine: Examine) -> None:
    assert "shell" not in [one.link for one in examine(MadeHost(broken_way=LinkName.SHELL))]


def test_behind_an_engine_that_is_down_the_cards_are_seen_still(examine: Examine) -> None:
    down = EngineDown(host="lab", socket="/var/run/docker.sock")
    found = examine(MadeHost(engine_failure=down), gpus=1)
    behind = ["API version", "live-restore", "storage", "toolkit", "CDI", "GPUs", "image", "image's Python"]
    assert states(found) == {"engine": "broken", **dict.fromkeys([*behind, "container", "kernel"], "skipped")}


def test_an_engine_that_is_too_old_answers(examine: Examine) -> None:
    old = EngineTooOld(host="lab", api="1.26", needed="1.40")
    found = {one.link.value: one for one in examine(MadeHost(engine_failure=old))}
    assert (found["engine"].state, found["API version"].state) == (LinkState.OK, LinkState.BROKEN)
    assert found["storage"].found == "behind API version"


def test_forwarding_that_is_forbidden_matters_where_there_is_no_other_way(examine: Examine) -> None:
    made = MadeHost(socket_failure=ForwardingForbidden(host="lab"))
    assert states(examine(made)) == {
        "forwarding": "broken",
        **dict.fromkeys(OF_HOST[OF_HOST.index("engine") :], "skipped"),
    }
    made.has_docker_command = True
    assert states(examine(made)) == {"forwarding": "warning"}
    # That nobody listens is the engine's matter.
    assert states(examine(MadeHost(socket_failure=ConnectionRefusedError()))) == {}


@pytest.mark.parametrize(
    ("made", "link", "said"),
    [
        (MadeHost(clock_is_off=-500), "clock", "500 s behind"),
        (MadeHost(clock_is_off=500), "clock", "500 s ahead"),
        (MadeHost(shell_seconds=2.5), "shell", "takes 2.5 s to start, each time"),
        (
            MadeHost(entry=LoginEntry(noise="Welcome")),
            "shell",
            'its start-up files print "Welcome" before each command: rsync and SFTP stumble over it',
        ),
        (MadeHost(free_kib=5_000_000), "storage", "5 GB free in /var/lib/docker"),
        (MadeHost(live_restore=False), "live-restore", "off: a restart or update of Docker ends all kernels"),
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
    assert states(found) == {"NVIDIA driver": "broken", **dict.fromkeys(["toolkit", "CDI", "GPUs"], "skipped")}


def test_a_toolkit_that_is_not_there_matters_to_who_wants_gpus(examine: Examine) -> None:
    made = MadeHost(more_info={})
    found = examine(made, gpus=1)
    assert states(found) == {"toolkit": "broken", "CDI": "skipped", "GPUs": "skipped"}
    assert next(one for one in found if one.link is LinkName.TOOLKIT).exit_code == 45
    assert states(examine(made)) == {"toolkit": "warning"}
    made.says = {"toolkit": "/usr/bin/nvidia-container-runtime-hook\n"}
    assert states(examine(made, gpus=1)) == {}
    assert states(examine(MadeHost(more_info={}, facts_of_gpus=GpuFacts()))) == {}


def test_cdi_is_looked_at_where_gpus_go_by_it(examine: Examine) -> None:
    host = Host(name="lab", ssh="lab", gpu_access="cdi")
    listed = {"DiscoveredDevices": [{"ID": "nvidia.com/gpu=GPU-1"}], "CDISpecDirs": ["/etc/cdi"]}
    found = {one.link.value: one.found for one in examine(MadeHost(way="cdi", more_info=listed), host)}
    assert (found["toolkit"], found["CDI"]) == ("not needed: GPUs go by CDI", "1 devices of /etc/cdi")
    assert states(examine(MadeHost(way="cdi", more_info={}), host, gpus=1)) == {"CDI": "broken", "GPUs": "skipped"}
    # An engine of before 28.2 does not list them: the files are there or not.
    before = MadeHost(way="cdi", more_info={}, version="25.0", says={"cdi": "/etc/cdi/nvidia.yaml\n"})
    assert next(one.found for one in examine(before, host) if one.link is LinkName.CDI) == (
        "described in /etc/cdi/nvidia.yaml"
    )
    missing = GpuWayMissing(host="lab", reason="too old", remedy="Update it.")
    assert states(examine(MadeHost(gpu_failure=missing), host)) == {"CDI": "broken"}
    assert states(examine(MadeHost(gpu_failure=missing))) == {"toolkit": "broken", "CDI": "skipped"}


def test_more_cards_than_there_are_is_broken_and_none_is_right_where_none_is_asked_for(examine: Examine) -> None:
    assert states(examine(MadeHost(), gpus=3)) == {"GPUs": "broken"}
    bare = MadeHost(facts_of_gpus=GpuFacts())
    assert states(examine(bare, gpus=1)) == {"GPUs": "broken"}
    assert states(examine(bare, gpus=0)) == {}


def test_a_login_node_is_asked_whether_it_would_take_the_job(examine: Examine) -> None:
    found = examine(MadeHost(), HPC, gpus=1)
    assert [(one.link.value, one.found) for one in found[2:]] == [
        ("scheduler", "Slurm, 2 nodes with 8 GPUs"),
        ("job", "Slurm would take it"),
        ("kernel", "not tried: it would be a job; `kernelbridge run torch -- true` submits one"),
    ]
    refused = JobRefused(host="hpc", reason="Invalid account")
    assert states(examine(MadeHost(job_failure=refused), HPC, gpus=1)) == {"job": "broken", "kernel": "skipped"}
    failed = examine(MadeHost(broken_way=LinkName.ROUTE), HPC, gpus=1)
    assert [one.link.value for one in failed] == ["shell", "clock", "scheduler", "job", "kernel"]


def test_storage_that_the_login_cannot_see_is_no_fault(examine: Examine) -> None:
    found = {one.link: one for one in examine(MadeHost(free_kib=0))}
    assert found[LinkName.STORAGE].found == "not to be seen by this login (/var/lib/docker)"
