"""This machine's memory: its own id, and what images answered to kernel_info. Hints that may be lost; no secrets.

The truth about kernels stands in the labels of their containers (container.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
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
            fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
            fresh.write_text(text, "utf-8")
            fresh.replace(path)
        except OSError as exc:
            _LOG.warning("%s cannot be written: %s", path, exc)
