"""fleet/boards.py: a TensorBoard made up for the test, in a made container."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.errors import BoardFailed, EngineDown
from kernelbridge.fleet.boards import Board, _BoardOutput
from kernelbridge.hosts.forwards.port_forwards import PortForwards, bound
from tests.clients.ports import free_port
from tests.made_forwards import MadeContainer

# Serves its own arguments.
STANDIN = """
import http.server, sys
port = int(sys.argv[-1].partition("=")[2])
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(repr(sys.argv[1:-1]).encode())
http.server.HTTPServer(("127.0.0.1", port), Page).serve_forever()
"""


@pytest.fixture
async def container(tmp_path: Path) -> AsyncIterator[MadeContainer]:
    package = tmp_path / "tensorboard"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(STANDIN)
    made = MadeContainer(tmp_path)
    made.environ["PYTHONPATH"] = str(tmp_path)
    yield made
    await made.aclose()


def board_of(container: MadeContainer, *, folder: str = "runs") -> Board:
    address: Any = SimpleNamespace(host="lab", workload=container.workload)
    return Board(PortForwards("k1", container.workload), address, folder=folder)


async def page(address: str) -> str:
    port = int(address.rstrip("/").rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer.decode()


async def test_a_board_is_there_when_it_answers_comes_back_after_a_cut_and_ends_with_its_user(
    container: MadeContainer,
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    board = board_of(container, folder="/logs; rm -rf /")
    # Taken, for the made container's ports are this machine's.
    with bound(free_port()) as taken:
        running = asyncio.create_task(board.run(taken.getsockname()[1], told.put_nowait))
        address = await asyncio.wait_for(told.get(), 30)
        shown = "['--logdir=/logs; rm -rf /', '--host=127.0.0.1']"
        assert (await page(address)).endswith(shown)
        assert repr(board) == "<Board of k1>"
        before = len(container.streams)
        container.cut()
        async with asyncio.timeout(30):
            again = ""
            while len(container.streams) < before + 2 or not again.endswith(shown):
                again = await page(address)
                assert again.endswith(shown) or "502 Bad Gateway" in again, "it begins anew"
        assert told.empty(), "the address is told once"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    with pytest.raises(ConnectionRefusedError):
        await page(address)


async def test_a_board_that_ends_by_itself_says_its_last_words(container: MadeContainer, tmp_path: Path) -> None:
    (tmp_path / "tensorboard" / "main.py").write_text("raise SystemExit('no such folder')")
    with pytest.raises(BoardFailed, match="no such folder"):
        await board_of(container).run(free_port(), print)


async def test_what_a_program_writes_is_no_port_unless_it_can_be_one() -> None:
    output = _BoardOutput()
    for written in (b"kernelbridge-port 0.", b"kernelbridge-port 99999."):
        output.take(1, written)
        assert not output.port.done()
        output._tail = b""
    output.take(1, b"kernelbridge-port 6006.")
    assert await output.port == 6006


async def test_without_a_port_here_it_is_told(container: MadeContainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: PortForwards, wanted: object) -> None:
        raise OSError("no port is free")

    monkeypatch.setattr(PortForwards, "listen", refused)
    with pytest.raises(BoardFailed, match="no port is free"):
        await board_of(container).run(free_port(), print)
    assert [task for task in asyncio.all_tasks() if "_answering" in repr(task)] == []


async def test_a_container_that_cannot_be_reached_at_first_is_told(container: MadeContainer) -> None:
    container.is_away = True
    with pytest.raises(EngineDown):
        await board_of(container).run(free_port(), print)
