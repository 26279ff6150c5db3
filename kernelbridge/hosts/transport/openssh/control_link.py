"""Run commands and connect to sockets of a host over the connection of the user's own `ssh`, without asyncssh.

It is for short work that asyncssh would take longer to load for than to do. What it cannot do, or does not understand,
it leaves to the link that can: BeyondLink.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from kernelbridge.hosts.transport import shell
from kernelbridge.hosts.transport.facts import FACTS_SCRIPT, SCRIPT_SECONDS, HostFacts, parse_facts
from kernelbridge.hosts.transport.local import SocketStream
from kernelbridge.hosts.transport.openssh.control_master import ControlMaster
from kernelbridge.hosts.transport.stream import BeyondLink, Completed, LoginEntry, Receiver, Stream

if TYPE_CHECKING:
    from kernelbridge.hosts.transport.sftp import Sftp  # loads asyncssh

# Of OpenSSH's PROTOCOL.mux.
_HELLO, _OPEN_FORWARD, _OK = 1, 0x10000006, 0x80000001
_VERSION: Final = 4
_LOCAL_FORWARD: Final = 1
# The number of a port that stands for a unix socket.
_UNIX_SOCKET: Final = 0xFFFFFFFE
_MOST_MESSAGE_BYTES: Final = 1 << 16
_LOGIN_LOOK_SECONDS: Final = 0.004
# How long the master may take for an answer beside the way to its host.
MASTER_SECONDS: Final = 20.0
# How much a host may say: of a start-up file, of hundreds of GPUs.
_MOST_SAID_BYTES: Final = 16 << 20
_PIECE_BYTES: Final = 1 << 16


class ControlLink:
    """A way to a host through a master, which may still log in. Made on the loop; `facts` are for its maker to set."""

    def __init__(self, name: str, master: ControlMaster, *, folders: Sequence[str] = ()) -> None:
        self.name = name
        self._master = master
        # In which commands are looked for first.
        self._settings = shell.settings(folders)
        self._shell = _Shell(master)
        self.shell_seconds = 0.0
        self.entry = LoginEntry()
        self.facts: HostFacts
        # How many sockets of this machine lead to the host's; each has a number.
        self._forwards = 0
        # Set by aclose().
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<ControlLink {self.name} {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """See AnyLink."""
        return not self._closed.is_set() and self._master.process.poll() is None

    async def wait_logged_in(self) -> None:
        """Return when the host has let the master in. Raises: BeyondLink: it has not."""
        while not os.path.exists(self._master.control_path):  # noqa: ASYNC240, PTH110 - one look at a folder
            if self._master.process.poll() is not None:
                raise BeyondLink("ssh has ended")
            await asyncio.sleep(_LOGIN_LOOK_SECONDS)

    async def ask_facts(self) -> HostFacts:
        """Ask the host what it is, and return that. Raises: BeyondLink."""
        began_at = time.monotonic()
        answer = await self.run(["sh", "-c", FACTS_SCRIPT, "id"], seconds=SCRIPT_SECONDS)
        self.shell_seconds = time.monotonic() - began_at
        try:
            return parse_facts(answer.stdout.decode("utf-8", "replace"))
        except ValueError as exc:
            raise BeyondLink(str(exc)) from exc

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        """See AnyLink. The commands run one after the other, in the master's own session. Raises: BeyondLink."""
        mark = shell.new_mark()
        text = shell.script(argv, mark=mark, stdin=stdin, settings=self._settings)
        try:
            async with asyncio.timeout(seconds):
                return await self._shell.run(text, mark)
        except TimeoutError as exc:
            raise BeyondLink(f"`{shell.name_of(argv)}` takes too long") from exc

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """See AnyLink. Raises: BeyondLink, always: who needs a lasting stream has the other link."""
        self._refuse()

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        """See AnyLink. Raises: BeyondLink."""
        loop = asyncio.get_running_loop()
        self._forwards += 1
        local = f"{self._master.folder}/{self._forwards}"
        unix_socket = struct.pack(">I", _UNIX_SOCKET)
        wish = struct.pack(">I", _LOCAL_FORWARD) + _text(local) + unix_socket + _text(path) + unix_socket
        await self._ask(_OPEN_FORWARD, wish)
        try:
            _, stream = await loop.create_unix_connection(lambda: SocketStream(receiver), local)
        except OSError as exc:
            raise BeyondLink(str(exc)) from exc
        return stream

    async def _ask(self, kind: int, wish: bytes) -> None:
        """Have the master do something, and return once it has done so. Raises: BeyondLink."""
        if sys.platform == "win32":
            raise BeyondLink("OpenSSH has no control sockets there")
        loop = asyncio.get_running_loop()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
                control.setblocking(False)
                async with asyncio.timeout(MASTER_SECONDS):
                    await loop.sock_connect(control, self._master.control_path)
                    # Both at once: what it answers to the first is known.
                    hello = _message(struct.pack(">II", _HELLO, _VERSION))
                    await loop.sock_sendall(control, hello + _message(struct.pack(">II", kind, 0) + wish))
                    said, answer = await _receive(control), await _receive(control)
            if struct.unpack(">II", said[:8]) != (_HELLO, _VERSION):
                raise BeyondLink("ssh speaks another protocol on its control socket")
            if struct.unpack(">I", answer[:4]) != (_OK,):
                raise BeyondLink(f"ssh refuses: {answer[8:].decode('utf-8', 'replace')}")
        except (OSError, struct.error, EOFError) as exc:
            raise BeyondLink(f"ssh does not answer: {exc}") from exc

    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        """See AnyLink. Raises: BeyondLink, always: whether there is one is only seen once it is used."""
        self._refuse()

    async def look_again(self) -> HostFacts:
        """See AnyLink. Raises: BeyondLink, always."""
        self._refuse()

    async def open_sftp(self) -> Sftp:
        """See AnyLink. Raises: BeyondLink, always."""
        self._refuse()

    async def ask_login_shell(self) -> bool:
        """See AnyLink. Raises: BeyondLink, always: what it would change is not known here."""
        self._refuse()

    async def jump(self, name: str, *, seconds: float) -> ControlLink:
        """See AnyLink. Raises: BeyondLink, always."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BeyondLink("not over a control socket")

    async def wait_lost(self) -> None:
        """See AnyLink."""
        await self._closed.wait()

    async def aclose(self) -> None:
        """See AnyLink. The master is for its owner to close."""
        self._closed.set()


class _Shell:
    """The shell that the master runs on the host: reads commands, and answers between marks on stdout and stderr."""

    def __init__(self, master: ControlMaster) -> None:
        self._stdin = master.process.stdin
        # All that was said, by the number of its stream.
        self._said = {1: bytearray(), 2: bytearray()}
        # By the marks of the commands that have not ended yet.
        self._waiting: dict[str, asyncio.Future[Completed]] = {}
        loop = asyncio.get_running_loop()
        for number, pipe in ((1, master.process.stdout), (2, master.process.stderr)):
            assert pipe is not None
            loop.add_reader(pipe.fileno(), self._hear, number, pipe.fileno())

    async def run(self, text: str, mark: str) -> Completed:
        """Run a script whose command has this mark. Raises: BeyondLink."""
        self._waiting[mark] = asyncio.get_running_loop().create_future()
        try:
            assert self._stdin is not None
            self._stdin.write(shell.for_next(text))
            self._stdin.flush()
        except (OSError, ValueError) as exc:
            del self._waiting[mark]
            raise BeyondLink("ssh has ended") from exc
        return await self._waiting[mark]

    def _hear(self, number: int, file: int) -> None:
        """Called by asyncio when it says something on one of its streams, or ends."""
        piece = os.read(file, _PIECE_BYTES)
        self._said[number] += piece
        if not piece or len(self._said[number]) > _MOST_SAID_BYTES:
            asyncio.get_running_loop().remove_reader(file)
            self._end()
        for mark in list(self._waiting):
            out, err = (_between(mark, bytes(said)) for said in self._said.values())
            if out is not None and err is not None and not (answer := self._waiting.pop(mark)).done():
                answer.set_result(Completed(exit_code=out[1], stdout=out[0], stderr=err[0]))

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(BeyondLink("the host's shell has ended"))


def _between(mark: str, said: bytes) -> tuple[bytes, int] | None:
    """Return what stands between a command's marks, and its exit code; None until it is there."""
    found = re.search(rb"%b<(.*)%b>([0-9]{1,3});" % (mark.encode(), mark.encode()), said, re.DOTALL)
    return None if found is None else (found[1], int(found[2]))


def _text(text: str) -> bytes:
    return _message(text.encode())


def _message(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


async def _receive(control: socket.socket) -> bytes:
    """Return one message of the master. Raises: EOFError, OSError."""
    (size,) = struct.unpack(">I", await _exactly(control, 4))
    if size > _MOST_MESSAGE_BYTES:
        raise EOFError("a message that is too long")
    return await _exactly(control, size)


async def _exactly(control: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = await asyncio.get_running_loop().sock_recv(control, size - len(received))
        if not piece:
            raise EOFError("it has closed the connection")
        received += piece
    return received
