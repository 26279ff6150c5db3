"""Give a process a terminal, or pipes, for its input and output, and move bytes to and from them without blocking."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import termios
from typing import Any, Dict, Optional

from ...protocol import terminal
from ...protocol.terminal import WindowSize

# Of a process's input that it has not taken: beyond that no more should be fed.
MOST_WAITING_BYTES = 1024 * 1024
PIPE_CHUNK_BYTES = 64 * 1024
# What a terminal's end of input is.
_END_OF_INPUT = b"\x04"


class Pipes:
    """A command's stdin, stdout and stderr: a terminal, or three pipes."""

    def __init__(self, window: Optional[WindowSize]) -> None:
        self._master: Optional[int] = None
        self._slave: Optional[int] = None
        # Kind of frame by the descriptor that it is read from; closed ones are out.
        self.outputs: Dict[int, int] = {}
        self._input: Optional[int] = None
        self._waiting = bytearray()
        self._is_ending = False
        # What the command has taken of its input, ever.
        self.taken_bytes = 0
        if window is not None:
            self._master, self._slave = os.openpty()
            self.resize(window)

    def arguments(self) -> Dict[str, Any]:
        """Return what subprocess.Popen needs for it."""
        if self._slave is None:
            return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        slave = self._slave

        def take_terminal() -> None:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        return {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": take_terminal}

    def opened(self, popen: Any) -> None:
        """Take this side of what the command has."""
        if self._master is not None and self._slave is not None:
            os.close(self._slave)
            self._slave = None
            self._input = self._master
            self.outputs = {self._master: terminal.OUTPUT}
        else:
            # Numbers of their own: by the objects' they would be closed twice.
            self._input = os.dup(popen.stdin.fileno())
            self.outputs = {
                os.dup(popen.stdout.fileno()): terminal.OUTPUT,
                os.dup(popen.stderr.fileno()): terminal.ERRORS,
            }
            for file in (popen.stdin, popen.stdout, popen.stderr):
                file.close()
        for descriptor in (self._input, *self.outputs):
            os.set_blocking(descriptor, False)

    @property
    def input(self) -> Optional[int]:
        """The descriptor of the command's input, where something waits for it to be taken."""
        return self._input if self._waiting else None

    @property
    def waiting_bytes(self) -> int:
        """How much of its input the command has not taken."""
        return len(self._waiting)

    def resize(self, window: WindowSize) -> None:
        """Set the terminal's size; the command hears SIGWINCH."""
        if self._master is not None:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", window.rows, window.columns, 0, 0))

    def feed(self, data: bytes) -> None:
        """Give the command more input."""
        if self._input is not None and not self._is_ending:
            self._waiting += data
            self.push()

    def end_input(self) -> None:
        """End the command's input once it has taken all."""
        self._is_ending = True
        self.push()

    def push(self) -> None:
        """Write what the command takes of its input."""
        while self._waiting and self._input is not None:
            try:
                taken = os.write(self._input, self._waiting[:PIPE_CHUNK_BYTES])
            except BlockingIOError:
                return
            except OSError:
                self.taken_bytes += len(self._waiting)
                self._waiting.clear()  # It does not read any more.
                return
            self.taken_bytes += taken
            del self._waiting[:taken]
        if self._is_ending and self._input is not None and self._input != self._master:
            os.close(self._input)
            self._input = None
        elif self._is_ending and self._master is not None:
            self._is_ending = False
            self._waiting += _END_OF_INPUT
            self.push()

    def read(self, descriptor: int) -> bytes:
        """Return what the command wrote; at the end of it the descriptor is closed, and out of `outputs`."""
        try:
            piece = os.read(descriptor, PIPE_CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError as exc:
            # EIO: nobody has the terminal any more.
            if exc.errno != errno.EIO:
                raise
            piece = b""
        if not piece:
            del self.outputs[descriptor]
            if descriptor != self._master:
                os.close(descriptor)
        return piece

    def close(self) -> None:
        """Close this side."""
        if self._input is not None and self._input != self._master:
            os.close(self._input)
        for descriptor in [*self.outputs, *([self._master] if self._master not in (None, *self.outputs) else [])]:
            assert descriptor is not None
            os.close(descriptor)
        if self._slave is not None:  # The command was never started.
            os.close(self._slave)
        self.outputs, self._input, self._master, self._slave = {}, None, None, None
