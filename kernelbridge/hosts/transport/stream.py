"""Define links and streams of bytes, over SSH or on this machine, and do what all streams have in common.

Everything here runs on the one event loop of the daemon thread; nothing is thread-safe.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kernelbridge.hosts.transport.facts import HostFacts

if TYPE_CHECKING:
    from kernelbridge.hosts.transport.sftp import Sftp  # loads asyncssh

_LOG = logging.getLogger(__name__)

# A pause or a queue beyond this is back-pressure: one large message, far below what a laptop notices.
HIGH_WATER_BYTES = 1 << 20
# How much of a command's stderr is kept, for the error message.
STDERR_BYTES = 64 << 10


class Receiver(Protocol):
    """Takes what comes from the other end. Called on the loop's thread; must not block."""

    def data_received(self, data: bytes) -> None:
        """Take the next bytes, in order."""

    def closed(self, exc: Exception | None) -> None:
        """Know that nothing more comes. Called exactly once: None after an orderly end or our own close()."""


class Stream(Protocol):
    """One stream of bytes to something on a host."""

    def write(self, data: bytes | memoryview) -> None:
        """Queue bytes; never blocks. After the end they are dropped: only an acknowledgement proves delivery."""

    def write_eof(self) -> None:
        """Close our direction once all queued bytes are out; the other direction stays open."""

    def unsent_bytes(self) -> int:
        """Return how many bytes are still queued in this process."""

    def pause_reading(self) -> None:
        """Ask for no more data_received() until resume_reading()."""

    def resume_reading(self) -> None:
        """Let data_received() be called again."""

    async def drain(self) -> None:
        """Return when little is queued (below HIGH_WATER_BYTES), or the stream has ended."""

    def close(self) -> None:
        """End both directions now; what is queued is lost. Safe to call twice."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The end of a command on the host."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class CommandError(Exception):
    """A command of ours on the host ended with an exit code other than 0. Given to closed(); users never see it."""

    def __init__(self, *, command: str, exit_code: int, stderr: str) -> None:
        super().__init__(f"`{command}` ended with {exit_code}: {stderr.strip()}")
        self.exit_code = exit_code
        self.stderr = stderr


class BeyondLink(Exception):
    """A link that can do little cannot do or say this; one by asyncssh can. Users never see it."""


class OutputTooLong(Exception):
    """A command wrote more than anybody asked for. Given to closed(); users never see it."""


@dataclass(frozen=True, kw_only=True)
class LoginEntry:
    """How a login was let in, and what its shell does unasked."""

    # The name of the key that the host took; empty where it took another thing, or there is no login.
    key: str = ""
    # Whether it asked for more than a key.
    was_asked: bool = False
    # What start-up files print before a command, in one line.
    noise: str = ""


class AnyLink(Protocol):
    """A way to a host: over SSH, or to this machine itself."""

    name: str
    facts: HostFacts
    # How long the login's shell took to run a command, when it was asked for the facts.
    shell_seconds: float
    entry: LoginEntry

    @property
    def is_open(self) -> bool:
        """Whether streams can be opened at this moment, as far as we know."""

    async def look_again(self) -> HostFacts:
        """Ask the host for its facts anew; they are in `facts` from then on."""

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        """Run one command to its end. An exit code other than 0 is an answer, not an error.

        `seconds` count from when the command runs: a login shell's start-up files have a limit of their own. For a
        moment argv and stdin can be seen in the host's list of processes: no secret may be among them.
        """

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        """Connect to a unix socket of the host.

        Raises: FileNotFoundError, PermissionError, ConnectionRefusedError, ForwardingForbidden, LinkLost.
        """

    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        """Connect to a unix socket of the host; None where that cannot be, for whatever reason. Raises: LinkLost."""

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run a command and join its stdin and stdout to a stream; closed() gets CommandError on an exit code.

        Returns when it runs, however long a login shell's start-up files take. Where it raises, closed() is not called.
        """

    async def open_sftp(self) -> Sftp:
        """Open a session that reads and writes files of the host.

        Raises: SshFailed: it has no SFTP, LinkLost.
        """

    async def ask_login_shell(self) -> bool:
        """Let commands have also what a login shell sets, its PATH first; whether that may help. Asks once."""

    async def jump(self, name: str, *, seconds: float) -> AnyLink:
        """Open a link through this one to a machine that this one reaches, as ProxyJump; it ends with this one.

        Raises: SshFailed where known_hosts does not have the machine, and as open_link().
        """

    async def wait_lost(self) -> None:
        """Return when this link is no more, for whatever reason."""

    async def aclose(self) -> None:
        """Close the link and all its streams. Safe to call twice."""


class Ending:
    """Gives a stream's Receiver data while it is open, and its end exactly once."""

    def __init__(self, receiver: Receiver) -> None:
        # None from the end on; set by end() alone.
        self._receiver: Receiver | None = receiver
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def has_ended(self) -> bool:
        """Whether the Receiver was told, or is about to be told, that nothing more comes."""
        return self._receiver is None

    def hand_on(self, data: bytes) -> bool:
        """Give data to the Receiver. False: it has a bug, the stream has ended and is to be closed."""
        if self._receiver is None:
            return True
        try:
            self._receiver.data_received(data)
        except OutputTooLong as exc:
            self.end(exc)
            return False
        except Exception as exc:
            # An edge: left alone, asyncssh would tear the whole link down for the bug of one stream.
            _LOG.exception("a receiver failed; its stream is closed")
            self.end(exc)
            return False
        return True

    def end(self, exc: Exception | None) -> None:
        """Tell the Receiver the end, in the next turn of the loop; the second call does nothing."""
        receiver, self._receiver = self._receiver, None
        self._may_write.set()
        if receiver is not None:
            # Later, because close() may be called from within data_received().
            asyncio.get_running_loop().call_soon(_tell_end, receiver, exc)

    def abandon(self) -> None:
        """Tell the Receiver nothing more, not even the end."""
        self._receiver = None
        self._may_write.set()

    def pause_writing(self) -> None:
        """Called by the transport when too much is queued."""
        if self._receiver is not None:
            self._may_write.clear()

    def resume_writing(self) -> None:
        """Called by the transport when the queue is short again."""
        self._may_write.set()

    async def wait_writable(self) -> None:
        """Return when the queue is short, or the stream has ended."""
        await self._may_write.wait()


def _tell_end(receiver: Receiver, exc: Exception | None) -> None:
    try:
        receiver.closed(exc)
    except Exception:  # An edge: the same as above.
        _LOG.exception("a receiver failed at the end of its stream")


class Collector:
    """A Receiver that keeps everything, for commands and answers that are short."""

    def __init__(self, *, limit_bytes: int = 16 << 20) -> None:
        self._limit_bytes = limit_bytes
        # Filled by data_received().
        self.received = bytearray()
        # Why the stream ended; set by closed().
        self.failure: Exception | None = None
        self._ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Keep the data; refuses more than the limit, so that a broken host cannot fill this machine's memory."""
        if len(self.received) + len(data) > self._limit_bytes:
            raise OutputTooLong(f"more than {self._limit_bytes >> 20} MiB")
        self.received += data

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        self.failure = exc
        self._ended.set()

    async def wait_ended(self) -> None:
        """Return when nothing more comes."""
        await self._ended.wait()
