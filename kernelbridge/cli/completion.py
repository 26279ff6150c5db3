"""Complete names in a shell: kernels from this machine's records, environments and hosts from the config. No network.

Whatever is wrong, nothing is completed and nothing is said: the user is in the middle of a line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from kernelbridge.config import load
from kernelbridge.config.schema import LOCAL, Config
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.labels import short_id
from kernelbridge.kernel.records import Records, default_folder

# What completes a word: with it a few words that shells which can show them do.
Completed = list[tuple[str, str]]


def kernel_ids(ctx: typer.Context, incomplete: str) -> Completed:
    """Complete the id of a kernel that this machine remembers, the newest first."""
    path = _config_path(ctx)
    records = [record for record in Records(default_folder()).kernels() if record.config == str(path)]
    shown = [
        (short_id(record.kernel_id), " ".join(filter(None, [record.environment, "on", record.host, record.title])))
        for record in reversed(records)
    ]
    # By the notebook's name too, but in one word: not every shell's completion quotes what it completes.
    named = [
        (record.title, " ".join([short_id(record.kernel_id), record.environment, "on", record.host]))
        for record in reversed(records)
        if record.title.endswith(".ipynb") and not set(record.title) & set(" \t\"'$`\\:")
    ]
    return _beginning([*shown, *named] if incomplete else shown, incomplete)


def environments(ctx: typer.Context, incomplete: str) -> Completed:
    """Complete the name of an environment."""
    config = _config(ctx)
    shown = load.display_names(config) if config is not None else {}
    return _beginning(shown.items(), incomplete)


def hosts(ctx: typer.Context, incomplete: str) -> Completed:
    """Complete the name of a host."""
    config = _config(ctx)
    found = {host.name: _place(host.ssh) for host in config.hosts.values()} if config is not None else {}
    return _beginning(found.items(), incomplete)


def kernels(ctx: typer.Context, incomplete: str) -> Completed:
    """Complete what names a kernel: its id, or its environment."""
    return kernel_ids(ctx, incomplete) + environments(ctx, incomplete)


def openable(ctx: typer.Context, incomplete: str) -> Completed:
    """Complete what JupyterLab can be opened at: a kernel, an environment, a notebook of this folder."""
    found = sorted(path.name for path in Path().glob("*.ipynb"))
    return kernels(ctx, incomplete) + _beginning([(name, "") for name in found], incomplete)


def places(ctx: typer.Context, incomplete: str) -> Completed:
    """Complete the name of a host or of an environment."""
    return hosts(ctx, incomplete) + environments(ctx, incomplete)


EnvironmentArgument = Annotated[
    str,
    typer.Argument(metavar="ENVIRONMENT", help="The environment's name in the config.", autocompletion=environments),
]


def _place(ssh: str) -> str:
    return "this machine" if ssh == LOCAL else ssh


def _beginning(found: Iterable[tuple[str, str]], incomplete: str) -> Completed:
    return [(name, text) for name, text in found if name.startswith(incomplete)]


def _config_path(ctx: typer.Context) -> Path:
    # Typer before 0.29 completes with the word as it was typed.
    named = ctx.find_root().params.get("config_path")
    return load.find_path(os.environ, Path(named) if named else None)


def _config(ctx: typer.Context) -> Config | None:
    try:
        return load.load(_config_path(ctx))
    except KernelBridgeError:
        return None
