"""Tell a user's cell from what a front-end runs for itself. Pure."""

from __future__ import annotations

from typing import Any, Mapping


def is_cell(kind: str, content: Mapping[str, Any]) -> bool:
    """Whether a request runs a user's cell: front-ends keep their own code out of the history."""
    return kind == "execute_request" and not content.get("silent") and content.get("store_history") is not False
