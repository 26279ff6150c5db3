"""What is known of a kernel's image before it runs: its kernel_info and its ipywidgets, by id or by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kernelbridge.channels.waiting import DEFAULT_INFO
from kernelbridge.config import Environment
from kernelbridge.records import ImageRecord, Records


class Familiarity:
    """One image under one Python, as this machine remembers it."""

    def __init__(self, records: Records, environment: Environment) -> None:
        self._records = records
        self._python = environment.python
        self._name = f"{environment.image} {environment.python}"
        # Set by know, once a host was found; empty where the image is to be pulled still.
        self._id = ""
        self.record = records.image(self._name) or ImageRecord(kernel_info=DEFAULT_INFO)

    def __repr__(self) -> str:
        return f"<Familiarity {self._name} {self._id or 'by name'}>"

    @property
    def has_id(self) -> bool:
        """Whether the image is on the host, as far as we know."""
        return bool(self._id)

    def know(self, image_id: str) -> ImageRecord | None:
        """The image has this id (empty: not known yet); return what an image of this id is known for."""
        self._id = f"{image_id} {self._python}" if image_id else ""
        found = self._records.image(self._id) if image_id else None
        # The name may stand for another image than the last time: what that one had is no news of this one.
        self.record = found or replace(self.record, widgets=None)
        return found

    def learn(self, *, info: Mapping[str, Any] | None = None, widgets: str | None = None) -> None:
        """A kernel of this image has said something of itself."""
        if info is not None:
            self.record = replace(self.record, kernel_info=info)
        if widgets is not None:
            self.record = replace(self.record, widgets=widgets)
        if self._id:
            self._records.remember(name=self._name, image_id=self._id, record=self.record)
