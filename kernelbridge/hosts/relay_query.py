"""Ask a relay one question, its status or its logs, without disturbing whoever holds the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kernelbridge.errors import ContainerFailed
from kernelbridge.hosts.backend import Backend, Workload
from kernelbridge.hosts.labels import container_name
from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import Hello, Status
from kernelbridge.protocol.json_object import parse_object

if TYPE_CHECKING:
    from kernelbridge.config.schema import Environment, Host  # loads pydantic

HELLO_SECONDS = 15.0

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class RelayAddress:
    """The address of a relay: of which kernel and image, on which host, how to reach what it runs in."""

    kernel: str
    host: str
    image: str
    python: str
    workload: Callable[[], Awaitable[Workload]]
    # Waits so many seconds, but not beyond a sleep of this machine.
    rest: Callable[[float], Coroutine[Any, Any, None]]


class _Answer:
    """Takes the answer to one question to a relay."""

    def __init__(self) -> None:
        self._decoder = frames.Decoder()
        self.given: asyncio.Future[frames.Buffer | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        if self.given.done():
            return
        try:
            batch = self._decoder.feed(data)
        except frames.WireError:
            # The engine's own words, in the place of output: no bridge ran.
            self.closed(None)
            return
        for frame in batch:
            if frame.kind == frames.ANSWER and not self.given.done():
                self.given.set_result(frame.payload)
            elif frame.kind == frames.BUSY:
                # Another kernel's, and it says no more than that.
                self.closed(None)

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        if not self.given.done():
            self.given.set_result(None)


async def ask_status(relay_address: RelayAddress) -> Status:
    """Return how a relay and its kernel do; the stream of its owner is not disturbed.

    Raises: ContainerFailed: no answer, or one that cannot be understood; and as Workload.attach().
    """
    return await _ask(relay_address, "status", Status.from_dict)


async def ask_log(relay_address: RelayAddress) -> str:
    """Return the last that a kernel process wrote to its own stdout and stderr. Raises: as ask_status()."""
    return await _ask(relay_address, "logs", _log_text)


def _log_text(said: dict[str, Any]) -> str:
    text = said.get("text")
    if not isinstance(text, str):
        raise frames.WireError("no text")
    return text


async def ask_output(relay_address: RelayAddress) -> str | None:
    """Return the output of cells that nobody has shown yet, which stays; None from a relay of an older version.

    Raises: as ask_status().
    """
    return await _ask(relay_address, "output", lambda said: _log_text(said) if "text" in said else None)


async def _ask(relay_address: RelayAddress, what: str, read: Callable[[dict[str, Any]], _T]) -> _T:
    answer = _Answer()
    stream = await (await relay_address.workload()).attach(answer)
    try:
        stream.write(Hello(kernel=relay_address.kernel, ask=what, version=frames.ASK_VERSION).frame())
        async with asyncio.timeout(HELLO_SECONDS):
            said = await answer.given
    except TimeoutError:
        said = None
    finally:
        stream.close()
    reason = "the relay does not answer"
    if said is not None:
        try:
            return read(parse_object(said))
        except frames.WireError as exc:
            reason = f"what its relay says cannot be understood: {exc}"
    raise ContainerFailed(host=relay_address.host, image=relay_address.image, reason=reason)


def relay_address(
    kernel_id: str,
    environment: Environment,
    host: Host,
    *,
    backend: Callable[[], Awaitable[Backend]],
    rest: Callable[[float], Coroutine[Any, Any, None]],
) -> RelayAddress:
    """Return where the relay of a kernel is."""

    async def workload() -> Workload:
        return (await backend()).workload(container_name(kernel_id), environment)

    return RelayAddress(
        kernel=kernel_id,
        host=host.name,
        image=environment.image,
        python=environment.python,
        workload=workload,
        rest=rest,
    )
