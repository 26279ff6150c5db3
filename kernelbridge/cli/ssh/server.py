"""Serve SSH to the client that started this process as its ProxyCommand, and carry its sessions into a container.

The server is here, and each session is a command beside the kernel: so an image needs no sshd, a container no rights
that sshd would need, and no key goes anywhere. Who may connect is who may start this process: it has no port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh

from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts import bootstrap
from kernelbridge.kernel.command.terminal import CommandRequest, Terminal
from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import CommandEnd, WindowSize, window_of

_LOG = logging.getLogger(__name__)

# Runs a command beside the kernel; the function takes what it writes.
OpenBeside = Callable[[CommandRequest, Callable[[int, bytes], None]], Awaitable[Terminal]]

SFTP_MODULE = "beside.sftp_server"
CONNECTOR_MODULE = "beside.connector"
# What a shell says where a command is not there; and ssh where all else fails.
_NOT_RUN_EXIT = 255
_SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "ABRT": 6, "KILL": 9, "USR1": 10, "USR2": 12, "ALRM": 14, "TERM": 15}
_NAMES = {number: name for name, number in _SIGNALS.items()}
_PIECE_BYTES = 64 << 10
# Of a window whose client does not say how large it is.
_USUAL_SIZE = (80, 24)
_HIGH_WATER_BYTES = 1 << 20
_LOOK_SECONDS = 0.1


class ContainerServer(asyncssh.SSHServer):
    """One client's connection."""

    def __init__(self, open_beside: OpenBeside, python: str) -> None:
        """`python` is the command by which the container's relay runs."""
        self._open_beside = open_beside
        self._python = python

    def begin_auth(self, username: str) -> bool:
        """Called by asyncssh: nobody is asked who they are, since nobody else reaches this process."""
        return False

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        """Called by asyncssh for a shell, a command or a subsystem."""
        return CommandSession(self._open_beside, self._python)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """Called by asyncssh for a port that the client forwards into the container."""
        words = ("tcp", dest_host, str(dest_port))
        return ConnectionSession(self._open_beside, (*bootstrap.beside_argv(self._python, CONNECTOR_MODULE), *words))

    def unix_connection_requested(self, dest_path: str) -> Any:
        """Called by asyncssh for a socket that the client forwards into the container."""
        words = ("unix", dest_path)
        return SocketSession(self._open_beside, (*bootstrap.beside_argv(self._python, CONNECTOR_MODULE), *words))


class Beside:
    """One command in the container, joined to a channel of the client's."""

    def __init__(self, open_beside: OpenBeside) -> None:
        self._open_beside = open_beside
        # Set by connection_made() of the session.
        self.channel: Any = None
        self._opened: Terminal | None = None
        # The client's input that the command was not given yet, its end as empty bytes; and how much that is.
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting_bytes = 0
        # Whether the client is to send nothing, since too much waits.
        self._holds_back = False
        # What the client wants that the command, which does not run yet, was not told.
        self._is_paused = False
        self._window: WindowSize | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, request: CommandRequest) -> None:
        """Run it."""
        self._task = asyncio.get_running_loop().create_task(self._run(request))

    async def _run(self, request: CommandRequest) -> None:
        try:
            opened = self._opened = await self._open_beside(request, self._written)
            if self._window is not None:
                opened.resize(self._window)
            if self._is_paused:
                opened.pause()
            feeding = asyncio.get_running_loop().create_task(self._feed(opened))
            try:
                self._exit(await opened.wait_end())
            finally:
                feeding.cancel()
        except KernelBridgeError as exc:
            self._say(str(exc))
            self._exit(CommandEnd(_NOT_RUN_EXIT))
        except Exception as exc:
            # The edge of the task: left alone, the client would wait for ever.
            _LOG.exception("a session failed")
            self._say(f"kernelbridge has a bug here: {type(exc).__name__}: {exc}")
            self._exit(CommandEnd(_NOT_RUN_EXIT))
        finally:
            if self._opened is not None:
                await self._opened.aclose()

    def _say(self, text: str) -> None:
        if hasattr(self.channel, "write_stderr") and not self.channel.is_closing():
            self.channel.write_stderr(f"kernelbridge: {text}\r\n".encode())

    def _exit(self, end: CommandEnd) -> None:
        if self.channel.is_closing():
            return
        if not hasattr(self.channel, "exit"):
            self.channel.close()
        elif end.signal in _NAMES:
            self.channel.exit_with_signal(_NAMES[end.signal], False, "", "")
        else:
            self.channel.exit(end.exit_code)

    def _written(self, kind: int, data: bytes) -> None:
        if self.channel.is_closing():
            return
        if kind != terminal.ERRORS:
            self.channel.write(data)
        elif hasattr(self.channel, "write_stderr"):
            self.channel.write_stderr(data)
        else:
            # Of a connection, which has one stream: why there is none.
            _LOG.info("%s", data.decode("utf-8", "replace").strip())

    def feed(self, data: bytes) -> None:
        """Take input of the client's; no more of it than the command keeps up with."""
        if self.channel.is_closing():
            return
        self._input.put_nowait(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _HIGH_WATER_BYTES and not self._holds_back:
            self._holds_back = True
            self.channel.pause_reading()
            self._look_for_close()

    def _look_for_close(self) -> None:
        """See that a channel ends that its client closes meanwhile: asyncssh tells so behind all that came before."""
        if self.channel.is_closing():
            self.channel.resume_reading()
        elif self._holds_back:
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_for_close)

    async def _feed(self, opened: Terminal) -> None:
        # The line's end is told by opened.wait().
        with contextlib.suppress(KernelBridgeError):
            while data := await self._input.get():
                await opened.send(data)
                self._waiting_bytes -= len(data)
                if self._waiting_bytes <= _HIGH_WATER_BYTES // 2 and self._holds_back:
                    self._holds_back = False
                    self.channel.resume_reading()
            await opened.send(b"")

    def end_input(self) -> None:
        """Take in that the client sends nothing more."""
        self._input.put_nowait(b"")

    def resize(self, window: WindowSize) -> None:
        """Pass a new size on."""
        self._window = window
        if self._opened is not None:
            self._opened.resize(window)

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self._opened is not None:
            self._opened.signal(number)

    def pause(self, is_paused: bool) -> None:
        """Take no more output while the client takes none."""
        self._is_paused = is_paused
        if self._opened is not None:
            (self._opened.pause if is_paused else self._opened.resume)()

    def end(self) -> None:
        """Take in that the channel is gone: the command hears SIGHUP."""
        if self._task is not None:
            self._task.cancel()


class _Session:
    """What all sessions have in common: a command in the container, and the client's channel that it is joined to."""

    def __init__(self, open_beside: OpenBeside) -> None:
        self._beside = Beside(open_beside)

    def connection_made(self, chan: Any) -> None:
        """Called by asyncssh first."""
        self._beside.channel = chan
        chan.set_write_buffer_limits(high=_HIGH_WATER_BYTES)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Called by asyncssh."""
        self._beside.feed(data)

    def eof_received(self) -> bool:
        """Called by asyncssh; the channel stays open for output."""
        self._beside.end_input()
        return True

    def pause_writing(self) -> None:
        """Called by asyncssh when the client takes nothing."""
        self._beside.pause(True)

    def resume_writing(self) -> None:
        """Called by asyncssh when it does again."""
        self._beside.pause(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncssh last."""
        self._beside.end()


class CommandSession(_Session, asyncssh.SSHServerSession[bytes]):
    """A shell, a command, or SFTP."""

    def __init__(self, open_beside: OpenBeside, python: str) -> None:
        super().__init__(open_beside)
        self._python = python
        self._argv: tuple[str, ...] = ()
        self._window: WindowSize | None = None
        self._env: dict[str, str] = {}

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Any) -> bool:
        """Called by asyncssh where the client wants a terminal."""
        columns, rows = term_size[:2]
        self._window = window_of((columns or _USUAL_SIZE[0], rows or _USUAL_SIZE[1]))
        self._env["TERM"] = term_type
        return True

    def shell_requested(self) -> bool:
        """Called by asyncssh."""
        return True

    def exec_requested(self, command: str) -> bool:
        """Called by asyncssh: the command is for a shell, as sshd gives it to the login's."""
        self._argv = ("sh", "-c", command)
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Called by asyncssh."""
        self._argv = tuple(bootstrap.beside_argv(self._python, SFTP_MODULE))
        return subsystem == "sftp"

    def session_started(self) -> None:
        """Called by asyncssh once it is known what is wanted."""
        asked = self._beside.channel.get_environment()
        # No program can be given others.
        env = {name: text for name, text in asked.items() if name and "=" not in name and "\0" not in name + text}
        request = CommandRequest(argv=self._argv, folder="~", window=self._window, env={**env, **self._env})
        self._beside.begin(request)

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """Called by asyncssh."""
        self._beside.resize(window_of((width, height)))

    def signal_received(self, signal: str) -> None:
        """Called by asyncssh."""
        if signal in _SIGNALS:
            self._beside.signal(_SIGNALS[signal])

    def break_received(self, msec: int) -> bool:
        """Called by asyncssh."""
        self._beside.signal(_SIGNALS["INT"])
        return True


class _Reached(_Session):
    """What sessions of ports and of sockets have in common."""

    def __init__(self, open_beside: OpenBeside, argv: tuple[str, ...]) -> None:
        super().__init__(open_beside)
        self._argv = argv

    def session_started(self) -> None:
        """Called by asyncssh."""
        self._beside.begin(CommandRequest(argv=self._argv, folder="/"))


class ConnectionSession(_Reached, asyncssh.SSHTCPSession[bytes]):
    """A port that the client reaches through the container."""


class SocketSession(_Reached, asyncssh.SSHUNIXSession[bytes]):
    """A unix socket that the client reaches in the container."""


async def serve(sock: socket.socket, *, host_key: bytes, open_beside: OpenBeside, python: str) -> None:
    """Serve the client at the other end of a socket until it has gone."""
    try:
        connection = await asyncssh.run_server(
            sock,
            # Nothing of this machine's own sshd config is ours.
            config=None,
            server_factory=lambda: ContainerServer(open_beside, python),
            server_host_keys=[asyncssh.import_private_key(host_key)],
            encoding=None,
            # The line is a pipe of this machine.
            encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"],
            compression_algs=["none"],
            # The terminal is the container's.
            line_editor=False,
            agent_forwarding=False,
            keepalive_interval=0,
            login_timeout=0,
        )
    except (asyncssh.Error, OSError) as exc:
        # It went before it was served, and knows why: another host key, say.
        _LOG.info("no client: %s", exc)
        return
    await connection.wait_closed()


def new_host_key() -> bytes:
    """Return a private key for serve(), in OpenSSH's form."""
    return bytes(asyncssh.generate_private_key("ssh-ed25519", "kernelbridge").export_private_key())


def public_line(host_key: bytes) -> str:
    """Return the public half as known_hosts has it, without a name: kind and key."""
    text: str = asyncssh.import_private_key(host_key).export_public_key().decode()
    return " ".join(text.split()[:2])


def joined_to_stdio() -> socket.socket:
    """Return a socket whose other end is this process's stdin and stdout, moved by two threads."""
    ours, theirs = socket.socketpair()

    def read() -> None:
        source = sys.stdin.buffer.raw if hasattr(sys.stdin.buffer, "raw") else sys.stdin.buffer
        # Either end may go first.
        with contextlib.suppress(OSError):
            while piece := source.read(_PIECE_BYTES):
                theirs.sendall(piece)
            theirs.shutdown(socket.SHUT_WR)

    reader = threading.Thread(target=read, name="kernelbridge-read", daemon=True)

    def write() -> None:
        sink = sys.stdout.buffer
        with theirs:
            with contextlib.suppress(OSError):
                while piece := theirs.recv(_PIECE_BYTES):
                    sink.write(piece)
                    sink.flush()
            with contextlib.suppress(OSError):
                theirs.shutdown(socket.SHUT_RDWR)
            reader.join()

    reader.start()
    threading.Thread(target=write, name="kernelbridge-write", daemon=True).start()
    return ours
