"""Start, signal and end the kernel process, or a user's command in its place, and tell how it ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections import deque
from typing import Any, Callable, Deque, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence

from ...protocol.handshake import ExitedEvent
from ...protocol.terminal import WindowSize
from ..beside.terminal import PID_NAME
from . import death
from .environment import enterable, kernel_environment
from .packages import kernel_python
from .pipes import Pipes
from .setup_runner import STATE_NAME

RING_BYTES = 256 * 1024
# What the pipes of a process that has ended may hold: Linux lets each have 1 MiB.
MOST_LAST_BYTES = 2 * 1024 * 1024
# How much of a setup that failed is told.
LAST_LINES = 5
# The kernel, never the relay, is chosen when memory runs out.
OOM_SCORE_ADJ = 500
# Written by ipykernel_launcher.py, which is run by its path and imports nothing of ours.
_FACTS_NAME = "kernel.json"


_SETUP_RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "setup_runner.py")


# A kernel is asked nothing on its stdin, and what it writes there is for its log.
_KERNEL_PIPES: Dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
}


def _pipes(command: Mapping[str, Any]) -> Pipes:
    window = command.get("window")
    return Pipes(None if window is None else WindowSize.from_dict(window))


def drop_output(kind: int, piece: bytes) -> None:
    """Take output that nobody but the log wants."""


def _filled(word: str, words: Dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(name, value)
    return word


class SetupState(NamedTuple):
    """How far the commands before the kernel are: the newest, what it ended with (None: it runs), the last output."""

    command: str
    code: Optional[int]
    last_lines: Sequence[str]


class Ring:
    """The last bytes that the kernel process wrote to its stdout and stderr."""

    def __init__(self) -> None:
        self._pieces: Deque[bytes] = deque()
        self._held_bytes = 0
        # All that ever came.
        self.added_bytes = 0

    def add(self, piece: bytes) -> None:
        """Keep a piece; the oldest go over the bound."""
        self._pieces.append(piece)
        self.added_bytes += len(piece)
        self._held_bytes += len(piece)
        while self._held_bytes > RING_BYTES and len(self._pieces) > 1:
            self._held_bytes -= len(self._pieces.popleft())

    def text(self, *, since_bytes: int = 0) -> str:
        """Return what is kept of all that came after the first so many bytes."""
        kept = b"".join(self._pieces)
        return kept[max(0, len(kept) - (self.added_bytes - since_bytes)) :].decode("utf-8", "replace")


class KernelProcess:
    """One launch of the kernel process, in a session of its own with a folder of its own for its sockets."""

    def __init__(
        self, launch: int, folder: str, order: Dict[str, Any], ring: Ring, *, scratch: str, locks: Sequence[int] = ()
    ) -> None:
        """Start it. `order` has argv, session, env and cwd; secrets in env are kept by nobody here.

        Its `setup` are commands of a shell that run before. With `command`, a table, it is a user's command, which has
        an input, and a terminal if that has a `window`. `scratch` is the folder for what every launch finds again.
        `locks` are open files that it inherits: what is locked by them is so until it has ended too.
        """
        self.launch = launch
        self.ring = ring
        # Which the kernel puts into its headers.
        self.session: str = order["session"]
        # How it is interrupted, as in a kernel spec: by `signal` or by `message`.
        self.interrupt_mode = str(order.get("interrupt_mode", "signal"))
        self.connection = self._write_connection(folder)
        # What it has written of itself; None before.
        self._facts: Optional[Dict[str, Any]] = None
        # What had happened before it.
        self._oom_kills_before = death.oom_kills()
        self._added_bytes_before = ring.added_bytes
        python = kernel_python(scratch)
        environment = kernel_environment(os.environ, order.get("env") or {}, scratch, python)
        wanted_folder = order.get("cwd") or ""
        start_folder = enterable(wanted_folder, environment["HOME"])
        # Where it should have started, but its user may not go; and where it did. None where all is well.
        self.moved = None if start_folder == wanted_folder else (wanted_folder or os.getcwd(), start_folder)
        # Where it writes: looked at when it ends.
        self._folders = [death.SHARED_MEMORY, environment["TMPDIR"], environment["HOME"], start_folder or "."]
        # Whether end() was called: an exit by signal is then no surprise.
        self.end_wanted = False
        # Whether the words of its argv are a user's.
        self._is_users = "command" in order and not order["command"].get("waits")
        # Where it says how far its setup is; None without one.
        self._setup_path = self._write_setup(order["setup"]) if order.get("setup") else None
        # Of a user's command: its input and output; None of a kernel. And what takes a piece of the latter.
        self.pipes = _pipes(order["command"]) if "command" in order else None
        self.written: Callable[[int, bytes], None] = drop_output
        self.popen = self._started(
            self._argv(order["argv"], python),
            cwd=start_folder or None,
            env=environment,
            pass_fds=locks,
        )
        self._write_number(folder)
        try:
            with open("/proc/%d/oom_score_adj" % self.popen.pid, "w") as file:
                file.write(str(OOM_SCORE_ADJ))
        except OSError:
            pass  # It ended already, or /proc is read-only: the host then chooses by size, which is the kernel too.

    def _started(self, argv: List[str], **more: Any) -> Any:
        """Return the process, with this side of its output. Raises OSError."""
        more["start_new_session"] = True
        if self.pipes is None:
            popen: Any = subprocess.Popen(argv, **more, **_KERNEL_PIPES)
            os.set_blocking(popen.stdout.fileno(), False)
            return popen
        try:
            popen = subprocess.Popen(argv, **more, **self.pipes.arguments())
        except OSError:
            self.pipes.close()
            raise
        self.pipes.opened(popen)
        return popen

    def _write_number(self, folder: str) -> None:
        """Say which process it is, for terminals beside it, which have its variables."""
        try:
            with open(os.path.join(folder, PID_NAME), "w") as file:
                file.write(str(self.popen.pid))
        except OSError:
            pass  # They have the container's own.

    @property
    def outputs(self) -> List[int]:
        """The descriptors that its output is read from."""
        return [self.popen.stdout.fileno()] if self.pipes is None else list(self.pipes.outputs)

    def __repr__(self) -> str:
        return "<KernelProcess launch %d pid %d %s>" % (self.launch, self.popen.pid, self.popen.returncode)

    def _write_connection(self, folder: str) -> str:
        own = os.path.join(folder, str(self.launch))
        os.mkdir(own, 0o700)
        path = os.path.join(own, "connection.json")
        ports = {name + "_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
        with open(path, "w") as file:
            # An empty key: the folder is closed to others, and no key has to travel (architecture.md, one cell).
            json.dump(
                dict(ports, transport="ipc", ip=os.path.join(own, "k"), key="", signature_scheme="hmac-sha256"), file
            )
        return path

    def _argv(self, wanted: Sequence[str], python: str) -> List[str]:
        words = {"{python}": python, "{connection_file}": self.connection, "{session}": self.session}
        if self._is_users:
            words = {}
        before = [] if self._setup_path is None else [python, _SETUP_RUNNER, self._setup_path]
        return [*before, *(_filled(word, words) for word in wanted)]

    def _write_setup(self, commands: Sequence[str]) -> str:
        path = os.path.join(os.path.dirname(self.connection), STATE_NAME)
        with open(path, "w") as file:
            json.dump({"commands": list(commands)}, file)
        return path

    def setup_state(self) -> Optional[SetupState]:
        """Return how far the setup is; None where there is none, or no more."""
        if self._setup_path is None:
            return None
        try:
            with open(self._setup_path) as file:
                state = json.load(file)
        except (OSError, ValueError):
            self._setup_path = None
            return None
        written = [line.strip() for line in self.ring.text(since_bytes=self._added_bytes_before).splitlines()]
        return SetupState(state.get("command", ""), state.get("code"), [line for line in written if line][-LAST_LINES:])

    def address(self, port: int) -> str:
        """Return the ZMQ address of one of the kernel's five sockets (1 shell .. 5 heartbeat)."""
        return "ipc://%s/k-%d" % (os.path.dirname(self.connection), port)

    @property
    def handlers(self) -> Optional[FrozenSet[str]]:
        """The requests that the kernel has a handler for on control, by its own word; None where it has given none."""
        facts = self._told()
        return frozenset(facts["control"]) if "control" in facts else None

    def _told(self) -> Dict[str, Any]:
        if self._facts is None:
            try:
                with open(os.path.join(os.path.dirname(self.connection), _FACTS_NAME)) as file:
                    self._facts = dict(json.load(file))
            except (OSError, ValueError, TypeError):
                return {}
        return self._facts

    def read_output(self) -> bool:
        """Move what the process wrote into the ring; False at the end of it."""
        if self.pipes is not None:
            for descriptor, kind in list(self.pipes.outputs.items()):
                piece = self.pipes.read(descriptor)
                if piece:
                    self.ring.add(piece)
                    self.written(kind, piece)
            return bool(self.pipes.outputs)
        try:
            piece = os.read(self.popen.stdout.fileno(), 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if piece:
            self.ring.add(piece)
        return bool(piece)

    def signal_group(self, number: int) -> None:
        """Send a signal to the kernel's process group."""
        try:
            os.killpg(self.popen.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # All of it has ended.

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Ask or make the kernel process end; with SIGKILL everything of its session ends with it."""
        self.end_wanted = True
        self.signal_group(number)
        if number == signal.SIGKILL:
            self._sweep_session()

    def _sweep_session(self) -> None:
        """End what the kernel started in groups of their own: workers hold GPU memory."""
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            try:
                if os.getsid(int(name)) == self.popen.pid:
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                continue

    def outcome(self) -> Optional[ExitedEvent]:
        """Return how the process ended; None while it runs. Its leftovers end here too."""
        code = self.popen.poll()
        if code is None:
            return None
        self.drain()
        self._sweep_session()
        return ExitedEvent(
            launch=self.launch,
            code=code,
            # One worker of it may have been killed long before, and survived.
            out_of_memory=code == -signal.SIGKILL and death.oom_kills() > self._oom_kills_before,
            wanted=self.end_wanted,
            last_words=death.last_words(self.ring.text(since_bytes=self._added_bytes_before)),
            full=tuple(death.without_room(self._folders)),
            shm_bytes=death.size_of(death.SHARED_MEMORY) if code == -signal.SIGBUS else 0,
        )

    def drain(self) -> None:
        """Read what is there of its output, and no more: what it left behind may write for ever."""
        end_bytes = self.ring.added_bytes + MOST_LAST_BYTES
        while self.read_output() and self._has_output() and self.ring.added_bytes < end_bytes:
            pass

    def close(self) -> None:
        """Close this end of its output, through the object that owns the number: by number alone it is closed twice."""
        if self.pipes is not None:
            self.pipes.close()
        else:
            self.popen.stdout.close()

    def _has_output(self) -> bool:
        return bool(select.select(self.outputs, [], [], 0)[0])
