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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kernelbridge.errors import EngineFailed, KernelBridgeError, LinkLost
from kernelbridge.gpu_errors import JobEnded, RuntimeMissing
from kernelbridge.host.answers import Exited, Missing, Over
from kernelbridge.host.pool import delays
from kernelbridge.host.ssh import is_transient
from kernelbridge.host.stream import Stream
from kernelbridge.kernel_errors import ContainerFailed, KernelHeld
from kernelbridge.relay import shipping, wire
from kernelbridge.relay.replay import Peer
from kernelbridge.relays import HELLO_SECONDS, Listener, Place, check_running

_LOG = logging.getLogger(__name__)

# How often and how fast the relay is asked for again before that is a failure: a container that ends just now is
# refused by the engine some time before it is shown as ended.
_KNOCKS = 6
_KNOCK_SECONDS = 0.3
PING_SECONDS = 5.0
SILENCE_SECONDS = 15.0
UNHOPEFUL_SECONDS = 30.0
GOODBYE_SECONDS = 1.0
# How often a client that holds all back is looked at again, at first and later.
CONGESTED_SECONDS, LONG_CONGESTED_SECONDS = 0.025, 0.25


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


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who joins: for relays `machine:process:start id`, for people `login@machine`."""

    mark: str
    who: str


class Attachment:
    """Joined to one relay from `join()` or `keep_joining()` until `aclose()`."""

    def __init__(self, place: Place, listener: Listener, *, owner: Owner, takes: bool = False, claim: str = "") -> None:
        """`takes` it from another owner at the first time; `claim` is what the kernel must have been left under."""
        self._place = place
        self._listener = listener
        self._owner = owner
        # What the next HELLO asks for besides; emptied by the first WELCOME.
        self._wish: dict[str, Any] = {"take": takes, "claim": claim}
        # The relay's start id; set by the first WELCOME. Another one would be another kernel's.
        self._epoch = ""
        # Names this end's numbering: another process would start a new one.
        self._stream_id = uuid.uuid4().hex
        self._peer = Peer()
        # The line in use; None while there is none. Set by _join, cleared by _keep.
        self._stream: Stream | None = None
        self._welcome: asyncio.Future[dict[str, Any]] | None = None
        # Runs while something is not acknowledged; see _acknowledge.
        self._timer: asyncio.TimerHandle | None = None
        # How long the clients are given before it is looked again whether they took something.
        self._patience = CONGESTED_SECONDS
        # Set to try again at once: somebody waits.
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Set by the relay's answer to our goodbye; and by its word that another has it now.
        self._parted = asyncio.Event()
        self._is_parting = False
        self._taken: KernelHeld | None = None

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

    def keep_joining(self) -> None:
        """Join as soon as that can be, and stay joined: for a relay that is there already, as far as we know."""
        self._task = asyncio.create_task(self._run(None))

    def take_no_more(self) -> None:
        """What comes from now on is left to whoever joins next."""
        self._is_parting = True

    async def goodbye(self, *, end: bool, claim: str = "", acknowledge: bool = True) -> bool:
        """Leave the relay in good order; whether it heard that. `end` as in shipping.goodbye.

        `acknowledge` unless something that came was not handed on.
        """
        stream = self._stream
        self.take_no_more()
        if stream is None:
            await self.aclose()
            return False
        if acknowledge and self._peer.acknowledge_at is not None:
            self._peer.acknowledge_at = 0.0
        stream.write(b"".join(self._peer.outgoing(asyncio.get_running_loop().time(), may_acknowledge=acknowledge)))
        stream.write(shipping.goodbye(end=end, claim=claim))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._parted.wait()
        await self.aclose()
        return self._parted.is_set()

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
        runtime = await self._place.runtime()
        failure: KernelBridgeError = ContainerFailed(
            host=self._place.host, image=self._place.image, reason="the relay does not answer"
        )
        for knock in range(_KNOCKS):
            await asyncio.sleep(_KNOCK_SECONDS if knock else 0)
            line = _Line(self._take)
            try:
                stream = await runtime.attach(line)
            except EngineFailed as exc:
                failure = exc
                await check_running(runtime, self._place)
                continue
            self._welcome = asyncio.get_running_loop().create_future()
            stream.write(
                shipping.hello(
                    kernel=self._place.kernel,
                    owner=self._owner.mark,
                    who=self._owner.who,
                    stream=self._stream_id,
                    received=self._peer.received,
                    **self._wish,
                )
            )
            waited: list[asyncio.Future[Any]] = [self._welcome, line.ended]
            await asyncio.wait(waited, timeout=HELLO_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._welcome.done():
                try:
                    self._welcomed(stream, self._welcome.result())
                except KernelBridgeError:
                    stream.close()
                    raise
                return line
            stream.close()
            # The bridge ended without a WELCOME: the container may have ended.
            await check_running(runtime, self._place)
        raise failure

    def _welcomed(self, stream: Stream, welcome: dict[str, Any]) -> None:
        if self._epoch and welcome["epoch"] != self._epoch:
            reason = "another relay runs in it now"
            raise ContainerFailed(host=self._place.host, image=self._place.image, reason=reason)
        self._epoch, self._wish = welcome["epoch"], {}
        self._stream = stream
        self._peer.resume(welcome["received"])
        self._listener.joined(welcome)
        self._flush()

    def _take(self, frames: list[wire.Frame]) -> None:
        now = asyncio.get_running_loop().time()
        arrived: list[wire.Buffer] = []
        for frame in frames:
            if frame.kind == wire.WELCOME:
                if self._welcome is not None and not self._welcome.done():
                    self._welcome.set_result(json.loads(bytes(frame.payload)))
            elif frame.kind == wire.DATA and self._is_parting:
                continue
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
            elif frame.kind == wire.BUSY:
                self._refused(json.loads(bytes(frame.payload)))
            elif frame.kind == wire.GOODBYE:
                self._parted.set()
        self._hand_over(arrived)
        if self._peer.has_work(now):
            self._flush()
        self._watch_acknowledgement()

    def _refused(self, said: dict[str, Any]) -> None:
        """The relay is another's: it was when we asked, or has become so since."""
        held_seconds = float(said.get("held_seconds", 0.0))
        since = datetime.now() - timedelta(seconds=held_seconds)
        held = KernelHeld(
            kernel=self._place.kernel[:12], host=self._place.host, who=said.get("who", ""), since=f"{since:%d %b %H:%M}"
        )
        error: KernelBridgeError = held
        if said.get("reason") == "taken":
            self._taken = held
        elif said.get("reason") != "held":
            reason = f"its relay refused: {said.get('reason')}"
            error = ContainerFailed(host=self._place.host, image=self._place.image, reason=reason)
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(error)

    def _watch_acknowledgement(self) -> None:
        """See to it that an acknowledgement that is owed goes out in time, or soon after the clients can take more."""
        due = self._peer.acknowledge_at
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        if self._listener.is_congested:
            due = max(due, loop.time() + self._patience)
            self._patience = min(2 * self._patience, LONG_CONGESTED_SECONDS)
        else:
            self._patience = CONGESTED_SECONDS
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

    async def _run(self, line: _Line | None) -> None:
        """Keep the line, and join again whenever it is lost; ends when the container has ended or is another's."""
        while True:
            if line is not None:
                await self._keep(line)
                self._drop_stream()
                if self._taken is not None:
                    self._listener.taken(self._taken)
                    return
                self._listener.lost(LinkLost(host=self._place.host))
            line = await self._join_again()
            if line is None:
                return

    async def _keep(self, line: _Line) -> None:
        """Ping until the line ends or is silent."""
        loop = asyncio.get_running_loop()
        while not line.ended.done():
            # All lines of the process at the same moments: they share the wake-ups, here and on the way.
            ping_seconds = PING_SECONDS - loop.time() % PING_SECONDS
            silent_seconds = line.heard + SILENCE_SECONDS - loop.time()
            await asyncio.wait([line.ended], timeout=min(ping_seconds, silent_seconds))
            if loop.time() - line.heard >= SILENCE_SECONDS:
                _LOG.info("kernel %s: no word from %s, joining again", self._place.kernel[:8], self._place.host)
                return
            if self._stream is not None:
                self._stream.write(wire.frame(wire.PING))

    async def _join_again(self) -> _Line | None:
        """Try until the stream is there again, or the container is known to have ended."""
        for delay in delays(is_waited_for=self._hurry.is_set):
            rest_seconds = delay
            try:
                state = await (await self._place.runtime()).state()
                if isinstance(state, Exited | Missing | Over):
                    self._listener.ended(state)
                    return None
                return await self._join()
            except KernelHeld as exc:
                self._listener.taken(exc)
                return None
            except KernelBridgeError as exc:
                _LOG.info("kernel %s: %s", self._place.kernel[:8], exc)
                self._listener.tried(exc)
                # After the host was reached, the next look at what runs there tells more: it may be going just now.
                is_reached = isinstance(exc, ContainerFailed | EngineFailed | JobEnded | RuntimeMissing)
                if not is_transient(exc) and not is_reached:
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
