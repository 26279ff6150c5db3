"""Tell which files of a folder are not sent to be built, by the rules of `.dockerignore`. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# Of Linux.
_LONGEST_NAME: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """One line: what it names, and whether that is sent although a line above says otherwise."""

    regex: re.Pattern[str]
    is_exception: bool


@dataclass(frozen=True)
class IgnoreRules:
    """All lines of a file. The last one that names a path, or a folder above it, counts."""

    patterns: Sequence[Pattern]
    # What is sent whatever the lines say: the Dockerfile.
    always_sent: frozenset[str] = frozenset()

    def excludes(self, path: str) -> bool:
        """Whether a path inside the folder, with slashes, is left out."""
        if path in self.always_sent:
            return False
        parts = path.split("/")
        paths = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        excluded = False
        for pattern in self.patterns:
            if excluded == pattern.is_exception and any(map(pattern.regex.fullmatch, paths)):
                excluded = not pattern.is_exception
        return excluded

    def excludes_all_below(self, folder: str) -> bool:
        """Whether nothing in a folder can be sent, so that nobody needs to look into it."""
        return (
            self.excludes(folder)
            and not any(pattern.is_exception for pattern in self.patterns)
            and not any(path.startswith(f"{folder}/") for path in self.always_sent)
        )


def parse(text: str, *, always_sent: Iterable[str] = ()) -> IgnoreRules:
    """Read a `.dockerignore`. Raises ValueError."""
    patterns = []
    for line in text.removeprefix("\ufeff").splitlines():
        words = "" if line.startswith("#") else line.strip()
        if not words:
            continue
        name = words.removeprefix("!").strip()
        if not name:
            raise ValueError(f"{words!r} names nothing")
        if len(name) > _LONGEST_NAME:
            raise ValueError(f"{name[:20]!r}... is longer than any path")
        patterns.append(Pattern(regex=_regex(_plain(name)), is_exception=words.startswith("!")))
    return IgnoreRules(patterns, frozenset(always_sent))


def _plain(name: str) -> str:
    plain = posixpath.normpath(name)
    return plain.lstrip("/") if len(plain) > 1 else plain


def _regex(pattern: str) -> re.Pattern[str]:
    """Write a pattern as Docker does: `*` stays within one name, `**` is any number of folders."""
    expression = ""
    rest = pattern
    while rest:
        if rest.startswith("**"):
            # Several in a row are one: each more would be tried at every folder of a path.
            while rest.startswith("**"):
                rest = rest[2:].removeprefix("/")
            expression += "(?:.*/)?" if rest else ".*"
            continue
        mark, rest = rest[0], rest[1:]
        if mark == "\\" and rest:
            expression, rest = expression + re.escape(rest[0]), rest[1:]
        elif mark == "[" and "]" in rest[1:]:
            # `[` and `]` may be in a class only behind a backslash, which Python's classes have too.
            inner, _, rest = rest.partition("]")
            # Python would warn of what may come to mean more than one mark.
            expression += "[" + re.sub(r"[\[&~|]|-(?=-)", r"\\\g<0>", inner) + "]"
        elif mark in "*?":
            expression += "[^/]*" if mark == "*" else "[^/]"
        else:
            expression += re.escape(mark)
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as exc:
        raise ValueError(f"{pattern!r} is no pattern: {exc}") from exc
