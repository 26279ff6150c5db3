"""Run a command in the kernel's container, on a terminal of its own or on pipes, joined to this process's own stdio.

Run by one exec stream; the frames on it are those of protocol/terminal.py. The command has the variables and the folder
of the kernel process. It gets SIGHUP when the line ends, as from a terminal that was closed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ...protocol import frames, terminal
from ...protocol.json_object import parse_object
from ...protocol.terminal import CommandOrder, WindowSize
from ..process.pipes import MOST_WAITING_BYTES, PIPE_CHUNK_BYTES, Pipes

# Where each program of this kind has a file that it holds a lock on: so the relay knows that somebody works here.
TERMINALS_NAME = "terminals"
_UNLOCKED = ".new"
# The kernel process's number, written by the relay.
PID_NAME = "kernel.pid"
LINE_SILENCE_SECONDS = 15.0
# What the other end has not taken; beyond it the command waits.
MOST_UNSENT_BYTES = 1024 * 1024
# After the command's own end its output may go on for so long: what it left behind may hold its pipes for ever.
LAST_OUTPUT_SECONDS = 0.3
# For what a command does when it hears that its terminal is gone.
PARTING_SECONDS = 5.0
_SHELLS = ("/bin/bash", "/bin/sh", "/bin/ash")
# Of the kernel's own making, and of no use to others.
_KERNELS_OWN = ("PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING", "JPY_SESSION_NAME")


def main() -> None:
    """Run what the first frame says."""
    folder = relay_folder()
    lock = hold_lock(folder)
    line = FrameLine()
    try:
        order = line.first()
        if order is not None:
            serve(line, order, folder)
    finally:
        if lock is not None and os.path.exists(lock[1]):
            os.unlink(lock[1])


def relay_folder() -> str:
    """Return the relay's folder, in which this code is: RELAY/kernelbridge_relay/relay/beside/terminal.py."""
    path = os.path.abspath(__file__)
    for _ in range(4):
        path = os.path.dirname(path)
    return path


def hold_lock(folder: str) -> Optional[Tuple[int, str]]:
    """Lock a file of this process's own until its end, and return both; None where none can be made."""
    try:
        own = os.path.join(folder, TERMINALS_NAME)
        os.makedirs(own, 0o700, exist_ok=True)
        path = os.path.join(own, str(os.getpid()))
        descriptor = os.open(path + _UNLOCKED, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(path + _UNLOCKED, path)  # Under this name it is never seen without its lock.
    except OSError:
        os.close(descriptor)
        return None
    return descriptor, path


def is_any_open(folder: str) -> bool:
    """Whether somebody works in this container by a program of this kind. Called by the relay."""
    own = os.path.join(folder, TERMINALS_NAME)
    try:
        names = os.listdir(own)
    except OSError:
        return False
    return any(_is_locked(os.path.join(own, name)) for name in names if not name.endswith(_UNLOCKED))


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # Its process was killed.
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


class FrameLine:
    """This process's own stdio as frames, both ways, never blocking."""

    def __init__(self, source: int = 0, sink: int = 1) -> None:
        self.source, self.sink = source, sink
        self._decoder = frames.Decoder()
        self._unsent = bytearray()
        self.is_over = False
        self.heard_at = self._said_at = time.monotonic()
        # What came in one piece with the order, behind it; set by first().
        self.early: List[frames.Frame] = []
        for descriptor in (source, sink):
            os.set_blocking(descriptor, False)

    @property
    def waiting_bytes(self) -> int:
        """How much the other end has not taken."""
        return len(self._unsent)

    def end(self) -> None:
        """Know that nobody is there any more."""
        self.is_over = True

    def first(self) -> Optional[CommandOrder]:
        """Return what is to be run; None if the line ends before, or brings something else."""
        while not self.is_over:
            if not select.select([self.source], [], [], LINE_SILENCE_SECONDS)[0]:
                return None
            came = self.read()
            if not came:
                continue
            self.early = came[1:]
            try:
                return CommandOrder.from_dict(parse_object(came[0].payload)) if came[0].kind == terminal.START else None
            except frames.WireError:
                return None
        return None

    def read(self) -> List[frames.Frame]:
        """Return what has come; at its end the line is over."""
        try:
            piece = os.read(self.source, PIPE_CHUNK_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            piece = b""
        self.heard_at = time.monotonic()
        try:
            found = self._decoder.feed(piece) if piece else []
        except frames.WireError:
            piece, found = b"", []
        self.is_over = self.is_over or not piece
        return found

    def write(self, *framed: bytes) -> None:
        """Queue frames, and write what is taken."""
        for one in framed:
            self._unsent += one
        self._said_at = time.monotonic()
        self.flush()

    def flush(self) -> None:
        """Write what is taken."""
        while self._unsent:
            try:
                del self._unsent[: os.write(self.sink, self._unsent[:PIPE_CHUNK_BYTES])]
            except BlockingIOError:
                return
            except OSError:
                self.is_over = True
                self._unsent.clear()

    def hold(self) -> None:
        """Live on without reading: say so, and notice an end that stands behind what is not read."""
        if time.monotonic() - self._said_at > terminal.KEEP_ALIVE_SECONDS:
            self.write(frames.frame(terminal.KEEP_ALIVE))
        poller = select.poll()
        poller.register(self.source, 0)  # An end is told unasked.
        self.is_over = self.is_over or bool(poller.poll(0))

    def finish(self) -> None:
        """Write all, as long as somebody is there, who may read slowly."""
        while self._unsent and not self.is_over:
            if select.select([self.source], [self.sink], [], 1.0)[0]:
                self.read()
            elif time.monotonic() - self.heard_at > LINE_SILENCE_SECONDS:
                self.is_over = True
            self.flush()


def kernel_facts(folder: str) -> Tuple[Dict[str, str], str]:
    """Return the variables and the folder of the kernel process; this process's own where there is none."""
    try:
        with open(os.path.join(folder, PID_NAME)) as file:
            process = "/proc/%d" % int(file.read())
        with open(process + "/environ", "rb") as binary:
            written = binary.read()
        if not written:
            raise ValueError("it begins just now, or has ended")
        variables = (os.fsdecode(one).partition("=") for one in written.split(b"\0") if b"=" in one)
        environment = {name: value for name, _, value in variables if name not in _KERNELS_OWN}
        return environment, os.readlink(process + "/cwd")
    except (OSError, ValueError):
        return dict(os.environ), os.getcwd()


def shell_argv(environment: Mapping[str, str]) -> List[str]:
    """Return the command of the user's shell; empty where the image has none."""
    wanted = [environment.get("SHELL", "")]
    try:
        wanted.append(pwd.getpwuid(os.getuid()).pw_shell)
    except KeyError:
        pass
    # Nobody's: who has it may not log in, but somebody is here already.
    found = (path for path in [*wanted, *_SHELLS] if not path.endswith(("nologin", "false")))
    return next(([path] for path in found if path and os.access(path, os.X_OK)), [])


def serve(line: FrameLine, order: CommandOrder, folder: str) -> None:
    """Run the command to its end, or until the line ends."""
    environment, start_folder = kernel_facts(folder)
    environment.update(order.env)
    start_folder = environment.get("HOME", "/") if order.folder == "~" else order.folder or start_folder
    argv = order.argv or shell_argv(environment)
    pipes = Pipes(order.window)
    wake, ringer = socket.socketpair()
    for end in (wake, ringer):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # An engine whose client is gone sends it (seen on Docker 20.10).
    signal.signal(signal.SIGTERM, lambda *_: line.end())
    signal.set_wakeup_fd(ringer.fileno(), warn_on_full_buffer=False)
    try:
        popen = start(argv, start_folder, environment, pipes)
    except OSError as exc:
        line.write(frames.frame(terminal.FAILED, why_not(argv, start_folder, exc).encode("utf-8", "replace")))
        line.finish()
        return
    line.write(frames.frame(terminal.STARTED))
    Exchange(line, pipes, popen, wake).run()


def start(argv: Sequence[str], folder: str, environment: Mapping[str, str], pipes: Pipes) -> Any:
    """Start the command, in a session of its own. Raises OSError."""
    if not argv:
        raise FileNotFoundError(errno.ENOENT, "the image has no shell")
    popen = subprocess.Popen(list(argv), cwd=folder, env=dict(environment), start_new_session=True, **pipes.arguments())
    pipes.opened(popen)
    return popen


def why_not(argv: Sequence[str], folder: str, exc: OSError) -> str:
    """Return why a command was not started, as a part of a sentence."""
    if exc.filename == folder:
        return "%s: %s" % (folder, exc.strerror)
    return "%s: %s" % (argv[0], exc.strerror) if argv else str(exc.strerror)


class Exchange:
    """Moves bytes between a line and a command until one of both ends."""

    def __init__(self, line: FrameLine, pipes: Pipes, popen: Any, wake: socket.socket) -> None:
        self._line = line
        self._pipes = pipes
        self._popen = popen
        self._wake = wake
        # When the command had ended and nothing more came from it.
        self._quiet_since: Optional[float] = None

    def run(self) -> None:
        """Go on until the command has ended and its output is out, or the line ends."""
        for frame in self._line.early:
            self._take(frame)
        while not self._line.is_over and not self._is_done():
            self._step()
        if self._line.is_over:
            hang_up(self._popen)
            self._drain()
        else:
            self._line.write(terminal.ended(self._popen.returncode).frame())
            self._line.finish()
        self._pipes.close()

    def _drain(self) -> None:
        """Drop what the command still writes, for a moment: it would die of a pipe that is closed, and not tidy up."""
        until = time.monotonic() + PARTING_SECONDS
        while self._popen.poll() is None and self._pipes.outputs and time.monotonic() < until:
            for descriptor in select.select(list(self._pipes.outputs), [], [], 0.1)[0]:
                self._pipes.read(descriptor)

    def _is_done(self) -> bool:
        if self._popen.poll() is None:
            return False
        if not self._pipes.outputs:
            return True
        if self._line.waiting_bytes >= MOST_UNSENT_BYTES:
            self._quiet_since = None  # Nothing is read from it meanwhile.
            return False
        now = time.monotonic()
        self._quiet_since = self._quiet_since or now
        return now - self._quiet_since > LAST_OUTPUT_SECONDS

    def _step(self) -> None:
        line, pipes = self._line, self._pipes
        takes_input = pipes.waiting_bytes < MOST_WAITING_BYTES
        readable = [self._wake.fileno()]
        readable += [line.source] if takes_input else []
        readable += list(pipes.outputs) if line.waiting_bytes < MOST_UNSENT_BYTES else []
        writable = [one for one in (pipes.input, line.sink if line.waiting_bytes else None) if one is not None]
        patience = LAST_OUTPUT_SECONDS / 3 if self._popen.returncode is not None else 1.0
        ready, may_write, _ = select.select(readable, writable, [], patience)
        if self._wake.fileno() in ready:
            self._wake.recv(4096)
        for descriptor in [one for one in ready if one in pipes.outputs]:
            kind, piece = pipes.outputs[descriptor], pipes.read(descriptor)
            if piece:
                self._quiet_since = None
                line.write(*terminal.pieces(kind, piece))
        if line.source in ready:
            for frame in line.read():
                self._take(frame)
        elif not takes_input:
            line.hold()
        elif time.monotonic() - line.heard_at > LINE_SILENCE_SECONDS:
            line.is_over = True
        if pipes.input in may_write:
            pipes.push()
        line.flush()

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind == terminal.INPUT:
            self._pipes.feed(bytes(frame.payload))
        elif frame.kind == terminal.INPUT_END:
            self._pipes.end_input()
        elif frame.kind == terminal.KEEP_ALIVE:
            self._line.write(frames.frame(terminal.KEEP_ALIVE))
        try:
            if frame.kind == terminal.RESIZE:
                self._pipes.resize(WindowSize.from_dict(parse_object(frame.payload)))
            elif frame.kind == terminal.SIGNAL:
                send_signal(self._popen, int(json.loads(bytes(frame.payload))))
        except (frames.WireError, ValueError, TypeError, OverflowError, RecursionError):
            return


def send_signal(popen: Any, number: int) -> None:
    """Send a signal to the command and all in its process group."""
    try:
        os.killpg(popen.pid, number)
    except OSError:
        pass  # It has ended; or there is no such signal.


def hang_up(popen: Any) -> None:
    """Tell the command that its terminal is gone; what stopped goes on, to hear it."""
    send_signal(popen, signal.SIGHUP)
    send_signal(popen, signal.SIGCONT)


if __name__ == "__main__":
    sys.exit("This runs as a part of kernelbridge's relay.")
