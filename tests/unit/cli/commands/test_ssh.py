"""cli/commands/ssh.py: the entries for ssh, printed, written and removed; and the key that containers are known by."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from pathlib import Path

import asyncssh
import pytest

from kernelbridge.cli.commands import ssh
from kernelbridge.cli.ssh import config, server
from tests.made_copies import CopyFleet, CopyStream, MadeContainer
from tests.unit.cli.conftest import Call


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "home"
    made.mkdir()
    monkeypatch.setenv("HOME", str(made))
    return made


def test_the_key_is_made_once_and_for_this_login_alone(tmp_path: Path) -> None:
    first = ssh.host_key(tmp_path / "data")
    path = config.host_key_path(tmp_path / "data")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (first, 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert ssh.host_key(tmp_path / "data") == first
    assert sorted(one.name for one in path.parent.iterdir()) == ["host_key", "known_hosts"]


def test_known_hosts_is_of_the_key_whatever_happened_to_it(tmp_path: Path) -> None:
    key = ssh.host_key(tmp_path)
    known = config.known_hosts_path(tmp_path)
    right = f"kernelbridge {server.public_line(key)}\n"
    assert known.read_text("utf-8") == right
    written = known.stat().st_ino
    ssh.host_key(tmp_path)
    assert known.stat().st_ino == written
    known.write_text("kernelbridge ssh-ed25519 AAAA\n", "utf-8")
    ssh.host_key(tmp_path)
    assert known.read_text("utf-8") == right
    known.unlink()
    ssh.host_key(tmp_path)
    assert known.read_text("utf-8") == right


def test_what_ssh_is_to_read_is_printed_and_nothing_of_the_users_touched(
    call: Call, home: Path, config_path: Path, tmp_path: Path
) -> None:
    ended = call("ssh-config")
    assert (ended.code, ended.err) == (0, "")
    assert "\nHost kb-pytorch kb-*\n" in ended.out
    assert f"--config {config_path} ssh-proxy %n" in ended.out
    assert list(home.iterdir()) == []
    (line,) = [line for line in ended.out.splitlines() if "UserKnownHostsFile" in line]
    assert Path(line.split()[1]).is_relative_to(tmp_path)
    assert Path(line.split()[1]).exists()


def test_it_is_written_and_removed_again(call: Call, home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text("Host lab\n", "utf-8")
    ended = call("ssh-config", "--write")
    assert ended.code == 0
    assert "kb-pytorch" in ended.out
    printed = call("ssh-config").out
    assert (home / ".ssh/kernelbridge.conf").read_text("utf-8") == printed
    assert config.includes((home / ".ssh/config").read_text("utf-8"))
    assert call("ssh-config", "--remove").out == "Removed.\n"
    assert (home / ".ssh/config").read_text("utf-8") == "Host lab\n"
    assert call("ssh-config", "--remove").out == "There is nothing to remove.\n"


def test_a_config_that_cannot_be_written_is_told_with_what_to_do(call: Call, home: Path) -> None:
    (home / ".ssh").write_text("a file", "utf-8")
    ended = call("ssh-config", "--write")
    assert ended.code == 1
    assert ended.err.startswith("The ssh config cannot be written: ")
    assert "kernelbridge ssh-config" in ended.err.splitlines()[1]


async def test_a_kernel_is_served_beside_its_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ssh-proxy` does it: its stdin and stdout are here one end of a socketpair."""
    ours, theirs = socket.socketpair()
    stdin, stdout = ours.makefile("r"), ours.makefile("w")
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys, "stdout", stdout)
    container = MadeContainer(root=tmp_path)
    key = ssh.host_key(tmp_path / "data")
    address = await CopyFleet(container=container).address_of("kb-torch")
    serving = asyncio.create_task(ssh._serve(address, key))

    def act(stream: CopyStream, what: str, path: str) -> None:
        stream.output(b"done")

    container.act = act  # type: ignore[method-assign]
    known = asyncssh.import_known_hosts(config.known_hosts_path(tmp_path / "data").read_text("utf-8"))
    async with asyncssh.connect(
        host="kernelbridge", sock=theirs, known_hosts=known, config=None, client_keys=[], agent_path=None
    ) as client:
        done = await asyncio.wait_for(client.run("make"), 20)
    await asyncio.wait_for(serving, 20)
    for thread in [one for one in threading.enumerate() if one.name.startswith("kernelbridge-")]:
        await asyncio.to_thread(thread.join, 5)
    for end in (stdin, stdout, ours):
        end.close()
    assert (done.stdout, done.exit_status) == ("done", 0)
    (order,) = container.orders
    assert (order.argv, order.folder) == (["sh", "-c", "make"], "~")
