"""Remember what both sides of a workspace had when they last were the same, in a file of this machine.

The file may be lost or damaged: then nothing is known, files are compared by their hashes, and nothing is deleted. A
change is one more line at its end; it is written anew, whole or not at all, once it has more old lines than new ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kernelbridge.atomic_files import write_whole
from kernelbridge.files.listing import Entry, Kind
from kernelbridge.files.plan import Known

_LOG = logging.getLogger(__name__)
_VERSION: Final = 1
# So many lines are always allowed.
_FEW_LINES: Final = 1000


class Manifest:
    """What is known of one workspace on one host; `copy_id` says of which copy there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # By path in the workspace; changed by forget_all() and note().
        self.known: dict[str, Known] = {}
        # The mark of the host's copy; changed by forget_all().
        self.copy_id = ""
        # How many lines the file has; 0: it is to be written whole.
        self._lines = 0
        self._load()

    def __repr__(self) -> str:
        return f"<Manifest {len(self.known)} known, copy {self.copy_id or 'none'}>"

    def _load(self) -> None:
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
            head = json.loads(lines[0])
            if head["version"] != _VERSION or not isinstance(head["copy"], str):
                return
            known: dict[str, Known] = {}
            # Of a line that a crash has cut nothing is known; what it was about is compared.
            for line in lines[1:] if lines[-1].endswith(b"\n") else lines[1:-1]:
                path, *pair = json.loads(line)
                known.pop(path, None)
                if pair:
                    known[path] = Known(_entry(pair[0]), _entry(pair[1]))
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError) as exc:
            _LOG.warning("%s cannot be read, so files are compared anew: %s", self._path, exc)
            return
        self.known, self.copy_id = known, head["copy"]
        self._lines = len(lines) if lines[-1].endswith(b"\n") else 0

    def forget_all(self, *, copy_id: str) -> None:
        """Begin anew: the host has another copy than the one that is known. Raises: OSError."""
        self.known, self.copy_id, self._lines = {}, copy_id, 0
        self.note({}, ())

    def note(self, learned: Mapping[str, Known], forgotten: Iterable[str]) -> None:
        """Remember what a pass has brought into step, and forget what is gone. Raises: OSError."""
        gone = [path for path in forgotten if self.known.pop(path, None) is not None]
        self.known.update(learned)
        rows = [[path] for path in gone] + [_row(path, known) for path, known in learned.items()]
        if self._lines and self._lines + len(rows) <= 2 * len(self.known) + _FEW_LINES:
            if rows:
                # Unless all of it gets there, the file is written whole the next time: half a line would spoil it.
                before, self._lines = self._lines, 0
                with self._path.open("ab") as file:
                    file.write(_lines(rows))
                self._lines = before + len(rows)
            return
        head = json.dumps({"version": _VERSION, "copy": self.copy_id}).encode() + b"\n"
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._path, head + _lines(_row(*pair) for pair in self.known.items()), is_private=True)
        self._lines = len(self.known) + 1


def _lines(rows: Iterable[list[Any]]) -> bytes:
    return b"".join(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)


def _row(path: str, known: Known) -> list[Any]:
    return [path, *([one.kind.value, *one[1:]] for one in known)]


def _entry(row: list[Any]) -> Entry:
    kind, size_bytes, mtime_ns, is_executable, target = row
    if not all(isinstance(number, int) for number in (size_bytes, mtime_ns)) or not isinstance(target, str):
        raise ValueError("an entry is of another type")
    return Entry(Kind(kind), size_bytes, mtime_ns, bool(is_executable), target)
