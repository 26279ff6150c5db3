"""Look at what this machine has of kernelbridge: its Python, config, cache, kernel specs, launcher and extension."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_config_path
from jupyter_server.extension.config import ExtensionConfigManager

from kernelbridge.config import load
from kernelbridge.config.schema import Config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.doctor.finding import Finding, LinkName, LinkState, Tell
from kernelbridge.jupyter import kernelspecs
from kernelbridge.kernel.records import Records

EXTENSION: Final = "kernelbridge"
_INSTALL: Final = "Run `kernelbridge install`."
_REINSTALL: Final = "Install kernelbridge again, then run `kernelbridge install`."
# It refuses to start without a connection file, at once: see entry.py.
_REFUSAL_CODE: Final = 2
_LAUNCHER_SECONDS: Final = 20.0
_SPEC_LINKS: Final = (LinkName.SPECS, LinkName.IN_JUPYTER, LinkName.IN_VSCODE)
_FIX_CACHE: Final = "`kernelbridge doctor --fix` throws that away; it is made anew when it is needed."


def examine(
    config_path: Path, tell: Tell, *, root: Path, launcher: Path, records: Records, environ: Mapping[str, str]
) -> Config | None:
    """Tell of all links of this machine; return the config, None if it is broken.

    `root` is the folder of kernel specs, `launcher` what they start.
    """

    def look(step: Callable[[], Finding]) -> bool:
        began = time.monotonic()
        finding = step()
        tell(replace(finding, seconds=time.monotonic() - began))
        return finding.state is not LinkState.BROKEN

    def skip(broken: LinkName, *links: LinkName) -> None:
        for link in links:
            tell(Finding(link=link, state=LinkState.SKIPPED, found=f"behind {broken}"))

    look(_python)
    config = None
    try:
        config = loaded = load.load(config_path)
    except KernelBridgeError as error:
        tell(Finding.of_error(LinkName.CONFIG, error))
        look(lambda: _cache(records))
        skip(LinkName.CONFIG, *_SPEC_LINKS)
    else:
        look(lambda: _config(loaded))
        look(lambda: _cache(records))
        if look(lambda: _specs(loaded, root, launcher)):
            look(lambda: _in_jupyter(loaded, root))
            look(lambda: _in_vscode(loaded, root, launcher, vscode_roots(environ)))
        else:
            skip(LinkName.SPECS, LinkName.IN_JUPYTER, LinkName.IN_VSCODE)
    look(lambda: _launcher(launcher))
    look(_extension)
    return config


def _python() -> Finding:
    names = ("kernelbridge", "jupyter_server", "jupyter_client")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return Finding(link=LinkName.PYTHON, found=f"{platform.python_version()} ({sys.executable}), {versions}")


def _config(config: Config) -> Finding:
    warnings = load.warnings(config)
    if warnings:
        return Finding.warning(
            LinkName.CONFIG, " ".join(warnings), "`kernelbridge config` shows each on a line of its own."
        )
    counted = f"{len(config.hosts)} hosts, {len(config.environments)} environments"
    if config.environments:
        return Finding(link=LinkName.CONFIG, found=f"{config.path}: {counted}")
    remedy = "Run `kernelbridge init`, or write [environments.NAME] with an image into it."
    return Finding.warning(LinkName.CONFIG, f"{config.path}: no environments", remedy)


def _cache(records: Records) -> Finding:
    """See whether what is kept of images and kernels can be read."""
    folder = records.folder
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        remedy = f"Make {folder} yours again: `ls -ld` shows whose it is."
        return Finding.warning(LinkName.CACHE, f"{folder} cannot be written: kernels are not found again", remedy)
    unreadable = records.unreadable()
    if unreadable:
        return Finding.warning(LinkName.CACHE, f"in {folder} cannot be read: {', '.join(unreadable)}", _FIX_CACHE)
    return Finding(link=LinkName.CACHE, found=f"{folder}: {len(records.kernels())} kernels remembered")


def _specs(config: Config, root: Path, launcher: Path) -> Finding:
    """See whether the specs are those of the config."""
    outdated = kernelspecs.outdated(config, root, launcher)
    if outdated:
        found = f"not as the config has them: {', '.join(outdated)}"
        return _broken(LinkName.SPECS, found, _INSTALL)
    return Finding(link=LinkName.SPECS, found=f"{len(config.environments)} in {root}")


def _in_jupyter(config: Config, root: Path) -> Finding:
    """See whether this Python's Jupyter lists the specs, and no other ones of their names."""
    listed = {name.lower(): Path(folder) for name, folder in KernelSpecManager().find_kernel_specs().items()}
    names = _folder_names(config)
    unseen = [name for name in names if name.lower() not in listed]
    if unseen:
        found = f"{root} is not where Jupyter looks: {', '.join(unseen)}"
        remedy = (
            "Unset JUPYTER_DATA_DIR and JUPYTER_PATH where Jupyter starts, or set them for `kernelbridge install` too."
        )
        return _broken(LinkName.IN_JUPYTER, found, remedy)
    others = [listed[name.lower()] for name in names if not _is_same(listed[name.lower()], root / name)]
    if others:
        found = f"Jupyter takes another kernel spec of the same name: {', '.join(map(str, others))}"
        return _broken(LinkName.IN_JUPYTER, found, f"Remove it (`rm -r {others[0]}`), or rename the environment.")
    return Finding(link=LinkName.IN_JUPYTER, found=f"{len(names)} of {len(names)} listed")


def _in_vscode(config: Config, root: Path, launcher: Path, roots: list[Path]) -> Finding:
    """See whether VS Code looks where the specs are, and takes none for a copy of another one."""
    if not any(_is_same(one, root) for one in roots):
        return Finding.warning(
            LinkName.IN_VSCODE,
            f"{root} is not where VS Code looks: {', '.join(map(str, roots))}",
            "Unset JUPYTER_PLATFORM_DIRS, or set JUPYTER_DATA_DIR for `kernelbridge install` and for VS Code.",
        )
    ours = set(_folder_names(config))
    shown = {name: spec["display_name"] for name, spec in kernelspecs.specs_of(config, launcher).items()}
    for folder, spec in _specs_in(roots):
        if folder.name in ours and _is_same(folder.parent, root):
            continue
        same = [name for name, text in shown.items() if text == spec.get("display_name")]
        if same and (spec.get("argv") or [""])[0] == str(launcher):
            return Finding.warning(
                LinkName.IN_VSCODE,
                f'VS Code shows one of two that are called "{shown[same[0]]}": {root / same[0]} and {folder}',
                f"Give the environment another `display_name`, or remove {folder}.",
            )
    return Finding(link=LinkName.IN_VSCODE, found=f"it looks in {root}")


def _folder_names(config: Config) -> list[str]:
    return [f"{kernelspecs.FOLDER_PREFIX}{name}" for name in config.environments]


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _specs_in(roots: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in (path for root in roots for path in sorted(root.glob("*/kernel.json"))):
        try:
            spec = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(spec, dict) and isinstance(spec.get("argv", []), list):
            yield path.parent, spec


def vscode_roots(environ: Mapping[str, str], *, system: str = sys.platform, home: Path | None = None) -> list[Path]:
    """Return the folders in which VS Code looks for kernel specs, whichever Python is chosen there.

    As its extension Jupyter 2025.9 does; virtual environments' own are searched only once they are known to it.
    """
    home = home or Path.home()
    user = {
        "win32": Path(environ.get("APPDATA") or home / "AppData/Roaming") / "jupyter",
        "darwin": home / "Library/Jupyter",
    }
    usual = Path(environ.get("XDG_DATA_HOME") or home / ".local/share") / "jupyter"
    data = Path(environ["JUPYTER_DATA_DIR"]) if environ.get("JUPYTER_DATA_DIR") else user.get(system, usual)
    shared = [Path("/usr/local/share/jupyter"), Path("/usr/share/jupyter")]
    if system == "win32":
        shared = [Path(environ.get("PROGRAMDATA") or "C:/ProgramData") / "jupyter"]
    named = [Path(text) for text in environ.get("JUPYTER_PATH", "").split(os.pathsep) if text]
    return [folder / "kernels" for folder in (*named, data, *shared)]


def _launcher(launcher: Path) -> Finding:
    """See whether what kernel specs name runs: a script outlives the Python that it names."""
    if not launcher.exists():
        return _broken(LinkName.LAUNCHER, f"{launcher} is not there: VS Code cannot start kernels", _REINSTALL)
    try:
        ended = subprocess.run(  # noqa: S603 - our own
            [launcher], stdin=subprocess.DEVNULL, capture_output=True, timeout=_LAUNCHER_SECONDS, check=False
        )
    except OSError as exc:
        return _broken(LinkName.LAUNCHER, f"{launcher} cannot be run ({exc.strerror or exc})", _REINSTALL)
    except subprocess.TimeoutExpired:
        return _broken(LinkName.LAUNCHER, f"{launcher} does not end within {_LAUNCHER_SECONDS:g} s", _REINSTALL)
    if ended.returncode != _REFUSAL_CODE:
        said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
        why = said[-1] if said else f"exit code {ended.returncode}"
        return _broken(LinkName.LAUNCHER, f"{launcher} fails ({why})", _REINSTALL)
    return Finding(link=LinkName.LAUNCHER, found=f"{launcher} runs")


def _broken(link: LinkName, found: str, remedy: str) -> Finding:
    return Finding(link=link, state=LinkState.BROKEN, found=found, remedy=remedy, exit_code=1)


def _extension() -> Finding:
    """See whether Jupyter Server loads our extension: the last folder of its config that names it counts."""
    # It has no types.
    manager: Any = ExtensionConfigManager(read_config_path=jupyter_config_path())
    if manager.enabled(EXTENSION):
        return Finding(link=LinkName.EXTENSION, found="on")
    return Finding.warning(
        LinkName.EXTENSION,
        "off: JupyterLab starts kernels, but lists none and forwards no pages",
        f"Run `jupyter server extension enable {EXTENSION}`.",
    )
