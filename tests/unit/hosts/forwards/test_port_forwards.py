"""hosts/forwards/port_forwards.py: listeners of this machine for ports of a made container."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

import pytest

from kernelbridge.config.schema import Forward
from kernelbridge.errors import ForwardFailed
from kernelbridge.hosts.backend import Workload
from kernelbridge.hosts.forwards import port_forwards
from kernelbridge.hosts.forwards.mux_stream import MuxStream, PortRefused, open_mux
from kernelbridge.hosts.forwards.port_forwards import PortForwards, bound
from kernelbridge.protocol.port_mux import NO_FORWARDER
from tests.clients.ports import free_port
from tests.made_forwards import MadeContainer, echo, program

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


@dataclass
class Scene:
    """A container and its forwards; `program` is the port of a web program in it."""

    container: MadeContainer
    forwards: PortForwards
    heads: list[bytes]
    program: int
    # What the next connection's login is taken for.
    is_ours: bool = True

    def listen(self, *, raw: bool = False, there: int = 0) -> int:
        (made,) = self.forwards.listen([Forward(here=free_port(), there=there or self.program, is_raw=raw)])
        return made.here

    async def said(self, port: int, words: bytes) -> bytes:
        """All that comes back from a port."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(words)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ANSWER)
        writer.close()

    container = MadeContainer()
    async with program(serve) as port:
        made = Scene(container, PortForwards("k1", container.workload), heads, port)
        made.forwards = PortForwards("k1", container.workload, is_allowed=lambda own, peer: made.is_ours)
        yield made
        await made.forwards.aclose()
        await container.aclose()


def request(host: str = "localhost", *fields: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ["GET /x HTTP/1.1", f"Host: {host}", *fields, ""]).encode()


async def test_a_request_reaches_the_container_and_its_answer_comes_back(scene: Scene) -> None:
    port = scene.listen()
    assert scene.container.streams == []  # Nothing is opened before somebody asks.
    assert await scene.said(port, request("localhost", "Cookie: _xsrf=1; a=b")) == ANSWER
    assert scene.heads == [request("localhost", "Cookie: a=b")]
    assert len(scene.container.streams) == 1
    assert repr(scene.forwards).startswith(f"<PortForwards of k1: {port} to {scene.program}; ")
    assert scene.forwards.port_of(scene.program) == port
    assert scene.forwards.port_of(1) is None


async def test_a_foreign_request_is_answered_here_and_the_container_hears_nothing(scene: Scene) -> None:
    port = scene.listen()
    assert (await scene.said(port, request("evil.example"))).startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert (await scene.said(port, b"SSH-2.0\r\n\r\n")).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert scene.container.streams == []


async def test_another_login_gets_nothing(scene: Scene) -> None:
    port, scene.is_ours = scene.listen(), False
    assert await scene.said(port, request()) == b""
    assert scene.container.streams == []


async def test_a_raw_port_carries_any_bytes_and_both_ends_end_by_themselves(scene: Scene) -> None:
    async with program(echo) as there:
        port = scene.listen(raw=True, there=there)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\0\1no HTTP\n")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 20) == b"\0\1no HTTP\n"
        writer.close()
        assert scene.forwards.port_of(there) is None, "a raw port is no page"
        (one,) = scene.forwards.ports
        assert one.address == f"127.0.0.1:{port}"


async def test_a_raw_connection_that_the_program_ends_ends_here_though_the_client_keeps_its_side_open(
    scene: Scene,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(100))[::-1])
        writer.close()

    async with program(serve) as there:
        assert await scene.said(scene.listen(raw=True, there=there), b"\0\1raw") == b"war\1\0"


async def test_a_large_answer_comes_whole(scene: Scene) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 5_000_000)
        writer.close()

    async with program(serve) as there:
        assert (await scene.said(scene.listen(there=there), request())).count(b"x") == 5_000_000


async def test_a_web_socket_goes_both_ways_after_the_answer(scene: Scene) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        await echo(reader, writer)

    async with program(serve) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.listen(there=there))
        writer.write(request("localhost", "Connection: Upgrade", "Upgrade: websocket") + b"\x81early")
        assert await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(6) == b"\x81early"
        writer.write(b"\x81later")
        assert await reader.readexactly(6) == b"\x81later"
        writer.close()


async def test_a_program_that_is_not_there_is_told_as_a_page(scene: Scene) -> None:
    there = free_port()
    answer = await scene.said(scene.listen(there=there), request())
    assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert answer.endswith(f"k1: port {there}: nothing listens there\n".encode())


async def test_a_stream_that_was_opened_for_other_ports_is_opened_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ports have changed while it was opened."""
    port, other = scene.listen(), Forward(here=free_port(), there=1)
    opened: list[MuxStream] = []

    async def open_slowly(workload: Workload, ports: Collection[int]) -> MuxStream:
        opened.append(await open_mux(workload, ports))
        scene.forwards.listen([scene.forwards.ports[0].asked, other])
        return opened[-1]

    monkeypatch.setattr(port_forwards, "open_mux", open_slowly)
    assert await scene.said(port, request()) == ANSWER
    assert [one.ports for one in opened] == [{scene.program}, {scene.program, 1}]
    assert opened[0].ended is not None


async def test_after_a_cut_the_next_connection_opens_a_new_stream(scene: Scene) -> None:
    port = scene.listen()
    assert await scene.said(port, request()) == ANSWER
    scene.container.cut()
    assert await scene.said(port, request()) == ANSWER
    assert len(scene.container.streams) == 2


async def test_a_connection_waits_for_a_link_that_is_away(scene: Scene) -> None:
    port, scene.container.is_away = scene.listen(), True
    asked = asyncio.create_task(scene.said(port, request()))
    await asyncio.sleep(0.2)
    assert not asked.done()
    scene.container.is_away = False
    assert await asked == ANSWER


async def test_a_link_that_stays_away_is_told(scene: Scene) -> None:
    scene.container.is_away = True
    with pytest.raises(ForwardFailed, match="does not answer"):
        await scene.forwards.connect(scene.program, seconds=0.3)


async def test_a_relay_that_forwards_nothing_says_to_restart_the_kernel(scene: Scene) -> None:
    scene.container.program = f"print({NO_FORWARDER.decode().strip()!r})"
    with pytest.raises(ForwardFailed, match="its relay forwards no ports") as failed:
        await scene.forwards.connect(scene.program)
    assert "Restart the kernel" in failed.value.remedy


async def test_a_container_has_ended_where_that_is_known(scene: Scene) -> None:
    assert not await scene.forwards.has_ended()
    scene.container.is_gone = True
    assert await scene.forwards.has_ended()
    scene.container.is_away = True
    assert not await scene.forwards.has_ended(), "unknown is not gone"


async def test_a_port_that_is_taken_gives_way_to_the_next_free_one(scene: Scene) -> None:
    with bound(free_port()) as taken:
        asked = Forward(here=taken.getsockname()[1], there=scene.program)
        (made,) = scene.forwards.listen([asked])
        assert made.is_elsewhere
        assert asked.here < made.here <= asked.here + port_forwards.NEXT_PORTS or asked.here > 65000
        assert await scene.said(made.here, request()) == ANSWER


async def test_a_port_that_is_free_is_not_taken_by_one_that_looks_for_a_next_one(scene: Scene) -> None:
    first = free_port()
    second = free_port()
    with bound(first):
        opened = scene.forwards.listen([Forward(here=first, there=1), Forward(here=second, there=2)])
    assert [one.is_elsewhere for one in opened] == [True, False]


def test_without_a_free_port_behind_any_will_do() -> None:
    with bound(65535) as first, bound(65535) as second:
        assert second.getsockname()[1] != first.getsockname()[1]


async def test_the_listeners_are_those_that_are_wanted_now(scene: Scene) -> None:
    kept, gone, fresh = (Forward(here=free_port(), there=there) for there in (scene.program, 2, 3))
    scene.forwards.listen([kept, gone])
    assert await scene.said(kept.here, request()) == ANSWER
    assert [one.asked for one in scene.forwards.listen([kept, fresh])] == [fresh]
    assert [one.asked for one in scene.forwards.ports] == [kept, fresh]
    with pytest.raises(ConnectionRefusedError):
        await scene.said(gone.here, b"")
    # The ports that the container allows are others now.
    assert await scene.said(kept.here, request()) == ANSWER
    assert len(scene.container.streams) == 2


async def test_at_the_end_nothing_listens_and_connections_end(scene: Scene) -> None:
    async with program(echo) as there:
        port = scene.listen(raw=True, there=there)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        await scene.forwards.aclose()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
    with pytest.raises((ForwardFailed, PortRefused)):
        await scene.forwards.connect(there, seconds=0.2)
