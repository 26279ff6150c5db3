"""When a kernel's end may be seen: not before the messages that explain it have been read."""

from __future__ import annotations

import asyncio

# Clients ask whether a kernel is alive every 1 to 3 s and drop their wait for an answer when it is not.
SHOWN_AFTER_SECONDS = 3.0


class ShownExit:
    """A kernel's exit code as clients may see it; `code` may be read from any thread."""

    def __init__(self) -> None:
        # None while the kernel lives, or nobody knows otherwise; set by show, taken back by cancel.
        self.code: int | None = None
        # What will be seen, and the timer that shows it; set by show.
        self._soon = 0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<ShownExit {self.code}{' soon' if self._timer else ''}>"

    def show(self, code: int, *, after_seconds: float = 0) -> None:
        """Let the exit be seen; a code that is seen already stays, and one that was to be seen soon comes first."""
        if self._timer is not None and not after_seconds:
            code = self._soon
        self._stop_timer()
        if after_seconds:
            self._soon = code
            self._timer = asyncio.get_running_loop().call_later(after_seconds, self.show, code)
        elif self.code is None:
            self.code = code

    def hasten(self) -> None:
        """Let an end be seen now that was to be seen soon: somebody asked for it."""
        if self._timer is not None:
            self.show(self._soon)

    def cancel(self) -> None:
        """There is a kernel again."""
        self._stop_timer()
        self.code = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
