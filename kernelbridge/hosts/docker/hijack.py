"""Turn one HTTP connection to the engine into the stdin and stdout of a container, or of a command in it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelbridge.hosts.transport.stream import Receiver, Stream

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.client import Opener  # loads docker-py

_LOG = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0


class _Upgrade:
    """The Receiver below: reads the engine's answer first, then hands stdout on without its framing."""

    def __init__(self, receiver: Receiver, explain: Callable[[str], Exception]) -> None:
        self._receiver = receiver
        self._explain = explain
        # Reads the answer; None once the stream has begun.
        self._head: HeadReader | None = HeadReader()
        # An error answer, and its body so far; set when the head is no upgrade.
        self._refused: Head | None = None
        self._body = bytearray()
        self._frames = Demultiplexer()
        # The connection, for closing it on garbage; set by open_upgraded().
        self.stream: Stream | None = None
        # Done when the stream has begun, or with the reason why not.
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # What closed() says instead of an orderly end; set on garbage.
        self._failure: Exception | None = None

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        if self._head is None:
            self._hand_on(data)
            return
        if self._refused is not None:
            self._body += data[: HEAD_LIMIT_BYTES - len(self._body)]
            self._end_refusal(self._refused)
            return
        try:
            head = self._head.feed(data)
        except UpgradeError as exc:
            self._fail(exc)
            return
        if head is None:
            return
        if not head.is_upgraded:
            self._refused = head
            self._body += head.rest
            self._end_refusal(head)
            return
        self._head = None
        if not self.begun.done():
            self.begun.set_result(None)
        if head.rest:
            self._hand_on(head.rest)

    def _end_refusal(self, head: Head) -> None:
        length = head.headers.get("content-length")
        if length is not None and re.fullmatch("[0-9]{1,9}", length) and len(self._body) >= int(length):
            self._fail(UpgradeError(head.status, error_message(bytes(self._body))))

    def _fail(self, exc: Exception) -> None:
        if not self.begun.done():
            self.begun.set_exception(exc)
        self._failure = exc
        if self.stream is not None:
            self.stream.close()

    def _hand_on(self, data: bytes) -> None:
        try:
            stdout, stderr = self._frames.feed(data)
        except FramingError as exc:
            self._fail(self._explain(str(exc)))
            return
        if stderr:
            for line in stderr.decode("utf-8", "replace").splitlines():
                _LOG.debug("stderr: %s", line)
        if stdout:
            self._receiver.data_received(stdout)

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        if self._refused is not None and self._failure is None:
            # An error answer without a length ends with the connection.
            self._failure = UpgradeError(self._refused.status, error_message(bytes(self._body)))
        failure = self._failure or exc
        if not self.begun.done():
            self.begun.set_exception(failure or UpgradeError(0, "it closed the connection"))
        elif self._head is None:
            self._receiver.closed(failure)


async def open_upgraded(
    opener: Opener,
    path: str,
    *,
    body: Mapping[str, object] | None,
    receiver: Receiver,
    explain: Callable[[str], Exception],
) -> Stream:
    """Ask the engine for a stream; when this returns it has begun. What is written goes to the other end's stdin.

    The receiver gets stdout; its closed() is called only if this returns. `explain` makes the error from the engine's
    words where it could not start the command, which it says on the stream itself.

    Raises: UpgradeError: the engine says no; what the opener raises; what ended the connection; TimeoutError.
    """
    upgrade = _Upgrade(receiver, explain)
    stream = await opener(upgrade)
    upgrade.stream = stream
    try:
        stream.write(request(path, body))
        async with asyncio.timeout(ANSWER_SECONDS):
            await upgrade.begun
    except BaseException:
        stream.close()
        raise
    return stream


HEAD_LIMIT_BYTES = 64 << 10
_STDOUT, _STDERR, _SYSTEM_ERROR = 1, 2, 3
_FRAME_HEAD_BYTES = 8
# A command that cannot be started is told of on its own stdout. Seen on Docker 20.10.
_ENGINE_SPEAKS = b"OCI runtime exec failed"


def request(path: str, body: Mapping[str, object] | None) -> bytes:
    """Return the bytes that ask the engine to turn this connection into a stream."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: docker\r\nUser-Agent: kernelbridge\r\nContent-Type: application/json\r\n"
        f"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode("ascii") + content


class UpgradeError(Exception):
    """The engine answered with an error instead of a stream."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, kw_only=True)
class Head:
    """The engine's answer up to the empty line, and the first bytes after it."""

    status: int
    headers: Mapping[str, str]
    rest: bytes

    @property
    def is_upgraded(self) -> bool:
        """Whether `rest` is already the stream. Old engines answer 200 and upgrade all the same."""
        return self.status == 101 or (
            self.status == 200 and "docker.raw-stream" in self.headers.get("content-type", "")
        )


class HeadReader:
    """Collect the engine's answer, which may come in any pieces."""

    def __init__(self) -> None:
        # All bytes so far, until the empty line was seen.
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Head | None:
        """Take the next bytes; None until the head is complete.

        Raises: UpgradeError when this is no HTTP.
        """
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_LIMIT_BYTES:
                raise UpgradeError(0, "its answer is no HTTP")
            return None
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not re.fullmatch("[0-9]{3}", words[1]):
            raise UpgradeError(0, "its answer is no HTTP")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return Head(status=int(words[1]), headers=headers, rest=bytes(self._buffer[end + 4 :]))


def error_message(body: bytes) -> str:
    """Return the sentence in the body of an error answer, chunked or not."""
    begin, end = body.find(b"{"), body.rfind(b"}")
    try:
        answer = json.loads(body[begin : end + 1])
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace").strip()
    message = answer.get("message") if isinstance(answer, dict) else None
    return str(message or answer)


class FramingError(Exception):
    """The engine's own words came in place of the command's output, framed or bare."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text[:1000].decode("utf-8", "replace").strip())


class Demultiplexer:
    """Take the framing off a stream: 8 bytes (kind, 0, 0, 0, length big-endian) before each `length` bytes.

    One copy per byte at most; none where a whole chunk is inside one frame.
    """

    def __init__(self) -> None:
        # An incomplete frame head from the end of the last chunk.
        self._head = b""
        # Of the frame that we are in: its kind, and the bytes of it that are still to come.
        self._kind = _STDOUT
        self._left = 0
        # Whether nothing of stdout has come yet: only there an engine's own words can stand.
        self._is_first = True

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; give what of them is stdout and what is stderr.

        Raises: FramingError.
        """
        if self._left >= len(data) and self._kind == _STDOUT:
            self._left -= len(data)
            return data, b""
        if self._head:
            data = self._head + data
            self._head = b""
        stdout, stderr = self._take_apart(data)
        if self._is_first and stdout:
            self._is_first = False
            if stdout.startswith(_ENGINE_SPEAKS):
                raise FramingError(stdout)
        return stdout, stderr

    def _take_apart(self, data: bytes) -> tuple[bytes, bytes]:
        view = memoryview(data)
        pieces: tuple[list[memoryview], list[memoryview]] = ([], [])
        position, size = 0, len(data)
        while position < size:
            if not self._left:
                if size - position < _FRAME_HEAD_BYTES:
                    self._head = data[position:]
                    break
                self._kind = data[position]
                if self._kind > _SYSTEM_ERROR or data[position + 1 : position + 4] != b"\0\0\0":
                    raise FramingError(data[position:])
                self._left = int.from_bytes(view[position + 4 : position + 8], "big")
                position += _FRAME_HEAD_BYTES
            taken = min(self._left, size - position)
            pieces[self._kind >= _STDERR].append(view[position : position + taken])
            position += taken
            self._left -= taken
        stdout, stderr = pieces
        return b"".join(stdout), b"".join(stderr)
