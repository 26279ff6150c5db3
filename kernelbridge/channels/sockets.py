"""Bind and close the five ZMQ sockets of one kernel, send on them, and keep replies for clients that are not connected.

Used on the ZMQ thread only.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from kernelbridge.channels import messages
from kernelbridge.channels.endpoints import NAMES, Endpoints
from kernelbridge.channels.messages import Signer
from kernelbridge.protocol import frames
from kernelbridge.protocol.frames import Buffer

_LOG = logging.getLogger(__name__)
_CHANNEL = {"shell": frames.SHELL, "iopub": frames.IOPUB, "stdin": frames.STDIN, "control": frames.CONTROL}
# ZMQ keeps so many messages for a client that does not read, and of those that are not small so many bytes; the rest
# waits in the OutputQueue and in the journal.
_CLIENT_MESSAGES = 1000
UNREAD_BYTES = 64 * 1024 * 1024
_SMALL_BYTES = 64 * 1024
# Requests of which it is known what was lost of their output.
_MOST_LOST = 100


class KernelSockets:
    """The five sockets of one kernel; none before `bind`."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self.by_name: dict[str, zmq.Socket[bytes]] = {}
        self._by_channel: dict[int, zmq.Socket[bytes]] = {}
        self._pending = PendingReplies()
        # What ZMQ has for clients that have not read it yet, by channel; and whether such clients lose messages.
        self._unread = {channel: Unread() for channel in _CHANNEL.values()}
        self.is_lossy = False
        # What was lost so for all clients, by the parent header of its request: how many messages, how many bytes.
        self._lost: dict[bytes, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<KernelSockets {', '.join(self.by_name) or 'closed'}, {self._pending!r}>"

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
            # Report each client's subscription, not only the first of its kind.
            sock.setsockopt(zmq.XPUB_VERBOSE, 1)
        else:
            # A client that comes back under its routing id takes it over.
            sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
            sock.setsockopt(zmq.ROUTER_MANDATORY, name != "hb")
        sock.sndhwm = _CLIENT_MESSAGES
        sock.bind(endpoints.address(name))
        return endpoints.ports[NAMES.index(name)] or _bound_port(sock)

    def channel_of(self, sock: zmq.Socket[bytes]) -> int:
        """Return which channel a socket serves."""
        return next(channel for channel, mine in self._by_channel.items() if mine is sock)

    def sign(self, parts: Sequence[frames.Buffer]) -> list[frames.Buffer]:
        """Return a message with the signature that this front-end expects."""
        return messages.signed(parts, self._signer)

    def send(self, channel: int, parts: list[frames.Buffer]) -> bool:
        """Send a signed message; False if a client that does not read has no room for it."""
        if channel not in self._by_channel:
            return True  # Closed: there is no client.
        if not self._unread[channel].has_room(sum(map(len, parts))):
            # What is lossy loses it for all: they read from one queue.
            if self.is_lossy:
                self._note_lost(parts)
            return self.is_lossy
        if channel != frames.IOPUB:
            self._reply(channel, parts)
            return True
        try:
            self._put(channel, parts)
        except zmq.Again:
            return False
        return True

    def _put(self, channel: int, parts: Sequence[frames.Buffer]) -> None:
        """Give a message to ZMQ; what is not small is counted until all clients have it. Raises zmq.ZMQError."""
        sock, size_bytes = self._by_channel[channel], sum(map(len, parts))
        if size_bytes < _SMALL_BYTES:
            sock.send_multipart(parts, zmq.NOBLOCK)
            return
        tracker = sock.send_multipart(parts, zmq.NOBLOCK, copy=False, track=True)
        assert tracker is not None
        self._unread[channel].add(tracker, size_bytes)

    def set_lossy(self, is_lossy: bool) -> None:
        """Set whether a client that has no room loses messages from now on."""
        self.is_lossy = is_lossy
        self.by_name["iopub"].setsockopt(zmq.XPUB_NODROP, 0 if is_lossy else 1)

    def _note_lost(self, parts: Sequence[frames.Buffer]) -> None:
        parent = bytes(parts[messages.delimiter_index(parts) + 3])
        if parent in self._lost or len(self._lost) < _MOST_LOST:
            count, size_bytes = self._lost.get(parent, (0, 0))
            self._lost[parent] = count + 1, size_bytes + sum(map(len, parts))

    def take_lost(self) -> dict[bytes, tuple[int, int]]:
        """Return what was lost for all clients since the last time, once they can be told."""
        if self.is_lossy or not self._lost:
            return {}
        lost, self._lost = self._lost, {}
        return lost

    def _reply(self, channel: int, parts: list[frames.Buffer]) -> None:
        if parts[0] == frames.DELIMITER:
            return  # A recalled request: no client of this process has sent it.
        address = (channel, bytes(parts[0]))
        if address not in self._pending and self._send_to(address, parts):
            return
        if address[1][:1] == b"\0":
            return  # libzmq chose this id for one connection: it does not come again.
        dropped = self._pending.keep(address, parts, time.monotonic())
        if dropped:
            _LOG.warning("%d replies to clients that are gone are dropped: too many", dropped)

    def _send_to(self, address: ReplyAddress, parts: Sequence[frames.Buffer]) -> bool:
        """Send a reply; False if its client is not connected."""
        try:
            self._put(address[0], parts)
        except zmq.ZMQError as exc:
            # Again: its connection is being closed.
            if exc.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def send_pending(self, address: ReplyAddress) -> None:
        """Send what was kept for a client, which is there now."""
        if address in self._pending:
            self._pending.offer(address, lambda parts: self._send_to(address, parts))

    @property
    def retry_at(self) -> float | None:
        """When `retry_pending` has something to do; None while nothing is kept."""
        return self._pending.retry_at if self._pending else None

    def retry_pending(self) -> None:
        """Offer what is kept to clients that came back and do not speak."""
        if self._pending:
            dropped = self._pending.retry(time.monotonic(), self._send_to)
            if dropped:
                _LOG.info("%d replies to clients that did not come back are dropped", dropped)

    def close(self) -> None:
        """Close the sockets. Safe to call twice."""
        for sock in self.by_name.values():
            sock.close()
        self.by_name.clear()
        self._by_channel.clear()

    def drain_subscriptions(self) -> bool:
        """Read what subscribers have sent; return whether there is a new one."""
        is_new = False
        with contextlib.suppress(zmq.Again):
            while True:
                is_new |= self.by_name["iopub"].recv(zmq.NOBLOCK)[:1] == b"\1"
        return is_new


class Unread:
    """Count the bytes that ZMQ holds for clients on one channel; it tells when all of them have a message."""

    def __init__(self) -> None:
        self._messages: deque[tuple[zmq.MessageTracker, int]] = deque()
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<Unread {len(self._messages)} messages, {self.bytes} bytes>"

    def add(self, tracker: zmq.MessageTracker, size_bytes: int) -> None:
        """Count a message that was given to ZMQ."""
        self._messages.append((tracker, size_bytes))
        self.bytes += size_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether a message may be given to ZMQ: any, where nothing is unread."""
        if self.bytes + size_bytes > UNREAD_BYTES:
            left = [(tracker, size) for tracker, size in self._messages if not tracker.done]
            self._messages, self.bytes = deque(left), sum(size for _, size in left)
        return not self.bytes or self.bytes + size_bytes <= UNREAD_BYTES


def _bound_port(sock: zmq.Socket[bytes]) -> int:
    endpoint = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rsplit(b":", 1)[1])


KEPT_SECONDS = 600.0
KEPT_BYTES = 64 * 1024 * 1024
# A client may connect and not speak: it is tried so often.
REPLY_RETRY_SECONDS = 1.0
# Where a reply goes: channel, routing id.
ReplyAddress = tuple[int, bytes]


class PendingReplies:
    """Keep replies for clients that are not connected, in order, until they are back; up to a time and a size."""

    def __init__(self, *, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        # For each client its replies, oldest first: (when it was kept, the signed message).
        self._kept: dict[ReplyAddress, deque[tuple[float, list[bytes]]]] = {}
        self.bytes = 0
        # When all are tried again; meaningless while nothing is kept.
        self.retry_at = 0.0

    def __repr__(self) -> str:
        return f"<PendingReplies {len(self._kept)} clients, {self.bytes} bytes>"

    def __bool__(self) -> bool:
        return bool(self._kept)

    def __contains__(self, address: ReplyAddress) -> bool:
        return address in self._kept

    def keep(self, address: ReplyAddress, parts: Sequence[Buffer], now: float) -> int:
        """Keep a reply; return how many older ones had to go for it."""
        if not self._kept:
            self.retry_at = now + REPLY_RETRY_SECONDS
        # Copies: the parts may be views of much larger buffers.
        copied = [bytes(part) for part in parts]
        self._kept.setdefault(address, deque()).append((now, copied))
        self.bytes += sum(map(len, copied))
        dropped = 0
        while self.bytes > self._limit_bytes:
            self._drop(min(self._kept, key=lambda one: self._kept[one][0][0]))
            dropped += 1
        return dropped

    def offer(self, address: ReplyAddress, send: Callable[[list[bytes]], bool]) -> None:
        """Send what is kept for one client, until `send` returns that it is not connected."""
        while address in self._kept and send(self._kept[address][0][1]):
            self._drop(address)

    def retry(self, now: float, send: Callable[[ReplyAddress, Sequence[Buffer]], bool]) -> int:
        """Offer to all what is kept for them, if it is time; return how many replies were too old."""
        if now < self.retry_at:
            return 0
        self.retry_at = now + REPLY_RETRY_SECONDS
        dropped = 0
        for address in list(self._kept):
            self.offer(address, partial(send, address))
            while address in self._kept and self._kept[address][0][0] + KEPT_SECONDS < now:
                self._drop(address)
                dropped += 1
        return dropped

    def _drop(self, address: ReplyAddress) -> None:
        replies = self._kept[address]
        self.bytes -= sum(map(len, replies.popleft()[1]))
        if not replies:
            del self._kept[address]
