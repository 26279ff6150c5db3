"""Tell which files of a project stay where they are: .gitignore, .dockerignore, the user's own lines. Pure.

The user's own lines win; then what .gitignore files say, the deepest first; then .dockerignore and what is left out by
itself. What `pull` names is never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pathspec import GitIgnoreSpec

from kernelbridge.hosts.docker.images import dockerignore

# Where files are kept that are not whole yet. Never copied, whatever the lines say.
PARTS_FOLDER: Final = ".kernelbridge-part"
# Left out unless `ignore` has "!" before the name.
DEFAULT_IGNORED: Final = (".git", "__pycache__", ".venv", "node_modules", ".ipynb_checkpoints", ".DS_Store")
# Other programs' marks in a pattern.
_WILDCARDS: Final = re.compile(r"[*?\[\\]")
# How pathspec writes a pattern that may begin in any folder.
_ANYWHERE: Final = "^(?:.+/)?"


class _Lines:
    """The lines of one file. Most paths match none, which two regular expressions tell three times as fast."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._spec = GitIgnoreSpec.from_lines(lines)
        patterns = [pattern.regex.pattern for pattern in self._spec.patterns if pattern.regex is not None]
        # pathspec asks by this group whether a folder above matched.
        plain = [str(pattern).replace("(?P<ps_d>", "(?:") for pattern in patterns]
        anywhere = [pattern.removeprefix(_ANYWHERE) for pattern in plain if pattern.startswith(_ANYWHERE)]
        self._names = re.compile("|".join(f"(?:{pattern})" for pattern in anywhere)) if anywhere else None
        rooted = [pattern for pattern in plain if not pattern.startswith(_ANYWHERE)]
        self._rooted = re.compile("|".join(f"(?:{pattern})" for pattern in rooted)) if rooted else None

    def __len__(self) -> int:
        return len(self._spec)

    def check(self, path: str, name: str, *, is_above_known: bool) -> bool | None:
        """Say whether a path is ignored, or is not by a line with `!`; None: no line is about it.

        `is_above_known`: no line is about a folder that it is in, so that a line that names no folder is about `name`.
        """
        is_named = self._names is not None and self._names.match(name) is not None
        if is_above_known and not is_named and not (self._rooted and self._rooted.match(path)):
            return None
        return self._spec.check_file(path).include


class Ignore:
    """The rules of one project; learn() adds a .gitignore that a scan came by."""

    def __init__(self, *, own: Sequence[str] = (), pull: Sequence[str] = (), docker: str = "") -> None:
        self._own = _Lines(own)
        self._pull = GitIgnoreSpec.from_lines(pull)
        self._docker = dockerignore.parse(docker) if docker.strip() else None
        # The folders whose files may be meant although they are ignored themselves.
        self._reopened = [_fixed_part(line.removeprefix("!")) for line in (*pull, *own) if _reopens(line, pull)]
        self._negated = {line.removeprefix("!").strip("/") for line in own if line.startswith("!")}
        # By folder, "" for the root; filled by learn().
        self._git: dict[str, _Lines] = {}
        # The .gitignore files that count in a folder, the deepest first; emptied by learn().
        self._chains: dict[str, list[tuple[int, _Lines]]] = {}

    def __repr__(self) -> str:
        return f"<Ignore {len(self._own)} own lines, {len(self._git)} .gitignore>"

    def learn(self, folder: str, text: str) -> None:
        """Take the .gitignore of a folder."""
        self._git[folder] = _Lines(text.removeprefix("\ufeff").splitlines())
        self._chains.clear()

    def pulls(self, path: str) -> bool:
        """Whether a path is among those that come back."""
        return bool(self._pull) and self._pull.match_file(path)

    def excludes(self, path: str, *, is_folder: bool) -> bool:
        """Whether a path is left out, where the folders that it is in are not."""
        folder, _, name = path.rpartition("/")
        if name == PARTS_FOLDER:
            return True
        if self.pulls(path):
            return False
        spelled, short = (f"{path}/", f"{name}/") if is_folder else (path, name)
        is_above_known = not self._reopened and self._docker is None
        said = self._own.check(spelled, short, is_above_known=is_above_known) if self._own else None
        if said is not None:
            return said
        for depth, lines in self._chain(folder):
            said = lines.check(spelled[depth:], short, is_above_known=is_above_known)
            if said:
                return True
            if said is False:
                break
        if self._docker is not None and self._docker.excludes(path):
            return True
        if self._reopened:
            return not set(DEFAULT_IGNORED).isdisjoint(path.split("/"))
        return name in DEFAULT_IGNORED

    def enters(self, folder: str) -> bool:
        """Whether something in a folder may be copied, so that it has to be looked into."""
        if folder.rpartition("/")[2] == PARTS_FOLDER:
            return False
        if not self.excludes(folder, is_folder=True):
            return True
        if self._docker is not None and self._docker.excludes(folder) and not self._docker.excludes_all_below(folder):
            return True
        return any(
            f"{start}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{start}/") for start in self._reopened
        )

    def covers(self, path: str, *, is_folder: bool) -> bool:
        """Whether a path is left out, by itself or with a folder that it is in."""
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts))]
        return not all(map(self.enters, above)) or self.excludes(path, is_folder=is_folder)

    def _chain(self, folder: str) -> list[tuple[int, _Lines]]:
        known = self._chains.get(folder)
        if known is None:
            known = [] if not folder else list(self._chain(folder.rpartition("/")[0]))
            if folder in self._git:
                known.insert(0, (len(folder) + 1 if folder else 0, self._git[folder]))
            self._chains[folder] = known
        return known

    def unentered_names(self) -> list[str]:
        """Return the names of folders into which nobody looks wherever they are, for a listing made elsewhere."""
        if self._reopened:
            return [PARTS_FOLDER]
        return [PARTS_FOLDER, *(name for name in DEFAULT_IGNORED if name not in self._negated)]


def _reopens(line: str, pull: Sequence[str]) -> bool:
    """Whether a line means something in a folder of a certain name: "*.pt" is no reason to walk all that is ignored."""
    pattern = line.removeprefix("!").strip("/")
    return (line.startswith("!") or line in pull) and "/" in pattern and bool(_fixed_part(pattern))


def _fixed_part(pattern: str) -> str:
    """Return the folders that a pattern begins with, up to its first wildcard."""
    parts = pattern.strip("/").split("/")
    fixed = []
    for part in parts[:-1] if parts[-1:] != ["**"] else parts:
        if _WILDCARDS.search(part):
            break
        fixed.append(part)
    return "/".join(fixed)
