"""Read the file that an environment names in `requirements`, and say what in it is no requirement."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from kernelbridge.config.schema import Config, Environment
from kernelbridge.errors import ConfigInvalid, Problem

_VERSION: Final = r"(===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9.*+!_-]+"
# As PEP 508 has it, but for what stands in a marker or an address: that is for pip to say.
_REQUIREMENT: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\s*(\[[A-Za-z0-9._,\s-]*\])?\s*"
    rf"(@\s*\S.*|\(?\s*({_VERSION}\s*,?\s*)*\)?\s*(;.*)?)"
)
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+.*")
_COMMENT: Final = re.compile(r"(^|\s)#.*")


def read(environment: Environment, config: Path) -> tuple[str, ...]:
    """Return the requirements in the file of an environment of this config file. Raises ConfigInvalid."""
    if environment.requirements is None:
        return ()
    path = Path(environment.requirements)
    key = f"environments.{environment.name}.requirements"
    try:
        path = config.parent / path.expanduser()
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError, RuntimeError) as exc:  # The last of a home that nobody has.
        problem = Problem(key=key, sentence=f"{path} cannot be read ({getattr(exc, 'strerror', '') or exc})")
        raise ConfigInvalid(path=str(config), problems=[problem]) from exc
    found = [line for line in (_COMMENT.sub("", one).strip() for one in text.splitlines()) if line]
    wrong = [
        f"{path}: `{line[:80]}` is {what}; only requirements are taken, one on each line"
        for line in found
        if (what := _wrong(line))
    ]
    if wrong:
        raise ConfigInvalid(path=str(config), problems=[Problem(key=key, sentence=sentence) for sentence in wrong])
    return tuple(found)


def check(config: Config) -> None:
    """Read the files of all environments, and raise ConfigInvalid with everything that is wrong."""
    problems: list[Problem] = []
    for environment in config.environments.values():
        try:
            read(environment, config.path)
        except ConfigInvalid as exc:
            problems += exc.problems
    if problems:
        raise ConfigInvalid(path=str(config.path), problems=problems)


def _wrong(line: str) -> str:
    """Say what a line is that is no requirement: files are on this machine, and options are for its pip."""
    if line.startswith("-") or " --" in line or line.endswith("\\"):
        return "an option of pip"
    words = " ".join(line.split())
    return "" if _REQUIREMENT.fullmatch(words) or _ADDRESS.fullmatch(words) else "no requirement"
