"""Decide what is added to an image, and what the image that is made so is called. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kernelbridge.errors import ImageUnusable
from kernelbridge.hosts.docker.images.python_probe import FoundPython
from kernelbridge.hosts.labels import LABEL_PREFIX
from kernelbridge.protocol.versions import version_number

# As ipykernel_launcher.py has them, which is run by its path and imports nothing of ours.
_PACKAGES_FOLDER: Final = "/opt/kernelbridge/packages"
_FIRST_NAME: Final = "first.json"
REPOSITORY: Final = "kernelbridge/derived"
# What a kernel here needs, and from which version on. ipykernel 6 is the first with a debugger and a control channel
# that is heard while a cell runs; debugpy 1 is what it debugs with. Subshells came with ipykernel 7; nobody needs them,
# so they are no reason to put another ipykernel before the image's own.
FLOORS: Final[Mapping[str, str]] = {"ipykernel": "6.0", "debugpy": "1.0", "pyzmq": "17"}
# Raised when what is added, or where, changes: images that were made before are made anew then.
_EDITION: Final = 1

DERIVED_LABEL: Final = LABEL_PREFIX + "derived"
BASE_LABEL: Final = LABEL_PREFIX + "base"
ADDED_LABEL: Final = LABEL_PREFIX + "added"
MADE_LABEL: Final = LABEL_PREFIX + "made"


class WheelsFailed(Exception):
    """What is to be added could not be fetched; says why, in the last words of pip."""


def last_words(said: str) -> str:
    """Return what of pip's or apt's output says why: its errors, or where there are none its last lines."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if any(line.endswith("No module named pip") for line in lines):
        return "there is no pip beside kernelbridge; `python -m ensurepip` in its environment adds it"
    errors = [line for line in lines if line.startswith(("ERROR:", "E: "))]
    return " ".join(errors or lines[-3:])[-600:] or "it says nothing"


def in_words(packages: Sequence[str]) -> str:
    """Return packages as a sentence names them: `a`, `a and b`, `a, b and c`."""
    *others, last = packages
    return f"{', '.join(others)} and {last}" if others else last


def lacking(python: FoundPython) -> list[str]:
    """Return which of a kernel's packages this Python has not, or only older than a kernel here needs."""
    return [
        name
        for name, floor in FLOORS.items()
        if name not in python.packages or version_number(python.packages[name]) < version_number(floor)
    ]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an image is made of: the base by its id, its Python, and what is added."""

    base: str
    python: FoundPython
    # The parts of the hash beside those, and what the label says.
    parts: Mapping[str, object]
    added: tuple[str, ...]

    @property
    def hash(self) -> str:
        """Stands for all of it."""
        python = [self.python.path, self.python.cache_tag]
        made_of = [_EDITION, self.base, python, dict(self.parts)]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def tag(self) -> str:
        """The name under which the engine keeps it."""
        return f"{REPOSITORY}:{self.hash}"

    def labels(self, made: str) -> dict[str, str]:
        """Return the labels of the image; `made` is when."""
        return {
            DERIVED_LABEL: self.hash,
            BASE_LABEL: self.base,
            ADDED_LABEL: ",".join(self.added),
            MADE_LABEL: made,
        }


def kernel_recipe(base: str, python: FoundPython) -> Recipe:
    """Return the recipe that adds what a kernel needs, in a folder of its own. Raises ImageUnusable."""
    return Recipe(base=base, python=python, parts={"floors": dict(FLOORS)}, added=tuple(FLOORS))


def kernel_requirements() -> list[str]:
    """Return what is added, as pip is asked for it."""
    return [f"{name}>={floor}" for name, floor in FLOORS.items()]


def packages_folder(python: FoundPython) -> str:
    """Return where it lies; see ipykernel_launcher.py."""
    return f"{_PACKAGES_FOLDER}/{python.cache_tag}"


def first_file(python: FoundPython) -> str:
    """Return the file in it that says which modules come before the image's own."""
    return f"{packages_folder(python)}/{_FIRST_NAME}"


def cache_name(python: FoundPython) -> str:
    """Return what the wheels for this kind of Python are kept under on this machine."""
    machine = python.markers.get("platform_machine", "")
    what = json.dumps([_EDITION, dict(FLOORS), python.version, python.soabi, python.libc, machine])
    return f"{python.cache_tag}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def check_architecture(python: FoundPython, image: str) -> None:
    """Raises ImageUnusable where nothing can be fetched for this Python."""
    if not python.cache_tag or not python.soabi:
        raise ImageUnusable(
            image=image,
            fault=f"has a Python ({python.path}, {python.version}) that does not say which wheels it takes",
            remedy="Add `RUN pip install ipykernel` to the image, or set `python` of the environment.",
        )
