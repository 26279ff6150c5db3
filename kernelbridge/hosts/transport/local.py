"""Run commands and connect to sockets of this machine, in the manner of an SSH link. Never lost."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelbridge.errors import SshFailed, StartTimeout
from kernelbridge.hosts.transport import shell
from kernelbridge.hosts.transport.facts import FACTS_SCRIPT, SCRIPT_SECONDS, HostFacts, SocketFacts, parse_facts
from kernelbridge.hosts.transport.stream import (
    HIGH_WATER_BYTES,
    STDERR_BYTES,
    Collector,
    CommandError,
    Completed,
    Ending,
    LoginEntry,
    OutputTooLong,
    Receiver,
    Stream,
)

if TYPE_CHECKING:
    from kernelbridge.hosts.transport.sftp import Sftp  # loads asyncssh

# Docker Desktop's. Not tried by us on Windows.
WINDOWS_PIPE = r"\\.\pipe\docker_engine"
# A killed process is gone at once, but for one that hangs in the system.
REAP_SECONDS = 2.0


class SocketStream(asyncio.Protocol):
    """A local socket or named pipe as a Stream."""

    def __init__(self, receiver: Receiver) -> None:
        self._ending = Ending(receiver)
        # Set by connection_made(), which asyncio calls before anything else.
        self._transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        return f"<SocketStream {'ended' if self._ending.has_ended else 'open'}, {self.unsent_bytes()} B unsent>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if not self._ending.hand_on(data):
            self.close()

    def eof_received(self) -> bool:
        """Called by asyncio. An engine that ends its direction has ended the exchange; asyncio then closes."""
        self._ending.end(None)
        return False

    def pause_writing(self) -> None:
        """Called by asyncio when too much is queued."""
        self._ending.pause_writing()

    def resume_writing(self) -> None:
        """Called by asyncio when the queue is short again."""
        self._ending.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once."""
        self._ending.end(exc)

    def write(self, data: bytes | memoryview) -> None:
        """See Stream."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        """See Stream."""
        if self._transport is not None and not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def unsent_bytes(self) -> int:
        """See Stream."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def pause_reading(self) -> None:
        """See Stream."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See Stream."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def drain(self) -> None:
        """See Stream."""
        await self._ending.wait_writable()

    def close(self) -> None:
        """See Stream."""
        self._ending.end(None)
        if self._transport is not None:
            self._transport.abort()


class CommandStream(asyncio.SubprocessProtocol):
    """A local command's stdin and stdout as a Stream."""

    def __init__(self, receiver: Receiver, *, command: str) -> None:
        self._ending = Ending(receiver)
        self._command = command
        self.stderr = bytearray()
        # Set by connection_made(), which asyncio calls before anything else.
        self._process: asyncio.SubprocessTransport | None = None
        # Set when the process has ended.
        self.exit_code: int | None = None
        self._gone = asyncio.Event()

    def __repr__(self) -> str:
        return f"<CommandStream {self._command} {'ended' if self._ending.has_ended else 'open'}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._process = transport
        if (stdin := self._stdin()) is not None:
            stdin.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Called by asyncio."""
        if fd == 2:
            self.stderr += data[: STDERR_BYTES - len(self.stderr)]
        elif not self._ending.hand_on(data):
            self.close()

    def pause_writing(self) -> None:
        """Called by asyncio when too much is queued."""
        self._ending.pause_writing()

    def resume_writing(self) -> None:
        """Called by asyncio when the queue is short again."""
        self._ending.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once, after the process has ended and all its output was read."""
        self._gone.set()
        code = self._process.get_returncode() if self._process is not None else None
        self.exit_code = -1 if code is None else code
        if self.exit_code:
            stderr = self.stderr.decode("utf-8", "replace")
            self._ending.end(CommandError(command=self._command, exit_code=self.exit_code, stderr=stderr))
        else:
            self._ending.end(None)

    def _stdin(self) -> asyncio.WriteTransport | None:
        pipe = self._process.get_pipe_transport(0) if self._process is not None else None
        return pipe if isinstance(pipe, asyncio.WriteTransport) and not pipe.is_closing() else None

    def write(self, data: bytes | memoryview) -> None:
        """See Stream."""
        if (stdin := self._stdin()) is not None:
            stdin.write(data)

    def write_eof(self) -> None:
        """See Stream."""
        if (stdin := self._stdin()) is not None:
            stdin.write_eof()

    def unsent_bytes(self) -> int:
        """See Stream."""
        return stdin.get_write_buffer_size() if (stdin := self._stdin()) is not None else 0

    def pause_reading(self) -> None:
        """See Stream."""
        if isinstance(stdout := self._stdout(), asyncio.ReadTransport):
            stdout.pause_reading()

    def resume_reading(self) -> None:
        """See Stream."""
        if isinstance(stdout := self._stdout(), asyncio.ReadTransport):
            stdout.resume_reading()

    def _stdout(self) -> asyncio.BaseTransport | None:
        pipe = self._process.get_pipe_transport(1) if self._process is not None else None
        return pipe if pipe is not None and not pipe.is_closing() else None

    async def drain(self) -> None:
        """See Stream."""
        await self._ending.wait_writable()

    def close(self) -> None:
        """See Stream."""
        self._ending.end(None)
        if self._process is not None:
            self._process.close()  # kills the process, too

    async def wait_gone(self) -> None:
        """Return when the process has ended and is reaped; to be called after close()."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAP_SECONDS):
                await self._gone.wait()


class LocalLink:
    """This machine's own engine and commands. Made by open_local()."""

    def __init__(self, name: str, *, folders: Sequence[str] = ()) -> None:
        self.name = name
        # In which commands are looked for first.
        self._folders = tuple(folders)
        # What a login shell sets; None: it was not asked. Set by ask_login_shell().
        self._login_variables: dict[str, str] | None = None
        self.shell_seconds = 0.0
        self.entry = LoginEntry()
        # Set by open_local() before anyone else sees the link.
        self.facts: HostFacts
        # Set by aclose().
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<LocalLink {self.name} {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """True until aclose(): this machine does not go away."""
        return not self._closed.is_set()

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        """See AnyLink.

        Raises: StartTimeout: it did not end in time.
        """
        collector = Collector()
        try:
            stream = await self._start(argv, collector)
        except OSError as exc:
            # The same answer as a remote shell's.
            return Completed(exit_code=127, stdout=b"", stderr=str(exc).encode())
        try:
            async with asyncio.timeout(seconds):
                stream.write(stdin)
                stream.write_eof()
                await collector.wait_ended()
        except TimeoutError as exc:
            remedy = "Run it in a terminal to see what it waits for."
            raise StartTimeout(host=self.name, what=f"`{shell.name_of(argv)}`", seconds=seconds, remedy=remedy) from exc
        finally:
            stream.close()
            await stream.wait_gone()
        if isinstance(collector.failure, OutputTooLong):
            raise SshFailed(host=self.name, reason=f"`{shell.name_of(argv)}` printed {collector.failure}")
        code = -1 if stream.exit_code is None else stream.exit_code
        return Completed(exit_code=code, stdout=bytes(collector.received), stderr=bytes(stream.stderr))

    async def _start(self, argv: Sequence[str], receiver: Receiver) -> CommandStream:
        loop = asyncio.get_running_loop()
        words = list(argv)
        if sys.platform != "win32":
            # A server that a desktop or systemd has started has less on its PATH than a terminal.
            set_path = shell.settings(self._folders, self._login_variables)
            words = ["/bin/sh", "-c", f'{set_path}exec "$@"', "sh", *argv]
        _, stream = await loop.subprocess_exec(lambda: CommandStream(receiver, command=shell.name_of(argv)), *words)
        return stream

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """See AnyLink. Raises: OSError."""
        return await self._start(argv, receiver)

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        """See AnyLink. Raises: OSError."""
        loop = asyncio.get_running_loop()
        if sys.platform == "win32":
            assert isinstance(loop, asyncio.ProactorEventLoop)
            # typeshed wants a StreamReaderProtocol here; the loop takes any protocol.
            factory: Any = lambda: SocketStream(receiver)  # noqa: E731
            pipe: Any = (await loop.create_pipe_connection(factory, path))[1]
            assert isinstance(pipe, SocketStream)
            return pipe
        _, stream = await loop.create_unix_connection(lambda: SocketStream(receiver), path)
        return stream

    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        """See AnyLink."""
        try:
            return await self.open_socket(path, receiver)
        except OSError:
            return None

    async def look_again(self) -> HostFacts:
        """See AnyLink."""
        if sys.platform == "win32":
            self.facts = _windows_facts()
        else:
            answer = await self.run(["sh", "-c", FACTS_SCRIPT, "id"], seconds=SCRIPT_SECONDS)
            try:
                self.facts = parse_facts(answer.stdout.decode("utf-8", "replace"))
            except ValueError as exc:
                reason = shell.said(str(exc).encode(), answer.stderr)
                raise SshFailed(
                    host=self.name, reason=reason, remedy="Run `id` in a terminal here: it has to say who you are."
                ) from exc
        return self.facts

    async def open_sftp(self) -> Sftp:
        """See AnyLink. Raises: SshFailed, always."""
        raise SshFailed(host=self.name, reason="this machine's files need no SFTP")

    async def ask_login_shell(self) -> bool:
        """See AnyLink."""
        if self._login_variables is not None or sys.platform == "win32":
            return False
        self._login_variables = {}
        answer = await self.run(["sh", "-c", shell.LOGIN_SHELL_SCRIPT, "env"], seconds=SCRIPT_SECONDS)
        self._login_variables = shell.parse_variables(answer.stdout.decode("utf-8", "replace"))
        return bool(self._login_variables)

    async def jump(self, name: str, *, seconds: float) -> LocalLink:
        """See AnyLink. Raises: SshFailed, always."""
        raise SshFailed(host=name, reason="this machine is the login node itself")

    async def wait_lost(self) -> None:
        """See AnyLink. Returns after aclose() only."""
        await self._closed.wait()

    async def aclose(self) -> None:
        """See AnyLink. Streams live on until they are closed themselves."""
        self._closed.set()


async def open_local(name: str, *, folders: Sequence[str] = ()) -> LocalLink:
    """Look at this machine as open_link() looks at a host; commands are looked for in `folders` first."""
    link = LocalLink(name, folders=folders)
    await link.look_again()
    return link


def _windows_facts() -> HostFacts:
    return HostFacts(
        user=getpass.getuser(),
        uid=0,
        gid=0,
        home=str(Path.home()),
        sockets=(SocketFacts(path=WINDOWS_PIPE, exists=True, is_writable=True),),
        has_docker_command=False,
        may_sudo_docker=False,
    )
