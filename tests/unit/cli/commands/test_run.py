"""cli/commands/run.py: a command, or a container that waits, in the place of a kernel; and joining one that runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli.commands import run
from kernelbridge.errors import CommandNotRun, KernelEnded, KernelHeld, UnknownHost
from kernelbridge.files.project import Checkout
from kernelbridge.kernel.records import KernelRecord, Records, default_folder
from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import WindowSize
from tests.fakes import row
from tests.made_runs import RunFleet, Script
from tests.rig.daemon import wait_until
from tests.unit.cli.commands.conftest import Feed, Shell, unread_stdout
from tests.unit.cli.conftest import Call

FIRST, SECOND = "aabb1111-0000-4000-8000-000000000001", "ccdd2222-0000-4000-8000-000000000002"
HELD = KernelHeld(kernel="aabb1111-000", host="lab", who="bob@desk", since="12:00")
OUTPUT = (terminal.OUTPUT, b"out\n")


@pytest.fixture
def fleet(run_fleet: RunFleet) -> RunFleet:
    return run_fleet


@pytest.fixture
def call(run_call: Call) -> Call:
    return run_call


@contextmanager
def meanwhile(claim: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Do something as soon as the call has come so far."""

    def wait_and_act() -> None:
        wait_until(claim, "the call to come so far", 20)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield
    thread.join()


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# -- run


def test_a_command_has_both_outputs_and_its_exit_code_and_leaves_nothing(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    fleet.script = Script(writes=[OUTPUT, (terminal.ERRORS, b"err\n")], code=3, progress=["lab: pulling"])
    ended = call("run", "pytorch", "--", "train", "--fast")
    assert (ended.code, ended.out, ended.err) == (3, "out\n", "err\n")
    assert fleet.script.steps[0] == "start"
    assert fleet.script.steps[-1] == "remove"
    request = fleet.request
    assert request is not None
    assert request.command is not None
    assert (request.command.argv, request.command.window, request.command.folder) == (("train", "--fast"), None, "")
    assert (request.title, request.environment.persist, request.environ["TERM"]) == ("train --fast", True, "made-up")
    assert [host.name for host in request.hosts] == ["lab"]
    assert len(request.kernel_id) == 36
    assert fleet.is_closed


def test_options_behind_the_environment_are_the_commands(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    assert call("run", "-w", "/data", "pytorch", "python", "-d", "--host", "x", "--help").code == 0
    assert fleet.request is not None
    assert fleet.request.command is not None
    assert fleet.request.command.argv == ("python", "-d", "--host", "x", "--help")
    assert (fleet.request.command.folder, [host.name for host in fleet.request.hosts]) == ("/data", ["lab"])


def test_without_a_command_there_is_none_to_run(call: Call, fleet: RunFleet) -> None:
    for words in (("run", "pytorch"), ("run", "pytorch", "--"), ("run",)):
        assert call(*words).code == 2
    assert fleet.request is None


def test_an_environment_or_a_host_that_is_not_there_is_named(call: Call, fleet: RunFleet) -> None:
    assert call("run", "jax", "true").code == 12
    ended = call("run", "--host", "tow", "pytorch", "true")
    assert ended.code == UnknownHost.exit_code
    assert "two" in ended.err
    assert fleet.request is None


def test_a_host_is_taken_by_its_name_and_this_machine_needs_no_entry(call: Call, fleet: RunFleet, feed: Feed) -> None:
    for name in ("two", "local"):
        feed(b"")
        assert call("run", "--host", name, "pytorch", "true").code == 0
        assert fleet.request is not None
        assert [host.name for host in fleet.request.hosts] == [name]
        assert fleet.request.hosts[0].ssh == name


def test_a_title_is_short_and_harmless(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    assert call("run", "pytorch", "sh", "-c", "\x1b]0;x\x07" + "y" * 100).code == 0
    assert fleet.request is not None
    assert len(fleet.request.title) == run.TITLE_LENGTH
    assert fleet.request.title.isprintable()
    assert fleet.request.title.startswith("sh -c '?]0;x?yyy")


def test_input_goes_to_the_command_with_its_end(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"words")
    fleet.script = Script(code=None, ends_with_input=True)
    assert call("run", "pytorch", "wc", "-c").code == 5
    assert fleet.script.inputs == [b"words"]


def test_a_start_that_fails_says_why(call: Call, fleet: RunFleet) -> None:
    fleet.script = Script(start_failure=CommandNotRun(host="lab", reason="trian: No such file or directory"))
    ended = call("run", "pytorch", "trian")
    assert (ended.code, ended.out) == (93, "")
    assert ended.err.startswith("lab: the command could not be run: trian")


def test_what_is_said_of_a_run_stands_on_lines_of_stderr(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.script = Script(tells=["lab can be reached again.", "a \x1b[31mred\x07 word"], writes=[OUTPUT])
    ended = call("run", "pytorch", "true")
    assert ended.out == "out\n"
    assert ended.err == "kernelbridge: lab can be reached again.\nkernelbridge: a ?[31mred? word\n"


def test_ctrl_c_while_it_starts_leaves_nothing(call: Call, fleet: RunFleet) -> None:
    fleet.script = Script(never_starts=True)
    with meanwhile(lambda: "start" in fleet.script.log, kill(signal.SIGINT)):
        assert call("run", "pytorch", "true").code == 130
    assert fleet.script.steps == ["start", "remove"]


def test_ctrl_c_is_the_commands_while_it_runs(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.script = Script(code=None)
    with meanwhile(lambda: "end of input" in fleet.script.log, kill(signal.SIGINT)):
        assert call("run", "pytorch", "sleep", "60").code == 130
    assert "signal 2" in fleet.script.log
    assert fleet.script.steps[-1] == "remove"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_closed_terminal_leaves_the_command_running(call: Call, fleet: RunFleet, feed: Feed, name: str) -> None:
    feed(b"")
    fleet.script = Script(code=None)
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with meanwhile(lambda: "end of input" in fleet.script.log, kill(number)):
        ended = call("run", "pytorch", "sleep", "60")
    assert ended.code == 0
    assert fleet.request is not None
    assert ended.err == f"The command runs on: `kernelbridge attach {fleet.request.kernel_id[:12]}`.\n"
    assert fleet.script.steps[-1] == "detach"
    assert signal.getsignal(number) is before


def test_a_command_that_was_ended_by_a_limit_is_left_for_its_log(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    failure = KernelEnded(environment="pytorch", host="lab", how="was removed by another program")
    fleet.script = Script(writes=[OUTPUT], failure=failure)
    ended = call("run", "pytorch", "true")
    assert (ended.code, ended.out) == (failure.exit_code, "out\n")
    assert fleet.script.steps[-1] == "detach"


def test_a_run_whose_output_nobody_reads_runs_on(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.script = Script(writes=[OUTPUT], code=None)
    with unread_stdout():
        ended = call("run", "pytorch", "yes")
    assert fleet.request is not None
    assert ended.code == 141
    assert ended.err == f"The command runs on: `kernelbridge attach {fleet.request.kernel_id[:12]}`.\n"
    assert fleet.script.steps[-1] == "detach"


def test_a_run_that_has_ended_is_removed_where_nobody_read_its_last_words(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    fleet.script = Script(writes=[OUTPUT], code=0)
    with unread_stdout():
        ended = call("run", "pytorch", "true")
    assert (ended.code, ended.err, fleet.script.steps[-1]) == (141, "", "remove")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is full")
def test_a_run_whose_output_cannot_be_written_runs_on_and_the_reason_is_told(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    fleet.script = Script(writes=[OUTPUT], code=None)
    before = os.dup(1)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), 1)
    try:
        ended = call("run", "pytorch", "yes")
    finally:
        os.dup2(before, 1)
        os.close(before)
    runs_on, reason, _ = ended.err.splitlines()
    assert (ended.code, fleet.script.steps[-1]) == (1, "detach")
    assert runs_on.startswith("The command runs on: ")
    assert reason == "The output cannot be written: No space left on device."


def test_what_nobody_reads_is_kept_for_whoever_attaches() -> None:
    shown = run.RunScreen()
    output = shown.output()
    assert not output.is_congested()
    with unread_stdout():
        output.write(*OUTPUT)
        shown.close()
    assert output.is_congested(), "or it counts as taken"


def test_what_is_said_of_a_run_goes_nowhere_where_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run.RunScreen()
    with unread_stdout():
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        shown.output().tell("lab can be reached again.")
    shown.close()


def test_whoever_sits_at_a_terminal_gives_the_command_one(
    call: Call, fleet: RunFleet, sits_at_a_terminal: Shell
) -> None:
    fleet.script = Script(code=None, tells=["lab can be reached again."])

    def type_and_end() -> None:
        os.write(sits_at_a_terminal.master, b"q")
        wait_until(lambda: fleet.script.inputs == [b"q"], "the key", 20)
        fleet.submit(_ended(fleet.script, 4)).result(5)

    with meanwhile(lambda: "runs" in fleet.script.log, type_and_end):
        ended = call("run", "pytorch", "vim")
    assert ended.code == 4
    assert "kernelbridge: lab can be reached again.\r\n" in ended.err, "a raw terminal needs the return, too"
    assert fleet.request is not None
    assert fleet.request.command is not None
    assert fleet.request.command.window == WindowSize(111, 33)
    assert "resize 111 33" in fleet.script.log, "it may have changed while it started"


async def _ended(script: Script, code: int) -> None:
    script.end(code)


def test_a_run_that_is_left_at_once_prints_its_id_and_has_no_terminal(
    call: Call, fleet: RunFleet, sits_at_a_terminal: Shell
) -> None:
    ended = call("run", "-d", "pytorch", "train")
    assert fleet.request is not None
    assert fleet.request.command is not None
    assert (ended.code, ended.out) == (0, f"{fleet.request.kernel_id}\n")
    assert fleet.request.command.window is None
    assert fleet.script.steps == ["start", "detach"]
    assert call("run", "-d", "-t", "pytorch", "train").code == 0
    assert fleet.request.command.window is not None


def test_a_run_that_is_left_at_once_keeps_its_output_for_whoever_attaches(capfd: pytest.CaptureFixture[str]) -> None:
    with run.screen() as shown:
        output = shown.words_alone()
        output.write(terminal.OUTPUT, b"line 1")
        assert output.is_congested(), "or it counts as taken"
        output.tell("a line that stays")
    assert capfd.readouterr() == ("", "kernelbridge: a line that stays\n")


# -- up


def test_an_environment_is_up_once(call: Call, fleet: RunFleet) -> None:
    first = call("up", "pytorch")
    assert fleet.request is not None
    assert fleet.request.command is not None
    assert (first.code, first.out) == (0, f"{fleet.request.kernel_id}\n")
    assert (fleet.request.command.kind, fleet.request.title, fleet.request.environment.persist) == ("up", "up", True)
    assert fleet.script.steps == ["start", "detach"]
    fleet.rows = [row(FIRST, kind="up")]
    again = call("up", "pytorch")
    assert (again.code, again.out) == (0, f"{FIRST}\n")
    assert again.err == "pytorch is up on lab already.\n"
    assert fleet.script.steps == ["start", "detach"]


def test_one_on_another_host_is_another_one(call: Call, fleet: RunFleet) -> None:
    fleet.rows = [row(FIRST, kind="up")]
    ended = call("up", "pytorch", "--host", "two")
    assert fleet.request is not None
    assert (ended.out, [host.name for host in fleet.request.hosts]) == (f"{fleet.request.kernel_id}\n", ["two"])


def test_an_environment_that_is_not_there_cannot_be_up(call: Call, fleet: RunFleet) -> None:
    fleet.rows = [row(FIRST, kind="up", environment="jax")]
    assert call("up", "jax").code == 12


@pytest.mark.parametrize(
    ("facts", "host", "found"),
    [
        ({}, "", True),
        ({"state": "busy"}, "lab", True),
        ({}, "two", False),
        ({"kind": "run"}, "", False),
        ({"kind": ""}, "", False),
        ({"environment": "jax"}, "", False),
        ({"is_ours": False}, "", False),
        ({"state": "exited"}, "", False),
        ({"state": "unknown"}, "", False),
        ({"state": "starting"}, "", False),
    ],
)
def test_what_is_up_is_this_machines_own_container_that_runs(facts: dict[str, Any], host: str, found: bool) -> None:
    assert run.is_up(row(FIRST, **{"kind": "up", **facts}), "pytorch", host) == found


# -- attach


def test_a_run_is_joined_where_it_is_and_its_end_is_its_exit_code(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.rows = [row(FIRST, kind="run", title="train", host="two")]
    fleet.script = Script(writes=[OUTPUT], code=5)
    ended = call("attach", "aabb")
    assert (ended.code, ended.out, ended.err) == (5, "out\n", "")
    assert (fleet.script.steps[0], fleet.script.steps[-1]) == ("join on two", "remove")
    assert fleet.request is not None
    assert (fleet.request.kernel_id, fleet.request.title) == (FIRST, "train")
    assert fleet.request.environment.persist


def test_a_run_that_another_holds_stays_with_it_unless_it_is_taken(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.rows = [row(FIRST, kind="run", link="held", held_by="bob@desk")]
    fleet.script = Script(start_failure=HELD)
    ended = call("attach", "aabb")
    assert (ended.code, ended.err.splitlines()[0]) == (56, HELD.sentence)
    assert fleet.script.steps == ["join on lab", "detach"]
    fleet.script = Script()
    assert call("attach", "aabb", "--take").code == 0
    assert fleet.script.steps[0] == "join on lab, taking it"


def test_a_container_that_waits_is_not_joined_and_a_shell_in_it_is_named(call: Call, fleet: RunFleet) -> None:
    fleet.rows = [row(FIRST, kind="up")]
    ended = call("attach", "aabb")
    assert (ended.code, fleet.request) == (1, None)
    assert "kernelbridge shell aabb1111-000" in ended.err


def test_without_an_id_a_run_that_nobody_holds_is_meant_and_no_container_that_waits(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    fleet.rows = [row(FIRST, kind="run", link="detached"), row(SECOND, kind="up", link="detached")]
    assert call("attach").code == 0
    assert fleet.request is not None
    assert fleet.request.kernel_id == FIRST


# -- results


def test_results_are_fetched_before_the_container_goes(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    assert call("run", "pytorch", "true").code == 0
    assert fleet.script.steps == ["start", "runs", "finish", "remove"]
    feed(b"")
    failure = KernelEnded(environment="pytorch", host="lab", how="was removed by another program")
    fleet.script = Script(failure=failure)
    assert call("run", "pytorch", "true").code == failure.exit_code
    assert fleet.script.steps == ["start", "runs", "finish", "detach"]


def test_ctrl_c_while_results_come_ends_that_alone_and_says_where_they_are(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    fleet.script = Script(code=3, finishes_after_seconds=1000)
    with meanwhile(lambda: "finish" in fleet.script.log, kill(signal.SIGINT)):
        ended = call("run", "pytorch", "true")
    assert ended.code == 3
    assert ended.err == "Not all results were fetched: the others stay on lab.\n"
    assert fleet.script.steps[-1] == "remove"


def test_results_that_take_long_are_told(
    call: Call, fleet: RunFleet, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "QUICK_SECONDS", 0.05)
    feed(b"")
    fleet.script = Script(finishes_after_seconds=0.5)
    ended = call("run", "pytorch", "true")
    assert ended.err == "Fetching the last results from lab; Ctrl-C leaves them there.\n"
    assert fleet.script.steps[-1] == "remove"


def test_a_host_that_does_not_answer_a_goodbye_is_no_failure(
    call: Call, fleet: RunFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LEAVE_SECONDS", 0.01)
    fleet.script = Script(detaches_never=True)
    ended = call("run", "-d", "pytorch", "train")
    assert fleet.request is not None
    assert (ended.code, ended.out, ended.err) == (0, f"{fleet.request.kernel_id}\n", "")


def test_a_run_is_joined_with_the_project_that_it_was_started_in(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.rows = [row(FIRST, kind="run")]
    facts: Any = dict.fromkeys(("environment", "config", "host", "image", "python", "session"), "x")
    Records(default_folder()).keep(KernelRecord(kernel_id=FIRST, started=0.0, folder="/proj", **facts))
    assert call("attach", "aabb").code == 0
    assert fleet.request is not None
    assert fleet.request.folder == "/proj"
    assert fleet.request.command is not None
    assert fleet.request.command.kind == "run"
    assert "finish" in fleet.script.steps


def test_who_joins_a_run_whose_project_is_gone_hears_that_no_results_come(
    call: Call, fleet: RunFleet, feed: Feed, project: Path, tmp_path: Path
) -> None:
    feed(b"")
    fleet.rows = [row(FIRST, kind="run")]
    facts: Any = dict.fromkeys(("environment", "config", "host", "image", "python", "session"), "x")
    Records(default_folder()).keep(KernelRecord(kernel_id=FIRST, started=0.0, folder="/gone", **facts))
    ended = call("attach", "aabb")
    assert ended.code == 0
    assert ended.err == "No results come into /gone: its project, or the commit that runs, is gone.\n"


# -- a revision


@pytest.fixture
def project(tmp_path: Path, config_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: a project of one commit, `workspace = "."` in the config."""
    config_path.write_text(
        f'{config_path.read_text()}workspace = {{ local = ".", sync = "both", pull = ["runs/**"] }}\n'
    )
    made = tmp_path / "proj"
    made.mkdir()
    (made / "train.py").write_text("committed")
    who = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(made), *words], check=True)
    (made / "train.py").write_text("changed")
    monkeypatch.chdir(made)
    return made


def checkout_of(fleet: RunFleet) -> Checkout:
    assert fleet.request is not None
    assert fleet.request.project is not None
    assert fleet.request.project.checkout is not None
    return fleet.request.project.checkout


def copies(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "data").glob("kernelbridge/*/proj-*"))


@pytest.mark.parametrize("words", [(), ("-d",)])
def test_a_revision_is_here_until_a_host_has_it(
    call: Call, fleet: RunFleet, feed: Feed, tmp_path: Path, project: Path, words: tuple[str, ...]
) -> None:
    feed(b"")
    seen: list[str] = []
    fleet.script = Script(
        on_start=lambda: seen.append((checkout_of(fleet).local_path or project).joinpath("train.py").read_text())
    )
    assert call("run", *words, "--git", "main", "pytorch", "true").code == 0
    assert seen == ["committed"]
    assert checkout_of(fleet).paths == {"train.py"}
    assert fleet.request is not None
    assert fleet.request.project is not None
    assert fleet.request.project.local_root == project
    assert copies(tmp_path) == []


@pytest.mark.parametrize("words", [(), ("-d",)])
def test_a_revision_stays_here_for_a_container_of_this_machine(
    call: Call, fleet: RunFleet, feed: Feed, tmp_path: Path, project: Path, words: tuple[str, ...]
) -> None:
    feed(b"")
    ended = call("run", *words, "--git", "main", "--host", "local", "pytorch", "true")
    (path,) = copies(tmp_path)
    assert path.parent.name == "workspaces"
    assert (path / "train.py").read_text() == "committed"
    assert ended.err == f"kernelbridge: The command works in {path}; what it writes stays there.\n"
    assert call("run", *words, "--git", "main", "--host", "local", "pytorch", "true").code == 0
    assert len(copies(tmp_path)) == 2, "each run has its own"


@pytest.mark.parametrize("host", ["lab", "local"])
def test_a_start_that_fails_leaves_no_revision(
    call: Call, fleet: RunFleet, tmp_path: Path, project: Path, host: str
) -> None:
    fleet.script = Script(start_failure=CommandNotRun(host="lab", reason="no"))
    assert call("run", "--git", "main", "--host", host, "pytorch", "true").code == 93
    assert copies(tmp_path) == []
    assert "has no git revision" in call("run", "--git", "nonesuch", "pytorch", "true").err
    assert copies(tmp_path) == []


def test_no_revision_is_taken_to_a_host_that_has_the_folder_itself(
    call: Call, fleet: RunFleet, feed: Feed, config_path: Path, project: Path
) -> None:
    text = config_path.read_text().replace('sync = "both", pull = ["runs/**"]', 'host = "/data/proj"')
    config_path.write_text(text)
    ended = call("run", "--git", "main", "pytorch", "true")
    assert (ended.code, fleet.request) == (2, None)
    assert "lab has the workspace of pytorch by itself" in " ".join(ended.err.split())
    feed(b"")
    assert call("run", "--git", "main", "--host", "local", "pytorch", "true").code == 0


def test_a_revision_is_of_a_workspace(call: Call, fleet: RunFleet) -> None:
    ended = call("run", "--git", "main", "pytorch", "true")
    assert (ended.code, fleet.request) == (1, None)
    assert "pytorch has no workspace, of which `--git` could take a revision." in ended.err
