"""fleet.py: what becomes of what is under way when a fleet is closed. What it does: the real tests."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from kernelbridge.config import Config
from kernelbridge.fleet import Fleet


def test_who_waits_for_a_fleet_that_is_closed_is_not_left_waiting(tmp_path: Path) -> None:
    fleet = Fleet(Config(path=tmp_path), folder=tmp_path)
    begun, ended = threading.Event(), threading.Event()

    async def wait_for_ever() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    future = fleet.submit(wait_for_ever())
    assert begun.wait(5)
    fleet.close()
    assert ended.is_set()
    with pytest.raises(CancelledError):
        future.result(5)
    fleet.close()
