"""Carry connections to a container's ports over one command's stdin and stdout there; all on the fleet's loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection

from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.backend import Workload
from kernelbridge.hosts.transport.stream import Stream
from kernelbridge.protocol.frames import WireError
from kernelbridge.protocol.port_mux import (
    MUX_PING_SECONDS,
    MUX_SILENT_SECONDS,
    Broken,
    HalfClosed,
    MuxEvent,
    NotOpened,
    Opened,
    PortMux,
    Received,
    is_no_forwarder,
    port_order,
)

_LOG = logging.getLogger(__name__)

# A stream that nobody has used for so long is ended; the next connection opens another.
IDLE_SECONDS = 60.0


class PortRefused(Exception):
    """The container says that a port cannot be connected to; the text is for people."""


class NoForwarder(Exception):
    """The relay there is of a release that forwards no ports."""


class PortStream:
    """One connection to a port of the container."""

    def __init__(self, mux: MuxStream, number: int) -> None:
        self._mux = mux
        self.number = number
        # Done when the other end answers: connected, or why not.
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # What came and was not read yet; whether an end follows; whether the connection is broken.
        self._received: deque[bytes] = deque()
        self._is_ended = self._is_broken = False
        # Set when there is something to read, or to write again.
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        state = "broken" if self._is_broken else "ended" if self._is_ended else "open"
        return f"<PortStream {self.number} {state}>"

    async def read(self) -> bytes:
        """Return the next bytes; none at the end. Raises ConnectionResetError."""
        while not self._received:
            if self._is_broken:
                raise ConnectionResetError("the container's end is gone")
            if self._is_ended:
                return b""
            await self._change()
        piece = self._received.popleft()
        self._mux.took(self.number, len(piece))
        return piece

    async def write(self, data: bytes) -> None:
        """Send bytes, as fast as they are taken there. Raises ConnectionResetError."""
        view = memoryview(data)
        while view:
            if self._is_broken:
                raise ConnectionResetError("the container's end is gone")
            count = await self._mux.send(self.number, view)
            view = view[count:]
            if not count:
                await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def write_eof(self) -> None:
        """Say that nothing more is sent."""
        self._mux.end(self.number)

    def close(self) -> None:
        """End the connection now. Safe to call twice."""
        self._mux.drop(self.number)
        self.take(Broken(self.number))

    def take(self, event: MuxEvent) -> None:
        """Called by the mux with what the other end says."""
        if isinstance(event, Received):
            self._received.append(event.piece)
        elif isinstance(event, HalfClosed):
            self._is_ended = True
        elif isinstance(event, Broken):
            self._is_broken = True
            self._answer(ConnectionResetError("the stream to the container ended"))
        elif isinstance(event, NotOpened):
            self._answer(PortRefused(event.reason))
        elif isinstance(event, Opened):
            self._answer(None)
        self._changed.set()

    def _answer(self, failure: Exception | None) -> None:
        if self.opened.done():
            return
        if failure is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(failure)
            self.opened.exception()  # Whoever asked may have gone.


class MuxStream:
    """All connections to one container, over one stream; made by open_mux()."""

    def __init__(self, ports: Collection[int]) -> None:
        self.ports = frozenset(ports)
        self._mux = PortMux(opens=True)
        self._streams: dict[int, PortStream] = {}
        # None before open_mux() has it.
        self._stream: Stream | None = None
        # What came before it is known whether a forwarder speaks there; None afterwards.
        self._beginning: bytes | None = b""
        # Why no further connection can be had; None while one can. Set by closed().
        self.ended: Exception | None = None
        self._heard_at = self._used_at = time.monotonic()
        self._watch: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<MuxStream {len(self._streams)} connections{'' if self.ended is None else ', ended'}>"

    def begin(self, stream: Stream) -> None:
        """Called by open_mux() when the command runs."""
        self._stream = stream
        stream.write(port_order(list(self.ports)))
        if self.ended is None:
            self._watch = asyncio.create_task(self._keep_alive())
        else:
            stream.close()

    async def connect(self, port: int) -> PortStream:
        """Connect to a port. Raises PortRefused; NoForwarder; ConnectionResetError: the stream ended meanwhile."""
        if self.ended is not None:
            raise self.ended
        if self._mux.is_full:
            raise PortRefused("too many connections are open")
        made = PortStream(self, self._mux.open(port))
        self._streams[made.number] = made
        self._flush()
        try:
            await made.opened
        except BaseException as exc:
            self.drop(made.number)
            if isinstance(exc, ConnectionResetError) and self.ended is not None:
                raise self.ended from exc
            raise
        return made

    def close(self) -> None:
        """End the stream and all its connections. Safe to call twice."""
        self._end(ConnectionResetError("it was closed"))

    # -- called by connections

    async def send(self, number: int, view: memoryview) -> int:
        """Send what may be sent of a connection's bytes; return how many that was."""
        count = min(len(view), self._mux.credit(number))
        if count:
            self._mux.send(number, view[:count])
            self._flush()
            if self._stream is not None:
                await self._stream.drain()
        return count

    def took(self, number: int, count: int) -> None:
        """Note that a connection's reader has so many bytes."""
        self._mux.took(number, count)
        self._flush()

    def end(self, number: int) -> None:
        """Say that a connection sends nothing more."""
        self._mux.send_eof(number)
        self._flush()

    def drop(self, number: int) -> None:
        """Let go of a connection; the container hears of it if it does not know."""
        self._streams.pop(number, None)
        self._mux.reset(number)
        self._flush()

    def _flush(self) -> None:
        self._used_at = time.monotonic()
        if self._stream is not None and self.ended is None and self._mux.unsent_bytes:
            self._stream.write(self._mux.take_out())

    # -- called by the stream

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""
        self._heard_at = time.monotonic()
        if self._beginning is not None:
            data = self._beginning + data
            is_missing = is_no_forwarder(data)
            self._beginning = data if is_missing is None else None
            if is_missing:
                self._end(NoForwarder())
            if is_missing is not False:
                return
        try:
            events = self._mux.feed(data)
        except WireError as exc:
            _LOG.warning("the forwarder in the container says what it may not: %s", exc)
            self._end(ConnectionResetError(str(exc)))
            return
        for event in events:
            stream = self._streams.get(event.connection)
            if stream is not None:
                stream.take(event)
        self._flush_answers()

    def _flush_answers(self) -> None:
        """Send what the mux itself answers; that is no use of a connection."""
        if self._stream is not None and self._mux.unsent_bytes:
            self._stream.write(self._mux.take_out())

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        self._end(ConnectionResetError(str(exc or "the forwarder ended")))

    def _end(self, why: Exception) -> None:
        if self.ended is not None:
            return
        self.ended = why
        for stream in list(self._streams.values()):
            stream.take(Broken(stream.number))
        self._streams.clear()
        if self._watch is not None:
            self._watch.cancel()
        if self._stream is not None:
            self._stream.close()

    async def _keep_alive(self) -> None:
        """Ping, and end a stream that is silent or that nobody uses."""
        while True:
            self._mux.ping()
            self._flush_answers()
            await asyncio.sleep(MUX_PING_SECONDS)
            now = time.monotonic()
            if now - self._heard_at > MUX_SILENT_SECONDS:
                self._end(ConnectionResetError("the container says nothing"))
            elif not self._streams and now - self._used_at > IDLE_SECONDS:
                self.close()


async def open_mux(workload: Workload, ports: Collection[int]) -> MuxStream:
    """Run the forwarder in a container. Raises: as Workload.open_command()."""
    mux = MuxStream(ports)
    stream = await workload.open_command(bootstrap.forward_argv(workload.python), mux)
    mux.begin(stream)
    return mux
