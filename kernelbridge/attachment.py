"""This process's end of the relay's stream: joined over a link, kept over drops, numbered both ways.

What the frames mean: relay/wire.py and relay/replay.py. Who decides when a kernel starts and ends: kernel.py.
Everything here runs on the one event loop of the process (design, decision 1).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kernelbridge.errors import ContainerFailed, EngineFailed, ImageUnusable, KernelBridgeError, LinkLost
from kernelbridge.host.answers import Exited, Missing
from kernelbridge.host.pool import delays
from kernelbridge.host.ssh import is_transient
from kernelbridge.host.stream import Stream
from kernelbridge.relay import shipping, wire
from kernelbridge.relay.replay import Peer

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

_LOG = logging.getLogger(__name__)

HELLO_SECONDS = 15.0
_KNOCKS = 3
# What a container's init ends with when the command is not there, or may not be run.
_NOT_EXECUTABLE = (126, 127)
PING_SECONDS = 5.0
SILENCE_SECONDS = 15.0
UNHOPEFUL_SECONDS = 30.0
# How often a client that holds all back is looked at again.
CONGESTED_SECONDS = 0.025


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a relay is: which container of which engine, the Python that runs there, how to reach the engine."""

    kernel: str
    host: str
    container: str
    image: str
    python: str
    reach: Callable[[], Awaitable[Engine]]
    # Waits so many seconds, but not beyond a sleep of this machine.
    rest: Callable[[float], Coroutine[Any, Any, None]]


class Listener(Protocol):
    """Who hears what comes from the relay. Called on the loop; must not block."""

    def delivered(self, packed: list[wire.Buffer]) -> None:
        """Messages of the kernel, each once and in order, still packed."""

    def told(self, event: dict[str, Any]) -> None:
        """An event of the relay: ready, exited, failed. All that was sent before it was delivered before it."""

    def joined(self) -> None:
        """The stream is there, or there again."""

    def lost(self, error: LinkLost) -> None:
        """The stream is not there at the moment; it is being joined again."""

    def ended(self, how: Exited | Missing) -> None:
        """The container has ended or is gone: the stream will not come back."""

    @property
    def is_congested(self) -> bool:
        """Whether nothing more should be acknowledged for now."""


class _Line:
    """One exec stream: bytes in -> frames; knows when it ended."""

    def __init__(self, take: Callable[[list[wire.Frame]], None]) -> None:
        self._take = take
        self._decoder = wire.Decoder()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.heard = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        self.heard = self._loop.time()
        if self.ended.done():
            return
        try:
            frames = self._decoder.feed(data)
        except wire.WireError:
            # The engine's own words, in the place of output: it could not run the bridge, the container is ending.
            self.closed(None)
        else:
            if frames:
                self._take(frames)

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        if not self.ended.done():
            self.ended.set_result(None)


class Attachment:
    """Joined to one relay from `run()` until `aclose()`."""

    def __init__(self, place: Place, listener: Listener, *, owner: str) -> None:
        self._place = place
        self._listener = listener
        self._owner = owner
        # Names this end's numbering: another process would start a new one.
        self._stream_id = uuid.uuid4().hex
        self._peer = Peer()
        # The line in use; None while there is none. Set by _join, cleared by _keep.
        self._stream: Stream | None = None
        self._welcome: asyncio.Future[dict[str, Any]] | None = None
        # Runs while something is not acknowledged; see _acknowledge.
        self._timer: asyncio.TimerHandle | None = None
        # Set to try again at once: somebody waits.
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Attachment {self._place.kernel[:8]} {'joined' if self._stream else 'apart'} {self._peer!r}>"

    @property
    def is_joined(self) -> bool:
        """Whether the relay hears us at this moment, as far as we know."""
        return self._stream is not None

    async def join(self) -> None:
        """Join for the first time, and stay joined from then on. Raises KernelBridgeError if the first time fails."""
        line = await self._join()
        self._task = asyncio.create_task(self._run(line))

    async def aclose(self) -> None:
        """Leave the relay. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._drop_stream()

    def forget(self) -> None:
        """Called when the container has ended: nothing is joined any more, and nothing tried."""
        self._drop_stream()

    def send(self, packed: list[tuple[int, bytes]]) -> None:
        """Send messages to the kernel: (lane, packed). Kept and sent later while the stream is not there."""
        for lane, one in packed:
            self._peer.add(lane, one)
        if self._stream is None:
            self._hurry.set()
        self._flush()

    def command(self, order: dict[str, Any]) -> None:
        """Send an order to the relay itself."""
        launch = int(order.get("launch", 0))
        packed = wire.pack(wire.Message(wire.COMMAND, launch, [json.dumps(order).encode()]))
        self.send([(wire.LANE_OF[wire.COMMAND], packed)])

    def forget_waiting(self) -> None:
        """Drop requests that have not gone out: they were for a kernel process that is no more."""
        self._peer.forget_waiting()

    # -- the line

    async def _join(self) -> _Line:
        """Open one line and say HELLO. Raises KernelBridgeError."""
        engine = await self._place.reach()
        for _ in range(_KNOCKS):
            line = _Line(self._take)
            argv = shipping.bridge_argv(self._place.python)
            try:
                stream = await engine.exec_stream(self._place.container, argv, line)
            except EngineFailed:
                await self._check_running(engine)
                raise
            self._welcome = asyncio.get_running_loop().create_future()
            stream.write(
                shipping.hello(
                    kernel=self._place.kernel, owner=self._owner, stream=self._stream_id, received=self._peer.received
                )
            )
            waited: list[asyncio.Future[Any]] = [self._welcome, line.ended]
            await asyncio.wait(waited, timeout=HELLO_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._welcome.done():
                self._stream = stream
                self._peer.resume(self._welcome.result()["received"])
                self._listener.joined()
                self._flush()
                return line
            stream.close()
            # The bridge ended without a WELCOME: the container may have ended.
            await self._check_running(engine)
        raise ContainerFailed(host=self._place.host, image=self._place.image, reason="the relay does not answer")

    async def _check_running(self, engine: Engine) -> None:
        """Raise why the container has ended, if it has: ImageUnusable, ContainerFailed."""
        state = await engine.state(self._place.container)
        if isinstance(state, Exited) and state.code in _NOT_EXECUTABLE:
            raise ImageUnusable(image=self._place.image, lacks=f"`{self._place.python}`")
        if isinstance(state, Exited):
            log = ""
            # There is none of a container that is being removed.
            with contextlib.suppress(EngineFailed):
                log = (await engine.logs(self._place.container, 20)).strip()
            reason = f"{state}: {log.splitlines()[-1][:200]}" if log else str(state)
            raise ContainerFailed(host=self._place.host, image=self._place.image, reason=reason)
        if isinstance(state, Missing):
            raise ContainerFailed(host=self._place.host, image=self._place.image, reason=str(state))

    def _take(self, frames: list[wire.Frame]) -> None:
        now = asyncio.get_running_loop().time()
        arrived: list[wire.Buffer] = []
        for frame in frames:
            if frame.kind == wire.WELCOME:
                if self._welcome is not None and not self._welcome.done():
                    self._welcome.set_result(json.loads(bytes(frame.payload)))
            elif frame.kind in (wire.DATA, wire.ACK):
                packed = self._peer.accept(frame, now)
                if packed is None:
                    continue
                if packed[0] == wire.EVENT:
                    self._hand_over(arrived)
                    arrived = []
                    self._listener.told(json.loads(bytes(wire.unpack(packed).parts[0])))
                else:
                    arrived.append(packed)
            elif frame.kind == wire.BUSY and self._welcome is not None and not self._welcome.done():
                who = f"it is held by another: {bytes(frame.payload).decode()}"
                error = ContainerFailed(host=self._place.host, image=self._place.image, reason=who)
                self._welcome.set_exception(error)
        self._hand_over(arrived)
        if self._peer.has_work(now):
            self._flush()
        self._watch_acknowledgement()

    def _watch_acknowledgement(self) -> None:
        """See to it that an acknowledgement that is owed goes out in time, or soon after the clients can take more."""
        due = self._peer.acknowledge_at
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        due = max(due, loop.time() + CONGESTED_SECONDS) if self._listener.is_congested else due
        self._timer = loop.call_at(due, self._acknowledge)

    def _acknowledge(self) -> None:
        """Called by the timer that runs while something is not acknowledged."""
        self._timer = None
        self._flush()
        self._watch_acknowledgement()

    def _hand_over(self, arrived: list[wire.Buffer]) -> None:
        if arrived:
            self._listener.delivered(arrived)

    def _flush(self) -> None:
        if self._stream is None:
            return
        now = asyncio.get_running_loop().time()
        buffers = self._peer.outgoing(now, may_acknowledge=not self._listener.is_congested)
        if buffers:
            self._stream.write(b"".join(buffers))

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if stream is not None:
            stream.close()

    # -- staying joined

    async def _run(self, line: _Line) -> None:
        """Keep the line, and join again whenever it is lost; ends when the container has ended."""
        while True:
            await self._keep(line)
            self._drop_stream()
            self._listener.lost(LinkLost(host=self._place.host))
            joined = await self._join_again()
            if joined is None:
                return
            line = joined

    async def _keep(self, line: _Line) -> None:
        """Ping until the line ends or is silent."""
        loop = asyncio.get_running_loop()
        while not line.ended.done():
            await asyncio.wait([line.ended], timeout=PING_SECONDS)
            if loop.time() - line.heard > SILENCE_SECONDS:
                _LOG.info("kernel %s: no word from %s, joining again", self._place.kernel[:8], self._place.host)
                return
            if self._stream is not None:
                self._stream.write(wire.frame(wire.PING))

    async def _join_again(self) -> _Line | None:
        """Try until the stream is there again, or the container is known to have ended."""
        for delay in delays(is_waited_for=self._hurry.is_set):
            rest_seconds = delay
            try:
                engine = await self._place.reach()
                state = await engine.state(self._place.container)
                if isinstance(state, Exited | Missing):
                    self._listener.ended(state)
                    return None
                return await self._join()
            except KernelBridgeError as exc:
                _LOG.info("kernel %s: %s", self._place.kernel[:8], exc)
                # After the engine was reached, the next look at the container tells more: it may be going just now.
                if not is_transient(exc) and not isinstance(exc, ContainerFailed | EngineFailed):
                    # A refused login, a changed key: somebody must mend that first, and hosts count such attempts.
                    rest_seconds = UNHOPEFUL_SECONDS
            await self._rest(rest_seconds)
        return None

    async def _rest(self, seconds: float) -> None:
        """Wait; not beyond a new request, nor beyond a sleep of this machine."""
        self._hurry.clear()
        waits = [asyncio.ensure_future(self._place.rest(seconds)), asyncio.ensure_future(self._hurry.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class _Answer:
    """Takes the answer to one question to a relay."""

    def __init__(self) -> None:
        self._decoder = wire.Decoder()
        self.given: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        if self.given.done():
            return
        try:
            frames = self._decoder.feed(data)
        except wire.WireError:
            # As above: no bridge ran.
            self.closed(None)
            return
        for frame in frames:
            if frame.kind == wire.ANSWER and not self.given.done():
                self.given.set_result(json.loads(bytes(frame.payload)))

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        if not self.given.done():
            self.given.set_result(None)


async def ask_logs(place: Place) -> str:
    """Return what a kernel's process wrote to its own stdout and stderr; the stream of its owner is not disturbed."""
    engine = await place.reach()
    answer = _Answer()
    stream = await engine.exec_stream(place.container, shipping.bridge_argv(place.python), answer)
    try:
        stream.write(shipping.hello(kernel=place.kernel, owner="", stream="", received=[], ask="logs"))
        async with asyncio.timeout(HELLO_SECONDS):
            said = await answer.given
    except TimeoutError:
        said = None
    finally:
        stream.close()
    if said is None:
        raise ContainerFailed(host=place.host, image=place.image, reason="the relay does not answer")
    return str(said["text"])
