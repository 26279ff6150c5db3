"""Print lines: what was asked for on stdout, all else on stderr."""

from __future__ import annotations

import errno
import shutil
import sys

import typer

from kernelbridge.errors import KernelBridgeError, error_page, wrapped
from kernelbridge.plain_text import printable


def say(line: str) -> None:
    """Print a line of the answer."""
    typer.echo(printable(line))


def print_text(text: str) -> None:
    """Print lines of the answer that hold nothing that a terminal would take for orders."""
    typer.echo(text)


def complain(line: str) -> None:
    """Print a line that is no part of the answer."""
    typer.echo(printable(line), err=True)


def complain_of(error: KernelBridgeError) -> None:
    """Print an error's sentence, what to do next, what is done already, and where it is explained.

    On a terminal the lines break between words; elsewhere each is one line.
    """
    columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    for part in error.parts:
        for line in wrapped(part, columns) if columns else [part]:
            complain(line)
    if error.exit_code != KernelBridgeError.exit_code:  # Of the others that page says no more than this.
        typer.secho(f"docs: {error_page(error.exit_code)}", err=True, dim=True)


def is_reader_gone(error: OSError) -> bool:
    """Whether a write failed since nobody reads any more: a pipe was closed, or a terminal."""
    # Windows says so of a pipe by a word that means anything.
    is_windows_pipe = sys.platform == "win32" and error.errno == errno.EINVAL
    return isinstance(error, BrokenPipeError) or error.errno == errno.EIO or is_windows_pipe
