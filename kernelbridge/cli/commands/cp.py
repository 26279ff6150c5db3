"""Serve `kernelbridge cp`: copy files and folders between this machine and a kernel's container."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import posixpath
import queue
import re
import stat
import sys
import tarfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Annotated, NamedTuple, cast

import typer

from kernelbridge.cli.context import CliContext
from kernelbridge.cli.local_terminal import OutputValve
from kernelbridge.cli.status_line import status_line
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.fleet.loop import LIST_SECONDS
from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.labels import short_id
from kernelbridge.hosts.progress import Meter, WorkProgress
from kernelbridge.hosts.relay_query import RelayAddress
from kernelbridge.kernel.command.terminal import START_SECONDS, CommandRequest, Terminal, open_terminal
from kernelbridge.protocol import terminal

ARCHIVE_MODULE = "beside.archive"
# More than this of what comes waits here only while the link brings no more.
MOST_ARRIVED_BYTES = 8 << 20
COPY_CLOSE_SECONDS = 5.0
_PIECE_BYTES = 256 << 10
# Of a tar archive.
_ARCHIVE_BLOCK_BYTES, _ARCHIVE_END_BYTES = 512, 1024
# Whose files are what was copied: the user's; on Windows the number says nothing.
if sys.platform == "win32":
    _OWNER = (0, 0)
else:
    _OWNER = (os.getuid(), os.getgid())


class Place(NamedTuple):
    """One side of a copy: a path here, or in a kernel's container."""

    kernel: str
    path: str


def place_of(text: str) -> Place:
    """Read a side as `docker cp` and `scp` do: `KERNEL:PATH`, else a path here; a drive's letter is no kernel."""
    found = re.match(r"^([A-Za-z0-9][A-Za-z0-9_.-]+):(.*)$", text, re.DOTALL)
    return Place(found[1], found[2] or ".") if found else Place("", text)


def copy(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A path here, or KERNEL:PATH.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A path here, or KERNEL:PATH.")],
) -> None:
    """Carry out `kernelbridge cp`."""
    context: CliContext = ctx.obj
    origin, goal = place_of(source), place_of(target)
    if bool(origin.kernel) == bool(goal.kernel):
        raise typer.BadParameter("one of the two must be in a kernel's container: KERNEL:PATH")
    with context.fleet(context.read_config()) as fleet:
        address = context.wait(fleet, fleet.address_of(origin.kernel or goal.kernel), seconds=LIST_SECONDS)
        moved = _Moved(f"copying {'to' if goal.kernel else 'from'} {short_id(address.kernel)} on {address.host}")
        try:
            with status_line(moved.progress):
                if goal.kernel:
                    _send(context, fleet, address, Path(origin.path), goal.path, moved)
                else:
                    _receive(context, fleet, address, origin.path, Path(goal.path), moved)
        except (OSError, tarfile.TarError) as exc:
            raise KernelBridgeError(f"It could not be copied: {exc}.", "Check the path here.") from exc


class _Moved:
    """Counts what has been copied, for whoever shows it."""

    def __init__(self, what: str) -> None:
        self._meter = Meter(what)
        # Set by expect(), where the size is known before.
        self._total: int | None = None
        self._done = 0

    def expect(self, size: int) -> None:
        """Set how much there is to copy."""
        self._total = size

    def add(self, size: int) -> None:
        """Count more."""
        self._done += size
        self._meter.at(self._done, self._total)

    def progress(self) -> WorkProgress:
        """Return how far it is."""
        return self._meter.progress


def _open(
    context: CliContext,
    fleet: Fleet,
    address: RelayAddress,
    words: tuple[str, str],
    output: Callable[[int, bytes], None],
    on_open: Callable[[Terminal], None] = lambda opened: None,
) -> Terminal:
    """Start the container's side; `on_open` is called on the fleet's thread before more of its output comes."""

    async def opened() -> Terminal:
        argv = (*bootstrap.beside_argv(address.python, ARCHIVE_MODULE), *words)
        made = await open_terminal(
            await address.workload(), CommandRequest(argv=argv), host=address.host, output=output
        )
        on_open(made)
        return made

    return context.wait(fleet, opened(), seconds=START_SECONDS)


def _archive_bytes(source: Path) -> int:
    """Return about how long the archive of a path is."""
    paths = [source]
    if source.is_dir() and not source.is_symlink():
        paths += [Path(above, name) for above, folders, names in os.walk(source) for name in (*folders, *names)]
    total = _ARCHIVE_END_BYTES
    for path in paths:
        with contextlib.suppress(OSError):
            found = path.lstat()
            total += _ARCHIVE_BLOCK_BYTES
            total += (
                -(-found.st_size // _ARCHIVE_BLOCK_BYTES) * _ARCHIVE_BLOCK_BYTES if stat.S_ISREG(found.st_mode) else 0
            )
    return total


def _send(context: CliContext, fleet: Fleet, address: RelayAddress, source: Path, target: str, moved: _Moved) -> None:
    """Copy from here. Raises OSError, tarfile.TarError and KernelBridgeError."""
    source.lstat()
    moved.expect(_archive_bytes(source))
    said = bytearray()
    opened = _open(context, fleet, address, ("unpack", target), lambda kind, data: said.extend(data))
    try:
        waiting = fleet.submit(opened.wait())

        class Sink(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: object) -> int:
                piece = bytes(cast(bytes, data))
                if waiting.done():
                    raise BrokenPipeError(errno.EPIPE, "the container took no more of it")
                fleet.run(opened.send(piece))
                moved.add(len(piece))
                return len(piece)

        name = (source.name if source.name != ".." else "") or source.resolve().name or "root"
        try:
            with tarfile.open(
                fileobj=cast(IO[bytes], Sink()), mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE_BYTES
            ) as archive:
                archive.add(source, arcname=name)
        except BrokenPipeError:
            # What it says is the reason.
            _check(waiting.result(), said, address)
            raise
        fleet.run(opened.send(b""))
        _check(waiting.result(), said, address)
    finally:
        fleet.run(opened.aclose(), COPY_CLOSE_SECONDS)


class _Arriving(io.RawIOBase):
    """What comes from the container, for tarfile to read on this thread."""

    def __init__(self, congested: Callable[[bool], None], moved: Callable[[int], None]) -> None:
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._congested = congested
        self._moved = moved
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._rest = b""
        self._is_over = False
        self._is_dropped = False
        self.said = bytearray()

    def put(self, kind: int, data: bytes) -> None:
        """Take a piece; called on the loop. Empty: the end."""
        if kind == terminal.ERRORS:
            self.said += data
            return
        # Said with the lock held: else a pause could come behind the resumption that was decided after it.
        with self._lock:
            if self._is_dropped:
                return
            self._waiting_bytes += len(data)
            self._pieces.put(data)
            if self._waiting_bytes > MOST_ARRIVED_BYTES:
                self._congested(True)

    def drop_rest(self) -> None:
        """Keep nothing more: the other end is to come to its own."""
        with self._lock:
            self._is_dropped = True
            self._congested(False)

    def readable(self) -> bool:
        """Asked by io."""
        return True

    def readinto(self, buffer: object) -> int:
        """Called by io."""
        view = memoryview(cast(bytearray, buffer))
        while not self._rest and not self._is_over:
            self._rest = self._pieces.get()
            self._is_over = not self._rest
            with self._lock:
                self._waiting_bytes -= len(self._rest)
                if self._waiting_bytes < MOST_ARRIVED_BYTES // 2:
                    self._congested(False)
            self._moved(len(self._rest))
        size = min(len(view), len(self._rest))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _receive(
    context: CliContext, fleet: Fleet, address: RelayAddress, source: str, target: Path, moved: _Moved
) -> None:
    """Copy to here. Raises OSError, tarfile.TarError and KernelBridgeError."""
    # Much may come before the thread of this function knows that it was opened.
    valve = OutputValve(fleet.submit)
    arriving = _Arriving(valve.congested, moved.add)
    opened = _open(context, fleet, address, ("pack", source), arriving.put, valve.on_open)
    try:
        waiting = fleet.submit(opened.wait())
        waiting.add_done_callback(lambda done: arriving.put(terminal.OUTPUT, b""))
        failure: Exception | None = None
        left_out: list[str] = []
        try:
            left_out = unpack(cast(IO[bytes], io.BufferedReader(arriving, _PIECE_BYTES)), target)
        except (OSError, tarfile.TarError) as exc:
            failure = exc
        # Of an archive that cannot be read the other end may know why; of these it does not.
        if isinstance(failure, OSError | tarfile.ExtractError):
            raise failure
        arriving.drop_rest()
        _check(waiting.result(), arriving.said, address)
        if failure is not None:
            raise failure
        for words in left_out:
            context.complain(words)
    finally:
        arriving.drop_rest()
        fleet.run(opened.aclose(), COPY_CLOSE_SECONDS)


def unpack(source: IO[bytes], target: Path) -> list[str]:
    """Write what an archive of the container's has: into a folder that is there, else under this path.

    Nothing of it gets anywhere else, whatever the container says. Returns, in words, what was left out: links that lead
    out of what was copied, and what is neither file, folder nor link. Raises OSError and tarfile.TarError.
    """
    folder, new_name = (target, "") if target.is_dir() else (target.parent, target.name)
    if not folder.is_dir():
        raise FileNotFoundError(2, os.strerror(2), str(folder))
    left_out: dict[str, str] = {}
    with tarfile.open(fileobj=source, mode="r|", bufsize=_PIECE_BYTES) as archive:
        # tarfile's own filters are not in every Python 3.11, and refuse the whole archive for one link.
        archive.extraction_filter = lambda member, path: member
        for member in archive:
            member.name = _renamed(member.name, new_name)
            reason = _prepare(member, folder, new_name, left_out)
            if reason:
                left_out[member.name] = reason
            elif not _extract(archive, member, folder):
                left_out[member.name] = "this machine makes no such links"
    return [f"{name} is left out: {reason}." for name, reason in left_out.items()]


def _renamed(name: str, new_name: str) -> str:
    _, mark, rest = name.partition("/")
    return f"{new_name}{mark}{rest}" if new_name else name


def _prepare(member: tarfile.TarInfo, folder: Path, new_name: str, left_out: Collection[str]) -> str:
    """Have a member give no rights, and return why it is left out. Raises tarfile.ExtractError."""
    _demand_inside(folder, member.name, member.name)
    # Whoever copies owns it: no file is run as another, or written by others.
    member.uid, member.gid, member.uname, member.gname = _OWNER[0], _OWNER[1], "", ""
    member.mode = member.mode & 0o755 | (0o700 if member.isdir() else 0o600)
    if member.issym():
        above = posixpath.dirname(member.name)
        is_inside = not posixpath.isabs(member.linkname) and _is_inside(
            folder, f"{above}/{member.linkname}".lstrip("/")
        )
        return "" if is_inside else f"it is a link to {member.linkname}"
    if member.islnk():
        member.linkname = _renamed(member.linkname, new_name)
        if member.linkname in left_out:
            return f"it is another name of {member.linkname}"
        _demand_inside(folder, member.linkname, member.name)
        _make_way(folder, member)
        return ""
    return "" if member.isreg() or member.isdir() else "it is neither a file nor a folder"


def _demand_inside(folder: Path, name: str, called: str) -> None:
    if not _is_inside(folder, name):
        raise tarfile.ExtractError(f"{called!r} would be outside of {folder}")


def _is_inside(folder: Path, name: str) -> bool:
    # Not Path.resolve(), which raises at links that lead to each other.
    return Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> bool:
    """Write a member; False for a link where this system makes none. Raises OSError and tarfile.TarError."""
    try:
        archive.extract(member, folder)
    except (OSError, tarfile.TarError, KeyError):
        # Windows lets few users make links; of a stream tarfile cannot copy instead.
        if not (sys.platform == "win32" and member.issym()):
            raise
        return False
    return True


def _make_way(folder: Path, member: tarfile.TarInfo) -> None:
    """Remove a file where a hard link is to be: tarfile does so for other members only. Raises tarfile.TarError."""
    if not (folder / member.linkname).exists():
        raise tarfile.ExtractError(f"{member.name} is a link to a file that did not come")
    place = folder / member.name
    if place.is_symlink() or place.is_file():
        place.unlink()


def _check(code: int, said: bytes | bytearray, address: RelayAddress) -> None:
    if code:
        reason = bytes(said).decode("utf-8", "replace").strip() or f"exit code {code}"
        raise KernelBridgeError(
            f"{short_id(address.kernel)} on {address.host}: {reason}.", "Check the path in the container."
        )
