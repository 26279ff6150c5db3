"""Copy many files by rsync, over our own link: its remote shell is a small program that leads back to this process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import posixpath
import re
import shlex
import shutil
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from kernelbridge.errors import KernelBridgeError, LinkLost, WorkspaceFailed
from kernelbridge.files.ignore import PARTS_FOLDER
from kernelbridge.files.listing import to_bytes
from kernelbridge.files.transfer import rsync_shell
from kernelbridge.files.transfer.host_copy import HostCopy, rsync_version
from kernelbridge.hosts.transport.stream import HIGH_WATER_BYTES, AnyLink, CommandError, Stream

# The first that sends times to the nanosecond; both ends need it.
_OLDEST: Final = (3, 1)
_VERSION_SECONDS: Final = 10.0
_BLOCK_BYTES: Final = 256 << 10
# Of rsync's progress as much as the pipe holds comes in that time.
_PROGRESS_SECONDS: Final = 0.05
# What a cut has left of a smaller file is not worth looking for.
_WORTH_KEEPING_BYTES: Final = 1 << 20
_PROGRESS: Final = re.compile(rb"\s*([0-9]+)\s+[0-9]+%")
_FILES_DONE: Final = re.compile(rb"xfr#([0-9]+)")
# "rsync: [receiver] write failed on "/path": No space left on device (28)"
_REASON: Final = re.compile(r"^rsync: .*: ([^:]+?) \(([0-9]+)\)$", re.MULTILINE)
# Full, or not to be written at all; the words may be in any language.
_HOPELESS: Final = frozenset({errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT})
# Some files could not be copied; some vanished. Which, a listing shows.
_PARTIAL_CODES: Final = frozenset({0, 23, 24})
# Called with how many files and bytes have been copied so far.
Copied = Callable[[int, int], None]


class RsyncGaveUp(Exception):
    """It ended before it had tried all files, though others may be copied. Users never see it."""


async def local_rsync() -> str | None:
    """Return this machine's rsync where it is one that we can use; on Windows there is none."""
    found = shutil.which("rsync") if sys.platform != "win32" else None
    if found is None:
        return None
    try:
        async with asyncio.timeout(_VERSION_SECONDS):
            process = await asyncio.create_subprocess_exec(
                found, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
            )
            answer, _ = await process.communicate()
    except (OSError, TimeoutError):
        return None
    version = rsync_version(answer)
    return found if version is not None and version >= _OLDEST else None


def can_serve(copy: HostCopy) -> bool:
    """Whether the host's rsync is one that ours can talk to."""
    return copy.facts.rsync_version is not None and copy.facts.rsync_version >= _OLDEST


async def send(
    program: str, copy: HostCopy, local_root: Path, sizes: Mapping[str, int], copied: Copied, *, replaces: bool
) -> None:
    """Copy files to the host, by path their size in bytes; what they replace is moved to where copy.settle() looks.

    With `replaces` false nothing is there that they could replace, and rsync does not look for it; nor for what a cut
    has left of small files. A file that could not be copied is no error: who asked looks what is there.
    Raises: WorkspaceFailed: nothing can be written there, LinkLost, RsyncGaveUp.
    """
    options = [
        *("--links", "--perms", "--chmod=D755,Fu+rw,Fgo=rX"),
        *("--temp-dir", posixpath.join(copy.state_folder, "parts")),
    ]
    if replaces:
        options += ["--backup", "--backup-dir", posixpath.join(copy.state_folder, "replaced")]
    if max(sizes.values(), default=0) >= _WORTH_KEEPING_BYTES:
        options += ["--partial-dir", PARTS_FOLDER]
    ends = [f"{local_root}/", f"host:{copy.root}/"]
    await _run([program, *options], ends, copy.link, list(sizes), copied)


async def fetch(program: str, copy: HostCopy, arrived: Path, paths: Sequence[str], copied: Copied) -> None:
    """Copy files from the host into a folder of their own here. Raises: as send()."""
    await _run(
        [program, "--partial-dir", PARTS_FOLDER], [f"host:{copy.root}/", f"{arrived}/"], copy.link, paths, copied
    )


async def _run(words: Sequence[str], ends: Sequence[str], link: AnyLink, paths: Sequence[str], copied: Copied) -> None:
    ours, theirs = socket.socketpair()
    try:
        shell = shlex.join([sys.executable, "-I", "-S", str(Path(rsync_shell.__file__)), str(theirs.fileno())])
        common = [
            # Which files are to be copied is decided: size and time say nothing more.
            *("--times", "--ignore-times", "--no-implied-dirs", "--secluded-args"),
            *("--files-from=-", "--from0", "--info=progress2,name0", "--no-human-readable", "--rsh", shell),
        ]
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                words[0], *common, *words[1:], "--", *ends,
                stdin=PIPE, stdout=writing, stderr=PIPE, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
    except OSError as exc:
        ours.close()
        raise WorkspaceFailed(host="This machine", reason=f"rsync does not start: {exc}") from exc
    finally:
        theirs.close()
    join = _Join(link)
    try:
        async with asyncio.TaskGroup() as group:
            joining = group.create_task(join.run(ours))
            complaint = group.create_task(_lines(process))
            group.create_task(_name_files(process, paths))
            code = await _watch(process, reading, copied)
            joining.cancel()
    finally:
        os.close(reading)
        # First: asyncio waits for the end of all who have the process's stderr, and its shell is among them.
        join.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    _check(code, f"{join.complaint}\n{complaint.result()}", link, join.failure)


async def _name_files(process: Process, paths: Sequence[str]) -> None:
    assert process.stdin is not None
    # An rsync that has ended says why elsewhere.
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        process.stdin.write(b"".join(b"%s\0" % to_bytes(path) for path in paths))
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _watch(process: Process, reading: int, copied: Copied) -> int:
    """Tell what rsync says of its progress, until it ends; return its exit code.

    It says something with each file, and whoever is woken for that has less time to copy.
    """
    if sys.platform != "win32":  # Where there is no rsync.
        os.set_blocking(reading, False)
    files = 0
    ended = asyncio.ensure_future(process.wait())
    try:
        while not ended.done():
            await asyncio.wait([ended], timeout=_PROGRESS_SECONDS)
            block = b""
            with contextlib.suppress(BlockingIOError):
                block = os.read(reading, _BLOCK_BYTES)
            done = _FILES_DONE.findall(block)
            files = int(done[-1]) if done else files
            sizes = [match for line in re.split(rb"[\r\n]", block) if (match := _PROGRESS.match(line))]
            if sizes:
                copied(files, int(sizes[-1][1]))
        return ended.result()
    finally:
        ended.cancel()


async def _lines(process: Process) -> str:
    assert process.stderr is not None
    return (await process.stderr.read()).decode("utf-8", "replace")


def _check(code: int, complaint: str, link: AnyLink, failure: Exception | None) -> None:
    """Raise what rsync's end means. Raises: LinkLost, WorkspaceFailed, RsyncGaveUp."""
    if isinstance(failure, KernelBridgeError):
        raise failure
    if not link.is_open:
        raise LinkLost(host=link.name)
    reasons = _REASON.findall(complaint)
    hopeless = next((reason for reason, number in reasons if int(number) in _HOPELESS), None)
    if hopeless is not None:
        raise WorkspaceFailed(host=link.name, reason=hopeless)
    if code not in _PARTIAL_CODES:
        last = complaint.strip().splitlines()[-1:] or [f"rsync ended with {code}"]
        raise RsyncGaveUp(reasons[0][0] if reasons else last[0])


class _Join:
    """Joins the socket of rsync's shell to a command on the host; a Receiver of what the command says."""

    def __init__(self, link: AnyLink) -> None:
        self._link = link
        # Set by run(), once rsync has said which command it wants.
        self._stream: Stream | None = None
        self._writer: asyncio.StreamWriter | None = None
        # Set while what came from the host waits for rsync.
        self._full = asyncio.Event()
        # What the host's rsync had to say; set by closed().
        self.complaint = ""
        # Why the command ended; None: in good order, or not yet. Set by closed().
        self.failure: Exception | None = None

    async def run(self, ours: socket.socket) -> None:
        """Carry bytes both ways until rsync's side ends."""
        reader, self._writer = await asyncio.open_connection(sock=ours)
        line = await reader.readline()
        if not line:
            return
        try:
            self._stream = await self._link.open_command(json.loads(line), self)
        except (KernelBridgeError, OSError) as exc:
            self.failure = exc
            self._writer.close()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relieve(self._stream, self._writer))
            with contextlib.suppress(ConnectionError):
                while block := await reader.read(_BLOCK_BYTES):
                    self._stream.write(block)
                    await self._stream.drain()
                self._stream.write_eof()

    async def _relieve(self, stream: Stream, writer: asyncio.StreamWriter) -> None:
        """Let the host say more, each time that rsync has taken what there was."""
        with contextlib.suppress(ConnectionError):
            while await self._full.wait():
                await writer.drain()
                self._full.clear()
                stream.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        if self._writer is None or self._writer.is_closing():
            return
        self._writer.write(data)
        transport = self._writer.transport
        if transport.get_write_buffer_size() > HIGH_WATER_BYTES and self._stream is not None:
            self._full.set()
            self._stream.pause_reading()

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        # An exit code of the host's rsync comes with ours.
        self.complaint = exc.stderr if isinstance(exc, CommandError) else ""
        self.failure = None if isinstance(exc, CommandError) else exc
        if self._writer is not None:
            self._writer.close()

    def close(self) -> None:
        """End both. Safe to call twice."""
        if self._stream is not None:
            self._stream.close()
        if self._writer is not None:
            self._writer.close()
