"""relay/beside/connector.py: pipes joined to a real port and a real socket, both ways, to their ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernelbridge.hosts import bootstrap
from kernelbridge.relay.beside import connector
from tests.made_relay import moved

PACKAGE = Path(bootstrap.__file__).parents[1]
# More than pipes and sockets hold.
MUCH = 8 << 20


class Peer:
    """Listens, and does with its one connection what a test says."""

    def __init__(self, listening: socket.socket, act: Callable[[socket.socket], None]) -> None:
        self.listening = listening
        listening.settimeout(20)
        listening.listen()
        self._act = act
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        made = self.listening.accept()[0]
        with made:
            made.settimeout(20)
            self._act(made)

    @property
    def words(self) -> list[str]:
        if self.listening.family == socket.AF_UNIX:
            return ["unix", self.listening.getsockname()]
        return ["tcp", "127.0.0.1", str(self.listening.getsockname()[1])]

    def close(self) -> None:
        self.thread.join(20)
        self.listening.close()
        assert not self.thread.is_alive()


Listen = Callable[[Callable[[socket.socket], None]], Peer]


@pytest.fixture(params=["tcp", "unix"])
def listen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listen]:
    peers = []

    def made(act: Callable[[socket.socket], None]) -> Peer:
        listening = socket.socket(socket.AF_INET if request.param == "tcp" else socket.AF_UNIX)
        listening.bind(("127.0.0.1", 0) if request.param == "tcp" else os.fspath(tmp_path / "s"))
        peers.append(Peer(listening, act))
        return peers[-1]

    yield made
    for peer in peers:
        peer.close()


def whole(made: socket.socket) -> bytes:
    pieces = []
    while piece := made.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


class Program:
    """The program as a process, beside a relay."""

    def __init__(self, folder: Path, *words: str) -> None:
        (folder / "kernelbridge_relay").symlink_to(PACKAGE)
        argv = moved(bootstrap.beside_argv(sys.executable, "beside.connector"), folder)
        self.process = subprocess.Popen([*argv, *words], stdin=-1, stdout=-1, stderr=-1)

    def talk(self, data: bytes) -> tuple[int, bytes, str]:
        """Say something and its end; return how it ended, and what was heard."""
        out, err = self.process.communicate(data, timeout=20)
        return self.process.returncode, out, err.decode()


def test_the_end_of_the_input_is_half_an_end_and_the_answer_to_it_comes(listen: Listen, tmp_path: Path) -> None:
    peer = listen(lambda made: made.sendall(b"heard " + whole(made)))
    assert Program(tmp_path, *peer.words).talk(b"words") == (0, b"heard words", "")


def test_the_other_ends_end_is_the_programs_whatever_input_could_come(listen: Listen, tmp_path: Path) -> None:
    peer = listen(lambda made: made.sendall(b"bye"))
    program = Program(tmp_path, *peer.words)
    assert program.process.stdout is not None
    with program.process:
        assert program.process.stdout.read() == b"bye"
        assert program.process.wait(20) == 0


def test_an_end_that_takes_nothing_until_it_is_heard_is_heard(listen: Listen) -> None:
    """Much goes both ways, and the other end reads none of it before it is rid of its own."""

    def act(made: socket.socket) -> None:
        made.sendall(bytes(MUCH))
        heard.append(len(whole(made)))

    heard: list[int] = []
    peer = listen(act)
    made = connector.connect(peer.words)
    (source, feed), (drain, sink) = os.pipe(), os.pipe()

    def fill() -> None:
        with os.fdopen(feed, "wb") as file:
            file.write(bytes(MUCH))

    def pump() -> None:
        connector.pump(made, source, sink)
        os.close(sink)

    threads = [threading.Thread(target=work, daemon=True) for work in (fill, pump)]
    for thread in threads:
        thread.start()
    with os.fdopen(drain, "rb") as file:
        assert len(file.read()) == MUCH
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert heard == [MUCH]
    made.close()
    os.close(source)


def test_a_connection_that_is_cut_ends_it(listen: Listen, tmp_path: Path) -> None:
    def act(made: socket.socket) -> None:
        made.recv(1)
        # Reset, and no orderly end, where there is such a thing.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    code, out, err = Program(tmp_path, *listen(act).words).talk(b"x" * 100_000)
    assert (code, out) in ((0, b""), (1, b""))
    assert "Traceback" not in err


def test_what_cannot_be_reached_is_a_line_and_an_exit_code(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # And does not listen.
        port = str(bound.getsockname()[1])
        assert Program(tmp_path, "tcp", "127.0.0.1", port).talk(b"") == (1, b"", "Connection refused\n")
    (tmp_path / "kernelbridge_relay").unlink()
    missing = os.fspath(tmp_path / "missing")
    assert Program(tmp_path, "unix", missing).talk(b"") == (1, b"", "No such file or directory\n")


def test_a_name_that_is_none_is_a_line_too(tmp_path: Path) -> None:
    code, out, err = Program(tmp_path, "tcp", "a" * 70 + ".example", "1").talk(b"")
    assert (code, out, len(err.splitlines())) == (1, b"", 1)
