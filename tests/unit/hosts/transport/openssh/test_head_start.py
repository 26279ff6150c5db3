"""openssh/head_start.py: the config is read and the port connected to before anybody can log in there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport.openssh import head_start
from kernelbridge.hosts.transport.openssh.head_start import HeadStart
from kernelbridge.hosts.transport.openssh.settings import Settings
from kernelbridge.hosts.transport.openssh.tokens import Around

AROUND = Around(home=Path(), database_home=Path(), user="ada", uid="1", machine="here", environ={})
LAB = Host(name="lab", ssh="ada@lab:2222")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(20)
        yield made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> dict[str, Any]:
    """What the ssh config says, which a test may change, and what it was asked about."""
    told: dict[str, Any] = {"hostname": ["127.0.0.1"], "port": [str(listener.getsockname()[1])]}

    async def read_settings(name: str, *, user: str | None, port: int | None, seconds: float) -> Settings:
        told["asked"] = (name, user, port)
        await asyncio.sleep(0)
        if "failure" in told:
            raise told["failure"]
        values = {key: value for key, value in told.items() if key != "asked"}
        return Settings(name=name, values=values, defaults={}, around=AROUND)

    monkeypatch.setattr(head_start, "read_settings", read_settings)
    return told


async def test_a_host_is_asked_about_by_its_address_and_connected_to(
    asked: dict[str, Any], listener: socket.socket
) -> None:
    early = HeadStart(LAB)
    settings = await early.settings()
    taken = await early.take_connection(settings)
    assert taken is not None
    with taken:
        theirs, address = listener.accept()
        with theirs:
            assert address == taken.getsockname()
    assert asked["asked"] == ("lab", "ada", 2222)
    assert await early.take_connection(settings) is None
    await early.aclose()


@pytest.mark.parametrize("keyword", ["proxycommand", "proxyjump", "bindaddress", "bindinterface"])
async def test_a_host_that_is_reached_in_another_way_is_not_connected_to(
    asked: dict[str, Any], listener: socket.socket, keyword: str
) -> None:
    asked[keyword] = ["x"]
    early = HeadStart(LAB)
    assert await early.take_connection(await early.settings()) is None
    await early.aclose()
    listener.settimeout(0)
    with pytest.raises(BlockingIOError):
        listener.accept()


async def test_a_port_where_nobody_listens_is_left_to_the_login(asked: dict[str, Any], listener: socket.socket) -> None:
    listener.close()
    early = HeadStart(LAB)
    assert await early.take_connection(await early.settings()) is None
    await early.aclose()


async def test_other_settings_get_no_connection(asked: dict[str, Any]) -> None:
    early = HeadStart(LAB)
    other = Settings(name="lab", values={}, defaults={}, around=AROUND)
    await early.settings()
    assert await early.take_connection(other) is None
    await early.aclose()


async def test_a_config_that_cannot_be_used_is_told_to_whoever_asks(asked: dict[str, Any]) -> None:
    asked["failure"] = ValueError("line 3: no")
    early = HeadStart(LAB)
    with pytest.raises(ValueError, match="line 3"):
        await early.settings()
    await early.aclose()


async def test_a_connection_that_nobody_takes_is_closed(asked: dict[str, Any], listener: socket.socket) -> None:
    early = HeadStart(LAB)
    await early.settings()
    theirs, _ = await asyncio.to_thread(listener.accept)
    await early.aclose()
    with theirs:
        theirs.settimeout(20)
        assert await asyncio.to_thread(theirs.recv, 1) == b""
    await early.aclose()
