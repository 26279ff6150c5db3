"""Listen on this machine's loopback for ports of one kernel's container, and carry what connects there.

A forward belongs to its kernel and outlives the link: the listener stays when that is lost, and the next connection
opens a new stream to the container. Nothing of the container is exposed anywhere else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from kernelbridge.config.schema import Forward
from kernelbridge.errors import ForwardFailed, KernelBridgeError
from kernelbridge.hosts.backend import Exited, Missing, Over, Workload
from kernelbridge.hosts.forwards import http_guard
from kernelbridge.hosts.forwards.http_guard import HttpGuard, RequestRefused
from kernelbridge.hosts.forwards.mux_stream import MuxStream, NoForwarder, PortRefused, PortStream, open_mux
from kernelbridge.hosts.forwards.peer_login import Address, may_connect
from kernelbridge.hosts.transport.retry import delays

_LOG = logging.getLogger(__name__)

LOOPBACK_ADDRESS = "127.0.0.1"
# How long a connection waits for a link that is away, and a container that is being replaced.
REACH_SECONDS = 20.0
# Of these, after the port that was asked for, the first free one is taken; beyond them any.
NEXT_PORTS = 100
_BACKLOG = 64
_CHUNK_BYTES = 64 * 1024
# Of SO_LINGER: on, for no time.
_RESET = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)
# After a failure to accept, as where too many files are open.
_ACCEPT_AGAIN_SECONDS = 0.5
# How long a client may take to send the rest of its first request's head.
HEAD_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class OpenForward:
    """A forward that listens."""

    asked: Forward
    # The port here: the one that was asked for, or the next free one.
    here: int

    @property
    def is_elsewhere(self) -> bool:
        """Whether the port that was asked for was taken."""
        return self.here != self.asked.here

    @property
    def address(self) -> str:
        """How people reach it."""
        return f"{LOOPBACK_ADDRESS}:{self.here}" if self.asked.is_raw else f"http://{LOOPBACK_ADDRESS}:{self.here}/"


def bound(port: int) -> socket.socket:
    """Return a listening socket of the loopback, at a port or the next free one. Raises OSError if there is none."""
    for candidate in range(port, min(port + NEXT_PORTS, 65535) + 1):
        sock = _bound_exactly(candidate)
        if sock is not None:
            return sock
    any_port = _bound_exactly(0)
    if any_port is None:
        raise OSError(errno.EADDRINUSE, "no port is free")
    return any_port


def _bound_exactly(port: int) -> socket.socket | None:
    """Return a listening socket of the loopback; None if the port is taken, or not for this login."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Connections of before that are just ending do not keep a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK_ADDRESS, port))
        sock.listen(_BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        return None
    sock.setblocking(False)
    return sock


class PortForwards:
    """The forwards of one kernel. Lives on the fleet's loop; `ports` may be read from any thread."""

    def __init__(
        self,
        kernel: str,
        workload: Callable[[], Awaitable[Workload]],
        *,
        is_allowed: Callable[[Address, Address], bool] = may_connect,
    ) -> None:
        """`workload` reaches the container as it is then; `kernel` is its name for people."""
        self.kernel = kernel
        self._workload = workload
        self._is_allowed = is_allowed
        # The listeners by what was asked for; changed by listen() and aclose().
        self._listeners: dict[Forward, tuple[OpenForward, socket.socket, asyncio.Task[None]]] = {}
        # The stream to the container, opened for the first connection and again after each end.
        self._mux: MuxStream | None = None
        self._opening = asyncio.Lock()
        self._connections: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        shown = ", ".join(f"{one.here} to {one.asked.there}" for one in self.ports)
        return f"<PortForwards of {self.kernel}: {shown or 'none'}; {len(self._connections)} connections>"

    @property
    def ports(self) -> tuple[OpenForward, ...]:
        """The forwards that listen."""
        return tuple(one for one, _, _ in list(self._listeners.values()))

    def port_of(self, there: int) -> int | None:
        """Return the port here of the container's port, if that is forwarded as HTTP."""
        return next((one.here for one in self.ports if one.asked.there == there and not one.asked.is_raw), None)

    def listen(self, wanted: Sequence[Forward]) -> tuple[OpenForward, ...]:
        """Let exactly these forwards listen; return those that are new. Raises OSError where no port can be had."""
        for gone in [asked for asked in self._listeners if asked not in wanted]:
            self._close_listener(gone)
        fresh = []
        # Those whose port is free have it, before others look for a next one.
        exact = {asked: _bound_exactly(asked.here) for asked in wanted if asked not in self._listeners}
        for asked, free in exact.items():
            sock = free or bound(asked.here)
            made = OpenForward(asked=asked, here=sock.getsockname()[1])
            self._listeners[asked] = made, sock, asyncio.create_task(self._accept(asked, sock))
            fresh.append(made)
        if self._mux is not None and self._mux.ports != self._there:
            self._mux.close()
        return tuple(fresh)

    @property
    def _there(self) -> frozenset[int]:
        return frozenset(asked.there for asked in self._listeners)

    def _close_listener(self, asked: Forward) -> None:
        _, sock, task = self._listeners.pop(asked)
        task.cancel()
        sock.close()

    def close(self) -> None:
        """End all listeners and connections and the stream, for now or for good. Safe to call twice."""
        for asked in list(self._listeners):
            self._close_listener(asked)
        for task in self._connections:
            task.cancel()
        if self._mux is not None:
            self._mux.close()

    async def aclose(self) -> None:
        """Close, and wait until connections have ended."""
        self.close()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def has_ended(self) -> bool:
        """Whether the container has ended, as far as that can be known now."""
        try:
            state = await (await self._workload()).state()
        except KernelBridgeError:
            return False
        return isinstance(state, Exited | Missing | Over)

    # -- to the container

    async def connect(self, there: int, *, seconds: float = REACH_SECONDS) -> PortStream:
        """Connect to a port of the container, as soon as that can be reached.

        Raises PortRefused: nothing listens there; ForwardFailed: not reached in time, or the relay there is too old.
        """
        reason = "the host did not answer in time"
        try:
            async with asyncio.timeout(seconds):
                for delay in delays(is_waited_for=lambda: True):
                    try:
                        return await (await self._reached()).connect(there)
                    except (KernelBridgeError, ConnectionResetError) as exc:
                        reason = str(exc.sentence if isinstance(exc, KernelBridgeError) else exc)
                    await asyncio.sleep(delay)
        except TimeoutError:
            pass
        except NoForwarder as exc:
            remedy = "Restart the kernel in a new container: this one was made by an older kernelbridge."
            raise ForwardFailed(kernel=self.kernel, reason="its relay forwards no ports", remedy=remedy) from exc
        raise ForwardFailed(kernel=self.kernel, reason=reason)

    async def _reached(self) -> MuxStream:
        """Return the stream to the container, opened if there is none."""
        async with self._opening:
            # Other ports may be wanted by the time that it is open.
            while self._mux is None or self._mux.ended is not None or self._mux.ports != self._there:
                if self._mux is not None:
                    self._mux.close()
                self._mux = await open_mux(await self._workload(), self._there)
            return self._mux

    # -- from this machine

    async def _accept(self, asked: Forward, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as exc:
                _LOG.warning("port %d of %s: %s", asked.here, self.kernel, exc)
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            task = asyncio.create_task(self._serve(asked, sock))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, asked: Forward, sock: socket.socket) -> None:
        """Carry one connection to its end."""
        try:
            if not await asyncio.to_thread(self._is_allowed, sock.getsockname()[:2], sock.getpeername()[:2]):
                _LOG.warning("port %d of %s: another login of this machine was refused", asked.here, self.kernel)
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader, writer = await asyncio.open_connection(sock=sock)
        except OSError:
            sock.close()  # The client has gone.
            return
        except BaseException:
            sock.close()
            raise
        try:
            await self._carry(asked, reader, writer)
        except Exception:
            # The edge of the task: a bug in one connection is not the others'.
            _LOG.exception("port %d of %s: a connection failed", asked.here, self.kernel)
        finally:
            _break(writer)

    async def _carry(self, asked: Forward, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guard = None if asked.is_raw else HttpGuard()
        try:
            first = b"" if guard is None else await _first_request(guard, reader)
            port = await self.connect(asked.there)
        except RequestRefused as exc:
            await _say(writer, http_guard.response(exc.status, exc.reason))
            return
        except OSError:
            return  # It left, or sent nothing.
        except (PortRefused, ForwardFailed) as exc:
            _LOG.info("port %d of %s: %s", asked.here, self.kernel, exc)
            if guard is not None:
                await _say(writer, http_guard.response(502, f"{self.kernel}: {exc}"))
            return
        try:
            await _Exchange(guard, reader, writer, port).run(first)
            await _finish(writer)
        except* (OSError, RequestRefused) as group:
            _LOG.debug("port %d of %s: %s", asked.here, self.kernel, group.exceptions[0])
        finally:
            port.close()


async def _first_request(guard: HttpGuard, reader: asyncio.StreamReader) -> bytes:
    """Return what may go on of a connection's first bytes, as soon as its first request is whole."""
    first = b""
    async with asyncio.timeout(HEAD_SECONDS):
        while not guard.passed:
            piece = await reader.read(_CHUNK_BYTES)
            if not piece:
                raise ConnectionResetError("the client has left")
            first += guard.feed(piece)
    return first


async def _say(writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Answer a client for the container, and end its connection."""
    with suppress(OSError):  # It may have gone.
        writer.write(answer)
        await _finish(writer)


async def _finish(writer: asyncio.StreamWriter) -> None:
    """Close a connection when all is sent. Raises OSError."""
    writer.close()
    await writer.wait_closed()


def _break(writer: asyncio.StreamWriter) -> None:
    """Reset a connection that is not finished: the client must not take what it has for the whole."""
    sock = writer.get_extra_info("socket")
    if not writer.transport.is_closing() and sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


class _Exchange:
    """Two directions of one connection, until both have ended."""

    def __init__(
        self, guard: HttpGuard | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: PortStream
    ) -> None:
        self._guard = guard
        self._reader = reader
        self._writer = writer
        self._port = port

    async def run(self, first: bytes) -> None:
        """Move bytes. Raises ConnectionError or RequestRefused, in a group: one end broke, or is not to go on."""
        async with asyncio.TaskGroup() as both:
            up = both.create_task(self._up(first))
            await self._down()
            if self._guard is not None:
                # A server that has ended its answers reads no more requests; a client may keep its side open for long.
                up.cancel()
            else:
                self._writer.write_eof()

    async def _up(self, piece: bytes) -> None:
        """From the client to the container."""
        await self._port.write(piece)
        while piece := await self._reader.read(_CHUNK_BYTES):
            await self._port.write(piece if self._guard is None else self._guard.feed(piece))
        self._port.write_eof()

    async def _down(self) -> None:
        """From the container to the client."""
        while piece := await self._port.read():
            early = b"" if self._guard is None else self._guard.answered(piece)
            self._writer.write(piece)
            await self._writer.drain()
            if early:
                await self._port.write(early)
