"""Kernel specs of kernels that run and that nobody holds: VS Code offers them, and joins by its launcher.

VS Code looks for `**/kernel.json` below each kernels folder, Jupyter only in the folders right below it. One folder
deeper these specs are VS Code's alone: Jupyter Server takes such kernels up by itself, and would start a second one.
The lasting specs: kernelspecs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from kernelbridge import config as configs
from kernelbridge.config import Config
from kernelbridge.kernelspecs import Changes, remove_folders, renew_folder
from kernelbridge.processes import is_alive
from kernelbridge.records import KernelRecord, Records

# No environment's spec is called so: their names have no dot.
FOLDER: Final = "kernelbridge.running"
PREFIX: Final = "kernelbridge-running-"
KERNEL_VARIABLE: Final = "KERNELBRIDGE_KERNEL"
SHORT_ID_LENGTH: Final = 8
_SHORT_UUID_LENGTH: Final = 12
_HOUR_SECONDS: Final = 3600


def renew(records: Records, config: Config, root: Path, launcher: Path, now: float) -> Changes:
    """Each kernel that VS Code may join has a spec below `root`, and no other does. Raises SpecsUnwritable.

    `now` is wall clock. Cheap enough for a timer: nothing is written where nothing changed.
    """
    folder = root / FOLDER
    found = listed(records.kernels(), config)
    names = display_names(found, config, now)
    written: list[str] = []
    unchanged: list[str] = []
    for record in found:
        name = PREFIX + record.kernel_id[:SHORT_ID_LENGTH]
        spec = kernel_json(record, display_name=names[record.kernel_id], config=config, launcher=launcher)
        (written if renew_folder(folder / name, spec) else unchanged).append(name)
    removed = _remove(root, config.path, keep=(*written, *unchanged))
    return Changes(written=tuple(written), unchanged=tuple(unchanged), removed=tuple(removed))


def remove(root: Path, config_path: Path) -> Changes:
    """No spec of a running kernel of this config is below `root` any more. Raises SpecsUnwritable."""
    return Changes(removed=tuple(_remove(root, config_path)))


def _remove(root: Path, config_path: Path, keep: Iterable[str] = ()) -> list[str]:
    folder = root / FOLDER
    removed = remove_folders(folder, config_path, keep=tuple(keep))
    if removed and not any(folder.iterdir()):
        folder.rmdir()
    return removed


def listed(
    records: Iterable[KernelRecord], config: Config, *, is_held: Callable[[str], bool] = is_alive
) -> list[KernelRecord]:
    """Return the kernels that VS Code left running, or lost, and that nobody holds now."""
    return [
        record
        for record in records
        if record.config == str(config.path)
        and record.persist
        and not record.server
        and not record.stop_wanted
        and record.environment in config.environments
        and record.host in config.hosts
        and not is_held(record.process)
    ]


def display_names(records: Iterable[KernelRecord], config: Config, now: float) -> dict[str, str]:
    """Return what the picker shows, by kernel id; no two are the same: VS Code would drop one."""
    shown = configs.display_names(config)
    names: dict[str, str] = {}
    for record in records:
        facts = (record.title, gpus_text(record.gpus), age_text(now - record.started))
        name = ", ".join([f"{shown[record.environment]} running on {record.host}", *(fact for fact in facts if fact)])
        is_taken = name in names.values()
        names[record.kernel_id] = f"{name}, {record.kernel_id[:SHORT_ID_LENGTH]}" if is_taken else name
    return names


def gpus_text(gpus: Sequence[str]) -> str:
    """Name the one GPU as `kernelbridge ps` does, count several; empty where none is known."""
    return f"{len(gpus)} GPUs" if len(gpus) > 1 else "".join(gpus)[:_SHORT_UUID_LENGTH]


def age_text(seconds: float) -> str:
    """Return an age in whole hours or days: a spec that changed by the minute would be another one for VS Code."""
    hours = int(seconds // _HOUR_SECONDS)
    if hours < 1:
        return "less than 1 h"
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"


def kernel_json(record: KernelRecord, *, display_name: str, config: Config, launcher: Path) -> dict[str, Any]:
    """Return what kernel.json says of one kernel that runs."""
    path = str(config.path)
    # Shown by no picker; in words, as in the lasting specs.
    gpus = {"gpus": ", ".join(record.gpus)} if record.gpus else {}
    return {
        "argv": [str(launcher), "-f", "{connection_file}"],
        "display_name": display_name,
        "language": "python",
        "interrupt_mode": "message",
        "env": {
            "KERNELBRIDGE_ENVIRONMENT": record.environment,
            "KERNELBRIDGE_CONFIG": path,
            KERNEL_VARIABLE: record.kernel_id,
        },
        "metadata": {
            "debugger": config.environment(record.environment).has_debugger,
            "kernelbridge": {"config": path, "kernel": record.kernel_id, **gpus},
        },
    }
