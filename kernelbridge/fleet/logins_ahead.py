"""Log in to the hosts that a command is about to ask, while what it asks them with is still being loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kernelbridge.config.schema import Host
from kernelbridge.fleet.loop import LOOP_NAME, LoopThread
from kernelbridge.hosts.pool import BackendPool
from kernelbridge.hosts.transport.lazy import load_ssh, loaded
from kernelbridge.hosts.transport.login.questions import Ask

# How long links may take to close.
CLOSE_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class LoginsAhead:
    """What a fleet goes on with: its loop, and the links that are being opened on it."""

    loop: LoopThread
    backends: BackendPool

    def close(self) -> None:
        """End them, where no fleet has them; safe to call twice. A question that is asked meanwhile is over."""
        if self.loop.is_running:
            with contextlib.suppress(TimeoutError):
                self.loop.run(self.backends.aclose(), CLOSE_SECONDS)
            self.loop.close()


def log_in_ahead(hosts: Sequence[Host], askers: Sequence[Ask] = ()) -> LoginsAhead | None:
    """Begin to log in to all of them that need it, asking a person where that must be; None where none does."""
    far = [host for host in hosts if not host.is_local]
    if not far:
        return None
    logins = LoginsAhead(loop=LoopThread(LOOP_NAME), backends=BackendPool(askers=askers))
    try:
        for host in far:
            logins.loop.run(logins.backends.begin(host))
        # What else is loaded now would only keep asyncssh waiting, and with it the hosts.
        logins.loop.run(loaded(load_ssh))
    except BaseException:
        logins.close()
        raise
    return logins
