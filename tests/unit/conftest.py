"""The fixtures that several unit tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, settings

from tests.made_clock import MadeClock, made_clock

# Neither is about what is tested: others may want the processor at the same time.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
async def clock() -> AsyncIterator[MadeClock]:
    """A clock that moves as soon as everybody waits for it."""
    with made_clock() as clock:
        yield clock
