"""Copy files by SFTP: many small ones at once; a large one goes on where a cut has ended it.

A file is written under another name, and renamed once it is whole. A rename waits for a last look at what it replaces.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kernelbridge.errors import WorkspaceFailed
from kernelbridge.files.ignore import PARTS_FOLDER
from kernelbridge.files.listing import Entry, hash_here, look_here, to_bytes
from kernelbridge.files.plan import Action
from kernelbridge.files.transfer import local_copy
from kernelbridge.files.transfer.host_copy import HOPELESS_REASONS, HostCopy
from kernelbridge.files.transfer.host_shell import DeedRefused

if TYPE_CHECKING:
    from kernelbridge.hosts.transport.sftp import Sftp, SftpWriter  # loads asyncssh

# Smaller files are sent whole, and so many at once.
_SMALL_BYTES: Final = 1 << 20
_AT_ONCE: Final = 48
# What is written of a large file before the next part is begun: after a cut all parts but the last are whole.
_PART_BYTES: Final = 4 << 20
# Called with how many files and bytes have come since the last call.
Progress = Callable[[int, int], None]


class SftpCopier:
    """Carries files between this machine and a host's copy; `failures` says which it could not, and why."""

    def __init__(self, copy: HostCopy, sftp: Sftp, local_root: Path, progress: Progress) -> None:
        self._copy, self._sftp, self._root, self._progress = copy, sftp, local_root, progress
        # By path; filled while it copies.
        self.failures: dict[str, str] = {}

    async def send(self, actions: Sequence[Action]) -> None:
        """Copy files to the host. Raises: WorkspaceFailed: nothing can be written there, LinkLost, SshFailed."""
        await self._each(actions, self._send)

    async def fetch(self, actions: Sequence[Action]) -> None:
        """Copy files from the host to where local_copy.staged() says. Raises: as send(), WorkspaceFailed: this disk."""
        await self._each(actions, self._fetch)

    async def _each(self, actions: Sequence[Action], copy_one: Callable[[Action], Coroutine[Any, Any, None]]) -> None:
        todo = iter(actions)

        async def work() -> None:
            for action in todo:
                await copy_one(action)

        await _all(work() for _ in range(min(_AT_ONCE, len(actions))))

    async def _send(self, action: Action) -> None:
        local = action.local
        assert local is not None
        try:
            await self._send_file(action, local)
        except FileNotFoundError:
            # Gone since it was listed, or its folder there is: the next pass sees what has become of it.
            self.failures[action.path] = ""
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if exc.filename is None and reason == "Failure":
                reason = await self._copy.why_not_written()
            if reason in HOPELESS_REASONS and exc.filename is None:
                raise WorkspaceFailed(host=self._copy.link.name, reason=f"{action.path}: {reason}") from exc
            where = "here" if exc.filename is not None else f"on {self._copy.link.name}"
            self.failures[action.path] = f"{reason} {where}"

    async def _send_file(self, action: Action, local: Entry) -> None:
        part = posixpath.join(self._copy.state_folder, "parts", _part_name(action.path, local))
        permissions = 0o755 if local.is_executable else 0o644
        mtime_seconds = local.mtime_ns // 1_000_000_000
        if local.size_bytes <= _SMALL_BYTES:
            content = await asyncio.to_thread((self._root / action.path).read_bytes)
            async with self._sftp.writing(to_bytes(part), permissions=permissions, is_new=True) as file:
                if content:
                    await file.write(content, 0)
                await file.finish(permissions=permissions, mtime_seconds=mtime_seconds, size_bytes=len(content))
            self._progress(0, len(content))
        else:
            offset = await self._whole_part(part, action.path, local)
            async with self._sftp.writing(to_bytes(part), permissions=permissions, is_new=offset == 0) as file:
                end = await self._send_large(file, action.path, offset, local.size_bytes)
                await file.finish(permissions=permissions, mtime_seconds=mtime_seconds, size_bytes=end)
        await self._put_in_place(part, action)
        self._progress(1, 0)

    async def _whole_part(self, part: str, path: str, local: Entry) -> int:
        """Return how much of a large file is on the host from before a cut; it is read before it is believed."""
        there = await self._sftp.look(to_bytes(part))
        if there is None or there.size_bytes == 0 or there.size_bytes > local.size_bytes:
            return 0
        offset = (there.size_bytes - 1) // _PART_BYTES * _PART_BYTES
        if not offset:
            return 0
        name = f"./{posixpath.basename(self._copy.state_folder)}/parts/{posixpath.basename(part)}"
        try:
            theirs = self._copy.shell.hash_beginning(name, offset)
            ours = asyncio.to_thread(hash_here, self._root / path, offset)
            is_same = len(set(await asyncio.gather(theirs, ours))) == 1
        except DeedRefused:
            return 0
        if is_same:
            self._progress(0, offset)
        return offset if is_same else 0

    async def _send_large(self, file: SftpWriter, path: str, offset: int, end: int) -> int:
        with (self._root / path).open("rb") as source:
            source.seek(offset)
            # Not more than was seen: a log that grows has no end.
            while offset < end:
                content = await asyncio.to_thread(source.read, min(_PART_BYTES, end - offset))
                if not content:
                    break
                await file.write(content, offset)
                offset += len(content)
                self._progress(0, len(content))
        return offset

    async def _put_in_place(self, part: str, action: Action) -> None:
        """Rename a whole file to its name, where there is still what was seen."""
        target = to_bytes(posixpath.join(self._copy.root, action.path))
        if action.host is not None:
            found = await self._copy.look([action.path])
            if found.get(action.path) != action.host:
                await self._sftp.remove(to_bytes(part))
                self.failures[action.path] = ""
                return
        try:
            await self._sftp.rename(to_bytes(part), target, replaces=action.host is not None)
        except OSError:
            # SFTP does not say why. Where there is something meanwhile, the next pass decides anew.
            if action.host is not None or await self._sftp.look(target) is None:
                raise
            await self._sftp.remove(to_bytes(part))
            self.failures[action.path] = ""

    async def _fetch(self, action: Action) -> None:
        host = action.host
        assert host is not None
        part = local_copy.staged(self._root, action.path, host)
        try:
            await self._fetch_file(action.path, host, part)
        except FileNotFoundError:
            self.failures[action.path] = ""
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if reason in HOPELESS_REASONS and exc.filename is not None:
                raise WorkspaceFailed(host="This machine", reason=f"{action.path}: {reason}") from exc
            self.failures[action.path] = f"{reason} {'here' if exc.filename else f'on {self._copy.link.name}'}"
        else:
            self._progress(1, 0)

    async def _fetch_file(self, path: str, host: Entry, part: Path) -> None:
        source, offset = to_bytes(posixpath.join(self._copy.root, path)), 0
        (self._root / PARTS_FOLDER).mkdir(exist_ok=True)
        there = look_here(part.parent, part.name)
        if there is not None:
            offset = min(there.size_bytes, host.size_bytes) // _PART_BYTES * _PART_BYTES
        if offset:
            try:
                theirs = self._copy.shell.hash_beginning(self._copy.inside(path), offset)
                ours = asyncio.to_thread(hash_here, part, offset)
                offset = offset if len(set(await asyncio.gather(theirs, ours))) == 1 else 0
            except DeedRefused:
                offset = 0
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.truncate()
            while offset < host.size_bytes:
                content = await self._sftp.read(source, offset, min(_PART_BYTES, host.size_bytes - offset))
                if not content:
                    break
                await asyncio.to_thread(file.write, content)
                offset += len(content)
                self._progress(0, len(content))


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run works side by side; the first failure ends the others, and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _part_name(path: str, local: Entry) -> str:
    made_of = b"%s\0%d\0%d" % (to_bytes(path), local.size_bytes, local.mtime_ns)
    return hashlib.sha256(made_of).hexdigest()[:32]
