"""jupyter/shared_fleets.py: one fleet for each config file, told to all who observe, and ended with the program."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.channels.rate_limit import Limits
from kernelbridge.errors import ConfigInvalid
from kernelbridge.jupyter import shared_fleets
from kernelbridge.kernel.state import KernelState

CONFIG = '[hosts.here]\nssh = "local"\n[environments.{name}]\nimage = "x"\n'


class NoFleet:
    """Stands where Fleet stands, and reaches nobody."""

    def __init__(self, config: Any, *, askers: Any) -> None:
        self.config = config
        self.askers = askers
        self.limits: Limits | None = None
        self.observers: list[Callable[..., None]] = []

    def observe(self, observer: Callable[..., None]) -> None:
        self.observers.append(observer)


class NoThread:
    """What waits for the program's end; begun once."""

    begun = 0

    def start(self) -> None:
        self.begun += 1

    def is_alive(self) -> bool:
        return self.begun > 0


@pytest.fixture(autouse=True)
def exit_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoThread]:
    waits = NoThread()
    monkeypatch.setattr(shared_fleets, "Fleet", NoFleet)
    monkeypatch.setattr(shared_fleets, "_EXIT", waits)
    for name, empty in (("_FLEETS", {}), ("_OBSERVERS", []), ("_LIMITS", [])):
        monkeypatch.setattr(shared_fleets, name, empty)
    yield waits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "kernelbridge.toml", "torch")


def written(path: Path, name: str) -> Path:
    path.write_text(CONFIG.format(name=name), "utf-8")
    return path


def test_all_who_ask_under_one_config_share_a_fleet(path: Path, tmp_path: Path, exit_thread: NoThread) -> None:
    first = shared_fleets.fleet_of(path)
    assert shared_fleets.fleet_of(path) is first
    assert shared_fleets.fleet_of(written(tmp_path / "other.toml", "torch")) is not first
    assert exit_thread.begun == 1


def test_a_forked_process_makes_a_fleet_of_its_own_whose_thread_runs(tmp_path: Path) -> None:
    config = written(tmp_path / "kernelbridge.toml", "torch")
    code = f"""
import asyncio, os, pathlib
from kernelbridge.jupyter import shared_fleets
path = pathlib.Path({str(config)!r})
fleet = shared_fleets.fleet_of(path)
child = os.fork()
own = shared_fleets.fleet_of(path)
assert own.run(asyncio.sleep(0, "done"), 20) == "done"
assert (own is fleet) == bool(child)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    environ = {**os.environ, "JUPYTER_DATA_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environ, check=True, timeout=60)


def test_a_fleet_has_the_config_as_it_is_now(path: Path) -> None:
    fleet = shared_fleets.fleet_of(path)
    assert list(fleet.config.environments) == ["torch"]
    written(path, "jax")
    assert shared_fleets.fleet_of(path) is fleet
    assert list(fleet.config.environments) == ["jax"]


def test_a_config_that_became_unreadable_is_refused_and_the_fleet_keeps_what_it_had(path: Path) -> None:
    fleet = shared_fleets.fleet_of(path)
    path.write_text("[hosts.here]\nnonsense = 1\n", "utf-8")
    with pytest.raises(ConfigInvalid):
        shared_fleets.fleet_of(path)
    assert list(fleet.config.environments) == ["torch"]


def test_what_the_server_lets_through_holds_for_the_kernels_to_come(path: Path) -> None:
    assert shared_fleets.fleet_of(path).limits is None
    for number in (10, 20):
        shared_fleets.limit(Limits(messages_per_second=number, stream_bytes_per_second=1, window_seconds=1))
    limits = shared_fleets.fleet_of(path).limits
    assert limits is not None
    assert limits.messages_per_second == 20


def test_who_observes_hears_of_every_fleet_until_it_has_enough(path: Path, tmp_path: Path) -> None:
    heard: list[Any] = []
    fleets: list[Any] = [shared_fleets.fleet_of(path)]
    stop = shared_fleets.observe(lambda *words: heard.append(words))
    fleets.append(shared_fleets.fleet_of(written(tmp_path / "other.toml", "torch")))
    for fleet in fleets:
        (tell,) = fleet.observers
        tell("k1", KernelState.RUNNING, "text")
    assert heard == [("k1", KernelState.RUNNING, "text")] * 2
    stop()
    fleets[0].observers[0]("k1", KernelState.RUNNING, "more")
    assert len(heard) == 2


def test_who_stops_observing_while_it_is_told_takes_nothing_from_the_others(path: Path) -> None:
    heard: list[str] = []
    stops: list[Callable[[], None]] = []

    def once(*_: Any) -> None:
        heard.append("once")
        stops.pop()()

    stops.append(shared_fleets.observe(once))
    shared_fleets.observe(lambda *_: heard.append("always"))
    fleet: Any = shared_fleets.fleet_of(path)
    for _ in range(2):
        fleet.observers[0]("k1", KernelState.RUNNING, "")
    assert heard == ["once", "always", "always"]


async def test_what_is_being_removed_is_gone_before_a_program_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: Future[None] = Future()
    monkeypatch.setattr(NoFleet, "finish_stops", lambda fleet: fleet, raising=False)
    monkeypatch.setattr(NoFleet, "submit", lambda fleet, stops: removed, raising=False)
    shared_fleets.fleet_of(written(tmp_path / "one.toml", "a"))
    ending = asyncio.create_task(shared_fleets.finish_stops())
    await asyncio.sleep(0.05)
    assert not ending.done()
    removed.set_result(None)
    await ending


async def test_a_host_that_does_not_answer_keeps_a_program_from_its_end_for_a_while_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_fleets, "EXIT_SECONDS", 0.05)
    monkeypatch.setattr(NoFleet, "finish_stops", lambda fleet: fleet, raising=False)
    monkeypatch.setattr(NoFleet, "submit", lambda fleet, stops: Future(), raising=False)
    shared_fleets.fleet_of(path)
    await asyncio.wait_for(shared_fleets.finish_stops(), 10)


def test_the_kernels_of_a_program_are_ended_when_its_main_thread_is_over(path: Path) -> None:
    code = f"""
from pathlib import Path
from kernelbridge.jupyter import shared_fleets
fleet = shared_fleets.fleet_of(Path({str(path)!r}))
fleet.detach_or_stop_all = lambda seconds: print("ended", seconds, flush=True)
print("over", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert ended.stdout.decode().split() == ["over", "ended", f"{shared_fleets.EXIT_SECONDS}"]
