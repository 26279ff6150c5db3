"""One owned process: its log, its end within a limit, its last words for a failed test. Who: see lab.py."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

# One unit of waiting; a slow machine sets KERNELBRIDGE_TEST_SLOW=3.
SLOW = float(os.environ.get("KERNELBRIDGE_TEST_SLOW", "1"))


class RigError(RuntimeError):
    """A real thing could not be started; the sentence says which and shows its log."""


def wait_until(claim: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Return as soon as the claim is true, or a moment later: a twentieth of the wait at most, as others also compute.

    Raises: RigError, naming what was waited for.
    """
    began = time.monotonic()
    while not claim():
        waited = time.monotonic() - began
        if waited > seconds * SLOW:
            raise RigError(f"waited {seconds:g} s for {what}")
        time.sleep(min(0.2, max(0.02, waited / 20)))


def run(words: Sequence[str | Path], *, env: Mapping[str, str] | None = None, seconds: float = 600.0) -> str:
    """Run a command to its end and return what it printed.

    Raises: RigError with the end of its output where it fails.
    """
    done = subprocess.run(
        [str(word) for word in words],
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds * SLOW,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def tail(path: Path, lines: int = 50) -> str:
    """The last lines of a log file; empty where there is none."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


class Daemon:
    """A long-running process and all its children."""

    def __init__(self, name: str, words: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                list(words),
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"<Daemon {self.name} pid {self._process.pid} {'running' if self.is_running else 'ended'}>"

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """This process's children, grandchildren, and last itself."""
        try:
            own = psutil.Process(self._process.pid)
            return [*own.children(recursive=True), own]
        except psutil.NoSuchProcess:
            return []

    def main(self) -> psutil.Process:
        """The process that does the work: nsenter's one child, or this process itself."""
        tree = self.tree()
        children = tree[-1].children() if tree else []
        if tree and tree[-1].name() == "nsenter" and children:
            return children[0]
        if not tree:
            raise RigError(f"{self.name} has ended; its log:\n{tail(self.log)}")
        return tree[-1]

    def wait_until(self, claim: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        """Return when the claim is true; fail at once, with the log, where the process ends before."""

        def claim_or_ended() -> bool:
            return claim() or not self.is_running

        try:
            wait_until(claim_or_ended, what, seconds)
        except RigError as error:
            raise RigError(f"{error}; log of {self.name}:\n{tail(self.log)}") from None
        if not self.is_running:
            raise RigError(f"{self.name} ended before {what}; its log:\n{tail(self.log)}")

    def stop(self, seconds: float = 15.0) -> None:
        """Ask it to end, then end it and every child. Safe to call twice."""
        tree = self.tree()
        if tree:
            self.main().terminate()
            _gone, alive = psutil.wait_procs([tree[-1]], timeout=seconds * SLOW)
            for process in alive and tree:
                _kill(process)
        self._process.wait(timeout=10)

    def kill(self) -> None:
        """End it and every child at once, as a power cut would."""
        for process in self.tree():
            _kill(process)
        self._process.wait(timeout=10)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
