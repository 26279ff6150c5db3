"""Look at what this machine has of kernelbridge: its Python, config, kernel specs and Jupyter Server's extension."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import jupyter_config_path
from jupyter_server.extension.config import ExtensionConfigManager

from kernelbridge.config import load
from kernelbridge.config.schema import Config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.doctor import Finding, LinkState, Tell
from kernelbridge.jupyter import kernelspecs

EXTENSION = "kernelbridge"
# What the link of the kernel specs is called.
SPECS = "kernel specs"
_INSTALL = "Run `kernelbridge install`."


def examine(config_path: Path, tell: Tell, *, root: Path, launcher: Path) -> Config | None:
    """Tell of all links of this machine; return the config, None if it is broken.

    `root` is the folder of kernel specs, `launcher` what they start.
    """

    def look(step: Callable[[], Finding]) -> None:
        began = time.monotonic()
        finding = step()
        tell(replace(finding, seconds=time.monotonic() - began))

    look(_python)
    config = None
    try:
        config = loaded = load.load(config_path)
    except KernelBridgeError as error:
        tell(Finding.of_error("config", error))
        tell(Finding(link=SPECS, state=LinkState.SKIPPED, found="behind config"))
    else:
        look(lambda: _config(loaded))
        look(lambda: _specs(loaded, root, launcher))
    look(lambda: _launcher(launcher))
    look(_extension)
    return config


def _python() -> Finding:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("kernelbridge", "jupyter_server"))
    return Finding(link="Python", found=f"{platform.python_version()}, {versions}")


def _config(config: Config) -> Finding:
    warnings = load.warnings(config)
    if warnings:
        remedy = "`kernelbridge config` shows each on a line of its own."
        return Finding(link="config", state=LinkState.WARNING, found=" ".join(warnings), remedy=remedy)
    counted = f"{len(config.hosts)} hosts, {len(config.environments)} environments"
    if config.environments:
        return Finding(link="config", found=f"{config.path}: {counted}")
    remedy = "Write [environments.NAME] with an image into it, then run `kernelbridge install`."
    return Finding(link="config", state=LinkState.WARNING, found=f"{config.path}: no environments", remedy=remedy)


def _specs(config: Config, root: Path, launcher: Path) -> Finding:
    """See whether the specs are those of the config, and whether this Python's Jupyter lists them."""
    outdated = kernelspecs.outdated(config, root, launcher)
    if outdated:
        found = f"not as the config has them: {', '.join(outdated)}"
        return Finding(link=SPECS, state=LinkState.BROKEN, found=found, remedy=_INSTALL, exit_code=1)
    listed = KernelSpecManager().find_kernel_specs()
    names = [f"{kernelspecs.FOLDER_PREFIX}{name}" for name in config.environments]
    unseen = [name for name in names if name not in listed]
    if unseen:
        found = f"{root} is not where Jupyter looks: {', '.join(unseen)}"
        remedy = (
            "Unset JUPYTER_DATA_DIR and JUPYTER_PATH where Jupyter starts, or set them for `kernelbridge install` too."
        )
        return Finding(link=SPECS, state=LinkState.BROKEN, found=found, remedy=remedy, exit_code=1)
    return Finding(link=SPECS, found=f"{len(names)} in {root}")


def _launcher(launcher: Path) -> Finding:
    if os.access(launcher, os.X_OK):
        return Finding(link="launcher", found=str(launcher))
    return Finding(
        link="launcher",
        state=LinkState.BROKEN,
        found=f"{launcher} is not there: VS Code cannot start kernels",
        remedy="Install kernelbridge again.",
        exit_code=1,
    )


def _extension() -> Finding:
    """See whether Jupyter Server loads our extension: the last folder of its config that names it counts."""
    manager = ExtensionConfigManager(read_config_path=jupyter_config_path())
    if manager.enabled(EXTENSION):  # type: ignore[no-untyped-call]
        return Finding(link="server extension", found="on")
    return Finding(
        link="server extension",
        state=LinkState.WARNING,
        found="off: JupyterLab starts kernels, but lists none and forwards no pages",
        remedy=f"Run `jupyter server extension enable {EXTENSION}`.",
    )
