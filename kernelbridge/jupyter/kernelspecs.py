"""Write, renew and remove the kernel.json of each environment; never one of somebody else's.

One file serves both: VS Code reads argv, Jupyter the provisioner.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from jupyter_core.paths import jupyter_data_dir

from kernelbridge.atomic_files import is_unfinished, write_whole
from kernelbridge.config import fields
from kernelbridge.config import load as configs
from kernelbridge.config.schema import Config, Environment, Host
from kernelbridge.errors import SpecsUnwritable

FOLDER_PREFIX: Final = "kernelbridge-"
SPEC_FILE: Final = "kernel.json"
LOGO_FILES: Final = ("logo-32x32.png", "logo-64x64.png", "logo-svg.svg")
LAUNCHER: Final = "kernelbridge-launch"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The kernel specs by what became of them, each by its folder's name."""

    written: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    # The name is taken by a folder that is not ours, or by another config's spec: left alone.
    foreign: tuple[str, ...] = ()


def default_root() -> Path:
    """Return the user's kernels folder: VS Code searches it always, and a virtual environment's only sometimes."""
    return Path(jupyter_data_dir()).absolute() / "kernels"


def launcher_path() -> Path:
    """Find where pip put the launcher's script: beside this Python, or in one of its script folders."""
    file_name = f"{LAUNCHER}.exe" if os.name == "nt" else LAUNCHER
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    with suppress(KeyError):  # This Python may know no place for a user's own scripts.
        folders.append(Path(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))))
    beside, *_ = folders
    found = (folder / file_name for folder in folders if (folder / file_name).exists())
    return next(found, beside / file_name).absolute()


def gpus_text(environment: Environment, hosts: Sequence[Host]) -> str:
    """Say what its kernels get: "1 free GPU of lab", "2 free GPUs (H200, 20g free) of lab or two, ..."."""
    # What is written for Slurm counts on its hosts alone.
    slurm = [host.name for host in hosts if host.scheduler and environment.gres]
    others = [host.name for host in hosts if host.name not in slurm]
    texts = [f"{environment.gres} of {' or '.join(slurm)}"] if slurm else []
    if not others or (environment.gpus == 0 and not slurm):
        return texts[0] if texts else "no GPU"
    waits = f", waits up to {fields.duration_text(environment.wait)}" if environment.wait else ""
    return ", ".join([f"{_request_text(environment)} of {' or '.join(others)}", *texts]) + waits


def _request_text(environment: Environment) -> str:
    needs = [environment.gpu_model] if environment.gpu_model else []
    needs += [f"{fields.size_text(environment.gpu_memory)} free"] if environment.gpu_memory else []
    match environment.gpus:
        case tuple():
            text = ", ".join(f"GPU {name}" for name in environment.gpus)
        case "all":
            text = "all GPUs"
        case fields.GpuRange(wanted=most, min=least):
            text = f"{least} to {most} free GPUs" if least < most else _count_text(most)
        case 0:
            return "no GPU"
        case number:
            text = _count_text(number)
    return text + (f" ({', '.join(needs)})" if needs else "")


def _count_text(number: int) -> str:
    return "1 free GPU" if number == 1 else f"{number} free GPUs"


def environment_spec(
    environment: Environment, *, display_name: str, gpus: str, config_path: Path, launcher: Path
) -> dict[str, Any]:
    """Write kernel.json of one environment; `gpus` is gpus_text()."""
    metadata: dict[str, Any] = {
        "debugger": environment.has_debugger,
        "kernel_provisioner": {
            "provisioner_name": "kernelbridge",
            "config": {"environment": environment.name, "config_path": str(config_path)},
        },
        # JupyterLab hands it to its launcher's cards, and shows it nowhere by itself; nor does VS Code.
        "kernelbridge": {"config": str(config_path), "gpus": gpus},
    }
    if environment.cull_idle_timeout > 0:  # For Jupyter 0 means at once.
        metadata["cull_idle_timeout"] = environment.cull_idle_timeout
    return {
        # VS Code puts any further word of argv into the kernel's name.
        "argv": [str(launcher), "-f", "{connection_file}"],
        "display_name": display_name,
        "language": "python",
        "interrupt_mode": "message",
        "env": {"KERNELBRIDGE_ENVIRONMENT": environment.name, "KERNELBRIDGE_CONFIG": str(config_path)},
        "metadata": metadata,
    }


def specs_of(config: Config, launcher: Path) -> dict[str, dict[str, Any]]:
    """Return kernel.json of each environment, by the name of its folder."""
    shown = configs.display_names(config)
    return {
        f"{FOLDER_PREFIX}{environment.name}": environment_spec(
            environment,
            display_name=shown[environment.name],
            gpus=gpus_text(environment, config.hosts_of(environment)),
            config_path=config.path,
            launcher=launcher,
        )
        for environment in config.environments.values()
    }


def write(config: Config, root: Path, launcher: Path) -> Changes:
    """Write the kernel spec of each environment under `root`, and remove all other specs of this config."""
    written: list[str] = []
    unchanged: list[str] = []
    foreign: list[str] = []
    for name, spec in specs_of(config, launcher).items():
        folder = root / name
        with _translated(folder):
            is_there = folder.exists()
        if is_there and not (_is_ours(folder, config.path) or _is_unfinished(folder)):
            foreign.append(folder.name)
            continue
        (written if renew_folder(folder, spec) else unchanged).append(folder.name)
    removed = remove_folders(root, config.path, keep={*written, *unchanged})
    return Changes(written=tuple(written), unchanged=tuple(unchanged), removed=tuple(removed), foreign=tuple(foreign))


def remove(root: Path, config_path: Path | None) -> Changes:
    """Remove all kernel specs of this config under `root`; those of every config where none is named."""
    return Changes(removed=tuple(remove_folders(root, config_path)))


def outdated(config: Config, root: Path, launcher: Path) -> list[str]:
    """Return the folders of environments whose spec is not what write() would leave there."""
    wanted = specs_of(config, launcher)
    return [name for name, spec in wanted.items() if _stale(root / name, spec)]


def renew_folder(folder: Path, spec: Mapping[str, Any]) -> bool:
    """Write this kernel.json and the logos where they differ; True if one of them did. Raises SpecsUnwritable."""
    with _translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stale = _stale(folder, spec)
        for name, content in stale.items():
            write_whole(folder / name, content, is_private=False)
    return bool(stale)


def _stale(folder: Path, spec: Mapping[str, Any]) -> dict[str, bytes]:
    """Return what each file should have that has not, in the order in which they are to be written."""
    contents = {
        name: resources.files("kernelbridge.jupyter").joinpath("logos", name).read_bytes() for name in LOGO_FILES
    }
    # kernel.json comes last: only with it is the folder a kernel spec.
    contents[SPEC_FILE] = (json.dumps(spec, indent=1, ensure_ascii=False) + "\n").encode()
    return {name: content for name, content in contents.items() if _content(folder / name) != content}


def remove_folders(root: Path, config_path: Path | None, *, keep: Collection[str] = ()) -> list[str]:
    """Remove this config's kernel specs in `root` but those to keep; return the folders. Raises SpecsUnwritable.

    Where no config is named, those of every config.
    """
    removed = []
    with _translated(root):
        folders = sorted(root.glob(f"{FOLDER_PREFIX}*"))
    for folder in folders:
        if folder.name in keep or not (_is_ours(folder, config_path) or _is_unfinished(folder)):
            continue
        with _translated(folder):
            # kernel.json goes last: as long as it is there, the folder is known for one of ours.
            left = [path.name for path in folder.iterdir() if is_unfinished(path.name)]
            for name in (*left, *LOGO_FILES, SPEC_FILE):
                (folder / name).unlink(missing_ok=True)
            # What somebody else put there stays, and the folder with it.
            with suppress(OSError):
                folder.rmdir()
        removed.append(folder.name)
    return removed


def _is_ours(folder: Path, config_path: Path | None) -> bool:
    """Whether the spec was written by us, for this config where one is named."""
    try:
        marker = json.loads((folder / SPEC_FILE).read_bytes())["metadata"]["kernelbridge"]["config"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False
    except OSError as error:
        raise SpecsUnwritable(path=str(folder), reason=error.strerror or str(error)) from error
    return bool(marker == str(config_path)) if config_path is not None else isinstance(marker, str)


def _is_unfinished(folder: Path) -> bool:
    """Whether there is nothing in it but what we write before, and remove before, the kernel.json of a spec."""
    with _translated(folder):
        return folder.is_dir() and all(path.name in LOGO_FILES or is_unfinished(path.name) for path in folder.iterdir())


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpecsUnwritable(path=str(folder), reason=error.strerror or str(error)) from error
