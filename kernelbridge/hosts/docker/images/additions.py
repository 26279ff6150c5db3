"""Read what an environment adds to its image (`packages`, `apt`, `requirements`), and write how it is done. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kernelbridge.config import requirements_file
from kernelbridge.config.schema import Environment
from kernelbridge.hosts.docker.images.derived_image import Recipe
from kernelbridge.hosts.docker.images.python_probe import FoundPython

# Where wheels of this machine lie while they are installed.
WHEELS_FOLDER: Final = "/tmp/kernelbridge-wheels"  # noqa: S108 - in a container that nobody else is in
# A container that failed so says what it lacks, and not what went wrong.
EXIT_NO_APT: Final = 70

# The steps come over stdin: no word of the user's stands in an argv or a variable that `docker inspect` shows. The
# variables are those of the login on the host for its proxies; none of them stays in the image.
_PROGRAM: Final = f"""\
import sys
sys.path[:] = [p for p in sys.path if p]
import json, os, shutil, subprocess
order = json.loads(sys.stdin.buffer.readline())
for name, text in order["environ"].items():
    os.putenv(name, text)
code = 0
for argv in order["steps"]:
    if argv[0] == "apt-get" and shutil.which("apt-get") is None:
        sys.exit({EXIT_NO_APT})
    code = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT).returncode
    if code:
        break
for folder in order["remove"]:
    shutil.rmtree(folder, ignore_errors=True)
sys.exit(min(code, 1) if code > 0 else -code and 1)
"""
_APT_LISTS: Final = "/var/lib/apt/lists"


@dataclass(frozen=True, kw_only=True)
class Additions:
    """What is added to an image, in the user's words."""

    # Requirements as pip takes them, those of the file among them.
    packages: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to add."""
        return bool(self.packages or self.apt)

    @property
    def words(self) -> str:
        """What it is, for people: the keys of the config."""
        keys = [key for key, value in (("packages", self.packages), ("apt", self.apt)) if value]
        return " and ".join(f"`{key}`" for key in keys)


def read_additions(environment: Environment, config: Path) -> Additions:
    """Return what an environment of this config file adds. Raises ConfigInvalid."""
    return Additions(
        packages=(*environment.packages, *requirements_file.read(environment, config)), apt=environment.apt
    )


def additions_recipe(base: str, python: FoundPython, additions: Additions) -> Recipe:
    """Return the recipe of the image with all of it, installed where its Python looks first."""
    parts = {"packages": list(additions.packages), "apt": list(additions.apt)}
    added = tuple(key for key, value in parts.items() if value)
    return Recipe(base=base, python=python, parts=parts, added=added)


def program_argv(python: FoundPython) -> list[str]:
    """Return the command of the container in which it is done."""
    return [python.path, "-c", _PROGRAM]


def program_line(
    additions: Additions, python: FoundPython, environ: Mapping[str, str], *, wheels: Sequence[str] | None
) -> bytes:
    """Return what that command is told: what to run. `wheels` are those in WHEELS_FOLDER; None: pip asks its index."""
    steps: list[list[str]] = []
    if additions.apt:
        steps += [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "--", *additions.apt]]
    if additions.packages:
        pip = [python.path, "-m", "pip"]
        index: list[str] = ["--retries", "1"]
        if wheels is not None:
            # A wheel of pip runs as it is.
            own = next((name for name in wheels if name.startswith("pip-")), None)
            pip = [python.path, f"{WHEELS_FOLDER}/{own}/pip"] if own else pip
            index = ["--no-index", f"--find-links={WHEELS_FOLDER}"]
        steps.append([*pip, "install", "--no-cache-dir", *index, "--", *additions.packages])
    own_words = {
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        # Debian's own Python refuses otherwise; the image is made for this.
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
    }
    order: dict[str, Any] = {"steps": steps, "environ": {**environ, **own_words}}
    order["remove"] = [WHEELS_FOLDER, *([_APT_LISTS] if additions.apt else [])]
    return json.dumps(order).encode() + b"\n"
