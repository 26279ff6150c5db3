"""A point in a cell where it waits until the test lets it on, whatever line, engine and client do meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from tests.rig.whole import Rig

FILE = "/tmp/kernelbridge-test-gate"


def held(before: str, after: str) -> str:
    """A cell that does one thing, waits for the gate, and does another; an opening counts from the cell's start."""
    return f"""\
import os, time
def opened_at():
    return os.stat({FILE!r}).st_mtime_ns if os.path.exists({FILE!r}) else 0
closed = opened_at()
{before}
while opened_at() == closed:
    time.sleep(0.02)
{after}"""


def gates(rig: Rig) -> list[str]:
    """The gates of all containers that run now, as the made machine sees them."""
    with rig.engine.client() as client:
        return [f"/proc/{one.attrs['State']['Pid']}/root{FILE}" for one in client.containers.list()]


def open_gates(rig: Rig, paths: Sequence[str] | None = None) -> None:
    """Let all cells on that wait; the engine is not asked where `paths` are given."""
    rig.lab.run(["touch", *(gates(rig) if paths is None else paths)])
