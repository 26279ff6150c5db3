"""Say what every container may not do, whether an engine's API or a command line makes it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from kernelbridge.config import fields
from kernelbridge.config.container_paths import RUN_FOLDER
from kernelbridge.config.schema import Environment

DROPPED_CAPABILITIES: Final = "ALL"
SECURITY_OPTION: Final = "no-new-privileges"
# Of RUN_FOLDER, which every user of the container writes to.
RUN_FOLDER_OPTIONS: Final = "rw,nosuid,nodev,mode=1777,size=64m"
# Of the environment's `tmpfs`, and of /tmp where the image's own cannot be written to; programs are compiled and run
# there.
TEMPORARY_FOLDER: Final = "/tmp"  # noqa: S108
TEMPORARY_FOLDER_OPTIONS: Final = "rw,exec,nosuid,nodev,mode=1777"
# Start lines and fatal ones only; the relay keeps what the kernel prints.
LOG_DRIVER: Final = "local"
LOG_OPTIONS: Final[Mapping[str, str]] = {"max-size": "4m", "max-file": "2"}
# Podman knows no `local`, and keeps one file.
_PODMAN_LOG_DRIVER: Final = "k8s-file"


def log_config(*, is_podman: bool = False) -> dict[str, Any]:
    """Return how an engine keeps what the container's main process says, in the words of its API."""
    if is_podman:
        return {"Type": _PODMAN_LOG_DRIVER, "Config": {"max-size": LOG_OPTIONS["max-size"]}}
    return {"Type": LOG_DRIVER, "Config": dict(LOG_OPTIONS)}


def ulimits(environment: Environment) -> dict[str, tuple[int, int]]:
    """Return the soft and the hard limit of each resource that is limited."""
    # A core file holds every secret that was in memory, and the engine's own limit is often infinity.
    core = {} if environment.core_dumps else {"core": (0, 0)}
    return {**core, **dict(sorted(environment.ulimits.items()))}


def security_options(environment: Environment) -> list[str]:
    """Return the options of the kernel's security modules: ours, and what the environment adds or takes away."""
    written = list(environment.security_opt)
    has_own = any(text.startswith(SECURITY_OPTION) for text in written)
    return written if has_own else [SECURITY_OPTION, *written]


def memory_folders(environment: Environment, mounted: Collection[str]) -> dict[str, str]:
    """Return the folders that are in memory, with their options; `mounted` is what lies elsewhere already."""
    needs_temporary = environment.read_only and TEMPORARY_FOLDER not in mounted
    temporary = {TEMPORARY_FOLDER: TEMPORARY_FOLDER_OPTIONS} if needs_temporary else {}
    written = {
        target: TEMPORARY_FOLDER_OPTIONS + ("" if size_bytes is None else f",size={size_bytes}")
        for target, size_bytes in map(fields.parse_tmpfs, environment.tmpfs)
    }
    return {RUN_FOLDER: RUN_FOLDER_OPTIONS, **temporary, **written}
