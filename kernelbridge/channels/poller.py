"""Poll the sockets of all kernels of the process with one zmq.Poller, in one thread.

zmq.asyncio costs twice the delay (decisions.md, 1).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

import zmq

_LOG = logging.getLogger(__name__)
# How long the poll sleeps where nothing is due.
IDLE_MS = 60_000
# How long one kernel's calls are run before it is another's turn, and how long what waits of it is sent: its flood of
# output must not keep others waiting.
TURN_SECONDS = 0.02

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")
Reader = Callable[["zmq.Socket[bytes]"], None]
_Call = tuple[Callable[..., object], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PolledSockets:
    """The sockets of one kernel as the poll loop needs them. All of it is called on the ZMQ thread."""

    # Bind the sockets; return each with what reads it. Raises zmq.ZMQError if an address is taken; none is open then.
    bind: Callable[[zmq.Context[zmq.Socket[bytes]]], dict[zmq.Socket[bytes], Reader]]
    # How many ms the poll may sleep.
    patience_ms: Callable[[], int]
    # Do what is due by time.
    tick: Callable[[], None]


class ZmqPoller:
    """Run the ZMQ thread, and carry calls into it: `post` and `call` from any other thread.

    The mirror image of LoopMailbox: a byte through a socket pair wakes the poll, as call_soon_threadsafe does a loop.
    """

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        # Each kernel's sockets, and what reads them.
        self._polled: dict[PolledSockets, dict[zmq.Socket[bytes], Reader]] = {}
        self._readers: dict[zmq.Socket[bytes], Reader] = {}
        # What other threads want done here, by whose it is; a byte wakes the poll. Changed by all threads, locked.
        self._calls: dict[object, deque[_Call]] = {}
        self._lock = threading.Lock()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        # Whether such a byte is under way; set by callers, cleared here before the calls are run.
        self._is_woken = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="kernelbridge-channels", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<ZmqPoller {len(self._polled)} kernels>"

    def add(self, sockets: PolledSockets) -> None:
        """Bind sockets and poll them from now on. Raises zmq.ZMQError if an address is taken."""
        self.call(lambda: self._add(sockets)).result(5)

    def post(self, function: Callable[[*_Args], object], *args: *_Args, of: object = None) -> None:
        """Run a function on the ZMQ thread, after all that was posted before of the same: no other's flood delays it.

        Its result is dropped, its errors are logged. After `close` this does nothing.
        """
        with self._lock:
            self._calls.setdefault(of, deque()).append((function, args))
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(OSError):
                self._wake_in.send(b"\0")

    def call(self, function: Callable[[], _T], *, of: object = None) -> Future[_T]:
        """Run a function as `post` does; the future gets its result or error."""
        future: Future[_T] = Future()
        self.post(_settle, future, function, of=of)
        return future

    def close(self) -> None:
        """End the thread; sockets that are still open are closed."""
        self._closing = True
        self.call(lambda: None)
        self._thread.join(5)
        self._context.destroy(linger=1000)
        self._wake_in.close()
        self._wake_out.close()

    def remove(self, sockets: PolledSockets) -> None:
        """Stop polling sockets. Called on the ZMQ thread, before they are closed."""
        for sock in self._polled.pop(sockets, {}):
            del self._readers[sock]
            self._poller.unregister(sock)

    def _add(self, sockets: PolledSockets) -> None:
        readers = self._polled[sockets] = sockets.bind(self._context)
        self._readers |= readers
        for sock in readers:
            self._poller.register(sock, zmq.POLLIN)

    def _run(self) -> None:
        self._poller.register(self._wake_out, zmq.POLLIN)
        while not self._closing:
            self._turn()
        while self._calls:
            self._run_calls()

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        patience = min((one.patience_ms() for one in self._polled), default=IDLE_MS)
        ready = self._poller.poll(0 if self._calls else patience)
        # In this order: the other way a byte sent in between would be drained, and its call left for later.
        with contextlib.suppress(OSError):
            self._wake_out.recv(4096)
        self._is_woken = False
        try:
            self._run_calls()
            for sock, _ in ready:
                reader = self._readers.get(sock)
                if reader is not None:
                    reader(sock)
            for one in self._polled:
                one.tick()
        except Exception:
            # The thread serves every kernel of the process: one bad message must not end it.
            _LOG.exception("channels failed")

    def _run_calls(self) -> None:
        """Run what was posted, of each for one turn; the rest stays for the next."""
        with self._lock:
            whose = list(self._calls)
        for of in whose:
            ends_at = time.monotonic() + TURN_SECONDS
            while (call := self._next_call(of)) is not None:
                function, args = call
                try:
                    function(*args)
                except Exception:
                    _LOG.exception("channels failed")
                if time.monotonic() >= ends_at:
                    break

    def _next_call(self, of: object) -> _Call | None:
        with self._lock:
            if self._calls[of]:
                return self._calls[of].popleft()
            del self._calls[of]
            return None


def _settle(future: Future[_T], function: Callable[[], _T]) -> None:
    """Run a function, also when nobody waits for its future any more."""
    try:
        result = function()
    except Exception as exc:
        if future.set_running_or_notify_cancel():
            future.set_exception(exc)
    else:
        if future.set_running_or_notify_cancel():
            future.set_result(result)
