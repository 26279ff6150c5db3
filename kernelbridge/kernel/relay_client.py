"""Join a relay over a link, stay joined over drops, and carry numbered messages both ways.

Everything here runs on the one event loop of the process (decisions.md, 1). It is one thing: to join, to carry and to
join again change the same numbers and the same stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kernelbridge import __version__
from kernelbridge.errors import (
    ContainerFailed,
    EngineFailed,
    GpuTaken,
    JobEnded,
    KernelBridgeError,
    KernelHeld,
    KernelOfOtherVersion,
    LinkLost,
    RuntimeMissing,
)
from kernelbridge.hosts.backend import Exited, Missing, Over, Running, Workload
from kernelbridge.hosts.docker import error_map
from kernelbridge.hosts.labels import short_id
from kernelbridge.hosts.relay_query import HELLO_SECONDS, RelayAddress, ask_status
from kernelbridge.hosts.transport.retry import delays, is_transient
from kernelbridge.hosts.transport.stream import Stream
from kernelbridge.kernel import failures
from kernelbridge.kernel.process_mark import Liveness, liveness, owner_process
from kernelbridge.protocol import exit_codes, frames
from kernelbridge.protocol.handshake import OTHER_RELAY, Busy, Goodbye, Hello, Owner, RelayEvent, Welcome, event_from
from kernelbridge.protocol.json_object import parse_object
from kernelbridge.protocol.session import SILENCE_SECONDS, Session

_LOG = logging.getLogger(__name__)

# How often and how fast the relay is asked for again before that is a failure: a container that ends just now is
# refused by the engine some time before it is shown as ended.
_KNOCKS = 6
_KNOCK_SECONDS = 0.3
PING_SECONDS = 5.0
UNHOPEFUL_SECONDS = 30.0
# So long a relay says nothing before it is taken for stopped: Slurm knows some seconds later that a job has ended.
SILENT_RELAY_SECONDS = 10.0
# So long after a ping without an answer it is looked whether the container is paused: then the line is as good as ever.
DOUBT_SECONDS = 2.0
GOODBYE_ACK_SECONDS = 1.0
# Within which a relay notices that the process that holds it has ended, whatever became of the line.
LET_GO_SECONDS = 2 * SILENCE_SECONDS
# How often a client that holds all back is looked at again, at first and later.
CONGESTED_SECONDS, LONG_CONGESTED_SECONDS = 0.025, 0.25
# A line that was in use for less is followed by a longer pause than the one before it.
LASTING_LINE_SECONDS = 10.0
_EVENT = bytes([frames.EVENT])
# In a second of one line; a relay acknowledges some 200 times at most.
MOST_EMPTY_FRAMES = 2000


@dataclass(frozen=True, kw_only=True)
class RelayListener:
    """What is called with all that comes from the relay; on the loop, and must not block."""

    # Messages of the kernel, each once and in order, still packed.
    delivered: Callable[[list[frames.Buffer]], None]
    # An event of the relay. All that was sent before it was delivered before it.
    event_received: Callable[[RelayEvent], None]
    # The stream is there, or there again.
    joined: Callable[[Welcome], None]
    # The stream is not there at the moment; it is being joined again.
    lost: Callable[[LinkLost], None]
    # The container has ended or is gone: the stream will not come back.
    ended: Callable[[Exited | Missing | Over], None]
    # The stream could not be joined at this time; and whether that may pass by itself.
    join_failed: Callable[[KernelBridgeError, bool], None]
    # The container is paused, so that nothing comes and nothing is done (told again while it is), or goes on.
    paused: Callable[[bool], None]
    # Somebody else is joined to the relay now, or has to be; nothing is tried any more.
    taken: Callable[[KernelHeld | KernelOfOtherVersion], None]
    # The lanes of which what was delivered is, or soon will be, out of this process: others are not acknowledged.
    acknowledges: Callable[[], Sequence[int]]


class RelayConnection:
    """One exec stream: bytes in -> frames; knows when it ended."""

    def __init__(self, take: Callable[[list[frames.Frame]], None]) -> None:
        self._take = take
        self._decoder = frames.Decoder()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.heard = self._loop.time()
        # Done as soon as anything comes; None while nobody waits for it.
        self._sign: asyncio.Future[None] | None = None
        # How many frames came since then that carry no message of the kernel.
        self._empty_frames, self._counted_at = 0, self.heard

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        self.heard = self._loop.time()
        if self._sign is not None and not self._sign.done():
            self._sign.set_result(None)
        if self.ended.done():
            return
        try:
            batch = self._decoder.feed(data)
            if batch:
                self._count(batch)
                self._take(batch)
        except frames.WireError as exc:
            # Mostly the engine's own words, in the place of output: it could not run the bridge, the container is
            # ending. Nothing that comes behind it can be understood.
            _LOG.info("a line to a relay is given up: %s", exc)
            self.closed(None)

    async def hears_within(self, seconds: float) -> bool:
        """Whether anything comes in that time, or the line ends."""
        self._sign = self._loop.create_future()
        done, _ = await asyncio.wait([self._sign, self.ended], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._sign = None
        return bool(done)

    def _count(self, batch: list[frames.Frame]) -> None:
        """Give a line up that brings nothing but signs of life. Raises WireError."""
        if self.heard - self._counted_at > 1.0:
            self._empty_frames, self._counted_at = 0, self.heard
        self._empty_frames += sum(frame.kind != frames.DATA or frame.payload[:1] == _EVENT for frame in batch)
        if self._empty_frames > MOST_EMPTY_FRAMES:
            raise frames.WireError(f"more than {MOST_EMPTY_FRAMES} frames a second without a message")

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        if not self.ended.done():
            self.ended.set_result(None)


class RelayClient:
    """Joined to one relay from `join()` or `keep_joining()` until `aclose()`."""

    def __init__(
        self,
        address: RelayAddress,
        listener: RelayListener,
        *,
        owner: Owner,
        takes: bool = False,
        claim: str = "",
        only_own: bool = False,
    ) -> None:
        """`takes` it from another owner at the first time; `claim` is what the kernel must have been left under.

        `only_own` if output of other clients' requests cannot be shown: it waits over there.
        """
        self._address = address
        self._listener = listener
        self._owner, self._only_own = owner, only_own or None
        # What the next HELLO asks for besides; emptied by the first WELCOME.
        self._hello_extras: dict[str, Any] = {"take": takes, "claim": claim}
        # The relay's start id; set by the first WELCOME. Another one would be another kernel's.
        self._epoch = ""
        # Names this end's numbering: another process would start a new one.
        self._stream_id = uuid.uuid4().hex
        self._peer = Session()
        # The line in use; None while there is none. Set by _join, cleared by _keep.
        self._stream: Stream | None = None
        # Of the line that is being joined: the line, and whether it was let in.
        self._greeted: Stream | None = None
        self._welcome: asyncio.Future[None] | None = None
        # Runs while something is not acknowledged; see _acknowledge.
        self._timer: asyncio.TimerHandle | None = None
        # How long the clients are given before it is looked again whether they took something.
        self._patience = CONGESTED_SECONDS
        # Set to try again at once, since somebody waits; and whether a try under way came too soon, see hurry().
        self._hurry, self._is_called = asyncio.Event(), False
        self._task: asyncio.Task[None] | None = None
        # Set by the relay's answer to our goodbye; and by its word that another has it now.
        self._parted = asyncio.Event()
        # Whether nothing more is received; whether our goodbye is under way, which joining once more would take back.
        self._is_parting = self._has_left = False
        self._taken: KernelHeld | None = None
        # Whether it was said that the relay tells what cannot be understood.
        self._has_bad_events = False
        # What the last try failed with, where the relay said nothing to all of it; set by _join.
        self._silence: KernelBridgeError | None = None
        # Why nothing more of this relay is taken.
        self._given_up: KernelBridgeError | None = None
        # Why the relay refused us last; and until when the one who holds it may let it go.
        self._refusal: Busy | None = None
        self._let_go_at: float | None = None

    def __repr__(self) -> str:
        return f"<RelayClient {self._address.kernel[:8]} {'joined' if self._stream else 'apart'} {self._peer!r}>"

    @property
    def is_joined(self) -> bool:
        """Whether the relay hears us at this moment, as far as we know."""
        return self._stream is not None

    @property
    def is_silent(self) -> bool:
        """Whether the relay had let us in, and said nothing to the last try, while its container runs."""
        return bool(self._epoch) and self._silence is not None and not self.is_joined

    async def join(self) -> None:
        """Join for the first time, and stay joined from then on. Raises KernelBridgeError if the first time fails."""
        line = await self._join()
        self._task = asyncio.create_task(self._run(line))

    def keep_joining(self) -> None:
        """Join as soon as that can be, and stay joined: for a relay that is there already, as far as we know."""
        self._task = asyncio.create_task(self._run(None))

    def stop_receiving(self) -> None:
        """Receive nothing more: what comes from now on is for whoever joins next."""
        self._is_parting = True

    async def goodbye(self, *, end: bool, claim: str = "", acknowledge: bool = True) -> bool:
        """Leave the relay in good order; whether it heard that.

        With `end` the kernel need not run on without its owner. `acknowledge` unless something that came was not
        handed on.
        """
        stream = self._stream
        self.stop_receiving()
        if stream is None:
            await self.aclose()
            return False
        if acknowledge and self._peer.acknowledge_at is not None:
            self._peer.acknowledge_at = 0.0
        lanes = frames.LANES if acknowledge else (frames.QUICK,)
        stream.write(b"".join(self._peer.outgoing(asyncio.get_running_loop().time(), acknowledges=lanes)))
        stream.write(Goodbye(end, claim, lacks=not acknowledge).frame())
        self._has_left = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_ACK_SECONDS):
                await self._parted.wait()
        await self.aclose()
        return self._parted.is_set()

    async def aclose(self) -> None:
        """Disconnect. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])  # Whatever it ended with was told.
        self._drop_stream()

    def send(self, packed: list[tuple[int, bytes]]) -> None:
        """Send messages to the kernel: (lane, packed). Kept and sent later while the stream is not there."""
        for lane, one in packed:
            self._peer.add(lane, one)
        if self._stream is None:
            self._hurry.set()
        self._flush()

    def hurry(self) -> None:
        """Try again at once to join, where that is not so: something has changed, also for a try under way."""
        self._is_called = True
        self._hurry.set()

    def command(self, order: dict[str, Any]) -> None:
        """Send an order to the relay itself."""
        launch = int(order.get("launch", 0))
        packed = frames.pack(frames.Message(frames.COMMAND, launch, [json.dumps(order).encode()]))
        self.send([(frames.LANE_OF[frames.COMMAND], packed)])

    def drop_waiting(self) -> None:
        """Drop requests that have not gone out: they were for a kernel process that is no more."""
        self._peer.drop_waiting()

    # -- the line

    async def _join(self) -> RelayConnection:
        """Open one line and say HELLO. Raises KernelBridgeError."""
        workload = await self._address.workload()
        silence = self._failed("the relay does not answer")
        failure: KernelBridgeError = silence
        for knock in range(_KNOCKS):
            await asyncio.sleep(_KNOCK_SECONDS if knock else 0)
            line = RelayConnection(self._take)
            try:
                stream = await workload.attach(line)
            except EngineFailed as exc:
                failure = exc
                await check_running(workload, self._address)
                continue
            try:
                if await self._greet(stream, line):
                    return line
            except BaseException:
                self._drop_stream()
                raise
            finally:
                if self._stream is not stream:
                    stream.close()
            # The bridge ended without a WELCOME: the container may have ended.
            await check_running(workload, self._address)
        self._silence = silence if failure is silence else None
        raise failure

    async def _greet(self, stream: Stream, line: RelayConnection) -> bool:
        """Say HELLO on a new line; whether it was let in. Raises KernelBridgeError if it was refused."""
        self._greeted, self._welcome = stream, asyncio.get_running_loop().create_future()
        hello = Hello(
            kernel=self._address.kernel,
            owner=self._owner.mark,
            who=self._owner.who,
            stream=self._stream_id,
            received=self._peer.received,
            only_own=self._only_own,
            **self._hello_extras,
        )
        stream.write(hello.frame())
        waited: list[asyncio.Future[None]] = [self._welcome, line.ended]
        try:
            await asyncio.wait(waited, timeout=HELLO_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._greeted = None
        if not self._welcome.done():
            return False
        if self._welcome.exception() is not None:
            await self._check_version()
        self._welcome.result()
        return True

    async def _check_version(self) -> None:
        """Raise KernelOfOtherVersion if the relay refused us because it speaks another version."""
        if self._refusal is None or self._refusal.reason != OTHER_RELAY:
            return
        version, release = self._refusal.version, self._refusal.release
        if version is None:
            # The first release's says so only if asked.
            with contextlib.suppress(KernelBridgeError):
                version = (await ask_status(self._address)).version
        if version not in (None, frames.VERSION):
            raise KernelOfOtherVersion(
                kernel=short_id(self._address.kernel),
                host=self._address.host,
                release=release or frames.FIRST_RELEASES.get(version, ""),
                is_newer=version > frames.VERSION,
                own_release=__version__,
            )

    def _welcomed(self, payload: frames.Buffer) -> None:
        """Take a WELCOME: from here on, in the same piece too, the stream is in use."""
        stream, self._greeted = self._greeted, None
        if stream is None or self._welcome is None:
            return
        try:
            welcome = Welcome.from_dict(parse_object(payload))
        except frames.WireError as exc:
            self._welcome.set_exception(self._failed(f"what its relay says cannot be understood: {exc}"))
            return
        if self._epoch and welcome.epoch != self._epoch:
            self._welcome.set_exception(self._failed("another relay runs in it now"))
            return
        if self._peer.is_forgotten(welcome.received):
            # Another process had it in between, and a relay of release 0.1.0 lets in who comes back.
            self._refused(Busy("taken"))
            return
        self._epoch, self._hello_extras, self._silence, self._let_go_at = welcome.epoch, {}, None, None
        self._stream = stream
        self._peer.resume(welcome.received)
        self._welcome.set_result(None)
        self._listener.joined(welcome)
        self._flush()

    def _failed(self, reason: str) -> ContainerFailed:
        return ContainerFailed(host=self._address.host, image=self._address.image, reason=reason)

    def _take(self, batch: list[frames.Frame]) -> None:
        """Take what a line brings. Raises WireError where it is not our protocol."""
        now = asyncio.get_running_loop().time()
        arrived: list[frames.Buffer] = []
        try:
            for frame in batch:
                if frame.kind == frames.WELCOME:
                    self._welcomed(frame.payload)
                elif frame.kind == frames.BUSY:
                    self._refused(Busy.from_dict(parse_object(frame.payload)))
                elif frame.kind == frames.GOODBYE:
                    self._parted.set()
                elif frame.kind == frames.ACK or (frame.kind == frames.DATA and not self._is_parting):
                    # Of a line that was not let in, nothing counts.
                    packed = self._peer.accept(frame, now) if self._stream is not None else None
                    if packed is not None and packed[:1] == _EVENT:
                        self._hand_over(arrived)
                        arrived = []
                        self._hand_over_event(packed)
                    elif packed is not None:
                        arrived.append(packed)
        except frames.MessageTooLong as exc:
            # Its beginning would come again with each line, for ever.
            self._given_up = self._failed(f"what its relay sends has no end: {exc}")
            raise
        finally:
            self._hand_over(arrived)
        if self._stream is None:
            return
        if self._peer.has_work(now):
            self._flush()
        self._watch_acknowledgement()

    def _hand_over_event(self, packed: frames.Buffer) -> None:
        """Tell an event; one that cannot be understood costs itself alone."""
        try:
            parts = frames.unpack(packed).parts
            event = event_from(parse_object(parts[0] if parts else b""))
        except frames.WireError as exc:
            level = logging.DEBUG if self._has_bad_events else logging.WARNING
            self._has_bad_events = True
            _LOG.log(level, "[%s k=%s] an event is dropped: %s", self._address.host, self._address.kernel[:4], exc)
            return
        if event is not None:
            self._listener.event_received(event)

    def _refused(self, busy: Busy) -> None:
        """Take in that the relay is another's: it was when we asked, or has become so since."""
        since = datetime.now() - timedelta(seconds=float(busy.held_seconds or 0.0))
        held = KernelHeld(
            kernel=short_id(self._address.kernel),
            host=self._address.host,
            who=busy.who or "",
            since=f"{since:%d %b %H:%M}",
        )
        self._refusal = busy
        error: KernelBridgeError = held
        if busy.reason == "taken":
            self._taken = held
        elif busy.reason != "held":
            error = self._failed(f"its relay refused: {busy.reason}")
        if self._welcome is not None and not self._welcome.done():
            self._welcome.set_exception(error)

    def _watch_acknowledgement(self) -> None:
        """See to it that an acknowledgement that is owed goes out in time, or soon after the clients can take more."""
        owed, repeated = self._peer.acknowledge_at, self._peer.repeat_at
        due = repeated if owed is None else owed
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        if len(self._listener.acknowledges()) < len(frames.LANES):
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

    def _hand_over(self, arrived: list[frames.Buffer]) -> None:
        if arrived:
            self._listener.delivered(arrived)

    def _flush(self) -> None:
        if self._stream is None:
            return
        now = asyncio.get_running_loop().time()
        buffers = self._peer.outgoing(now, acknowledges=self._listener.acknowledges())
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

    async def _run(self, line: RelayConnection | None) -> None:
        """Keep the line, and join again whenever it is lost; ends when the container has ended or is another's."""
        try:
            await self._stay_joined(line)
        except Exception as exc:
            # An edge: left alone, the cell would wait for ever.
            _LOG.exception("[%s k=%s] the stream is given up", self._address.host, self._address.kernel[:4])
            self._drop_stream()
            error = self._failed(f"kernelbridge has a bug here: {type(exc).__name__}: {exc}")
            self._listener.ended(Over(explain=lambda image: error))

    async def _stay_joined(self, line: RelayConnection | None) -> None:
        clock = asyncio.get_running_loop().time
        # Runs while one line after the other lasts for a moment only.
        pauses: Iterator[float] | None = None
        while True:
            if line is not None:
                began_at = clock()
                await self._keep(line)
                self._drop_stream()
                if self._has_left:
                    return
                if (error := self._given_up) is not None:
                    self._listener.ended(Over(explain=lambda image: error))
                    return
                if self._taken is not None:
                    self._listener.taken(self._taken)
                    return
                self._listener.lost(LinkLost(host=self._address.host))
                if clock() - began_at >= LASTING_LINE_SECONDS:
                    pauses = None
                elif pauses is None:
                    pauses = self._pauses()
                else:
                    await self._rest(next(pauses))
            line = await self._join_again()
            if line is None:
                return

    def _pauses(self) -> Iterator[float]:
        return delays(is_waited_for=self._hurry.is_set)

    async def _keep(self, line: RelayConnection) -> None:
        """Ping until the line ends or is silent."""
        loop = asyncio.get_running_loop()
        is_paused = False
        while not line.ended.done():
            # All lines of the process at the same moments: they share the wake-ups, here and on the way.
            ping_seconds = PING_SECONDS - loop.time() % PING_SECONDS
            silent_seconds = line.heard + SILENCE_SECONDS - loop.time()
            await asyncio.wait([line.ended], timeout=min(ping_seconds, silent_seconds))
            if loop.time() - line.heard >= SILENCE_SECONDS:
                _LOG.info("[%s k=%s] no sign of life, joining again", self._address.host, self._address.kernel[:4])
                return
            if self._stream is None:
                continue
            self._stream.write(frames.frame(frames.PING))
            was_paused = is_paused
            seconds = min(DOUBT_SECONDS, line.heard + SILENCE_SECONDS - loop.time())
            is_paused = not await line.hears_within(seconds) and await self._is_paused(line)
            if is_paused:
                line.heard = loop.time()
            if is_paused or was_paused:
                self._listener.paused(is_paused)

    async def _is_paused(self, line: RelayConnection) -> bool:
        """Whether the container is known to be paused; asks for as long as the line may be silent."""
        with contextlib.suppress(KernelBridgeError, TimeoutError):
            async with asyncio.timeout_at(line.heard + SILENCE_SECONDS):
                state = await (await self._address.workload()).state()
                return isinstance(state, Running) and state.is_paused
        return False

    async def _join_again(self) -> RelayConnection | None:
        """Try until the stream is there again, or the container is known to have ended."""
        clock = asyncio.get_running_loop().time
        # When the tries began to which the relay said nothing.
        silent_since: float | None = None
        for delay in self._pauses():
            rest_seconds, began_at = delay, clock()
            self._is_called = False
            try:
                state = await (await self._address.workload()).state()
                if isinstance(state, Exited | Missing | Over):
                    self._listener.ended(state)
                    return None
                if not (isinstance(state, Running) and state.is_paused):
                    return await self._join()
                self._silence = silent_since = None
                self._listener.paused(True)
            except KernelHeld as exc:
                self._silence = silent_since = None
                if self._taken is not None or not self._will_be_let_go():
                    self._listener.taken(exc)
                    return None
            except KernelOfOtherVersion as exc:
                self._listener.taken(exc)
                return None
            except (LockMissing, PackagesMissing):
                pass  # It is just ending: the next look tells so.
            except KernelBridgeError as exc:
                _LOG.info("[%s k=%s] %s", self._address.host, self._address.kernel[:4], exc)
                # After the host was reached, the next look at what runs there tells more: it may be going just now.
                is_reached = isinstance(exc, ContainerFailed | EngineFailed | JobEnded | RuntimeMissing)
                if exc is not self._silence:
                    self._silence = None
                silent_since = (silent_since or began_at) if self._silence else None
                is_stopped = silent_since is not None and clock() - silent_since >= SILENT_RELAY_SECONDS
                may_pass = is_transient(exc) or (is_reached and not is_stopped)
                self._listener.join_failed(self._silent_relay() if is_stopped else exc, may_pass)
                if not may_pass:
                    # A refused login, a changed key: somebody must mend that first, and hosts count such attempts.
                    rest_seconds = UNHOPEFUL_SECONDS
            await self._rest(rest_seconds)
        return None

    def _silent_relay(self) -> KernelBridgeError:
        """Return what is to be done where the container runs and its relay says nothing, however often it is asked."""
        kernel, host = short_id(self._address.kernel), self._address.host
        return KernelBridgeError(
            f"{host}: the container runs, but its relay does not answer: it was stopped, or its files are gone.",
            f"Its data is lost: restart it for a new container, or remove it with `kernelbridge stop {kernel}`.",
        )

    def _will_be_let_go(self) -> bool:
        """Whether the process that holds the kernel has ended, and its relay is about to notice: only that counts."""
        holder = (self._refusal and self._refusal.owner) or ""
        if liveness(owner_process(holder)) is not Liveness.ENDED:
            return False
        now = asyncio.get_running_loop().time()
        self._let_go_at = self._let_go_at or now + LET_GO_SECONDS
        return now < self._let_go_at

    async def _rest(self, seconds: float) -> None:
        """Wait; not beyond a new request, nor beyond a sleep of this machine."""
        if self._is_called:
            return
        self._hurry.clear()
        waits = [asyncio.ensure_future(self._address.rest(seconds)), asyncio.ensure_future(self._hurry.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class PackagesMissing(Exception):
    """The relay's Python lacks packages that can be added: `names`. The start is tried again; users never see it."""

    def __init__(self, names: str) -> None:
        super().__init__(names)
        self.names = names


class LockMissing(Exception):
    """The relay found no folder to lock for a GPU: it is made, and the start tried again. Users never see it."""


async def check_running(workload: Workload, address: RelayAddress) -> None:
    """Raise why the relay has ended, if it has: ImageUnusable, GpuTaken, LockMissing, PackagesMissing and others."""
    state = await workload.state()
    if isinstance(state, Over):
        raise state.explain(address.image)
    if isinstance(state, Exited) and state.code == exit_codes.EXIT_TAKEN:
        raise GpuTaken(host=address.host)
    if isinstance(state, Exited) and state.code == exit_codes.EXIT_NO_LOCK:
        raise LockMissing
    if isinstance(state, Exited):
        log = ""
        # There is none of a container that is being removed.
        with contextlib.suppress(EngineFailed):
            log = (await workload.logs(20)).strip()
        if state.code == exit_codes.EXIT_LACKS:
            raise PackagesMissing(log.rpartition(exit_codes.LACKS_SAYS)[2].partition("\n")[0])
        architectures = await workload.architectures(address.image) if error_map.is_foreign(log) else ("", "")
        raise failures.relay_end(
            host=address.host,
            image=address.image,
            python=address.python,
            how=state,
            log=log,
            architectures=architectures,
        )
    if isinstance(state, Missing):
        raise ContainerFailed(host=address.host, image=address.image, reason=str(state))
