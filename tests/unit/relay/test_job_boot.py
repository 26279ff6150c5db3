"""relay/job_boot.py: an order comes over a socket, once and whole; and what ends a relay that a job has started.

A job's first process is seen through the commands that bootstrap.py makes of it and of bridge.py.
"""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.hosts import bootstrap
from kernelbridge.protocol.exit_codes import EXIT_NO_ORDER
from kernelbridge.relay import job_boot
from tests.made_relay import MadeRelay, Visit, moved, order
from tests.rig.daemon import SLOW, wait_until


@pytest.fixture
def folder() -> Iterator[Path]:
    """The relay's folder, which is not there yet; its name is short."""
    with tempfile.TemporaryDirectory(prefix="kb-") as path:
        yield Path(path) / "relay"


def job(folder: Path) -> MadeRelay:
    return MadeRelay(folder, argv=bootstrap.job_boot_argv(sys.executable))


def caller(folder: Path) -> subprocess.Popen[bytes]:
    """An exec into the job that brings an order."""
    argv = moved(bootstrap.order_argv(sys.executable), folder)
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answered(process: subprocess.Popen[bytes], line: bytes) -> tuple[bytes, int]:
    said, _ = process.communicate(line, timeout=20 * SLOW)
    return said, process.returncode


def test_no_word_of_a_user_stands_in_a_jobs_commands() -> None:
    for argv in (bootstrap.job_boot_argv("python3"), bootstrap.order_argv("python3")):
        compile(argv[argv.index("-c") + 1], "<argv>", "exec", dont_inherit=True)
        assert "\0" not in "".join(argv)
    assert bootstrap.job_boot_argv("/opt/py")[:2] == ["/opt/py", "-c"]
    assert bootstrap.order_argv("/opt/py")[:4] == ["/opt/py", "-I", "-S", "-c"]


def test_an_order_may_come_before_the_job_and_is_answered_once(folder: Path) -> None:
    early = caller(folder)
    with job(folder) as relay:
        assert answered(early, order(folder)) == (b"ok\n", 0)
        with Visit(folder / "relay.sock") as visit:
            assert visit.told("ready")["info"] == {"made": "up"}
        said, code = answered(caller(folder), order(folder))
        assert (said, code != 0) == (b"", True)  # Another one did before.
        assert relay.process.poll() is None
        assert not (folder / "order.sock").exists()


def test_nobody_else_may_come_in_and_what_is_no_whole_order_is_none(folder: Path) -> None:
    with job(folder) as relay:
        hanging = caller(folder)
        assert hanging.stdin is not None
        hanging.stdin.write(b'{"kernel": ')
        hanging.stdin.flush()
        assert answered(caller(folder), b"") == (b"", 0)
        assert answered(caller(folder), order(folder)[:-1]) == (b"", 0)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert relay.process.poll() is None
        assert answered(caller(folder), order(folder)) == (b"ok\n", 0)
        assert relay.ask()["launch"] == 1
        assert answered(hanging, b"") == (b"", 0)


def test_a_job_that_gets_no_order_ends(folder: Path) -> None:
    argv = bootstrap.job_boot_argv(sys.executable)
    argv[-1] = argv[-1].replace(f", {bootstrap.ORDER_SECONDS})", ", 0.3)")
    relay = MadeRelay(folder, argv=argv)
    assert relay.exit_code() == EXIT_NO_ORDER
    assert list(folder.iterdir()) == []


def test_what_another_left_in_the_folder_is_not_taken_up(folder: Path) -> None:
    folder.mkdir()
    assert job(folder).exit_code() == 1


def test_a_caller_that_brings_no_pipes_is_none() -> None:
    ours, theirs = socket.socketpair()
    found = job_boot.Caller(ours)
    assert job_boot.heard(found) == b""  # Nothing came yet.
    theirs.send(b"GET / HTTP/1.1")
    assert job_boot.heard(found) is None
    found.close()
    theirs.close()


@pytest.mark.parametrize("is_job", [True, False])
def test_the_end_of_stdin_ends_a_relay_that_is_told_so(folder: Path, is_job: bool) -> None:
    line = order(folder, ends_with_stdin=True)
    relay = job(folder) if is_job else MadeRelay(folder, line)
    if is_job:
        assert answered(caller(folder), line) == (b"ok\n", 0)
    with Visit(folder / "relay.sock") as visit:
        visit.told("ready")
        assert relay.process.stdin is not None
        relay.process.stdin.write(b"more of it means nothing")
        relay.process.stdin.flush()
        relay.ask()
        assert relay.process.poll() is None
        relay.process.stdin.close()
        assert relay.exit_code() == 143


def test_stdin_means_nothing_to_any_other(folder: Path) -> None:
    with MadeRelay(folder, order(folder)) as relay, Visit(folder / "relay.sock") as visit:
        assert relay.process.stdin is not None
        relay.process.stdin.close()
        visit.told("ready")
        wait_until(lambda: relay.ask()["ready"], "a second word", 10)
        assert relay.process.poll() is None
