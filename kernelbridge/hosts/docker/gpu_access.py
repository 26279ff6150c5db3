"""Decide how an engine is asked for GPUs, and write that request. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from kernelbridge.errors import GpuWayMissing
from kernelbridge.hosts.gpus.driver_check import version_numbers

GpuWay = Literal["gpus", "runtime", "cdi"]

CDI_BY_UUID: Final = (
    "Run `nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml` on HOST, or set "
    "`gpu_access` of [hosts.HOST] to gpus or runtime where it has NVIDIA's runtime."
)
_CDI_KIND: Final = "nvidia.com/gpu="
# Podman's imitation of Docker ignores GPU requests of every kind before this, and says nothing.
_PODMAN_CDI: Final = (5, 4)
# Docker knows CDI devices since the first; since the second it does so unasked and lists them in GET /info.
_DOCKER_CDI: Final = (25, 0)
_DOCKER_LISTS_CDI: Final = (28, 2)


def gpu_way(info: Mapping[str, Any], *, is_podman: bool, version: str, access: str, host: str) -> GpuWay:
    """Decide how to ask this engine for GPUs, by its GET /info; `access` is the host's `gpu_access`.

    Raises: GpuWayMissing.
    """
    release = version_numbers(version)
    if is_podman:
        return _podman_way(release, version=version, access=access, host=host)
    has_runtime = "nvidia" in (info.get("Runtimes") or {})
    match access:
        case "gpus":
            # A plain engine with NVIDIA's hook on its PATH shows nothing of it: only a start can tell.
            return "gpus"
        case "runtime":
            if not has_runtime:
                raise GpuWayMissing(
                    host=host,
                    reason="its engine has no runtime `nvidia`",
                    remedy=f"Run `nvidia-ctk runtime configure` on {host} and restart Docker, or set `gpu_access` of "
                    "the host to auto.",
                )
            return "runtime"
        case "cdi":
            _check_cdi(info, release, version=version, host=host)
            return "cdi"
    return "gpus" if has_runtime or not _has_cdi(info, release) else "cdi"


def device_request(way: GpuWay, gpu_ids: Sequence[str], *, has_capabilities: bool) -> dict[str, Any]:
    """Write the part of HostConfig that hands out these GPUs, by UUID: an index may mean another card tomorrow.

    With "runtime" the variable NVIDIA_VISIBLE_DEVICES of the container says which. `has_capabilities`: its variable
    NVIDIA_DRIVER_CAPABILITIES says what of the driver it gets; an engine would overrule it by what is named here.
    """
    match way:
        case "gpus":
            kinds = ["gpu"] if has_capabilities else ["gpu", "utility", "compute"]
            return {"DeviceRequests": [{"DeviceIDs": list(gpu_ids), "Capabilities": [kinds]}]}
        case "cdi":
            return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [_CDI_KIND + uuid for uuid in gpu_ids]}]}
        case "runtime":
            return {"Runtime": "nvidia"}


def _podman_way(release: tuple[int, ...], *, version: str, access: str, host: str) -> GpuWay:
    if access not in ("auto", "cdi"):
        raise GpuWayMissing(
            host=host,
            reason=f"its engine is Podman, which ignores `gpu_access = {access}`",
            remedy="Set `gpu_access` of the host to auto or cdi.",
        )
    if release[:2] < _PODMAN_CDI:
        raise GpuWayMissing(
            host=host,
            reason=f"its Podman {version} ignores requests for GPUs",
            remedy=f"Update Podman on {host} to 5.4 or newer, or use Docker there.",
        )
    return "cdi"


def _check_cdi(info: Mapping[str, Any], release: tuple[int, ...], *, version: str, host: str) -> None:
    """Refuse CDI where the engine cannot have it or lists no card by UUID. Raises GpuWayMissing."""
    if release and release[:2] < _DOCKER_CDI:
        raise GpuWayMissing(
            host=host,
            reason=f"its Docker {version} does not support CDI devices, which came with 25.0",
            remedy="Set `gpu_access` of the host to auto, or update Docker there.",
        )
    devices = cdi_devices(info)
    if devices and not any(_is_by_uuid(device) for device in devices):
        raise GpuWayMissing(
            host=host,
            reason="its CDI devices are named by index, but kernelbridge asks by UUID",
            remedy=CDI_BY_UUID.replace("HOST", host),
        )


def _has_cdi(info: Mapping[str, Any], release: tuple[int, ...]) -> bool:
    """Whether GET /info proves that a card can be asked for as a CDI device."""
    if release[:2] >= _DOCKER_LISTS_CDI:
        return any(_is_by_uuid(device) for device in cdi_devices(info))
    # Between the two the folders are told only where somebody switched CDI on.
    return release[:2] >= _DOCKER_CDI and bool(info.get("CDISpecDirs"))


def lists_cdi(version: str) -> bool:
    """Whether a Docker of this version lists its CDI devices in GET /info."""
    return version_numbers(version)[:2] >= _DOCKER_LISTS_CDI


def cdi_devices(info: Mapping[str, Any]) -> list[str]:
    """Return the names of NVIDIA's CDI devices that GET /info lists."""
    names = (str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or [])
    return [name for name in names if name.startswith(_CDI_KIND)]


def _is_by_uuid(device: str) -> bool:
    return device.removeprefix(_CDI_KIND).startswith(("GPU-", "MIG-"))
