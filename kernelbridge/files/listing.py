"""List a project's files, here and on a host: what each is like, as far as it can be seen without reading it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import stat
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from kernelbridge.files.ignore import Ignore

# How much of a file is read at once.
_BLOCK_BYTES: Final = 1 << 20
# Its fields, and behind a byte 0 where a link leads: "f 12 1700000000.1234567890 644 src/a.py". What may not be looked
# into is of the kind `u`.
FIND_FORMAT: Final = r"%y %s %T@ %m %P\0%l\0"
UNREADABLE_FORMAT: Final = r"u 0 0 0 %P\0\0"


class Kind(Enum):
    """What a path is; sockets and devices are not copied."""

    FILE = "f"
    FOLDER = "d"
    LINK = "l"


class Entry(NamedTuple):
    """What was seen of one path. A tuple: there may be 100,000 of them."""

    kind: Kind
    size_bytes: int = 0
    mtime_ns: int = 0
    is_executable: bool = False
    # Where a link leads, as it says it.
    target: str = ""


FOLDER: Final = Entry(Kind.FOLDER)


@dataclass(kw_only=True)
class Listing:
    """What is in a folder, by path inside it, with slashes. Bytes that are no UTF-8 are surrogate escapes."""

    entries: dict[str, Entry] = field(default_factory=dict)
    # Folders that could not be looked into: what is in them is not known.
    unknown: dict[str, str] = field(default_factory=dict)
    # What is neither file nor folder nor link, or has a name that cannot be used, and why it is left out.
    left_out: dict[str, str] = field(default_factory=dict)
    # Whether what is not listed is not there.
    is_whole: bool = True

    def __repr__(self) -> str:
        return f"<Listing {len(self.entries)} entries{'' if self.is_whole else ', not whole'}>"


def to_bytes(path: str) -> bytes:
    """Return a path as hosts have it."""
    return path.encode("utf-8", "surrogateescape")


def to_text(path: bytes) -> str:
    """Return a path of a host as text."""
    return path.decode("utf-8", "surrogateescape")


def scan(root: Path, ignore: Ignore, *, platform: str = sys.platform) -> Listing:
    """List a folder of this machine without what is ignored; reads .gitignore files as it comes by. Blocks."""
    scanned = _Scan(root, ignore, platform)
    scanned.run()
    return scanned.found


class _Scan:
    """One scan: `found` grows while run() goes from folder to folder."""

    def __init__(self, root: Path, ignore: Ignore, platform: str) -> None:
        self._root, self._ignore, self._platform = root, ignore, platform
        self.found = Listing()

    def run(self) -> None:
        """Look into each folder that is not ignored."""
        todo = [""]
        while todo:
            folder = todo.pop()
            try:
                with os.scandir(self._root / folder) as entries:
                    here = list(entries)
            except OSError as exc:
                self.found.unknown[folder] = exc.strerror or str(exc)
                continue
            if any(entry.name == ".gitignore" for entry in here):
                with contextlib.suppress(OSError):
                    text = (self._root / folder / ".gitignore").read_text("utf-8", "replace")
                    self._ignore.learn(folder, text)
            todo += filter(None, (self._take(entry, folder) for entry in here))

    def _take(self, entry: os.DirEntry[str], folder: str) -> str:
        """List one entry of a folder; return its path if it is a folder to be looked into, else nothing."""
        # macOS finds a file by either form, and may say the one that nobody wrote.
        name = unicodedata.normalize("NFC", entry.name) if self._platform == "darwin" else entry.name
        path = f"{folder}/{name}" if folder else name
        is_folder = entry.is_dir(follow_symlinks=False)
        if self._ignore.excludes(path, is_folder=is_folder):
            return path if is_folder and self._ignore.enters(path) else ""
        try:
            seen = _inside(self._root, path, look_at(entry.path, entry.stat(follow_symlinks=False)))
            to_bytes(path)
        except UnicodeEncodeError:
            self.found.left_out[path] = "its name cannot be written on other machines"
        except FileNotFoundError:
            # Gone since the folder was read.
            pass
        except OSError as exc:
            self.found.unknown[path] = exc.strerror or str(exc)
        else:
            if seen is not None:
                self.found.entries[path] = seen
                return path if seen.kind is Kind.FOLDER else ""
            self.found.left_out[path] = "it is neither a file nor a folder nor a link"
        return ""


def _inside(root: Path, path: str, seen: Entry | None) -> Entry | None:
    """Return an entry as it is; a link by a whole path into the project with one that means the same elsewhere."""
    if seen is None or seen.kind is not Kind.LINK or not Path(seen.target).is_absolute():
        return seen
    target = relative_target(path, seen.target, root.as_posix())
    return seen._replace(target=target)


def relative_target(path: str, target: str, root: str) -> str:
    """Return where the link at a path of the project leads, relative to itself if that is inside `root`."""
    if target != root and not target.startswith(root.rstrip("/") + "/"):
        return target
    return posixpath.relpath(target, posixpath.join(root, posixpath.dirname(path)))


def look_at(path: str | Path, seen: os.stat_result) -> Entry | None:
    """Say what a path of this machine is, by its lstat(); None for what is not copied. Raises: OSError."""
    if stat.S_ISREG(seen.st_mode):
        # Windows has no such bit: there a name says whether it can be run.
        is_executable = sys.platform != "win32" and bool(seen.st_mode & stat.S_IXUSR)
        return Entry(Kind.FILE, seen.st_size, seen.st_mtime_ns, is_executable)
    if stat.S_ISLNK(seen.st_mode):
        return Entry(Kind.LINK, target=os.readlink(path).replace(os.sep, "/"))  # noqa: PTH115 - Path makes it another
    # A junction of Windows is a folder that leads elsewhere.
    is_junction = bool(getattr(seen, "st_reparse_tag", 0))
    return FOLDER if stat.S_ISDIR(seen.st_mode) and not is_junction else None


def look_here(root: Path, path: str) -> Entry | None:
    """Say what one path is now; None for what is not there, or not copied. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return _inside(root, path, look_at(root / path, (root / path).lstat()))
    return None


def find_words(ignore: Ignore) -> list[str]:
    """Return the words behind `find .` of GNU that list a host's copy."""
    names = [word for name in ignore.unentered_names() for word in ("-name", name, "-o")][:-1]
    readable = ["-type", "d", "!", "(", "-readable", "-executable", ")", "-printf", UNREADABLE_FORMAT, "-prune"]
    skipped = ["-type", "d", "(", *names, ")", "-prune"]
    return ["-mindepth", "1", "(", *skipped, ")", "-o", "(", *readable, ")", "-o", "-printf", FIND_FORMAT]


def is_inner(path: str) -> bool:
    """Whether a path that a host names is one inside the folder, and no other way to write it."""
    return all(part not in ("", ".", "..") for part in path.split("/"))


def file_entry(size: bytes, mtime: bytes, mode: bytes) -> Entry:
    """Return a file as find tells of it. Raises: ValueError."""
    seconds, _, part = mtime.partition(b".")
    mtime_ns = int(seconds) * 1_000_000_000 + int((part + b"0" * 9)[:9])
    return Entry(Kind.FILE, int(size), mtime_ns, bool(int(mode, 8) & stat.S_IXUSR))


def parse_find(answer: bytes, ignore: Ignore | None = None) -> Listing:
    """Read what find_words() prints; without rules nothing is left out."""
    found = Listing()
    fields = answer.split(b"\0")
    found.is_whole = len(fields) % 2 == 1 and not fields[-1]
    for head, target in zip(fields[::2], fields[1::2], strict=False):
        kind, _, rest = head.partition(b" ")
        size, _, rest = rest.partition(b" ")
        mtime, _, rest = rest.partition(b" ")
        mode, _, name = rest.partition(b" ")
        path = to_text(name)
        if not is_inner(path):
            # It is somebody else's find: what is not there is not known.
            found.is_whole = False
        elif kind == b"u":
            found.unknown[path] = "Permission denied"
        elif kind == b"d":
            found.entries[path] = FOLDER
        elif kind == b"l":
            found.entries[path] = Entry(Kind.LINK, target=to_text(target))
        elif kind == b"f":
            with contextlib.suppress(ValueError):
                found.entries[path] = file_entry(size, mtime, mode)
            found.is_whole = found.is_whole and path in found.entries
    if ignore is not None:
        drop_ignored(found, ignore)
    return found


def drop_ignored(listing: Listing, ignore: Ignore) -> None:
    """Leave out of a host's listing what is left out of ours."""
    shut: set[str] = set()
    for path in sorted(listing.entries):
        folder = path.rpartition("/")[0]
        is_folder = listing.entries[path].kind is Kind.FOLDER
        if folder in shut or (is_folder and not ignore.enters(path)):
            # The folder was seen before what is in it.
            shut.update([path] if is_folder else ())
            del listing.entries[path]
        elif ignore.excludes(path, is_folder=is_folder):
            del listing.entries[path]


def hash_here(path: Path, size_bytes: int = -1) -> str:
    """Return the SHA-256 of a file of this machine, or of its beginning. Blocks. Raises: OSError."""
    digest, left = hashlib.sha256(), size_bytes
    with path.open("rb") as file:
        while left and (block := file.read(_BLOCK_BYTES if left < 0 else min(left, _BLOCK_BYTES))):
            digest.update(block)
            left -= len(block) if left > 0 else 0
    return digest.hexdigest()


def folded(paths: Iterable[str]) -> dict[str, str]:
    """Return paths by what a file system that ignores case and form takes them for."""
    return {unicodedata.normalize("NFC", path).casefold(): path for path in paths}
