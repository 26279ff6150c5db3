"""`ssh kb-NAME`, scp, sftp, rsync and asyncssh into a container that has no sshd, through `kernelbridge ssh-config`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pexpect
import pytest

from tests.clients.ports import free_port
from tests.clients.terminal import kernelbridge
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def up(rig: Rig, module_env: Laptop) -> Iterator[Laptop]:
    """An environment that waits, and a user whose ssh knows it."""
    module_env.write_environment(rig.image, env={"MODE": "fast"})
    begun = kernelbridge(module_env, "up", "test")
    assert begun.code == 0, begun.err
    written = kernelbridge(module_env, "ssh-config", "--write")
    assert written.code == 0, written.err
    # OpenSSH takes ~ from the user database, not from HOME.
    config = module_env.ssh_folder / "config"
    included = config.read_text().replace(
        "Include kernelbridge.conf", f"Include {module_env.ssh_folder}/kernelbridge.conf"
    )
    config.write_text(included)
    yield module_env
    rig.engine.sweep()


def run(laptop: Laptop, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """One of OpenSSH's clients with this user's config; it never asks."""
    program, *rest = words
    options = ["-F", str(laptop.ssh_folder / "config"), "-o", "BatchMode=yes"]
    return subprocess.run(
        [program, *options, *rest], input=data, env=laptop.env, capture_output=True, timeout=40 * SLOW, check=False
    )


def test_ssh_runs_commands_with_both_outputs_exit_codes_and_input(up: Laptop) -> None:
    done = run(up, "ssh", "kb-test", 'echo "$MODE $(whoami)"; echo trouble >&2; exit 3')
    assert (done.returncode, done.stdout, done.stderr) == (3, b"fast kbtest\n", b"trouble\n")
    data = os.urandom(2_000_000)
    assert run(up, "ssh", "kb-test", "cat", data=data).stdout == data
    by_id = kernelbridge(up, "ps", "--json").json["kernels"][0]["kernel_id"][:8]
    assert run(up, "ssh", f"kb-{by_id}", "echo", "by id").stdout == b"by id\n"


def test_a_terminal_by_ssh_is_a_real_one(up: Laptop) -> None:
    words = ["-F", str(up.ssh_folder / "config"), "kb-test"]
    shell = pexpect.spawn("ssh", words, env=up.env, dimensions=(31, 101), timeout=30 * SLOW, encoding="utf-8")
    try:
        shell.expect(r"[#$] $")
        shell.sendline("stty size; pwd; echo $HOME")
        shell.expect(r"31 101\r\n(\S+)\r\n(\S+)\r\n")
        assert shell.match[1] == shell.match[2]
        shell.sendline("exit 4")
        shell.expect(pexpect.EOF)
    finally:
        shell.close()
    assert shell.exitstatus == 4


def test_files_go_both_ways_by_scp_and_sftp(up: Laptop, tmp_path: Path) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "ünïcode name.bin").write_bytes(os.urandom(1_500_000))
    (tmp_path / "tree" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tree" / "run.sh").chmod(0o755)
    sent = run(up, "scp", "-r", "-p", str(tmp_path / "tree"), "kb-test:/tmp/sent")
    assert sent.returncode == 0, sent.stderr
    back = run(up, "scp", "-r", "-p", "kb-test:/tmp/sent", str(tmp_path / "back"))
    assert back.returncode == 0, back.stderr
    name = "inner/ünïcode name.bin"
    assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "tree" / name).read_bytes()
    assert (tmp_path / "back" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "back" / "run.sh").stat().st_mtime == int((tmp_path / "tree" / "run.sh").stat().st_mtime)
    put = f"put {tmp_path / 'tree' / 'run.sh'} a"
    steps = ["mkdir /tmp/made", "cd /tmp/made", put, "rename a b", "ln -s b c", "ls -l", "df", "rm b", "rm c"]
    batch = "\n".join([*steps, "cd /", "rmdir /tmp/made", ""])
    done = run(up, "sftp", "-b", "-", "kb-test", data=batch.encode())
    assert done.returncode == 0, done.stderr
    assert b"rwxr-xr-x" in done.stdout
    missing = run(up, "scp", "kb-test:/no/such", str(tmp_path))
    assert b"No such file" in missing.stderr


def test_rsync_copies_into_an_image_that_has_it(up: Laptop, tmp_path: Path) -> None:
    program = shutil.which("rsync")
    assert program is not None, "rsync is one of the machine's packages: see scripts/setup.sh"
    # The test image has none: this machine's, which is the same Debian.
    lines = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines()
    libraries = [words[2] for words in map(str.split, lines) if len(words) > 2 and "libc.so" not in words[0]]
    (tmp_path / "rs").mkdir()
    for path in (program, *libraries):
        shutil.copy(path, tmp_path / "rs")
    assert run(up, "scp", "-r", str(tmp_path / "rs"), "kb-test:/tmp/rs").returncode == 0
    ssh = f"ssh -F {up.ssh_folder}/config"
    there = "--rsync-path=LD_LIBRARY_PATH=/tmp/rs /tmp/rs/rsync"
    words = [program, "-a", "-e", ssh, there, f"{tmp_path}/rs/", "kb-test:/tmp/synced/"]
    done = subprocess.run(words, env=up.env, capture_output=True, text=True, timeout=40 * SLOW, check=False)
    assert done.returncode == 0, done.stderr
    again = subprocess.run([*words, "--itemize-changes"], env=up.env, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, ""), again.stderr


def test_a_port_of_the_container_is_forwarded(up: Laptop) -> None:
    here = free_port()
    server = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8123, bind='127.0.0.1')"
    words = ["ssh", "-F", str(up.ssh_folder / "config"), "-L", f"{here}:127.0.0.1:8123", "kb-test"]
    with subprocess.Popen(
        [*words, f'cd /tmp && echo here > there.txt && exec python3 -c "{server}"'], env=up.env, stdout=subprocess.PIPE
    ) as forward:
        try:

            def page() -> bytes:
                try:
                    with socket.create_connection(("127.0.0.1", here), 5) as sock:
                        sock.sendall(b"GET /there.txt HTTP/1.0\r\n\r\n")
                        return b"".join(iter(lambda: sock.recv(4096), b""))
                except OSError:
                    return b""

            wait_until(lambda: page().endswith(b"here\n"), "the page", 20)
        finally:
            forward.terminate()


async def test_asyncssh_reaches_in_too(up: Laptop) -> None:
    proxy = [sys.executable, "-m", "kernelbridge", "ssh-proxy", "kb-test"]
    async with asyncssh.connect(
        "kb-test", proxy_command=proxy, known_hosts=None, username="any", client_keys=None, config=None
    ) as connection:
        done = await connection.run("echo hello; kill -9 $$")
        assert (done.stdout, done.exit_signal[0]) == ("hello\n", "KILL")  # type: ignore[index]
        async with connection.start_sftp_client() as sftp:
            await sftp.makedirs("/tmp/a/b")
            assert sorted(name for name in await sftp.listdir("/tmp/a") if not str(name).startswith(".")) == ["b"]


def test_what_is_not_up_is_a_sentence_and_all_can_be_taken_out_again(up: Laptop) -> None:
    done = run(up, "ssh", "kb-nonesuch", "true")
    assert done.returncode == 255
    assert b"no kernel" in done.stderr.lower() or b"nonesuch" in done.stderr
    removed = kernelbridge(up, "ssh-config", "--remove")
    assert removed.out == "Removed.\n"
    assert not (up.ssh_folder / "kernelbridge.conf").exists()
