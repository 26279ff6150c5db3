"""kernel/start/kept_logs.py: the last lines of starts that failed, bounded and private."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import EngineFailed, LinkLost
from kernelbridge.hosts.backend import Exited, Missing, Running
from kernelbridge.hosts.relay_query import RelayAddress
from kernelbridge.kernel.start import kept_logs
from kernelbridge.kernel.start.kept_logs import (
    KEPT_LOG_BYTES,
    KEPT_LOG_LINES,
    KEPT_LOG_SECONDS,
    MOST_KEPT_LOGS,
    KeptLogs,
)

ENDED = Exited(code=1, oom_killed=False, error="", finished_at="")


@pytest.fixture
def logs(tmp_path: Path) -> KeptLogs:
    return KeptLogs(tmp_path / "records" / "failed-starts")


def test_what_is_hidden_is_not_kept(logs: KeptLogs) -> None:
    logs.keep("abc-1", "login with s3cr3t-and-more\n", hidden=["s3cr3t-and-more", "s3cr3t"])
    found = logs.find("abc")
    assert found is not None
    assert found.text == "login with ***\n"


def test_what_is_kept_is_found_by_the_beginning_of_its_id(logs: KeptLogs) -> None:
    assert logs.keep("abc-1", "one\ntwo\n")
    assert logs.keep("abd-2", "three")
    found = logs.find("abc")
    assert found is not None
    assert (found.kernel_id, found.text) == ("abc-1", "one\ntwo\n")
    assert logs.find("ab") is None, "there are two"
    assert logs.find("") is None
    assert logs.find("x") is None
    logs.forget("abc-1")
    logs.forget("abc-1")
    assert logs.find("abc") is None


def test_nothing_is_kept_of_nothing(logs: KeptLogs) -> None:
    assert not logs.keep("a", " \n\n")
    assert logs.find("a") is None


def test_of_much_the_last_part_is_kept(logs: KeptLogs) -> None:
    logs.keep("a", "".join(f"{number}\n" for number in range(1000)))
    logs.keep("b", "x" * (KEPT_LOG_BYTES + 500) + "end")
    found, long = logs.find("a"), logs.find("b")
    assert found is not None
    assert long is not None
    assert found.text.splitlines() == [str(number) for number in range(1000 - KEPT_LOG_LINES, 1000)]
    assert len(long.text) == KEPT_LOG_BYTES + 1
    assert long.text.endswith("end\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
def test_no_other_login_can_read_it(logs: KeptLogs, tmp_path: Path) -> None:
    logs.keep("a", "text")
    folder = tmp_path / "records" / "failed-starts"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "a.log").stat().st_mode & 0o777 == 0o600


def test_an_id_leads_nowhere_else(logs: KeptLogs, tmp_path: Path) -> None:
    logs.keep("../../evil", "text")
    assert [path.name for path in tmp_path.rglob("*.log")] == ["evil.log"]
    assert (tmp_path / "records" / "failed-starts" / "evil.log").is_file()


def test_what_is_old_and_what_is_too_much_goes(logs: KeptLogs, tmp_path: Path) -> None:
    began = time.time() - 1000
    for number in range(MOST_KEPT_LOGS + 3):
        logs.keep(f"k{number:02}", "text")
        at = began + number
        os.utime(tmp_path / "records" / "failed-starts" / f"k{number:02}.log", (at, at))
    logs.sweep()
    left = sorted(path.stem for path in tmp_path.rglob("*.log"))
    assert left == [f"k{number:02}" for number in range(3, MOST_KEPT_LOGS + 3)]
    logs.sweep(now=began + MOST_KEPT_LOGS + KEPT_LOG_SECONDS + 1.5)
    assert sorted(path.stem for path in tmp_path.rglob("*.log")) == ["k22"]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not KeptLogs(tmp_path / "file" / "logs").keep("a", "text")


class MadeWorkload:
    def __init__(self, state: Any, log: str | Exception = "", *, hangs: bool = False) -> None:
        self.made_state, self.log, self.hangs = state, log, hangs

    async def state(self) -> Any:
        if self.hangs:
            await asyncio.Event().wait()
        return self.made_state

    async def logs(self, tail: int) -> str:
        if isinstance(self.log, Exception):
            raise self.log
        return self.log


def workload_of(made: MadeWorkload) -> Callable[[], Awaitable[Any]]:
    async def get() -> MadeWorkload:
        return made

    return get


def address(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> RelayAddress:
    async def ask(where: RelayAddress) -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(kept_logs, "ask_log", ask)
    nothing: Any = None
    return RelayAddress(kernel="k", host="lab", image="i", python="p", workload=nothing, rest=nothing)


@pytest.mark.parametrize(
    ("state", "relay", "log", "text"),
    [
        (Running(), "of the relay", "of the engine", "of the relay"),
        (Running(), "\n", "of the engine", "of the engine"),
        (Running(), LinkLost(host="lab"), "of the engine", "of the engine"),
        (ENDED, "is not asked", "of the engine", "of the engine"),
        (Missing(), "is not asked", EngineFailed(host="lab", action="read", reason="no such container"), ""),
        # Our own bug: the start's failure is told all the same.
        (ENDED, "", KeyError("k"), ""),
    ],
)
async def test_a_log_comes_from_the_relay_as_long_as_that_answers(
    monkeypatch: pytest.MonkeyPatch, state: Any, relay: str | Exception, log: str | Exception, text: str
) -> None:
    made = workload_of(MadeWorkload(state, log))
    assert await kept_logs.fetched(address(monkeypatch, relay), made) == text


async def test_who_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_logs, "LOG_FETCH_SECONDS", 0.05)
    made = workload_of(MadeWorkload(Running(), "x", hangs=True))
    assert await kept_logs.fetched(address(monkeypatch, ""), made) == ""
