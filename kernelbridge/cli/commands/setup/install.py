"""Serve `kernelbridge install` and `uninstall`: the kernel specs that VS Code and Jupyter list."""

from __future__ import annotations

from typing import Annotated

import typer

from kernelbridge.cli.context import CliContext
from kernelbridge.config import load
from kernelbridge.jupyter import kernelspecs, running_kernelspecs
from kernelbridge.kernel.records import Records, default_folder


def install(ctx: typer.Context) -> None:
    """Carry out `kernelbridge install`."""
    context: CliContext = ctx.obj
    loaded = context.read_config()
    context.warn_of(loaded)
    root = kernelspecs.default_root()
    launcher = kernelspecs.launcher_path()
    if not launcher.exists():
        context.complain(f"Warning: {launcher} is not there: VS Code cannot start kernels. Install kernelbridge again.")
    changes = kernelspecs.write(loaded, root, launcher)
    shown = {kernelspecs.FOLDER_PREFIX + name: text for name, text in load.display_names(loaded).items()}
    for folder in changes.written:
        context.say(f'Wrote {folder}: "{shown[folder]}"')
    for folder in changes.unchanged:
        context.say(f'{folder} is up to date: "{shown[folder]}"')
    for folder in changes.removed:
        context.say(f"Removed {folder}: its environment is gone.")
    for folder in changes.foreign:
        context.complain(
            f"Warning: {root / folder} belongs to another config and was left alone; rename the environment."
        )
    running = running_kernelspecs.offer(Records(default_folder()), loaded)
    for folder in running.written:
        context.say(f"Wrote {folder}: a kernel that runs and that nobody holds, for VS Code.")
    if not loaded.environments:
        context.say(f"No environments in {loaded.path}: write [environments.NAME] with an image, then install again.")


def uninstall(
    ctx: typer.Context,
    every: Annotated[
        bool, typer.Option("--all", help="Those of every config: before kernelbridge itself is uninstalled.")
    ] = False,
) -> None:
    """Carry out `kernelbridge uninstall`."""
    context: CliContext = ctx.obj
    # The config itself may be gone or broken by now; its path is enough.
    path = None if every else context.config_path
    root = kernelspecs.default_root()
    removed = kernelspecs.remove(root, path).removed
    removed += running_kernelspecs.remove(root, path).removed
    for folder in removed:
        context.say(f"Removed {folder}.")
    if not removed:
        context.say("No kernel specs to remove.")
