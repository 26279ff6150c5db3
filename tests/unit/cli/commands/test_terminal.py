"""cli/commands/terminal.py: a shell or a command beside a kernel, joined to this terminal."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import typer

from kernelbridge.cli.commands import terminal as commands
from kernelbridge.cli.local_terminal import MOST_QUEUED_BYTES
from kernelbridge.errors import CommandNotRun, LinkLost
from kernelbridge.protocol import terminal
from kernelbridge.protocol.terminal import WindowSize
from tests.fakes import row
from tests.made_runs import RunFleet, Script
from tests.rig.daemon import wait_until
from tests.unit.cli.commands.conftest import Feed, Shell, unread_stdout
from tests.unit.cli.conftest import Call, set_terminal_size

KERNEL = "aabb1111-0000-4000-8000-000000000001"


@pytest.fixture
def fleet(run_fleet: RunFleet) -> RunFleet:
    return run_fleet


@pytest.fixture
def call(run_call: Call) -> Call:
    return run_call


@pytest.fixture(autouse=True)
def kernel(fleet: RunFleet) -> None:
    fleet.rows = [row(KERNEL)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["ls"], ("ls",)),
        (["--", "ls", "-l"], ("ls", "-l")),
        (["git", "checkout", "--", "a"], ("git", "checkout", "--", "a")),
        (["--", "--", "a"], ("--", "a")),
    ],
)
def test_a_commands_words_are_all_behind_the_dashes(given: list[str], words: tuple[str, ...]) -> None:
    assert commands.words_of(given) == words


@pytest.mark.parametrize("given", [[], ["--"]])
def test_no_words_are_no_command(given: list[str]) -> None:
    with pytest.raises(typer.BadParameter, match="-- COMMAND"):
        commands.words_of(given)


def test_a_command_on_a_terminal_like_this_one_is_told_its_kind_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    set_terminal_size(monkeypatch, 111, 33)
    monkeypatch.setenv("TERM", "xterm-kitty")
    asked = commands.request_of(("vim",), "/w", wants_window=True)
    assert (asked.argv, asked.folder, asked.window) == (("vim",), "/w", WindowSize(111, 33))
    assert asked.env == {"TERM": "xterm-kitty"}
    monkeypatch.delenv("TERM")
    assert commands.request_of((), "", wants_window=True).env == {"TERM": "xterm-256color"}
    plain = commands.request_of(("ls",), "", wants_window=False)
    assert (plain.window, plain.env) == (None, {})


def test_a_command_has_both_outputs_and_its_exit_code(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.script = Script(writes=[(terminal.OUTPUT, b"out\n"), (terminal.ERRORS, b"err\n")], code=3)
    ended = call("exec", "aabb", "--", "ls", "-l")
    assert (ended.code, ended.out, ended.err) == (3, "out\n", "err\n")
    assert fleet.asked is not None
    assert (fleet.asked.argv, fleet.asked.window, fleet.asked.folder) == (("ls", "-l"), None, "")
    assert fleet.script.steps[-1] == "closed"
    assert fleet.is_closed


def test_options_behind_the_kernel_are_the_commands_and_those_before_it_are_ours(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    assert call("exec", "-w", "/data", "aabb", "tar", "-w", "/x", "--help", "-t").code == 0
    assert fleet.asked is not None
    assert (fleet.asked.argv, fleet.asked.folder) == (("tar", "-w", "/x", "--help", "-t"), "/data")


def test_input_goes_to_the_command_with_its_end(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"words of the user")
    fleet.script = Script(code=None, ends_with_input=True)
    assert call("exec", "aabb", "wc", "-c").code == 17
    assert fleet.script.inputs == [b"words of the user"]


def test_without_a_command_there_is_none_to_run(call: Call, fleet: RunFleet) -> None:
    for words in (("exec", "aabb"), ("exec", "aabb", "--")):
        assert call(*words).code == 2
    assert fleet.asked is None


def test_a_shell_is_asked_for_by_no_words(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    assert call("shell", "aabb", "--workdir", "/data").code == 0
    assert fleet.asked is not None
    assert (fleet.asked.argv, fleet.asked.folder, fleet.asked.window) == ((), "/data", None)


def test_whoever_sits_at_a_terminal_gets_one_of_its_size_with_each_key(
    call: Call, fleet: RunFleet, sits_at_a_terminal: Shell
) -> None:
    fleet.script = Script(code=None)

    def type_and_end() -> None:
        wait_until(lambda: "runs" in fleet.script.log, "the command", 20)
        os.write(sits_at_a_terminal.master, b"\x03")
        wait_until(lambda: fleet.script.inputs == [b"\x03"], "the key", 20)
        fleet.submit(_ended(fleet.script, 5)).result(5)

    thread = threading.Thread(target=type_and_end)
    thread.start()
    assert call("shell", "aabb").code == 5
    thread.join()
    assert fleet.asked is not None
    assert fleet.asked.window == WindowSize(111, 33)


async def _ended(script: Script, code: int) -> None:
    script.end(code)


@pytest.mark.parametrize(("option", "has_window"), [("-t", True), ("--tty", True), ("-T", False), ("--no-tty", False)])
def test_who_says_so_gets_a_terminal_or_none(
    call: Call, fleet: RunFleet, feed: Feed, option: str, has_window: bool
) -> None:
    feed(b"")
    assert call("exec", option, "aabb", "ls").code == 0
    assert fleet.asked is not None
    assert (fleet.asked.window is not None) == has_window


def test_ctrl_c_is_the_commands_where_it_has_no_terminal(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    fleet.script = Script(code=None)
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        wait_until(lambda: "end of input" in fleet.script.log, "the command", 20)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert call("exec", "aabb", "sleep", "60").code == 130
    thread.join()
    assert f"signal {int(signal.SIGINT)}" in fleet.script.log
    assert signal.getsignal(signal.SIGINT) is before


def test_a_kernel_that_is_not_there_is_named(call: Call, fleet: RunFleet) -> None:
    ended = call("exec", "zz", "ls")
    assert ended.code == 52
    assert call("shell", "zz").code == 52


def test_a_command_that_cannot_be_run_says_why(call: Call, fleet: RunFleet) -> None:
    fleet.script = Script(start_failure=CommandNotRun(host="lab", reason="lss: No such file or directory"))
    ended = call("exec", "aabb", "lss")
    assert (ended.code, ended.out) == (93, "")
    assert ended.err.startswith("lab: the command could not be run: lss: No such file or directory.")


def test_a_link_that_is_lost_is_the_end_and_the_output_until_then_is_there(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    fleet.script = Script(writes=[(terminal.OUTPUT, b"so far\n")], failure=LinkLost(host="lab"))
    ended = call("exec", "aabb", "ls")
    assert (ended.code, ended.out) == (LinkLost.exit_code, "so far\n")
    assert fleet.script.steps[-1] == "closed"


def test_a_slow_reader_pauses_the_command(call: Call, fleet: RunFleet, feed: Feed) -> None:
    feed(b"")
    # All at once: more than may wait here.
    fleet.script = Script(writes=[(terminal.OUTPUT, b"x" * (MOST_QUEUED_BYTES + 1))], code=0)
    ended = call("exec", "aabb", "yes")
    assert len(ended.out) == MOST_QUEUED_BYTES + 1
    assert [word for word in fleet.script.log if word in ("pause", "resume")] == ["pause", "resume"]


def test_a_reader_that_is_slow_before_the_command_is_known_to_run_pauses_it_too(
    call: Call, fleet: RunFleet, feed: Feed
) -> None:
    feed(b"")
    fleet.script = Script(writes_at_once=[(terminal.OUTPUT, b"x" * (MOST_QUEUED_BYTES + 1))], code=0)
    ended = call("exec", "aabb", "yes")
    assert len(ended.out) == MOST_QUEUED_BYTES + 1
    assert [word for word in fleet.script.log if word in ("pause", "resume")] == ["pause", "resume"]


@pytest.mark.parametrize("code", [None, 0])
def test_where_nobody_reads_any_more_the_command_is_ended_without_a_word(
    call: Call, fleet: RunFleet, feed: Feed, code: int | None
) -> None:
    """As behind `| head -1`; and so where it has ended, of whose output something is lost."""
    feed(b"")
    fleet.script = Script(writes=[(terminal.OUTPUT, b"y\n")], code=code)
    with unread_stdout():
        ended = call("exec", "aabb", "yes")
    assert (ended.code, ended.err) == (141, "")
    assert fleet.script.steps[-1] == "closed"
    assert fleet.is_closed
