"""scripts/advisories.py: no floor of a dependency lets in what is known to be unsafe."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version

import pytest
from packaging.version import Version

from scripts import advisories

DEPENDENCIES = tomllib.loads((advisories.ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
KNOWN = tomllib.loads((advisories.ROOT / "scripts" / "advisories.toml").read_text("utf-8"))


def test_no_floor_is_below_a_known_advisory() -> None:
    assert advisories.too_low(DEPENDENCIES, KNOWN) == []
    assert advisories.main() == 0
    assert {
        package for package, mended in KNOWN.items() for name in mended if re.fullmatch(r"CVE-\d{4}-\d+", name)
    } == (set(KNOWN))


def test_what_is_tested_with_is_not_below_either() -> None:
    for package, mended in KNOWN.items():
        assert all(Version(version(package)) >= Version(fixed) for fixed in mended.values())


@pytest.mark.parametrize(
    ("requirement", "wrong"),
    [
        ("tornado>=6.5.3", []),
        ("tornado>=6.6", []),
        ("Tornado==6.5.3", []),
        ("tornado>=6.4", ["tornado>=6.4 allows CVE-1: it is mended in 6.5.3"]),
        ("tornado", ["tornado>=0 allows CVE-1: it is mended in 6.5.3"]),
        ("tornado<7", ["tornado>=0 allows CVE-1: it is mended in 6.5.3"]),
        ("zmq", ["tornado is no dependency: take it out of advisories.toml, or bound it in pyproject.toml"]),
    ],
)
def test_each_advisory_that_a_floor_lets_in_is_named(requirement: str, wrong: list[str]) -> None:
    assert advisories.too_low([requirement], {"tornado": {"CVE-1": "6.5.3"}}) == wrong
