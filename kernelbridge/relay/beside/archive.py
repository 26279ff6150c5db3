"""Pack files of the container into a tar archive on stdout, or unpack one from stdin: `pack PATH`, `unpack PATH`.

With Python's own tarfile: many images have no tar.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tarfile
from typing import BinaryIO, List, Sequence, Tuple


def pack(path: str, sink: BinaryIO) -> None:
    """Write a file, or a folder with all in it, under its own name. Raises OSError."""
    os.lstat(path)
    name = os.path.basename(path.rstrip("/"))
    if name in ("", ".", ".."):
        name = os.path.basename(os.path.realpath(path)) or "root"
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        archive.add(path, arcname=name)


def unpack(path: str, source: BinaryIO) -> None:
    """Write what the archive has into a folder that is there; else under this path. Raises OSError."""
    folder, new_name = (path, "") if os.path.isdir(path) else os.path.split(path.rstrip("/"))
    if not os.path.isdir(folder or "."):
        raise FileNotFoundError(2, "No such file or directory", folder)
    # Their modes and times are given last: until then files are written into them.
    folders: List[Tuple[str, int, float]] = []
    with tarfile.open(fileobj=source, mode="r|") as archive:
        # What Python 3.14 refuses by itself: modes and links stay as they are.
        archive.extraction_filter = lambda member, path: member
        for member in archive:
            member.name = _inside(member.name, new_name)
            if not member.name:
                continue
            place = os.path.join(folder, member.name)
            if member.islnk():
                member.linkname = _inside(member.linkname, new_name)
                _make_way(place, os.path.join(folder, member.linkname))
            elif member.isdir():
                folders.append((place, member.mode, member.mtime))
                member.mode |= 0o700
            # Whoever unpacks owns it: numbers of another machine say nothing here.
            member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
            archive.extract(member, folder or ".", set_attrs=True)
    for place, mode, changed in reversed(folders):
        # A folder that was there may be another's; tarfile lets that pass, too.
        with contextlib.suppress(OSError):
            os.utime(place, (changed, changed))
        with contextlib.suppress(OSError):
            os.chmod(place, mode)


def _inside(name: str, new_name: str) -> str:
    """Return the name of a member, or of what it links to, as it is below the folder; empty: the folder itself."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join([new_name, *parts[1:]] if parts and new_name else parts)


def _make_way(place: str, linked: str) -> None:
    """Remove a file where a hard link is to be: tarfile does so for other members, and for these in newer Pythons."""
    if not os.path.lexists(linked):
        raise FileNotFoundError(2, "No such file or directory", linked)
    if os.path.islink(place) or os.path.isfile(place):
        os.unlink(place)


def run(words: Sequence[str]) -> None:
    """Do what the words say. Raises OSError and tarfile.TarError."""
    if words[0] == "pack":
        pack(words[1], sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        unpack(words[1], sys.stdin.buffer)


def main() -> None:
    """Carry it out; what goes wrong is a line on stderr."""
    try:
        run(sys.argv[1:])
    except OSError as exc:
        sys.exit("%s: %s" % (exc.filename or sys.argv[2], exc.strerror or exc))
    except tarfile.TarError as exc:
        sys.exit(str(exc))
