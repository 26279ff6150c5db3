"""Write a file whole or not at all: a reader sees the old one or the new one, never half of one.

No locks: home folders on NFS may have none that hold between machines.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes, *, is_private: bool) -> None:
    """Replace the file; a private one can be read by this login alone. Raises: OSError."""
    with _fresh(path, content, is_private=is_private) as fresh:
        fresh.replace(path)


def write_once(path: Path, content: bytes, *, is_private: bool) -> None:
    """Write the file unless there is one: of several who write at the same moment the first counts. Raises: OSError."""
    with _fresh(path, content, is_private=is_private) as fresh:
        try:
            os.link(fresh, path)
        except FileExistsError:
            return
        except (OSError, NotImplementedError):
            # Not all file systems have hard links.
            if not path.exists():
                fresh.replace(path)


@contextlib.contextmanager
def _fresh(path: Path, content: bytes, *, is_private: bool) -> Iterator[Path]:
    """Write a new file beside the one that is meant, and remove it where it is there still."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    # The umask of the login takes its part of 0o666, as for any file.
    mode = 0o600 if is_private else 0o666
    try:
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)
