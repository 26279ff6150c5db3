"""relay/beside/terminal.py: a command beside a kernel, joined to one line of frames, from its start to its end.

The whole program runs as a process of its own; what depends on time runs in this one, by a clock that tests move.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.hosts import bootstrap
from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.frames import frame
from kernelbridge.protocol.terminal import CommandEnd, CommandOrder, WindowSize, pieces
from kernelbridge.relay.beside import terminal as program
from kernelbridge.relay.beside.terminal import (
    LINE_SILENCE_SECONDS,
    MOST_UNSENT_BYTES,
    Exchange,
    FrameLine,
    hold_lock,
    is_any_open,
    kernel_facts,
    shell_argv,
    why_not,
)
from kernelbridge.relay.process.pipes import MOST_WAITING_BYTES, Pipes
from tests.made_relay import moved
from tests.rig.daemon import SLOW, wait_until

PACKAGE = Path(bootstrap.__file__).parents[1]
FOREVER = "while :; do sleep 0.01; done"


def order(*argv: str, window: WindowSize | None = None, folder: str = "", **env: str) -> CommandOrder:
    return CommandOrder(list(argv), env, folder, window)


def script(text: str, **facts: Any) -> CommandOrder:
    return order("sh", "-c", text, **facts)


class Beside:
    """The program as a process, in the folder of a relay, and what it said."""

    def __init__(self, folder: Path, asked: CommandOrder | None, **env: str) -> None:
        if not (folder / "kernelbridge_relay").exists():
            (folder / "kernelbridge_relay").symlink_to(PACKAGE)
        words = moved(bootstrap.beside_argv(sys.executable, "beside.terminal"), folder)
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={**os.environ, **env}
        )
        self._decoder = frames.Decoder()
        self.heard: list[tuple[int, bytes]] = []
        if asked is not None:
            self.say(asked.frame())

    def say(self, *framed: bytes) -> None:
        assert self.process.stdin is not None
        os.write(self.process.stdin.fileno(), b"".join(framed))

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def hear(self) -> bool:
        """Read what there is; False at the end."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], 0.1)[0]:
            return True
        piece = os.read(self.process.stdout.fileno(), 1 << 16)
        self.heard += [(one.kind, bytes(one.payload)) for one in self._decoder.feed(piece)]
        return bool(piece)

    def until(self, claim: Callable[[], bool]) -> None:
        end = time.monotonic() + 20 * SLOW
        while not claim():
            assert time.monotonic() < end, self.heard
            assert self.hear() or claim(), self.heard

    def finish(self) -> int:
        """Hear all, to the end; return the command's exit code."""
        end = time.monotonic() + 20 * SLOW
        while self.hear():
            assert time.monotonic() < end, self.heard
        assert self.process.wait(20 * SLOW) == 0
        (said,) = self.of(terminal.EXIT)
        assert self.heard[-1][0] == terminal.EXIT, "its end comes behind all that it wrote"
        return CommandEnd.from_dict(json.loads(said)).exit_code

    def of(self, kind: int) -> list[bytes]:
        return [payload for one, payload in self.heard if one == kind]

    def text(self, kind: int = terminal.OUTPUT) -> str:
        return b"".join(self.of(kind)).decode()


Make = Callable[..., Beside]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Beside] = []

    def begin(asked: CommandOrder | None, **env: str) -> Beside:
        made.append(Beside(tmp_path, asked, **env))
        return made[-1]

    yield begin
    for one in made:
        assert one.process.stdin is not None
        assert one.process.stdout is not None
        one.process.stdin.close()
        one.process.stdout.close()
        one.process.kill()
        one.process.wait()


# -- the whole program


def test_a_command_has_its_input_both_outputs_and_its_exit_code(make: Make) -> None:
    beside = make(script("cat; echo trouble >&2; exit 3"))
    beside.say(*pieces(terminal.INPUT, b"one "), *pieces(terminal.INPUT, b"two"), frame(terminal.INPUT_END))
    assert beside.finish() == 3
    assert (beside.text(), beside.text(terminal.ERRORS)) == ("one two", "trouble\n")
    assert beside.heard[0] == (terminal.STARTED, b"")


def test_a_command_that_a_signal_ended_says_which(make: Make) -> None:
    assert make(script("kill -KILL $$")).finish() == 128 + signal.SIGKILL


def test_a_command_on_a_terminal_sees_its_size_its_kind_and_each_change(make: Make) -> None:
    text = 'trap "stty size; exit 5" WINCH; stty size; echo $TERM; ' + FOREVER
    beside = make(script(text, window=WindowSize(111, 33), TERM="made-up"))
    beside.until(lambda: beside.text() == "33 111\r\nmade-up\r\n")
    beside.say(frame(terminal.RESIZE, json.dumps({"columns": 90, "rows": 30}).encode()))
    assert beside.finish() == 5
    assert beside.text().endswith("30 90\r\n")


def test_a_signal_reaches_the_command_and_what_it_started(make: Make) -> None:
    inner = f'trap "echo inner; exit" USR1; echo up; {FOREVER}'
    beside = make(script(f"trap 'true' USR1; sh -c '{inner}'; echo over"))
    beside.until(lambda: beside.text() == "up\n")
    beside.say(frame(terminal.SIGNAL, str(int(signal.SIGUSR1)).encode()))
    assert beside.finish() == 0
    assert beside.text() == "up\ninner\nover\n"


def test_words_that_make_no_sense_cost_themselves_alone(make: Make) -> None:
    beside = make(script("cat"))
    for payload in (b"", b"{}", b"[]", b"null", b'"a"', b'{"columns": -1, "rows": 2}', b"9999", b"1" * 40, b"[" * 9999):
        beside.say(frame(terminal.RESIZE, payload), frame(terminal.SIGNAL, payload))
    beside.say(frame(99, b"of tomorrow"), *pieces(terminal.INPUT, b"all is well"), frame(terminal.INPUT_END))
    assert beside.finish() == 0
    assert beside.text() == "all is well"


def test_who_asks_whether_it_lives_gets_an_answer(make: Make) -> None:
    beside = make(script("cat"))
    beside.say(frame(terminal.KEEP_ALIVE))
    beside.until(lambda: (terminal.KEEP_ALIVE, b"") in beside.heard)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (order("no-such-command"), "no-such-command: No such file or directory"),
        (order("/etc/passwd"), "/etc/passwd: Permission denied"),
        (order("true", folder="/nowhere"), "/nowhere: No such file or directory"),
        (order("true", folder="/nowhere", window=WindowSize(80, 24)), "/nowhere: No such file or directory"),
    ],
)
def test_a_command_that_cannot_be_run_says_why(make: Make, asked: CommandOrder, why: str) -> None:
    beside = make(asked)
    assert beside.process.wait(20 * SLOW) == 0
    while beside.hear():
        pass
    assert beside.heard == [(terminal.FAILED, why.encode())]


def test_a_command_starts_at_home_where_that_is_asked_for(make: Make, tmp_path: Path) -> None:
    beside = make(order("pwd", folder="~"), HOME=str(tmp_path))
    assert beside.finish() == 0
    assert beside.text() == f"{os.path.realpath(tmp_path)}\n"


def test_without_a_command_it_is_the_users_shell(make: Make) -> None:
    beside = make(order(), SHELL="/bin/sh")
    beside.say(*pieces(terminal.INPUT, b"echo $0; exit 4\n"))
    assert beside.finish() == 4
    assert beside.text() == "/bin/sh\n"


def test_a_command_hears_that_its_line_ended_and_can_tidy_up_also_one_that_stands_still(
    make: Make, tmp_path: Path
) -> None:
    for text in ("echo up; " + FOREVER, "echo up; kill -STOP $$; " + FOREVER):
        left = tmp_path / "left"
        beside = make(script(f'trap "echo bye; echo $$ >{left}; exit" HUP; {text}'))
        beside.until(lambda beside=beside: beside.text() == "up\n")  # type: ignore[misc]
        beside.hang_up()
        assert beside.process.wait(20 * SLOW) == 0
        wait_until(lambda left=left: left.exists() and left.read_text() != "", "the trap", 10)  # type: ignore[misc]
        left.unlink()


def test_an_engine_that_ends_the_program_ends_its_line(make: Make, tmp_path: Path) -> None:
    beside = make(script(f'trap "touch {tmp_path}/left; exit" HUP; echo up; {FOREVER}'))
    beside.until(lambda: beside.text() == "up\n")
    beside.process.terminate()
    assert beside.process.wait(20 * SLOW) == 0
    wait_until((tmp_path / "left").exists, "the trap", 10)


def test_what_a_command_leaves_behind_keeps_nobody(make: Make) -> None:
    beside = make(script("sleep 60 & echo $!; exit 6"))
    assert beside.finish() == 6
    os.kill(int(beside.text()), signal.SIGKILL)


def test_a_line_that_brings_no_order_ends_without_a_word(make: Make) -> None:
    for words in (frame(terminal.INPUT, b"x"), frame(terminal.START, b"{}"), b"GET / HTTP/1.1\r\n\r\n", b""):
        beside = make(None)
        beside.say(words)
        beside.hang_up()
        assert beside.process.wait(20 * SLOW) == 0
        assert not beside.hear()
        assert beside.heard == []


def test_a_relay_knows_as_long_as_somebody_works_beside_it(make: Make, tmp_path: Path) -> None:
    assert not is_any_open(str(tmp_path))
    beside = make(script("cat"))
    beside.until(lambda: bool(beside.heard))
    assert is_any_open(str(tmp_path))
    beside.say(frame(terminal.INPUT_END))
    beside.finish()
    assert not is_any_open(str(tmp_path))
    assert list((tmp_path / program.TERMINALS_NAME).iterdir()) == []


def test_a_command_has_the_variables_and_the_folder_of_the_kernel_process(make: Make, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    kernel = subprocess.Popen(
        ["sleep", "60"], cwd=tmp_path / "work", env={"PATH": os.environ["PATH"], "TOKEN": "of the kernel", "MODE": "a"}
    )
    try:
        (tmp_path / program.PID_NAME).write_text(str(kernel.pid))
        wait_until(lambda: Path(f"/proc/{kernel.pid}/environ").read_bytes() != b"", "it to begin", 10)
        beside = make(script('echo "$TOKEN $MODE $HERE"; pwd', MODE="b"), HERE="only here")
        beside.finish()
    finally:
        kernel.kill()
        kernel.wait()
    assert beside.text() == f"of the kernel b \n{os.path.realpath(tmp_path / 'work')}\n"


# -- its parts


def test_facts_of_a_kernel_are_read_whole_but_for_what_is_its_own(tmp_path: Path) -> None:
    variables = {b"A": b"1=2", b"ODD": b"\xff\n", b"JPY_SESSION_NAME": b"n.ipynb"}
    kernel = subprocess.Popen(["sleep", "60"], cwd="/", env={**variables, b"PATH": os.environb[b"PATH"]})
    try:
        (tmp_path / program.PID_NAME).write_text(str(kernel.pid))
        wait_until(lambda: Path(f"/proc/{kernel.pid}/environ").read_bytes() != b"", "it to begin", 10)
        environment, folder = kernel_facts(str(tmp_path))
    finally:
        kernel.kill()
        kernel.wait()
    assert folder == "/"
    assert environment == {"A": "1=2", "ODD": "\udcff\n", "PATH": os.environ["PATH"]}


@pytest.mark.parametrize("written", [None, "", "no number", "999999999"])
def test_without_a_kernel_process_the_containers_own_facts_hold(tmp_path: Path, written: str | None) -> None:
    if written is not None:
        (tmp_path / program.PID_NAME).write_text(written)
    assert kernel_facts(str(tmp_path)) == (dict(os.environ), str(Path.cwd()))


def test_a_kernel_process_without_any_variables_is_one_that_just_begins(tmp_path: Path) -> None:
    kernel = subprocess.Popen(["/bin/sleep", "60"], cwd="/", env={})
    try:
        (tmp_path / program.PID_NAME).write_text(str(kernel.pid))
        assert kernel_facts(str(tmp_path)) == (dict(os.environ), str(Path.cwd()))
    finally:
        kernel.kill()
        kernel.wait()


def test_a_shell_is_the_users_own_and_never_one_that_turns_away(tmp_path: Path) -> None:
    own = tmp_path / "myshell"
    own.touch(0o755)
    assert shell_argv({"SHELL": str(own)}) == [str(own)]
    (tmp_path / "nologin").touch(0o755)
    (tmp_path / "plain").touch(0o644)
    listed = [pwd.getpwuid(os.getuid()).pw_shell, "/bin/bash", "/bin/sh"]
    for shell in (str(tmp_path / "nologin"), str(tmp_path / "plain"), "/nowhere/sh", ""):
        (found,) = shell_argv({"SHELL": shell})
        assert found in listed
        assert os.access(found, os.X_OK)


def test_an_image_without_a_shell_is_named_as_such() -> None:
    with pytest.raises(OSError, match="the image has no shell") as caught:
        program.start([], "/", {}, Pipes(None))
    assert why_not([], "/", caught.value) == "the image has no shell"


def test_a_lock_is_held_as_long_as_its_process_lives(tmp_path: Path) -> None:
    held = hold_lock(str(tmp_path))
    assert held is not None
    descriptor, path = held
    assert is_any_open(str(tmp_path))
    # One that is being made has no lock yet, and is nobody's to remove.
    being_made = Path(path).with_name("1.new")
    being_made.touch()
    os.close(descriptor)
    assert not is_any_open(str(tmp_path))
    assert not Path(path).exists()
    assert being_made.exists()


def test_where_no_lock_can_be_made_a_command_runs_without_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert hold_lock(str(tmp_path / "file")) is None
    assert not is_any_open(str(tmp_path / "file"))


class Ends:
    """A line over two pipes: this process's ends of them, and the program's."""

    def __init__(self) -> None:
        source, self.out = os.pipe()
        self.into, sink = os.pipe()
        self.line = FrameLine(source, sink)
        self._decoder = frames.Decoder()

    def close(self) -> None:
        for descriptor in (self.out, self.into, self.line.source, self.line.sink):
            try:
                os.close(descriptor)
            except OSError:
                continue  # A test has closed it.

    def read(self) -> list[frames.Frame]:
        os.set_blocking(self.into, True)
        return self._decoder.feed(os.read(self.into, 1 << 20))


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def test_a_line_reads_what_there_is_and_knows_its_end(ends: Ends) -> None:
    assert ends.line.read() == []
    assert not ends.line.is_over
    whole = frame(terminal.INPUT, b"abc") + frame(terminal.KEEP_ALIVE)
    os.write(ends.out, whole[:5])
    assert ends.line.read() == []
    os.write(ends.out, whole[5:])
    assert [one.kind for one in ends.line.read()] == [terminal.INPUT, terminal.KEEP_ALIVE]
    os.close(ends.out)
    assert ends.line.read() == []
    assert ends.line.is_over


def test_a_line_that_brings_no_frames_is_over(ends: Ends) -> None:
    os.write(ends.out, b"\xff" * 100)
    assert ends.line.read() == []
    assert ends.line.is_over


def test_what_nobody_takes_waits_and_what_nobody_can_take_is_dropped(ends: Ends) -> None:
    ends.line.write(*pieces(terminal.OUTPUT, b"x" * 300_000))
    waiting = ends.line.waiting_bytes
    assert 0 < waiting < 300_000
    ends.read()
    ends.line.flush()
    assert 0 < ends.line.waiting_bytes < waiting
    os.close(ends.into)
    ends.line.flush()
    assert ends.line.is_over
    assert ends.line.waiting_bytes == 0


class Clock:
    """The time, as time.monotonic tells it."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


class Scene(Ends):
    """A command and its exchange in this process, step by step."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pipes = Pipes(None)
        self.popen = program.start(["sh", "-c", text], "/", os.environ, self.pipes)
        self.wake, self.ringer = socket.socketpair()
        self.exchange = Exchange(self.line, self.pipes, self.popen, self.wake)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.ringer.send(b"x")  # So that it never waits.
            self.exchange._step()

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self.pipes.close()
        self.wake.close()
        self.ringer.close()
        super().close()


MakeScene = Callable[[str], Scene]


@pytest.fixture
def scene(clock: Clock) -> Iterator[MakeScene]:
    made: list[Scene] = []

    def begin(text: str) -> Scene:
        made.append(Scene(text))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def test_a_command_waits_while_nobody_takes_its_output(scene: MakeScene) -> None:
    flood = scene("exec yes")
    while flood.line.waiting_bytes < MOST_UNSENT_BYTES:
        flood.step()
    waiting = flood.line.waiting_bytes
    flood.step(10)
    assert flood.line.waiting_bytes == waiting < MOST_UNSENT_BYTES + 2 * terminal.TERMINAL_PIECE_BYTES


def test_the_last_output_of_a_command_waits_for_a_slow_reader(scene: MakeScene, clock: Clock) -> None:
    total = MOST_UNSENT_BYTES + 2 * terminal.TERMINAL_PIECE_BYTES
    slow = scene(f"head -c {total} /dev/zero")
    while slow.popen.poll() is None or slow.line.waiting_bytes < MOST_UNSENT_BYTES:
        slow.step()
    assert slow.pipes.outputs, "some of it is still in the command's pipe"
    for _ in range(3):
        assert not slow.exchange._is_done()
        clock.now += 60
        slow.line.heard_at = clock.now  # It asks whether we live, and reads nothing.
        slow.step()
    thread = threading.Thread(target=slow.exchange.run)
    thread.start()
    came: list[frames.Frame] = []
    while not came or came[-1].kind != terminal.EXIT:
        came += slow.read()
    thread.join()
    assert sum(len(one.payload) for one in came if one.kind == terminal.OUTPUT) == total


def test_a_command_that_takes_no_input_stops_the_line_and_that_says_that_it_lives(
    scene: MakeScene, clock: Clock
) -> None:
    stuck = scene("exec sleep 60")
    os.set_blocking(stuck.out, False)
    while stuck.pipes.waiting_bytes < MOST_WAITING_BYTES:
        os.write(stuck.out, frame(terminal.INPUT, b"x" * 60_000))
        stuck.step()
    for _ in range(3):
        clock.now += LINE_SILENCE_SECONDS
        stuck.step(2)
        assert [one.kind for one in stuck.read()] == [terminal.KEEP_ALIVE]
    assert not stuck.line.is_over, "what it says is not read meanwhile"
    os.write(stuck.out, frame(terminal.KEEP_ALIVE))
    os.close(stuck.out)
    stuck.step()
    assert stuck.line.is_over, "an end is seen, although something stands before it"


def test_a_line_that_says_nothing_for_long_is_gone(scene: MakeScene, clock: Clock) -> None:
    lonely = scene("exec sleep 60")
    clock.now += LINE_SILENCE_SECONDS - 1
    lonely.step()
    assert not lonely.line.is_over
    os.write(lonely.out, frame(terminal.KEEP_ALIVE))
    lonely.step()
    clock.now += LINE_SILENCE_SECONDS - 1
    lonely.step()
    assert not lonely.line.is_over
    clock.now += 2
    lonely.ringer.send(b"x")
    lonely.exchange.run()
    assert lonely.popen.wait(20) == -signal.SIGHUP
