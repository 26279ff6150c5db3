"""When output that is held after a re-attach may go: once a client is there that will hear it. Pure.

At the start of a server its own sockets come first, and output would go to them alone: each page loads seconds later.
They are anonymous; a page's websocket, and every plain jupyter_client, has a routing id of its own, and its first
request is kernel_info on shell.

The request does not prove that the same client's subscription has arrived: that is another connection. jupyter_server
opens iopub before shell and forwards requests only when it has heard something on iopub (it skips that for busy
kernels); a plain client opens shell first, a moment earlier. XPUB does not say whose a subscription is. So output goes
once somebody has subscribed at all, and SETTLE_SECONDS after the newest subscription and the request, whichever was
later: both connections are made within a few ms.
"""

from __future__ import annotations

SETTLE_SECONDS = 0.1


class Hold:
    """Whether output is held."""

    def __init__(self) -> None:
        # Set by begin, cleared by end.
        self.is_on = False
        # When the newest subscription came; None before the first.
        self._subscribed_at: float | None = None
        # When a client with an identity of its own asked first since the hold began.
        self._asked_at: float | None = None

    def __repr__(self) -> str:
        return f"<Hold {'on' if self.is_on else 'off'}{', asked' if self._asked_at is not None else ''}>"

    def begin(self) -> None:
        """Hold from here on."""
        self.is_on, self._asked_at = True, None

    def end(self) -> None:
        """Output went."""
        self.is_on = False

    def subscribed(self, now: float) -> None:
        """A subscription came on iopub."""
        self._subscribed_at = now

    def asked(self, identities: tuple[bytes, ...], now: float) -> None:
        """A request came on shell."""
        # The first byte of an identity that libzmq chose is 0.
        if self.is_on and self._asked_at is None and identities and identities[0][:1] not in (b"", b"\0"):
            self._asked_at = now

    @property
    def ends_at(self) -> float | None:
        """When output may go; None while that is not known."""
        if not self.is_on or self._asked_at is None or self._subscribed_at is None:
            return None
        return max(self._asked_at, self._subscribed_at) + SETTLE_SECONDS
