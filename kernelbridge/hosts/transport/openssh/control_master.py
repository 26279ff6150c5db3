"""Start the user's `ssh` as a master for others, and ask it over its control socket (PROTOCOL.mux of OpenSSH).

It is started before anything else is loaded: no asyncio here, and nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence

# It asks nobody anything, checks the host's key, writes nothing down, and opens nothing that the config wants besides.
_OPTIONS = (
    *("BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ClearAllForwardings=yes"),
    *("ControlPersist=no", "PermitLocalCommand=no", "RemoteCommand=none", "Tunnel=no"),
)
# What the host runs: the master lives as long as it does, and it ends with its stdin, and so with this process.
_SHELL = "/bin/sh -s"
# Of the path of a unix socket on all systems; ssh makes the socket under a name of 17 bytes more.
_MOST_PATH_BYTES = 103 - 17
SSH_END_SECONDS = 2.0


class ControlMaster:
    """One `ssh` that has logged in, or is about to; its control socket lies in a folder of its own."""

    def __init__(self, words: Sequence[str], *, environ: Mapping[str, str]) -> None:
        """`words` are ssh's: which host, as on its command line. Raises: OSError."""
        self.folder = _make_folder(environ)
        try:
            options = [word for option in _OPTIONS for word in ("-o", option)]
            self.process = subprocess.Popen(  # noqa: S603 - words, no shell
                [_find_ssh(environ), "-M", "-S", self.control_path, "-T", "-x", "-a", *options, *words, _SHELL],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Ctrl-C is for us; what it has started ends with it.
                start_new_session=True,
            )
        except BaseException:
            _remove_folder(self.folder)
            raise

    def __repr__(self) -> str:
        return f"<ControlMaster {self.folder} {'ended' if self.process.poll() is not None else 'running'}>"

    @property
    def control_path(self) -> str:
        """Where its control socket is, from the login on."""
        return os.path.join(self.folder, "c")  # noqa: PTH118 - pathlib would be loaded first

    def close(self) -> None:
        """End it, with all that goes over it. Safe to call twice."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(SSH_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        _remove_folder(self.folder)


def _find_ssh(environ: Mapping[str, str]) -> str:
    """Return where `ssh` is. Raises: OSError."""
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(folder, "ssh")  # noqa: PTH118
        if folder.startswith("/") and os.access(path, os.X_OK):
            return path
    raise OSError("no ssh")


def _remove_folder(folder: str) -> None:
    """Remove the folder with the sockets in it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208
            os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
        os.rmdir(folder)  # noqa: PTH106


def _make_folder(environ: Mapping[str, str]) -> str:
    """Make a folder that is closed to others. Raises: OSError."""
    places = [environ.get("XDG_RUNTIME_DIR", ""), environ.get("TMPDIR", ""), "/tmp"]  # noqa: S108 - closed, and of a name that nobody can know
    name = f"kernelbridge-{os.urandom(8).hex()}"
    for place in places:
        folder = os.path.join(place, name)  # noqa: PTH118
        if place.startswith("/") and len(os.fsencode(folder)) + 3 <= _MOST_PATH_BYTES:
            try:
                os.mkdir(folder, 0o700)  # noqa: PTH102
            except OSError:
                continue
            return folder
    raise OSError("no folder for a control socket")
