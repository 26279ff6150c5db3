"""The kernel process: started, signalled, ended, and why it ended. Its messages: see __main__.py."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Sequence

RING_BYTES = 256 * 1024
# The kernel, never the relay, is chosen when memory runs out.
OOM_SCORE_ADJ = 500

_CGROUPS = "/sys/fs/cgroup"


def oom_files(told: str) -> List[str]:
    """Return where kills may be counted; `told` is /proc/self/cgroup.

    The top is an engine's container itself. In a job of a cluster it may be the whole machine, and ours is below it.
    """
    paths: List[str] = []
    for line in told.splitlines():
        number, _, rest = line.partition(":")
        kinds, _, own = rest.partition(":")
        if number == "0" and not kinds:
            paths.append(_CGROUPS + own.rstrip("/") + "/memory.events")
        elif "memory" in kinds.split(","):
            paths.append(_CGROUPS + "/memory" + own.rstrip("/") + "/memory.oom_control")
    return [*paths, _CGROUPS + "/memory.events", _CGROUPS + "/memory/memory.oom_control"]


def _own_oom_files() -> List[str]:
    try:
        with open("/proc/self/cgroup") as file:
            return oom_files(file.read())
    except OSError:
        return oom_files("")


def oom_kills(paths: Optional[Sequence[str]] = None) -> int:
    """How many processes of this container or job the host ended for lack of memory (cgroup v2 or v1)."""
    for path in _own_oom_files() if paths is None else paths:
        try:
            with open(path) as file:
                for line in file:
                    word, _, count = line.partition(" ")
                    if word == "oom_kill":
                        return int(count)
        except OSError:
            continue
    return 0


def _filled(word: str, words: Dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(name, value)
    return word


class Ring:
    """The last bytes that the kernel process wrote to its stdout and stderr."""

    def __init__(self) -> None:
        self._pieces: Deque[bytes] = deque()
        self._held_bytes = 0

    def add(self, piece: bytes) -> None:
        """Keep a piece; the oldest go over the bound."""
        self._pieces.append(piece)
        self._held_bytes += len(piece)
        while self._held_bytes > RING_BYTES and len(self._pieces) > 1:
            self._held_bytes -= len(self._pieces.popleft())

    def text(self) -> str:
        """Return what is kept."""
        return b"".join(self._pieces).decode("utf-8", "replace")


class Child:
    """One launch of the kernel process, in a session of its own with a folder of its own."""

    def __init__(
        self, launch: int, folder: str, order: Dict[str, Any], ring: Ring, *, locks: Sequence[int] = ()
    ) -> None:
        """Start it. `order` has argv, session, env and cwd; secrets in env are kept by nobody here.

        `locks` are open files that it inherits: what is locked by them is so until it has ended too.
        """
        self.launch = launch
        self.ring = ring
        # Which the kernel puts into its headers.
        self.session: str = order["session"]
        # A fresh temporary folder for each launch: debuggers name a cell's file by it (jupyterlab issue 17836).
        self.temporary = tempfile.mkdtemp(prefix="kernelbridge-")
        self.connection = self._write_connection(folder)
        self._oom_kills_before = oom_kills()
        # Whether end() was called: an exit by signal is then no surprise.
        self.end_wanted = False
        words = {"{python}": sys.executable, "{connection_file}": self.connection, "{session}": order["session"]}
        argv = [_filled(word, words) for word in order["argv"]]
        self.process = subprocess.Popen(
            argv,
            cwd=order.get("cwd") or None,
            env=self._environment(order.get("env") or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=locks,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        os.set_blocking(self.output, False)
        try:
            with open("/proc/%d/oom_score_adj" % self.process.pid, "w") as file:
                file.write(str(OOM_SCORE_ADJ))
        except OSError:
            pass  # It ended already, or /proc is read-only: the host then chooses by size, which is the kernel too.

    def __repr__(self) -> str:
        return "<Child launch %d pid %d %s>" % (self.launch, self.process.pid, self.process.returncode)

    def _write_connection(self, folder: str) -> str:
        own = os.path.join(folder, str(self.launch))
        os.mkdir(own, 0o700)
        path = os.path.join(own, "connection.json")
        ports = {name + "_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
        with open(path, "w") as file:
            # An empty key: the folder is closed to others, and no key has to travel (design, flow of one cell).
            json.dump(
                dict(ports, transport="ipc", ip=os.path.join(own, "k"), key="", signature_scheme="hmac-sha256"), file
            )
        return path

    def address(self, port: int) -> str:
        """Return the ZMQ address of one of the kernel's five sockets (1 shell .. 5 heartbeat)."""
        return "ipc://%s/k-%d" % (os.path.dirname(self.connection), port)

    def _environment(self, wanted: Dict[str, str]) -> Dict[str, str]:
        environment = dict(os.environ)
        environment.pop("JPY_PARENT_PID", None)
        environment["TMPDIR"] = self.temporary
        environment["PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING"] = "1"
        home = environment.get("HOME") or "/"
        if not os.access(home, os.W_OK):
            # A user without a home of its own (`user = "1000:1000"`): IPython wants a place to write.
            environment["HOME"] = self.temporary
        environment.update(wanted)
        return environment

    def read_output(self) -> bool:
        """Move what the process wrote into the ring; False at the end of it."""
        try:
            piece = os.read(self.output, 65536)
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
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # All of it has ended.

    def end(self, number: int = signal.SIGKILL) -> None:
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
                if os.getsid(int(name)) == self.process.pid:
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                continue

    def outcome(self) -> Optional[Dict[str, Any]]:
        """Return how the process ended; None while it runs. Its leftovers end here too."""
        code = self.process.poll()
        if code is None:
            return None
        while self.read_output() and self._has_output():
            pass
        self._sweep_session()
        shutil.rmtree(self.temporary, ignore_errors=True)
        lines: List[str] = [line.strip() for line in self.ring.text().splitlines() if line.strip()]
        return {
            "event": "exited",
            "launch": self.launch,
            "code": code,
            "out_of_memory": oom_kills() > self._oom_kills_before,
            "wanted": self.end_wanted,
            "last_words": lines[-1][:300] if lines else "",
        }

    def close(self) -> None:
        """Close this end of its output, through the object that owns the number: by number alone it is closed twice."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _has_output(self) -> bool:
        return bool(select.select([self.output], [], [], 0)[0])
