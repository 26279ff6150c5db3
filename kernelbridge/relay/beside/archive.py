"""Pack files of the container into a tar archive on stdout, or unpack one from stdin: `pack PATH`, `unpack PATH`.

With Python's own tarfile: many images have no tar.
"""

from __future__ import annotations

import os
import sys
import tarfile
from typing import BinaryIO, Sequence


def pack(path: str, sink: BinaryIO) -> None:
    """Write a file, or a folder with all in it, under its own name. Raises OSError."""
    os.lstat(path)
    name = os.path.basename(os.path.realpath(path) if path.endswith(("/.", "/..")) else path.rstrip("/")) or "root"
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        archive.add(path, arcname=name)


def unpack(path: str, source: BinaryIO) -> None:
    """Write what the archive has into a folder that is there; else under this path. Raises OSError."""
    folder, new_name = (path, "") if os.path.isdir(path) else os.path.split(path.rstrip("/"))
    if not os.path.isdir(folder or "."):
        raise FileNotFoundError(2, "No such file or directory", folder)
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
            if not parts:
                continue
            if new_name:
                parts[0] = new_name
            if member.islnk():
                member.linkname = "/".join([parts[0], *member.linkname.split("/")[1:]])
            member.name = "/".join(parts)
            # Whoever unpacks owns it: numbers of another machine say nothing here.
            member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
            archive.extract(member, folder or ".", set_attrs=True)


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
