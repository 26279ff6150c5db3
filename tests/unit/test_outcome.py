"""outcome.py and exits.py: what a user hears of a start and an end, and when the end may be seen."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from kernelbridge import outcome
from kernelbridge.config import Environment, Host
from kernelbridge.exits import ShownExit
from kernelbridge.host.engine import PullProgress
from kernelbridge.kernel_errors import ContainerFailed, ImageUnusable, KernelDied, KernelExpired, KernelOutOfMemory
from kernelbridge.wanted import Wanted

HOST = Host(name="lab", ssh="lab")


def wanted(**keys: Any) -> Wanted:
    environment = Environment(name="torch", image="torch:2", **keys)
    return Wanted(kernel_id="k1", environment=environment, display_name="Torch", hosts=(HOST,), environ={})


def exited(**facts: Any) -> dict[str, Any]:
    return {
        "event": "exited",
        "launch": 1,
        "code": 1,
        "out_of_memory": False,
        "wanted": False,
        "last_words": "",
        **facts,
    }


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "signal SIGKILL"), (-200, "signal 200")]
)
def test_an_exit_code_is_said_as_people_know_it(code: int, text: str) -> None:
    assert outcome.how_ended(code) == text


def test_a_death_names_environment_host_code_and_last_words() -> None:
    error = outcome.death(wanted(), HOST, exited(code=-11, last_words="Segmentation fault"))
    assert isinstance(error, KernelDied)
    assert error.sentence == "The kernel of Torch on lab ended: signal SIGSEGV. Its last words: Segmentation fault"


@pytest.mark.parametrize(("memory", "limit"), [("2g", "its limit is 2 GiB"), (None, "the host had no more")])
def test_a_death_for_lack_of_memory_names_the_limit(memory: str | None, limit: str) -> None:
    error = outcome.death(wanted(memory=memory), HOST, exited(code=-9, out_of_memory=True))
    assert isinstance(error, KernelOutOfMemory)
    assert limit in error.sentence


def test_an_end_by_a_limit_names_the_key_that_set_it() -> None:
    error = outcome.death(wanted(), HOST, exited(code=-9, wanted=True, why="max_lifetime"))
    assert isinstance(error, KernelExpired)
    assert error.sentence == "The kernel of Torch on lab was ended by `max_lifetime` of its environment."
    assert isinstance(outcome.death(wanted(), HOST, exited(why="")), KernelDied)


@pytest.mark.parametrize(
    ("messages", "size", "text"),
    [
        (1, 2_000_000, "[kernelbridge: 1 message of this output (2.0 MB) had no room while nobody took it]\n"),
        (12_345, 40_000, "[kernelbridge: 12,345 messages of this output (0.0 MB) had no room while nobody took it]\n"),
    ],
)
def test_a_line_stands_for_output_that_had_no_room(messages: int, size: int, text: str) -> None:
    assert outcome.dropped_text({"event": "dropped", "messages": messages, "bytes": size}) == text


def test_an_image_that_lacks_something_is_told_from_a_container_that_failed() -> None:
    lacking = outcome.failed_start(wanted(), HOST, {"event": "failed", "launch": 1, "lacks": "ipykernel"})
    assert isinstance(lacking, ImageUnusable)
    assert lacking.sentence == "The image torch:2 has no ipykernel."
    failed = outcome.failed_start(wanted(), HOST, {"event": "failed", "launch": 1, "lacks": "", "reason": "no folder"})
    assert isinstance(failed, ContainerFailed)
    assert "no folder" in failed.sentence


def test_a_pull_says_how_far_it_is_once_it_knows() -> None:
    first = PullProgress(image="torch:2", status="Waiting", done_bytes=0, total_bytes=0, done_layers=0, total_layers=0)
    assert outcome.pull_text("torch:2", first) == "pulling torch:2"
    unpacking = replace(first, done_bytes=9, total_bytes=9, done_layers=2, total_layers=5)
    assert outcome.pull_text("torch:2", unpacking) == "unpacking torch:2: 2 of 5 layers"
    half = replace(first, done_bytes=1_500_000_000, total_bytes=3_000_000_000)
    assert outcome.pull_text("torch:2", half) == "pulling torch:2: 50 % (1.50 of 3.00 GB)"


async def test_an_exit_is_seen_after_its_time_and_not_before() -> None:
    end = ShownExit()
    end.show(3, after_seconds=0.05)
    assert end.code is None
    assert repr(end) == "<ShownExit None soon>"
    await asyncio.sleep(0.1)
    assert end.code == 3
    end.show(4)
    assert end.code == 3


async def test_an_exit_that_somebody_asks_for_is_seen_at_once() -> None:
    end = ShownExit()
    end.hasten()
    assert end.code is None
    end.show(3, after_seconds=60)
    end.hasten()
    assert end.code == 3
    other = ShownExit()
    other.show(3, after_seconds=60)
    other.show(0)
    assert other.code == 3


async def test_an_exit_that_is_cancelled_is_never_seen() -> None:
    end = ShownExit()
    end.show(3, after_seconds=0.05)
    end.cancel()
    await asyncio.sleep(0.1)
    assert end.code is None
    end.show(0)
    end.cancel()
    assert end.code is None


@pytest.mark.parametrize(
    ("network", "asked_for", "is_refused"),
    [("bridge", False, False), ("none", False, False), ("host", False, True), ("host", True, False)],
)
def test_debugging_is_refused_on_the_hosts_network_unless_asked_for(
    network: str, asked_for: bool, is_refused: bool
) -> None:
    environment = Environment(name="torch", image="torch:2", network=network, debug_on_host_network=asked_for)
    said = outcome.debug_refusal(environment, HOST)
    assert bool(said) is is_refused
    assert ("Debugging is off in torch" in said) is is_refused


@pytest.mark.parametrize(
    ("runtime", "network", "asked_for", "is_refused"),
    [
        ("apptainer", "bridge", False, True),
        ("apptainer", "none", False, False),
        ("apptainer", "bridge", True, False),
        ("pyxis", "none", False, True),
        ("podman", "bridge", False, False),
        ("docker", "host", False, True),
    ],
)
def test_debugging_is_refused_in_a_job_that_has_its_nodes_network(
    runtime: Any, network: str, asked_for: bool, is_refused: bool
) -> None:
    environment = Environment(name="torch", image="torch:2", network=network, debug_on_host_network=asked_for)
    cluster = Host(name="hpc", ssh="hpc", scheduler="slurm", runtime=runtime)
    said = outcome.debug_refusal(environment, cluster)
    assert bool(said) is is_refused
    assert (f"{runtime} runs it on the node's network" in said) is is_refused
