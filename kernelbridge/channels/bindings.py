"""The five ZMQ sockets of one kernel: bound with their options, sent to, closed. Who is not there gets its reply later.

What is read from them, and what it means: see sockets.py. Used on the ZMQ thread only.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

import zmq

from kernelbridge.channels import messages
from kernelbridge.channels.absent import Absent, Whither
from kernelbridge.channels.endpoints import NAMES, Endpoints
from kernelbridge.channels.messages import DELIMITER, Signer
from kernelbridge.relay import wire

_LOG = logging.getLogger(__name__)
_CHANNEL = {"shell": wire.SHELL, "iopub": wire.IOPUB, "stdin": wire.STDIN, "control": wire.CONTROL}
# A subscriber that does not read is held back by so many messages; the rest waits in handout.py and in the journal.
_SUBSCRIBER_MESSAGES = 1000


class Bindings:
    """The sockets; none before `bind`."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.by_name: dict[str, zmq.Socket[bytes]] = {}
        self._by_channel: dict[int, zmq.Socket[bytes]] = {}
        self._absent = Absent()

    def __repr__(self) -> str:
        return f"<Bindings {', '.join(self.by_name) or 'closed'}, {self._absent!r}>"

    def bind(self, context: zmq.Context[zmq.Socket[bytes]], endpoints: Endpoints) -> Endpoints:
        """Bind all; return the endpoints with their real ports. Raises zmq.ZMQError, and none is left open then."""
        try:
            bound = endpoints.bound({name: self._bind(name, context, endpoints) for name in NAMES})
        except zmq.ZMQError:
            self.close()
            raise
        self._by_channel = {_CHANNEL[name]: sock for name, sock in self.by_name.items() if name in _CHANNEL}
        return bound

    def _bind(self, name: str, context: zmq.Context[zmq.Socket[bytes]], endpoints: Endpoints) -> int:
        sock = context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
        self.by_name[name] = sock
        sock.linger = 1000
        if name == "iopub":
            sock.setsockopt(zmq.XPUB_NODROP, 1)
            # Each client's subscription is told, not only the first of its kind.
            sock.setsockopt(zmq.XPUB_VERBOSE, 1)
            sock.sndhwm = _SUBSCRIBER_MESSAGES
        else:
            # A client that comes back under its routing id takes it over; replies wait for it without bound.
            sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
            sock.setsockopt(zmq.ROUTER_MANDATORY, name != "hb")
            sock.sndhwm = 0
        sock.bind(endpoints.address(name))
        return endpoints.ports[NAMES.index(name)] or _bound_port(sock)

    def channel_of(self, sock: zmq.Socket[bytes]) -> int:
        """Return which channel a socket serves."""
        return next(channel for channel, mine in self._by_channel.items() if mine is sock)

    def sign(self, parts: Sequence[wire.Buffer]) -> list[wire.Buffer]:
        """Return a message with the signature that this front-end expects."""
        return messages.signed(parts, self._signer)

    def send(self, channel: int, parts: list[wire.Buffer]) -> bool:
        """Send a signed message; False if it is for iopub and a subscriber has no room for it."""
        sock = self._by_channel.get(channel)
        if sock is None:
            return True  # Closed: nobody hears.
        if channel != wire.IOPUB:
            self._reply(channel, parts)
            return True
        try:
            sock.send_multipart(parts, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def lose(self, may_lose: bool) -> None:
        """Whether a subscriber that has no room loses messages from now on."""
        self.by_name["iopub"].setsockopt(zmq.XPUB_NODROP, 0 if may_lose else 1)

    def _reply(self, channel: int, parts: list[wire.Buffer]) -> None:
        if parts[0] == DELIMITER:
            return  # A recalled request: nobody here has asked it.
        whither = (channel, bytes(parts[0]))
        if whither not in self._absent and self._send_to(whither, parts):
            return
        if whither[1][:1] == b"\0":
            return  # libzmq chose this id for one connection: it does not come again.
        dropped = self._absent.keep(whither, parts, time.monotonic())
        if dropped:
            _LOG.warning("%d replies to clients that are gone are dropped: too many", dropped)

    def _send_to(self, whither: Whither, parts: Sequence[wire.Buffer]) -> bool:
        """Send a reply; False if its client is not connected."""
        try:
            self._by_channel[whither[0]].send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as exc:
            # Again: its connection is being closed.
            if exc.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def hear(self, whither: Whither) -> None:
        """A client is there: give it what was kept for it."""
        if whither in self._absent:
            self._absent.offer(whither, lambda parts: self._send_to(whither, parts))

    @property
    def retry_at(self) -> float | None:
        """When `retry` has something to do; None while nothing is kept."""
        return self._absent.retry_at if self._absent else None

    def retry(self) -> None:
        """Offer what is kept to those who came back and do not speak."""
        if self._absent:
            dropped = self._absent.retry(time.monotonic(), self._send_to)
            if dropped:
                _LOG.info("%d replies to clients that did not come back are dropped", dropped)

    def close(self) -> None:
        """Close the sockets. Safe to call twice."""
        for sock in self.by_name.values():
            sock.close()
        self.by_name.clear()
        self._by_channel.clear()

    def drain_subscriptions(self) -> bool:
        """Take what subscribers have sent; whether there is a new one."""
        is_new = False
        with contextlib.suppress(zmq.Again):
            while True:
                is_new |= self.by_name["iopub"].recv(zmq.NOBLOCK)[:1] == b"\1"
        return is_new


def _bound_port(sock: zmq.Socket[bytes]) -> int:
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rsplit(b":", 1)[1])
