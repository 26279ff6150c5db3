"""relay/supervisor.py: what a relay says of its kernel, what it does when told, and what it ends with.

In this process, with kernel processes that say nothing. Whole relays: test_gpu_lock.py, tests/real/test_comeback.py.
Over 600 lines because it is one thing: each test is a script for the same relay.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernelbridge.protocol import frames
from kernelbridge.protocol.exit_codes import CLAIM_SECONDS, EXIT_CODES, UNJOINED_SECONDS, UNUSED_SECONDS
from kernelbridge.protocol.frames import COMMAND, ORDERED, SHELL, STDIN, Message
from kernelbridge.protocol.handshake import (
    ExitedEvent,
    FailedEvent,
    Goodbye,
    NoticeEvent,
    ReadyEvent,
    RelayEvent,
    TimeLeft,
    event_from,
)
from kernelbridge.relay import supervisor as supervisor_module
from kernelbridge.relay.beside import terminal
from kernelbridge.relay.gpus.gpu_lock import GpuLocks
from kernelbridge.relay.process.command_client import MOST_UNTAKEN_BYTES, CommandClient
from kernelbridge.relay.supervisor import Supervisor
from tests.rig.daemon import SLOW

LASTS = "import time; print('up', flush=True); time.sleep(600)"
DIES = "import sys; print('last words'); sys.exit(3)"


def order(code: str = LASTS, *, launch: int = 1, **more: Any) -> dict[str, Any]:
    argv = ["{python}", "-c", code]
    return {"do": "spawn", "launch": launch, "session": "s", "argv": argv, "env": {}, "cwd": "", "needs": [], **more}


class Scene:
    """A relay in a folder, whose deadlines go by a clock that tests move."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.awake = 1000.0
        locks = GpuLocks(())
        locks.take()
        self.relay = Supervisor({"kernel": "k1", "folder": str(folder), "spawn": order(), **more}, locks)

    def close(self) -> None:
        if self.relay.process is not None:
            self.relay.process.stop(signal.SIGKILL)
            self.relay.process.popen.wait()
            self.relay.process.close()
        self.relay.server.close()
        self.relay.monitor.close()
        self.relay.spool.close()
        self.relay.bell.close()
        self.relay.ringer.close()

    def events(self) -> list[RelayEvent | None]:
        """What was told since the last time."""
        found = []
        for lane, message in self._said():
            assert (lane, message.channel) == (ORDERED, frames.EVENT)
            found.append(event_from(json.loads(bytes(message.parts[0]))))
        return found

    def outputs(self) -> list[Any]:
        """What a command wrote since the last time, by topic, and the events between, in order."""
        found: list[Any] = []
        for lane, message in self._said():
            assert lane == ORDERED
            if message.channel == frames.EVENT:
                found.append(event_from(json.loads(bytes(message.parts[0]))))
            else:
                found.append((bytes(message.parts[0]), bytes(message.parts[-1])))
        return found

    def deliver(self) -> None:
        """Whoever is joined has taken all that was ever said."""
        (said,) = frames.Decoder().feed(frames.acknowledgement(0, len(self._said())))
        self.relay.stream.accept(said, time.monotonic())

    def _said(self) -> list[tuple[int, Message]]:
        came = frames.Decoder().feed(b"".join(self.relay.stream.outgoing(time.monotonic())))
        return [(frame.flags & frames.LANE, frames.unpack(frame.payload)) for frame in came]

    def command(self, **said: Any) -> None:
        self.relay.obey(Message(COMMAND, 1, [json.dumps(said).encode()]))

    def asks(self, kind: str, **content: Any) -> None:
        """A client asks the kernel something."""
        header, said = json.dumps({"msg_type": kind, "msg_id": "m1"}).encode(), json.dumps(content).encode()
        self.relay.obey(Message(SHELL, 1, [b"me", frames.DELIMITER, b"", header, b"{}", b"{}", said]))

    def step_until(self, claim: Callable[[], bool]) -> None:
        until = time.monotonic() + 20 * SLOW
        while not claim():
            assert time.monotonic() < until, self.relay.status()
            self.relay._look_at = 0.0
            self.relay.step()

    def later(self, seconds: float) -> None:
        """So much time passes, and the relay looks at its deadlines."""
        self.awake += seconds
        self.relay._look_at = 0.0
        self.relay.step()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []
    monkeypatch.setattr(supervisor_module, "awake_seconds", lambda: scenes[-1].awake if scenes else 1000.0)

    def made(**more: Any) -> Scene:
        scenes.append(Scene(tmp_path, **more))
        return scenes[-1]

    yield made
    for scene in scenes:
        scene.close()


Make = Callable[..., Scene]


# -- what it says


def test_before_its_kernel_is_there_a_relay_is_starting_and_nobodys(make: Make) -> None:
    said = make().relay.status()
    assert (said.state, said.launch, said.session, said.ready, said.info) == ("starting", 0, "", False, None)
    assert (said.owner, said.alone_seconds, said.outcome, said.lacks) == (None, 0.0, None, "")
    assert said.version == frames.VERSION


def test_a_kernel_process_that_has_not_answered_yet_is_starting(make: Make) -> None:
    scene = make(terms={"persist": True})
    scene.relay.spawn(order(launch=4))
    said = scene.relay.status()
    assert (said.state, said.launch, said.session, said.ready, said.persist) == ("starting", 4, "s", False, True)
    scene.step_until(lambda: "up" in scene.relay.log_text())
    assert scene.events() == []


def test_how_long_it_has_been_alone_and_quiet_is_told_in_seconds(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order())
    scene.awake += 7
    assert (scene.relay.status().alone_seconds, scene.relay.status().quiet_seconds) == (7.0, 7.0)
    scene.relay.joined()
    assert scene.relay.status().alone_seconds is None
    scene.relay.left()
    scene.awake += 2
    assert scene.relay.status().alone_seconds == 2.0


# -- what becomes of a kernel process


def test_an_image_that_lacks_a_module_gets_no_kernel_and_says_which(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order(needs=["json", "no_such_module", "nor_this"]))
    assert scene.events() == [FailedEvent(1, lacks="no_such_module")]
    assert (scene.relay.status().state, scene.relay.status().lacks) == ("exited", "no_such_module")
    assert scene.relay.process is None


def test_a_kernel_that_cannot_be_started_says_why(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order(argv=["/nowhere/python"]))
    (event,) = scene.events()
    assert isinstance(event, FailedEvent)
    assert "/nowhere/python" in event.reason


def test_a_kernel_process_that_ends_by_itself_is_told_with_its_last_words(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order(DIES))
    scene.step_until(lambda: scene.relay.process is None)
    (event,) = scene.events()
    assert event == ExitedEvent(1, code=3, out_of_memory=False, wanted=False, last_words="last words")
    said = scene.relay.status()
    assert (said.state, said.outcome, said.launch) == ("exited", event, 0)
    assert "last words" in scene.relay.log_text()


def test_a_new_launch_ends_the_old_one_first(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order())
    old = scene.relay.process
    scene.command(**order(launch=2))
    assert old is not None
    assert old.popen.returncode is not None
    (event,) = scene.events()
    assert isinstance(event, ExitedEvent)
    assert (event.launch, event.wanted) == (1, True)
    said = scene.relay.status()
    assert (said.launch, said.state, said.outcome) == (2, "starting", None)


@pytest.mark.parametrize(
    ("number", "is_wanted"), [(signal.SIGTERM, True), (signal.SIGKILL, True), (signal.SIGUSR1, False)]
)
def test_a_signal_is_passed_on_and_only_one_that_ends_counts_as_wanted(
    make: Make, number: int, is_wanted: bool
) -> None:
    scene = make()
    scene.relay.spawn(order())
    scene.step_until(lambda: "up" in scene.relay.log_text())
    scene.command(do="signal", number=int(number))
    scene.step_until(lambda: scene.relay.process is None)
    (event,) = scene.events()
    assert isinstance(event, ExitedEvent)
    assert (event.code, event.wanted) == (-number, is_wanted)


def test_a_signal_for_a_kernel_that_is_no_more_does_nothing(make: Make) -> None:
    scene = make()
    scene.command(do="signal", number=int(signal.SIGINT))
    scene.command(do="something of tomorrow")
    assert scene.events() == []


def test_a_request_for_an_older_launch_never_reaches_the_kernel(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order(launch=2))
    asked: list[Any] = []
    scene.relay.client.say = lambda *words: asked.append(words)  # type: ignore[method-assign]
    header = json.dumps({"msg_type": "execute_request", "msg_id": "m1"}).encode()
    parts = [b"me", frames.DELIMITER, b"", header, b"{}", b"{}", b"{}"]
    scene.relay.obey(Message(SHELL, 1, list(parts)))
    assert asked == []
    scene.relay.obey(Message(SHELL, 2, list(parts)))
    assert asked == [(SHELL, parts)]


def test_an_acknowledgement_that_nobody_can_hear_wakes_no_relay_again_and_again(make: Make) -> None:
    relay: Any = make().relay
    packed = frames.pack(Message(SHELL, 1, [b"x"]))
    relay.stream.accept(frames.Frame(frames.DATA, ORDERED, 1, packed), time.monotonic() - 10.0)
    relay._look_at = time.monotonic() + 60.0
    line = SimpleNamespace(unsent=[], close=lambda: None)
    for relay.server.connection, is_due in ((None, False), (line, True)):
        assert (relay._patience_ms() <= 1) is is_due
    line.unsent = [b"what the pipe did not take"]
    assert relay._patience_ms() > 1000
    relay.server.connection = None


# -- how it ends


def test_a_kernel_that_nobody_ever_joined_ends_soon_and_the_relay_with_its_code(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order())
    scene.later(0)
    assert scene.relay.status().deadline == TimeLeft(UNJOINED_SECONDS, "unjoined")
    scene.later(UNJOINED_SECONDS - 1)
    assert scene.relay.exit_code is None
    scene.later(1)
    assert scene.relay.exit_code == EXIT_CODES["unjoined"] == 85
    assert scene.relay.process is None


def test_after_a_goodbye_that_ends_it_the_relay_waits_for_a_restart_under_the_claim(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order())
    scene.relay.joined()
    scene.relay.goodbye(Goodbye(end=True, claim="mine"))
    assert scene.relay.process is None
    assert (scene.relay.may_claim("mine"), scene.relay.may_claim("theirs"), scene.relay.may_claim("")) == (
        True,
        False,
        False,
    )
    assert scene.relay.status().claim
    scene.later(CLAIM_SECONDS - 1)
    assert scene.relay.exit_code is None
    scene.later(1)
    assert scene.relay.exit_code == EXIT_CODES["goodbye"] == 0


def test_who_comes_back_in_time_ends_the_wait_and_the_claim(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order())
    scene.relay.joined()
    scene.relay.goodbye(Goodbye(end=True, claim="mine"))
    scene.relay.joined()
    assert not scene.relay.may_claim("mine")
    scene.later(10 * CLAIM_SECONDS)
    assert scene.relay.exit_code is None


def test_a_goodbye_that_ends_nothing_lets_the_kernel_run_on(make: Make) -> None:
    scene = make(terms={"persist": True})
    scene.relay.spawn(order())
    scene.relay.joined()
    scene.asks("execute_request", code="1")
    scene.relay.goodbye(Goodbye(end=False))
    scene.later(100_000)
    assert scene.relay.process is not None
    assert (scene.relay.exit_code, scene.relay.status().claim) == (None, False)


def test_a_kernel_in_which_nobody_ran_a_cell_ends_with_its_owner_whatever_it_printed(make: Make) -> None:
    scene = make(terms={"persist": True})
    scene.relay.spawn(order())
    scene.relay.joined()
    # The hidden cells of an editor, and what it asks besides.
    scene.asks("execute_request", code="1", silent=False, store_history=False)
    scene.asks("complete_request", code="1")
    assert not scene.relay.status().used
    scene.relay._has_output = True
    scene.relay.left()
    scene.later(UNUSED_SECONDS - 1)
    assert scene.relay.exit_code is None
    scene.later(1)
    assert scene.relay.exit_code == EXIT_CODES["unused"] == 86


@pytest.mark.parametrize("parts", [[], [b"me"], [frames.DELIMITER, b"", b"no json", b"", b"", b""]])
def test_what_cannot_be_read_may_be_a_cell(make: Make, parts: list[bytes]) -> None:
    scene = make()
    scene.relay.spawn(order())
    scene.relay.client.say = lambda *words: None  # type: ignore[method-assign]
    scene.relay.obey(Message(SHELL, 1, parts))
    assert scene.relay.status().used


def test_a_lost_kernel_ends_after_its_grace_and_says_which_key_ended_it(make: Make) -> None:
    scene = make(terms={"lost_grace": 50.0})
    scene.relay.spawn(order())
    scene.relay.joined()
    scene.command(do="signal", number=0)
    scene.relay.left()
    scene.later(49)
    assert scene.relay.exit_code is None
    assert scene.relay.status().deadline == TimeLeft(1.0, "lost_grace")
    scene.later(1)
    (event,) = scene.events()
    assert isinstance(event, ExitedEvent)
    assert (event.why, event.wanted) == ("lost_grace", True)
    assert scene.relay.exit_code == EXIT_CODES["lost_grace"] == 81


def test_a_kernel_that_ends_by_a_limit_while_somebody_is_joined_is_told_before_the_relay_ends(make: Make) -> None:
    scene = make(terms={"max_lifetime": 100.0})
    scene.relay.spawn(order())
    scene.relay.joined()
    scene.command(do="signal", number=0)
    scene.later(100)
    assert scene.relay.exit_code is None, "what it said is delivered first"
    (event,) = scene.events()
    assert isinstance(event, ExitedEvent)
    assert event.why == "max_lifetime"
    scene.later(1)
    scene.later(10)
    assert scene.relay.exit_code == EXIT_CODES["max_lifetime"] == 83


def test_output_without_a_folder_for_its_file_is_kept_in_memory(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    scene = make(journal={"folder": str(tmp_path / "file" / "below"), "bytes": 1000})
    scene.relay.spawn(order(DIES))
    scene.step_until(lambda: scene.relay.process is None)
    assert len(scene.events()) == 1


def test_the_journals_folder_is_made_for_this_login_alone(make: Make, tmp_path: Path) -> None:
    make(journal={"folder": str(tmp_path / "a" / "journal"), "bytes": 1000})
    assert (tmp_path / "a" / "journal").stat().st_mode & 0o777 == 0o700


# -- the setup before a kernel


def test_a_setup_is_told_as_it_goes_and_runs_once_in_a_container_unless_at_each_restart(
    make: Make, tmp_path: Path
) -> None:
    scene = make()
    runs = tmp_path / "runs"
    waits = f"echo fetching; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    setup: dict[str, Any] = {"setup": [waits, f"echo x >> {runs}"]}
    scene.relay.spawn(order(**setup))
    told: list[Any] = []

    def is_told() -> bool:
        told.extend(scene.events())
        return bool(told) and told[-1] == NoticeEvent(1, "setup", waits, "fetching")

    scene.step_until(is_told)
    (tmp_path / "go").touch()
    scene.step_until(lambda: "up" in scene.relay.log_text())
    assert scene.relay.process is not None
    assert scene.relay.process.setup_state() is None
    scene.relay._ready({})
    for launch, every, count in ((2, "start", 1), (3, "restart", 2)):
        before = scene.relay.log_text().count("up")
        scene.relay.spawn(order(launch=launch, setup_every=every, **setup))
        scene.step_until(lambda before=before: scene.relay.log_text().count("up") > before)  # type: ignore[misc]
        assert runs.read_text() == "x\n" * count


def test_a_setup_that_fails_is_the_starts_failure_with_its_last_words(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order(setup=["echo one; echo two >&2; exit 3", "echo never"]))
    scene.step_until(lambda: scene.relay.process is None)
    told = [event for event in scene.events() if not isinstance(event, NoticeEvent)]
    assert told == [FailedEvent(1, reason="exit code 3: one | two", setup="echo one; echo two >&2; exit 3")]


def test_a_setup_that_is_ended_has_not_failed(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order(setup=["sleep 600"]))
    scene.command(do="signal", number=signal.SIGKILL)
    scene.step_until(lambda: scene.relay.process is None)
    assert [type(event) for event in scene.events() if not isinstance(event, NoticeEvent)] == [ExitedEvent]


# -- the image's ENTRYPOINT


def entrypoint(folder: Path, script: str, **env: str) -> dict[str, Any]:
    path = folder / "entry.sh"
    path.write_text(script)
    path.chmod(0o755)
    return {"argv": [str(path)], "env": env, "seconds": 20.0 * SLOW}


def test_a_kernel_gets_what_the_images_entrypoint_sets_up_and_so_does_the_next(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SET_UP", "GIVEN"):
        monkeypatch.delenv(name, raising=False)
    scene = make()
    says = "import os, time; print([os.environ.get(k) for k in ('SET_UP', 'GIVEN')], flush=True); time.sleep(600)"
    script = '#!/bin/sh\necho set up\nexport SET_UP=$GIVEN\nexec "$@"\n'
    scene.relay.spawn(order(says, entrypoint=entrypoint(tmp_path, script, GIVEN="1")))
    assert (scene.relay.process, scene.relay.status().state) == (None, "starting")
    scene.step_until(lambda: "['1', None]" in scene.relay.log_text())
    assert scene.relay.log_text().startswith("set up\n")
    (tmp_path / "entry.sh").unlink()
    scene.command(**order(says, launch=2))
    scene.step_until(lambda: scene.relay.log_text().count("['1', None]") == 2)
    monkeypatch.delenv("SET_UP")


def test_an_entrypoint_that_fails_stops_no_kernel_and_is_told_with_its_first_answer(make: Make, tmp_path: Path) -> None:
    scene = make()
    scene.relay.spawn(order(entrypoint=entrypoint(tmp_path, "#!/bin/sh\necho no; exit 4\n")))
    scene.step_until(lambda: "up" in scene.relay.log_text())
    for _ in range(2):
        scene.relay._ready({})
    first, second = scene.events()
    assert first == ReadyEvent(1, {}, "ended with exit code 4 and has not run its command: no")
    assert second == ReadyEvent(1, {})


def test_a_restart_while_the_entrypoint_runs_runs_it_anew_and_an_end_ends_it(make: Make, tmp_path: Path) -> None:
    scene = make()
    scene.relay.spawn(order(entrypoint=entrypoint(tmp_path, "#!/bin/sh\nsleep 600\n")))
    (first,) = scene.relay._own_children()
    scene.command(**order(launch=2))
    (second,) = scene.relay._own_children()
    assert first != second
    scene.relay.goodbye(Goodbye(end=True))
    assert scene.relay._own_children() == []
    scene.relay.step()
    assert scene.relay.process is None


# -- a user's command in the place of a kernel


def command(text: str, *, window: Any = None, waits: bool = False, **more: Any) -> dict[str, Any]:
    return order(argv=["sh", "-c", text], command={"window": window, "waits": waits}, **more)


def begun(make: Make, text: str, *, terms: Any = None, **more: Any) -> Scene:
    """A relay that runs a command, and that somebody has joined."""
    spawn = command(text, **more)
    scene = make(spawn=spawn, terms=terms or {"persist": True})
    scene.relay.spawn(spawn)
    scene.relay.joined()
    return scene


def wrote(told: list[Any], topic: bytes = b"stream.stdout") -> bytes:
    return b"".join(one[1] for one in told if one[0] == topic)


def said(scene: Scene, data: bytes) -> None:
    scene.relay.obey(Message(STDIN, 1, [data]))


def test_a_commands_output_and_then_its_end_are_told_in_order(make: Make) -> None:
    scene = begun(make, "echo one; echo two; exit 3")
    assert (scene.relay.status().ready, scene.relay.status().state) == (True, "busy")
    scene.step_until(lambda: scene.relay.process is None)
    first, *between, last = scene.outputs()
    assert first == ReadyEvent(1, {})
    assert wrote(between) == b"one\ntwo\n"
    assert isinstance(last, ExitedEvent)
    assert (last.code, scene.relay.status().state) == (3, "exited")


def test_a_command_gets_input_and_its_end(make: Make) -> None:
    scene = begun(make, "cat; echo over")
    said(scene, b"words ")
    said(scene, b"")
    scene.step_until(lambda: scene.relay.process is None)
    assert wrote(scene.outputs()) == b"words over\n"


def test_a_terminal_is_read_also_while_it_takes_no_input(make: Make) -> None:
    size = {"columns": 80, "rows": 24}
    scene = begun(make, "stty raw -echo; echo up; head -c 300000 /dev/zero; head -c 200000 | wc -c", window=size)
    scene.step_until(lambda: "up" in scene.relay.log_text())
    said(scene, b"x" * 200_000)
    scene.step_until(lambda: scene.relay.process is None)
    assert scene.relay.log_text().rstrip().endswith("200000")


def test_a_command_hears_of_another_size_and_of_signals(make: Make) -> None:
    size = {"columns": 80, "rows": 24}
    text = "trap 'stty size' WINCH; trap 'exit 9' INT; echo up; while :; do sleep 0.01; done"
    scene = begun(make, text, window=size)
    scene.step_until(lambda: "up" in scene.relay.log_text())
    scene.command(do="resize", window={"columns": 99, "rows": 11})
    scene.step_until(lambda: "11 99" in scene.relay.log_text())
    scene.command(do="signal", number=int(signal.SIGINT))
    scene.step_until(lambda: scene.relay.process is None)
    assert scene.relay.outcome is not None
    assert scene.relay.outcome.code == 9
    scene.command(do="resize", window={"columns": 99, "rows": 11})  # There is nothing to resize.


def test_a_size_is_nothing_to_a_kernel(make: Make) -> None:
    scene = make()
    scene.relay.spawn(order())
    scene.command(do="resize", window={"columns": 99, "rows": 11})
    assert scene.relay.process is not None


def test_a_command_that_cannot_be_started_says_why(make: Make) -> None:
    spawn = {**command(""), "argv": ["no-such-command"]}
    scene = make(spawn=spawn)
    scene.relay.spawn(spawn)
    (event,) = scene.events()
    assert isinstance(event, FailedEvent)
    assert "No such file or directory: 'no-such-command'" in event.reason


def test_how_a_command_ended_is_kept_until_somebody_has_taken_it(make: Make) -> None:
    scene = begun(make, "exit 5", terms={"lost_grace": 50.0})
    scene.relay.left()
    scene.step_until(lambda: scene.relay.process is None)
    scene.later(100_000)
    assert scene.relay.exit_code is None
    assert scene.relay.status().undelivered_bytes > 0
    scene.relay.joined()
    scene.deliver()
    scene.later(0)
    assert scene.relay.status().undelivered_bytes == 0


def test_a_command_waits_while_nobody_takes_its_output_and_is_read_on_when_nobody_is_there(make: Make) -> None:
    scene = begun(make, "head -c 9000000 /dev/zero; echo over >&2")
    # Somebody is joined, as far as descriptors tell; see server.py.
    client = scene.relay.client
    assert isinstance(client, CommandClient)
    assert client.outputs(MOST_UNTAKEN_BYTES + 1, is_joined=True) == ([], [])
    scene.step_until(lambda: scene.relay.process is None)
    assert "over\n" in scene.relay.log_text()


def test_a_container_that_waits_is_idle_until_somebody_works_in_it(make: Make, tmp_path: Path) -> None:
    scene = begun(make, "sleep 600", waits=True, terms={"persist": True, "idle_timeout": 50.0})
    assert (scene.relay.status().ready, scene.relay.status().state) == (True, "idle")
    held = terminal.hold_lock(str(tmp_path))
    assert held is not None
    scene.relay.goodbye(Goodbye(end=False))
    for _ in range(5):
        scene.later(40)
    assert scene.relay.process is not None
    os.close(held[0])
    for _ in range(3):
        scene.later(40)
    assert scene.relay.process is None
    assert scene.relay.outcome is not None
    assert scene.relay.outcome.why == "idle_timeout"


def test_a_command_counts_as_used_and_runs_on_when_who_started_it_goes(make: Make) -> None:
    scene = begun(make, "sleep 600")
    assert scene.relay.status().used
    scene.relay.left()
    scene.later(100_000)
    assert scene.relay.process is not None


def test_a_setup_comes_before_a_command_that_is_ready_after_it(make: Make) -> None:
    scene = begun(make, "echo done", setup=["echo making"])
    assert not scene.relay.status().ready
    scene.step_until(lambda: scene.relay.process is None)
    told = scene.outputs()
    assert (wrote(told), wrote(told, b"stream.stderr")) == (b"done\n", b"making\n")
