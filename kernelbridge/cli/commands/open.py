"""Serve `kernelbridge open`: JupyterLab in the browser, at a notebook, an environment or a kernel that runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from jupyter_core.paths import jupyter_runtime_dir

from kernelbridge.cli import completion, lab
from kernelbridge.cli.context import CliContext
from kernelbridge.errors import KernelBridgeError
from kernelbridge.kernel.records import Records, default_folder


def open_lab(
    ctx: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]",
            help="A notebook, an environment, a kernel or a folder; this folder where nothing is said.",
            autocompletion=completion.openable,
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Open no browser: print the address instead.")
    ] = False,
) -> None:
    """Carry out `kernelbridge open`."""
    context: CliContext = ctx.obj
    page = lab.page_of(what, context.read_config(), Records(default_folder()).kernels(), Path.cwd())
    if page.is_to_be_picked:
        context.complain("Its kernel is among the running ones: pick it in JupyterLab by Kernel > Change Kernel.")
    runtime_folder = Path(jupyter_runtime_dir())
    server = lab.server_for(page, runtime_folder)
    if server is None:
        _start(context, page, browser=not no_browser)
        return
    if page.spec:
        context.complain(f"A JupyterLab runs here already: choose {page.spec} for a new notebook.")
    address = server.address(page)
    if no_browser:
        context.say(address)
        return
    context.say(f"Opens {address.partition('?')[0]}")
    opening = threading.Thread(target=webbrowser.open, args=(lab.write_way(address, runtime_folder).as_uri(),))
    opening.start()
    opening.join()


def _start(context: CliContext, page: lab.LabPage, *, browser: bool) -> None:
    """Become `jupyter lab`: Ctrl-C and the like are for it."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise KernelBridgeError(
            f"JupyterLab is not installed beside kernelbridge, for {sys.executable}.",
            "Install it there: `pip install jupyterlab`, `pipx inject kernelbridge jupyterlab`, or "
            "`uv tool install kernelbridge --with jupyterlab`.",
        )
    if not page.root.is_dir():
        raise KernelBridgeError(f"The folder {page.root} is gone.", "Open the notebook where it is now.")
    words = [sys.executable, "-m", "jupyterlab", *page.arguments(browser=browser)]
    variables = {**context.environ, "KERNELBRIDGE_CONFIG": str(context.config_path)}
    sys.stdout.flush()
    run_in_place(words, page.root, variables)


def run_in_place(words: list[str], folder: Path, variables: Mapping[str, str]) -> None:
    """Run a program in the place of this one; where a system has no such thing, beside it, until it ends."""
    if sys.platform != "win32":
        os.chdir(folder)
        os.execve(words[0], words, dict(variables))  # noqa: S606 - words, no shell
    running = subprocess.Popen(words, cwd=folder, env=dict(variables))  # noqa: S603
    while True:
        try:
            raise typer.Exit(running.wait())
        except KeyboardInterrupt:
            continue  # It has heard it too.
