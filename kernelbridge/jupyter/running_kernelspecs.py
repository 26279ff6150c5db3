"""Write kernel specs of kernels that run and that nobody holds: VS Code offers them, and joins by its launcher.

VS Code looks for `**/kernel.json` below each kernels folder, Jupyter only in the folders right below it. One folder
deeper these specs are VS Code's alone: Jupyter Server takes such kernels up by itself, and would start a second one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from kernelbridge.config import load as configs
from kernelbridge.config.schema import Config
from kernelbridge.fleet.left_kernels import left_running
from kernelbridge.jupyter import kernelspecs
from kernelbridge.jupyter.kernelspecs import Changes, remove_folders, renew_folder
from kernelbridge.kernel.records import KernelRecord, Records

# No environment's spec is called so: their names have no dot.
RUNNING_FOLDER: Final = "kernelbridge.running"
RUNNING_PREFIX: Final = "kernelbridge-running-"
KERNEL_VARIABLE: Final = "KERNELBRIDGE_KERNEL"
_NAME_ID_LENGTH: Final = 8
_SHORT_UUID_LENGTH: Final = 12
_HOUR_SECONDS: Final = 3600


def renew(records: Records, config: Config, root: Path, launcher: Path, now: float) -> Changes:
    """Write a spec below `root` for each kernel that VS Code may join, and remove the others. Raises SpecsUnwritable.

    `now` is wall clock. Cheap enough for a timer: nothing is written where nothing changed.
    """
    folder = root / RUNNING_FOLDER
    found, elsewhere = left_running(records.kernels(), config, records.holder_liveness)
    names = picker_names(found, config, now)
    written: list[str] = []
    unchanged: list[str] = []
    for record in found:
        name = _spec_name(record)
        spec = running_spec(record, display_name=names[record.kernel_id], config=config, launcher=launcher)
        (written if renew_folder(folder / name, spec) else unchanged).append(name)
    # What another machine has written of its kernels is that machine's: two would take turns.
    removed = _remove(root, config.path, keep=(*written, *unchanged, *map(_spec_name, elsewhere)))
    return Changes(written=tuple(written), unchanged=tuple(unchanged), removed=tuple(removed))


def offer(records: Records, config: Config) -> Changes:
    """Let VS Code's picker show the kernels that run and that nobody holds, as they are now. Raises SpecsUnwritable."""
    return renew(records, config, kernelspecs.default_root(), kernelspecs.launcher_path(), time.time())


def remove(root: Path, config_path: Path | None) -> Changes:
    """Remove all specs of running kernels of this config, or of every one, below `root`. Raises SpecsUnwritable."""
    return Changes(removed=tuple(_remove(root, config_path)))


def _remove(root: Path, config_path: Path | None, keep: Iterable[str] = ()) -> list[str]:
    folder = root / RUNNING_FOLDER
    removed = remove_folders(folder, config_path, keep=tuple(keep))
    if removed:
        # Unless another process has written there meanwhile.
        with contextlib.suppress(OSError):
            folder.rmdir()
    return removed


def _spec_name(record: KernelRecord) -> str:
    return RUNNING_PREFIX + record.kernel_id[:_NAME_ID_LENGTH]


def picker_names(records: Iterable[KernelRecord], config: Config, now: float) -> dict[str, str]:
    """Return what the picker shows, by kernel id; no two are the same: VS Code would drop one."""
    shown = configs.display_names(config)
    names: dict[str, str] = {}
    for record in records:
        facts = (record.title, _gpu_names(record.gpus), age_text(now - record.started))
        name = ", ".join([f"{shown[record.environment]} running on {record.host}", *(fact for fact in facts if fact)])
        is_taken = name in names.values()
        names[record.kernel_id] = f"{name}, {record.kernel_id[:_NAME_ID_LENGTH]}" if is_taken else name
    return names


def _gpu_names(gpus: Sequence[str]) -> str:
    """Name the one GPU as `kernelbridge ps` does, count several; empty where none is known."""
    return f"{len(gpus)} GPUs" if len(gpus) > 1 else "".join(gpus)[:_SHORT_UUID_LENGTH]


def age_text(seconds: float) -> str:
    """Return an age in whole hours or days: a spec that changed by the minute would be another one for VS Code."""
    hours = int(seconds // _HOUR_SECONDS)
    if hours < 1:
        return "less than 1 h"
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"


def running_spec(record: KernelRecord, *, display_name: str, config: Config, launcher: Path) -> dict[str, Any]:
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
