"""cli/context.py: which config a command is about, and how its errors are printed."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from kernelbridge.cli.context import CliContext, result, until_told_to_leave
from tests.fakes import FakeFleet
from tests.printed import docs_line
from tests.unit.cli.conftest import Call


def test_what_takes_too_long_is_said(call: Call, fleet: FakeFleet) -> None:
    fleet.is_stuck = True
    ended = call("ps")
    assert (ended.code, ended.err.splitlines()[0]) == (1, "No answer within 60 s.")


def test_a_session_says_which_config_it_is_about(fleet: FakeFleet, tmp_path: Path) -> None:
    session = CliContext(open_fleet=fleet.open, environ={"KERNELBRIDGE_CONFIG": str(tmp_path)})  # type: ignore[arg-type]
    assert repr(session) == f"<CliContext config={tmp_path}>"


def test_all_problems_of_a_config_are_printed_at_once(call: Call, config_path: Path) -> None:
    config_path.write_text('[hosts.lab]\nssh = "lab"\ngpu = 1\n[environments.a]\nimage = "x"\nshm_size = "8q"\n')
    ended = call("config")
    assert ended.code == 10
    assert ended.err.splitlines() == [
        f"{config_path}: hosts.lab.gpu: unknown key; did you mean `gpus` of an environment?",
        f'{config_path}: environments.a.shm_size: must be a size like "8g" or "512m"',
        "Fix the file; `kernelbridge config` checks it.",
        docs_line(10),
    ]


class Left(BaseException):
    """What a command wants to hear."""


@pytest.mark.parametrize(("name", "raising"), [("SIGTERM", KeyboardInterrupt), ("SIGHUP", Left)])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_who_is_told_to_leave_hears_what_it_wants_to_for_as_long_as_a_block_runs(
    name: str, raising: type[BaseException]
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(raising), until_told_to_leave(raising):
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert signal.getsignal(number) is before


def test_a_result_that_is_a_timeout_of_its_own_is_raised() -> None:
    late: Future[int] = Future()
    late.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        result(late)
    done: Future[int] = Future()
    done.set_result(3)
    assert result(done) == 3


def test_a_wait_ends_with_what_a_look_meanwhile_finds() -> None:
    def look() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        result(Future[int](), look)
