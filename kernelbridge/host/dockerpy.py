"""docker-py over a link: its sockets come from the link's streams, its blocking calls run in threads of their own.

What is asked of the engine, and what its errors mean: engine.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import logging
import socket
import tarfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import docker
import docker.errors
import requests.adapters
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions

from kernelbridge.host.stream import HIGH_WATER_BYTES, Receiver, Stream

log = logging.getLogger(__name__)

Result = TypeVar("Result")
# Opens one connection to the engine.
Opener = Callable[[Receiver], Awaitable[Stream]]

# A docker.APIClient, whose type hints cover half of its methods. Not handed beyond engine.py.
Client = Any

# Names nobody: the adapter below takes every URL of the session to the engine.
BASE_URL = "http://docker:80"
CALL_SECONDS = 900.0
OPEN_SECONDS = 30.0


def open_folder(name: str) -> bytes:
    """Return the archive of an empty folder that everybody may write to and nobody empty for others."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo(f"{name}/")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(folder)
    return archive.getvalue()


async def in_thread(work: Callable[[], Result], *, name: str, abandon: Callable[[], None] | None = None) -> Result:
    """Run blocking work in a fresh daemon thread. On cancellation the thread is left to itself, after `abandon`.

    Not asyncio.to_thread: its pool is bounded and is waited for at exit, so that a slow pull could delay a poll, and a
    dead engine the end of the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, exc: BaseException | None) -> None:
        if future.done():
            return
        if exc is not None:
            future.set_exception(exc)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without exc it is a Result

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as exc:  # every error goes to the one who waits
            failure = exc
        with contextlib.suppress(RuntimeError):  # The loop has ended: nobody waits any more.
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=run, name=f"kernelbridge {name}", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        if abandon is not None:
            abandon()
        raise


class OpenError(Exception):
    """A connection to the engine could not be opened; `reason` says why.

    Neither an OSError nor docker-py's: urllib3 would wrap those and lose what they are.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The engine's own no to a request."""

    status: int
    message: str


# What docker-py and those below it raise. OSError has requests' errors and the sockets' own, ValueError broken JSON.
FAILURES = (
    docker.errors.DockerException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
    OpenError,
)


def as_refusal(exc: BaseException) -> Refusal | None:
    """What the engine said, if it was the engine that said no; None: the request or its answer did not get through."""
    if not isinstance(exc, docker.errors.APIError) or exc.status_code is None:
        return None
    return Refusal(status=exc.status_code, message=str(exc.explanation or exc).strip())


def is_timeout(exc: BaseException) -> bool:
    """Whether the answer did not come in CALL_SECONDS."""
    return isinstance(exc, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError | TimeoutError)


class _Pump(asyncio.Protocol):
    """Joins our end of a socket pair to a stream; docker-py has the other end. Back-pressure goes both ways."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        # Our end of the pair; set by connection_made().
        self._transport: asyncio.Transport | None = None
        # The way to the engine; set by joined().
        self.stream: Stream | None = None
        # Waits until the stream takes more; one at a time, ended by connection_lost().
        self._draining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio for our end of the pair."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def pause_writing(self) -> None:
        """Called by asyncio: docker-py reads too slowly."""
        if self.stream is not None:
            self.stream.pause_reading()

    def resume_writing(self) -> None:
        """Called by asyncio: docker-py has caught up."""
        if self.stream is not None:
            self.stream.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with what docker-py sends; from the engine the same name brings its answer, see Answer."""
        if self.stream is None or self._transport is None:
            return
        self.stream.write(data)
        if self.stream.unsent_bytes() > HIGH_WATER_BYTES and self._draining is None:
            self._transport.pause_reading()
            self._draining = asyncio.create_task(self._drain(self.stream, self._transport))

    async def _drain(self, stream: Stream, transport: asyncio.Transport) -> None:
        await stream.drain()
        self._draining = None
        if not transport.is_closing():
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Called by asyncio: docker-py has closed its end."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once."""
        if self._draining is not None:
            self._draining.cancel()
        self._sockets.forget(self)
        if self.stream is not None:
            self.stream.close()

    def answer(self, data: bytes) -> None:
        """Hand the engine's bytes to docker-py."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def closed(self, exc: Exception | None) -> None:
        """The engine's side has ended: docker-py sees EOF after the last byte."""
        if exc is not None:
            self._sockets.last_failure = exc
        self.close()

    def close(self) -> None:
        """End both directions; what is queued for docker-py still reaches it."""
        if self._transport is not None:
            self._transport.close()


class _Answer:
    """The Receiver of a pump: a pump is an asyncio.Protocol too, whose data_received() is the other direction."""

    def __init__(self, pump: _Pump) -> None:
        self._pump = pump

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        self._pump.answer(data)

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        self._pump.closed(exc)


class Sockets:
    """Makes the sockets of one docker-py client, and can close them all."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._loop = asyncio.get_running_loop()
        # Those in use; added by _connect(), removed by forget().
        self._pumps: set[_Pump] = set()
        # Why a stream ended that did not end by itself; set by its pump.
        self.last_failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<Sockets {len(self._pumps)} open>"

    def connect(self) -> socket.socket:
        """A socket that leads to the engine. Called by docker-py in its thread; blocks until the stream is open.

        Raises: OpenError.
        """
        waiting = asyncio.run_coroutine_threadsafe(self._connect(), self._loop)
        try:
            return waiting.result(OPEN_SECONDS)
        except Exception as exc:  # An edge: whatever it is goes on as the reason.
            waiting.cancel()
            raise OpenError(exc) from exc

    async def _connect(self) -> socket.socket:
        theirs, ours = socket.socketpair()
        try:
            ours.setblocking(False)
            _, pump = await self._loop.create_connection(lambda: _Pump(self), sock=ours)
            self._pumps.add(pump)
            try:
                pump.stream = await self._opener(_Answer(pump))
            except BaseException:
                pump.close()
                raise
        except BaseException:
            theirs.close()
            ours.close()
            raise
        return theirs

    def take_failure(self, exc: BaseException) -> Exception | None:
        """Why docker-py failed with `exc`, as far as our side knows; told once."""
        failure, self.last_failure = self.last_failure, None
        return exc.reason if isinstance(exc, OpenError) else failure

    def forget(self, pump: _Pump) -> None:
        """Called by a pump at its end."""
        self._pumps.discard(pump)

    def close_all(self) -> None:
        """End all sockets; blocked calls fail at once."""
        for pump in self._pumps.copy():
            pump.close()


class _Connection(urllib3.connection.HTTPConnection):
    """urllib3's connection with a socket of ours."""

    def __init__(self, sockets: Sockets, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._sockets = sockets

    def connect(self) -> None:
        """Called by urllib3 before a request on a new connection."""
        self.sock = self._sockets.connect()
        self.sock.settimeout(CALL_SECONDS)


class _ConnectionPool(urllib3.connectionpool.HTTPConnectionPool):
    """urllib3's pool of such connections: connections that are still good are used again."""

    def __init__(self, sockets: Sockets) -> None:
        super().__init__("docker", timeout=CALL_SECONDS, maxsize=10)
        self._sockets = sockets

    def _new_conn(self) -> _Connection:
        return _Connection(self._sockets, "docker", timeout=self.timeout.connect_timeout)


class _Adapter(requests.adapters.HTTPAdapter):
    """requests' adapter that asks one pool, whatever the URL, and no proxy."""

    def __init__(self, sockets: Sockets) -> None:
        self._pool = _ConnectionPool(sockets)
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> _ConnectionPool:
        """Called by requests for each request."""
        return self._pool

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """Called by requests: the path alone, without proxies."""
        return request.path_url

    def close(self) -> None:
        """Called by Session.close()."""
        self._pool.close()
        super().close()


def make_client(sockets: Sockets, *, version: str, keeps_connections: bool) -> Client:
    """A docker-py client whose connections all come from `sockets`. It does nothing until it is asked.

    `keeps_connections` is False where each connection costs one of sshd's few sessions.
    """
    client = docker.APIClient(base_url=BASE_URL, version=version, timeout=int(CALL_SECONDS))
    # Neither a proxy nor a .netrc of this machine has a say in what goes to the engine.
    client.trust_env = False
    client.mount("http://", _Adapter(sockets))
    if not keeps_connections:
        client.headers["Connection"] = "close"
    return client
