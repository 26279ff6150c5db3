"""Translate paths of the container to those of this machine: for the debugger, tracebacks and the user. Pure."""

from __future__ import annotations

import ntpath
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PathPair:
    """One folder, as it is called here and in the container."""

    local_path: str
    container_path: str


class PathMap:
    """Folders of this machine that the container has, each under a path of its own. The longest prefix wins."""

    def __init__(self, pairs: Sequence[PathPair], *, is_windows: bool) -> None:
        self.is_windows = is_windows
        self.pairs = tuple(
            PathPair(local_path=self._plain(pair.local_path), container_path=posixpath.normpath(pair.container_path))
            for pair in pairs
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{pair.local_path}={pair.container_path}" for pair in self.pairs)
        return f"<PathMap {shown or 'of nothing'}>"

    def _plain(self, local_path: str) -> str:
        if not self.is_windows:
            return posixpath.normpath(local_path)
        plain = ntpath.normpath(local_path)
        # The letter of a drive is written both ways, even by one editor.
        return plain[:1].upper() + plain[1:] if plain[1:2] == ":" else plain

    def to_local(self, container_path: str) -> str | None:
        """Return what a path of the container is called on this machine; None if it is not here."""
        path = posixpath.normpath(container_path)
        found = [
            pair
            for pair in self.pairs
            if path == pair.container_path or path.startswith(pair.container_path.rstrip("/") + "/")
        ]
        if not found:
            return None
        pair = max(found, key=lambda one: len(one.container_path))
        parts = path[len(pair.container_path) :].strip("/").split("/")
        join = ntpath.join if self.is_windows else posixpath.join
        return join(pair.local_path, *filter(None, parts))

    def path_mappings(self) -> list[dict[str, str]]:
        """Return `pathMappings` as debugpy and VS Code's launch.json have them, the longest first."""
        ordered = sorted(self.pairs, key=lambda pair: len(pair.local_path), reverse=True)
        return [{"localRoot": pair.local_path, "remoteRoot": pair.container_path} for pair in ordered]
