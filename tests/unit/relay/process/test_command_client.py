"""relay/process/command_client.py: what a relay has in the place of a kernel's sockets while a user's command runs."""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.frames import IOPUB, SHELL, STDIN, Message
from kernelbridge.protocol.handshake import InputEvent
from kernelbridge.protocol.left_output import CellTitles, LeftOutput, plain
from kernelbridge.relay.process.command_client import (
    MOST_UNTAKEN_BYTES,
    TELL_TAKEN_BYTES,
    CommandClient,
    output_parts,
)
from kernelbridge.relay.process.kernel_process import KernelProcess, Ring
from tests.rig.daemon import wait_until


class Scene:
    """A client, and all that it told."""

    def __init__(self, folder: Path, *, waits: bool = False) -> None:
        self.folder = folder
        self.heard: list[tuple[int, list[Any]]] = []
        self.readies: list[Any] = []
        self.told: list[InputEvent] = []
        self.client = CommandClient(
            lambda channel, parts: self.heard.append((channel, parts)),
            self.readies.append,
            self.told.append,
            waits=waits,
        )
        self.processes: list[KernelProcess] = []

    def begin(self, text: str, **more: Any) -> KernelProcess:
        order = {"argv": ["sh", "-c", text], "session": "s", "command": {}, **more}
        launch = len(self.processes) + 1
        self.processes.append(KernelProcess(launch, str(self.folder), order, Ring(), scratch=str(self.folder)))
        self.client.connect(self.processes[-1])
        return self.processes[-1]

    def turn(self) -> bool:
        """What the relay's loop does with a command."""
        (process,) = self.processes[-1:]
        reads, writes = self.client.outputs(0, is_joined=True)
        ready = select.select(reads, writes, [], 0.01)
        if ready[0]:
            process.read_output()
        self.client.nudge(0.0)
        self.client.do_due(0.0)
        return True

    def until(self, claim: Callable[[], bool], what: str = "it") -> None:
        wait_until(lambda: self.turn() and claim(), what, 20)

    @property
    def text(self) -> bytes:
        return b"".join(bytes(parts[-1]) for _, parts in self.heard)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    for process in made.processes:
        process.stop()
        process.popen.wait()
        process.close()


def test_a_piece_of_output_is_a_stream_message_with_its_bytes_as_they_are() -> None:
    parts = output_parts(terminal.ERRORS, b"\xff\r\n")
    topic, delimiter, signature, header, parent, metadata, content, buffer = parts
    assert (topic, delimiter, signature, buffer) == (b"stream.stderr", frames.DELIMITER, b"", b"\xff\r\n")
    assert json.loads(bytes(header))["msg_type"] == "stream"
    assert (parent, metadata) == (b"{}", b"{}")
    assert json.loads(bytes(content)) == {"name": "stderr", "text": ""}
    assert output_parts(terminal.OUTPUT, b"x")[0] == b"stream.stdout"
    left = LeftOutput(CellTitles())
    left.add(output_parts(terminal.OUTPUT, b"whole words\n"))
    assert plain(left.flush()).endswith("whole words\n"), "`logs --output` reads it"


def test_a_command_is_ready_at_once_and_busy_until_it_has_ended(scene: Scene) -> None:
    assert (scene.client.is_busy, scene.client.is_asking, scene.client.is_ready) == (False, False, False)
    process = scene.begin("echo out; echo err >&2; sleep 60")
    assert (scene.client.is_busy, scene.client.is_asking, scene.client.is_ready) == (True, False, True)
    scene.until(lambda: len(scene.heard) == 2, "its output")
    assert sorted((channel, bytes(parts[0]), bytes(parts[-1])) for channel, parts in scene.heard) == [
        (IOPUB, b"stream.stderr", b"err\n"),
        (IOPUB, b"stream.stdout", b"out\n"),
    ]
    assert scene.readies == [{}]
    assert "out" in process.ring.text(), "it is in the log too"
    scene.client.close()
    assert (scene.client.is_busy, scene.client.is_ready) == (False, False)
    assert scene.client.outputs(0, is_joined=False) == ([], [])


def test_what_only_waits_is_not_busy(tmp_path: Path) -> None:
    waiting = Scene(tmp_path, waits=True)
    process = waiting.begin("sleep 60")
    assert (waiting.client.is_ready, waiting.client.is_busy) == (True, False)
    process.stop()
    process.popen.wait()
    process.close()


def test_a_command_whose_setup_runs_or_whose_gpus_are_looked_for_is_not_ready(scene: Scene, tmp_path: Path) -> None:
    scene.client.is_held = True
    scene.begin("echo up; sleep 60", setup=[f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"])
    scene.client.nudge(0.0)
    assert scene.client.is_asking
    (tmp_path / "go").touch()
    scene.until(lambda: scene.text == b"up\n", "the command")
    assert scene.client.is_asking
    scene.client.release()
    assert (scene.client.is_asking, scene.readies) == (False, [{}])


def test_a_command_gets_its_input_and_the_end_of_it_and_what_it_took_is_told(scene: Scene) -> None:
    scene.begin("wc -c")
    piece = b"x" * 50_000
    for _ in range(8):
        scene.client.say(STDIN, [piece])
    scene.client.say(STDIN, [b""])
    scene.until(lambda: scene.text.strip() == b"400000", "its answer")
    assert [event.launch for event in scene.told] == [1] * len(scene.told)
    taken = [event.taken_bytes for event in scene.told]
    assert taken == sorted(taken)
    assert 400_000 - taken[-1] < TELL_TAKEN_BYTES
    assert len(taken) <= 400_000 // TELL_TAKEN_BYTES


def test_a_command_that_takes_nothing_is_told_nothing_of(scene: Scene) -> None:
    scene.begin("sleep 60")
    for _ in range(8):
        scene.client.say(STDIN, [b"x" * 50_000])
    scene.turn()
    assert scene.told == []
    assert scene.client.outputs(0, is_joined=True)[1] != [], "it waits for when more can be written"


@pytest.mark.parametrize(("channel", "parts"), [(SHELL, [b"x"]), (STDIN, []), (IOPUB, [b""])])
def test_what_is_no_input_is_let_be(scene: Scene, channel: int, parts: list[frames.Buffer]) -> None:
    scene.begin("cat")
    scene.client.say(channel, parts)
    scene.client.say(STDIN, [b"words"])
    scene.until(lambda: scene.text == b"words", "its answer")


def test_input_for_a_command_that_has_ended_is_nothing(scene: Scene) -> None:
    scene.client.say(STDIN, [b"early"])
    scene.client.do_due(0.0)
    assert scene.client.refusal(Message(STDIN, 1, [b"x"])) == []
    assert scene.told == []


def test_a_command_waits_while_who_is_joined_takes_nothing_and_goes_on_when_nobody_is(scene: Scene) -> None:
    scene.begin("sleep 60")
    assert len(scene.client.outputs(MOST_UNTAKEN_BYTES, is_joined=True)[0]) == 2
    assert scene.client.outputs(MOST_UNTAKEN_BYTES + 1, is_joined=True)[0] == []
    assert len(scene.client.outputs(MOST_UNTAKEN_BYTES + 1, is_joined=False)[0]) == 2


def test_the_last_output_of_one_launch_is_taken_and_that_of_an_older_one_is_not(scene: Scene) -> None:
    first = scene.begin("echo last")
    first.popen.wait()
    scene.client.listen_to_the_end()
    assert scene.text == b"last\n"
    scene.client.close()
    scene.begin("sleep 60")
    first.written(terminal.OUTPUT, b"late")
    assert scene.text == b"last\n"
