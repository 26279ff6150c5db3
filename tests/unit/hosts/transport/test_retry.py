"""hosts/transport/retry.py: which errors are worth another try, and how long after."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from kernelbridge import errors
from kernelbridge.errors import LinkLost, StartTimeout
from kernelbridge.hosts.transport import retry
from kernelbridge.hosts.transport.retry import deadline, is_transient
from tests.made_clock import MadeClock, StillClock

TRANSIENT = {
    errors.HostRefused(host="lab", address="lab:22"): True,
    errors.HostUnreachable(host="lab", address="lab:22", reason="no route"): True,
    errors.HostNameUnknown(host="lab", address="lab"): True,
    errors.LinkLost(host="lab"): True,
    errors.EngineDown(host="lab", socket="/s"): True,
    errors.LoginRefused(host="lab", user="ada"): False,
    errors.HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:x"): False,
    errors.SshConfigInvalid(host="lab", reason="x"): False,
    errors.ForwardingForbidden(host="lab"): False,
    errors.EngineDenied(host="lab", user="ada", socket="/s"): False,
    ValueError("x"): False,
}


@pytest.mark.parametrize(("exc", "expected"), TRANSIENT.items(), ids=lambda value: type(value).__name__)
def test_only_what_time_may_mend_is_tried_again(exc: Exception, expected: bool) -> None:
    assert is_transient(exc) is expected


def test_delays_stay_below_two_seconds_at_first_and_below_ten_later() -> None:
    clock = StillClock()
    delays = retry.delays(clock=clock, random=lambda: 1.0)
    first = list(itertools.islice(delays, 8))
    assert first == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]
    clock.now += 300
    assert list(itertools.islice(delays, 4)) == [4.0, 8.0, 10.0, 10.0]


def test_delays_are_short_again_while_a_request_waits() -> None:
    clock, waiting = StillClock(), False
    delays = retry.delays(clock=clock, random=lambda: 1.0, is_waited_for=lambda: waiting)
    next(delays)
    clock.now += 301
    list(itertools.islice(delays, 10))
    assert next(delays) == 10.0
    waiting = True
    assert next(delays) == 2.0


def test_delays_of_two_processes_differ_and_keep_the_cap() -> None:
    one = list(itertools.islice(retry.delays(clock=StillClock(), random=random.Random(1).random), 50))
    other = list(itertools.islice(retry.delays(clock=StillClock(), random=random.Random(2).random), 50))
    assert one != other
    assert all(0.1 <= delay <= 2.0 for delay in one + other)


@pytest.mark.parametrize(
    ("wall", "monotonic", "expected"),
    [
        (1.0, 1.0, False),
        (3600.0, 1.0, True),
        (5.9, 1.0, False),
        (6.1, 1.0, True),
        (-3600.0, 1.0, False),
        (40, 40, True),
    ],
)
def test_a_sleep_is_told_by_the_clocks_drifting_apart(wall: float, monotonic: float, expected: bool) -> None:
    assert retry.is_resume(wall_seconds=wall, monotonic_seconds=monotonic) is expected


async def test_a_step_that_takes_too_long_says_what_was_waited_for_where_and_how_long(clock: MadeClock) -> None:
    began = clock.now
    with pytest.raises(StartTimeout) as caught:
        async with deadline(30, "lab", "the engine's answer"):
            await asyncio.sleep(1000)
    assert clock.now - began == pytest.approx(30)
    for words in ("lab", "the engine's answer", "30"):
        assert words in str(caught.value)
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_a_step_in_time_is_let_be_and_so_is_its_own_failure(clock: MadeClock) -> None:
    async with deadline(30, "lab", "it"):
        await asyncio.sleep(29)
    with pytest.raises(LinkLost):
        async with deadline(30, "lab", "it"):
            raise LinkLost(host="lab")
    await asyncio.sleep(100)
