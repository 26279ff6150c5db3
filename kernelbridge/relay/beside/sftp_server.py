"""Serve SFTP, version 3 as OpenSSH's sftp-server, on stdin and stdout: for images that have none.

Source: draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for the extensions. Names are bytes, whatever they are.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import time
from typing import BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

SFTP_VERSION = 3
# Of a request: OpenSSH's own limit.
_MOST_PACKET_BYTES = 256 * 1024
_MOST_READ_BYTES = _MOST_PACKET_BYTES - 1024
_NAMES_AT_ONCE = 100
_MOST_HANDLES = 1000

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT, _SETSTAT, _FSETSTAT = range(1, 11)
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH, _STAT, _RENAME, _READLINK, _SYMLINK = range(11, 21)
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS = range(101, 106)
_EXTENDED, _EXTENDED_REPLY = 200, 201

_OK, _EOF, _NO_SUCH_FILE, _DENIED, _FAILURE, _BAD_MESSAGE = range(6)
_UNSUPPORTED = 8
_BY_ERRNO = {
    errno.ENOENT: _NO_SUCH_FILE,
    errno.ENOTDIR: _NO_SUCH_FILE,
    errno.EBADF: _NO_SUCH_FILE,
    errno.ELOOP: _NO_SUCH_FILE,
    errno.EPERM: _DENIED,
    errno.EACCES: _DENIED,
    errno.EFAULT: _DENIED,
}

_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES = 1, 2, 4, 8
_HAS_EXTENDED = 0x80000000
_FOR_READ, _FOR_WRITE, _APPEND, _CREATE, _TRUNCATE, _EXCLUSIVE = 1, 2, 4, 8, 16, 32


class _BadPacket(Exception):
    """A request that is none."""


class _Declined(Exception):
    """A request that gets a status without an error of the system."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text)
        self.code = code


class Reader:
    """Takes values from the front of a packet."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._at = 0

    def _take(self, size: int) -> bytes:
        piece = self._packet[self._at : self._at + size]
        if len(piece) < size:
            raise _BadPacket
        self._at += size
        return piece

    def byte(self) -> int:
        """Return a number of one byte."""
        return self._take(1)[0]

    def number(self) -> int:
        """Return a number of four bytes."""
        return int(struct.unpack("!I", self._take(4))[0])

    def long(self) -> int:
        """Return a number of eight bytes."""
        return int(struct.unpack("!Q", self._take(8))[0])

    def text(self) -> bytes:
        """Return a string."""
        return self._take(self.number())


class Attributes(NamedTuple):
    """What a client wants a file to be; None: it does not say."""

    size: Optional[int] = None
    owner: Optional[Tuple[int, int]] = None
    mode: Optional[int] = None
    times: Optional[Tuple[int, int]] = None

    @classmethod
    def read(cls, packet: Reader) -> Attributes:
        """Read them."""
        flags = packet.number()
        size = packet.long() if flags & _HAS_SIZE else None
        owner = (packet.number(), packet.number()) if flags & _HAS_OWNER else None
        mode = packet.number() if flags & _HAS_MODE else None
        times = (packet.number(), packet.number()) if flags & _HAS_TIMES else None
        if flags & _HAS_EXTENDED:
            for _ in range(packet.number()):
                packet.text(), packet.text()
        return cls(size, owner, mode, times)

    def apply(self, target: Union[bytes, int]) -> None:
        """Give them to a file. Raises OSError."""
        if self.size is not None:
            os.truncate(target, self.size)
        if self.mode is not None:
            os.chmod(target, stat.S_IMODE(self.mode))
        if self.times is not None:
            os.utime(target, self.times)
        if self.owner is not None:
            os.chown(target, *self.owner)


def _string(text: bytes) -> bytes:
    return struct.pack("!I", len(text)) + text


def attributes(found: os.stat_result) -> bytes:
    """Return what a file is, as the protocol has it."""
    flags = _HAS_SIZE | _HAS_OWNER | _HAS_MODE | _HAS_TIMES
    times = [_moment(at) for at in (found.st_atime, found.st_mtime)]
    return struct.pack("!IQIIIII", flags, found.st_size, found.st_uid, found.st_gid, found.st_mode, *times)


def _moment(at: float) -> int:
    return min(max(0, int(at)), 0xFFFFFFFF)


def long_name(name: bytes, found: os.stat_result) -> bytes:
    """Return a line of `ls -l`, which clients print."""
    when = time.strftime("%b %d %Y", time.localtime(_moment(found.st_mtime)))
    head = "%s %4d %-8d %-8d %8d %s " % (
        stat.filemode(found.st_mode),
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size,
        when,
    )
    return head.encode() + name


class Folder:
    """An open folder: what of it has not been listed yet."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        names = [b".", b"..", *os.listdir(path)]
        self._names: Iterator[bytes] = iter(names)

    def next_names(self) -> List[bytes]:
        """Return some of them as the protocol has them; none at the end."""
        found: List[bytes] = []
        for name in self._names:
            try:
                about = os.lstat(os.path.join(self.path, name))
            except OSError:
                continue  # It was removed meanwhile.
            found.append(_string(name) + _string(long_name(name, about)) + attributes(about))
            if len(found) == _NAMES_AT_ONCE:
                break
        return found


class SftpServer:
    """Answers one client, request by request."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        # By the names that the client was given.
        self._files: Dict[bytes, int] = {}
        self._folders: Dict[bytes, Folder] = {}
        self._count = 0
        self._handlers: Dict[int, Callable[[Reader], Optional[bytes]]] = {
            _OPEN: self._open,
            _CLOSE: self._close,
            _READ: self._read,
            _WRITE: self._write,
            _LSTAT: lambda packet: _attrs(os.lstat(packet.text())),
            _STAT: lambda packet: _attrs(os.stat(packet.text() or b".")),
            _FSTAT: lambda packet: _attrs(os.fstat(self._file(packet))),
            _SETSTAT: self._set_attributes,
            _FSETSTAT: self._set_attributes_of_file,
            _OPENDIR: self._open_folder,
            _READDIR: self._read_folder,
            _REMOVE: self._remove,
            _MKDIR: self._make_folder,
            _RMDIR: self._remove_folder,
            _REALPATH: self._real_path,
            _RENAME: self._rename,
            _READLINK: self._read_link,
            _SYMLINK: self._make_link,
            _EXTENDED: self._extended,
        }

    def serve(self) -> None:
        """Answer until the client has gone."""
        try:
            while True:
                head = self._source.read(4)
                if len(head) < 4:
                    return
                size = struct.unpack("!I", head)[0]
                if not 1 <= size <= _MOST_PACKET_BYTES:
                    return
                packet = self._source.read(size)
                if len(packet) < size:
                    return
                self._send(self.answer(packet))
        except OSError:
            return  # Nobody reads any more.
        finally:
            for descriptor in self._files.values():
                os.close(descriptor)

    def _send(self, packet: bytes) -> None:
        self._sink.write(_string(packet))
        self._sink.flush()

    def answer(self, packet: bytes) -> bytes:
        """Return the answer to one request."""
        reader = Reader(packet)
        kind = reader.byte()
        if kind == _INIT:
            names = (b"posix-rename@openssh.com", b"hardlink@openssh.com", b"fsync@openssh.com")
            known = b"".join(_string(name) + _string(b"1") for name in names)
            known += _string(b"statvfs@openssh.com") + _string(b"2")
            return bytes([_VERSION]) + struct.pack("!I", SFTP_VERSION) + known
        try:
            number = reader.number()
        except _BadPacket:
            return _status(0, _BAD_MESSAGE, "no number")
        try:
            handler = self._handlers.get(kind)
            if handler is None:
                raise _Declined(_UNSUPPORTED, "not known here")
            body = handler(reader)
        except _BadPacket:
            return _status(number, _BAD_MESSAGE, "too short")
        except _Declined as exc:
            return _status(number, exc.code, str(exc))
        except OSError as exc:
            return _status(number, _BY_ERRNO.get(exc.errno or 0, _FAILURE), exc.strerror or "")
        except ValueError:
            return _status(number, _FAILURE, "a name with a zero byte")
        except OverflowError:
            return _status(number, _FAILURE, "a number too large")
        if body is None:
            return _status(number, _OK, "")
        return body[:1] + struct.pack("!I", number) + body[1:]

    # -- handles

    def _new_name(self) -> bytes:
        if len(self._files) + len(self._folders) >= _MOST_HANDLES:
            raise _Declined(_FAILURE, "too many open files")
        self._count += 1
        return b"%d" % self._count

    def _file(self, packet: Reader) -> int:
        name = packet.text()
        if name not in self._files:
            raise _Declined(_FAILURE, "no such handle")
        return self._files[name]

    def _open(self, packet: Reader) -> bytes:
        path, wanted, attrs = packet.text(), packet.number(), Attributes.read(packet)
        flags = {_FOR_READ: os.O_RDONLY, _FOR_WRITE: os.O_WRONLY}.get(wanted & 3, os.O_RDWR)
        for bit, flag in ((_APPEND, os.O_APPEND), (_CREATE, os.O_CREAT), (_TRUNCATE, os.O_TRUNC)):
            flags |= flag if wanted & bit else 0
        flags |= os.O_EXCL if wanted & _EXCLUSIVE else 0
        name = self._new_name()
        mode = 0o666 if attrs.mode is None else stat.S_IMODE(attrs.mode)
        self._files[name] = os.open(path, flags | os.O_CLOEXEC, mode)
        return bytes([_HANDLE]) + _string(name)

    def _close(self, packet: Reader) -> None:
        name = packet.text()
        if self._folders.pop(name, None) is not None:
            return
        if name not in self._files:
            raise _Declined(_FAILURE, "no such handle")
        os.close(self._files.pop(name))

    def _read(self, packet: Reader) -> bytes:
        descriptor, offset, size = self._file(packet), packet.long(), packet.number()
        piece = os.pread(descriptor, min(size, _MOST_READ_BYTES), offset)
        if not piece:
            raise _Declined(_EOF, "end of file")
        return bytes([_DATA]) + _string(piece)

    def _write(self, packet: Reader) -> None:
        descriptor, offset, data = self._file(packet), packet.long(), packet.text()
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], offset + written)

    def _set_attributes(self, packet: Reader) -> None:
        path = packet.text()
        Attributes.read(packet).apply(path)

    def _set_attributes_of_file(self, packet: Reader) -> None:
        descriptor = self._file(packet)
        Attributes.read(packet).apply(descriptor)

    # -- folders and links

    def _open_folder(self, packet: Reader) -> bytes:
        folder = Folder(packet.text() or b".")
        name = self._new_name()
        self._folders[name] = folder
        return bytes([_HANDLE]) + _string(name)

    def _read_folder(self, packet: Reader) -> bytes:
        folder = self._folders.get(packet.text())
        if folder is None:
            raise _Declined(_FAILURE, "no such handle")
        names = folder.next_names()
        if not names:
            raise _Declined(_EOF, "end of folder")
        return bytes([_NAME]) + struct.pack("!I", len(names)) + b"".join(names)

    def _make_folder(self, packet: Reader) -> None:
        path, attrs = packet.text(), Attributes.read(packet)
        os.mkdir(path, 0o777 if attrs.mode is None else stat.S_IMODE(attrs.mode))

    def _remove_folder(self, packet: Reader) -> None:
        os.rmdir(packet.text())

    def _remove(self, packet: Reader) -> None:
        os.unlink(packet.text())

    def _real_path(self, packet: Reader) -> bytes:
        return _one_name(os.path.realpath(packet.text() or b"."))

    def _rename(self, packet: Reader) -> None:
        source, target = packet.text(), packet.text()
        # The protocol's own rename replaces nothing.
        if os.path.lexists(target):
            raise _Declined(_FAILURE, "it is there already")
        os.rename(source, target)

    def _read_link(self, packet: Reader) -> bytes:
        return _one_name(os.readlink(packet.text()))

    def _make_link(self, packet: Reader) -> None:
        # OpenSSH has the two in the other order than the draft, and all clients follow it.
        target, link = packet.text(), packet.text()
        os.symlink(target, link)

    def _extended(self, packet: Reader) -> Optional[bytes]:
        name = packet.text()
        if name == b"statvfs@openssh.com":
            return _room(os.statvfs(packet.text()))
        if name == b"posix-rename@openssh.com":
            os.replace(packet.text(), packet.text())
        elif name == b"hardlink@openssh.com":
            os.link(packet.text(), packet.text())
        elif name == b"fsync@openssh.com":
            os.fsync(self._file(packet))
        else:
            raise _Declined(_UNSUPPORTED, "not known here")
        return None


def _room(found: os.statvfs_result) -> bytes:
    sizes = (found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail)
    files = (found.f_files, found.f_ffree, found.f_favail)
    return bytes([_EXTENDED_REPLY]) + struct.pack("!11Q", *sizes, *files, 0, 0, found.f_namemax)


def _status(number: int, code: int, text: str) -> bytes:
    return bytes([_STATUS]) + struct.pack("!II", number, code) + _string(text.encode("utf-8", "replace")) + _string(b"")


def _attrs(found: os.stat_result) -> bytes:
    return bytes([_ATTRS]) + attributes(found)


def _one_name(name: bytes) -> bytes:
    return bytes([_NAME]) + struct.pack("!I", 1) + _string(name) + _string(name) + struct.pack("!I", 0)


def main() -> None:
    """Serve whoever is at stdin and stdout."""
    SftpServer(sys.stdin.buffer, sys.stdout.buffer).serve()
