"""Take secrets out of what goes into a log or a report, and names of people and machines where that is wanted. Pure.

What is known to hold secrets is never written in the first place; this is for what others say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from kernelbridge.config.schema import Config

HIDDEN_VALUE: Final = "***"
_NAMES = (
    r"pass(?:word|wd|phrase)|pass(?![a-z_])|pwd|secret|token|(?:api|access|private)[_-]?key|credentials?"
    r"|auth(?:orization)?(?![a-z])"
)
_RULES: Final = (
    (re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL), HIDDEN_VALUE),
    # The user and password of an address. Of ssh's the login alone is none.
    (re.compile(r"\b(ssh://[^\s/@:]+):[^\s/@]*@", re.IGNORECASE), rf"\1:{HIDDEN_VALUE}@"),
    (re.compile(r"\b((?!ssh://)[a-z][a-z0-9+.-]*://)[^\s/@\"']+@", re.IGNORECASE), rf"\1{HIDDEN_VALUE}@"),
    # NAME=value, "name": "value", --name value, also where the name is only a part of it.
    (
        re.compile(
            rf"((?<![a-z])[\w.-]*(?:{_NAMES})[\w.-]*[\"']?\s*(?:=|:)\s*)"
            r"(\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|(?:bearer|basic)\s+\S+|[^\s,;\"'{}\[\])]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN_VALUE}",
    ),
    (re.compile(rf"(--[\w-]*(?:{_NAMES})[\w-]*\s+)[^\s-]\S*", re.IGNORECASE), rf"\1{HIDDEN_VALUE}"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN_VALUE}"),
    # As their makers mark them: GitHub, GitLab, Hugging Face, OpenAI and its like, Slack, AWS, Google, PyPI, W&B; JWT.
    (
        re.compile(
            r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_\w{20,}|sk-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
            r"|A(?:KI|SI)A[0-9A-Z]{16}|AIza[\w-]{30,}|pypi-[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)"
        ),
        HIDDEN_VALUE,
    ),
)
# Keys of an environment whose values may be anything; of tables the names stay.
_OPAQUE_KEYS: Final = frozenset({"env", "labels", "engine_config", "sysctls", "setup", "sbatch_args"})
_ADDRESS: Final = re.compile(r"(?<![\w.])(?!127\.0\.0\.1\b|0\.0\.0\.0\b)\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\.\d)(?!\w)")
_ADDRESS_6: Final = re.compile(r"(?<![\w:])(?!::1\b)(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE)
# Shorter names are parts of too much else, and say too little.
_LEAST_NAME_LENGTH: Final = 3
# Registries that are everybody's.
_PUBLIC: Final = ("docker.io", "ghcr.io", "nvcr.io", "quay.io", "gcr.io", "mcr.microsoft.com", "public.ecr.aws")


def redacted(text: str) -> str:
    """Return a text without what looks like a secret."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def redacted_config(config: Config) -> str:
    """Return what the user wrote in a config: of values that may be secret, or code, the names alone."""
    lines = [f"# {config.path}"]
    for section, tables in (("hosts", config.hosts), ("environments", config.environments)):
        for name, table in tables.items():
            lines.append(f"\n[{section}.{name}]")
            lines += [f"{key} = {_shown(key, value)}" for key, value in _written(table).items()]
    return redacted("\n".join(lines))


def _written(table: BaseModel) -> dict[str, Any]:
    return {key: getattr(table, key) for key in type(table).model_fields if key in table.model_fields_set - {"name"}}


def _shown(key: str, value: Any) -> str:
    if isinstance(value, BaseModel):
        value = _written(value)
    if isinstance(value, Mapping):
        inside = "env" if key in _OPAQUE_KEYS else ""
        pairs = (f"{name} = {_shown('env' if name == 'args' else inside, one)}" for name, one in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if key in _OPAQUE_KEYS:
        return f"{HIDDEN_VALUE} ({len(value)} of them)" if isinstance(value, list | tuple) else HIDDEN_VALUE
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown('', one) for one in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


class Names:
    """The names of people and machines, and what stands for each: the same throughout one text."""

    def __init__(self, config: Config | None, *, home: Path, login: str, machine: str) -> None:
        # What is replaced, the longest first.
        self._instead: dict[str, str] = {}
        self._add([str(home)], "~")
        self._add([login], "LOGIN")
        self._add([machine, machine.partition(".")[0]], "THIS-MACHINE")
        for number, (name, host) in enumerate((config.hosts if config else {}).items(), 1):
            user, _, address = host.ssh.removeprefix("ssh://").rpartition("@")
            bare = address.partition("/")[0].rpartition(":")[0] or address.partition("/")[0]
            self._add([user.partition(":")[0]], f"LOGIN-{number}")
            self._add([bare, *([] if host.is_local else [name])], f"HOST-{number}")
        images = (environment.image for environment in (config.environments if config else {}).values())
        private = [first for image in images if "." in (first := image.partition("/")[0]) and first not in _PUBLIC]
        for number, registry in enumerate(dict.fromkeys(private), 1):
            self._add([registry, registry.partition(":")[0]], f"REGISTRY-{number}")

    def __repr__(self) -> str:
        return f"<Names, {len(self._instead)} of them>"

    def _add(self, names: Iterable[str], instead: str) -> None:
        for name in names:
            if len(name) >= _LEAST_NAME_LENGTH and name not in ("local", "localhost", "root"):
                self._instead.setdefault(name, instead)

    def masked(self, text: str) -> str:
        """Return a text without the names, and without addresses of machines."""
        for name in sorted(self._instead, key=len, reverse=True):
            # What stands for it has no backslash, which would mean something here.
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", self._instead[name], text)
        text = _ADDRESS.sub("ADDRESS", text)
        return _ADDRESS_6.sub("ADDRESS", text)


def without_lines(lines: Sequence[str], count: int) -> list[str]:
    """Return the last lines, and a word for those before them."""
    left_out = len(lines) - count
    return [f"({left_out:,} lines before these)", *lines[-count:]] if left_out > 0 else list(lines)
