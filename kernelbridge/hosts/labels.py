"""Name a kernel's container and the volumes that are ours; write its labels and read them back. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

NAME_PREFIX: Final = "kernelbridge-"
LABEL_PREFIX: Final = "kernelbridge."
# All containers of ours carry it, so it is what a listing asks the engine for.
KERNEL_LABEL: Final = LABEL_PREFIX + "kernel"
# For people: `login@machine`.
USER_LABEL: Final = LABEL_PREFIX + "user"
IMAGE_LABEL: Final = LABEL_PREFIX + "image"
# One named volume per engine with a folder for each card, on which the relay that has the card holds a lock.
LOCKS_VOLUME: Final = "kernelbridge-locks"
# Of a container that brings folders into volumes and is never started: of which kernel's start it was.
LOCKS_LABEL: Final = LABEL_PREFIX + "locks"
# Containers in which an image is looked into or made are named so, and say which process works in them.
WORK_PREFIX: Final = NAME_PREFIX + "work-"
WORK_LABEL: Final = LABEL_PREFIX + "work"
# Of an image that was made of a kernel: which installation made it.
SNAPSHOT_LABEL: Final = LABEL_PREFIX + "snapshot"
# Of an image that was built for an environment: a hash of all it was built of.
BUILD_LABEL: Final = LABEL_PREFIX + "build"
# As the engine's names are, less what a path could be made of: files are named for a kernel.
_KERNEL_ID: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_SHORT_ID_LENGTH: Final = 12
# What containers of the first release do not have.
_LATER_FIELDS: Final = frozenset(("birth", "python", "unsafe", "kind"))


def short_id(kernel_id: str) -> str:
    """Return as much of a kernel's id as people are shown, by which they may name it."""
    return kernel_id[:_SHORT_ID_LENGTH]


def container_name(kernel_id: str) -> str:
    """Name the container. The engine gives a name once, so two starts cannot make one kernel twice."""
    return NAME_PREFIX + kernel_id


def config_mark(config_path: object) -> str:
    """Make a mark that stands for a config file's path in labels, where no text of the user's may be."""
    return hashlib.sha256(str(config_path).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Everything that list, attach and clean know of a kernel; cannot change after the container was made."""

    kernel: str
    environment: str
    # Which installation made it: the machine's own id.
    owner: str
    # Which process started it; see kernel/process_mark.py.
    process: str = ""
    birth: str = ""
    # For people: `login@machine`. Information, not protection.
    user: str = ""
    # The environment's own; the container may be made of one that was made of it.
    image: str = ""
    # The command or path in the container by which its relay runs, and others reach it.
    python: str = ""
    version: str = ""
    # See config_mark().
    config: str = ""
    # UUIDs joined by commas.
    gpus: str = ""
    # Seconds for which the container is kept after it ended by itself.
    keep_exited: str = ""
    # `true` where its environment allows what takes protections away; see `allow_unsafe`.
    unsafe: str = ""
    # `run` for a user's command in the place of a kernel, `up` for a container that waits; empty for a kernel.
    kind: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return all our keys, the empty ones too: a key that we leave out could come from the image."""
        return {LABEL_PREFIX + field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def parse_labels(name: str, labels: Mapping[str, str]) -> Labels | None:
    """Read our labels back; None if the container is not ours. Images and their copies carry labels too, not names."""
    kernel_id = labels.get(KERNEL_LABEL, "")
    keys = {field.name: LABEL_PREFIX + field.name for field in dataclasses.fields(Labels)}
    # The engine writes names with a slash in front.
    is_named_so = name.removeprefix("/") == container_name(kernel_id)
    lacking = {field_name for field_name, key in keys.items() if key not in labels}
    if not re.fullmatch(_KERNEL_ID, kernel_id) or ".." in kernel_id or not is_named_so or lacking - _LATER_FIELDS:
        return None
    return Labels(**{field_name: labels[key] for field_name, key in keys.items() if field_name not in lacking})
