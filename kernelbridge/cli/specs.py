"""`kernelbridge install` and `uninstall`: the kernel specs that VS Code and Jupyter list."""

from __future__ import annotations

import time

import typer

from kernelbridge import config, kernelspecs, running_specs
from kernelbridge.cli.session import Session
from kernelbridge.records import Records, default_folder


def install(ctx: typer.Context) -> None:
    """Write a kernel spec for each environment, and remove those of environments that are gone."""
    session: Session = ctx.obj
    loaded = session.read_config()
    session.warn_of(loaded)
    root = kernelspecs.default_root()
    launcher = kernelspecs.launcher_path()
    if not launcher.exists():
        session.complain(f"Warning: {launcher} is not there: VS Code cannot start kernels. Install kernelbridge again.")
    changes = kernelspecs.write(loaded, root, launcher)
    shown = {kernelspecs.FOLDER_PREFIX + name: text for name, text in config.display_names(loaded).items()}
    for folder in changes.written:
        session.say(f'Wrote {folder}: "{shown[folder]}"')
    for folder in changes.unchanged:
        session.say(f'{folder} is up to date: "{shown[folder]}"')
    for folder in changes.removed:
        session.say(f"Removed {folder}: its environment is gone.")
    for folder in changes.foreign:
        session.complain(
            f"Warning: {root / folder} belongs to another config and was left alone; rename the environment."
        )
    running = running_specs.renew(Records(default_folder()), loaded, root, launcher, time.time())
    for folder in running.written:
        session.say(f"Wrote {folder}: a kernel that runs and that nobody holds, for VS Code.")
    if not loaded.environments:
        session.say(f"No environments in {loaded.path}: write [environments.NAME] with an image, then install again.")


def uninstall(ctx: typer.Context) -> None:
    """Remove the kernel specs of this config."""
    session: Session = ctx.obj
    # The config itself may be gone or broken by now; its path is enough.
    root = kernelspecs.default_root()
    removed = kernelspecs.remove(root, session.config_path).removed
    removed += running_specs.remove(root, session.config_path).removed
    for folder in removed:
        session.say(f"Removed {folder}.")
    if not removed:
        session.say("No kernel specs to remove.")
