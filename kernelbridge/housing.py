"""A kernel's container or job on its host: asked for once, gone in the end, whatever is cancelled or lost in between.

What it looks like: container.py and job.py. When it comes and goes: opening.py and kernel.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from kernelbridge import container
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.host.site import Site
from kernelbridge.wanted import Wanted, deadline

_LOG = logging.getLogger(__name__)

REMOVE_SECONDS = 30.0
# Within which an engine carries out what it was asked for over a link that was lost then.
LATE_SECONDS = 5.0


class Housing:
    """The container or job of one kernel; there is at most one at a time."""

    def __init__(self, wanted: Wanted, *, late_seconds: float = LATE_SECONDS) -> None:
        self._wanted = wanted
        self._name = container.name(wanted.kernel_id)
        self._late_seconds = late_seconds
        # The host's work on it, which goes on also when nobody waits for it any more. Set by create, cleared by
        # remove: None where the host has nothing.
        self._creation: asyncio.Task[None] | None = None
        self._removing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Housing {self._name}{' perhaps there' if self._creation else ''}>"

    def is_there(self) -> None:
        """The container was made before, by another process: what `remove` removes."""
        self._creation = asyncio.get_running_loop().create_task(_nothing())

    async def make(self, making: Coroutine[Any, Any, None]) -> None:
        """Make it, by what `making` asks the host for. Raises what that raises.

        Also then, and when cancelled, `remove` is to be called.
        """
        self._creation = asyncio.create_task(making)
        await asyncio.shield(self._creation)

    def leave(self) -> None:
        """The container is another's from now on: `remove` leaves it alone."""
        self._creation = None

    async def remove(self, host: str, reach: Callable[[], Awaitable[Site]]) -> bool:
        """Remove the container; whether it is gone. A host that cannot be reached keeps it, and `clean` finds it.

        Who comes second waits for the first, and does nothing.
        """
        async with self._removing:
            if self._creation is None:
                return True
            # Before the engine has made it there is nothing to remove, and afterwards nobody would.
            await asyncio.wait([self._creation])
            is_answered = not isinstance(self._creation.exception(), LinkLost)
            try:
                async with deadline(REMOVE_SECONDS, host, "the removal of the container"):
                    runtime = (await reach()).runtime(self._name, self._wanted.environment)
                    await runtime.end()
                    if not is_answered:
                        await asyncio.sleep(self._late_seconds)
                        await runtime.end()
            except KernelBridgeError as exc:
                _LOG.warning("[%s k=%s] container not removed: %s", host, self._wanted.kernel_id[:4], exc)
                return False
            self._creation = None
            return True


async def _nothing() -> None:
    """Stands for a creation that is long done."""
