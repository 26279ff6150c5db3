"""`kernelbridge doctor` points at the one link that was broken, on a host that was whole before; cards: STAND-INS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)

WHOLE = [
    *("Python", "config", "kernel specs", "launcher", "server extension"),
    *("login", "shell", "clock", "engine", "storage", "GPUs", "GPUs in containers"),
    *("test: GPUs", "test: image", "test: mounts"),
]


def findings(laptop: Laptop) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = kernelbridge(laptop, "doctor", "--json").json
    return found


@pytest.fixture
def whole(rig: Rig, bridge_env: Laptop) -> Laptop:
    """A laptop whose every link holds, as far as this machine's disk lets it."""
    bridge_env.write_environment(rig.image, gpus=1, mounts=["/tmp:/data:ro"])
    assert kernelbridge(bridge_env, "install").code == 0
    return bridge_env


def test_all_links_are_told_in_order_with_what_was_found(rig: Rig, whole: Laptop) -> None:
    found = findings(whole)
    assert [one["link"] for one in found] == WHOLE
    # This machine's disk may be small, and it may be busy.
    assert {one["link"] for one in found if one["state"] != "ok"} <= {"storage", "shell"}
    assert {one["state"] for one in found} <= {"ok", "warning"}
    said = {one["link"]: one["found"] for one in found}
    assert said["login"] == "kbtest at lab"
    assert said["engine"].startswith("Docker ")
    assert said["GPUs"].startswith("4 x ")
    assert said["test: image"] == f"{rig.image} is there"
    shown = kernelbridge(whole, "doctor", "test")
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0] == "This machine"
    assert "lab" in lines
    assert lines[-1] == "All links hold."


@contextmanager
def gone(path: Path) -> Iterator[None]:
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextmanager
def failing_driver(rig: Rig) -> Iterator[None]:
    smi = rig.engine.gpus.folder / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    try:
        yield
    finally:
        rig.engine.gpus.insert()


def break_link(rig: Rig, laptop: Laptop, fault: str, undo: ExitStack) -> None:
    """Break one link."""
    environment: dict[str, Any] = {"gpus": 1, "mounts": ["/tmp:/data:ro"]}
    image, host = rig.image, {"ssh": "lab"}
    match fault:
        case "a key of the config is none":
            environment["gpu"] = 1
        case "the config is no TOML":
            laptop.write_config("[hosts.lab")
            return
        case "a spec is gone":
            undo.enter_context(gone(laptop.data_dir / "kernels/kernelbridge-test"))
            return
        case "a spec is old":
            laptop.write_environment(image, **{**environment, "display_name": "another"})
            return
        case "a name that nobody knows":
            host = {"ssh": "nowhere.invalid"}
        case "nothing listens":
            undo.enter_context(rig.sshd.stopped())
        case "the login is refused":
            undo.enter_context(rig.sshd.login_refused())
        case "the host's key is another":
            undo.enter_context(rig.sshd.key_changed())
        case "the host's key is not known":
            undo.enter_context(gone(laptop.ssh_folder / "known_hosts"))
        case "the login is for no commands":
            undo.enter_context(rig.lab.shell("kbtest", "/usr/sbin/nologin"))
        case "the engine is down":
            undo.enter_context(rig.engine.stopped())
        case "the login may not use the engine":
            host = {"ssh": "lab-other"}
        case "the driver fails":
            undo.enter_context(failing_driver(rig))
        case "the driver is old":
            rig.engine.gpus.set_driver("550.00.00", "12.4")
            image = undo.enter_context(rig.engine.changed(image, "ENV NVIDIA_REQUIRE_CUDA=cuda>=13.0"))
        case "no image":
            image, environment["pull"] = "none/such:1", "never"
        case "more GPUs than there are":
            environment["gpus"] = 9
        case "no such mount":
            environment["mounts"] = ["/no/such:/data:ro"]
    laptop.write_environment(image, host=host, **environment)
    if fault != "a key of the config is none":
        assert kernelbridge(laptop, "install").code == 0


FAULTS = {
    "a key of the config is none": "config",
    "the config is no TOML": "config",
    "a spec is gone": "kernel specs",
    "a spec is old": "kernel specs",
    "a name that nobody knows": "login",
    "nothing listens": "login",
    "the login is refused": "login",
    "the host's key is another": "login",
    "the host's key is not known": "login",
    "the login is for no commands": "login",
    "the engine is down": "engine",
    "the login may not use the engine": "engine",
    "the driver fails": "GPUs",
    "the driver is old": "test: image",
    "no image": "test: image",
    "more GPUs than there are": "test: GPUs",
    "no such mount": "test: mounts",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_pointed_at(rig: Rig, whole: Laptop, fault: str) -> None:
    with ExitStack() as undo:
        break_link(rig, whole, fault, undo)
        ended = kernelbridge(whole, "doctor", "--json")
    found = ended.json
    broken = [one for one in found if one["state"] == "broken"]
    assert [one["link"] for one in broken] == [FAULTS[fault]], found
    assert broken[0]["remedy"]
    assert (ended.code, ended.err) == (broken[0]["exit_code"], "")
    assert ended.code != 0
