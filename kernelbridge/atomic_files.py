"""Write a file whole or not at all: a reader sees the old one or the new one, never half of one.

No locks: home folders on NFS may have none that hold between machines.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED = re.compile(r"\..+\.[0-9]+\.[0-9a-f]{8}")


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is what a process has left that was killed as it wrote."""
    return _UNFINISHED.fullmatch(name) is not None


def write_whole(path: Path, content: bytes, *, is_private: bool) -> None:
    """Replace the file; a private one can be read by this login alone. Raises: OSError."""
    # The umask of the login takes its part of 0o666, as for any file.
    with _fresh(path, content, mode=0o600 if is_private else 0o666) as fresh:
        fresh.replace(path)


def write_through(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace the content of a file of the user's own, which keeps its mode, and may be a link; a new one gets `mode`.

    Some keep such files in a repository. It is on the disk when this returns. Raises: OSError.
    """
    kept_mode: int | None = None
    try:
        # Strict: else a link that cannot be read at the moment would count as none, and be replaced.
        target = Path(os.path.realpath(path, strict=True))
        kept_mode = stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        target = Path(os.path.realpath(path))
    with _fresh(target, content, mode=mode, is_synced=True) as fresh:
        if kept_mode is not None:
            fresh.chmod(kept_mode)
        fresh.replace(target)


def write_once(path: Path, content: bytes, *, is_private: bool) -> None:
    """Write the file unless there is one: of several who write at the same moment the first counts. Raises: OSError."""
    with _fresh(path, content, mode=0o600 if is_private else 0o666) as fresh:
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        except (OSError, NotImplementedError):
            # Not all file systems have hard links.
            if not path.exists():
                fresh.replace(path)
                return
        _remove(fresh)


@contextlib.contextmanager
def _fresh(path: Path, content: bytes, *, mode: int, is_synced: bool = False) -> Iterator[Path]:
    """Write a new file beside the one that is meant; whoever asks puts it into its place."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        yield fresh
    except BaseException:
        _remove(fresh)
        raise


def _remove(fresh: Path) -> None:
    with contextlib.suppress(OSError):
        fresh.unlink(missing_ok=True)
