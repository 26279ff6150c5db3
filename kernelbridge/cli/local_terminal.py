"""Join a command that runs elsewhere to this process's own terminal or pipes: input, output, size, signals."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import WindowSize, window_of

if sys.platform == "win32":
    import ctypes

    # Of Windows' consoles: line input, echo, Ctrl-C as a signal; keys as sequences; sequences on the screen.
    _COOKED, _KEY_SEQUENCES, _SCREEN_SEQUENCES = 0x0007, 0x0200, 0x0004
    _STDIN_HANDLE, _STDOUT_HANDLE = -10, -11
else:
    import termios
    import tty

_PIECE_BYTES = 64 << 10
# More output than this waits in this process only while the link brings no more.
MOST_QUEUED_BYTES = 1 << 20
# How often a size is looked at where no signal tells of a change.
SIZE_LOOK_SECONDS = 0.5
# Of the command's last output: how long whoever reads it may take for each piece.
SLOW_READER_SECONDS = 600.0


class JoinedCommand(Protocol):
    """What is joined to this terminal. Its methods may be called from any thread."""

    def send(self, data: bytes) -> None:
        """Give it input; returns when it may be given more. Empty: the end."""

    def resize(self, window: WindowSize) -> None:
        """Tell it this terminal's size."""

    def signal(self, number: int) -> None:
        """Send it a signal."""


def is_terminal() -> bool:
    """Whether somebody sits here: stdin and stdout are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


def window() -> WindowSize:
    """Return this terminal's size: its own, and not what COLUMNS and LINES said when a program above was started."""
    for descriptor in (1, 0, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            # A terminal within an editor may not know.
            if size.columns and size.lines:
                return window_of(size)
    return window_of(shutil.get_terminal_size())


@contextlib.contextmanager
def raw_keys() -> Iterator[None]:
    """Pass each key on as it is, Ctrl-C too, while the block runs."""
    if sys.platform == "win32":
        with _raw_console():
            yield
    else:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
        try:
            tty.setraw(descriptor)
            yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


if sys.platform == "win32":

    @contextlib.contextmanager
    def _raw_console() -> Iterator[None]:
        system = ctypes.windll.kernel32
        before = {}
        for number in (_STDIN_HANDLE, _STDOUT_HANDLE):
            handle, mode = system.GetStdHandle(number), ctypes.c_uint32()
            system.GetConsoleMode(handle, ctypes.byref(mode))
            before[handle] = mode.value
            is_input = number == _STDIN_HANDLE
            wanted = (mode.value & ~_COOKED) | _KEY_SEQUENCES if is_input else mode.value | _SCREEN_SEQUENCES
            system.SetConsoleMode(handle, wanted)
        try:
            yield
        finally:
            for handle, value in before.items():
                system.SetConsoleMode(handle, value)


class OutputWriter:
    """Writes a command's output to this process's own, on a thread: whoever reads it may be slow."""

    def __init__(self, congested: Callable[[bool], None]) -> None:
        """`congested` is told that whoever reads is slow, and that no more, on any thread; it must not block."""
        self._congested = congested
        self._queue: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # Bytes that wait, and whether that was told to be too many; both under the lock.
        self._waiting_bytes = 0
        self._is_congested = False
        # Set by begin(): until then the terminal may not be ready.
        self._may_write = threading.Event()
        # Set when nobody reads any more.
        self.is_broken = False
        self._thread = threading.Thread(target=self._run, name="kernelbridge-output", daemon=True)
        # Here and not in begin(): a signal may break off the start of a thread.
        self._thread.start()

    @property
    def is_congested(self) -> bool:
        """Whether whoever reads is slow."""
        return self._is_congested

    def write(self, kind: int, data: bytes) -> None:
        """Queue a piece. Never blocks; called on any thread."""
        with self._lock:
            self._waiting_bytes += len(data)
        self._queue.put((kind, data))
        self._look()

    def _look(self) -> None:
        with self._lock:
            is_congested = self._waiting_bytes > (MOST_QUEUED_BYTES // 2 if self._is_congested else MOST_QUEUED_BYTES)
            if is_congested is not self._is_congested:
                self._is_congested = is_congested
                # Under the lock: what two threads tell comes in order.
                self._congested(is_congested)

    def _run(self) -> None:
        self._may_write.wait()
        while (piece := self._queue.get()) is not None:
            kind, data = piece
            if not self.is_broken:
                try:
                    _write_all(2 if kind == terminal.ERRORS else 1, data)
                except OSError:
                    self.is_broken = True
            with self._lock:
                self._waiting_bytes -= len(data)
            self._look()

    def begin(self) -> None:
        """Write from now on, and what was queued before. Safe to call twice."""
        self._may_write.set()

    def close(self) -> None:
        """Return when all is written."""
        self.begin()
        self._queue.put(None)
        self._thread.join(SLOW_READER_SECONDS)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            # Another program has made the terminal so.
            threading.Event().wait(0.01)


@contextlib.contextmanager
def joined(command: JoinedCommand, *, has_window: bool) -> Iterator[None]:
    """Give this process's input, size and signals to a command while the block runs."""
    with contextlib.ExitStack() as stack:
        if has_window:
            stack.enter_context(raw_keys())
            stack.enter_context(_sizes(command))
        stack.enter_context(_signals(command))
        threading.Thread(target=_read_input, args=(command,), name="kernelbridge-input", daemon=True).start()
        yield


def _read_input(command: JoinedCommand) -> None:
    """Pass input on until its end; ends with the process, which may not wait for a key."""
    try:
        descriptor = -1 if sys.stdin is None else sys.stdin.fileno()
        while piece := os.read(descriptor, _PIECE_BYTES):
            command.send(piece)
        command.send(b"")
    except (OSError, ValueError):
        # There is no stdin: a program that was started without one.
        with contextlib.suppress(Exception):
            command.send(b"")
    except Exception:  # noqa: S110 - an edge: the command has ended, which its own end tells.
        pass


@contextlib.contextmanager
def _sizes(command: JoinedCommand) -> Iterator[None]:
    over = threading.Event()
    if sys.platform != "win32":
        before = signal.signal(signal.SIGWINCH, lambda *_: command.resize(window()))
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)
        return

    def look() -> None:
        last = window()
        while not over.wait(SIZE_LOOK_SECONDS):
            if (now := window()) != last:
                last = now
                command.resize(now)

    threading.Thread(target=look, name="kernelbridge-size", daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def _signals(command: JoinedCommand) -> Iterator[None]:
    """Pass Ctrl-C on; in a raw terminal it comes as a key."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        command.signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if sys.platform == "win32":
    _PASSED = [signal.SIGINT]
else:
    _PASSED = [signal.SIGINT, signal.SIGQUIT]
