"""Serve `kernelbridge run ENVIRONMENT NOTEBOOK.ipynb`: its own options, its progress."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from kernelbridge.cli import login_prompt
from kernelbridge.cli.context import CliContext
from kernelbridge.cli.status_line import News, status_line
from kernelbridge.config.schema import Config
from kernelbridge.errors import KernelBridgeError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class NotebookOptions(NamedTuple):
    """What stands behind a notebook's name."""

    output: Path
    parameters: tuple[tuple[str, str], ...]


def is_notebook(words: Sequence[str]) -> bool:
    """Whether the words of a command name a notebook, and not a program."""
    return bool(words) and words[0].endswith(".ipynb")


def options_of(words: Sequence[str]) -> NotebookOptions:
    """Read `NOTEBOOK [-o OUTPUT] [-p NAME VALUE]...`."""
    output, parameters, rest = Path(words[0]), [], list(words[1:])
    while rest:
        option = rest.pop(0)
        if option in ("-o", "--output") and rest:
            output = Path(rest.pop(0))
        elif option in ("-p", "--parameter") and len(rest) > 1:
            name, value = rest.pop(0), rest.pop(0)
            if not _NAME.fullmatch(name):
                raise typer.BadParameter(f"{name!r} is no name for a parameter")
            parameters.append((name, value))
        else:
            raise typer.BadParameter(f"{option!r}: a notebook takes `-o OUTPUT` and `-p NAME VALUE`")
    return NotebookOptions(output, tuple(parameters))


def run(context: CliContext, loaded: Config, environment: str, words: Sequence[str]) -> None:
    """Run a notebook to its end. Raises KernelBridgeError."""
    from kernelbridge.jupyter import notebook_run, shared_fleets  # loads nbclient

    shared_fleets.ask_by(login_prompt.askers(context.environ))
    loaded.environment(environment)
    options, source = options_of(words), Path(words[0])
    values = [(name, notebook_run.value_of(value)) for name, value in options.parameters]
    notebook = notebook_run.with_parameters(notebook_run.read(source), values)
    news = News("starting")
    try:
        with status_line(news.newest, after_seconds=0.0), notebook_run.observed(news.say):
            asyncio.run(
                notebook_run.run(
                    notebook,
                    options.output,
                    environment=environment,
                    config_path=loaded.path,
                    folder=source.parent.resolve(),
                    say=news.say,
                )
            )
    except RuntimeError as exc:
        # jupyter_client's own, of a kernel that did not come.
        raise KernelBridgeError(f"The kernel could not be started: {exc}.") from exc
    context.say(f"{options.output}: run to its end.")
