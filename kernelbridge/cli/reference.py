"""Write the tables of keys and errors from the models and the error classes, and values as TOML has them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kernelbridge import errors
from kernelbridge.config import fields, schema
from kernelbridge.errors import KernelBridgeError, Problem

# The sections of the config, each with its model.
SECTIONS: Mapping[str, type[BaseModel]] = {"hosts": schema.Host, "environments": schema.Environment}


def _keys_of(kind: str) -> frozenset[str]:
    keyed = schema.Environment.model_fields.items()
    return frozenset(key for key, field in keyed if (field.title or "").startswith(kind))


SIZE_KEYS, TIME_KEYS = _keys_of("size"), _keys_of("time")


def of_keys() -> str:
    """Write every key of the config with kind, default and meaning, as a Markdown table."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            if key != "name":
                cells = (
                    f"`{section}.NAME.{key}`",
                    field.title or "",
                    default_text(key, field),
                    field.description or "",
                )
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def of_errors() -> str:
    """Write every error with its exit code, sentence and remedy, as a Markdown table; facts are in capitals."""
    lines = ["| exit code | what it says | what to do |", "|---|---|---|"]
    for error in sorted((example(kind) for kind in kinds()), key=lambda error: error.exit_code):
        cells = (str(error.exit_code), error.sentence, error.remedy)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").strip() for cell in cells) + " |")
    return "\n".join(lines)


def kinds() -> list[type[KernelBridgeError]]:
    """List every kind of error a user can meet."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, KernelBridgeError)]
    return [kind for kind in found if kind is not KernelBridgeError]


def example(kind: type[KernelBridgeError]) -> KernelBridgeError:
    """Make one error of this kind, with the names of its facts in place of facts."""
    facts: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            continue
        facts[name] = _placeholder(name, str(parameter.annotation))
    return kind(**facts)


def _placeholder(name: str, annotation: str) -> Any:
    if annotation == "float":
        return 60.0
    if "Problem" in annotation:
        return [Problem(key="KEY", sentence="PROBLEM")]
    if "Sequence" in annotation:
        return [name.upper()]
    return name.upper()


def default_text(key: str, field: FieldInfo) -> str:
    """Return a key's default as Markdown."""
    if field.is_required():
        return "required"
    return "not set" if field.default in (None, "") else f"`{toml(key, field.default)}`"


def toml(key: str, value: Any) -> str:
    """Write a value as the user would."""
    if key in SIZE_KEYS and isinstance(value, int):
        return json.dumps(fields.size_text(value))
    if key in TIME_KEYS and isinstance(value, float):
        return json.dumps(fields.duration_text(value))
    if isinstance(value, dict):
        pairs = ", ".join(f"{_toml_key(name)} = {toml('', one)}" for name, one in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml("", one) for one in value) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False)


def _toml_key(name: str) -> str:
    is_bare = name.replace("_", "").replace("-", "").isalnum() and name.isascii()
    return name if is_bare else json.dumps(name, ensure_ascii=False)


def mount_text(mount: schema.Mount) -> str:
    """Write a mount as the user does."""
    options = ",".join(filter(None, ("ro" if mount.read_only else "", mount.relabel)))
    return f"{mount.source}:{mount.target}" + (f":{options}" if options else "")
