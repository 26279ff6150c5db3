"""Join a command that runs elsewhere to this process's own terminal or pipes: input, output, size, signals."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from kernelbridge.cli import login_prompt
from kernelbridge.cli.context import LOOK_SECONDS
from kernelbridge.cli.output import is_reader_gone
from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import WindowSize, window_of

if TYPE_CHECKING:
    from kernelbridge.kernel.command.terminal import Terminal  # loads what speaks to containers

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
# Of a command's last output: how long whoever reads it may take none. Somebody may be reading a page of a pager.
STALLED_SECONDS = 3600.0
# How much is written at once: a slow terminal takes that within seconds.
_WRITE_BYTES = 4096
Submit = Callable[[Coroutine[Any, Any, None]], Future[None]]


class RemoteCommand(Protocol):
    """A command that runs elsewhere. Everything runs on its event loop."""

    async def send(self, data: bytes) -> None:
        """Give it input; returns when it may be given more. Empty: the end."""

    def resize(self, window: WindowSize) -> None:
        """Tell it the size of its terminal."""

    def signal(self, number: int) -> None:
        """Send it a signal."""


class JoinedCommand:
    """A command of an event loop, for the other threads of this process."""

    def __init__(self, command: RemoteCommand, submit: Submit) -> None:
        """`submit` runs a coroutine on that loop."""
        self._command = command
        self._submit = submit

    def send(self, data: bytes) -> None:
        """See RemoteCommand."""
        self._submit(self._command.send(data)).result()

    def resize(self, window: WindowSize) -> None:
        """See RemoteCommand."""
        self._submit(_called(lambda: self._command.resize(window)))

    def signal(self, number: int) -> None:
        """See RemoteCommand."""
        self._submit(_called(lambda: self._command.signal(number)))


class OutputValve:
    """Has a command wait while its output is not taken; that may be said on any thread, and before it is open."""

    def __init__(self, submit: Submit) -> None:
        """`submit` runs a coroutine on the command's loop."""
        self._submit = submit
        # Both are of that loop; the command is set by on_open().
        self._opened: Terminal | None = None
        self._is_to_wait = False

    def congested(self, is_congested: bool) -> None:
        """Take in that too much waits here, or that no more."""
        self._submit(_called(lambda: self._set(is_congested)))

    def _set(self, is_to_wait: bool) -> None:
        self._is_to_wait = is_to_wait
        if self._opened is not None:
            (self._opened.pause if is_to_wait else self._opened.resume)()

    def on_open(self, opened: Terminal) -> None:
        """Take in that it is open, and what was said before. Called on its loop."""
        self._opened = opened
        if self._is_to_wait:
            opened.pause()


async def _called(function: Callable[[], None]) -> None:
    function()


def is_terminal() -> bool:
    """Whether somebody sits here: stdin and stdout are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout is not None and sys.stdout.isatty()


def _has_keys() -> bool:
    """Whether stdin is a terminal, whose keys are the command's then."""
    # It may be closed.
    with contextlib.suppress(ValueError):
        return sys.stdin is not None and sys.stdin.isatty()
    return False


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

    def __init__(self, congested: Callable[[bool], None], *, stalled_seconds: float = STALLED_SECONDS) -> None:
        """`congested` is told that whoever reads is slow, and that no more, on any thread; it must not block."""
        self._congested = congested
        self._stalled_seconds = stalled_seconds
        self._queue: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # Bytes that wait, and whether that was told to be too many; both under the lock.
        self._waiting_bytes = 0
        self._is_congested = False
        # Set by begin(): until then the terminal may not be ready.
        self._may_write = threading.Event()
        # Why nothing more is written; set once, by the thread or by close().
        self._failure: OSError | None = None
        # When something of it was taken last; moved by the thread, and by close().
        self._moved_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="kernelbridge-output", daemon=True)
        # Here and not in begin(): a signal may break off the start of a thread.
        self._thread.start()

    @property
    def is_congested(self) -> bool:
        """Whether whoever reads is slow."""
        return self._is_congested

    @property
    def is_broken(self) -> bool:
        """Whether nothing more is written."""
        return self._failure is not None

    def check(self) -> None:
        """Raise BrokenPipeError where nobody reads any more, and KernelBridgeError where it cannot be written."""
        failure = self._failure
        if failure is None:
            return
        if is_reader_gone(failure):
            raise BrokenPipeError(errno.EPIPE, "nobody reads the output any more")
        raise KernelBridgeError(
            f"The output cannot be written: {failure.strerror}.", "Check where this program's output goes."
        ) from failure

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
            try:
                self._write_all(2 if kind == terminal.ERRORS else 1, data)
            except OSError as exc:
                # Who started this program with an output closed wants nothing of it.
                if exc.errno != errno.EBADF:
                    self._failure = exc
            with self._lock:
                self._waiting_bytes -= len(data)
            self._look()

    def begin(self) -> None:
        """Write from now on, and what was queued before. Safe to call twice."""
        self._may_write.set()

    def close(self) -> None:
        """Return when all is written; what nobody takes any of for long is given up, see check()."""
        self._moved_at = time.monotonic()
        self.begin()
        self._queue.put(None)
        while self._thread.is_alive():
            # Not in one wait, during which Windows would hear no Ctrl-C.
            self._thread.join(LOOK_SECONDS)
            if self._failure is None and time.monotonic() - self._moved_at > self._stalled_seconds:
                self._failure = TimeoutError(errno.ETIMEDOUT, f"nothing of it was read for {self._stalled_seconds:g} s")
                return

    def _write_all(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view and self._failure is None:
            try:
                view = view[os.write(descriptor, view[:_WRITE_BYTES]) :]
            except BlockingIOError:
                # Another program has made the terminal so.
                threading.Event().wait(0.01)
            else:
                self._moved_at = time.monotonic()


@contextlib.contextmanager
def joined(command: JoinedCommand, *, has_window: bool) -> Iterator[None]:
    """Give this process's input, size and signals to a command while the block runs."""
    with contextlib.ExitStack() as stack:
        if has_window:
            stack.enter_context(raw_keys())
            stack.enter_context(_sizes(command))
        if _has_keys():
            stack.enter_context(login_prompt.USE.taken())
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
        # It may have changed while the command was started.
        command.resize(window())
        try:
            yield
        finally:
            signal.signal(signal.SIGWINCH, before)
        return

    last = window()
    command.resize(last)

    def look() -> None:
        nonlocal last
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
