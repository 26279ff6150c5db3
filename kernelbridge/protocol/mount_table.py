"""Read `/proc/self/mountinfo`, as proc(5) describes it: which file system a path is on. Pure."""

from __future__ import annotations

import re


def file_system(path: str, mountinfo: str) -> str:
    """Return the type of the file system that a path without links is on; empty where that is not known."""
    # The longest mount point wins, and of several on one point the last: it hides the others.
    found, kind = "", ""
    for line in mountinfo.splitlines():
        facts, _, source = line.partition(" - ")
        words = facts.split(" ")
        # Blanks and some others are written in octal.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), words[4]) if len(words) > 4 else ""
        if point and (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(found):
            found, kind = point, source.partition(" ")[0]
    return kind
