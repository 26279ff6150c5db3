"""A poll thread and a made kernel behind it, closed after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernelbridge.channels.poller import ZmqPoller
from tests.made_kernel import MadeKernel


@pytest.fixture
def poller() -> Iterator[ZmqPoller]:
    made = ZmqPoller()
    yield made
    made.close()


@pytest.fixture
def kernel() -> Iterator[MadeKernel]:
    made = MadeKernel()
    yield made
    made.close()
