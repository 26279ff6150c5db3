"""The one ZMQ thread of the process: one zmq.Poller for the sockets of all its kernels.

zmq.asyncio costs twice the delay (design, decision 1). What the sockets are for: see sockets.py.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import zmq

_LOG = logging.getLogger(__name__)
IDLE_MS = 60_000

Reader = Callable[["zmq.Socket[bytes]"], None]


class Served(Protocol):
    """The sockets of one kernel, or of one test. All of it is called on the ZMQ thread."""

    def bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Bind the sockets. Raises zmq.ZMQError when an address is taken; all are closed then."""

    def sockets(self) -> dict[zmq.Socket[bytes], Reader]:
        """The sockets to poll, each with what reads it."""

    @property
    def patience_ms(self) -> int:
        """How long the poll may sleep."""

    def tick(self) -> None:
        """Do what is due by time."""


class Switchboard:
    """Runs the thread; `post` and `call` from any other."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._all: list[Served] = []
        self._readers: dict[zmq.Socket[bytes], Reader] = {}
        # What other threads want done here, in order; a byte in the pipe wakes the poll.
        self._calls: deque[tuple[Callable[[], None], Future[None] | None]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        # Whether such a byte is under way; set by callers, cleared here before the calls are run.
        self._is_woken = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="kernelbridge-channels", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Switchboard {len(self._all)} kernels>"

    def add(self, served: Served) -> None:
        """Bind sockets and poll them from now on. Raises zmq.ZMQError if an address is taken."""
        self.call(lambda: self._add(served)).result(5)

    def call(self, function: Callable[[], None]) -> Future[None]:
        """Run a function on the ZMQ thread, after all that was asked before."""
        future: Future[None] = Future()
        self._post(function, future)
        return future

    def post(self, function: Callable[[], None]) -> None:
        """Run a function on the ZMQ thread as `call` does, and tell nobody when it is done."""
        self._post(function, None)

    def _post(self, function: Callable[[], None], future: Future[None] | None) -> None:
        self._calls.append((function, future))
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(OSError):
                self._wake_in.send(b"\0")

    def close(self) -> None:
        """End the thread; sockets that are still open are closed."""
        self._closing = True
        self.call(lambda: None)
        self._thread.join(5)
        self._context.destroy(linger=1000)
        self._wake_in.close()
        self._wake_out.close()

    def forget(self, served: Served) -> None:
        """Stop polling sockets. Called on the ZMQ thread, before they are closed."""
        if served in self._all:
            self._all.remove(served)
        for sock in served.sockets():
            if self._readers.pop(sock, None) is not None:
                self._poller.unregister(sock)

    def _add(self, served: Served) -> None:
        served.bind(self._context)
        self._all.append(served)
        for sock, reader in served.sockets().items():
            self._readers[sock] = reader
            self._poller.register(sock, zmq.POLLIN)

    def _run(self) -> None:
        self._poller.register(self._wake_out, zmq.POLLIN)
        while not self._closing:
            patience = min((served.patience_ms for served in self._all), default=IDLE_MS)
            ready = self._poller.poll(patience)
            # In this order: the other way a byte sent in between would be drained, and its caller not heard.
            with contextlib.suppress(OSError):
                self._wake_out.recv(4096)
            self._is_woken = False
            try:
                self._run_calls()
                for sock, _ in ready:
                    reader = self._readers.get(sock)
                    if reader is not None:
                        reader(sock)
                for served in self._all:
                    served.tick()
            except Exception:
                # The thread serves every kernel of the process: one bad message must not end it.
                _LOG.exception("channels failed")

    def _run_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            try:
                function()
            except Exception as exc:
                if future is None:
                    _LOG.exception("channels failed")
                else:
                    future.set_exception(exc)
            else:
                if future is not None:
                    future.set_result(None)
