"""Ask a host's engine what a listing needs, and nothing else, without docker-py, which takes long to load.

All questions go out on one connection, each as soon as it is known; the engine answers them in their order.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import quote, urlencode

from kernelbridge.hosts import bootstrap
from kernelbridge.hosts.docker.hijack import HeadReader, UpgradeError, open_upgraded
from kernelbridge.hosts.docker.responses import (
    VolumeFacts,
    parse_containers,
    parse_info,
    parse_state,
    parse_version,
    parse_volumes,
    read_id,
)
from kernelbridge.hosts.transport.stream import AnyLink, BeyondLink, Receiver, Stream

if TYPE_CHECKING:
    from kernelbridge.config.schema import Environment  # loads pydantic
    from kernelbridge.hosts.backend import ContainerFacts, ContainerState
    from kernelbridge.hosts.gpus.nvidia_smi import Inventory

_T = TypeVar("_T")
JSON_SECONDS: Final = 20.0
_MOST_BYTES: Final = 8 << 20
_END: Final = b"\r\n"


class EngineConnection:
    """One connection to an engine, for questions in JSON; a Receiver of its stream."""

    def __init__(self) -> None:
        # Set by attach().
        self._stream: Stream
        self._buffer = bytearray()
        # Of the questions that are out, the first first.
        self._waiting: deque[asyncio.Future[tuple[int, bytes]]] = deque()

    def attach(self, stream: Stream) -> None:
        """Take the stream that questions go out on; before any do."""
        self._stream = stream

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Return the status and the JSON of an answer. Raises: BeyondLink."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: docker\r\nUser-Agent: kernelbridge\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._stream.write(head.encode("ascii") + content)
        try:
            async with asyncio.timeout(JSON_SECONDS):
                status, text = await answer
            return status, json.loads(text)
        except TimeoutError as exc:
            raise BeyondLink("the engine does not answer in time") from exc
        except (ValueError, RecursionError) as exc:
            raise BeyondLink("the engine's answer is no JSON") from exc

    def data_received(self, data: bytes) -> None:
        """Called by the stream."""
        self._buffer += data
        try:
            while self._waiting and (found := _cut_answer(bytes(self._buffer))) is not None:
                status, body, size = found
                del self._buffer[:size]
                answer = self._waiting.popleft()
                if not answer.done():
                    answer.set_result((status, body))
            if len(self._buffer) > _MOST_BYTES:
                raise UpgradeError(0, "its answer is too long")
        except (UpgradeError, ValueError) as exc:
            self.closed(exc)
            self._stream.close()

    def closed(self, exc: Exception | None) -> None:
        """Called once by the stream."""
        waiting, self._waiting = self._waiting, deque()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(BeyondLink(f"the engine has closed the connection: {exc}"))


def _cut_answer(data: bytes) -> tuple[int, bytes, int] | None:
    """Return the status and body of the first answer, and how many bytes it is; None until it is whole.

    Raises: UpgradeError, ValueError: it is none.
    """
    head = HeadReader().feed(data)
    if head is None:
        return None
    begin = len(data) - len(head.rest)
    if "chunked" in head.headers.get("transfer-encoding", ""):
        found = _cut_chunks(data, begin)
        return None if found is None else (head.status, *found)
    end = begin + int(head.headers.get("content-length", ""))
    return (head.status, data[begin:end], end) if len(data) >= end else None


def _cut_chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    """Return a body that comes in pieces, each after its size, and where it ends; None until it is whole."""
    pieces: list[bytes] = []
    while (line_end := data.find(_END, at)) >= 0:
        size = int(data[at:line_end].partition(b";")[0], 16)
        begin = line_end + len(_END)
        at = begin + size + len(_END)
        if len(data) < at:
            return None
        if not size:
            return b"".join(pieces), at
        pieces.append(data[begin : begin + size])
    return None


class ListedEngine:
    """One engine as a Backend that can be listed and asked; what would change something raises BeyondLink."""

    def __init__(self, link: AnyLink, socket: str, *, api_version: str) -> None:
        """`socket` is its path on the host, `api_version` what it has spoken the last time."""
        self.link = link
        self.socket = socket
        self.api_version = api_version
        self._connection = EngineConnection()
        self.volumes = ListedVolumes(self)

    def __repr__(self) -> str:
        return f"<ListedEngine {self.link.name} API {self.api_version}>"

    async def connect(self) -> None:
        """Connect to the engine; it is to be done before anything is asked. Raises: BeyondLink."""
        self._connection.attach(await self.link.open_socket(self.socket, self._connection))

    async def check_version(self) -> None:
        """Return if the engine speaks the version that it is asked in. Raises: BeyondLink."""
        status, answer = await self._connection.ask("GET", "/version")
        if status != 200 or _parsed(parse_version, answer)["ApiVersion"] != self.api_version:
            raise BeyondLink("it is another engine by now")

    @cached_property
    def gpus(self) -> Inventory:
        """The host's GPUs."""
        from kernelbridge.hosts.gpus.nvidia_smi import Inventory  # loads an XML parser, which only `gpus` needs

        return Inventory(self.link)

    async def read(self, path: str, parse: Callable[[Any], _T], **filters: Sequence[str]) -> _T:
        """Return what an answer says. Raises: BeyondLink."""
        words = urlencode({**({"all": "1"} if "containers" in path else {}), "filters": json.dumps(filters)})
        status, answer = await self._ask("GET", f"{path}?{words}" if filters else path)
        if status != 200:
            raise BeyondLink(f"the engine says {status}")
        return _parsed(parse, answer)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        return await self._connection.ask(method, f"/v{self.api_version}{path}", body)

    async def list(self, label: str) -> list[ContainerFacts]:
        """See Backend."""
        return await self.read("/containers/json", parse_containers, label=[label])

    async def info(self) -> Mapping[str, Any]:
        """Return the engine's GET /info, as it is."""
        return await self.read("/info", parse_info)

    def workload(self, name: str, environment: Environment) -> ListedContainer:
        """See Backend."""
        return ListedContainer(self, name, environment.python)

    async def state(self, name: str) -> ContainerState:
        """See Workload."""
        return await self.read(f"/containers/{quote(name, safe='')}/json", parse_state)

    async def exec_stream(self, name: str, argv: Sequence[str], receiver: Receiver) -> Stream:
        """Run a command in a running container, joined to its stdin and stdout. Raises: BeyondLink."""
        streams = {f"Attach{one}": True for one in ("Stdin", "Stdout", "Stderr")}
        wish = {"Cmd": list(argv), "Tty": False, **streams}
        status, answer = await self._ask("POST", f"/containers/{quote(name, safe='')}/exec", wish)
        if status != 201:
            raise BeyondLink(f"the engine says {status}")
        path = f"/v{self.api_version}/exec/{quote(_parsed(read_id, answer), safe='')}/start"
        body = {"Detach": False, "Tty": False}

        async def opener(receiver: Receiver) -> Stream:
            return await self.link.open_socket(self.socket, receiver)

        return await open_upgraded(opener, path, body=body, receiver=receiver, explain=BeyondLink)


class ListedVolumes:
    """The volumes of an engine, to be listed."""

    def __init__(self, engine: ListedEngine) -> None:
        self._engine = engine

    async def list(self, label: str) -> list[VolumeFacts]:
        """Return all volumes with this label (`key` or `key=value`)."""
        return await self._engine.read("/volumes", parse_volumes, label=[label])


class ListedContainer:
    """A relay in a container, to be asked."""

    def __init__(self, engine: ListedEngine, name: str, python: str) -> None:
        self._engine = engine
        self.name = name
        self.python = python

    async def attach(self, receiver: Receiver) -> Stream:
        """See Workload."""
        return await self.open_command(bootstrap.bridge_argv(self.python), receiver)

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        """See Workload."""
        return await self._engine.exec_stream(self.name, argv, receiver)

    async def state(self) -> ContainerState:
        """See Workload."""
        return await self._engine.state(self.name)

    async def logs(self, tail: int) -> str:
        """See Workload. Raises: BeyondLink, always."""
        self._refuse()

    async def architectures(self, image: str) -> tuple[str, str]:
        """See Workload. Raises: BeyondLink, always."""
        self._refuse()

    async def stop(self) -> None:
        """See Workload. Raises: BeyondLink, always."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BeyondLink("a listing does no more than to look")


def _parsed(parse: Callable[[Any], _T], answer: object) -> _T:
    try:
        return parse(answer)
    except ValueError as exc:
        raise BeyondLink(str(exc)) from exc
