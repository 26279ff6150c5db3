"""protocol/cells.py: what is a user's cell."""

from __future__ import annotations

from typing import Any

import pytest

from kernelbridge.protocol.cells import is_cell


@pytest.mark.parametrize(
    ("kind", "content", "is_users"),
    [
        ("execute_request", {"code": "1"}, True),
        ("execute_request", {"code": "1", "silent": False, "store_history": True}, True),
        # VS Code's hidden cells, its own and those of `runStartupCommands`; and what clients ask in silence.
        ("execute_request", {"code": "1", "silent": False, "store_history": False}, False),
        ("execute_request", {"code": "1", "silent": True}, False),
        ("complete_request", {"code": "1"}, False),
    ],
)
def test_a_users_cell_goes_into_the_history(kind: str, content: dict[str, Any], is_users: bool) -> None:
    assert is_cell(kind, content) is is_users
