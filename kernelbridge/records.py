"""This machine's memory: its own id, its kernels, what images answered to kernel_info.

Hints that may be lost; no secrets.
The truth about kernels stands in the labels of their containers (container.py), and what changes with their relays.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_data_dir

_LOG = logging.getLogger(__name__)
# Images whose answers are kept; the oldest goes.
_MOST_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """What a kernel of an image answered to kernel_info; its ipywidgets version, empty for none, None if not asked."""

    kernel_info: Mapping[str, Any]
    widgets: str | None = None


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """A row of a Jupyter server's sessions: which notebook (or console) has the kernel."""

    session_id: str
    path: str
    name: str
    type: str


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """One kernel that this machine has, or has left running."""

    kernel_id: str
    environment: str
    # Path of the kernelbridge.toml that names it.
    config: str
    host: str
    image: str
    python: str
    # The session id in its messages' headers.
    session: str
    # When it was started, and when its owner left it in good order (None: it did not); wall clock.
    started: float
    left: float | None = None
    # Which process holds it: `pid@start`; see fleet.is_alive.
    process: str = ""
    # The root folder of the Jupyter server whose kernel it is; empty for VS Code's own and for programs.
    server: str = ""
    sessions: tuple[SessionRecord, ...] = ()
    # What people call it: the notebook's name.
    title: str = ""
    persist: bool = False
    # See launcher.py; empty where nobody may claim it.
    claim: str = ""
    # The user wanted it gone while its host could not be reached.
    stop_wanted: bool = False
    # Where a program of this machine finds its endpoints while it is held; empty where no file was written.
    connection_file: str = ""
    # UUIDs of the GPUs that its container has.
    gpus: tuple[str, ...] = ()


def default_folder() -> Path:
    """Where the records are on this machine."""
    return Path(jupyter_data_dir()) / "kernelbridge"


class Records:
    """The files in one folder, which is ours and closed to others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def machine_id(self) -> str:
        """Return the id of this installation, made at the first call."""
        path = self._folder / "machine-id"
        with contextlib.suppress(OSError):
            known = path.read_text("utf-8").strip()
            if known:
                return known
        made = secrets.token_hex(8)
        self._write(path, made + "\n")
        with contextlib.suppress(OSError):
            # Another process may have made one at the same moment: the file decides.
            return path.read_text("utf-8").strip() or made
        return made

    def image(self, image: str) -> ImageRecord | None:
        """Return what is known of an image, by its id or by the name that it last had; None if nothing is."""
        known = self._images()
        found = known["images"].get(known["names"].get(image, image))
        if not isinstance(found, dict) or not isinstance(found.get("kernel_info"), dict):
            return None
        return ImageRecord(kernel_info=found["kernel_info"], widgets=found.get("widgets"))

    def remember(self, *, name: str, image_id: str, record: ImageRecord) -> None:
        """Keep what a kernel of this image said."""
        known = self._images()
        entry = {"kernel_info": dict(record.kernel_info), "widgets": record.widgets}
        if known["names"].get(name) == image_id and known["images"].get(image_id) == entry:
            return
        for table, key, value in ((known["names"], name, image_id), (known["images"], image_id, entry)):
            table.pop(key, None)
            table[key] = value
        kept = {section: dict(list(table.items())[-_MOST_IMAGES:]) for section, table in known.items()}
        self._write(self._folder / "images.json", json.dumps(kept))

    def kernels(self) -> list[KernelRecord]:
        """Return all kernels that are remembered, the oldest first."""
        found = (_read_kernel(path) for path in self._folder.glob("kernels/*.json"))
        return sorted((record for record in found if record is not None), key=lambda record: record.started)

    def kernel(self, kernel_id: str) -> KernelRecord | None:
        """Return what is remembered of a kernel; None if nothing is."""
        return _read_kernel(self._kernel_path(kernel_id))

    def keep(self, record: KernelRecord) -> None:
        """Remember a kernel; what was known of it before is replaced."""
        self._write(self._kernel_path(record.kernel_id), json.dumps(asdict(record)))

    def change(self, kernel_id: str, *, of: str | None = None, **changed: Any) -> None:
        """Change what is remembered of a kernel, if anything is; with `of`, only if that process has it still."""
        record = self.kernel(kernel_id)
        if record is not None and of in (None, record.process):
            self.keep(replace(record, **changed))

    def forget(self, kernel_id: str, *, of: str | None = None) -> None:
        """Remember nothing of a kernel any more; with `of`, only if that process has it still. Safe to call twice."""
        record = self.kernel(kernel_id) if of is not None else None
        if record is not None and record.process != of:
            return
        with contextlib.suppress(OSError):
            self._kernel_path(kernel_id).unlink(missing_ok=True)

    def _kernel_path(self, kernel_id: str) -> Path:
        # A kernel's id may come from a client: only what cannot leave the folder is used.
        name = "".join(mark for mark in kernel_id if mark.isalnum() or mark in "-_")
        return self._folder / "kernels" / f"{name}.json"

    def _images(self) -> dict[str, dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((self._folder / "images.json").read_text("utf-8"))
            if isinstance(known, dict) and all(isinstance(known.get(key), dict) for key in ("names", "images")):
                return known
        return {"names": {}, "images": {}}

    def _write(self, path: Path, text: str) -> None:
        """Write whole or not at all; a hint that cannot be written is no error."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
            with open(fresh, "x", encoding="utf-8", opener=_private) as file:
                file.write(text)
            fresh.replace(path)
        except OSError as exc:
            _LOG.warning("%s cannot be written: %s", path, exc)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read_kernel(path: Path) -> KernelRecord | None:
    """Return the record in a file; None where there is none, or another version wrote it."""
    try:
        known = json.loads(path.read_text("utf-8"))
        names = {field.name for field in fields(KernelRecord)}
        facts = {key: value for key, value in known.items() if key in names}
        facts["sessions"] = tuple(SessionRecord(**row) for row in facts.get("sessions", ()))
        facts["gpus"] = tuple(facts.get("gpus", ()))
        return KernelRecord(**facts)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
