"""Translate paths between this machine and the container: for the debugger, tracebacks and the user. Pure."""

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
        self._is_windows = is_windows
        self.pairs = tuple(
            PathPair(local_path=self._plain(pair.local_path), container_path=posixpath.normpath(pair.container_path))
            for pair in pairs
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{pair.local_path}={pair.container_path}" for pair in self.pairs)
        return f"<PathMap {shown or 'of nothing'}>"

    def _plain(self, local_path: str) -> str:
        if not self._is_windows:
            return posixpath.normpath(local_path)
        plain = ntpath.normpath(local_path)
        # The letter of a drive is written both ways, even by one editor.
        return plain[:1].upper() + plain[1:] if plain[1:2] == ":" else plain

    def to_container(self, local_path: str) -> str | None:
        """Return what a path of this machine is called in the container; None if the container does not have it."""
        path = self._plain(local_path)
        mark = "\\" if self._is_windows else "/"
        found = self._longest([(pair.local_path, pair.container_path) for pair in self.pairs], path, mark)
        if found is None:
            return None
        root, rest = found
        return posixpath.join(root, *rest.split(mark)) if rest else root

    def to_local(self, container_path: str) -> str | None:
        """Return what a path of the container is called on this machine; None if it is not here."""
        path = posixpath.normpath(container_path)
        found = self._longest([(pair.container_path, pair.local_path) for pair in self.pairs], path, "/")
        if found is None:
            return None
        root, rest = found
        if self._is_windows:
            return ntpath.join(root, *rest.split("/")) if rest else root
        return posixpath.join(root, rest) if rest else root

    def _longest(self, roots: Sequence[tuple[str, str]], path: str, mark: str) -> tuple[str, str] | None:
        """Return the other name of the longest root that a path is in, and what of the path is below it."""
        # Names on Windows are the same in either case; a container's are not.
        folded = path.casefold() if mark == "\\" else path
        found: tuple[int, str] | None = None
        for root, other in roots:
            plain = root.casefold() if mark == "\\" else root
            is_inside = folded == plain or folded.startswith(plain.rstrip(mark) + mark)
            if is_inside and (found is None or len(root) > found[0]):
                found = (len(root), other)
        if found is None:
            return None
        return found[1], path[found[0] :].strip(mark)

    def path_mappings(self) -> list[dict[str, str]]:
        """Return `pathMappings` as debugpy and VS Code's launch.json have them, the longest first."""
        ordered = sorted(self.pairs, key=lambda pair: len(pair.local_path), reverse=True)
        return [{"localRoot": pair.local_path, "remoteRoot": pair.container_path} for pair in ordered]
