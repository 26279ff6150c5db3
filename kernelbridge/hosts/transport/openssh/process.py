"""Run a short command of this machine, with whatever it started, inside a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command left behind."""

    exit_code: int
    stdout: str
    stderr: str


def end_group(process: subprocess.Popen[bytes], *, is_asked: bool = False) -> None:
    """Kill a process that leads a group, with all of the group. `is_asked`: hang up, which they may hear or not.

    Nothing happens when all are gone.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGHUP if is_asked else signal.SIGKILL)


async def ask(words: Sequence[str], *, seconds: float) -> Answer:
    """Run a command to its end, without stdin.

    Raises: OSError: it cannot be started. TimeoutError: it was killed, with what it had started.
    """
    # A thread and no asyncio subprocess: that needs the right loop on Windows, and a child watcher elsewhere.
    process = await asyncio.to_thread(_started, words)
    try:
        async with asyncio.timeout(seconds):
            stdout, stderr = await asyncio.to_thread(process.communicate)
    finally:
        if process.returncode is None:
            end_group(process)
    texts = (part.decode("utf-8", "surrogateescape") for part in (stdout, stderr))
    return Answer(exit_code=process.returncode, stdout=next(texts), stderr=next(texts))


def _started(words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - words, no shell
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
