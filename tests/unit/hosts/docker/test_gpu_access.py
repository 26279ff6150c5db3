"""hosts/docker/gpu_access.py: how an engine is asked for GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.errors import GpuWayMissing
from kernelbridge.hosts.docker.gpu_access import GpuWay, device_request, gpu_way

# -- how GPUs are asked for

RUNTIME = {"Runtimes": {"runc": {}, "nvidia": {}}, "CDISpecDirs": ["/etc/cdi"]}
PLAIN = {"Runtimes": {"runc": {}}, "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"]}


def listing(*names: str) -> dict[str, Any]:
    return PLAIN | {"DiscoveredDevices": [{"Source": "cdi", "ID": f"nvidia.com/gpu={name}"} for name in names]}


BY_UUID = listing("0", "GPU-1", "all")
BY_INDEX = listing("0", "all")
NO_CDI: dict[str, Any] = {"Runtimes": {"runc": {}}, "CDISpecDirs": []}

# GET /info, the version, `gpu_access`, and the way.
WAYS: dict[str, tuple[dict[str, Any], str, str, GpuWay]] = {
    "an old engine": ({}, "20.10.24+dfsg1", "auto", "gpus"),
    "an engine of no known version": ({}, "", "auto", "gpus"),
    "the nvidia runtime": (RUNTIME, "28.3.0", "auto", "gpus"),
    "the nvidia runtime beside CDI devices": (BY_UUID | {"Runtimes": {"nvidia": {}}}, "28.3.0", "auto", "gpus"),
    "CDI devices by UUID": (BY_UUID, "28.2.0", "auto", "cdi"),
    "CDI devices by UUID, of MIG": (listing("MIG-1"), "29.0.0-rc.1", "auto", "cdi"),
    "CDI devices by index alone": (BY_INDEX, "28.2.2", "auto", "gpus"),
    "CDI devices of others": (PLAIN | {"DiscoveredDevices": [{"ID": "amd.com/gpu=0"}]}, "28.2.2", "auto", "gpus"),
    "CDI folders alone, where they are always told": (PLAIN, "28.2.0", "auto", "gpus"),
    "CDI folders, where somebody switched them on": (PLAIN, "27.5.1", "auto", "cdi"),
    "CDI that is off": (NO_CDI, "27.5.1", "auto", "gpus"),
    "gpus as told": (BY_UUID, "28.3.0", "gpus", "gpus"),
    "the runtime as told": (RUNTIME, "28.3.0", "runtime", "runtime"),
    "CDI as told": (RUNTIME, "28.3.0", "cdi", "cdi"),
    "CDI as told, by UUID": (BY_UUID, "25.0.3", "cdi", "cdi"),
    "CDI as told, by an engine of no known version": (NO_CDI, "dev", "cdi", "cdi"),
}


@pytest.mark.parametrize("case", WAYS)
def test_docker_is_asked_by(case: str) -> None:
    info, version, access, way = WAYS[case]
    assert gpu_way(info, is_podman=False, version=version, access=access, host="lab") == way


@pytest.mark.parametrize(
    ("info", "version", "access", "words"),
    [
        (PLAIN, "28.3.0", "runtime", "its engine has no runtime `nvidia`. Run `nvidia-ctk runtime configure` on lab"),
        ({}, "24.0.9", "cdi", "its Docker 24.0.9 does not support CDI devices"),
        (BY_INDEX, "28.3.0", "cdi", "its CDI devices are named by index, but kernelbridge asks by UUID"),
    ],
)
def test_docker_is_not_asked_for_what_it_cannot(info: dict[str, Any], version: str, access: str, words: str) -> None:
    with pytest.raises(GpuWayMissing) as caught:
        gpu_way(info, is_podman=False, version=version, access=access, host="lab")
    assert str(caught.value).startswith(f"lab: {words}")


@pytest.mark.parametrize(("version", "access"), [("5.4.0", "auto"), ("5.4.2-dev", "cdi"), ("6.0.1", "auto")])
def test_podman_is_asked_by_cdi(version: str, access: str) -> None:
    assert gpu_way({}, is_podman=True, version=version, access=access, host="lab") == "cdi"


@pytest.mark.parametrize(
    ("version", "access", "words"),
    [
        ("5.3.9", "auto", "its Podman 5.3.9 ignores requests for GPUs"),
        ("4.9.3", "cdi", "its Podman 4.9.3 ignores requests for GPUs"),
        ("5.6.0", "gpus", "its engine is Podman, which ignores `gpu_access = gpus`"),
        ("5.6.0", "runtime", "its engine is Podman, which ignores `gpu_access = runtime`"),
    ],
)
def test_podman_is_not_asked_for_what_it_would_ignore(version: str, access: str, words: str) -> None:
    with pytest.raises(GpuWayMissing) as caught:
        gpu_way(RUNTIME, is_podman=True, version=version, access=access, host="lab")
    assert caught.value.sentence == f"lab: {words}."


def test_gpus_are_asked_for_by_uuid_in_every_way() -> None:
    uuids = ("GPU-2", "MIG-1")
    assert device_request("gpus", uuids, has_capabilities=False) == {
        "DeviceRequests": [{"DeviceIDs": ["GPU-2", "MIG-1"], "Capabilities": [["gpu", "utility", "compute"]]}]
    }
    # What is named here would overrule what the image says.
    (asked,) = device_request("gpus", uuids, has_capabilities=True)["DeviceRequests"]
    assert asked["Capabilities"] == [["gpu"]]
    assert device_request("cdi", uuids, has_capabilities=True) == {
        "DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-2", "nvidia.com/gpu=MIG-1"]}]
    }
    assert device_request("runtime", uuids, has_capabilities=False) == {"Runtime": "nvidia"}
