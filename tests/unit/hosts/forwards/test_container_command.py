"""hosts/forwards/container_command.py: a command in a made container, as this machine sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kernelbridge.hosts.forwards.container_command import ContainerCommand, run_command
from tests.made_forwards import MadeContainer


@pytest.fixture
async def container() -> AsyncIterator[MadeContainer]:
    made = MadeContainer()
    yield made
    await made.aclose()


async def test_a_command_that_ends_says_its_code_and_its_last_words(container: MadeContainer) -> None:
    words = ["{python}", "-c", "print('first'); print('no\\x1b module'); exit(3)"]
    command = await run_command(await container.workload(), words, port=1, folder="")
    assert await asyncio.wait_for(command.port, 20) > 0
    assert await asyncio.wait_for(command.ended, 20) == 3
    assert command.last_words == "first no? module"
    assert repr(command) == "<ContainerCommand ended>"


async def test_a_command_that_is_closed_ends_and_has_no_code(container: MadeContainer) -> None:
    words = ["{python}", "-c", "import time; time.sleep(60)"]
    command = await run_command(await container.workload(), words, port=1, folder="")
    await asyncio.wait_for(command.port, 20)
    command.close()
    assert await asyncio.wait_for(command.ended, 20) is None


async def test_what_says_no_port_has_none_and_its_words_are_kept() -> None:
    command = ContainerCommand()
    command.data_received(b"python3: not found\n")
    command.closed(None)
    assert command.port.cancelled()
    assert (await command.ended, command.last_words) == (None, "python3: not found")
