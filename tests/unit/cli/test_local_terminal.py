"""cli/local_terminal.py: this process's own terminal or pipes for a command elsewhere: keys, output, size, signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli import local_terminal
from kernelbridge.cli.local_terminal import MOST_QUEUED_BYTES, JoinedCommand, OutputValve, OutputWriter
from kernelbridge.errors import KernelBridgeError
from kernelbridge.fleet.loop import LoopThread
from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import WindowSize
from tests.rig.daemon import wait_until
from tests.unit.cli.conftest import set_terminal_size

OUT, ERR = terminal.OUTPUT, terminal.ERRORS


class MadeCommand:
    """What is joined: keeps what it is given."""

    def __init__(self, loop: LoopThread) -> None:
        self.joined = JoinedCommand(self, loop.submit)
        self.sent: list[bytes] = []
        self.told: list[Any] = []
        # What send() comes to.
        self.failure: Exception | None = None

    async def send(self, data: bytes) -> None:
        self.sent.append(data)
        if self.failure is not None:
            raise self.failure

    def resize(self, window: WindowSize) -> None:
        self.told.append(window)

    def signal(self, number: int) -> None:
        self.told.append(number)


@pytest.fixture
def command() -> Iterator[MadeCommand]:
    loop = LoopThread("made-up loop")
    yield MadeCommand(loop)
    loop.close()


class Pty:
    """A terminal: the side of who types, and the program's, as its stdin."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        self.file = os.fdopen(slave, "r+b", buffering=0)

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.file.fileno())


@pytest.fixture
def pty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pty]:
    made = Pty()
    monkeypatch.setattr(sys, "stdin", made.file)
    yield made
    made.file.close()
    os.close(made.master)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of a pipe from which this process reads its stdin."""
    # Another test's may wait for a key of this process's own stdin for ever, as such threads may.
    others = readers()
    source, sink = os.pipe()
    file = os.fdopen(source)
    monkeypatch.setattr(sys, "stdin", file)
    yield sink
    with contextlib.suppress(OSError):  # The test may have closed it.
        os.close(sink)
    wait_until(lambda: set(readers()) <= set(others), "who reads stdin to end", 10)
    file.close()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kernelbridge-input"]


@contextlib.contextmanager
def piped_stdout() -> Iterator[int]:
    """Let this process's stdout go into a pipe, of which this is the end. No fixture: before a test it is pytest's."""
    source, sink = os.pipe()
    before = os.dup(1)
    os.dup2(sink, 1)
    os.close(sink)
    try:
        yield source
    finally:
        os.dup2(before, 1)
        os.close(before)
        with contextlib.suppress(OSError):  # The test may have closed it.
            os.close(source)


# -- what this process has


def test_somebody_sits_here_where_stdin_and_stdout_are_a_terminal(pty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", pty.file)
    assert local_terminal.is_terminal()
    with Path(os.devnull).open() as nothing:
        for name in ("stdin", "stdout"):
            for instead in (nothing, None):
                with monkeypatch.context() as patch:
                    patch.setattr(sys, name, instead)
                    assert not local_terminal.is_terminal()


def test_the_window_is_as_large_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not as a program further up was told: libraries that read keys set these two."""
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("LINES", "20")
    set_terminal_size(monkeypatch, 111, 33)
    assert local_terminal.window() == WindowSize(111, 33)
    set_terminal_size(monkeypatch, 0, 0)
    assert local_terminal.window() == WindowSize(50, 20), "one that does not know"


def test_keys_are_raw_for_as_long_as_a_block_runs_whatever_ends_it(pty: Pty) -> None:
    before = pty.modes
    with pytest.raises(KeyError), local_terminal.raw_keys():
        assert not pty.modes[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        raise KeyError
    assert pty.modes == before


# -- output


def test_both_outputs_are_written_in_order_once_it_begins(capfd: pytest.CaptureFixture[str]) -> None:
    writer = OutputWriter(lambda is_congested: None)
    writer.write(OUT, b"one ")
    writer.write(ERR, b"trouble")
    assert capfd.readouterr().out == ""
    writer.begin()
    writer.begin()
    writer.write(OUT, b"two")
    writer.close()
    assert capfd.readouterr() == ("one two", "trouble")


def test_who_closes_it_before_it_began_has_it_written_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    writer = OutputWriter(lambda is_congested: None)
    writer.write(OUT, b"words")
    writer.close()
    assert capfd.readouterr().out == "words"


def test_a_slow_reader_is_told_of_once_and_so_is_that_it_reads_again() -> None:
    with piped_stdout() as stdout:
        told: list[bool] = []
        writer = OutputWriter(told.append)
        writer.begin()
        piece = b"x" * 65536
        for _ in range(MOST_QUEUED_BYTES // len(piece) + 3):
            writer.write(OUT, piece)
        assert told == [True]
        assert writer.is_congested
        rest = (MOST_QUEUED_BYTES // len(piece) + 3) * len(piece)
        while rest:
            rest -= len(os.read(stdout, rest))
        writer.close()
        assert told == [True, False]
        assert not writer.is_congested


def test_output_that_nobody_reads_any_more_is_dropped() -> None:
    with piped_stdout() as stdout:
        told: list[bool] = []
        writer = OutputWriter(told.append)
        os.close(stdout)
        for _ in range(40):
            writer.write(OUT, b"x" * 65536)
        writer.close()
        assert writer.is_broken
        assert not writer.is_congested
        assert told == [True, False]
        with pytest.raises(BrokenPipeError):
            writer.check()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is full")
def test_output_that_cannot_be_written_is_an_error() -> None:
    before = os.dup(1)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), 1)
    try:
        writer = OutputWriter(lambda is_congested: None)
        writer.check()
        writer.write(OUT, b"words")
        writer.close()
    finally:
        os.dup2(before, 1)
        os.close(before)
    with pytest.raises(KernelBridgeError, match="The output cannot be written: No space left on device"):
        writer.check()


def test_an_output_that_was_closed_before_is_wanted_by_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.dup(1)
    os.close(1)
    try:
        writer = OutputWriter(lambda is_congested: None)
        writer.write(OUT, b"words")
        writer.write(ERR, b"trouble")
        writer.close()
    finally:
        os.dup2(before, 1)
        os.close(before)
    writer.check()
    assert capfd.readouterr() == ("", "trouble")


def test_who_reads_slowly_gets_all_however_long_that_takes() -> None:
    with piped_stdout() as stdout:
        writer = OutputWriter(lambda is_congested: None, stalled_seconds=0.5)
        data = os.urandom(200_000)
        writer.write(OUT, data)
        came = bytearray()

        def read() -> None:
            while len(came) < len(data):
                time.sleep(0.05)
                came.extend(os.read(stdout, 10_000))

        thread = threading.Thread(target=read)
        thread.start()
        writer.close()
        thread.join(20)
        assert bytes(came) == data
        writer.check()


def test_who_reads_nothing_for_long_is_given_up_and_that_is_told() -> None:
    with piped_stdout():
        writer = OutputWriter(lambda is_congested: None, stalled_seconds=0.3)
        writer.write(OUT, bytes(200_000))
        writer.close()
        with pytest.raises(KernelBridgeError, match=r"cannot be written: nothing of it was read for 0\.3 s"):
            writer.check()


def test_a_terminal_that_another_program_made_so_that_it_takes_little_at_once_gets_all() -> None:
    with piped_stdout() as stdout:
        os.set_blocking(1, False)
        data = os.urandom(200_000)
        writer = OutputWriter(lambda is_congested: None)
        writer.begin()
        writer.write(OUT, data)
        came = b""
        while len(came) < len(data):
            came += os.read(stdout, len(data))
        writer.close()
        assert came == data


# -- input, size, signals


def test_input_is_passed_on_to_its_end(command: MadeCommand, stdin: int) -> None:
    with local_terminal.joined(command.joined, has_window=False):
        os.write(stdin, b"one")
        wait_until(lambda: command.sent == [b"one"], "the input", 10)
        os.write(stdin, b"two")
        os.close(stdin)
        wait_until(lambda: len(command.sent) == 3, "its end", 10)
    assert command.sent == [b"one", b"two", b""]


@pytest.mark.parametrize("instead", [None, "closed"])
def test_without_a_stdin_the_input_has_ended(
    command: MadeCommand, monkeypatch: pytest.MonkeyPatch, instead: str | None
) -> None:
    if instead:
        file = Path(os.devnull).open()  # noqa: SIM115 - it is closed at once
        file.close()
        monkeypatch.setattr(sys, "stdin", file)
    else:
        monkeypatch.setattr(sys, "stdin", None)
    with local_terminal.joined(command.joined, has_window=False):
        wait_until(lambda: command.sent == [b""], "the end of input", 10)


def test_input_for_a_command_that_has_ended_is_let_be(command: MadeCommand, stdin: int) -> None:
    command.failure = RuntimeError("it has ended")
    others = readers()
    with local_terminal.joined(command.joined, has_window=False):
        os.write(stdin, b"one")
        wait_until(lambda: set(readers()) <= set(others), "the reader to end", 10)
    assert command.sent == [b"one"]


def test_in_a_terminal_each_key_is_the_commands_ctrl_c_too(command: MadeCommand, pty: Pty) -> None:
    before = pty.modes
    with local_terminal.joined(command.joined, has_window=True):
        os.write(pty.master, b"\x03\x04q")
        wait_until(lambda: b"".join(command.sent) == b"\x03\x04q", "the keys", 10)
    assert command.told == [local_terminal.window()], "no signal"
    assert pty.modes == before
    os.write(pty.master, b"\n")  # So that who reads comes back, and ends.
    wait_until(lambda: len(b"".join(command.sent)) > 3, "the last key", 10)


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT"])
def test_a_signal_is_the_commands_as_long_as_it_is_joined(command: MadeCommand, stdin: int, name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with local_terminal.joined(command.joined, has_window=False):
        os.kill(os.getpid(), number)
        wait_until(lambda: command.told == [number], "the signal", 10)
    assert signal.getsignal(number) is before


def test_a_terminal_of_another_size_is_told(command: MadeCommand, pty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGWINCH)
    set_terminal_size(monkeypatch, 111, 33)
    with local_terminal.joined(command.joined, has_window=True):
        wait_until(lambda: command.told == [WindowSize(111, 33)], "the size, which may have changed before", 10)
        set_terminal_size(monkeypatch, 50, 20)
        os.kill(os.getpid(), signal.SIGWINCH)
        wait_until(lambda: command.told == [WindowSize(111, 33), WindowSize(50, 20)], "the new size", 10)
    assert signal.getsignal(signal.SIGWINCH) is before
    os.write(pty.master, b"\n")  # So that who reads comes back, and ends.
    wait_until(lambda: command.sent == [b"\n"], "the key", 10)


def test_what_two_threads_tell_of_a_slow_reader_comes_in_order() -> None:
    with piped_stdout() as stdout:
        told: list[bool] = []

        def tell(is_congested: bool) -> None:
            if is_congested:
                time.sleep(0.005)  # Meanwhile all could be read.
            told.append(is_congested)

        writer = OutputWriter(tell)
        writer.begin()
        thread = threading.Thread(target=_read_to_the_end, args=(stdout,), daemon=True)
        thread.start()
        for _ in range(20):
            writer.write(OUT, b"x" * (MOST_QUEUED_BYTES + 1))
            wait_until(lambda: not writer.is_congested, "the reader", 10)
        writer.close()
        assert told == [True, False] * 20


class Held:
    """Stands where a Terminal stands: whether it takes anything."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [([True], [], ["pause"]), ([True, False], [], []), ([], [True, False], ["pause", "resume"]), ([], [], [])],
)
def test_a_slow_reader_is_heeded_also_where_it_was_so_before_the_command_was_open(
    before: list[bool], after: list[bool], told: list[str]
) -> None:
    loop, opened = LoopThread("made-up loop"), Held()

    async def on_open() -> None:
        valve.on_open(opened)  # type: ignore[arg-type]

    valve = OutputValve(loop.submit)
    for word in before:
        valve.congested(word)
    loop.run(on_open(), 10)
    for word in after:
        valve.congested(word)
    loop.close()
    assert opened.told == told


def _read_to_the_end(descriptor: int, *, read: Callable[[int, int], bytes] = os.read) -> None:
    while True:
        try:
            if not read(descriptor, 1 << 20):
                return
        except OSError:
            return
