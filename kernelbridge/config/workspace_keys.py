"""Check the keys of `workspace`: the folder here, its place in the container, what is copied. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from kernelbridge.config import fields

# Value of `container`: at the path that the folder has on this machine.
SAME_PATH: Final = "same"
# What has a meaning only where something is copied.
_COPYING_KEYS: Final = ("sync", "ignore", "pull", "big_files")
_WORDS: Final[dict[str, Any]] = {"type": "array", "items": {"type": "string"}}
SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                **{key: {"type": "string"} for key in ("local", "host", "container")},
                "sync": {"enum": ["push", "both"]},
                "ignore": _WORDS,
                "pull": _WORDS,
                "big_files": {
                    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": fields.SIZE_PATTERN}]
                },
            },
        },
    ]
}


def as_table(value: object) -> object:
    """Take a plain path for the table that has it as `local`; refuse keys that contradict each other."""
    if isinstance(value, str):
        return {"local": value}
    if isinstance(value, dict):
        idle = [key for key in _COPYING_KEYS if key in value]
        if "host" in value and idle:
            raise ValueError(f"has `host`, so nothing is copied, and `{idle[0]}` has no meaning; remove one of both")
        if value.get("pull") and value.get("sync") != "both":
            raise ValueError('has `pull`, which nothing is brought back by; add `sync = "both"`')
    return value


def check_local(path: str) -> str:
    """Refuse a folder that cannot be a project's: none, a home, a whole disk."""
    plain = path.rstrip("/\\") if len(path) > 1 else path
    if not path.strip():
        raise ValueError('must be a folder of this machine, for example "." or "~/project"')
    if plain == "~" or re.fullmatch(r"~[^/\\]+", plain):
        raise ValueError("may not be a whole home folder; name your project's folder in it")
    if plain == "/" or re.fullmatch(r"[A-Za-z]:", plain):
        raise ValueError("may not be a whole disk; name your project's folder")
    return path


def check_container(path: str) -> str:
    """Refuse a place in the container that is not free; return it in its plain form."""
    if path == SAME_PATH:
        return path
    if not path.startswith("/"):
        raise ValueError(f'must be a path that begins with /, or "{SAME_PATH}" for the path that the folder has here')
    return fields.check_mount_target(path)


def check_free(container: str, taken: Sequence[str]) -> None:
    """Refuse a workspace where a mount or a folder in memory is."""
    if container in taken:
        raise ValueError(f"{container} is taken by `mounts` or `tmpfs`; set `container` of `workspace` to another path")


def check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what cannot match anything inside the folder."""
    for pattern in patterns:
        if not pattern.strip() or pattern.startswith("!") or ".." in pattern.split("/"):
            raise ValueError(f'{pattern!r} must name files inside the folder, for example "runs/**"')
    return patterns
