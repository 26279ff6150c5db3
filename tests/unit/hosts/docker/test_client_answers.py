"""hosts/docker/client.py: what an engine may answer, and how much; docker-py is the real one, the engine is made up."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import pytest

from kernelbridge.errors import EngineFailed, KernelBridgeError
from kernelbridge.hosts.docker.client import ANSWER_BYTES
from kernelbridge.hosts.docker.engine import open_engine
from kernelbridge.hosts.transport.stream import Completed, LoginEntry, Receiver
from tests.made_hosts import LAB

VERSION = b'{"ApiVersion": "1.43", "Version": "24.0.7"}'
BOMB = gzip.compress(b" " * (200 << 20))


def answer(body: bytes, *headers: str) -> list[bytes]:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return [(head + "".join(f"{one}\r\n" for one in headers) + "\r\n").encode() + body]


def endless(begin: bytes, piece: bytes) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for one in filter(None, (begin,)):
        yield b"%x\r\n%b\r\n" % (len(one), one)
    yield from repeat(b"%x\r\n%b\r\n" % (len(piece), piece))


class Connection:
    """One connection to an engine that answers each request as the test says, until it is closed."""

    def __init__(self, receiver: Receiver, answer_of: Callable[[bytes], Any]) -> None:
        self._receiver = receiver
        self._answer_of = answer_of
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._may_speak = asyncio.Event()
        self._may_speak.set()

    def write(self, data: bytes | memoryview) -> None:
        if b" HTTP/1.1" in data:  # Else it is the body.
            self._task = asyncio.create_task(self._speak(bytes(data)))

    async def _speak(self, request: bytes) -> None:
        for piece in self._answer_of(request):
            await self._may_speak.wait()
            await asyncio.sleep(0)
            if self._is_closed:
                return
            self._receiver.data_received(piece)

    def unsent_bytes(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self._may_speak.clear()

    def resume_reading(self) -> None:
        self._may_speak.set()

    async def drain(self) -> None:
        return

    def write_eof(self) -> None:
        return

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._may_speak.set()
            asyncio.get_running_loop().call_soon(self._receiver.closed, None)


class Link:
    """A link to a host with this engine."""

    name = "lab"
    is_open = True
    shell_seconds = 0.0
    entry = LoginEntry()

    def __init__(self, **answers: Any) -> None:
        self._answers = {"version": answer(VERSION), **answers}
        socket = type("Socket", (), {"path": "/run/docker.sock", "exists": True, "is_writable": True})()
        self.facts: Any = type("Facts", (), {"usable_sockets": [socket], "sockets": [socket], "user": "ada"})()

    async def open_socket(self, path: str, receiver: Receiver) -> Connection:
        return Connection(receiver, self._answer_of)

    def _answer_of(self, request: bytes) -> Any:
        path = request.split(b" ", 2)[1].decode()
        return next(said() if callable(said) else said for part, said in self._answers.items() if part in path)

    async def look_again(self) -> Any:
        return self.facts

    async def ask_login_shell(self) -> bool:
        return False

    async def run(self, argv: Any, *, stdin: bytes = b"", seconds: float) -> Completed:
        return Completed(exit_code=1, stdout=b"", stderr=b"")


async def opened(**answers: Any) -> Any:
    return await open_engine(Link(**answers), LAB)  # type: ignore[arg-type]


WRONG = [b"", b"x", b"null", b"7", b'"x"', b"[1]", b"[[]]", b"{}", b"[" * 50_000, b"NaN", b"\xff", b'{"Volumes": 5}']


@pytest.mark.parametrize("body", [*WRONG, b"[]", b'{"ApiVersion": 1.43}', b'{"ApiVersion": "x"}'])
async def test_a_version_that_cannot_be_understood_is_that_engines_failure(body: bytes) -> None:
    with pytest.raises(EngineFailed, match=r"^lab: Docker could not"):
        await opened(version=answer(body))


@pytest.mark.parametrize("body", WRONG)
async def test_whatever_an_engine_answers_is_a_sentence_or_nothing(body: bytes) -> None:
    engine = await opened(**{"": answer(body)})
    calls = (
        engine.list("x"),
        engine.state("a"),
        engine.info(),
        engine.image("i"),
        engine.create("a", {}),
        engine.volumes.list("x"),
        engine.volumes.remove("x"),
        engine.exec_stream("a", ["true"], None),
        engine.logs("a", 5),
        engine.pull("i", lambda now: None),
    )
    async with engine:
        for call in calls:
            try:
                await call
            except KernelBridgeError as exc:
                assert exc.sentence.startswith("lab: ")
    await asyncio.sleep(0.01)


def row(name: str, state: str) -> bytes:
    return json.dumps([{"Id": "i", "Names": [f"/{name}"], "State": state}]).encode()


NOBODY = b'{"message": "No such container"}'
GONE = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(NOBODY),
    NOBODY,
)
DONE = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("state", ["running", "paused", "restarting"])
async def test_a_container_that_was_renamed_is_not_said_to_be_gone(state: str) -> None:
    said = {"containers/kernelbridge-k1": [GONE], "containers/json": answer(row("other", state))}
    async with await opened(**said) as engine:
        with pytest.raises(EngineFailed, match="runs on as other") as refused:
            await engine.remove("kernelbridge-k1")
    assert "`docker rm -f other`" in refused.value.remedy


@pytest.mark.parametrize("body", [b"[]", row("other", "exited"), row("kernelbridge-k1", "running")])
async def test_a_container_that_is_gone_is_removed(body: bytes) -> None:
    async with await opened(**{"containers/kernelbridge-k1": [GONE], "containers/json": answer(body)}) as engine:
        await engine.remove("kernelbridge-k1")


async def test_a_container_that_was_made_here_is_removed_by_its_id_whatever_its_name_is_by_now() -> None:
    removed: list[str] = []

    def done() -> list[bytes]:
        removed.append("abc123")
        return [DONE]

    said = {
        "containers/create": answer(b'{"Id": "abc123"}'),
        "containers/kernelbridge-k1": [GONE],
        "containers/abc123": done,
        "containers/json": answer(row("other", "running")),
    }
    async with await opened(**said) as engine:
        await engine.create("kernelbridge-k1", {"Image": "i"})
        await engine.remove("kernelbridge-k1")
        assert removed == ["abc123"]
        # The next of that name is another one.
        with pytest.raises(EngineFailed, match="renamed"):
            await engine.remove("kernelbridge-k1")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("list", lambda: endless(b"[{}", b",{}" * 20_000)),
        ("list", lambda: endless(b"", b" " * 60_000)),
        ("pull", lambda: endless(b"{", b" " * 60_000)),
        ("info", lambda: endless(b'{"a": "', b"x" * 60_000)),
        ("info", lambda: answer(BOMB, "Content-Encoding: gzip")),
    ],
    ids=["endless rows", "endless blanks", "an endless line of a pull", "an endless text", "a gzip bomb"],
)
async def test_an_answer_without_end_is_cut_off_before_it_fills_the_memory(call: str, said: Any) -> None:
    engine = await opened(**{"": said})
    calls = {"list": lambda: engine.list("x"), "pull": lambda: engine.pull("i", print), "info": lambda: engine.info()}
    tracemalloc.start()
    try:
        async with engine:
            with pytest.raises(KernelBridgeError, match=r"^lab: "):
                await asyncio.wait_for(calls[call](), 60)
        assert tracemalloc.get_traced_memory()[1] < 10 * ANSWER_BYTES
    finally:
        tracemalloc.stop()


async def test_many_answers_over_one_connection_are_not_counted_together() -> None:
    row = b'{"Id": "1", "Names": ["/a"], "Labels": {"a": "%b"}}' % (b"x" * (1 << 20))
    engine = await opened(**{"": answer(b"[" + row + b"]")})
    async with engine:
        for _ in range(12):
            assert len(await engine.list("x")) == 1
