"""One SSH connection to a host: run, connect to a socket, join a command's stdin and stdout. Dialling: see trust.py.

asyncssh's errors become ours here and in trust.py; above nobody sees them.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import asyncssh

from kernelbridge.config import Host
from kernelbridge.errors import (
    EngineDown,
    ForwardingForbidden,
    HostNameUnknown,
    HostRefused,
    HostUnreachable,
    LinkLost,
    SshFailed,
)
from kernelbridge.host.facts import FACTS_SCRIPT, SOCKET_SCRIPT, HostFacts, SocketFacts, parse_facts, parse_socket
from kernelbridge.host.stream import HIGH_WATER_BYTES, Collector, CommandError, Completed, Ending, Receiver, Stream
from kernelbridge.host.trust import PACKET_BYTES, WINDOW_BYTES, Dialled, dial, dial_beyond
from kernelbridge.kernel_errors import StartTimeout

log = logging.getLogger(__name__)

# How much of a command's stderr is kept, for the error message.
STDERR_BYTES = 64 << 10
SCRIPT_SECONDS = 10.0
LOGIN_SECONDS = 20.0
FREED_SECONDS = 0.05


def is_transient(exc: BaseException) -> bool:
    """Whether the same attempt may succeed a little later. For what was open before; a first start fails at once.

    A name that is unknown counts: a laptop that has just woken up has no name service yet.
    """
    return isinstance(exc, HostRefused | HostUnreachable | HostNameUnknown | LinkLost | EngineDown)


class SshStream(asyncssh.SSHClientSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """A channel as a Stream. asyncssh calls the methods of the first half, our users those of the second."""

    def __init__(self, link: Link, receiver: Receiver, *, command: str = "") -> None:
        self._link = link
        self._command = command
        self._ending = Ending(receiver)
        # Set by connection_made(), which asyncssh calls before anything else.
        self._channel: asyncssh.SSHClientChannel[bytes] | asyncssh.SSHUNIXChannel[bytes] | None = None
        # What a command wrote to stderr, at most STDERR_BYTES; filled by data_received().
        self.stderr = bytearray()
        # Of a command, from the moment the host says it; -1: ended by a signal.
        self.exit_code: int | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ending.has_ended else "open"
        return f"<SshStream {self._link.name} {self._command or 'socket'} {state}, {self.unsent_bytes()} B unsent>"

    def connection_made(self, chan: Any) -> None:
        """Called by asyncssh when the channel is open."""
        self._channel = chan
        chan.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        if self._ending.has_ended:  # close() came while the channel was being opened
            chan.abort()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Called by asyncssh; datatype is None for stdout."""
        if datatype is not None:
            self.stderr += data[: STDERR_BYTES - len(self.stderr)]
        elif not self._ending.hand_on(data):
            self.close()

    def eof_received(self) -> bool:
        """Called by asyncssh. A command's exit code comes after its EOF, so only a socket ends here."""
        if not self._command:
            self._ending.end(None)
        return False

    def exit_status_received(self, status: int) -> None:
        """Called by asyncssh."""
        self.exit_code = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """Called by asyncssh."""
        self.exit_code = -1

    def pause_writing(self) -> None:
        """Called by asyncssh when too much is queued."""
        self._ending.pause_writing()

    def resume_writing(self) -> None:
        """Called by asyncssh when the queue is short again."""
        self._ending.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncssh once: the channel is closed, or the whole connection is."""
        self._link.forget(self)
        if exc is not None or not self._link.is_open:
            self._ending.end(self._link.lost())
        elif self.exit_code:
            stderr = self.stderr.decode("utf-8", "replace")
            self._ending.end(CommandError(command=self._command, exit_code=self.exit_code, stderr=stderr))
        else:
            self._ending.end(None)

    def write(self, data: bytes | memoryview) -> None:
        """See Stream."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(data)  # asyncssh copies it at once, so a view will do

    def write_eof(self) -> None:
        """See Stream."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write_eof()

    def unsent_bytes(self) -> int:
        """See Stream. Without what waits in the connection itself, at most sshd's window of 2 MiB."""
        return self._channel.get_write_buffer_size() if self._channel is not None else 0

    def pause_reading(self) -> None:
        """See Stream."""
        if self._channel is not None:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        """See Stream."""
        if self._channel is not None:
            self._channel.resume_reading()

    async def drain(self) -> None:
        """See Stream."""
        await self._ending.wait_writable()

    def close(self) -> None:
        """See Stream."""
        self._ending.end(None)
        if self._channel is not None:
            self._channel.abort()


class Link:
    """One SSH connection of this process to a host, and a spare one when it is full. Made by open_link()."""

    def __init__(self, name: str, dialled: Dialled, *, dial_again: Callable[[], Awaitable[Dialled]]) -> None:
        self.name = name
        self._dial_again = dial_again
        # Whether a command has ever run here; set by look_again().
        self._has_run = False
        # For commands that find no room here; set by _overflow().
        self._spare: Link | None = None
        self._making_spare = asyncio.Lock()
        self._dialled = dialled
        self._connection = dialled.connection
        # What the host said of itself; set by open_link() before anyone else sees the link.
        self.facts: HostFacts
        # Open channels, for __repr__; each leaves by forget().
        self._streams: set[SshStream] = set()
        # Channels being opened; each leaves when it is open or refused, at the latest when the connection ends.
        self._opening: set[asyncio.Future[object]] = set()
        # Links that run through this one; added by jump(), closed by aclose().
        self._beyond: list[Link] = []
        # When the connection ended (wall clock); set by lost() or aclose().
        self._lost_at: float | None = None

    def __repr__(self) -> str:
        state = "open" if self.is_open else "lost"
        hop = self._dialled.hop
        return f"<Link {self.name} {state}, {hop.user}@{hop.shown}, {len(self._streams)} streams>"

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def is_open(self) -> bool:
        """False from the moment that the connection is known to be gone."""
        return self._lost_at is None and not self._connection.is_closed()

    def lost(self) -> LinkLost:
        """The error that says that this link is gone, and since when."""
        if self._lost_at is None:
            self._lost_at = time.time()
        return LinkLost(host=self.name, since=time.strftime("%H:%M:%S", time.localtime(self._lost_at)))

    def forget(self, stream: SshStream) -> None:
        """Called by a stream at its end."""
        self._streams.discard(stream)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        """See AnyLink.

        Raises: LinkLost, SshFailed, StartTimeout: it did not end in time.
        """
        collector = Collector()
        stream: SshStream | None = None
        try:
            async with asyncio.timeout(seconds):
                stream = await self._open_session(argv, collector)
                stream.write(stdin)
                stream.write_eof()
                await collector.wait_ended()
        except TimeoutError as exc:
            raise StartTimeout(host=self.name, what=f"`{argv[0]}`", seconds=seconds) from exc
        finally:
            if stream is not None:
                stream.close()
        if stream.exit_code is None:
            raise collector.failure or SshFailed(host=self.name, reason=f"`{argv[0]}` ended without an exit code")
        return Completed(exit_code=stream.exit_code, stdout=bytes(collector.received), stderr=bytes(stream.stderr))

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """See AnyLink.

        Raises: LinkLost, SshFailed.
        """
        return await self._open_session(argv, receiver)

    async def _open_session(self, argv: Sequence[str], receiver: Receiver) -> SshStream:
        try:
            try:
                return await self._session(argv, receiver)
            except asyncssh.ChannelOpenError:
                # sshd counts a session a moment longer than it lasts.
                await asyncio.sleep(FREED_SECONDS)
                return await self._session(argv, receiver)
        except (asyncssh.Error, OSError) as exc:
            if not self.is_open:
                raise self.lost() from exc
            if isinstance(exc, asyncssh.ChannelOpenError) and self._has_run:
                return await (await self._overflow())._open_session(argv, receiver)
            raise SshFailed(host=self.name, reason=f"no channel for `{argv[0]}`: {exc}") from exc

    async def _session(self, argv: Sequence[str], receiver: Receiver) -> SshStream:
        stream = SshStream(self, receiver, command=argv[0])
        opening = self._connection.create_session(
            lambda: stream,
            shlex.join(argv),  # the only place where words become a command line
            request_pty=False,
            encoding=None,
            window=WINDOW_BYTES,
            max_pktsize=PACKET_BYTES,
        )
        await self._open(stream, opening)
        return stream

    async def _overflow(self) -> Link:
        """A second connection: sshd's MaxSessions, 10 by default, leaves no room for commands on this one."""
        async with self._making_spare:
            if self._spare is None or not self._spare.is_open:
                await self._close_spare()
                self._spare = await _log_in(self.name, self._dialled.hop.shown, self._dial_again)
                if not self.is_open:  # It was closed meanwhile, and nobody closes this one.
                    await self._close_spare()
                    raise self.lost()
            return self._spare

    async def _close_spare(self) -> None:
        if self._spare is not None:
            await self._spare.aclose()

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        """See AnyLink."""
        stream = SshStream(self, receiver)
        try:
            opening = self._connection.create_unix_connection(
                lambda: stream, path, encoding=None, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
            )
            await self._open(stream, opening)
        except asyncssh.ChannelOpenError as exc:
            if not self.is_open:
                raise self.lost() from exc
            if exc.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise ForwardingForbidden(host=self.name) from exc
            raise self._why_not(await self.look_at_socket(path)) from exc
        except (asyncssh.Error, OSError) as exc:
            raise (SshFailed(host=self.name, reason=str(exc)) if self.is_open else self.lost()) from exc
        return stream

    async def _open(self, stream: SshStream, opening: Coroutine[Any, Any, object]) -> None:
        """Open a channel. Shielded: asyncssh forgets a channel whose opening is cancelled, sshd does not."""
        task = asyncio.ensure_future(opening)
        self._opening.add(task)
        task.add_done_callback(self._opened)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            stream.close()
            raise
        self._streams.add(stream)

    def _opened(self, task: asyncio.Future[object]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            # Asked for, so that asyncio does not complain where nobody waits any more.
            task.exception()

    def _why_not(self, found: SocketFacts) -> Exception:
        """Why sshd did not connect to a socket. It says the same (code 2) for all of these."""
        if not found.exists:
            return FileNotFoundError(found.path)
        if not found.is_writable:
            return PermissionError(found.path)
        if found.is_listening is False:
            return ConnectionRefusedError(found.path)
        # Somebody listens there and this login may write to it: what is left is AllowStreamLocalForwarding no.
        return ForwardingForbidden(host=self.name)

    async def look_at_socket(self, path: str) -> SocketFacts:
        """What a socket on the host is like for this login."""
        answer = await self.run(["sh", "-s", "--", path], stdin=SOCKET_SCRIPT, seconds=SCRIPT_SECONDS)
        return parse_socket(path, answer.stdout.decode("utf-8", "replace"))

    async def look_again(self) -> HostFacts:
        """See AnyLink.

        Raises: LinkLost, SshFailed: no POSIX shell there, StartTimeout.
        """
        # After a login more than curiosity: until a first session channel exists sshd leaves Nagle on, and every cell
        # costs 44 ms instead of 4.
        answer = await self.run(["sh", "-s"], stdin=FACTS_SCRIPT, seconds=SCRIPT_SECONDS)
        try:
            self.facts = parse_facts(answer.stdout.decode("utf-8", "replace"))
        except ValueError as exc:
            raise SshFailed(host=self.name, reason=str(exc)) from exc
        self._has_run = True
        return self.facts

    async def jump(self, name: str, *, seconds: float) -> Link:
        """See AnyLink.

        Raises: as open_link().
        """
        link = await _log_in(self.name, name, partial(dial_beyond, name, via=self._dialled), seconds=seconds)
        self._beyond = [*(other for other in self._beyond if other.is_open), link]
        return link

    async def wait_lost(self) -> None:
        """See AnyLink."""
        await self._connection.wait_closed()
        self.lost()
        await self._close_spare()

    async def aclose(self) -> None:
        """See AnyLink."""
        self.lost()
        for link in self._beyond:
            await link.aclose()
        await self._close_spare()
        await self._dialled.aclose()


async def open_link(host: Host, *, login_seconds: float = LOGIN_SECONDS) -> Link:
    """Log in and ask the host for its facts.

    Raises: every 2x error but ForwardingForbidden.
    """
    started_at = time.monotonic()
    link = await _log_in(host.name, host.ssh, partial(dial, host), seconds=login_seconds)
    log.info("[%s] logged in as %s in %.1f s", host.name, link.facts.user, time.monotonic() - started_at)
    return link


async def _log_in(
    name: str, address: str, dialling: Callable[[], Awaitable[Dialled]], *, seconds: float = LOGIN_SECONDS
) -> Link:
    try:
        async with asyncio.timeout(seconds):
            link = Link(name, await dialling(), dial_again=dialling)
            try:
                await link.look_again()
            except BaseException:
                await link.aclose()
                raise
    except TimeoutError as exc:
        raise HostUnreachable(host=name, address=address, reason=f"no login in {seconds:g} s") from exc
    return link
