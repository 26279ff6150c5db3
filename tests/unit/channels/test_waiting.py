"""channels/waiting.py: what is answered while the kernel is away, and what is queued for it."""

from __future__ import annotations

import pytest

from kernelbridge.channels.waiting import DEFAULT_INFO, TRY_AGAIN, ShutdownIntent, Waiting
from kernelbridge.errors import HostRefused, KernelDied, LinkLost, StartCancelled
from kernelbridge.protocol.frames import CONTROL, IOPUB, SHELL
from tests.made_requests import PROBE, STARTUP, answered, execute, hidden, request, told


def test_urgent_requests_are_answered_at_once_and_all_else_waits_in_order() -> None:
    wait = Waiting(DEFAULT_INFO)
    queued = [execute(name="e1"), request("complete_request"), request("comm_open"), request("debug_request")]
    for one in queued:
        assert wait.receive(one) == ([], None)
    for channel in (SHELL, CONTROL):
        answers, intent = wait.receive(request("kernel_info_request", channel=channel))
        assert told(answers) == answered("kernel_info_reply", "kernel_info_request")
        assert (answers[1].channel, intent) == (channel, None)
    assert wait.queue == queued
    assert repr(wait) == "<Waiting 4 queued, ''>"
    assert wait.release() == ([], queued, "")
    assert wait.queue == []


def test_no_client_is_promised_subshells_by_a_kernel_that_is_not_there() -> None:
    info = {**DEFAULT_INFO, "supported_features": ["debugger", "kernel subshells"]}
    [_, reply, _], _ = Waiting(info).receive(request("kernel_info_request"))
    assert reply.content["supported_features"] == ["debugger"]


def test_who_asks_again_after_a_guess_waits_for_the_truth_and_who_asks_a_third_time_does_not() -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    first, second, third, fourth = (request("kernel_info_request", name=f"i{n}") for n in range(1, 5))
    other = request("kernel_info_request", name="o1", who=b"other")
    control = request("kernel_info_request", name="c1", channel=CONTROL)
    for one in (first, other, control):
        assert told(wait.receive(one)[0]) == answered("kernel_info_reply", one.id)
    assert wait.receive(second) == ([], None)
    assert told(wait.receive(third)[0]) == answered("kernel_info_reply", "i2") + answered("kernel_info_reply", "i3")
    assert wait.receive(fourth) == ([], None)
    assert wait.release()[1] == [fourth]


def test_a_held_question_is_answered_as_soon_as_the_image_is_known() -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    wait.receive(request("kernel_info_request"))
    wait.receive(request("kernel_info_request", name="again"))
    wait.receive(execute(PROBE, name="probe"))
    answers = wait.set_kernel_info({**DEFAULT_INFO, "banner": "true"}, "8.1.5")
    assert told(answers)[:3] == answered("kernel_info_reply", "again")
    assert answers[1].content["banner"] == "true"
    assert told(answers)[3:] == [
        "status busy (probe)",
        "stream (probe)",
        "execute_reply ok (probe)",
        "status idle (probe)",
    ]
    assert wait.answered == {"probe"}
    assert [one.id for one in wait.queue] == ["probe"]
    assert told(wait.receive(request("kernel_info_request", name="more"))[0]) == answered("kernel_info_reply", "more")


def test_a_hidden_cell_answered_early_is_neither_aborted_nor_failed_later() -> None:
    for end in ("interrupt_request", "shutdown_request"):
        wait = Waiting(DEFAULT_INFO, widgets="8.1.5")
        wait.receive(execute(PROBE, name="probe"))
        answers, _ = wait.receive(request(end))
        assert not [one for one in told(answers) if "(probe)" in one]
    wait = Waiting(DEFAULT_INFO, widgets="8.1.5")
    wait.receive(execute(PROBE, name="probe"))
    assert wait.fail(StartCancelled(environment="e")) == []


def test_an_interrupt_ends_the_cells_that_wait_and_nothing_else() -> None:
    wait = Waiting(DEFAULT_INFO)
    for one in (execute(name="e1"), request("complete_request"), execute(name="e2")):
        wait.receive(one)
    answers, intent = wait.receive(request("interrupt_request", channel=CONTROL))
    ended = [one for one in told(answers) if one.startswith("execute_reply")]
    assert ended == ["execute_reply KeyboardInterrupt (e1)", "execute_reply KeyboardInterrupt (e2)"]
    assert told(answers)[-3:] == answered("interrupt_reply", "interrupt_request")
    assert ([one.kind for one in wait.queue], intent) == (["complete_request"], None)
    shown = [one for one in answers if one.kind in ("error", "execute_reply")]
    assert [one.kind for one in shown] == ["error", "execute_reply"] * 2
    assert {one.content["evalue"] for one in shown} == {"interrupted before the kernel started"}


@pytest.mark.parametrize(("restart", "intent"), [(True, ShutdownIntent.RESTART), (False, ShutdownIntent.CANCEL)])
def test_a_shutdown_clears_the_queue_and_says_what_is_wished(restart: bool, intent: ShutdownIntent) -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    for one in (execute(name="e1"), request("comm_msg"), *(request("kernel_info_request", name=f"i{n}") for n in "12")):
        wait.receive(one)
    answers, intended = wait.receive(request("shutdown_request", {"restart": restart}, channel=CONTROL))
    assert told(answers) == [
        *answered("kernel_info_reply", "i2"),
        *answered("execute_reply", "e1", "aborted"),
        *answered("shutdown_reply", "shutdown_request"),
    ]
    assert (answers[-2].content["restart"], intended, wait.queue) == (restart, intent, [])


def test_progress_is_shown_in_the_first_cell_that_a_user_sees_after_a_while_and_is_cleared() -> None:
    wait = Waiting(DEFAULT_INFO)
    for one in (
        request("complete_request"),
        hidden("x", name="h"),
        execute("x", silent=True, name="silent"),
        execute(channel=CONTROL, name="c"),
    ):
        wait.receive(one)
    wait.progress("pulling")
    assert wait.show(1.9) == []
    assert wait.show(2.0) == []  # Nobody sees any of these.
    wait.receive(execute(name="e1"))
    wait.receive(execute(name="e2"))
    assert told(wait.show(2.1)) == ["status busy (e1)", "stream (e1)"]
    assert wait.show(2.2) == []
    wait.progress("starting")
    answers = wait.show(2.3)
    assert told(answers) == ["clear_output (e1)", "stream (e1)"]
    assert (answers[0].content["wait"], answers[1].content["text"]) == (True, "starting (2 s)\n")
    answers, _, had_busy = wait.release()
    assert told(answers) == ["clear_output (e1)"]
    assert (answers[0].content["wait"], had_busy) == (False, "e1")


@pytest.mark.parametrize(("known", "printed"), [({}, "8.0.0"), ({"guessed_widgets": "7.7.1"}, "7.7.1")])
def test_vscodes_startup_cells_wait_for_the_image_for_two_seconds_and_no_longer(
    known: dict[str, str], printed: str
) -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True, **known)
    probe, startup, commands = execute(PROBE, name="p"), hidden(STARTUP, name="s"), hidden("%pylab", name="r")
    assert wait.receive(probe) == ([], None)
    wait.progress("connecting")
    assert wait.show(1.9) == []
    answers = wait.show(2.0)
    assert told(answers) == ["status busy (p)", "stream (p)", *answered("execute_reply", "p")[1:]]
    assert answers[1].content["text"] == f"abc123IPyWidgets:{printed}\n"
    for one in (startup, commands):
        assert told(wait.receive(one)[0]) == answered("execute_reply", one.id)
    wait.receive(execute(name="user"))
    assert told(wait.show(2.1)) == ["status busy (user)", "stream (user)"]
    # All are run later, in their order.
    assert [one.id for one in wait.release()[1]] == ["p", "s", "r", "user"]
    assert wait.answered == {"p", "s", "r"}


def test_a_failure_is_shown_to_the_user_whatever_hidden_cells_wait_before() -> None:
    wait = Waiting(DEFAULT_INFO)
    for one in (hidden(PROBE, name="p"), hidden("1", name="h"), execute(name="user"), hidden("2", name="h2")):
        wait.receive(one)
    answers = wait.fail(HostRefused(host="lab", address="lab:22"))
    assert [one.parent.id for one in answers if one.kind == "error" and one.parent] == ["p", "h", "user", "h2"]


def test_a_failed_start_says_what_to_do_next_on_lines_of_their_own() -> None:
    wait = Waiting(DEFAULT_INFO)
    wait.receive(execute())
    error = next(one for one in wait.fail(HostRefused(host="lab", address="lab:22")) if one.kind == "error")
    assert error.content["traceback"] == [
        "HostRefused: lab: lab:22 refused the connection.",
        "Is sshd running there, and is the port right?",
        TRY_AGAIN,
    ]
    wait = Waiting(DEFAULT_INFO)
    wait.receive(execute())
    died = KernelDied(environment="e", host="lab", how="exit code 3")
    error = next(one for one in wait.fail(died) if one.kind == "error")
    assert error.content["traceback"][1:] == ["Restart the kernel to continue."]


def test_a_new_cell_takes_the_progress_over_when_the_first_was_interrupted() -> None:
    wait = Waiting(DEFAULT_INFO)
    wait.receive(execute(name="e1"))
    wait.progress("pulling")
    wait.show(3)
    assert told(wait.receive(request("interrupt_request"))[0]) == [
        "clear_output (e1)",
        *("status busy (e1)", "error KeyboardInterrupt (e1)"),
        *("execute_reply KeyboardInterrupt (e1)", "status idle (e1)"),
        *answered("interrupt_reply", "interrupt_request"),
    ]
    wait.receive(execute(name="e2"))
    assert told(wait.show(4)) == ["status busy (e2)", "stream (e2)"]


def test_a_failure_is_shown_once_and_the_rest_is_aborted_or_refused() -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    silent, first, second = execute(silent=True, name="s"), execute(name="e1"), execute(name="e2")
    infos = [request("kernel_info_request", name=f"i{n}") for n in "12"]
    for one in (silent, request("complete_request"), first, *infos, second, request("comm_msg")):
        wait.receive(one)
    answers = wait.fail(LinkLost(host="lab"))
    assert told(answers) == [
        *answered("kernel_info_reply", "i2"),
        *answered("execute_reply", "s", "LinkLost"),
        *answered("complete_reply", "complete_request", "LinkLost"),
        *["status busy (e1)", "error LinkLost (e1)", "execute_reply LinkLost (e1)", "status idle (e1)"],
        *answered("execute_reply", "e2", "aborted"),
    ]
    assert "lab: the link is lost." in next(answer for answer in answers if answer.kind == "error").content["evalue"]
    assert wait.queue == []


def test_the_guess_of_an_unknown_image_is_complete() -> None:
    assert set(DEFAULT_INFO["language_info"]) >= {"name", "version", "mimetype", "file_extension", "pygments_lexer"}


def test_a_question_is_told_of_in_its_cell_and_nothing_is_drawn_until_it_is_answered() -> None:
    wait = Waiting(DEFAULT_INFO)
    first, second = execute(name="first"), execute(name="second", allow_stdin=True)
    for one in (first, second, hidden(name="hidden", allow_stdin=True)):
        wait.receive(one)
    assert wait.cells == [first, second]
    wait.progress("logging in")
    assert told(wait.show(3)) == ["status busy (first)", "stream (first)"]
    answers = wait.ask_in(second, ["lab: Welcome", "lab: Denied"])
    assert told(answers) == ["clear_output (first)", "status busy (second)", "stream (second)"]
    assert answers[-1].content == {"name": "stdout", "text": "lab: Welcome\nlab: Denied\n"}
    assert {one.channel for one in answers} == {IOPUB}
    assert wait.show(4) == []
    wait.asked()
    assert told(wait.show(5)) == ["clear_output (second)", "stream (second)"]
    # In the cell that shows progress it takes that away.
    [cleared] = wait.ask_in(second, [])
    assert (told([cleared]), cleared.channel, cleared.content) == (["clear_output (second)"], IOPUB, {"wait": True})
    assert wait.release()[2] == "second"


def test_where_only_a_cell_helps_no_question_waits_for_the_truth() -> None:
    wait = Waiting(DEFAULT_INFO, is_guess=True)
    for name in ("i1", "i2"):
        wait.receive(request("kernel_info_request", name=name))
    assert told(wait.need_cell()) == answered("kernel_info_reply", "i2")
    assert told(wait.receive(request("kernel_info_request", name="i3"))[0]) == answered("kernel_info_reply", "i3")
