"""cli/commands/kernels.py: what `ps`, `stop`, `logs` and `clean` print, and what they end with."""

from __future__ import annotations

import json
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli.listings import kernel_rows
from kernelbridge.cli.listings.plain import moment
from kernelbridge.errors import HostRefused, HostUnreachable
from kernelbridge.kernel.records import KernelRecord, Records
from kernelbridge.kernel.start.kept_logs import KeptLog
from tests.fakes import FakeFleet, row
from tests.made_runs import RunFleet
from tests.printed import lines_of
from tests.rig.daemon import wait_until
from tests.unit.cli.commands.conftest import unread_stdout
from tests.unit.cli.conftest import Call, Ended

FIRST, SECOND = "aabb1111-0000-4000-8000-000000000001", "ccdd2222-0000-4000-8000-000000000002"
REFUSED = HostRefused(host="two", address="two:22")
DOWN = HostUnreachable(host="lab", address="lab:22", reason="timed out")
# Neither today nor in a year whose days have other names.
LONG_AGO = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
THEN = f"{LONG_AGO.astimezone():%d %b %H:%M}"


# -- ps


def test_ps_shows_each_kernel_on_a_line(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [
        row(SECOND, host="two", state="exited", why="exit code 3", is_orphan=True, owner="bob@desk"),
        row(FIRST, gpus="GPU-11111111-aaaa,GPU-22222222-bbbb", created=LONG_AGO, title="train.ipynb"),
    ]
    ended = call("ps")
    heading, first, second = ended.out.splitlines()
    columns = ["KERNEL", "ENVIRONMENT", "NOTEBOOK", "HOST", "STATE", "ENDS", "GPUS", "OWNER", "CREATED", "IMAGE"]
    assert heading.split() == columns
    assert first.split() == [
        *("aabb1111-000", "pytorch", "train.ipynb", "lab", "idle", "-", "GPU-11111111,GPU-22222222", "ada@laptop"),
        *(f"{LONG_AGO.astimezone():%Y-%m-%d}", f"{LONG_AGO.astimezone():%H:%M}", "pytorch/pytorch:2"),
    ]
    assert "exited (exit code 3), orphan" in second
    assert "bob@desk" in second
    assert (ended.code, ended.err) == (0, "")
    assert fleet.is_closed


def test_ps_with_long_also_says_how_each_is_reached_and_by_which_release_it_was_made(
    call: Call, fleet: FakeFleet
) -> None:
    fleet.rows = [row(FIRST, way="socket", container="0123456789abcdef", version="0.2.0"), row(SECOND, way="exec")]
    fleet.problems = (REFUSED,)
    ended = call("ps", "--long")
    heading, first, second = ended.out.splitlines()
    assert heading.split()[-4:] == ["REACHED", "BY", "CONTAINER", "RELEASE"]
    assert first.split()[-5:] == ["its", "own", "socket", "0123456789ab", "0.2.0"]
    assert second.split()[-4:] == ["the", "engine", "-", "-"]
    assert REFUSED.sentence in ended.err
    fleet.rows, fleet.problems = [], ()
    assert call("ps", "--long").out == "No kernels.\n"


def test_ps_without_kernels_says_so(call: Call) -> None:
    assert call("ps") == Ended(code=0, out="No kernels.\n", err="")


def test_ps_shows_a_host_that_does_not_answer_as_a_line(call: Call, fleet: FakeFleet) -> None:
    fleet.rows, fleet.problems = [row(FIRST)], (REFUSED,)
    ended = call("ps")
    assert ended.code == 0
    assert "aabb1111-000" in ended.out
    assert ended.err.splitlines() == lines_of(REFUSED)


@pytest.mark.parametrize(
    ("problems", "code"),
    [((REFUSED,), 0), ((REFUSED, DOWN), 0), ((REFUSED, DOWN, REFUSED), 20), ((DOWN, REFUSED, REFUSED), 22)],
)
def test_ps_fails_only_if_no_host_at_all_could_be_asked(
    call: Call, fleet: FakeFleet, problems: tuple[HostRefused, ...], code: int
) -> None:
    fleet.problems = problems
    ended = call("ps")
    # Nobody can say that there are none.
    assert (ended.code, ended.out) == (code, "")
    assert call("ps", "--json").code == code


def test_ps_as_json_has_every_fact(call: Call, fleet: FakeFleet) -> None:
    facts: dict[str, Any] = {"state": "busy", "link": "detached", "since": LONG_AGO, "why": "", "title": "train.ipynb"}
    facts |= {"deadline": LONG_AGO + timedelta(days=1), "deadline_key": "lost_grace", "undelivered_bytes": 3_200_000}
    fleet.rows = [row(FIRST, gpus="GPU-1,GPU-2", **facts), row(SECOND)]
    fleet.problems = (REFUSED,)
    whole = json.loads(call("ps", "--json").out)
    assert whole["kernels"][0] == {
        "kernel_id": FIRST,
        "environment": "pytorch",
        "host": "lab",
        "image": "pytorch/pytorch:2",
        "state": "busy",
        "link": "detached",
        "since": "2026-01-02T03:04:00+00:00",
        "owner": "ada@laptop",
        "held_by": "",
        "is_ours": True,
        "is_orphan": False,
        "is_elsewhere": False,
        "created": "2026-11-20T12:00:00+00:00",
        "gpus": ["GPU-1", "GPU-2"],
        "deadline": "2026-01-03T03:04:00+00:00",
        "deadline_key": "lost_grace",
        "undelivered_bytes": 3_200_000,
        "why": "",
        "title": "train.ipynb",
        "version": "",
        "container": "",
        "also_on": [],
        "is_unsafe": False,
        "kind": "",
        "way": "",
    }
    assert whole["kernels"][1]["gpus"] == []
    assert whole["problems"] == [{"sentence": REFUSED.sentence, "remedy": REFUSED.remedy, "exit_code": 20}]


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"state": "busy", "link": "held", "held_by": "ada@laptop"}, "busy"),
        ({"state": "busy", "link": "held", "held_by": "bob@desk"}, "busy, held by bob@desk"),
        ({"state": "busy", "link": "link lost", "since": LONG_AGO}, f"busy, link lost since {THEN}"),
        ({"state": "idle", "link": "detached", "since": LONG_AGO}, f"idle, detached since {THEN}"),
        ({"state": "idle", "link": "detached"}, "idle, detached"),
        ({"state": "exited", "why": "signal SIGKILL"}, "exited (signal SIGKILL)"),
        ({"state": "exited"}, "exited"),
        ({"state": "unknown", "why": "lab: it is away."}, "unknown"),
        ({"state": "stopping", "why": "lab: it is away."}, "stopping, lab cannot be reached"),
        ({"state": "stopping"}, "stopping"),
        (
            {"state": "idle", "link": "link lost", "since": LONG_AGO, "undelivered_bytes": 3_240_000},
            f"idle, link lost since {THEN}, 3.2 MB of output wait",
        ),
        ({"state": "busy", "link": "held", "held_by": "ada@laptop", "undelivered_bytes": 900_000}, "busy"),
        ({"state": "idle", "link": "link lost", "is_orphan": True}, "idle, link lost, orphan"),
        ({"state": "idle", "link": "held", "held_by": "ada@laptop", "is_unsafe": True}, "idle, unsafe"),
        ({"state": "idle", "link": "link lost", "is_elsewhere": True}, "idle, link lost, of another machine"),
        (
            {"state": "busy", "link": "held", "owner": "ada@a", "held_by": "ada@a", "is_elsewhere": True},
            "busy, held by ada@a",
        ),
    ],
)
def test_a_state_is_said_as_people_say_it(facts: dict[str, Any], text: str) -> None:
    assert kernel_rows.state_text(row(FIRST, **facts)) == text


def test_ps_says_when_a_kernel_ends_and_by_which_key(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST, deadline=LONG_AGO, deadline_key="lost_grace")]
    assert f" {THEN} (lost_grace) " in call("ps").out


def test_ps_offers_the_kernels_that_nobody_holds_to_vs_code(
    call: Call, fleet: FakeFleet, config_path: Path, tmp_path: Path
) -> None:
    record = KernelRecord(
        kernel_id=FIRST,
        environment="pytorch",
        config=str(config_path),
        host="lab",
        image="x",
        python="python3",
        session="s",
        started=0.0,
        left=1.0,
        persist=True,
    )
    Records(tmp_path / "data" / "kernelbridge").keep(record)
    call("ps", "--json")
    folder = tmp_path / "data" / "kernels" / "kernelbridge.running"
    assert [path.name for path in folder.iterdir()] == ["kernelbridge-running-aabb1111"]
    Records(tmp_path / "data" / "kernelbridge").forget(FIRST)
    call("ps")
    assert not folder.exists()


def test_a_specs_folder_that_cannot_be_written_is_a_warning(call: Call, config_path: Path, tmp_path: Path) -> None:
    known = {"kernel_id": FIRST, "environment": "pytorch", "config": str(config_path), "host": "lab", "image": "x"}
    record = KernelRecord(**known, python="python3", session="s", started=0.0, persist=True)  # type: ignore[arg-type]
    Records(tmp_path / "data" / "kernelbridge").keep(record)
    (tmp_path / "data" / "kernels").write_text("a file, where a folder is wanted")
    ended = call("ps")
    assert (ended.code, ended.out) == (0, "No kernels.\n")
    assert ended.err.startswith("Warning: ")
    assert "the kernel spec cannot be written" in ended.err


def test_labels_of_others_bring_no_control_characters_to_the_terminal(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST, owner="\x1b]0;evil\x07[bold]x[/bold]")]
    out = call("ps").out
    assert "\x1b" not in out
    assert "?]0;evil?[bold]x[/bold]" in out


# -- stop, logs, clean


def test_stop_takes_the_beginning_of_an_id(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST), row(SECOND)]
    assert call("stop", "aabb") == Ended(code=0, out=f"Stopped {FIRST} (pytorch on lab).\n", err="")
    assert [kernel.kernel_id for kernel in fleet.rows] == [SECOND]


def test_stop_goes_on_after_an_id_that_is_not_there(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST), row(SECOND)]
    ended = call("stop", "zz", "yy", "ccdd")
    assert ended.code == 52
    assert ended.out == f"Stopped {SECOND} (pytorch on lab).\n"
    assert "No kernel `zz`" in ended.err
    assert "No kernel `yy`" in ended.err


def test_stop_all_stops_what_this_machine_started(call: Call, fleet: FakeFleet) -> None:
    theirs = [row(SECOND, is_ours=False), row("eeff3333", is_elsewhere=True)]
    fleet.rows = [row(FIRST), *theirs]
    assert call("stop", "--all").out == f"Stopped {FIRST} (pytorch on lab).\n"
    assert fleet.rows == theirs
    assert call("stop", "--all") == Ended(code=0, out="No kernels.\n", err="")


def test_stop_all_tells_of_a_host_that_it_could_not_ask(call: Call, fleet: FakeFleet) -> None:
    fleet.rows, fleet.problems = [row(FIRST)], (REFUSED,)
    ended = call("stop", "--all")
    assert ended.code == 20
    assert f"Stopped {FIRST}" in ended.out


def test_a_stop_that_waits_for_its_host_says_so_and_ends_with_the_hosts_error(call: Call, fleet: FakeFleet) -> None:
    fleet.rows, fleet.stop_failure = [row(FIRST), row(SECOND)], HostUnreachable(host="lab", address="l", reason="r")
    fleet.stop_failure.add_note(f"{FIRST} will be stopped when lab can be reached again.")
    ended = call("stop", "aabb")
    assert (ended.code, ended.out) == (22, "")
    assert ended.err.splitlines()[-2] == f"{FIRST} will be stopped when lab can be reached again."


def test_stop_wants_ids_or_all_and_not_both(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST)]
    assert call("stop", "aabb", "--all").code == 2
    assert call("stop").code == 2
    assert len(fleet.rows) == 1


def test_logs_prints_the_last_lines(call: Call, fleet: FakeFleet) -> None:
    fleet.rows, fleet.log_text = [row(FIRST)], "one\ntwo\nthree\n"
    assert call("logs", "aabb", "--tail", "2") == Ended(code=0, out="two\nthree\n", err="")
    assert call("logs", "aabb").out == "one\ntwo\nthree\n"
    assert call("logs", "zz").code == 52


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_logs_of_a_kernel_that_did_not_start_are_those_that_were_kept(
    call: Call, fleet: FakeFleet, follow: list[str]
) -> None:
    at = datetime(2031, 5, 6, 7, 8, tzinfo=UTC)
    fleet.kept_logs = [KeptLog(kernel_id="ffee", kept=at, text="one\n\x1b[1mtwo\x1b[m\n")]
    ended = call("logs", "ff", "--tail", "1", *follow)
    assert (ended.code, ended.out) == (0, "two\n")
    assert ended.err == f"It did not start, and is gone. Its last lines were kept at {moment(at)}:\n"
    assert call("logs", "ff", "--output").code == 52


@pytest.mark.parametrize("output", [[], ["--output"]])
def test_logs_brings_control_characters_only_where_they_are_asked_for(
    call: Call, fleet: FakeFleet, output: list[str]
) -> None:
    text = "\x1b]0;title\x07\x1b[2J\x1b]52;c;YQ==\x07\x9b31m\x7f\ta\rb\nlast\n"
    fleet.rows, fleet.log_text, fleet.left_text = [row(FIRST)], text, text
    assert call("logs", "aabb", "--raw", *output) == Ended(code=0, out=text, err="")
    cleaned = call("logs", "aabb", *output).out
    assert not {char for char in cleaned if not char.isprintable()} - {"\t", "\n"}
    assert cleaned.endswith("\nlast\n")


FOLLOWED = ["one\ntwo\n\x1b[1mthree\x1b[m\n", "", "four", " and more\n"]


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ((), "one\ntwo\nthree\nfour and more\n"),
        (("--tail", "1"), "three\nfour and more\n"),
        (("--tail", "2", "--raw"), "two\n\x1b[1mthree\x1b[m\nfour and more\n"),
        (("--tail", "9"), "one\ntwo\nthree\nfour and more\n"),
    ],
)
def test_a_log_is_followed_from_its_last_lines_on(
    run_call: Call, run_fleet: RunFleet, words: tuple[str, ...], printed: str
) -> None:
    run_fleet.rows, run_fleet.followed = [row(FIRST)], FOLLOWED
    assert run_call("logs", "-f", "aabb", *words) == Ended(code=0, out=printed, err="")


def test_a_log_of_which_a_line_has_no_end_yet_is_followed_as_it_is(run_call: Call, run_fleet: RunFleet) -> None:
    run_fleet.rows, run_fleet.followed = [row(FIRST)], ["one\ntwo", " and three\n"]
    assert run_call("logs", "-f", "--tail", "1", "aabb").out == "two and three\n"


def test_output_of_cells_cannot_be_followed(run_call: Call, run_fleet: RunFleet) -> None:
    run_fleet.rows = [row(FIRST)]
    ended = run_call("logs", "-f", "--output", "aabb")
    assert (ended.code, ended.out) == (2, "")
    assert "leave out --output" in ended.err


def test_ctrl_c_leaves_a_log(run_call: Call, run_fleet: RunFleet) -> None:
    run_fleet.rows, run_fleet.followed, run_fleet.follows_for_ever = [row(FIRST)], ["one\n"], True

    def interrupt() -> None:
        wait_until(lambda: run_fleet.is_followed, "the log", 20)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert run_call("logs", "-f", "aabb") == Ended(code=0, out="one\n", err="")
    thread.join()


def test_a_log_that_nobody_reads_ends_as_a_program_does_that_sigpipe_ended(run_call: Call, run_fleet: RunFleet) -> None:
    run_fleet.rows, run_fleet.followed, run_fleet.follows_for_ever = [row(FIRST)], ["one\n"], True
    with unread_stdout():
        ended = run_call("logs", "-f", "aabb")
    assert (ended.code, ended.err) == (141, "")


def test_logs_prints_output_that_nobody_has_shown(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST)]
    assert call("logs", "aabb", "--output") == Ended(code=0, out="No output waits.\n", err="")
    fleet.left_text = "".join(f"line {number}\n" for number in range(300))
    assert call("logs", "aabb", "--output").out == fleet.left_text
    assert call("logs", "aabb", "--output", "--tail", "1").out == "line 299\n"
    assert call("logs", "zz", "--output").code == 52
