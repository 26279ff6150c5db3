"""The engine's hijacked connections: an HTTP request that becomes a stream of bytes, and the framing on it. Pure.

Sent and received by hijack.py. The framing: 8 bytes (kind, 0, 0, 0, length big-endian), then `length` bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

HEAD_LIMIT_BYTES = 64 << 10
_STDOUT, _STDERR, _SYSTEM_ERROR = 1, 2, 3
_FRAME_HEAD_BYTES = 8
# A command that cannot be started is told of on its own stdout. Seen on Docker 20.10.
_ENGINE_SPEAKS = b"OCI runtime exec failed"


def request(path: str, body: Mapping[str, object] | None) -> bytes:
    """The bytes that ask the engine to turn this connection into a stream."""
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
    """Collects the engine's answer, which may come in any pieces."""

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
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise UpgradeError(0, "its answer is no HTTP")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return Head(status=int(words[1]), headers=headers, rest=bytes(self._buffer[end + 4 :]))


def error_message(body: bytes) -> str:
    """The sentence in the body of an error answer, chunked or not."""
    begin, end = body.find(b"{"), body.rfind(b"}")
    try:
        answer = json.loads(body[begin : end + 1])
    except ValueError:
        return body.decode("utf-8", "replace").strip()
    message = answer.get("message") if isinstance(answer, dict) else None
    return str(message or answer)


class FramingError(Exception):
    """What comes is not the command's output but the engine's own words, framed or bare."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text[:1000].decode("utf-8", "replace").strip())


class Demultiplexer:
    """Takes the framing off a stream. One copy per byte at most; none where a whole chunk is inside one frame."""

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
