"""Whether the host's driver is new enough for an image, and how its engine hands GPUs out. Pure; the GPUs: gpus.py."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from kernelbridge.gpu_errors import DriverTooOld, GpuWayMissing
from kernelbridge.host.gpus import Gpu, GpuFacts

Way = Literal["gpus", "runtime", "cdi"]

# What libnvidia-container knows; its fourth, `arch`, is a number that nvidia-smi's XML does not have.
_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
}
_CONDITION: Final = re.compile(r"([^<>=!]+)([<>=!]+)(.+)")
_VERSION: Final = re.compile(r"v?([0-9]{1,9}(?:\.[0-9]{1,9})*)")
_CDI_KIND: Final = "nvidia.com/gpu="
# Podman's imitation of Docker ignores GPU requests of every kind before this, and says nothing.
_PODMAN_CDI: Final = (5, 4)
# Docker knows CDI devices since the first; since the second it does so unasked and lists them in GET /info.
_DOCKER_CDI: Final = (25, 0)
_DOCKER_LISTS_CDI: Final = (28, 2)


def check_driver(image_env: Mapping[str, str], facts: GpuFacts, *, host: str, image: str) -> None:
    """Compare what the image's variables ask for with the driver, as NVIDIA's container toolkit does at the start.

    What is not known on either side is no reason to refuse. Of cards of several brands one that fits is enough.

    Raises: DriverTooOld.
    """
    if image_env.get("NVIDIA_DISABLE_REQUIRE", "") in ("1", "t", "T", "true", "TRUE", "True"):
        return
    asked = [text for name, text in sorted(image_env.items()) if _is_requirement(name) and text.strip()]
    for text in asked:
        cards: Sequence[Gpu | None] = facts.gpus or [None]
        if not any(_fulfils(text, facts, card) for card in cards):
            # The first alternative is the plain one; those behind it name old drivers of single brands.
            raise DriverTooOld(host=host, image=image, needs=text.split()[0], driver=_driver(facts))
    # The toolkit would compare the minor as well; but CUDA 12.6 runs on a driver for 12.2, since CUDA 11.
    needed, had = _version(image_env.get("CUDA_VERSION", "")), _version(facts.cuda)
    if not image_env.get("NVIDIA_REQUIRE_CUDA", "").strip() and needed and had and needed[0] > had[0]:
        raise DriverTooOld(host=host, image=image, needs=f"cuda>={needed[0]}", driver=_driver(facts))


def gpu_way(info: Mapping[str, Any], *, is_podman: bool, version: str, access: str, host: str) -> Way:
    """How to ask this engine for GPUs, by its GET /info; `access` is the host's `gpu_access`.

    Raises: GpuWayMissing.
    """
    release = _version(version)
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


def device_request(way: Way, gpu_ids: Sequence[str]) -> dict[str, Any]:
    """The part of HostConfig that hands out these GPUs, by UUID: an index may mean another card tomorrow.

    With "runtime" the variable NVIDIA_VISIBLE_DEVICES of the container says which.
    """
    match way:
        case "gpus":
            return {"DeviceRequests": [{"DeviceIDs": list(gpu_ids), "Capabilities": [["gpu", "utility", "compute"]]}]}
        case "cdi":
            return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [_CDI_KIND + uuid for uuid in gpu_ids]}]}
        case "runtime":
            return {"Runtime": "nvidia"}


def _is_requirement(name: str) -> bool:
    return name.startswith("NVIDIA_REQUIRE_") and not name.startswith("NVIDIA_REQUIRE_JETPACK")


def _fulfils(requirement: str, facts: GpuFacts, card: Gpu | None) -> bool:
    """Whether one of the alternatives (behind spaces) holds in all its parts (behind commas)."""
    return any(
        all(_holds(condition, facts, card) for condition in alternative.split(",") if condition)
        for alternative in requirement.split()
    )


def _holds(condition: str, facts: GpuFacts, card: Gpu | None) -> bool:
    """Whether one `cuda>=12.4` holds. What is not understood or not known counts as fulfilled."""
    parts = _CONDITION.fullmatch(condition)
    if parts is None or parts[2] not in _COMPARISONS:
        return True
    compare, wanted = _COMPARISONS[parts[2]], parts[3]
    match parts[1].lower():
        case "brand":
            # "NVIDIA RTX" is nvidiartx in a requirement.
            brand = card.brand.replace(" ", "").lower() if card is not None else ""
            return not brand or parts[2] not in ("=", "!=") or compare(brand, wanted.lower())
        case "cuda" | "driver" as name:
            has, needs = _version(facts.cuda if name == "cuda" else facts.driver), _version(wanted, whole=True)
            return not has or not needs or compare(_padded(has, needs), _padded(needs, has))
    return True


def _podman_way(release: tuple[int, ...], *, version: str, access: str, host: str) -> Way:
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
            reason=f"its Docker {version} knows no CDI devices, which came with 25.0",
            remedy="Set `gpu_access` of the host to auto, or update Docker there.",
        )
    devices = _cdi_devices(info)
    if devices and not any(_is_by_uuid(device) for device in devices):
        raise GpuWayMissing(
            host=host,
            reason="its CDI devices are named by index, and kernelbridge asks by UUID",
            remedy="Run `nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml` on "
            f"{host}, or set `gpu_access` of the host to auto.",
        )


def _has_cdi(info: Mapping[str, Any], release: tuple[int, ...]) -> bool:
    """Whether GET /info proves that a card can be asked for as a CDI device."""
    if release[:2] >= _DOCKER_LISTS_CDI:
        return any(_is_by_uuid(device) for device in _cdi_devices(info))
    # Between the two the folders are told only where somebody switched CDI on.
    return release[:2] >= _DOCKER_CDI and bool(info.get("CDISpecDirs"))


def _cdi_devices(info: Mapping[str, Any]) -> list[str]:
    names = (str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or [])
    return [name for name in names if name.startswith(_CDI_KIND)]


def _is_by_uuid(device: str) -> bool:
    return device.removeprefix(_CDI_KIND).startswith(("GPU-", "MIG-"))


def _driver(facts: GpuFacts) -> str:
    return f"driver {facts.driver or 'unknown'}" + (f" for CUDA {facts.cuda}" if facts.cuda else "")


def _version(text: str, *, whole: bool = False) -> tuple[int, ...]:
    """The numbers that a version begins with ("28.2.0-rc.1"), or is made of; none if it is no version."""
    found = _VERSION.fullmatch(text.strip()) if whole else _VERSION.match(text.strip())
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def _padded(version: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """12 is 12.0 beside 12.4."""
    return version + (0,) * (len(other) - len(version))
