"""Type what this side and a terminal's program in the container tell each other: a command, its input and output. Pure.

The frames are those of frames.py, with kinds of their own; they have no numbers, and end with their line.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from . import frames
from .json_object import JsonObject

# Kinds of frames. To the program: what to run, its input, the end of that, a window's size, a signal's number.
START, INPUT, INPUT_END, RESIZE, SIGNAL = range(32, 37)
# From the program: it runs; what it wrote to stdout and stderr; how it ended; why it could not be run.
STARTED, OUTPUT, ERRORS, EXIT, FAILED = range(48, 53)
# Both ways; this side asks, so that a program whose line is gone notices.
KEEP_ALIVE = 64
KEEP_ALIVE_SECONDS = 5.0
# No frame is longer: what comes from a keyboard is short, what comes from a file is cut into such pieces.
TERMINAL_PIECE_BYTES = 64 * 1024
# What programs draw by, where this side does not say.
USUAL_TERM = "xterm-256color"
# Of a window, in characters.
MOST_CELLS_WIDE = 10_000


class WindowSize(NamedTuple):
    """How large a terminal is, in characters."""

    columns: int
    rows: int

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> WindowSize:
        """Read it. Raises WireError."""
        size = JsonObject(said)
        columns, rows = size.count("columns"), size.count("rows")
        return cls(min(columns, MOST_CELLS_WIDE), min(rows, MOST_CELLS_WIDE))

    def to_dict(self) -> Dict[str, Any]:
        """Return what is said."""
        return dict(self._asdict())


class CommandOrder(NamedTuple):
    """A command to be run beside a kernel."""

    # Empty: the user's shell.
    argv: List[str]
    # Variables over those of the kernel.
    env: Dict[str, str]
    # Where it starts; `~`: at home; empty: where the kernel is.
    folder: str
    # Of the terminal that it gets; None: it gets pipes.
    window: Optional[WindowSize]

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> CommandOrder:
        """Read it. Raises WireError."""
        order = JsonObject(said)
        argv, env = order.take("argv"), order.take("env", {})
        words: List[Any] = [*argv, *env, *env.values()] if isinstance(argv, list) and isinstance(env, dict) else [None]
        if not all(isinstance(word, str) and "\0" not in word for word in words):
            raise frames.WireError("no command")
        folder = order.take("folder", "")
        if not isinstance(folder, str):
            raise frames.WireError("`folder` is no text")
        window = order.take("window", None)
        return cls(argv, env, folder, None if window is None else WindowSize.from_dict(window))

    def frame(self) -> bytes:
        """Return the START frame. Bytes that are no text travel as Python's surrogates."""
        window = None if self.window is None else self.window.to_dict()
        said = {"argv": self.argv, "env": self.env, "folder": self.folder, "window": window}
        return frames.frame(START, json.dumps(said).encode())


class CommandEnd(NamedTuple):
    """How a command has ended: its exit code, or the signal that ended it."""

    code: int
    signal: int = 0

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> CommandEnd:
        """Read it. Raises WireError."""
        end = JsonObject(said)
        return cls(end.count("code"), end.count("signal", 0))

    @property
    def exit_code(self) -> int:
        """The one number that shells make of it."""
        return 128 + self.signal if self.signal else self.code

    def frame(self) -> bytes:
        """Return the EXIT frame."""
        return frames.frame(EXIT, json.dumps(self._asdict()).encode())


def ended(wait_status: int) -> CommandEnd:
    """Return how a process ended, by subprocess's return code: negative for a signal."""
    return CommandEnd(0, -wait_status) if wait_status < 0 else CommandEnd(wait_status)


def pieces(kind: int, data: bytes) -> List[bytes]:
    """Return the frames for some bytes."""
    return [
        frames.frame(kind, data[at : at + TERMINAL_PIECE_BYTES]) for at in range(0, len(data), TERMINAL_PIECE_BYTES)
    ]


def window_of(size: Tuple[int, int]) -> WindowSize:
    """Return a window of so many columns and rows, as os.get_terminal_size() tells them."""
    return WindowSize(min(max(1, size[0]), MOST_CELLS_WIDE), min(max(1, size[1]), MOST_CELLS_WIDE))
