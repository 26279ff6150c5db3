"""The fixtures that several unit tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.made_clock import MadeClock, made_clock


@pytest.fixture
async def clock() -> AsyncIterator[MadeClock]:
    """A clock that moves as soon as everybody waits for it."""
    with made_clock() as clock:
        yield clock
