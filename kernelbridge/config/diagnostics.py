"""Turn pydantic's and tomllib's complaints into Problems in our words, and check across the tables of a config.

Works on the plain tables, so that one wrong value hides no other problem.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kernelbridge.config import engine_options, fields
from kernelbridge.errors import Problem


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one, if any is."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.55)
    return found[0] if found else None


def of_syntax(error: ValueError | RecursionError) -> Problem:
    """Say on which line TOML broke."""
    match = re.match(r"(?P<what>.*?) \(at (?P<where>.*)\)$", str(error))
    if match is None:
        return Problem(key="file", sentence=f"is not TOML: {error}")
    return Problem(key=match["where"], sentence=f"is not TOML: {match['what']}")


def of_unknown_tables(tables: Mapping[str, object], *, known: Iterable[str]) -> list[Problem]:
    """Complain about each table or key at the top of the file that we do not know."""
    return [_unknown((key,), known) for key in tables if key not in known]


def of_fields(
    error: ValidationError, *, model: type[BaseModel], at: tuple[str, ...], others: Mapping[str, str]
) -> list[Problem]:
    """Say in our words what pydantic found in one table; `others` are keys that belong elsewhere, and where."""
    found: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        problem = _of_field(detail, model, at, others)
        found.setdefault(problem.key, problem)
    return list(found.values())


def of_hosts(tables: Mapping[str, Any], *, default: str) -> list[Problem]:
    """Complain about hosts of environments that no table describes, and mounts of a host's own engine socket."""
    hosts = _tables(tables, "hosts")
    known = list(hosts) or [default]
    problems: list[Problem] = []
    for environment, table in _tables(tables, "environments").items():
        wanted = table.get("hosts")
        for index, name in enumerate(wanted if isinstance(wanted, list) else ()):
            if isinstance(name, str) and name not in known:
                problems.append(_unknown(("environments", environment, "hosts", str(index)), known, host=name))
        sockets = [host.get("socket") for host in hosts.values()]
        for index, mount in enumerate(_texts(table, "mounts")):
            if any(fields.holds(mount.split(":")[0], socket) for socket in sockets if isinstance(socket, str)):
                sentence = "the engine's socket may not be mounted: whoever has it is root on the host"
                problems.append(Problem(key=f"environments.{environment}.mounts.{index}", sentence=sentence))
    return problems


def of_display_names(tables: Mapping[str, Any]) -> list[Problem]:
    """Complain about two environments that look the same in a kernel picker; VS Code would drop one of them."""
    written = {name: table.get("display_name") for name, table in _tables(tables, "environments").items()}
    shown = fields.shown_names({name: text for name, text in written.items() if text is None or isinstance(text, str)})
    often = Counter(shown.values())
    return [
        Problem(
            key=f"environments.{name}.display_name",
            sentence=f'"{text}" is also the name of {_others(name, text, shown)}; a picker would show only one of them',
        )
        for name, text in shown.items()
        if often[text] > 1
    ]


def of_images(tables: Mapping[str, Any]) -> list[Problem]:
    """Complain about an environment with no image or two, and one that a Slurm cluster would have to build."""
    hosts = _tables(tables, "hosts")
    problems: list[Problem] = []
    for environment, table in _tables(tables, "environments").items():
        key = f"environments.{environment}"
        if "build" not in table:
            if "image" not in table:
                sentence = "is missing; expected: image name, or `build` in its place"
                problems.append(Problem(key=f"{key}.image", sentence=sentence))
            continue
        if "image" in table:
            problems.append(Problem(key=f"{key}.build", sentence="may not be set beside `image`; remove one of both"))
        clusters = [name for name in _texts(table, "hosts") or hosts if "scheduler" in hosts.get(name, {})]
        if clusters:
            sentence = f"does not work on {clusters[0]}, a Slurm cluster; set `image` to one that its nodes can pull"
            problems.append(Problem(key=f"{key}.build", sentence=sentence))
    return problems


def of_variables(tables: Mapping[str, Any]) -> list[Problem]:
    """Complain about a variable that an environment takes from two places."""
    problems: list[Problem] = []
    for environment, table in _tables(tables, "environments").items():
        env = table.get("env")
        sources = {
            "env": list(env) if isinstance(env, dict) else [],
            "pass_env": _texts(table, "pass_env"),
            "secrets": _texts(table, "secrets"),
        }
        often = Counter(name for names in sources.values() for name in names)
        problems += [
            Problem(
                key=f"environments.{environment}.{next(key for key in reversed(sources) if name in sources[key])}",
                sentence=f"{name} is set in more than one of env, pass_env and secrets",
            )
            for name, count in often.items()
            if count > 1
        ]
    return problems


def of_engine_options(tables: Mapping[str, Any]) -> list[Problem]:
    """Complain about what of the engine's own options would break a promise, or is not the engine's."""
    problems: list[Problem] = []
    for environment, table in _tables(tables, "environments").items():
        allows_unsafe, written = table.get("allow_unsafe") is True, table.get("engine_config")
        found: list[engine_options.Found] = []
        if not allows_unsafe:
            found += engine_options.unsafe_options(_texts(table, "devices"), _texts(table, "security_opt"))
        if isinstance(written, dict):
            network = str(table.get("network", "bridge"))
            refused = engine_options.engine_config_problems(written, network=network, allows_unsafe=allows_unsafe)
            found += [(f"engine_config.{key}", sentence) for key, sentence in refused]
        problems += [Problem(key=f"environments.{environment}.{key}", sentence=sentence) for key, sentence in found]
    return problems


def _tables(tables: Mapping[str, Any], section: str) -> dict[str, dict[str, Any]]:
    written = tables.get(section)
    found = written.items() if isinstance(written, dict) else ()
    return {name: table for name, table in found if isinstance(table, dict)}


def _texts(table: Mapping[str, Any], key: str) -> list[str]:
    written = table.get(key)
    return [text for text in written if isinstance(text, str)] if isinstance(written, list) else []


def _others(name: str, text: str, shown: Mapping[str, str]) -> str:
    return ", ".join(other for other in shown if other != name and shown[other] == text)


def _unknown(keys: tuple[str, ...], known: Iterable[str], *, host: str | None = None) -> Problem:
    near = nearest(host or keys[-1], known)
    hint = f"; did you mean `{near}`?" if near else ""
    return Problem(key=".".join(keys), sentence=(f"there is no host `{host}`" if host else "unknown key") + hint)


def _of_field(detail: ErrorDetails, model: type[BaseModel], at: tuple[str, ...], others: Mapping[str, str]) -> Problem:
    where = [str(part).strip() for part in detail["loc"] if part != "[key]"]
    key = ".".join((*at, *where))
    if where == ["name"] and detail["type"] != "extra_forbidden":
        # The name is the table's own, so the complaint is about the table.
        key = ".".join(at)
    field = model.model_fields.get(where[0]) if where else None
    if detail["type"] == "extra_forbidden" and len(where) > 1 and field is not None:
        return _unknown((*at, *where), _inner_keys(field.annotation))
    if detail["type"] == "extra_forbidden":
        known = [name for name in model.model_fields if name != "name"]
        elsewhere = None if nearest(where[-1], known) else nearest(where[-1], others)
        if elsewhere:
            return Problem(key=key, sentence=f"unknown key; did you mean `{elsewhere}` of {others[elsewhere]}?")
        return _unknown((*at, *where), known)
    wanted = f"expected: {field.title if field else 'another value'}{_limit(detail)}"
    if detail["type"] == "missing":
        return Problem(key=key, sentence=f"is missing; {wanted}")
    if detail["type"] == "value_error":
        return Problem(key=key, sentence=str(detail["ctx"]["error"]))
    return Problem(key=key, sentence=f"is not a valid value for this key; {wanted}")


def _inner_keys(annotation: object) -> list[str]:
    """Return the keys of the tables that a key may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return [key for inner in get_args(annotation) for key in _inner_keys(inner)]


def _limit(detail: ErrorDetails) -> str:
    """Return the limit that a number passed, where pydantic says it."""
    words = {"gt": "above", "ge": "at least", "le": "at most"}
    return "".join(f", {words[name]} {limit:.10g}" for name, limit in detail.get("ctx", {}).items() if name in words)
