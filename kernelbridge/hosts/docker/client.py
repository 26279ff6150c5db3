"""Run docker-py over a link: its sockets come from the link's streams, its blocking calls run in their own threads."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import docker
import docker.errors
import requests.adapters
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions

from kernelbridge.hosts.transport.stream import HIGH_WATER_BYTES, Receiver, Stream
from kernelbridge.mailbox import LoopMailbox

Result = TypeVar("Result")
# Opens one connection to the engine.
Opener = Callable[[Receiver], Awaitable[Stream]]

# A docker.APIClient, whose type hints cover half of its methods. Not handed beyond engine.py.
Client = Any

# Names nobody: the adapter below takes every URL of the session to the engine.
BASE_URL = "http://docker:80"
CALL_SECONDS = 900.0
# By a command it is opened behind a login shell's start-up files, which have a limit of their own.
OPEN_SECONDS = 120.0
# How long one answer may be: a few thousand containers. Python's objects take some 25 times as much. And how much more
# may come in each second of one that takes long: the progress of a pull.
ANSWER_BYTES = 8 << 20
ANSWER_BYTES_PER_SECOND = 64 << 10


async def in_thread(work: Callable[[], Result], *, name: str, abandon: Callable[[], None] | None = None) -> Result:
    """Run blocking work in a fresh daemon thread. On cancellation the thread is left to itself, after `abandon`.

    Not asyncio.to_thread: its pool is bounded and is waited for at exit, so that a slow pull could delay a poll, and a
    dead engine the end of the process.
    """
    mailbox = LoopMailbox()
    done = asyncio.Event()
    ended: Future[Result] = Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except BaseException as exc:  # every error goes to the one who waits
            ended.set_exception(exc)
        mailbox.post(done.set)

    threading.Thread(target=run, name=f"kernelbridge {name}", daemon=True).start()
    try:
        await done.wait()
    except asyncio.CancelledError:
        if abandon is not None:
            abandon()
        raise
    return ended.result()


class OpenError(Exception):
    """A connection to the engine could not be opened; `reason` says why.

    Neither an OSError nor docker-py's: urllib3 would wrap those and lose what they are.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class AnswerTooLong(Exception):
    """An answer of the engine was cut off: it would fill this machine's memory."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The engine's own no to a request."""

    status: int
    message: str


# What docker-py raises over an answer that is not as the engine's API says: broken JSON, or JSON of another shape.
NOT_UNDERSTOOD = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
# What docker-py and those below it raise. OSError has requests' errors and the sockets' own.
FAILURES = (
    *NOT_UNDERSTOOD,
    docker.errors.DockerException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
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
        # How much of the answer has come, and since when; begun anew by data_received().
        self._answered_bytes = 0
        self._asked_at = 0.0
        # Whether docker-py, or we, ended it; set by connection_lost().
        self._has_ended = False

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
        """Called by asyncio with what docker-py sends; what the engine says comes by _PumpReceiver."""
        if self.stream is None or self._transport is None:
            return
        self._answered_bytes, self._asked_at = 0, asyncio.get_running_loop().time()
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
        self._has_ended = True
        if self._draining is not None:
            self._draining.cancel()
        self._sockets.forget(self)
        if self.stream is not None:
            self.stream.close()

    def answer(self, data: bytes) -> None:
        """Hand the engine's bytes to docker-py, as long as they can be an answer."""
        self._answered_bytes += len(data)
        seconds = asyncio.get_running_loop().time() - self._asked_at
        if self._answered_bytes > ANSWER_BYTES + seconds * ANSWER_BYTES_PER_SECOND:
            self.closed(AnswerTooLong(f"it answers with more than {ANSWER_BYTES >> 20} MiB"))
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def closed(self, exc: Exception | None) -> None:
        """The engine's side has ended: docker-py sees EOF after the last byte."""
        if exc is not None:
            self._sockets.last_failure = exc
        if not self._has_ended:
            self._sockets.has_lost_one = True
        self.close()

    def close(self) -> None:
        """End both directions; what is queued for docker-py still reaches it."""
        if self._transport is not None:
            self._transport.close()


class _PumpReceiver:
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
        self._mailbox = LoopMailbox()
        # Those in use; added by _connect(), removed by forget().
        self._pumps: set[_Pump] = set()
        # Why a stream ended that did not end by itself; set by its pump.
        self.last_failure: Exception | None = None
        # Whether the other side ended a connection; set by its pump, cleared by whoever looks.
        self.has_lost_one = False
        # Set by close_all().
        self._is_closed = False
        # The connections that docker-py keeps, of all clients that are made on these sockets.
        self.kept = _ConnectionPool(self)

    def __repr__(self) -> str:
        return f"<Sockets {len(self._pumps)} open>"

    def connect(self) -> socket.socket:
        """A socket that leads to the engine. Called by docker-py in its thread; blocks until the stream is open.

        Raises: OpenError.
        """
        if self._is_closed:
            raise OpenError(ConnectionError("closed"))
        waiting = self._mailbox.call(self._connect())
        try:
            return waiting.result(OPEN_SECONDS)
        except Exception as exc:  # An edge: whatever it is goes on as the reason.
            waiting.cancel()
            raise OpenError(exc) from exc

    async def _connect(self) -> socket.socket:
        theirs, ours = socket.socketpair()
        try:
            ours.setblocking(False)
            _, pump = await asyncio.get_running_loop().create_connection(lambda: _Pump(self), sock=ours)
            self._pumps.add(pump)
            try:
                pump.stream = await self._opener(_PumpReceiver(pump))
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
        """End all sockets, for good; blocked calls fail at once."""
        self._is_closed = True
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
        self._pool = sockets.kept
        super().__init__()

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> _ConnectionPool:
        """Called by requests for each request."""
        return self._pool

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        """Called by requests: the path alone, without proxies."""
        return request.path_url

    def build_response(self, request: requests.PreparedRequest, answer: Any) -> requests.Response:
        """Called by requests for each answer: no engine compresses, and a small answer must not become a large one."""
        answer.headers.pop("Content-Encoding", None)
        return super().build_response(request, answer)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Called by requests for each request."""
        try:
            return super().send(request, *args, **options)
        except requests.exceptions.ConnectionError:
            # A kept connection may end just as it is used again, as when the engine restarts: who only asks asks anew.
            if request.method != "GET":
                raise
            return super().send(request, *args, **options)

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
