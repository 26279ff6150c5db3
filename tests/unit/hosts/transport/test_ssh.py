"""hosts/transport/ssh.py: what is made of channels that close, or in which nothing begins. The rest: tests/real."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import asyncssh
import pytest

from kernelbridge.config.schema import Host
from kernelbridge.errors import HostUnreachable, LinkLost, SshFailed
from kernelbridge.hosts.transport import ssh
from kernelbridge.hosts.transport.dial import Login
from kernelbridge.hosts.transport.ssh import Link
from kernelbridge.hosts.transport.stream import Collector
from tests.made_clock import MadeClock


@dataclass
class Channel:
    """A session channel; what its other end does with it is the test's."""

    session: Any
    answer: Callable[[Channel, bool], None]
    written: bytes = b""

    def write(self, data: bytes) -> None:
        self.written += data
        self.answer(self, False)

    def write_eof(self) -> None:
        self.answer(self, True)

    def set_write_buffer_limits(self, *, high: int) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        return

    def close(self, words: str = "", code: int | None = None) -> None:
        """The other end closes it, with or without words and an exit code."""
        if words:
            self.session.data_received(words.encode(), None)
        if code is not None:
            self.session.exit_status_received(code)
        self.session.connection_lost(None)

    def run(self) -> None:
        """The shell reads its line; the command says nothing and ends well."""
        words = "".join(shlex.split(self.written.decode())[5:])
        script = re.sub(r"\\0([0-7]{3})", lambda found: chr(int(found[1], 8)), words)
        found = re.search(r"printf '%s%s<' (\w+) (\w+)", script)
        assert found is not None
        for datatype in (None, 1):
            self.session.data_received(f"hello {found[1]}{found[2]}<{found[1]}{found[2]}>0;".encode(), datatype)


@dataclass
class Connection:
    """An SSH connection; `ways` are what becomes of its channels, the last of all that follow."""

    ways: list[Callable[[Channel, bool], None]]
    opened: list[Channel] = field(default_factory=list)
    has_closed: bool = False

    async def create_session(self, factory: Callable[[], Any], line: str, **_: Any) -> None:
        await asyncio.sleep(0)
        if self.has_closed:
            raise asyncssh.ConnectionLost("gone")
        channel = Channel(factory(), self.ways.pop(0) if len(self.ways) > 1 else self.ways[0])
        self.opened.append(channel)
        channel.session.connection_made(channel)

    def is_closed(self) -> bool:
        return self.has_closed


def runs(channel: Channel, is_eof: bool) -> None:
    if not is_eof:
        channel.run()


def closes(words: str = "", code: int | None = None) -> Callable[[Channel, bool], None]:
    return lambda channel, is_eof: None if is_eof else channel.close(words, code)


def reads_all(channel: Channel, is_eof: bool) -> None:
    if is_eof:
        channel.run()


def does_nothing(channel: Channel, is_eof: bool) -> None:
    return


def link(*ways: Callable[[Channel, bool], None]) -> tuple[Link, Connection]:
    connection = Connection(list(ways))
    hop = type("Hop", (), {"user": "ada", "shown": "lab"})()
    login = Login(connection=cast("Any", connection), jumps=(), hop=hop)

    async def log_in_again() -> Login:
        raise AssertionError("nobody logs in again")

    made = Link("lab", login, host=Host(name="lab", ssh="lab"), log_in_again=log_in_again)
    made._has_run = True
    return made, connection


async def test_a_channel_that_closes_without_a_word_is_opened_once_more() -> None:
    made, connection = link(closes(), runs)
    assert (await made.run(["true"], seconds=5)).exit_code == 0
    assert len(connection.opened) == 2


async def test_a_host_that_closes_twice_without_a_word_refuses() -> None:
    made, connection = link(closes())
    with pytest.raises(SshFailed, match="runs no command for it, and it says nothing"):
        await made.run(["true"], seconds=5)
    assert len(connection.opened) == 2


@pytest.mark.parametrize(("words", "code"), [("Only git here", None), ("Only git here", 0), ("", 1)])
async def test_a_host_that_says_why_is_asked_once(words: str, code: int | None) -> None:
    made, connection = link(closes(words, code))
    with pytest.raises(SshFailed, match="runs no command for it"):
        await made.run(["true"], seconds=5)
    assert len(connection.opened) == 1


async def test_a_channel_that_closes_with_its_connection_is_a_lost_link() -> None:
    def closes_all(channel: Channel, is_eof: bool) -> None:
        if not is_eof:
            channel.close()
            connection.has_closed = True

    made, connection = link(closes_all)
    with pytest.raises(LinkLost):
        await made.run(["true"], seconds=5)
    assert len(connection.opened) == 1


async def test_a_shell_that_reads_all_before_it_runs_any_is_told_soon(clock: MadeClock) -> None:
    made, connection = link(reads_all)
    assert (await made.run(["true"], seconds=5)).exit_code == 0
    for opening in (made.open_command(["cat"], Collector()), made.run(["cat"], stdin=b"x" * 100_000, seconds=5)):
        began = clock.now
        with pytest.raises(SshFailed, match=r"a start-up file .* waits for the end") as caught:
            await opening
        assert "[ -t 0 ] && exec fish" in caught.value.remedy
        assert clock.now - began == pytest.approx(2 * ssh.STDIN_SECONDS)
    assert len(connection.opened) == 5


async def test_a_shell_that_is_only_slow_is_waited_for(clock: MadeClock) -> None:
    def slow(channel: Channel, is_eof: bool) -> None:
        if not is_eof:
            asyncio.get_running_loop().call_later(20, channel.run)

    made, _ = link(slow)
    made.shell_seconds = 18.0
    await made.open_command(["cat"], Collector())
    assert clock.now == 1020
    made.shell_seconds = 1.0
    await made.open_command(["cat"], Collector())
    made, _ = link(does_nothing)
    with pytest.raises(HostUnreachable, match="not ready in 60 s"):
        await made.open_command(["cat"], Collector())
