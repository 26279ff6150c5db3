"""hosts/forwards/mux_stream.py: connections over one stream to a made container."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kernelbridge.hosts.forwards import mux_stream
from kernelbridge.hosts.forwards.mux_stream import NoForwarder, PortRefused, open_mux
from kernelbridge.protocol.port_mux import NO_FORWARDER
from tests.made_forwards import FORWARDER, MadeContainer, echo, program


@pytest.fixture
async def container() -> AsyncIterator[MadeContainer]:
    made = MadeContainer()
    yield made
    await made.aclose()


async def test_a_connection_gives_back_what_the_program_answers_and_ends_with_it(container: MadeContainer) -> None:
    async with program(echo) as port:
        mux = await open_mux(await container.workload(), [port])
        stream = await mux.connect(port)
        await stream.write(b"hello")
        assert await stream.read() == b"hello"
        stream.write_eof()
        assert await stream.read() == b""
        assert repr(stream) == f"<PortStream {stream.number} ended>"
        stream.close()
        mux.close()


async def test_more_than_a_window_comes_through_both_ways(container: MadeContainer) -> None:
    async with program(echo) as port:
        mux = await open_mux(await container.workload(), [port])
        stream = await mux.connect(port)
        size = 3_000_000
        writing = asyncio.create_task(stream.write(b"x" * size))
        got = 0
        while got < size:
            got += len(await stream.read())
        await writing
        assert got == size
        mux.close()


async def test_a_port_that_is_not_allowed_is_refused_and_the_stream_goes_on(container: MadeContainer) -> None:
    async with program(echo) as port:
        mux = await open_mux(await container.workload(), [port])
        with pytest.raises(PortRefused, match="port 1 is not forwarded"):
            await mux.connect(1)
        assert await mux.connect(port)
        assert repr(mux) == "<MuxStream 1 connections>"
        mux.close()


async def test_connections_break_with_the_stream_and_no_more_can_be_had(container: MadeContainer) -> None:
    async with program(echo) as port:
        mux = await open_mux(await container.workload(), [port])
        stream = await mux.connect(port)
        container.cut()
        with pytest.raises(ConnectionResetError):
            await stream.read()
        with pytest.raises(ConnectionResetError):
            await stream.write(b"x")
        with pytest.raises(ConnectionResetError):
            await mux.connect(port)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (NO_FORWARDER.decode(), NoForwarder),
        ("HTTP/1.1 200 OK\\r\\n\\r\\n", ConnectionResetError),
        ("", ConnectionResetError),
    ],
)
async def test_what_is_no_forwarder_ends_the_stream(container: MadeContainer, said: str, told: type[Exception]) -> None:
    container.program = f"import sys; sys.stdout.write({said!r}.encode().decode('unicode_escape'))"
    mux = await open_mux(await container.workload(), [1])
    with pytest.raises(told):
        await mux.connect(1)


async def test_a_stream_that_says_nothing_or_that_nobody_uses_is_ended(
    container: MadeContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux_stream, "MUX_PING_SECONDS", 0.02)
    monkeypatch.setattr(mux_stream, "MUX_SILENT_SECONDS", 0.1)
    container.program = "import time; time.sleep(60)"
    silent = await open_mux(await container.workload(), [1])
    with pytest.raises(ConnectionResetError):
        await silent.connect(1)
    monkeypatch.setattr(mux_stream, "MUX_SILENT_SECONDS", 60)
    monkeypatch.setattr(mux_stream, "IDLE_SECONDS", 0.1)
    container.program = FORWARDER
    unused = await open_mux(await container.workload(), [1])
    await asyncio.wait_for(container.streams[-1].task, 20)
    assert unused.ended is not None
