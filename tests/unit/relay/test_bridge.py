"""relay/bridge.py: a bridge hands its streams to the relay, and ends with them."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernelbridge.relay import bridge
from kernelbridge.relay.server import Connection


class Joined:
    """A line of the relay's that has the pipes of a bridge; `theirs` is the link's end of them."""

    def __init__(self, tmp_path: Path) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "relay.sock"))
        listener.listen(1)
        self.theirs_out, mine_in = os.pipe()[::-1]
        mine_out, self.theirs_in = os.pipe()[::-1]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", bridge.__file__, str(tmp_path / "relay.sock")], stdin=mine_in, stdout=mine_out
        )
        os.close(mine_in)
        os.close(mine_out)
        with listener:
            self.line = Connection(listener.accept()[0])
        assert not self.line.is_adopted
        select.select([self.line.sock], [], [], 10)
        self.line.adopt()

    def close(self) -> None:
        self.line.close()
        for descriptor in (self.theirs_in, self.theirs_out):
            os.close(descriptor)
        self.process.wait(10)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Joined]:
    made = Joined(tmp_path)
    yield made
    made.close()


def test_a_bridge_hands_its_streams_to_the_relay_and_ends_with_them(joined: Joined) -> None:
    assert joined.line.is_adopted
    os.write(joined.theirs_out, b"to the relay")
    select.select([joined.line.source], [], [], 10)
    assert joined.line.read() == b"to the relay"
    joined.line.write([b"from ", b"", b"the relay"])
    assert os.read(joined.theirs_in, 100) == b"from the relay"
    assert joined.process.poll() is None
    joined.line.close()
    assert joined.process.wait(10) == 0


def test_a_line_keeps_what_the_pipe_does_not_take_and_never_blocks(joined: Joined) -> None:
    sent = [bytes([number % 256]) * 40_000 for number in range(200)]
    joined.line.write(list(sent))
    assert joined.line.unsent
    got = bytearray()
    while len(got) < sum(map(len, sent)):
        got += os.read(joined.theirs_in, 1 << 20)
        joined.line.write([])
    assert bytes(got) == b"".join(sent)
    assert not joined.line.unsent


def test_the_end_of_the_link_is_the_end_of_the_line(joined: Joined) -> None:
    with pytest.raises(BlockingIOError):
        joined.line.read()
    os.close(joined.theirs_out)
    joined.theirs_out = os.open(os.devnull, os.O_RDONLY)
    select.select([joined.line.source], [], [], 10)
    with pytest.raises(OSError, match="end of stream"):
        joined.line.read()


def test_a_bridge_ends_when_the_relay_is_gone(tmp_path: Path) -> None:
    made = Joined(tmp_path)
    made.line.sock.shutdown(socket.SHUT_RDWR)
    assert made.process.wait(10) == 0
    made.close()


def test_a_bridge_that_nobody_takes_waits_for_a_moment_only(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "relay.sock"))
        stopped.listen(1)
        run = "import sys; sys.argv[1:] = []; from kernelbridge.relay import bridge; bridge.ADOPT_SECONDS = 0.3; "
        process = subprocess.Popen(
            [sys.executable, "-c", f"{run}bridge.main({str(tmp_path / 'relay.sock')!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert process.wait(30) == 0
        assert process.stdin is not None
        process.stdin.close()


def test_a_bridge_that_was_taken_stays_however_long_nothing_comes(joined: Joined) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        joined.process.wait(0.5)
