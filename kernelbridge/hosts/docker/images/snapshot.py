"""Write what an image says of itself that is made of a kernel's container: what its own image said, less what is ours.

Pure. An engine lets nothing of the container's own settings go at a commit, so ours are overwritten: a label and a
variable without a value say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from kernelbridge.hosts.docker.responses import read_object, read_text, read_texts
from kernelbridge.hosts.labels import LABEL_PREFIX

_PART: Final = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
_NAME: Final = re.compile(
    rf"(?P<name>([a-zA-Z0-9.-]+(:[0-9]+)?/)?{_PART}(/{_PART})*)(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?"
)
# Of variables that the engine was given for a kernel, the one whose lack would mean something: every card.
_NO_CARDS: Final = {"NVIDIA_VISIBLE_DEVICES": "void"}


def split_name(name: str) -> tuple[str, str] | None:
    """Take an image's name apart, into its repository and tag; None if it is none."""
    match = _NAME.fullmatch(name)
    return (match["name"], match["tag"] or "latest") if match else None


def commit_config(container: Mapping[str, Any], base: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """Write the body of POST /commit. `container` and `base` are the engine's Config of it, and of its image.

    Raises: ValueError.
    """
    entrypoint, command = base.get("Entrypoint") or [], base.get("Cmd") or []
    given, own = _variables(container), _variables(base)
    env = {**{name: _NO_CARDS.get(name, "") for name in given}, **own}
    ours = [key for key in read_texts(container.get("Labels"), "Labels") if key.startswith(LABEL_PREFIX)]
    said: dict[str, Any] = {
        "Env": [f"{name}={text}" for name, text in env.items()],
        "Entrypoint": entrypoint,
        # Without either, the container's own command would stay.
        "Cmd": command or ([] if entrypoint else ["sh"]),
        "User": read_text(base.get("User"), "User") or "0",
        "WorkingDir": read_text(base.get("WorkingDir"), "WorkingDir") or "/",
        "Labels": {**dict.fromkeys(ours, ""), **labels},
    }
    return {**said, "Healthcheck": base["Healthcheck"]} if base.get("Healthcheck") else said


def _variables(config: Mapping[str, Any]) -> dict[str, str]:
    pairs = (read_text(line, "Env").partition("=") for line in config.get("Env") or [])
    return {name: value for name, _, value in pairs}


def config_of(answer: object) -> Mapping[str, Any]:
    """Return the Config of a container or an image as the engine describes it. Raises: ValueError."""
    return read_object(read_object(answer, "the answer").get("Config"), "Config")
