"""The README's tables, made of the config's models and of errors.py, and values written as TOML writes them."""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kernelbridge import config, errors, gpu_errors, kernel_errors, values
from kernelbridge.errors import KernelBridgeError, Problem


def _keys_of(kind: str) -> frozenset[str]:
    fields = config.Environment.model_fields.items()
    return frozenset(key for key, field in fields if (field.title or "").startswith(kind))


SIZE_KEYS, TIME_KEYS = _keys_of("size"), _keys_of("time")


def of_keys() -> str:
    """Every key of the config with kind, default and meaning, as a Markdown table."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    sections: tuple[tuple[str, type[BaseModel]], ...] = (
        ("hosts.NAME", config.Host),
        ("environments.NAME", config.Environment),
    )
    for section, model in sections:
        for key, field in model.model_fields.items():
            if key != "name":
                cells = (f"`{section}.{key}`", field.title or "", _default(key, field), field.description or "")
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def of_errors() -> str:
    """Every error with its exit code, its sentence and its remedy, as a Markdown table; facts are in capitals."""
    lines = ["| exit code | what it says | what to do |", "|---|---|---|"]
    for error in sorted((example(kind) for kind in kinds()), key=lambda error: error.exit_code):
        cells = (str(error.exit_code), error.sentence, error.remedy)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").strip() for cell in cells) + " |")
    return "\n".join(lines)


def kinds() -> list[type[KernelBridgeError]]:
    """Every kind of error a user can meet."""
    named = [*vars(errors).values(), *vars(kernel_errors).values(), *vars(gpu_errors).values()]
    found = [kind for kind in named if isinstance(kind, type) and issubclass(kind, KernelBridgeError)]
    return [kind for kind in found if kind is not KernelBridgeError]


def example(kind: type[KernelBridgeError]) -> KernelBridgeError:
    """One error of this kind, with the names of its facts in place of facts."""
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


def _default(key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "not set" if field.default is None else f"`{toml(key, field.default)}`"


def toml(key: str, value: Any) -> str:
    """A value as the user would write it."""
    if key in SIZE_KEYS and isinstance(value, int):
        return json.dumps(values.size_text(value))
    if key in TIME_KEYS and isinstance(value, float):
        return json.dumps(values.duration_text(value))
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


def mount_text(mount: config.Mount) -> str:
    """A mount as the user writes it."""
    return f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")
