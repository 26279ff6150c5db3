"""Pack a folder into the archive that an engine builds an image of, and tell by a hash whether it has changed."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from kernelbridge.hosts.docker.images import dockerignore
from kernelbridge.hosts.docker.images.dockerignore import IgnoreRules

IGNORE_FILE: Final = ".dockerignore"


class ContextFailed(Exception):
    """A folder cannot be packed; says why."""


class _Hashing:
    """A file whose content is hashed while another reads it."""

    def __init__(self, file: IO[bytes], digest: hashlib._Hash) -> None:
        self._file = file
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        """Called by tarfile."""
        piece = self._file.read(size)
        self._digest.update(piece)
        return piece


def pack(folder: Path, dockerfile: str, archive: Path) -> str:
    """Write all of a folder that its `.dockerignore` lets through; return a hash of it. Raises ContextFailed.

    The hash is that of names, modes and contents: when a file was touched is no matter.
    """
    if not folder.is_dir():
        raise ContextFailed(f"{folder} is no folder of this machine")
    if not (folder / dockerfile).is_file():
        raise ContextFailed(f"there is no {dockerfile} in {folder}")
    digest = hashlib.sha256()
    try:
        rules = _rules(folder, dockerfile)
        with _archive(archive) as tar:
            for path, name in _files(folder, rules):
                _add(tar, path, name, digest)
    except (OSError, tarfile.TarError, UnicodeError) as exc:
        raise ContextFailed(_words(exc)) from exc
    except ValueError as exc:
        raise ContextFailed(f"{IGNORE_FILE}: {exc}") from exc
    return digest.hexdigest()


def _archive(path: Path) -> tarfile.TarFile:
    """Begin an archive. Docker's client takes it for one by its first 512 bytes, which may not be a long name's."""
    tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - the caller's
    top = tarfile.TarInfo(".")
    top.type, top.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(top)
    return tar


def _words(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.filename is not None:
        return f"{exc.filename}: {exc.strerror}"
    return str(exc)


def _rules(folder: Path, dockerfile: str) -> IgnoreRules:
    """Read the file of rules; one that is named for the Dockerfile counts instead of the folder's."""
    own = f"{dockerfile}{IGNORE_FILE}"
    name = own if (folder / own).is_file() else IGNORE_FILE
    text = (folder / name).read_text("utf-8") if (folder / name).is_file() else ""
    return dockerignore.parse(text, always_sent=(dockerfile, name))


def _files(folder: Path, rules: IgnoreRules) -> Iterator[tuple[Path, str]]:
    """Yield what is to be sent, in order, each with its name in the archive."""

    def stop(exc: OSError) -> None:
        raise exc

    for root, folders, files in os.walk(folder, onerror=stop):
        base = Path(root).relative_to(folder)
        for entry in sorted([*folders, *files]):
            name = (base / entry).as_posix()
            if not rules.excludes(name):
                yield Path(root) / entry, name
        folders[:] = sorted(one for one in folders if not rules.excludes_all_below((base / one).as_posix()))


def _add(tar: tarfile.TarFile, path: Path, name: str, digest: hashlib._Hash) -> None:
    info = tar.gettarinfo(path, arcname=name)
    if info is None or not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
        return  # Sockets and devices.
    info.uid = info.gid = 0
    info.mtime = int(info.mtime)
    info.uname = info.gname = ""
    if info.islnk():
        # Two names of one file; in the archive each is a file.
        info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
    # Windows has no bit for what may be run; as Docker's own client does there, all may.
    info.mode = 0o755 if sys.platform == "win32" else stat.S_IMODE(info.mode)
    digest.update(repr((name, info.type, info.mode, info.linkname, info.size)).encode("utf-8", "surrogateescape"))
    if not info.isreg():
        tar.addfile(info)
        return
    with path.open("rb") as file:
        tar.addfile(info, _Hashing(file, digest))


def filtered(received: Path, dockerfile: str, archive: Path) -> None:
    """Write what of another machine's archive of a whole folder its `.dockerignore` lets through.

    Raises ContextFailed.
    """
    try:
        with tarfile.open(received) as source, _archive(archive) as tar:
            names = {_plain(member.name): member for member in source}
            if dockerfile not in names:
                raise ContextFailed(f"there is no {dockerfile} in it")
            own = f"{dockerfile}{IGNORE_FILE}"
            ignore = own if own in names else IGNORE_FILE
            file = source.extractfile(names[ignore]) if ignore in names else None
            text = file.read().decode("utf-8", "replace") if file is not None else ""
            rules = dockerignore.parse(text, always_sent=(dockerfile, ignore))
            for name, member in names.items():
                if name and not rules.excludes(name):
                    content = source.extractfile(member) if member.isreg() else None
                    tar.addfile(member.replace(name=name, uid=0, gid=0, uname="", gname=""), content)
    except (OSError, tarfile.TarError) as exc:
        raise ContextFailed(_words(exc)) from exc
    except ValueError as exc:
        raise ContextFailed(f"{IGNORE_FILE}: {exc}") from exc


def _plain(name: str) -> str:
    return name.removeprefix("./") if name != "." else ""


def base_images(archive: Path, dockerfile: str) -> list[str]:
    """Return the images that a Dockerfile names as its bases, each once; not its own stages."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(dockerfile)
        text = file.read().decode("utf-8", "replace") if file is not None else ""
    found: dict[str, None] = {}
    stages = {"scratch"}
    for line in text.splitlines():
        words = [word for word in line.split() if not word.startswith("--")]
        if len(words) < 2 or words[0].upper() != "FROM":
            continue
        if words[1].lower() not in stages and "$" not in words[1]:
            found[words[1]] = None
        if len(words) > 3 and words[2].upper() == "AS":
            stages.add(words[3].lower())
    return list(found)
