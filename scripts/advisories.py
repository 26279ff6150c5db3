"""Compare the floors of our dependencies with the advisories that are known; ask nobody. Run by scripts/check."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def normal(name: str) -> str:
    """Write a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def floor(requirement: Requirement) -> Version:
    """Return the lowest version that a requirement allows; 0 where it has no lower bound."""
    bounds = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==", "~=")]
    return max(bounds, default=Version("0"))


def too_low(dependencies: Sequence[str], advisories: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a sentence for each advisory that a floor lets in, or whose package is no dependency of ours."""
    floors = {normal(found.name): floor(found) for found in map(Requirement, dependencies)}
    found = []
    for package, mended in advisories.items():
        if normal(package) not in floors:
            found.append(f"{package} is no dependency: take it out of advisories.toml, or bound it in pyproject.toml")
            continue
        low = {name: version for name, version in mended.items() if floors[normal(package)] < Version(version)}
        found += [
            f"{package}>={floors[normal(package)]} allows {name}: it is mended in {low[name]}" for name in sorted(low)
        ]
    return found


def main() -> int:
    """Print what is wrong; return the exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    advisories = tomllib.loads((ROOT / "scripts" / "advisories.toml").read_text("utf-8"))
    wrong = too_low(project["dependencies"], advisories)
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
