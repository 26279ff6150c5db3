"""cli/commands/attach.py: which kernel is meant, whether it may be had, and how it is held and left."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.cli.commands import attach
from kernelbridge.errors import HostRefused, KernelDied, KernelHeld, KernelTaken
from kernelbridge.kernel.process_mark import own_mark
from kernelbridge.kernel.records import KernelRecord, Records
from kernelbridge.kernel.state import KernelState
from tests.fakes import FakeFleet, row
from tests.printed import docs_line
from tests.rig.daemon import wait_until
from tests.unit.cli.conftest import Call

FIRST, SECOND = "aabb1111-0000-4000-8000-000000000001", "ccdd2222-0000-4000-8000-000000000002"
LONG_AGO = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
LEFT: dict[str, Any] = {"link": "detached", "since": LONG_AGO}
HELD: dict[str, Any] = {"link": "held", "held_by": "bob@desk", "since": LONG_AGO}
TAKEN = KernelTaken(environment="pytorch", host="lab", who="bob@desk")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the connection file of the first kernel is written."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run" / f"kernelbridge-{FIRST}.json"


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the place of jupyter_console; what it does is written into it."""
    module = tmp_path / "stand_in_console.py"
    monkeypatch.setattr(attach, "CONSOLE", module.stem)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return module


def remember(tmp_path: Path, **facts: Any) -> None:
    made_up: dict[str, Any] = {"kernel_id": FIRST, "environment": "pytorch", "config": "/k.toml", "host": "lab"}
    made_up |= {"image": "x", "python": "python3", "session": "s", "started": 5.0, "process": own_mark().process}
    Records(tmp_path / "data" / "kernelbridge").keep(KernelRecord(**{**made_up, **facts}))


def once(is_ready: Callable[[], bool], act: Callable[[], object]) -> None:
    """Do something while the command waits, a moment after it has come so far."""

    def wait_and_act() -> None:
        wait_until(is_ready, "the command to wait", 20)
        time.sleep(0.3)
        act()

    threading.Thread(target=wait_and_act, daemon=True).start()


def once_in_the_console(act: Callable[[], object]) -> None:
    before = signal.getsignal(signal.SIGINT)
    once(lambda: signal.getsignal(signal.SIGINT) is not before, act)


# -- which one


def test_a_kernel_that_a_program_here_holds_is_used_through_its_own_file(
    call: Call, fleet: FakeFleet, tmp_path: Path
) -> None:
    file = tmp_path / "kernel-1.json"
    file.touch()
    remember(tmp_path, connection_file=str(file))
    # Its host need not be asked.
    fleet.is_stuck = True
    ended = call("attach", "aabb", "--no-console")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [str(file), f"jupyter console --existing {file}"]
    assert fleet.kernel is None


@pytest.mark.parametrize("facts", [{"process": "1@0.00"}, {"connection_file": ""}, {"connection_file": "/gone.json"}])
def test_a_file_of_nobody_is_no_way_to_a_kernel(
    call: Call, fleet: FakeFleet, tmp_path: Path, facts: dict[str, Any]
) -> None:
    (tmp_path / "kernel-1.json").touch()
    remember(tmp_path, **{"connection_file": str(tmp_path / "kernel-1.json"), **facts})
    fleet.rows = [row(FIRST, **HELD)]
    assert call("attach", "aabb").code == KernelHeld.exit_code


def test_who_holds_it_and_since_when_is_said(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST, **HELD)]
    ended = call("attach", "aabb")
    assert ended.code == 56
    assert ended.err.splitlines() == [
        f"aabb1111-000 on lab has been held by bob@desk since {LONG_AGO.astimezone():%d %b %H:%M}.",
        "`kernelbridge attach --take aabb1111-000` takes it over; the other one then loses it.",
        docs_line(56),
    ]


def test_without_an_id_the_only_one_that_nobody_holds_is_meant(call: Call, fleet: FakeFleet, path: Path) -> None:
    fleet.rows = [row(FIRST, **LEFT), row(SECOND, **HELD), row("eeff", **LEFT, is_ours=False), row("0011")]
    fleet.kernel_facts = {"exit_code": 0}
    assert call("attach", "--no-console").out.splitlines()[0] == str(path)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "No kernel of this machine runs that nobody holds."),
        ([row(FIRST, **HELD)], "No kernel of this machine runs that nobody holds."),
        ([row(FIRST, **LEFT), row(SECOND, link="link lost")], "2 kernels of this machine run that nobody holds."),
    ],
)
def test_without_an_id_and_a_single_one_there_is_a_list(
    call: Call, fleet: FakeFleet, rows: list[Any], sentence: str
) -> None:
    fleet.rows = rows
    ended = call("attach")
    assert ended.code == 1
    assert ended.err.splitlines() == [sentence, "Name one: `kernelbridge attach ID`."]
    assert all(one.kernel_id[:12] in ended.out for one in rows)


def test_an_id_of_none_or_of_several_is_not_found(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST), row("aabb9999")]
    assert call("attach", "aabb").code == 52
    assert call("attach", "zz").code == 52
    fleet.problems = (HostRefused(host="two", address="two:22"),)
    # Not seen is not gone.
    assert call("attach", "zz").code == 20


def test_a_host_that_is_away_says_why(call: Call, fleet: FakeFleet) -> None:
    refused = HostRefused(host="two", address="two:22")
    fleet.rows, fleet.problems = [row(FIRST, state="unknown", why=refused.sentence)], (refused,)
    assert call("attach", "aabb").code == 20


def test_an_environment_that_is_gone_is_a_sentence(call: Call, fleet: FakeFleet) -> None:
    fleet.rows = [row(FIRST, environment="jax", **LEFT)]
    ended = call("attach", "aabb")
    assert ended.code == 12
    assert "there is no environment `jax`" in ended.err


# -- holding it


def test_it_is_held_until_ctrl_c_and_runs_on(call: Call, fleet: FakeFleet, path: Path, tmp_path: Path) -> None:
    fleet.rows = [row(FIRST, **LEFT)]
    remember(tmp_path, process="", server="/home/ada")
    seen: list[Any] = []

    def leave() -> None:
        seen.extend([path.stat().st_mode, json.loads(path.read_text())])
        os.kill(os.getpid(), signal.SIGINT)

    once(path.exists, leave)
    ended = call("attach", "aabb")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        *(str(path), f"jupyter console --existing {path}"),
        *("Ctrl-C leaves the kernel running.", f"The kernel runs on: {FIRST}."),
    ]
    mode, written = seen
    assert stat.S_IMODE(mode) == 0o600
    assert len(written["key"]) == 64
    assert written["signature_scheme"] == "hmac-sha256"
    assert not path.exists()
    assert (fleet.ended, fleet.takes) == ("detached", False)
    assert fleet.kernel is not None
    # The Jupyter server whose it was has it again.
    assert (fleet.kernel.request.server, fleet.kernel.request.connection_file) == ("/home/ada", str(path))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_closed_terminal_leaves_it_in_good_order(call: Call, fleet: FakeFleet, path: Path, name: str) -> None:
    fleet.rows = [row(FIRST, **LEFT)]
    before = signal.getsignal(getattr(signal, name))
    once(path.exists, lambda: os.kill(os.getpid(), getattr(signal, name)))
    assert call("attach").code == 0
    assert fleet.ended == "detached"
    assert not path.exists()
    assert signal.getsignal(getattr(signal, name)) is before


def test_take_takes_it(call: Call, fleet: FakeFleet, path: Path, tmp_path: Path) -> None:
    file = tmp_path / "kernel-1.json"
    file.touch()
    # Even from a program of this machine.
    remember(tmp_path, connection_file=str(file))
    fleet.rows, fleet.kernel_facts = [row(FIRST, **HELD)], {"exit_code": 0}
    assert call("attach", "aabb", "--take").out.splitlines()[0] == str(path)
    assert fleet.takes


def test_a_kernel_that_another_takes_ends_with_who_took_it(call: Call, fleet: FakeFleet, path: Path) -> None:
    fleet.rows = [row(FIRST, **LEFT)]

    def take() -> None:
        # The other one, on this machine, has written its own file in the same place.
        path.write_text("{}")
        assert fleet.kernel is not None
        fleet.kernel.failure, fleet.kernel.exit_code = TAKEN, TAKEN.exit_code

    once(path.exists, take)
    ended = call("attach")
    assert (ended.code, ended.err.splitlines()[0]) == (57, TAKEN.sentence)
    assert fleet.ended == "detached"
    assert path.read_text() == "{}"


def test_a_kernel_that_ends_in_good_order_leaves_no_container(call: Call, fleet: FakeFleet, path: Path) -> None:
    fleet.rows, fleet.kernel_facts = [row(FIRST, **LEFT)], {"exit_code": 0}
    ended = call("attach")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "The kernel has ended.")
    assert fleet.ended == "stopped"


# -- one that does not answer


def test_a_kernel_that_has_ended_says_how(call: Call, fleet: FakeFleet, path: Path) -> None:
    fleet.rows = [row(FIRST, **LEFT)]
    died = KernelDied(environment="pytorch", host="lab", how="signal SIGKILL")
    fleet.kernel_facts = {"state": KernelState.EXITED, "failure": died}
    ended = call("attach")
    assert (ended.code, ended.out) == (50, "")
    assert ended.err.splitlines()[0] == died.sentence
    fleet.kernel_facts = {"state": KernelState.EXITED, "exit_code": 0}
    ended = call("attach")
    assert ended.code == 55
    assert "has no kernel process any more" in ended.err
    assert fleet.ended == "detached"


def test_the_output_of_one_that_has_ended_can_be_fetched(call: Call, fleet: FakeFleet, path: Path) -> None:
    fleet.rows = [row(FIRST, undelivered_bytes=1000, **LEFT)]
    died = KernelDied(environment="pytorch", host="lab", how="signal SIGKILL")
    fleet.kernel_facts = {"state": KernelState.EXITED, "failure": died, "exit_code": -9}
    once(path.exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    ended = call("attach")
    assert (ended.code, ended.out.splitlines()[0]) == (50, str(path))
    assert ended.err.splitlines()[0] == died.sentence


def test_a_kernel_that_never_answers_is_given_up(call: Call, fleet: FakeFleet, path: Path, config_path: Path) -> None:
    config_path.write_text(config_path.read_text() + "start_seconds = 0.3\n")
    fleet.rows, fleet.kernel_facts = [row(FIRST, **LEFT)], {"state": KernelState.STARTING}
    ended = call("attach")
    assert ended.code == 53
    assert "the answer of the kernel took longer than 0.3 s" in ended.err
    assert fleet.ended == "detached"


# -- the console


def test_a_console_runs_on_the_file_and_its_end_is_the_end(
    call: Call, fleet: FakeFleet, path: Path, console: Path
) -> None:
    fleet.rows = [row(FIRST, **LEFT)]
    heard = console.with_name("heard")
    console.write_text(
        f"import sys; open({str(heard)!r}, 'w').write(' '.join([*sys.argv[1:], open(sys.argv[2]).read()]))"
    )
    assert call("attach", "--console").code == 0
    assert heard.read_text().startswith(f"--existing {path} {attach.SHOW_ALL} {{")
    assert fleet.ended == "detached"


def test_ctrl_c_in_the_console_is_the_kernels(call: Call, fleet: FakeFleet, path: Path, console: Path) -> None:
    fleet.rows = [row(FIRST, **LEFT)]
    console.write_text("import time; time.sleep(1)")
    once_in_the_console(lambda: os.kill(os.getpid(), signal.SIGINT))
    began = time.monotonic()
    assert call("attach", "--console").code == 0
    assert time.monotonic() - began > 1
    assert fleet.kernel is not None
    assert fleet.kernel.signals == [signal.SIGINT]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that can be caught")
def test_the_console_does_not_outlive_the_command(call: Call, fleet: FakeFleet, path: Path, console: Path) -> None:
    fleet.rows = [row(FIRST, **LEFT)]
    console.write_text("import time; time.sleep(60)")
    once_in_the_console(lambda: os.kill(os.getpid(), signal.SIGTERM))
    began = time.monotonic()
    assert call("attach", "--console").code == 0
    assert time.monotonic() - began < 30
    assert fleet.ended == "detached"


def test_a_console_on_a_kernel_that_another_holds_is_only_a_client(
    call: Call, fleet: FakeFleet, tmp_path: Path, console: Path
) -> None:
    file = tmp_path / "kernel-1.json"
    file.touch()
    remember(tmp_path, connection_file=str(file))
    console.touch()
    assert call("attach", "aabb", "--console").code == 0
    assert fleet.kernel is None


def test_a_console_that_is_not_installed_is_a_sentence(
    call: Call, fleet: FakeFleet, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "CONSOLE", "no_such_console")
    fleet.rows = [row(FIRST, **LEFT)]
    ended = call("attach", "--console")
    assert (ended.code, ended.err.splitlines()[-1]) == (1, "`pip install jupyter-console`.")
    assert fleet.kernel is None
