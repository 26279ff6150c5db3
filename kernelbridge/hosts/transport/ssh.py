"""Run commands and connect to sockets of a host over one SSH connection.

asyncssh's errors become ours here and where the login is made; above nobody sees them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import asyncssh

from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    ForwardingForbidden,
    HostUnreachable,
    KernelBridgeError,
    LinkLost,
    SshFailed,
    StartTimeout,
)
from kernelbridge.hosts.transport import shell
from kernelbridge.hosts.transport.dial import PACKET_BYTES, WINDOW_BYTES, Login, dial, dial_beyond
from kernelbridge.hosts.transport.facts import (
    FACTS_SCRIPT,
    SCRIPT_SECONDS,
    SOCKET_SCRIPT,
    HostFacts,
    SocketFacts,
    parse_facts,
    parse_socket,
)
from kernelbridge.hosts.transport.login.questions import current_asking
from kernelbridge.hosts.transport.login.stage import ASKS_FACTS, report
from kernelbridge.hosts.transport.openssh.head_start import HeadStart
from kernelbridge.hosts.transport.sftp import Sftp
from kernelbridge.hosts.transport.shell import FramedStream
from kernelbridge.hosts.transport.single_flight import ShieldedTasks
from kernelbridge.hosts.transport.stream import (
    HIGH_WATER_BYTES,
    AnyLink,
    Collector,
    CommandError,
    Completed,
    Ending,
    LoginEntry,
    OutputTooLong,
    Receiver,
    Stream,
)

_LOG = logging.getLogger(__name__)

# How long start-up files may take before a command runs.
SHELL_SECONDS = 60.0
# So much later than the login's usual it is looked whether it is the command's open stdin that they wait for.
STDIN_SECONDS = 4.0
# How long an SFTP server may take to begin, beside the login's start-up files.
SFTP_SECONDS = 20.0
FREED_SECONDS = 0.05


class SshStream(asyncssh.SSHClientSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """A channel as a Stream. asyncssh calls the methods of the first half, our users those of the second."""

    def __init__(
        self, link: Link, receiver: Receiver, *, command: str = "", stderr: Callable[[bytes], None] | None = None
    ) -> None:
        self._link = link
        self._command = command
        # Takes what a command writes to stderr.
        self._stderr = stderr
        self._ending = Ending(receiver)
        # Set by connection_made(), which asyncssh calls before anything else.
        self._channel: asyncssh.SSHClientChannel[bytes] | asyncssh.SSHUNIXChannel[bytes] | None = None
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
            if self._stderr is not None:
                self._stderr(data)
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
            self._ending.end(CommandError(command=self._command, exit_code=self.exit_code, stderr=""))
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

    def __init__(self, name: str, login: Login, *, host: Host, log_in_again: Callable[[], Awaitable[Login]]) -> None:
        self.name = name
        # As the config has it; of a machine behind it, this is the one that leads there.
        self._host = host
        # Which of shell.SHELL_COMMANDS this host runs; set by look_again().
        self._shell = shell.SHELL_COMMANDS[0]
        self.shell_seconds = 0.0
        # Set by look_again().
        self.entry = LoginEntry()
        # What start-up files printed before the last command of run().
        self._noise = ""
        # What a login shell sets that other shells here do not; None: it was not asked. Set by ask_login_shell().
        self._login_variables: dict[str, str] | None = None
        # Logs in once more; what that needs of a person is asked where it was for this link.
        self._log_in_again = log_in_again
        self._questions = current_asking().of_host
        # Whether a command has ever run here; set by look_again().
        self._has_run = False
        # For commands that find no room here; set by _overflow().
        self._spare: Link | None = None
        self._making_spare = asyncio.Lock()
        self._login = login
        self._connection = login.connection
        # What the host said of itself; set by open_link() before anyone else sees the link.
        self.facts: HostFacts
        # Open channels, for __repr__; each leaves by forget().
        self._streams: set[SshStream] = set()
        # Channels being opened; each ends when it is open or refused, at the latest when the connection ends.
        self._opening: ShieldedTasks[object] = ShieldedTasks()
        # Links that run through this one; added by jump(), closed by aclose().
        self._beyond: list[Link] = []
        # When the connection ended (wall clock); set by lost() or aclose().
        self._lost_at: float | None = None

    def __repr__(self) -> str:
        state = "open" if self.is_open else "lost"
        hop = self._login.hop
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
        """Make the error that says that this link is gone, and since when."""
        if self._lost_at is None:
            self._lost_at = time.time()
        return LinkLost(host=self.name, since=time.strftime("%H:%M:%S", time.localtime(self._lost_at)))

    def forget(self, stream: SshStream) -> None:
        """Called by a stream at its end."""
        self._streams.discard(stream)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        """See AnyLink.

        Raises: LinkLost, SshFailed, HostUnreachable: start-up files take too long, StartTimeout: it does not end.
        """
        collector = Collector()
        is_inline = len(stdin) <= shell.INLINE_STDIN_BYTES
        stream = await self._open_framed(argv, collector, stdin=stdin if is_inline else None)
        if not is_inline:
            stream.write(stdin)
            stream.write_eof()
        try:
            async with asyncio.timeout(seconds):
                await collector.wait_ended()
        except TimeoutError as exc:
            remedy = "Run it there in a terminal to see what it waits for."
            raise StartTimeout(host=self.name, what=f"`{stream.command}`", seconds=seconds, remedy=remedy) from exc
        finally:
            stream.close()
        self._noise = stream.noise
        if isinstance(collector.failure, OutputTooLong):
            raise SshFailed(host=self.name, reason=f"`{stream.command}` printed {collector.failure}")
        if stream.exit_code is None:
            if isinstance(collector.failure, KernelBridgeError):
                raise collector.failure
            reason = f"`{stream.command}` ended without an exit code"
            raise SshFailed(host=self.name, reason=reason) from collector.failure
        return Completed(exit_code=stream.exit_code, stdout=bytes(collector.received), stderr=bytes(stream.stderr))

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """See AnyLink.

        Raises: LinkLost, SshFailed, HostUnreachable: start-up files take too long.
        """
        return await self._open_framed(argv, receiver, stdin=None)

    async def _open_framed(
        self, argv: Sequence[str], receiver: Receiver, *, stdin: bytes | None, was_cut: bool = False
    ) -> FramedStream:
        """Have the login shell run a command, and return when it runs; without `stdin` it has the stream's."""
        mark, settings = shell.new_mark(), shell.settings(self._host.path, self._login_variables or {})
        text = shell.script(argv, mark=mark, stdin=stdin, settings=settings)
        name = shell.name_of(argv)
        framed = FramedStream(receiver, command=name, mark=mark, refusal=self._refused, is_live=stdin is None)
        try:
            await self._begin(framed, text, ends_stdin=stdin is not None)
        except SshFailed:
            # A host under load may close a channel without a word. One that does so again refuses.
            if was_cut or not framed.is_cut:
                raise
            _LOG.info("[%s] the channel for `%s` was closed before it ran; another is opened", self.name, name)
            return await self._open_framed(argv, receiver, stdin=stdin, was_cut=True)
        return framed

    async def _begin(self, framed: FramedStream, text: str, *, ends_stdin: bool) -> None:
        """Give the login shell a script, and return when its command runs. Raises why it does not."""
        seconds = self._host.login_seconds or SHELL_SECONDS
        raw: SshStream | None = None
        try:
            async with asyncio.timeout(seconds):
                raw = await self._open_session(self._shell or shell.one_line(text), framed)
                if self._shell:
                    raw.write(shell.for_stdin(text))
                if ends_stdin:
                    raw.write_eof()
                elif self._has_run:
                    await self._wait_reading(framed)
                await framed.wait_begun()
        except TimeoutError as exc:
            reason = f"its login shell was not ready in {seconds:g} s"
            remedy = f"Make its start-up files faster, or raise `login_seconds` of [hosts.{self._host.name}]."
            address = self._login.hop.shown
            raise HostUnreachable(host=self.name, address=address, reason=reason, remedy=remedy) from exc
        finally:
            if raw is not None and not framed.has_begun:
                framed.close()

    async def _wait_reading(self, framed: FramedStream) -> None:
        """Return when a command runs whose stdin stays open, or may still come to.

        Raises SshFailed, where one whose stdin has ended runs meanwhile: a shell reads all of it before it runs any.
        """
        for is_asked in (False, True):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.shell_seconds + STDIN_SECONDS):
                    return await framed.wait_begun()
            if not is_asked:
                await self.run(["true"], seconds=SCRIPT_SECONDS)
        raise SshFailed.reads_all(host=self.name)

    def _refused(self, words: str) -> SshFailed:
        return SshFailed.no_command(host=self.name, user=self._login.hop.user, words=words)

    async def _open_session(self, line: str, framed: FramedStream) -> SshStream:
        try:
            try:
                return await self._session(line, framed)
            except asyncssh.ChannelOpenError:
                # sshd counts a session a moment longer than it lasts.
                await asyncio.sleep(FREED_SECONDS)
                return await self._session(line, framed)
        except (asyncssh.Error, OSError) as exc:
            if not self.is_open:
                raise self.lost() from exc
            if isinstance(exc, asyncssh.ChannelOpenError) and self._has_run:
                return await (await self._overflow())._open_session(line, framed)
            reason, remedy = f"no channel for `{framed.command}`: {exc}", "The log of its sshd says why."
            raise SshFailed(host=self.name, reason=reason, remedy=remedy) from exc

    async def _session(self, line: str, framed: FramedStream) -> SshStream:
        stream = SshStream(self, framed, command=framed.command, stderr=framed.stderr_received)
        framed.attach(stream)
        opening = self._connection.create_session(
            lambda: stream,
            line,
            request_pty=False,
            encoding=None,
            window=WINDOW_BYTES,
            max_pktsize=PACKET_BYTES,
        )
        await self._open(stream, opening)
        return stream

    async def _overflow(self) -> Link:
        """Open a second connection: sshd's MaxSessions, 10 by default, leaves no room for commands on this one."""
        async with self._making_spare:
            if self._spare is None or not self._spare.is_open:
                await self._close_spare()
                with self._questions.for_login():
                    self._spare = await _log_in(self.name, self._log_in_again, host=self._host)
                if not self.is_open:  # It was closed meanwhile, and nobody closes this one.
                    await self._close_spare()
                    raise self.lost()
            return self._spare

    async def _close_spare(self) -> None:
        if self._spare is not None:
            await self._spare.aclose()

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        """See AnyLink."""
        try:
            return await self._open_socket(path, receiver)
        except ForwardingForbidden:
            # An engine that comes just now was not there when sshd tried, and is when we look.
            return await self._open_socket(path, receiver)

    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        """See AnyLink."""
        try:
            return await self._connect(path, receiver)
        except (asyncssh.Error, OSError) as exc:
            if not self.is_open:
                raise self.lost() from exc
            return None

    async def _connect(self, path: str, receiver: Receiver) -> Stream:
        stream = SshStream(self, receiver)
        opening = self._connection.create_unix_connection(
            lambda: stream, path, encoding=None, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
        )
        await self._open(stream, opening)
        return stream

    async def _open_socket(self, path: str, receiver: Receiver) -> Stream:
        try:
            return await self._connect(path, receiver)
        except asyncssh.ChannelOpenError as exc:
            if not self.is_open:
                raise self.lost() from exc
            if exc.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise ForwardingForbidden(host=self.name) from exc
            if not self._has_run:  # What a host says of itself is not known yet.
                raise ConnectionRefusedError(path) from exc
            raise self._why_not(await self.look_at_socket(path)) from exc
        except (asyncssh.Error, OSError) as exc:
            raise (SshFailed(host=self.name, reason=str(exc)) if self.is_open else self.lost()) from exc

    async def _open(self, stream: SshStream, opening: Coroutine[Any, Any, object]) -> None:
        """Open a channel. Shielded: asyncssh forgets a channel whose opening is cancelled, sshd does not."""
        try:
            await asyncio.shield(self._opening.start(opening))
        except asyncio.CancelledError:
            stream.close()
            raise
        self._streams.add(stream)

    async def open_sftp(self) -> Sftp:
        """Open a session that reads and writes files, as SFTP. Raises: SshFailed: the host has none, LinkLost."""
        try:
            # What a start-up file prints would be taken for the answer, and the true one be waited for without end.
            async with asyncio.timeout(SFTP_SECONDS + self.shell_seconds):
                opening = self._opening.start(self._sftp_client())
                client = await asyncio.shield(opening)
                assert isinstance(client, asyncssh.SFTPClient)
        except asyncssh.ChannelOpenError as exc:
            if not self.is_open:
                raise self.lost() from exc
            if self._has_run:
                return await (await self._overflow()).open_sftp()
            raise SshFailed(host=self.name, reason=f"no channel for SFTP: {exc}") from exc
        except (asyncssh.Error, OSError, ValueError) as exc:
            reason = f"it has no SFTP: {str(exc) or 'no answer'}"
            raise (SshFailed(host=self.name, reason=reason) if self.is_open else self.lost()) from exc
        return Sftp(client, name=self.name, lost=lambda: None if self.is_open else self.lost())

    async def _sftp_client(self) -> asyncssh.SFTPClient:
        return await self._connection.start_sftp_client()

    def _why_not(self, found: SocketFacts) -> Exception:
        """Say why sshd did not connect to a socket. It says the same (code 2) for all of these."""
        if not found.exists:
            return FileNotFoundError(found.path)
        if not found.is_writable:
            return PermissionError(found.path)
        if found.is_listening is False:
            return ConnectionRefusedError(found.path)
        # Somebody listens there and this login may write to it: what is left is AllowStreamLocalForwarding no.
        return ForwardingForbidden(host=self.name)

    async def look_at_socket(self, path: str) -> SocketFacts:
        """Ask what a socket on the host is like for this login."""
        answer = await self.run(["sh", "-c", SOCKET_SCRIPT, "test", path], seconds=SCRIPT_SECONDS)
        return parse_socket(path, answer.stdout.decode("utf-8", "replace"))

    async def look_again(self) -> HostFacts:
        """See AnyLink.

        Raises: LinkLost, SshFailed: no POSIX shell there, StartTimeout.
        """
        # After a login more than curiosity: until a first session channel exists sshd leaves Nagle on, and every cell
        # costs 44 ms instead of 4.
        refusal: SshFailed | None = None
        for command in [self._shell] if self._has_run else shell.SHELL_COMMANDS:
            self._shell = command
            began_at = time.monotonic()
            try:
                answer = await self.run(["sh", "-c", FACTS_SCRIPT, "id"], seconds=SCRIPT_SECONDS)
            except SshFailed as exc:
                refusal = refusal or exc
                continue
            self.shell_seconds = time.monotonic() - began_at
            try:
                self.facts = parse_facts(answer.stdout.decode("utf-8", "replace"))
            except ValueError as exc:
                raise self._refused(shell.said(str(exc).encode(), answer.stderr)) from exc
            self._has_run = True
            self.entry = self._describe_entry()
            return self.facts
        assert refusal is not None
        raise refusal

    def _describe_entry(self) -> LoginEntry:
        guard = self._connection.get_owner()
        was_asked = bool(getattr(guard, "answered", ()) or getattr(guard, "wanted", ()))
        return LoginEntry(key=getattr(guard, "accepted", ""), was_asked=was_asked, noise=self._noise)

    async def ask_login_shell(self) -> bool:
        """See AnyLink."""
        if self._login_variables is not None:
            return False
        self._login_variables = {}
        answer = await self.run(["sh", "-c", shell.LOGIN_SHELL_SCRIPT, "env"], seconds=SHELL_SECONDS)
        self._login_variables = shell.parse_variables(answer.stdout.decode("utf-8", "replace"))
        return bool(self._login_variables)

    async def jump(self, name: str, *, seconds: float) -> Link:
        """See AnyLink.

        Raises: as open_link().
        """
        logging_in = partial(dial_beyond, name, via=self._login, seconds=seconds)
        with self._questions.for_login():
            link = await _log_in(self.name, logging_in, host=self._host)
        link._login_variables = self._login_variables
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
        await self._login.aclose()


async def open_link(
    host: Host, early: HeadStart | None = None, meanwhile: Callable[[AnyLink], None] | None = None
) -> Link:
    """Log in and ask the host for its facts. `early` is a head start; `meanwhile` is called when these are asked for.

    Raises: every 2x error but ForwardingForbidden.
    """
    started_at = time.monotonic()
    logging_in = partial(dial, host)
    link = await _log_in(host.name, logging_in, host=host, first=await dial(host, early), meanwhile=meanwhile)
    _LOG.info("[%s] logged in as %s in %.1f s", host.name, link.facts.user, time.monotonic() - started_at)
    return link


async def _log_in(
    name: str,
    logging_in: Callable[[], Awaitable[Login]],
    *,
    host: Host,
    first: Login | None = None,
    meanwhile: Callable[[AnyLink], None] | None = None,
) -> Link:
    login = first or await logging_in()
    link = Link(name, login, host=host, log_in_again=logging_in)
    if meanwhile is not None:
        meanwhile(link)
    report(ASKS_FACTS)
    try:
        await link.look_again()
    except StartTimeout as exc:
        await link.aclose()
        # What was open before may be so again.
        reason = f"its answer to `id` and the like took longer than {SCRIPT_SECONDS:g} s"
        raise HostUnreachable(host=name, address=login.hop.shown, reason=reason, remedy=exc.remedy) from exc
    except LinkLost as exc:
        await link.aclose()
        reason = f"the host accepted the login as {login.hop.user} and then closed the connection"
        remedy = "If it does so again, ask its administrator: the log of its sshd says why."
        raise HostUnreachable(host=name, address=login.hop.shown, reason=reason, remedy=remedy) from exc
    except BaseException:
        await link.aclose()
        raise
    return link
