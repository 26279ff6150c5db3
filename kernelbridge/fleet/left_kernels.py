"""Choose which kernel a start takes up instead of making one, and say what became of its container. Pure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from kernelbridge.config.schema import BUILT_PREFIX, Config, Environment
from kernelbridge.hosts.labels import short_id
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.recipe import changed_keys, recipe, words
from kernelbridge.kernel.records import KernelRecord

# With what a start time may be off: Linux knows that of the boot in whole seconds.
RESTART_SECONDS = 4.0


def left_running(
    records: Iterable[KernelRecord], config: Config, liveness: Callable[[KernelRecord], Liveness]
) -> tuple[list[KernelRecord], list[KernelRecord]]:
    """Return the kernels that VS Code left running, or lost, and that nobody holds now; and those that others may.

    Of the latter nobody knows here whether their holder, a process of another machine, has ended.
    """
    joinable = [
        record
        for record in records
        if record.config == str(config.path)
        and record.persist
        and not record.server
        and not record.kind
        and not (record.stop_wanted or record.is_ending)
        and record.environment in config.environments
        and record.host in config.hosts
    ]
    free = [record for record in joinable if liveness(record) is Liveness.ENDED]
    return free, [record for record in joinable if liveness(record) is Liveness.UNKNOWN]


def is_restart(left: KernelRecord, started: float) -> bool:
    """Whether a launcher that was started then (wall clock) is the restart of what was left under its claim.

    An editor starts it in the same moment. One of a kernel that persists that comes later is the notebook, opened
    again: what runs is to run on.
    """
    return not left.persist or started - (left.left or 0.0) < RESTART_SECONDS


def of_notebook(records: Iterable[KernelRecord], environment: str, notebook: str) -> list[KernelRecord]:
    """Return those of one environment that ran for one notebook; one without a whole path is none."""
    if not os.path.isabs(notebook):  # noqa: PTH117 - no Path of another system's
        return []
    return [
        record
        for record in records
        if record.environment == environment and _plain(record.notebook) == _plain(notebook)
    ]


def _plain(path: str) -> str:
    return os.path.normcase(os.path.normpath(path)) if path else ""


def changes(record: KernelRecord, config: Config, *, with_process: bool) -> list[str]:
    """Return the keys of the config that a kernel's container was not made by; none where that is not known.

    `with_process` if its kernel process is not started anew either.
    """
    if not record.recipe:
        return []
    now = recipe(config.environment(record.environment), config.host(record.host))
    return changed_keys(record.recipe, now, with_process=with_process)


def as_made(record: KernelRecord, environment: Environment) -> Environment:
    """Return the environment with what a container is reached by, and kept by, as it was when it was made."""
    return environment.model_copy(update={"image": record.image, "python": record.python, "persist": record.persist})


def new_text(record: KernelRecord, keys: list[str], *, image: str = "") -> str:
    """Say that a restart made a new container; `image` if there is, or is to be built, another one of that name now."""
    why = _why(record, keys, image)
    return f"this is a new container, because {why}; files in the old one are gone, unless they were in a mount"


def old_text(record: KernelRecord, keys: list[str], *, image: str = "") -> str:
    """Say that a kernel is in the container that it had, although another one is wanted by now."""
    why = _why(record, keys, image)
    ends = f"`kernelbridge stop {short_id(record.kernel_id)}` ends it, and the next start makes a new one"
    return f"this is still the old container, although {why}, because the kernel persists; {ends}"


def _why(record: KernelRecord, keys: list[str], image: str) -> str:
    if keys:
        return f"{words(keys)} changed in kernelbridge.toml"
    is_built = image.startswith(BUILT_PREFIX)
    return "what its image is built of has changed" if is_built else f"{record.host} has a newer {image} now"


def joined_text(record: KernelRecord) -> str:
    """Say that a start has taken up the notebook's kernel."""
    return f"this is the kernel that {record.title} left running on {record.host}; its variables are still there"


def ended_text(record: KernelRecord) -> str:
    """Say that the notebook's kernel has ended, and that another one was started."""
    prints = f"`kernelbridge logs {short_id(record.kernel_id)} --output` prints what it said"
    return f"this is a new kernel, because the one that {record.title} left on {record.host} has ended; {prints}"


def several_text(records: list[KernelRecord]) -> str:
    """Say that none of several kernels was taken up."""
    names = " and ".join(short_id(record.kernel_id) for record in records)
    return f"this is a new kernel; {names} run for this notebook too: choose one in the kernel picker to go on with it"
