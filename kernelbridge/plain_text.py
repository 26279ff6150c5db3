"""Keep control characters of other people's labels, processes and logs off the user's terminal. Pure."""

from __future__ import annotations

import re
from typing import Final

# What a terminal takes for orders: colours, moves, titles, the clipboard. ECMA-48: CSI; OSC and its like up to ST.
_SEQUENCE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")

# By so many of its last characters a text is known again.
_TAIL_LENGTH: Final = 256


def printable_lines(text: str) -> str:
    """Return lines of a program's output as text: without what it wrote to control a terminal, tabs as they are."""
    lines = _SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(mark if mark.isprintable() or mark in "\n\t" else "?" for mark in lines)


def added(before: str, now: str) -> str:
    """Return what a log has gained of which only the last part is kept; all of it, where nothing of before is left."""
    if now.startswith(before):
        return now[len(before) :]
    # What was kept of before stands first. The longest such piece counts: what is new may be the same again.
    head = now[:_TAIL_LENGTH]
    at = before.find(head)
    while at >= 0 and not now.startswith(before[at:]):
        at = before.find(head, at + 1)
    if at >= 0 and head:
        return now[len(before) - at :]
    # A character that was cut in two is another one now.
    tail = before[-_TAIL_LENGTH:]
    at = now.rfind(tail)
    return now[at + len(tail) :] if at >= 0 else now


def last_lines(text: str, count: int) -> str:
    """Return the last lines, as they are but for the newline at the end: a carriage return ends none."""
    return "\n".join(text.removesuffix("\n").split("\n")[-count:])


def printable(text: str, *, instead: str = "?") -> str:
    """Replace each character that a terminal would not print."""
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else instead for mark in text)
