"""A point in a cell where it waits until the test lets it on, whatever line, engine and client do meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from tests.rig.whole import Rig

FILE = "/tmp/kernelbridge-test-gate"
# Code that waits for the next opening.
WAIT = f"""\
import os, time
def opened_at():
    return os.stat({FILE!r}).st_mtime_ns if os.path.exists({FILE!r}) else 0
closed = opened_at()
while opened_at() == closed:
    time.sleep(0.02)
"""


def gates(rig: Rig) -> list[str]:
    """The gates of all containers that run now, as the made machine sees them."""
    with rig.engine.client() as client:
        return [f"/proc/{one.attrs['State']['Pid']}/root{FILE}" for one in client.containers.list()]


def open_gates(rig: Rig, paths: Sequence[str] | None = None) -> None:
    """Let all cells on that wait; the engine is not asked where `paths` are given."""
    rig.lab.run(["touch", *(gates(rig) if paths is None else paths)])
