"""Write a host and an environment into a config's text, and leave the rest of it as it is, comments too. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import tomlkit
from tomlkit.items import InlineTable

from kernelbridge.errors import DOCUMENTATION

_FIRST_LINE: Final = f"# Every key: {DOCUMENTATION}/page/reference/configuration.html"
# Keys that most people want sooner or later; each as a comment.
_OFFERED: Final = (
    '# workspace = "."             # your project\'s folder in the container, with every change',
    '# mounts = ["/data:/data:ro"] # folders of the host',
    "# cache = true                # downloads of Hugging Face, torch, pip are kept on the host",
    '# wait = "4h"                 # wait for GPUs instead of failing',
)


def with_host(text: str, name: str, ssh: str) -> tuple[str, str]:
    """Return the text with a host, and the name that it has: its own where the ssh name is there already."""
    return _with_table(text, "hosts", name, {"ssh": ssh})


def with_host_keys(text: str, name: str, keys: Mapping[str, Any]) -> str:
    """Return the text with these keys in the table of a host that is there."""
    document = tomlkit.parse(text)
    hosts: Any = document["hosts"]
    for key, value in keys.items():
        hosts[name][key] = value
    return tomlkit.dumps(document)


def with_environment(text: str, name: str, keys: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text with an environment of these keys, and its name: one that has them already stays as it is."""
    return _with_table(text, "environments", name, keys, more=_OFFERED)


def _with_table(
    text: str, section: str, name: str, keys: Mapping[str, Any], *, more: tuple[str, ...] = ()
) -> tuple[str, str]:
    document = tomlkit.parse(text)
    tables: Any = document.get(section, {})
    for known, table in tables.items():
        if isinstance(table, Mapping) and all(table.get(key) == value for key, value in keys.items()):
            return text, str(known)
    free = next(one for one in (name, *(f"{name}-{number}" for number in range(2, 1000))) if one not in tables)
    if isinstance(tables, InlineTable):
        tables[free] = {**keys}
        return tomlkit.dumps(document), free
    header = f"[{section}.{tomlkit.key(free).as_string()}]"
    written = [f"{key} = {tomlkit.item(value).as_string()}" for key, value in keys.items()]
    return "\n".join([text.rstrip() or _FIRST_LINE, "", header, *written, *more, ""]), free
