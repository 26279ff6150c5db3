"""A container, and a client of its SSH server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import asyncssh
import pytest

from kernelbridge.cli.ssh import server
from tests.made_sessions import KEY, PYTHON, SECONDS, Container


@pytest.fixture
async def container() -> Container:
    return Container()


@pytest.fixture
async def client(container: Container) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A client that has no key and no password, and knows the host key alone."""
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve(ours, host_key=KEY, open_beside=container.open_beside, python=PYTHON))
    known = asyncssh.import_known_hosts(f"box {server.public_line(KEY)}\n")
    made = await asyncssh.connect(
        host="box", sock=theirs, known_hosts=known, config=None, username="anyone", client_keys=[], agent_path=None
    )
    yield made
    made.close()
    async with asyncio.timeout(SECONDS):
        await made.wait_closed()
        await serving
