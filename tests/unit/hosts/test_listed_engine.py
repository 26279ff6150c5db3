"""hosts/listed_engine.py: answers in any pieces, in their order; what is none ends the quick way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kernelbridge.hosts.listed_engine import EngineConnection
from kernelbridge.hosts.transport.stream import BeyondLink

WHOLE = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a": 11}'
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n["b",\r\n4\r\n "c"\r\n1\r\n]\r\n0\r\n\r\n'
REFUSED = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"


class Wire:
    """The stream below a connection: what goes out on it."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True


def connected() -> tuple[EngineConnection, Wire]:
    connection, wire = EngineConnection(), Wire()
    connection.attach(wire)  # type: ignore[arg-type]
    return connection, wire


async def asked(connection: EngineConnection, *paths: str) -> list[asyncio.Task[tuple[int, Any]]]:
    tasks = [asyncio.create_task(connection.ask("GET", path)) for path in paths]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_questions_go_out_at_once_and_get_their_answers_in_order(size: int) -> None:
    connection, wire = connected()
    tasks = await asked(connection, "/one", "/two", "/three")
    assert [line.split()[1] for line in wire.written.split(b"\r\n") if line.startswith(b"GET")] == [
        b"/one",
        b"/two",
        b"/three",
    ]
    answers = WHOLE + CHUNKED + REFUSED
    for at in range(0, len(answers), size):
        connection.data_received(answers[at : at + size])
    assert await asyncio.gather(*tasks) == [(200, {"a": 11}), (200, ["b", "c"]), (404, {})]


async def test_a_body_is_sent_whole_and_with_its_length() -> None:
    connection, wire = connected()
    task = asyncio.create_task(connection.ask("POST", "/exec", {"Cmd": ["ü"]}))
    await asyncio.sleep(0)
    head, _, body = bytes(wire.written).partition(b"\r\n\r\n")
    assert json.loads(body) == {"Cmd": ["ü"]}
    assert f"Content-Length: {len(body)}".encode() in head
    connection.data_received(WHOLE)
    await task


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{{{",
        b"HTTP/1.1 200 OK\r\n\r\nto the end",
    ],
    ids=["no HTTP", "no length", "no chunk", "no JSON", "no end"],
)
async def test_an_answer_that_is_none_ends_the_quick_way(answer: bytes) -> None:
    connection, _ = connected()
    (task,) = await asked(connection, "/one")
    connection.data_received(answer)
    with pytest.raises(BeyondLink):
        await task


async def test_an_answer_without_end_is_cut_off() -> None:
    connection, wire = connected()
    (task,) = await asked(connection, "/one")
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(9 << 20))
    with pytest.raises(BeyondLink):
        await task
    assert wire.is_closed


async def test_a_connection_that_ends_fails_all_that_wait() -> None:
    connection, _ = connected()
    tasks = await asked(connection, "/one", "/two")
    connection.closed(None)
    for task in tasks:
        with pytest.raises(BeyondLink):
            await task
