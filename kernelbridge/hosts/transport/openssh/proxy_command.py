"""Run a ProxyCommand as OpenSSH does, through the user's shell, and give its stdin and stdout as a socket."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading

from kernelbridge.hosts.transport.openssh.process import end_group
from kernelbridge.plain_text import printable

# Kept of what it says on stderr.
MOST_SAID_BYTES = 4096
# From the end of its connection to its own.
HANG_UP_SECONDS = 2.0
_NOT_THERE = 127


def shell_words(command: str, *, shell: str) -> list[str]:
    """Return the words that run a command line. The shell gives way to it, so that a signal reaches it."""
    leads = re.match(r"\s*exec\s", command) is not None
    return [shell, "-c", command if leads else f"exec {command}"]


class ProxyCommand:
    """A ProxyCommand that runs. Made by start_proxy()."""

    def __init__(self, command: str, process: subprocess.Popen[bytes], near: socket.socket) -> None:
        self.command = command
        # Our end, for the SSH connection.
        self.socket = near
        self._process = process
        # The end of its stderr; filled by the thread.
        self._said = bytearray()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="proxy-command", daemon=True).start()

    def __repr__(self) -> str:
        state = "ended" if self._ended.is_set() else "runs"
        return f"<ProxyCommand {self.command!r} {state}>"

    def _watch(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            while chunk := os.read(stderr.fileno(), MOST_SAID_BYTES):
                self._said = (self._said + chunk)[-MOST_SAID_BYTES:]
        self._process.wait()
        self._ended.set()

    def hang_up(self) -> None:
        """End it, with what it started. Safe to call twice."""
        if not self._ended.is_set():
            end_group(self._process, is_asked=True)
            timer = threading.Timer(HANG_UP_SECONDS, self._kill)
            timer.daemon = True
            timer.start()

    def _kill(self) -> None:
        if not self._ended.is_set():
            end_group(self._process)

    async def failure(self, *, seconds: float = 1.0) -> str:
        """Say how it ended by itself; nothing while it runs or where it has nothing to say."""
        await asyncio.to_thread(self._ended.wait, seconds)
        code = self._process.returncode if self._ended.is_set() else None
        said = printable(self._said.decode("utf-8", "replace").strip().rpartition("\n")[2].strip())
        if not said and (code is None or code <= 0):
            return ""
        ending = f" ended with exit code {code}" if code is not None and code > 0 else ""
        return f"its ProxyCommand `{self.command}`{ending}" + (f": {said}" if said else "")

    @property
    def missing_program(self) -> str | None:
        """The program that is not there, where that is why it ended."""
        if self._process.returncode != _NOT_THERE:
            return None
        try:
            words = shlex.split(self.command)
        except ValueError:
            return None
        program = words[1] if words[:1] == ["exec"] and len(words) > 1 else (words or [""])[0]
        return program if program and shutil.which(os.path.expanduser(program)) is None else None  # noqa: PTH111


async def start_proxy(command: str) -> ProxyCommand:
    """Start a ProxyCommand. Raises: OSError."""
    return await asyncio.to_thread(_start, command)


def _start(command: str) -> ProxyCommand:
    near, far = socket.socketpair()
    try:
        process = subprocess.Popen(  # noqa: S603 - the user's own config: a line for the user's own shell
            shell_words(command, shell=shutil.which(os.environ.get("SHELL", "")) or "/bin/sh"),
            stdin=far.fileno(),
            stdout=far.fileno(),
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except BaseException:
        near.close()
        raise
    finally:
        far.close()
    return ProxyCommand(command, process, near)
