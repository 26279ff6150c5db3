"""Run an image's ENTRYPOINT once, with a command of ours as its argument, and take over what it has set up.

That is its environment, folder and umask. What else it starts is ended: the kernel is the relay's child, and not its.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

# How much of what it prints is kept, and how much it may have to say of its environment.
OUTPUT_BYTES = 8192
_SAID_BYTES = 1 << 20
_NAME = "environment.json"
# Written under another name first: what is there is whole. What Python itself has added (LC_CTYPE) is left out.
_SAY = """\
import json, os, sys
umask = os.umask(0o077)
with open("/proc/self/environ", "rb") as file:
    lines = file.read().decode("utf-8", "surrogateescape").split("\\0")
env = dict(line.split("=", 1) for line in lines if "=" in line)
said = {"env": env, "cwd": os.getcwd(), "umask": umask, "uid": os.getuid()}
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(said, file)
os.chmod(sys.argv[1] + ".new", 0o644)
os.rename(sys.argv[1] + ".new", sys.argv[1])
"""
# Of the shell that ran it, or for the kernel process to have anew.
_NEVER_TAKEN = frozenset(["_", "SHLVL", "PWD", "OLDPWD", "TMPDIR", "JPY_PARENT_PID", "NVIDIA_VISIBLE_DEVICES"])
# Those of another user, where it has become one for its command; the kernel stays who it is.
_OF_A_USER = frozenset(["HOME", "USER", "LOGNAME", "MAIL", "SHELL"])


class Setup(NamedTuple):
    """What an ENTRYPOINT has changed: variables (None: it removed them), folder and umask; or why nothing is known."""

    variables: Mapping[str, Optional[str]] = {}
    cwd: str = ""
    umask: Optional[int] = None
    failure: str = ""

    def apply(self, environment: Any) -> None:
        """Have this process, and all that it starts from now on, be set up so; `environment` is os.environ."""
        for name, value in self.variables.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        if self.umask is not None:
            os.umask(self.umask)
        try:
            if self.cwd:
                os.chdir(self.cwd)
        except OSError:
            pass  # It was another user's.


class EntrypointRun:
    """One run of an ENTRYPOINT, beside all else that its process does."""

    def __init__(
        self, argv: Sequence[str], environment: Mapping[str, str], folder: str, *, limit_seconds: float
    ) -> None:
        """Start it. `environment` is what it finds; `folder` is one that every user may write to."""
        self._given = dict(environment)
        self._limit_seconds = limit_seconds
        self._ends_at = time.monotonic() + limit_seconds
        # What it printed last.
        self.output = b""
        self._folder = tempfile.mkdtemp(prefix="entrypoint-", dir=folder)
        # It may become another user; nobody else can list the names in there.
        os.chmod(self._folder, 0o733)  # noqa: S103
        self._path = os.path.join(self._folder, _NAME)
        # None where it cannot be run at all; then why.
        self._popen: Optional[subprocess.Popen[bytes]] = None
        self._refusal = ""
        try:
            self._popen = subprocess.Popen(
                [*argv, sys.executable, "-I", "-S", "-c", _SAY, self._path],
                env=self._given,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as exc:
            self._refusal = "cannot be run (%s)" % (exc.strerror or exc)

    def __repr__(self) -> str:
        return "<EntrypointRun pid %s>" % (self._popen.pid if self._popen is not None else None)

    @property
    def pids(self) -> List[int]:
        """The process that is waited for here."""
        return [self._popen.pid] if self._popen is not None else []

    def poll(self) -> Optional[Setup]:
        """Return what it has set up, or why that is not known; None while it runs. Nothing of it runs afterwards."""
        if self._popen is None:
            setup = Setup(failure=self._refusal)
        else:
            code = self._popen.poll()
            self._read(self._popen)
            has_said = os.path.exists(self._path)
            if code is None and not has_said and time.monotonic() < self._ends_at:
                return None
            setup = self._heard() if has_said else Setup(failure=self._why_silent(code))
        self.close()
        return setup

    def close(self) -> None:
        """End what runs of it, and remove its folder. Safe to call twice."""
        if self._popen is not None and self._popen.stdout is not None and not self._popen.stdout.closed:
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
                self._popen.wait(timeout=1)
            except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                pass  # All of it has ended, or has become another user: who ends all below this process ends it.
            self._popen.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        while select.select([popen.stdout], [], [], 0)[0]:
            piece = os.read(popen.stdout.fileno(), 65536)
            if not piece:
                return
            self.output = (self.output + piece)[-OUTPUT_BYTES:]

    def _why_silent(self, code: Optional[int]) -> str:
        lines = [line.strip() for line in self.output.decode("utf-8", "replace").splitlines() if line.strip()]
        words = ": " + lines[-1][:200] if lines else ""
        if code is None:
            return "has not run its command within %g s%s" % (self._limit_seconds, words)
        how = "signal %d" % -code if code < 0 else "exit code %d" % code
        return "ended with %s and has not run its command%s" % (how, words)

    def _heard(self) -> Setup:
        """Read what our command has written: by whichever user, and in whatever folder."""
        try:
            with open(self._path, encoding="utf-8", errors="surrogateescape") as file:
                said: Dict[str, Any] = json.loads(file.read(_SAID_BYTES))
            env = {str(name): str(value) for name, value in said["env"].items()}
            cwd, umask, uid = str(said["cwd"]), int(said["umask"]), int(said["uid"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return Setup(failure="has run its command, whose answer cannot be read")
        kept = _NEVER_TAKEN if uid == os.getuid() else _NEVER_TAKEN | _OF_A_USER
        changed: Dict[str, Optional[str]] = {
            name: value for name, value in env.items() if self._given.get(name) != value and name not in kept
        }
        # One that empties all of it has become another user, and lost what was the kernel's.
        if uid == os.getuid():
            changed.update({name: None for name in self._given if name not in env and name not in kept})
        return Setup(variables=changed, cwd=cwd if cwd != os.getcwd() else "", umask=umask)


class EntrypointState:
    """How far a container is with its image's ENTRYPOINT."""

    def __init__(self, failure: str = "") -> None:
        # What is to be run: argv, env, seconds. None where there is nothing, or nothing any more.
        self.order: Optional[Dict[str, Any]] = None
        # While it runs: the run, and the launch that waits for it.
        self.run: Optional[EntrypointRun] = None
        self.launch: Optional[Dict[str, Any]] = None
        # What went wrong with it; emptied when it was told.
        self.failure = failure

    def __repr__(self) -> str:
        return "<EntrypointState %r>" % (self.run,)

    def stop(self) -> None:
        """End a run; the next launch runs it anew."""
        if self.run is not None:
            self.run.close()
        self.run = self.launch = None
