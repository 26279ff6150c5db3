"""hosts/transport/openssh/proxy_command.py: a ProxyCommand runs in the user's shell, is heard, and ends with us."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kernelbridge.hosts.transport.openssh.proxy_command import shell_words, start_proxy


@pytest.fixture(autouse=True)
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell that every machine has."""
    monkeypatch.setenv("SHELL", "/bin/sh")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("nc a 22 2>/dev/null", "exec nc a 22 2>/dev/null"),
        ("exec nc a 22", "exec nc a 22"),
        ("  exec\tnc a", "  exec\tnc a"),
        ("executor a", "exec executor a"),
    ],
)
def test_the_shell_gives_way_to_the_command(command: str, expected: str) -> None:
    assert shell_words(command, shell="/bin/zsh") == ["/bin/zsh", "-c", expected]


async def test_its_stdin_and_stdout_are_a_socket_and_its_end_is_ours() -> None:
    proxy = await start_proxy("cat")
    with proxy.socket as near:
        near.sendall(b"to and fro")
        assert await asyncio.to_thread(near.recv, 100) == b"to and fro"
        assert await proxy.failure(seconds=0.1) == ""
        assert repr(proxy) == "<ProxyCommand 'cat' runs>"
        proxy.hang_up()
        assert await proxy.failure(seconds=20) == ""
        assert repr(proxy) == "<ProxyCommand 'cat' ended>"
    proxy.hang_up()


async def test_one_that_does_not_listen_is_killed() -> None:
    proxy = await start_proxy("""sh -c 'trap "" HUP; echo ready; while :; do sleep 1; done'""")
    with proxy.socket as near:
        assert await asyncio.to_thread(near.recv, 100) == b"ready\n"
        proxy.hang_up()
        await proxy.failure(seconds=20)
    assert repr(proxy).endswith("ended>")


async def test_its_last_words_and_exit_code_are_told() -> None:
    proxy = await start_proxy("sh -c 'seq 5000 >&2; echo no route >&2; exit 5'")
    with proxy.socket:
        said = await proxy.failure(seconds=20)
    assert said.endswith("ended with exit code 5: no route")
    assert proxy.missing_program is None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("cloudflaredx access ssh", "cloudflaredx"),
        ("exec cloudflaredx", "cloudflaredx"),
        ("'~/no such'/proxy x", "~/no such/proxy"),
        ("sh -c 'cloudflaredx'", None),
    ],
)
async def test_a_program_that_is_not_there_is_named(command: str, expected: str | None) -> None:
    proxy = await start_proxy(command)
    with proxy.socket:
        assert "exit code 127" in await proxy.failure(seconds=20)
    assert proxy.missing_program == expected


async def test_a_shell_that_is_not_there_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHELL", str(tmp_path / "none"))
    proxy = await start_proxy("sh -c 'exit 6'")
    with proxy.socket:
        assert "exit code 6" in await proxy.failure(seconds=20)
