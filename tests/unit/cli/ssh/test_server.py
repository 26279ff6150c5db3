"""cli/ssh/server.py: asyncssh's own client, over a socketpair, with commands that do as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from kernelbridge.cli.ssh import server
from kernelbridge.errors import CommandNotRun, LinkLost
from kernelbridge.hosts import bootstrap
from kernelbridge.kernel.command.terminal import CommandRequest
from kernelbridge.protocol.terminal import WindowSize
from kernelbridge.relay.beside.sftp_server import SftpServer
from tests.made_sessions import KEY, PYTHON, SECONDS, Container, MadeSession


async def whole(stream: Any) -> bytes:
    async with asyncio.timeout(SECONDS):
        data: bytes = await stream.read()
        return data


async def once(claim: Callable[[], bool]) -> None:
    """Return when something is so that nobody tells of."""
    for _ in range(SECONDS * 1000):
        if claim():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


async def started(client: asyncssh.SSHClientConnection, *words: Any, **facts: Any) -> Any:
    async with asyncio.timeout(SECONDS):
        return await client.create_process(*words, encoding=None, **facts)


async def ended(process: Any) -> tuple[bytes, bytes, Any]:
    async with asyncio.timeout(SECONDS):
        done = await process.wait()
        return done.stdout, done.stderr, done.exit_status


# -- the connection


async def test_a_client_is_not_asked_who_it_is_and_sees_the_key_that_was_given(
    client: asyncssh.SSHClientConnection,
) -> None:
    shown = client.get_server_host_key()
    assert shown is not None
    assert " ".join(shown.export_public_key().decode().split()[:2]) == server.public_line(KEY)


async def test_a_client_that_knows_another_key_does_not_come_in(container: Container) -> None:
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve(ours, host_key=KEY, open_beside=container.open_beside, python=PYTHON))
    known = asyncssh.import_known_hosts(f"box {server.public_line(server.new_host_key())}\n")
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await asyncssh.connect(host="box", sock=theirs, known_hosts=known, config=None, client_keys=[])
    await asyncio.wait_for(serving, SECONDS)
    assert container.requests == []


def test_each_key_is_another_one() -> None:
    assert server.public_line(KEY).split()[0] == "ssh-ed25519"
    assert server.public_line(KEY) != server.public_line(server.new_host_key())
    assert b"PRIVATE KEY" in KEY


# -- commands


async def test_a_command_has_both_outputs_and_its_exit_code(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, "echo $HOME; false")
    run = await container.next()
    assert run.request == CommandRequest(argv=("sh", "-c", "echo $HOME; false"), folder="~")
    run.out(b"out \xff")
    run.err(b"err")
    run.out(b" more")
    run.end(3)
    assert await ended(process) == (b"out \xff more", b"err", 3)
    await run.until(lambda: run.log == ["closed"])


async def test_what_a_signal_has_ended_says_which(client: asyncssh.SSHClientConnection, container: Container) -> None:
    process = await started(client, "sleep 60")
    run = await container.next()
    process.send_signal("TERM")
    process.send_signal("WINCH")  # None that a command is sent.
    process.send_break(100)
    await run.until(lambda: "signal 2" in run.log)
    assert run.log == ["signal 15", "signal 2"]
    run.end(0, signal=15)
    await ended(process)
    assert process.exit_signal[0] == "TERM"


@pytest.mark.parametrize("code", [126, 127, 128, 128 + 5, 128 + 15, 255])
async def test_an_exit_code_is_told_as_it_is(
    client: asyncssh.SSHClientConnection, container: Container, code: int
) -> None:
    process = await started(client, "x")
    (await container.next()).end(code)
    assert (await ended(process))[2] == code


async def test_input_comes_with_its_end_and_output_goes_on_after_it(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, "cat")
    run = await container.next()
    process.stdin.write(b"one\n\0")
    process.stdin.write(b"\xfftwo")
    process.stdin.write_eof()
    await run.until(lambda: run.log == ["end of input"])
    assert run.input == b"one\n\0\xfftwo"
    run.out(b"late")
    run.end(0)
    assert await ended(process) == (b"late", b"", 0)


async def test_input_that_comes_before_the_command_runs_waits_for_it(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    container.may_start.clear()
    process = await started(client, "cat")
    process.stdin.write(b"early")
    process.stdin.write_eof()
    container.may_start.set()
    run = await container.next()
    await run.until(lambda: run.log == ["end of input"])
    assert run.input == b"early"
    run.end(0)
    await ended(process)


async def test_variables_come_that_a_program_can_be_given(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, "env", env={b"A": b"1=\xc3\xa4", b"B\0": b"2", b"C": b"\0", b"": b"3", b"D=": b"4"})
    run = await container.next()
    assert dict(run.request.env) == {"A": "1=ä"}
    run.end(0)
    await ended(process)


async def test_a_command_that_cannot_be_run_says_why(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    container.failure = CommandNotRun(host="lab", reason="no such folder")
    out, err, code = await ended(await started(client, "true"))
    assert (out, code) == (b"", 255)
    assert err == f"kernelbridge: {container.failure}\r\n".encode()


async def test_a_fault_of_ours_ends_the_session_too(
    client: asyncssh.SSHClientConnection, container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    container.failure = ZeroDivisionError("oops")
    _, err, code = await ended(await started(client, "true"))
    assert (err, code) == (b"kernelbridge: kernelbridge has a bug here: ZeroDivisionError: oops\r\n", 255)
    assert "a session failed" in caplog.text


async def test_a_line_that_is_lost_says_so(client: asyncssh.SSHClientConnection, container: Container) -> None:
    process = await started(client, "true")
    run = await container.next()
    run.outcome.set_exception(LinkLost(host="lab"))
    _, err, code = await ended(process)
    assert code == 255
    assert b"lab" in err


async def test_several_commands_run_beside_one_another(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    processes = [await started(client, f"run {number}") for number in range(3)]
    runs = [await container.next() for _ in processes]
    for run in reversed(runs):
        run.out(run.request.argv[2].encode())
        run.end(0)
    assert [(await ended(process))[0] for process in processes] == [b"run 0", b"run 1", b"run 2"]


# -- shells


async def test_a_shell_has_the_clients_terminal_and_its_sizes(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, term_type="xterm-odd", term_size=(111, 33))
    run = await container.next()
    assert run.request == CommandRequest(folder="~", window=WindowSize(111, 33), env={"TERM": "xterm-odd"})
    process.change_terminal_size(100, 30)
    process.change_terminal_size(0, 100_000)
    await run.until(lambda: len(run.log) == 2)
    assert run.log[0] == "resize 100 30"
    process.stdin.write(b"ls\r\x03\x04")
    await run.until(lambda: run.input == b"ls\r\x03\x04")
    run.out(b"$ ls\r\n")
    run.end(0)
    assert await ended(process) == (b"$ ls\r\n", b"", 0)


async def test_a_terminal_without_a_size_has_the_usual_one(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, term_type="dumb", term_size=(0, 0))
    run = await container.next()
    assert run.request.window == WindowSize(80, 24)
    run.end(0)
    await ended(process)


async def test_a_size_that_changes_while_the_shell_starts_is_passed_on(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    container.may_start.clear()
    process = await started(client, term_type="xterm", term_size=(80, 24))
    process.change_terminal_size(90, 20)
    # Answered after what was sent before it.
    other = await started(client, "other")
    container.may_start.set()
    run = await container.next()
    await run.until(lambda: run.log == ["resize 90 20"])
    for one in (run, await container.next()):
        one.end(0)
    for each in (process, other):
        await ended(each)


# -- subsystems


class Pipe(io.RawIOBase):
    """What SftpServer writes to a command's output."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(bytes(data))
        return len(data)


async def test_files_are_copied_listed_and_removed_by_sftp(
    client: asyncssh.SSHClientConnection, container: Container, tmp_path: Path
) -> None:
    loop = asyncio.get_running_loop()

    async def start() -> asyncssh.SFTPClient:
        return await client.start_sftp_client()

    starting = asyncio.create_task(start())
    run = await container.next()
    assert run.request == CommandRequest(argv=tuple(bootstrap.beside_argv(PYTHON, server.SFTP_MODULE)), folder="~")
    source, feed = os.pipe()

    async def send(data: bytes) -> None:
        os.write(feed, data)

    run.send = send  # type: ignore[method-assign]
    reading: Any = os.fdopen(source, "rb")

    def deliver(data: bytes) -> None:
        loop.call_soon_threadsafe(run.out, data)

    sink: Any = Pipe(deliver)
    serving = threading.Thread(target=SftpServer(reading, sink).serve)
    serving.start()
    async with asyncio.timeout(SECONDS):
        sftp = await starting
        content = os.urandom(300_000)
        (tmp_path / "here").write_bytes(content)
        await sftp.put(tmp_path / "here", os.fspath(tmp_path / "there"), block_size=16384, max_requests=1)
        assert (tmp_path / "there").read_bytes() == content
        await sftp.get(os.fspath(tmp_path / "there"), tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
        assert sorted(map(str, await sftp.listdir(os.fspath(tmp_path)))) == [".", "..", "back", "here", "there"]
        await sftp.posix_rename(os.fspath(tmp_path / "back"), os.fspath(tmp_path / "here"))
        assert (await sftp.statvfs(os.fspath(tmp_path))).namemax == os.statvfs(tmp_path).f_namemax
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await sftp.stat(os.fspath(tmp_path / "back"))
        os.close(feed)
        await asyncio.to_thread(serving.join)
        run.end(0)
        sftp.exit()
        await sftp.wait_closed()
    reading.close()


async def test_another_subsystem_is_refused(client: asyncssh.SSHClientConnection, container: Container) -> None:
    with pytest.raises(asyncssh.ChannelOpenError):
        await started(client, subsystem="netconf")
    assert container.requests == []


# -- ports and sockets


async def test_a_port_is_a_connection_of_the_containers_both_ways(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    reader, writer = await client.open_connection("localhost", 8888)
    run = await container.next()
    argv = (*bootstrap.beside_argv(PYTHON, server.CONNECTOR_MODULE), "tcp", "localhost", "8888")
    assert run.request == CommandRequest(argv=argv, folder="/")
    writer.write(b"GET /")
    writer.write_eof()
    await run.until(lambda: run.log == ["end of input"])
    assert run.input == b"GET /"
    run.out(b"200")
    run.end(0)
    assert await whole(reader) == b"200"
    writer.close()


async def test_a_socket_is_a_connection_of_the_containers_too(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    reader, writer = await client.open_unix_connection("/run/x y.sock")
    run = await container.next()
    assert run.request.argv[-2:] == ("unix", "/run/x y.sock")
    run.out(b"hello")
    run.end(0)
    assert await whole(reader) == b"hello"
    writer.close()


async def test_why_there_is_no_connection_is_no_part_of_one(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    reader, writer = await client.open_connection("localhost", 1)
    run = await container.next()
    run.err(b"Connection refused\n")
    run.end(1)
    assert await whole(reader) == b""
    writer.close()
    container.failure = CommandNotRun(host="lab", reason="no")
    reader, writer = await client.open_connection("localhost", 1)
    assert await whole(reader) == b""
    writer.close()


# -- as much as the other end takes


async def test_a_command_is_paused_while_the_client_takes_nothing(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, "yes")
    run = await container.next()
    process.stdout.channel.pause_reading()
    sent = 0
    async with asyncio.timeout(SECONDS):
        while not run.is_paused:
            run.out(bytes(1 << 18))
            sent += 1 << 18
            assert sent < 16 << 20, "it takes all there is"
            await asyncio.sleep(0)
    process.stdout.channel.resume_reading()
    reading = asyncio.create_task(process.stdout.readexactly(sent))
    await run.until(lambda: not run.is_paused)
    assert len(await asyncio.wait_for(reading, SECONDS)) == sent
    run.end(0)
    await ended(process)


async def test_a_command_that_writes_before_it_is_known_to_run_is_paused_all_the_same(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    made: list[MadeSession] = []

    async def open_beside(request: CommandRequest, output: Callable[[int, bytes], None]) -> Any:
        made.append(MadeSession(request=request, write=output))
        made[0].out(bytes(8 << 20))
        container.opened.put_nowait(made[0])
        return made[0]

    container.open_beside = open_beside  # type: ignore[method-assign]
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve(ours, host_key=KEY, open_beside=open_beside, python=PYTHON))
    async with asyncssh.connect(host="box", sock=theirs, known_hosts=None, config=None, client_keys=[]) as other:
        process = await started(other, "yes")
        run = await container.next()
        await run.until(lambda: "pause" in run.log)
        assert len(await process.stdout.readexactly(8 << 20)) == 8 << 20
        await run.until(lambda: not run.is_paused)
        run.end(0)
        await ended(process)
    await asyncio.wait_for(serving, SECONDS)


async def test_a_client_sends_no_more_than_the_command_keeps_up_with(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, "slow")
    run = await container.next()
    run.takes.clear()
    content = bytes(16 << 20)
    process.stdin.write(content)
    await once(lambda: process.stdin.channel.get_write_buffer_size() < 15 << 20)
    await asyncio.sleep(0.01)
    # What the window lets through is far from all.
    assert process.stdin.channel.get_write_buffer_size() > 8 << 20
    assert run.input == b""
    run.takes.set()
    process.stdin.write_eof()
    await run.until(lambda: "end of input" in run.log)
    assert len(run.input) == len(content)
    run.end(0)
    await ended(process)


async def test_a_line_that_takes_no_input_any_more_is_no_fault(
    client: asyncssh.SSHClientConnection, container: Container, caplog: pytest.LogCaptureFixture
) -> None:
    process = await started(client, "x")
    run = await container.next()

    async def send(data: bytes) -> None:
        raise LinkLost(host="lab")

    run.send = send  # type: ignore[method-assign]
    process.stdin.write(b"x")
    run.out(b"y")
    assert await process.stdout.readexactly(1) == b"y"
    run.end(4)
    assert (await ended(process))[2] == 4
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


# -- ends


async def test_a_channel_that_the_client_closes_closes_the_command(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    process = await started(client, "sleep 60")
    run = await container.next()
    process.close()
    await run.until(lambda: "closed" in run.log)
    run.out(b"to nobody")
    run.err(b"to nobody")


async def test_a_channel_that_is_closed_while_its_command_takes_nothing_closes_the_command(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    reader, writer = await client.open_connection("localhost", 8888)
    run = await container.next()
    run.takes.clear()
    # More than both ends let wait.
    writer.write(bytes(16 << 20))
    await once(lambda: writer.channel.get_write_buffer_size() < 15 << 20)
    writer.channel.abort()
    await run.until(lambda: "closed" in run.log)
    assert reader.at_eof()


async def test_a_client_that_is_gone_closes_all_its_commands(
    client: asyncssh.SSHClientConnection, container: Container
) -> None:
    await started(client, "one")
    await started(client, "two")
    runs = [await container.next(), await container.next()]
    runs[0].takes.clear()
    client.abort()
    for run in runs:
        await run.until(partial(is_closed, run))


def is_closed(run: MadeSession) -> bool:
    return "closed" in run.log


async def test_a_command_that_has_not_started_when_the_client_goes_is_given_up(container: Container) -> None:
    container.may_start.clear()
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(server.serve(ours, host_key=KEY, open_beside=container.open_beside, python=PYTHON))
    async with asyncssh.connect(host="box", sock=theirs, known_hosts=None, config=None, client_keys=[]) as other:
        await started(other, "x")
    await asyncio.wait_for(serving, SECONDS)
    container.may_start.set()
    await asyncio.sleep(0)
    assert container.opened.empty()


# -- this process's own ends


async def test_stdin_and_stdout_are_one_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    (source, feed), (drain, sink) = os.pipe(), os.pipe()
    with (
        os.fdopen(source) as stdin,
        os.fdopen(sink, "w") as stdout,
        os.fdopen(feed, "wb", buffering=0) as client,
        os.fdopen(drain, "rb", buffering=0) as heard,
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        made = server.joined_to_stdio()
        with made:
            client.write(b"SSH-2.0-x\r\n")
            assert await asyncio.to_thread(made.recv, 100) == b"SSH-2.0-x\r\n"
            await asyncio.to_thread(made.sendall, b"SSH-2.0-y\r\n")
            assert await asyncio.to_thread(heard.read, 100) == b"SSH-2.0-y\r\n"
            client.close()
            assert await asyncio.to_thread(made.recv, 100) == b""
        for thread in [one for one in threading.enumerate() if one.name.startswith("kernelbridge-")]:
            thread.join(5)


@pytest.mark.parametrize("goes_first", ["socket", "output"])
async def test_whichever_end_goes_first_is_no_fault(monkeypatch: pytest.MonkeyPatch, goes_first: str) -> None:
    """A thread that raised would be an error of this test."""
    (source, feed), (drain, sink) = os.pipe(), os.pipe()
    with os.fdopen(source) as stdin, os.fdopen(sink, "w") as stdout, os.fdopen(feed, "wb", buffering=0) as client:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        made = server.joined_to_stdio()
        os.close(drain)
        with made:
            if goes_first == "output":
                made.sendall(b"x")
                assert made.recv(1) == b"", "the server is to hear of it"
        client.write(b"x")
        client.close()
        for thread in [one for one in threading.enumerate() if one.name.startswith("kernelbridge-")]:
            await asyncio.to_thread(thread.join, 5)
        # What could not be written is in it still.
        with contextlib.suppress(BrokenPipeError):
            stdout.close()
