"""protocol/versions.py: which of two versions is the newer one."""

from __future__ import annotations

import pytest

from kernelbridge.protocol.versions import version_number


@pytest.mark.parametrize(
    ("version", "number"),
    [("6.0", (6,)), ("6.29.5", (6, 29, 5)), ("7.0.0a1", (7,)), ("", ()), ("x", ()), ("0.0", ()), ("2.8.0+cu", (2, 8))],
)
def test_versions_compare_by_their_numbers(version: str, number: tuple[int, ...]) -> None:
    assert version_number(version) == number
