"""Where a relay is, who hears it, and one question to it that disturbs nobody. Staying joined to it: attachment.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kernelbridge.errors import EngineFailed, KernelBridgeError, LinkLost
from kernelbridge.gpu_errors import GpuTaken
from kernelbridge.host.answers import Exited, Missing, Over
from kernelbridge.host.site import Runtime
from kernelbridge.kernel_errors import ContainerFailed, ImageUnusable, KernelHeld
from kernelbridge.relay import lifetime, shipping, wire

HELLO_SECONDS = 15.0
# What a container's init ends with when the command is not there, or may not be run.
_NOT_EXECUTABLE = (126, 127)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a relay is: of which kernel and image, on which host, how to reach what it runs in."""

    kernel: str
    host: str
    image: str
    python: str
    runtime: Callable[[], Awaitable[Runtime]]
    # Waits so many seconds, but not beyond a sleep of this machine.
    rest: Callable[[float], Coroutine[Any, Any, None]]


class Listener(Protocol):
    """Who hears what comes from the relay. Called on the loop; must not block."""

    def delivered(self, packed: list[wire.Buffer]) -> None:
        """Messages of the kernel, each once and in order, still packed."""

    def told(self, event: dict[str, Any]) -> None:
        """An event of the relay: ready, exited, failed. All that was sent before it was delivered before it."""

    def joined(self, welcome: Mapping[str, Any]) -> None:
        """The stream is there, or there again; `welcome` is the relay's status (Relay.answer)."""

    def lost(self, error: LinkLost) -> None:
        """The stream is not there at the moment; it is being joined again."""

    def ended(self, how: Exited | Missing | Over) -> None:
        """The container has ended or is gone: the stream will not come back."""

    def tried(self, error: KernelBridgeError) -> None:
        """The stream could not be joined at this time."""

    def taken(self, error: KernelHeld) -> None:
        """Somebody else is joined to the relay now; nothing is tried any more."""

    @property
    def is_congested(self) -> bool:
        """Whether nothing more should be acknowledged for now."""


class LockMissing(Exception):
    """The relay found no folder to lock for a GPU: it is made, and the start tried again. Users never see it."""


async def check_running(runtime: Runtime, place: Place) -> None:
    """Raise why the relay has ended, if it has: ImageUnusable, GpuTaken, LockMissing, ContainerFailed and others."""
    state = await runtime.state()
    if isinstance(state, Over):
        raise state.explain(place.image)
    if isinstance(state, Exited) and state.code in _NOT_EXECUTABLE:
        raise ImageUnusable(image=place.image, lacks=f"`{place.python}`")
    if isinstance(state, Exited) and state.code == lifetime.EXIT_TAKEN:
        raise GpuTaken(host=place.host)
    if isinstance(state, Exited) and state.code == lifetime.EXIT_NO_LOCK:
        raise LockMissing
    if isinstance(state, Exited):
        log = ""
        # There is none of a container that is being removed.
        with contextlib.suppress(EngineFailed):
            log = (await runtime.logs(20)).strip()
        reason = f"{state}: {log.splitlines()[-1][:200]}" if log else str(state)
        raise ContainerFailed(host=place.host, image=place.image, reason=reason)
    if isinstance(state, Missing):
        raise ContainerFailed(host=place.host, image=place.image, reason=str(state))


class _Answer:
    """Takes the answer to one question to a relay."""

    def __init__(self) -> None:
        self._decoder = wire.Decoder()
        self.given: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        if self.given.done():
            return
        try:
            frames = self._decoder.feed(data)
        except wire.WireError:
            # As above: no bridge ran.
            self.closed(None)
            return
        for frame in frames:
            if frame.kind == wire.ANSWER and not self.given.done():
                self.given.set_result(json.loads(bytes(frame.payload)))

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        if not self.given.done():
            self.given.set_result(None)


async def ask(place: Place, what: str) -> dict[str, Any]:
    """Return a relay's answer, logs or status (Relay.answer); the stream of its owner is not disturbed."""
    answer = _Answer()
    stream = await (await place.runtime()).attach(answer)
    try:
        stream.write(shipping.hello(kernel=place.kernel, ask=what))
        async with asyncio.timeout(HELLO_SECONDS):
            said = await answer.given
    except TimeoutError:
        said = None
    finally:
        stream.close()
    if said is None:
        raise ContainerFailed(host=place.host, image=place.image, reason="the relay does not answer")
    return said
