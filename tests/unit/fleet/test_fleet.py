"""fleet/fleet.py: what is under way when a fleet is closed; what a restart gets. What else it does: the real tests."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.kernel.command.terminal import CommandRequest
from kernelbridge.kernel.recipe import recipe
from kernelbridge.kernel.records import KernelRecord
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.state import KernelState
from tests.made_hosts import Hosts
from tests.unit.fleet.test_kernel_listing import STATUS


def test_who_waits_for_a_fleet_that_is_closed_is_not_left_waiting(tmp_path: Path) -> None:
    fleet = Fleet(Config(path=tmp_path), folder=tmp_path)
    begun, ended = threading.Event(), threading.Event()

    async def wait_for_ever() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    future = fleet.submit(wait_for_ever())
    assert begun.wait(5)
    fleet.close()
    assert ended.is_set()
    with pytest.raises(CancelledError):
        future.result(5)
    fleet.close()


ASKED: dict[str, Callable[[Fleet], Coroutine[Any, Any, Any]]] = {
    "shell, exec": lambda fleet: fleet.open_terminal("torch", CommandRequest(), lambda kind, data: None),
    "forward": lambda fleet: fleet.forwards("torch"),
    "tensorboard": lambda fleet: fleet.board("torch", "/logs", port=1, ready=lambda address: None),
    "cp, ssh": lambda fleet: fleet.address_of("torch"),
}


@pytest.mark.parametrize("command", ASKED)
async def test_whoever_works_in_a_container_may_name_its_environment(command: str, tmp_path: Path) -> None:
    hosts = Hosts(tmp_path)
    fleet = Fleet(hosts.config, folder=tmp_path)
    fleet._finder = hosts.census
    try:
        with pytest.raises(KernelBridgeError, match="No container of torch runs"):
            await ASKED[command](fleet)
        hosts.add(status=STATUS)
        assert (await fleet.forwards("torch")).kernel == "aabb1111-000 on lab"
    finally:
        fleet.close()


class MadeKernel:
    """A kernel of the fleet, of which a restart is asked."""

    def __init__(
        self, request: LaunchRequest, *, is_joined: bool = True, state: KernelState = KernelState.RUNNING
    ) -> None:
        self.request = request
        self.is_joined = is_joined
        self.state = state
        self.channels = self
        self.log: list[str] = []

    def tell_next_cell(self, text: str) -> None:
        self.log.append(text)

    def renew_process(self, request: LaunchRequest) -> None:
        self.log.append(f"A={request.environment.env.get('A')}")

    async def relaunch(self, renewed: Callable[[], LaunchRequest], *, is_outdated: bool = False) -> None:
        self.log.append("new" if is_outdated else "in place")


NEW = "this is a new container, because `shm_size` changed in kernelbridge.toml; files in the old one are gone"
OLD = "this is still the old container, although `shm_size` changed in kernelbridge.toml, because the kernel persists"


@pytest.mark.parametrize(
    ("keys", "facts", "told", "what"),
    [
        ({}, {}, "", ["A=None", "in place"]),
        ({"env": {"A": "b"}}, {}, "", ["A=b", "in place"]),
        ({"shm_size": "2g", "env": {"A": "b"}}, {}, NEW, ["A=b", "new"]),
        ({"shm_size": "2g", "env": {"A": "b"}}, {"persist": True}, OLD, ["A=b", "in place"]),
        # It is restarted when the link is back, or is only about to come.
        ({"shm_size": "2g"}, {"is_joined": False}, "", ["A=None", "in place"]),
        ({"shm_size": "2g"}, {"state": KernelState.STARTING}, "", ["A=None", "in place"]),
        # Of another config, an older version, an environment that is gone.
        ({"shm_size": "2g"}, {"config": "/other.toml"}, "", ["in place"]),
        ({"shm_size": "2g"}, {"recipe": {}}, "", ["A=None", "in place"]),
        ({"shm_size": "2g"}, {"environment": "gone"}, "", ["in place"]),
    ],
)
def test_a_restart_has_what_the_config_says_by_then_or_says_why_not(
    tmp_path: Path, keys: dict[str, Any], facts: dict[str, Any], told: str, what: list[str]
) -> None:
    host = Host(name="lab", ssh="lab")

    def config(**keys: Any) -> Config:
        environment = Environment.model_validate({"name": "torch", "image": "torch:2", **keys})
        return Config(path=tmp_path / "c.toml", hosts={"lab": host}, environments={"torch": environment})

    fleet = Fleet(config(), folder=tmp_path)
    try:
        request = fleet.launch_request("torch", kernel_id="7" * 32, environ={})
        of_kernel = {name: facts[name] for name in ("is_joined", "state") if name in facts}
        of_record = {name: facts[name] for name in facts.keys() - of_kernel.keys()}
        kernel: Any = MadeKernel(request, **of_kernel)
        made_up: dict[str, Any] = {
            "environment": "torch",
            "config": str(tmp_path / "c.toml"),
            "host": "lab",
            "image": "torch:2",
            "python": "python3",
            "session": "s",
            "started": 0.0,
            "recipe": recipe(request.environment, host),
        }
        fleet.records.keep(
            KernelRecord(
                kernel_id=request.kernel_id,
                **{**made_up, **of_record},
            )
        )
        fleet.config = config(**keys)
        fleet.run(fleet.relaunch(kernel, lambda: fleet.launch_request("torch", kernel_id="7" * 32, environ={})))
        news = [line for line in kernel.log if line.startswith("this is")]
        assert kernel.log == [*news, *what]
        assert [line[: len(told)] for line in news] == [told] * bool(told)
    finally:
        fleet.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit."""
    monkeypatch.setenv("HOME", str(tmp_path))
    made = tmp_path / "proj"
    made.mkdir()
    (made / "a.py").write_text("a")
    who = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(made), *words], check=True)
    return made


def test_what_is_joined_has_the_workspace_that_it_was_started_with(tmp_path: Path, project: Path) -> None:
    host = Host(name="lab", ssh="lab")
    environment = Environment.model_validate({"name": "torch", "image": "torch:2", "workspace": "."})
    config = Config(path=tmp_path / "c.toml", hosts={"lab": host}, environments={"torch": environment})
    fleet = Fleet(config, folder=tmp_path / "data")
    try:
        request = fleet.launch_request("torch", kernel_id="7" * 32, environ={})
        facts: Any = dict.fromkeys(("environment", "config", "host", "image", "python", "session"), "x")
        left = KernelRecord(kernel_id="7" * 32, started=0.0, folder=str(project), **facts)
        found = fleet.with_project_of(request, left)
        assert found.folder == str(project)
        assert found.project is not None
        assert (found.project.local_root, found.project.checkout) == (project, None)
        head = subprocess.run(["git", "-C", project, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        of_commit = fleet.with_project_of(request, replace(left, commit=head.stdout.strip())).project
        assert of_commit is not None
        assert of_commit.checkout is not None
        assert (of_commit.local_root, set(of_commit.checkout.paths)) == (project, {"a.py"})
        assert of_commit.name.endswith(f"-{head.stdout[:12]}")
        # A commit, or a folder, that is gone.
        assert fleet.with_project_of(request, replace(left, commit="0" * 40)).project is None
        assert fleet.with_project_of(request, replace(left, folder=str(tmp_path / "gone"))).project is None
        assert fleet.with_project_of(request, replace(left, folder="")).project is None
    finally:
        fleet.close()
