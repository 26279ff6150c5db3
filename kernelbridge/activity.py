"""Whether a kernel is busy, for people: read off its own status messages, told when it has lasted a moment.

Clients hear every status themselves; this is for events and REST, where each one costs a validation.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from kernelbridge.relay import wire

LASTING_SECONDS = 0.5
# A status message is small; larger ones need not be searched.
_LONGEST_BYTES = 4096
_MARK = b'"execution_state"'
_DELIMITER = b"<IDS|MSG>"


class Activity:
    """Watches one kernel's messages; lives on the loop."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` gets "busy" or "idle"."""
        self._tell = tell
        self.state = "idle"
        # Whether somebody asked it to end, by its own word; set back by who launches it again.
        self.is_ending = False
        self._told = "idle"
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Activity {self.state}>"

    def see(self, packed: Sequence[wire.Buffer]) -> None:
        """Take in what the kernel said."""
        for one in packed:
            if len(one) < _LONGEST_BYTES and one[0] == wire.IOPUB and _MARK in bytes(one):
                self._see_status(wire.unpack(one).parts)

    def _see_status(self, parts: Sequence[wire.Buffer]) -> None:
        at = next((index for index, part in enumerate(parts) if part == _DELIMITER), -1)
        if at < 0 or json.loads(bytes(parts[at + 2])).get("msg_type") != "status":
            return
        if json.loads(bytes(parts[at + 3])).get("msg_type") == "shutdown_request":
            self.is_ending = True  # No work, and its process may be gone before it says idle.
            return
        state = json.loads(bytes(parts[at + 5])).get("execution_state")
        if state in ("busy", "idle") and state != self.state:
            self.set(state)

    def set(self, state: str) -> None:
        """The kernel is busy or idle now; told unless it changes again at once."""
        self.state = state
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LASTING_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.state != self._told:
            self._told = self.state
            self._tell(self.state)

    def close(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
