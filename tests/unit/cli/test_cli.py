"""cli/app.py, kernels.py and hosts.py: the commands on kernels and hosts, and how every error ends."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kernelbridge.cli.session import Session
from kernelbridge.errors import HostKeyUnknown, HostRefused, HostUnreachable
from tests.fakes import FakeFleet, host_key, row
from tests.unit.cli.conftest import Call, Ended

FIRST, SECOND = "aabb1111-0000-4000-8000-000000000001", "ccdd2222-0000-4000-8000-000000000002"
REFUSED = HostRefused(host="two", address="two:22")
DOWN = HostUnreachable(host="lab", address="lab:22", reason="timed out")


# -- the call itself


def test_without_a_command_the_help_is_shown(call: Call) -> None:
    ended = call()
    for command in ("config", "trust", "install", "uninstall", "ps", "stop", "logs", "clean"):
        assert command in ended.out + ended.err


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version") == Ended(code=0, out="kernelbridge 1.2.3\n", err="")


@pytest.mark.parametrize("arguments", [("stpo",), ("ps", "--jsno"), ("logs",), ("logs", "a", "--tail", "x"), ("stop",)])
def test_a_call_that_makes_no_sense_ends_with_code_2(call: Call, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "Usage: kernelbridge" in ended.err


def test_the_config_can_be_named_before_the_command(call: Call, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('[environments.other]\nimage = "x"\n')
    ended = call("--config", str(tmp_path / "other.toml"), "config", "--json")
    assert list(json.loads(ended.out)["environments"]) == ["other"]


def test_an_error_is_its_sentence_its_remedy_and_its_code(call: Call) -> None:
    ended = call("--config", "/nowhere/x.toml", "ps")
    assert ended.code == 11
    assert ended.out == ""
    assert ended.err.splitlines() == [
        f"{Path('/nowhere/x.toml').absolute()}: the config file cannot be read (there is no such file).",
        "Write it, or name another with KERNELBRIDGE_CONFIG.",
    ]


def test_with_debug_an_error_shows_its_traceback_too(call: Call) -> None:
    ended = call("--debug", "--config", "/nowhere/x.toml", "ps")
    assert ended.code == 11
    assert "Traceback (most recent call last)" in ended.err


def test_a_bug_of_ours_is_one_line_and_the_way_to_see_more(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [None]  # type: ignore[list-item]
    ended = call("ps")
    assert ended.code == 1
    assert ended.err.startswith("kernelbridge has a bug here: AttributeError")
    assert "kernelbridge --debug" in ended.err
    assert "Traceback" not in ended.err
    assert fleet.is_closed
    assert "Traceback" in call("--debug", "ps").err


def test_what_takes_too_long_is_said(call: Call, fleet: FakeFleet) -> None:
    fleet.is_stuck = True
    ended = call("ps")
    assert (ended.code, ended.err.splitlines()[0]) == (1, "No answer within 60 s.")


def test_a_session_says_which_config_it_is_about(fleet: FakeFleet, tmp_path: Path) -> None:
    session = Session(open_fleet=fleet.open, environ={"KERNELBRIDGE_CONFIG": str(tmp_path)})  # type: ignore[arg-type]
    assert repr(session) == f"<Session config={tmp_path}>"


def test_all_problems_of_a_config_are_printed_at_once(call: Call, config_path: Path) -> None:
    config_path.write_text('[hosts.lab]\nssh = "lab"\ngpu = 1\n[environments.a]\nimage = "x"\nshm_size = "8q"\n')
    ended = call("config")
    assert ended.code == 10
    assert ended.err.splitlines() == [
        f"{config_path}: hosts.lab.gpu: unknown key; did you mean `gpus` of an environment?",
        f'{config_path}: environments.a.shm_size: must be a size like "8g" or "512m"',
        "Mend the file; `kernelbridge config` checks it.",
    ]


# -- ps


def test_ps_shows_each_kernel_on_a_line(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [
        row(SECOND, host="two", state="exited (3)", is_orphan=True, owner="bob@desk"),
        row(FIRST, gpus="GPU-11111111-aaaa,GPU-22222222-bbbb", created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC)),
    ]
    ended = call("ps")
    heading, first, second = ended.out.splitlines()
    assert heading.split() == ["KERNEL", "ENVIRONMENT", "HOST", "STATE", "GPUS", "OWNER", "CREATED", "IMAGE"]
    created = datetime(2026, 1, 2, 3, 4, tzinfo=UTC).astimezone()
    assert first.split() == [
        *("aabb1111-000", "pytorch", "lab", "running", "GPU-11111111,GPU-22222222", "ada@laptop"),
        *(f"{created:%Y-%m-%d}", f"{created:%H:%M}", "pytorch/pytorch:2"),
    ]
    assert "exited (3), orphan" in second
    assert "bob@desk" in second
    assert (ended.code, ended.err) == (0, "")
    assert fleet.is_closed


def test_ps_without_kernels_says_so(call: Call) -> None:
    assert call("ps") == Ended(code=0, out="No kernels.\n", err="")


def test_ps_shows_a_host_that_does_not_answer_as_a_line(call: Call, fleet: FakeFleet) -> None:
    fleet.rows, fleet.problems = [row(FIRST)], (REFUSED,)
    ended = call("ps")
    assert ended.code == 0
    assert "aabb1111-000" in ended.out
    assert ended.err.splitlines() == [REFUSED.sentence, REFUSED.remedy]


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
    fleet.rows = [row(FIRST, gpus="GPU-1,GPU-2"), row(SECOND)]
    fleet.problems = (REFUSED,)
    whole = json.loads(call("ps", "--json").out)
    assert whole["kernels"][0] == {
        "kernel_id": FIRST,
        "environment": "pytorch",
        "host": "lab",
        "image": "pytorch/pytorch:2",
        "state": "running",
        "owner": "ada@laptop",
        "is_ours": True,
        "is_orphan": False,
        "created": "2026-11-20T12:00:00+00:00",
        "gpus": ["GPU-1", "GPU-2"],
    }
    assert whole["kernels"][1]["gpus"] == []
    assert whole["problems"] == [{"sentence": REFUSED.sentence, "remedy": REFUSED.remedy, "exit_code": 20}]


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
    theirs = row(SECOND, is_ours=False)
    fleet.rows = [row(FIRST), theirs]
    assert call("stop", "--all").out == f"Stopped {FIRST} (pytorch on lab).\n"
    assert fleet.rows == [theirs]
    assert call("stop", "--all") == Ended(code=0, out="No kernels.\n", err="")


def test_stop_all_tells_of_a_host_that_it_could_not_ask(call: Call, fleet: FakeFleet) -> None:
    fleet.rows, fleet.problems = [row(FIRST)], (REFUSED,)
    ended = call("stop", "--all")
    assert ended.code == 20
    assert f"Stopped {FIRST}" in ended.out


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


def test_clean_removes_what_nobody_uses(call: Call, fleet: FakeFleet) -> None:
    orphan = row(FIRST, is_orphan=True)
    fleet.rows = [orphan, row(SECOND)]
    ended = call("clean", "--dry-run")
    assert "aabb1111-000" in ended.out
    assert ended.out.endswith("These would be removed.\n")
    assert len(fleet.rows) == 2
    assert json.loads(call("clean", "--dry-run", "--json").out)["kernels"][0]["kernel_id"] == FIRST
    assert call("clean").out.endswith("These were removed.\n")
    assert [kernel.kernel_id for kernel in fleet.rows] == [SECOND]
    assert call("clean") == Ended(code=0, out="Nothing to remove.\n", err="")


def test_clean_tells_of_a_host_that_does_not_answer_and_fails(call: Call, fleet: FakeFleet) -> None:
    fleet.problems = (REFUSED,)
    assert call("clean") == Ended(code=20, out="", err=f"{REFUSED.sentence}\n{REFUSED.remedy}\n")
    fleet.rows = [row(FIRST, is_orphan=True)]
    told = call("clean", "--json")
    assert told.code == 20
    assert [kernel["kernel_id"] for kernel in json.loads(told.out)["kernels"]] == [FIRST]
    assert json.loads(told.out)["problems"][0]["sentence"] == REFUSED.sentence


# -- trust


def test_trust_remembers_a_key_that_was_compared(call: Call, fleet: FakeFleet) -> None:
    jump, key = host_key(name="jump"), host_key(fingerprint="SHA256:xyz")
    fleet.keys = [jump, key]
    ended = call("trust", "lab", "--yes")
    assert ended.code == 0
    assert ended.out.splitlines() == [
        "jump shows the key ssh-ed25519 SHA256:abc",
        "lab.example shows the key ssh-ed25519 SHA256:xyz",
        "lab is trusted: ssh-ed25519 SHA256:abc",
    ]
    assert fleet.trusted == [("lab", jump), ("lab", key)]


@pytest.mark.parametrize(("answer", "trusted"), [("y\n", 1), ("n\n", 0), ("\n", 0), ("", 0)])
def test_trust_asks_first_and_no_is_the_default(
    call: Call, fleet: FakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, trusted: int
) -> None:
    fleet.keys = [host_key()]
    (tmp_path / "answer").write_text(answer)
    with (tmp_path / "answer").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        ended = call("trust", "lab")
    assert len(fleet.trusted) == trusted
    assert (ended.code == 0) is bool(trusted)
    assert "Traceback" not in ended.err


def test_trust_never_takes_a_changed_key(call: Call, fleet: FakeFleet) -> None:
    fleet.keys = [host_key(is_changed=True)]
    ended = call("trust", "lab", "--yes")
    assert ended.code == 25
    assert "has CHANGED" in ended.err
    assert "ssh-keygen -R 'lab.example'" in ended.err
    assert fleet.trusted == []


def test_trust_of_this_machine_needs_no_key(call: Call) -> None:
    assert call("trust", "here").out == "here is this machine: there is no key to trust.\n"


def test_trust_of_an_unknown_host_names_the_nearest(call: Call) -> None:
    ended = call("trust", "lap")
    assert ended.code == 13
    assert "Did you mean `lab`?" in ended.err


def test_trust_that_does_not_take_ends(call: Call, fleet: FakeFleet) -> None:
    fleet.keys, fleet.is_forgetful = [host_key()], True
    ended = call("trust", "lab", "--yes")
    unknown = HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:abc")
    assert (ended.code, ended.err.splitlines()[0]) == (unknown.exit_code, unknown.sentence)


def test_python_m_kernelbridge_is_the_same_program(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "kernelbridge", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.startswith("kernelbridge 0.")
