"""The protocol as a model, searched by SPIN; and what the real code does, replayed against it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.protocol import session
from kernelbridge.protocol.session import SendLane, Session
from kernelbridge.relay import server
from tests.made_clock import made_clock
from tests.model import spin, traces
from tests.model.spin import Verifier

# 3 messages, 2 cuts, and each of these; and less of that with all of it at once. More takes longer than a test should.
LIVES = ("-DTAKES=0",)
OWNERS = ("-DKILLS=0", "-DBYES=0")
BOTH = ("-DCUTS=1", "-DMESSAGES=2")
REQUESTS = ("-DREQUESTS=2", "-DMESSAGES=1", "-DCUTS=1")
# The least states that a search must have seen; else the model has lost something.
HOLDS = {LIVES: 800_000, OWNERS: 1_000_000, BOTH: 400_000, REQUESTS: 300_000}
# Each breaks one rule; what is found wrong then. The first two are faults that the real code had.
BROKEN = {
    "NO_MEMORY_OF_STREAMS": (("-DMESSAGES=1", *OWNERS), "nobody waits for ever"),
    "BAD_GOODBYE_FORGETS_ALL": (LIVES, "no loss"),
    "NO_REWIND": (LIVES, "no hole"),
    "NO_KEEPING": (LIVES, "no loss"),
    "NO_HAND_OVER": (LIVES, "no loss"),
    "NO_FORGETTING": (LIVES, "none twice"),
    "NO_ACK_AGAIN": (("-DMESSAGES=1", *LIVES), "nobody waits for ever"),
    "BAD_HAND_OVER_WITHOUT_KEPT": (LIVES, "nobody waits for ever"),
    "BAD_HAND_OVER_OF_PIECES": (LIVES, "whole messages"),
    "BAD_SILENCE_FORGETS": (LIVES, "no loss"),
    "BAD_SLOW_HANDS": (LIVES, "no loss"),
    "BAD_TWO_OWNERS": (OWNERS, "nobody loses it unasked"),
}
SEEDS = range(1, 25)
STEPS = 250
# What only some runs come to: a relay refuses (held, taken), somebody leaves (having handed on all, or not).
RARE = {("GREET", 1), ("GREET", 2), ("BYE", 0), ("BYE", 1), ("KILL", None), ("CUT", None), ("RELAY_HEARS_BYE", None)}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("defines", HOLDS)
def test_nothing_is_lost_nor_comes_twice_nor_waits_for_ever(defines: tuple[str, ...], tmp_path: Path) -> None:
    found = Verifier(tmp_path, "protocol", *defines, large=True).search()
    assert not found.error, "\n".join(found.steps)
    assert found.states > HOLDS[defines]
    print(found)


@pytest.mark.parametrize("defines", [LIVES, OWNERS])
def test_whatever_has_happened_all_arrives_at_some_time(defines: tuple[str, ...], tmp_path: Path) -> None:
    found = Verifier(tmp_path, "protocol", "-DPROGRESS", "-DMESSAGES=1", "-DCUTS=1", *defines, fair=True).search()
    assert not found.error, "\n".join(found.steps)
    print(found)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_model_with_a_rule_broken_is_found_out(rule: str, tmp_path: Path) -> None:
    defines, wrong = BROKEN[rule]
    found = Verifier(tmp_path, "protocol", *defines, f"-D{rule}").search()
    assert wrong in found.error, "\n".join(found.steps)


# -- GPUs

BROKEN_LEASE = {
    "NO_LOCK": "each card has one kernel",
    "NO_QUEUE": "first come, first served",
    "NO_PASSING_OVER": "nobody waits for ever",
    "NO_END_WHEN_ALONE": "nobody waits for ever",
    "BAD_CREATED_HOLDS": "nobody waits for ever",
    "BAD_KEEPS_SOME": "nobody waits for ever",
}


def test_each_card_has_one_kernel_and_whoever_waits_gets_its_cards(tmp_path: Path) -> None:
    found = Verifier(tmp_path, "lease", "-DSLEEPS=2").search()
    assert not found.error, "\n".join(found.steps)
    assert found.states > 200_000
    found = Verifier(tmp_path, "lease", "-DPROGRESS", fair=True).search()
    assert not found.error, "\n".join(found.steps)


@pytest.mark.parametrize("rule", BROKEN_LEASE)
def test_a_model_of_leases_with_a_rule_broken_is_found_out(rule: str, tmp_path: Path) -> None:
    found = Verifier(tmp_path, "lease", f"-D{rule}").search()
    assert BROKEN_LEASE[rule] in found.error, "\n".join(found.steps)


# -- the real code


@pytest.fixture(scope="module")
def replays(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    return Verifier(tmp_path_factory.mktemp("replay"), "protocol", "-DREPLAY")


async def trace(folder: Path, seed: int) -> list[list[int]]:
    """What the real code does in one seeded run, which ends with all delivered."""
    with made_clock() as clock:
        async with traces.made_world(folder, clock, seed) as world:
            world.start(takes=False)
            for _ in range(STEPS):
                await world.step()
            await world.settle()
            return [list(event) for event in world.events]


def told(events: list[list[int]]) -> str:
    names = spin.event_names("protocol")
    return "\n".join(" ".join([names[kind], *map(str, numbers)]) for kind, *numbers in events)


def kinds(events: list[list[int]]) -> set[tuple[str, int | None]]:
    names = spin.event_names("protocol")
    found: set[tuple[str, int | None]] = set()
    for kind, _, second, _ in events:
        found |= {(names[kind], second), (names[kind], None)}
    return found


async def test_the_model_can_do_whatever_the_real_code_does(replays: Verifier, tmp_path: Path) -> None:
    missing = set(RARE)
    for seed in SEEDS:
        events = await trace(tmp_path, seed)
        done = replays.replay(events)
        assert done == len(events), f"seed {seed}: the model cannot do the last of\n{told(events[: done + 1])}"
        missing -= kinds(events)
    assert not missing


def _other_number(events: list[list[int]], at: int) -> None:
    events[at][2] += 1


def _twice(events: list[list[int]], at: int) -> None:
    events.insert(at, list(events[at]))


def _not_at_all(events: list[list[int]], at: int) -> None:
    del events[at]


@pytest.mark.parametrize("change", [_other_number, _twice, _not_at_all])
@pytest.mark.parametrize("name", ["CLIENT_TAKES", "RELAY_SENDS", "RELAY_HEARS_ACK", "GREET", "HAND_ON"])
async def test_a_trace_that_was_changed_is_refused(
    replays: Verifier, tmp_path: Path, name: str, change: Callable[[list[list[int]], int], None]
) -> None:
    events = await trace(tmp_path, 1)
    at = [at for at, event in enumerate(events) if event[0] == traces.EVENTS[name]][-2]
    change(events, at)
    assert replays.replay(events) < len(events)


def _rewinds_nothing(lane: SendLane, number: int) -> None:
    lane.sent_bytes = 0


def _hands_over_without_what_is_kept(lane: SendLane) -> None:
    lane.forget_kept()
    _hand_over(lane)


def _forgets_at_once(stream: Session, now: float) -> None:
    stream.forget_kept()


_hand_over = SendLane.hand_over
# Rules of the real code that are broken one by one, as in the model.
DRIFTS: dict[str, tuple[Any, str, Any]] = {
    "rewinds nothing": (SendLane, "rewind", _rewinds_nothing),
    "hands over without what is kept": (SendLane, "hand_over", _hands_over_without_what_is_kept),
    "forgets at once": (Session, "alive", _forgets_at_once),
    "keeps for another time": (session, "REPLAY_SECONDS", 0.5),
    "lets in who comes back": (server, "FORMER_STREAMS", 0),
    "does not ask for what is lacking": (SendLane, "acknowledge", lambda lane, number, now: (0, None)),
}


@pytest.mark.parametrize("drift", DRIFTS)
async def test_code_that_drifts_from_the_model_is_found_out(
    replays: Verifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drift: str
) -> None:
    monkeypatch.setattr(*DRIFTS[drift])
    for seed in SEEDS:
        events = await trace(tmp_path, seed)
        if replays.replay(events) < len(events):
            return
    raise AssertionError("the model can do all that this code did")
