"""hosts/gpus/driver_check.py: which drivers run which images."""

from __future__ import annotations

import pytest

from kernelbridge.errors import DriverTooOld
from kernelbridge.hosts.gpus.driver_check import check_driver
from kernelbridge.hosts.gpus.nvidia_smi import Gpu, GpuFacts


def facts(driver: str = "535.129.03", cuda: str = "12.2", *brands: str) -> GpuFacts:
    cards = [
        Gpu(uuid=f"GPU-{number}", index=str(number), name="x", memory_mib=1, used_mib=0, brand=brand)
        for number, brand in enumerate(brands or ("NVIDIA",))
    ]
    return GpuFacts(driver=driver, cuda=cuda, gpus=tuple(cards))


def check(env: dict[str, str], of: GpuFacts) -> None:
    check_driver(env, of, host="lab", image="cuda:x")


def require(text: str) -> dict[str, str]:
    return {"NVIDIA_REQUIRE_CUDA": text}


# As NVIDIA's own images have it: the plain condition, then old drivers whose brands may run it all the same.
OWN = "cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=nvidia,driver>=535,driver<536 brand=nvidiartx,driver>=525"
GOOD: dict[str, tuple[dict[str, str], GpuFacts]] = {
    "an image that asks for nothing": ({}, facts()),
    "the same CUDA": (require("cuda>=12.2"), facts()),
    "a newer one": (require("cuda>=9.0"), facts()),
    "a newer one, compared as numbers": (require("cuda>=12.2"), facts(cuda="12.10")),
    "a whole number beside one with a point": (require("cuda>=12 "), facts(cuda="12.0")),
    "a whole number above one with a point": (require("cuda<=12"), facts(cuda="12.0")),
    "a brand that is compared like a number": (require("brand<a"), facts()),
    "an alternative for the brand": (require(OWN), facts()),
    "an alternative for a brand of two words": (require(OWN), facts("550.1", "12.2", "NVIDIA RTX")),
    "one of two cards": (require(OWN), facts("535.1", "12.2", "GeForce", "NVIDIA")),
    "brands whatever their case": (require("brand=TESLA"), facts("535.1", "12.2", "Tesla")),
    "another brand than the excluded": (require("brand!=GeForce"), facts("535.1", "12.2", "Tesla")),
    "another driver than the excluded": (require("driver!=535.129.3.1"), facts()),
    "exactly the driver": (require("driver=535.129.03"), facts()),
    "a driver below": (require("driver<=535.129.3,driver<536"), facts()),
    "a driver above": (require("driver>535"), facts()),
    "a name that is not known": (require("arch>=9.0,cuda>=12.2,moon=full"), facts()),
    "words that are no condition": (require("cuda cuda==13 cuda>= >=12 cuda>=new"), facts()),
    "commas and spaces too many": (require("  cuda>=12.0,, ,"), facts()),
    "a driver that does not tell its CUDA": (require("cuda>=99"), facts(cuda="")),
    "a driver that tells nothing": (require("cuda>=99,driver>=999,brand=x"), GpuFacts()),
    "the check switched off": (require("cuda>=99") | {"NVIDIA_DISABLE_REQUIRE": "true"}, facts()),
    "the check switched off by 1": (require("cuda>=99") | {"NVIDIA_DISABLE_REQUIRE": "1"}, facts()),
    "requirements of another machine": ({"NVIDIA_REQUIRE_JETPACK": "cuda>=99"}, facts()),
    "the same major without a requirement": ({"CUDA_VERSION": "12.8.1"}, facts()),
    "an older major without a requirement": ({"CUDA_VERSION": "11.8.0"}, facts()),
    "a requirement instead of the version": (require("cuda>=12.0") | {"CUDA_VERSION": "13.0"}, facts()),
    "a version that is none": ({"CUDA_VERSION": "latest"}, facts()),
    "a version and no driver": ({"CUDA_VERSION": "13.0"}, GpuFacts()),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_driver_runs(case: str) -> None:
    env, of = GOOD[case]
    check(env, of)


BAD: dict[str, tuple[dict[str, str], GpuFacts, str]] = {
    "a newer CUDA": (require("cuda>=12.4"), facts(), "cuda>=12.4"),
    "a newer CUDA, compared as numbers": (require("cuda>=12.10"), facts(), "cuda>=12.10"),
    "alternatives for other brands": (require(OWN), facts("535.1", "12.2", "GeForce RTX"), "cuda>=12.4"),
    "an alternative for another driver": (require(OWN), facts("545.1", "12.3"), "cuda>=12.4"),
    "the excluded brand": (require("brand!=GeForce"), facts("535.1", "12.2", "geforce"), "brand!=GeForce"),
    "the excluded driver": (require("driver!=535.129.3"), facts(), "driver!=535.129.3"),
    "more than": (require("driver>535.129.03"), facts(), "driver>535.129.03"),
    "at most": (require("cuda<=12.1"), facts(), "cuda<=12.1"),
    "one part of several": (require("cuda>=12.0,driver>=560"), facts(), "cuda>=12.0,driver>=560"),
    "another requirement": ({"NVIDIA_REQUIRE_DRIVER": "driver>=560"}, facts(), "driver>=560"),
    "a check that is not switched off": (require("cuda>=99") | {"NVIDIA_DISABLE_REQUIRE": "no"}, facts(), "cuda>=99"),
    "no card to compare": (require("cuda>=99"), GpuFacts(driver="535.129.03", cuda="12.2"), "cuda>=99"),
    "a newer major without a requirement": ({"CUDA_VERSION": "13.0.1"}, facts(), "cuda>=13"),
    "a newer major beside an empty requirement": (require(" ") | {"CUDA_VERSION": "v13.0"}, facts(), "cuda>=13"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_driver_is_too_old_for(case: str) -> None:
    env, of, needs = BAD[case]
    with pytest.raises(DriverTooOld) as caught:
        check(env, of)
    driver = f"driver {of.driver} for CUDA {of.cuda}"
    assert caught.value.sentence == f"lab: the image cuda:x needs {needs}, but the host has {driver}."
