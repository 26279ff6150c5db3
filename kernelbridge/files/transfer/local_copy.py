"""Change the project's files on this machine, and only those that are as they were seen. Everything here blocks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import shutil
import stat
import sys
from pathlib import Path
from typing import Final

from kernelbridge.files.ignore import PARTS_FOLDER
from kernelbridge.files.listing import Entry, Kind, is_inner, look_here, to_bytes

# What Windows does not allow in a name, and names that are devices there.
_WINDOWS_MARKS: Final = frozenset('<>:"\\|?*')
_WINDOWS_DEVICES: Final = frozenset(
    {"CON", "PRN", "AUX", "NUL", *(f"{name}{number}" for name in ("COM", "LPT") for number in range(1, 10))}
)


class NotDone(Exception):
    """A file of this machine was left as it is, for a reason. Users never see it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_name(path: str, *, platform: str = sys.platform) -> None:
    """Refuse a host's name that this machine cannot have, or that leads out of the project. Raises: NotDone."""
    if not is_inner(path):
        raise NotDone("it is no path inside the folder")
    parts = path.split("/")
    if platform == "win32":
        for part in parts:
            is_device = part.partition(".")[0].upper() in _WINDOWS_DEVICES
            if is_device or part[-1] in " ." or any(mark in _WINDOWS_MARKS or mark < " " for mark in part):
                raise NotDone("Windows allows no such name")
    if platform in ("win32", "darwin"):
        try:
            path.encode("utf-8")
        except UnicodeEncodeError:
            raise NotDone("this machine allows no such name") from None


def staged(root: Path, path: str, entry: Entry) -> Path:
    """Return where a file is kept that comes from the host, until it is whole; the same for the same file."""
    made_of = b"%s\0%d\0%d" % (to_bytes(path), entry.size_bytes, entry.mtime_ns)
    return root / PARTS_FOLDER / hashlib.sha256(made_of).hexdigest()[:32]


def stage(root: Path, path: str, entry: Entry, *, arrived: Path) -> None:
    """Keep a file that came into a folder of its own until it is placed. Raises: NotDone: it is no file, OSError."""
    came = arrived / path
    seen = came.lstat()
    if not stat.S_ISREG(seen.st_mode) or Path(os.path.realpath(came)) != Path(os.path.realpath(arrived)) / path:
        raise NotDone("what came is not the file that was listed")
    came.replace(staged(root, path, entry))


def place(root: Path, path: str, entry: Entry, *, part: Path | None, seen: Entry | None) -> Entry:
    """Put a file, link or folder from the host into its place, if there is what was `seen`; return what is there now.

    Raises: NotDone, OSError.
    """
    check_name(path)
    target = root / path
    make_parents(root, path)
    if look_here(root, path) != seen:
        raise NotDone("it was changed here meanwhile")
    if entry.kind is Kind.FOLDER:
        target.mkdir(exist_ok=True)
    elif entry.kind is Kind.LINK:
        _link(root, path, entry.target)
    elif part is not None:
        os.utime(part, ns=(entry.mtime_ns, entry.mtime_ns))
        part.chmod((part.stat().st_mode & 0o666) | (0o111 if entry.is_executable else 0))
        if seen is not None and seen.kind is Kind.FOLDER:
            target.rmdir()
        part.replace(target)
    found = look_here(root, path)
    if found is None:
        raise NotDone("it is gone again")
    return found


def _link(root: Path, path: str, leads_to: str) -> None:
    if leads_out(path, leads_to):
        raise NotDone("it is a link that leads out of the folder")
    fresh = (root / path).with_name(f"{PARTS_FOLDER}.link")
    fresh.unlink(missing_ok=True)
    # Windows lets few logins make links.
    fresh.symlink_to(leads_to, target_is_directory=(root / path).parent.joinpath(leads_to).is_dir())
    fresh.replace(root / path)


def leads_out(path: str, target: str) -> bool:
    """Whether a link at a path of the project leads out of it, as far as its own words say."""
    if posixpath.isabs(target) or (len(target) > 1 and target[1] == ":"):
        return True
    end = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return end == ".." or end.startswith("../")


def make_parents(root: Path, path: str) -> None:
    """Make the folders that a path is in. Raises: OSError, NotDone: one is a link, which could lead anywhere."""
    folder = root
    for part in path.split("/")[:-1]:
        folder = folder / part
        if folder.is_symlink():
            raise NotDone(f"{folder.relative_to(root).as_posix()} is a link here")
        folder.mkdir(exist_ok=True)


def delete(root: Path, path: str, seen: Entry) -> None:
    """Delete what was deleted on the host, if it is as it was seen; a folder only if it is empty.

    Raises: NotDone, OSError.
    """
    if look_here(root, path) != seen:
        raise NotDone("it was changed here meanwhile")
    with contextlib.suppress(FileNotFoundError):
        if seen.kind is Kind.FOLDER:
            with contextlib.suppress(OSError):
                shutil.rmtree(root / path / "__pycache__", ignore_errors=True)
                (root / path).rmdir()
        else:
            (root / path).unlink()


def sweep_parts(root: Path) -> None:
    """Remove the folder for what is not whole, where nothing is in it any more."""
    with contextlib.suppress(OSError):
        (root / PARTS_FOLDER).rmdir()
