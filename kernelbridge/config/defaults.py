"""Lay each environment's table over the one of `[defaults]`, and tell from which of the two a key came. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from kernelbridge.errors import Problem

SECTION: Final = "defaults"
_INSTEAD: Final = {"image": "build", "build": "image"}


def merged(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a config with whole environments: tables merge, all else is the environment's own."""
    defaults, environments = tables.get(SECTION), tables.get("environments")
    if not isinstance(defaults, dict) or not isinstance(environments, dict):
        return dict(tables)
    laid = {name: _over(defaults, own) if isinstance(own, dict) else own for name, own in environments.items()}
    return {**tables, "environments": laid}


def _over(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    # An image is named or built: who writes one of both means this one.
    defaults = {key: value for key, value in defaults.items() if _INSTEAD.get(key) not in own}
    inner = {key: {**defaults[key], **own[key]} for key in own if _are_tables(defaults.get(key), own[key])}
    return {**defaults, **own, **inner}


def _are_tables(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def as_written(problem: Problem, tables: Mapping[str, Any]) -> Problem:
    """Return a problem of a whole environment with the key as it stands in the file: of its own, or of the defaults."""
    section, *rest = problem.key.split(".")
    if section != "environments" or len(rest) < 2:
        return problem
    written = tables.get(section, {}).get(rest[0])
    for at in range(1, len(rest)):
        if _has(written, rest[1 : at + 1]) or not _has(tables.get(SECTION), rest[1 : at + 1]):
            continue
        return replace(problem, key=".".join([SECTION, *rest[1:]]))
    return problem


def _has(table: object, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True
