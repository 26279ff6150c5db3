"""Turns one connection to the engine into the stdin and stdout of a container or of a command in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from kernelbridge.host.dockerpy import Opener
from kernelbridge.host.stream import Receiver, Stream
from kernelbridge.host.upgrade import (
    HEAD_LIMIT_BYTES,
    Demultiplexer,
    FramingError,
    Head,
    HeadReader,
    UpgradeError,
    error_message,
    request,
)

log = logging.getLogger(__name__)

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
        if length is not None and length.isdigit() and len(self._body) >= int(length):
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
                log.debug("stderr: %s", line)
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
