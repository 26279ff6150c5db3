"""Compare versions of packages by their numbers. Pure."""

from __future__ import annotations

import re
from typing import Tuple


def version_number(version: str) -> Tuple[int, ...]:
    """Return a version in a form that compares; what follows its numbers is left out."""
    match = re.match(r"[0-9]+([.][0-9]+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
