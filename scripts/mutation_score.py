"""Print what share of mutmut's changes the tests have told, by module. Exits with 1 below nine of ten in all."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

LEAST = 0.9
# Exit codes of pytest, and what mutmut writes itself, as it names them; all others are times that were over.
SURVIVED, NO_TESTS, OPEN = (0,), (5, 33), (None,)


def counted(meta: Path) -> Counter[str]:
    """Count the outcomes of one module."""
    counts: Counter[str] = Counter()
    for code in json.loads(meta.read_text("utf-8"))["exit_code_by_key"].values():
        if code in OPEN:
            counts["open"] += 1
        else:
            counts["missed" if code in SURVIVED + NO_TESTS else "told"] += 1
    return counts


def score(counts: Counter[str]) -> float:
    """Return the share that was told, of those that were tried."""
    return counts["told"] / max(1, counts["told"] + counts["missed"])


def line(name: str, counts: Counter[str]) -> str:
    """Return a row of the table."""
    return f"{name:46}{score(counts):7.1%}  {counts['told']:5} told {counts['missed']:5} missed {counts['open']:5} open"


def main(folder: Path) -> int:
    total: Counter[str] = Counter()
    for meta in sorted(folder.rglob("*.py.meta")):
        counts = counted(meta)
        if counts:
            total += counts
            print(line(meta.relative_to(folder).with_suffix("").with_suffix("").as_posix(), counts))
    print(line("in all", total))
    return 1 if score(total) < LEAST else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
