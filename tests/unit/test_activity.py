"""activity.py: busy and idle are read off the kernel's own messages, and told when they last."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kernelbridge import activity
from kernelbridge.activity import Activity
from kernelbridge.relay import wire


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "LASTING_SECONDS", 0.01)


def said(kind: str, content: Any, channel: int = wire.IOPUB, parent: str = "execute_request") -> bytes:
    rest = [json.dumps(part).encode() for part in ({"msg_type": kind}, {"msg_type": parent}, {}, content)]
    return wire.pack(wire.Message(channel, 1, [b"topic", b"<IDS|MSG>", b"", *rest]))


def status(state: str) -> bytes:
    return said("status", {"execution_state": state})


async def test_a_state_that_lasts_is_told_once() -> None:
    told: list[str] = []
    watched = Activity(told.append)
    watched.see([status("busy"), said("stream", {"text": "x"})])
    assert (watched.state, repr(watched), told) == ("busy", "<Activity busy>", [])
    await asyncio.sleep(0.05)
    watched.see([status("busy")])
    await asyncio.sleep(0.05)
    assert told == ["busy"]
    watched.see([status("idle")])
    await asyncio.sleep(0.05)
    assert told == ["busy", "idle"]


async def test_a_kernel_that_is_asked_to_end_is_ending_and_not_busy() -> None:
    told: list[str] = []
    watched = Activity(told.append)
    watched.see([status("busy"), status("idle")])
    assert not watched.is_ending
    watched.see([said("status", {"execution_state": "busy"}, parent="shutdown_request")])
    await asyncio.sleep(0.05)
    assert (watched.is_ending, watched.state, told) == (True, "idle", [])


async def test_a_short_cell_is_not_told() -> None:
    told: list[str] = []
    watched = Activity(told.append)
    watched.see([status("busy"), status("idle")])
    await asyncio.sleep(0.05)
    assert told == []


async def test_what_is_known_otherwise_is_told_as_well() -> None:
    told: list[str] = []
    watched = Activity(told.append)
    watched.set("busy")
    await asyncio.sleep(0.05)
    assert told == ["busy"]


@pytest.mark.parametrize(
    "message",
    [
        said("stream", {"text": '"execution_state": "busy"'}),
        said("status", {"execution_state": "starting"}),
        said("status", {"execution_state": "busy"}, wire.SHELL),
        said("status", {"execution_state": "busy", "more": "x" * 5000}),
        wire.pack(wire.Message(wire.IOPUB, 1, [b'"execution_state"'])),
    ],
)
async def test_nothing_else_counts(message: bytes) -> None:
    watched = Activity(lambda state: None)
    watched.see([message])
    assert watched.state == "idle"


async def test_a_closed_one_tells_nothing() -> None:
    told: list[str] = []
    watched = Activity(told.append)
    watched.see([status("busy")])
    watched.close()
    watched.close()
    await asyncio.sleep(0.05)
    assert told == []
