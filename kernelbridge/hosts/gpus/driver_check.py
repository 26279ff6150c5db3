"""Decide whether a host's NVIDIA driver is new enough for an image. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kernelbridge.errors import DriverTooOld
from kernelbridge.hosts.gpus.nvidia_smi import Gpu, GpuFacts

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
    needed, had = version_numbers(image_env.get("CUDA_VERSION", "")), version_numbers(facts.cuda)
    if not image_env.get("NVIDIA_REQUIRE_CUDA", "").strip() and needed and had and needed[0] > had[0]:
        raise DriverTooOld(host=host, image=image, needs=f"cuda>={needed[0]}", driver=_driver(facts))


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
            has, needs = (
                version_numbers(facts.cuda if name == "cuda" else facts.driver),
                version_numbers(wanted, whole=True),
            )
            return not has or not needs or compare(_padded(has, needs), _padded(needs, has))
    return True


def _driver(facts: GpuFacts) -> str:
    return f"driver {facts.driver or 'unknown'}" + (f" for CUDA {facts.cuda}" if facts.cuda else "")


def version_numbers(text: str, *, whole: bool = False) -> tuple[int, ...]:
    """Read the numbers that a version begins with ("28.2.0-rc.1"), or is made of; none if it is no version."""
    found = _VERSION.fullmatch(text.strip()) if whole else _VERSION.match(text.strip())
    return tuple(int(number) for number in found[1].split(".")) if found else ()


def _padded(version: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Make 12 into 12.0, to compare it with 12.4."""
    return version + (0,) * (len(other) - len(version))
