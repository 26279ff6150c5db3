"""Read and write a host's files over SFTP, in a channel of the link. asyncssh's errors become OSError or LinkLost here.

Paths are bytes, as the host has them. Times are whole seconds: OpenSSH speaks version 3 of the protocol.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

import asyncssh
from asyncssh.constants import FXF_CREAT, FXF_READ, FXF_TRUNC, FXF_WRITE
from asyncssh.sftp import SFTPClient, SFTPClientFile

from kernelbridge.errors import KernelBridgeError

# Times are 32 bits without a sign.
_MOST_SECONDS = (1 << 32) - 1
_REASONS: tuple[tuple[type[Exception], int, str], ...] = (
    (asyncssh.SFTPNoSuchFile, errno.ENOENT, "No such file or directory"),
    (asyncssh.SFTPNoSuchPath, errno.ENOENT, "No such file or directory"),
    (asyncssh.SFTPPermissionDenied, errno.EACCES, "Permission denied"),
)


@dataclass(frozen=True, kw_only=True)
class SftpFacts:
    """What a path on the host is, without following links."""

    mode: int
    size_bytes: int
    mtime_seconds: int

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a link."""
        return stat.S_ISLNK(self.mode)


class Sftp:
    """One SFTP session. Made by Link.open_sftp()."""

    def __init__(self, client: SFTPClient, *, name: str, lost: Callable[[], KernelBridgeError | None]) -> None:
        self._client = client
        self._name = name
        # Returns why the link is gone; None while it is open.
        self._lost = lost

    def __repr__(self) -> str:
        return f"<Sftp {self._name}>"

    async def __aenter__(self) -> Sftp:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (asyncssh.Error, OSError, ValueError) as exc:
            if (lost := self._lost()) is not None:
                raise lost from exc
            for kind, number, reason in _REASONS:
                if isinstance(exc, kind):
                    raise OSError(number, reason) from exc
            raise OSError(errno.EIO, str(exc) or type(exc).__name__) from exc

    async def look(self, path: bytes) -> SftpFacts | None:
        """Say what a path is; None where nothing is. Raises: OSError, LinkLost."""
        with contextlib.suppress(FileNotFoundError), self._translated():
            return _facts(await self._client.lstat(path))
        return None

    async def entries(self, folder: bytes) -> list[tuple[bytes, SftpFacts]]:
        """List a folder. Raises: OSError, LinkLost."""
        with self._translated():
            found = await self._client.readdir(folder)
        return [
            (bytes(entry.filename), _facts(entry.attrs))
            for entry in found
            if isinstance(entry.filename, bytes) and entry.filename not in (b".", b"..")
        ]

    async def link_target(self, path: bytes) -> bytes:
        """Say where a link leads. Raises: OSError, LinkLost."""
        with self._translated():
            return await self._client.readlink(path)
        raise AssertionError("an error is never swallowed")  # which mypy cannot know

    async def remove(self, path: bytes) -> None:
        """Remove a file; that there is none is no error. Raises: OSError, LinkLost."""
        with contextlib.suppress(FileNotFoundError), self._translated():
            await self._client.remove(path)

    async def rename(self, old: bytes, new: bytes, *, replaces: bool) -> None:
        """Give a file another name; without `replaces` one that is free. Raises: OSError, LinkLost."""
        with self._translated():
            if replaces:
                await self._client.posix_rename(old, new)
            else:
                await self._client.rename(old, new)

    @contextlib.asynccontextmanager
    async def writing(self, path: bytes, *, permissions: int, is_new: bool) -> AsyncIterator[SftpWriter]:
        """Open a file to be written, empty or as it is. Raises: OSError, LinkLost."""
        flags = FXF_WRITE | FXF_CREAT | (FXF_TRUNC if is_new else 0)
        with self._translated():
            # Without an encoding what is written is bytes.
            file = await self._client.open(path, flags, asyncssh.SFTPAttrs(permissions=permissions), encoding=None)
            try:
                yield SftpWriter(file)
            finally:
                await file.close()

    async def read(self, path: bytes, offset: int, size_bytes: int) -> bytes:
        """Return a part of a file. Raises: OSError, LinkLost."""
        with self._translated():
            async with await self._client.open(path, FXF_READ, encoding=None) as file:
                content = await file.read(size_bytes, offset)
        assert isinstance(content, bytes)
        return content

    async def aclose(self) -> None:
        """End the session. Safe to call twice."""
        self._client.exit()
        with contextlib.suppress(asyncssh.Error, OSError):
            await self._client.wait_closed()


class SftpWriter:
    """A file that is being written. Its errors are translated by the session that opened it."""

    def __init__(self, file: SFTPClientFile) -> None:
        self._file = file

    async def write(self, content: bytes, offset: int) -> None:
        """Write bytes at an offset; returns once the host has all of them."""
        await self._file.write(content, offset)

    async def finish(self, *, permissions: int, mtime_seconds: int, size_bytes: int) -> None:
        """Set what the file is like beside its content, and cut what is behind its end."""
        seconds = min(max(mtime_seconds, 0), _MOST_SECONDS)
        attributes = asyncssh.SFTPAttrs(size=size_bytes, permissions=permissions, atime=seconds, mtime=seconds)
        await self._file.setstat(attributes)


def _facts(attributes: asyncssh.SFTPAttrs) -> SftpFacts:
    return SftpFacts(
        mode=attributes.permissions or 0,
        size_bytes=attributes.size or 0,
        mtime_seconds=int(attributes.mtime or 0),
    )
