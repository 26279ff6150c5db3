"""The pure parts of tests/soak: its counting would tell, its schedule is a seed's, its bounds are bounds.

The soak itself, in its short form: tests/real/test_soak.py.
"""

from __future__ import annotations

from itertools import islice

import pytest

from tests.soak.figures import BOUNDS, Sample, Watch, slope
from tests.soak.schedule import KINDS, made
from tests.soak.starts import StartsOutcome
from tests.soak.tally import Tally, cell, counted
from tests.soak.turns import Hold, doubles

LINE, REPLY, IDLE, END = "line", "reply", "idle", "end"


def tally(*steps: tuple[float, str, int], wanted: int = 3) -> Tally:
    """A cell of three lines; each step is when it came, what it is, and the line's number."""
    one = Tally(request="r", number=7, wanted=wanted, began_at=0.0)
    for at, what, number in steps:
        match what:
            case "line":
                one.take(at, "stream", {"name": "stdout", "text": f"L{number:05d}\n"})
            case "reply":
                one.take(at, "execute_reply", {"status": "ok"})
            case "idle":
                one.take(at, "status", {"execution_state": "idle"})
            case "end":
                one.handed_over(at + 1, "killed", at)
    return one


WHOLE = ((1.0, LINE, 0), (2.0, LINE, 1), (3.0, LINE, 2), (3.1, REPLY, 0), (3.2, IDLE, 0))
# What came, and what is wrong with it.
CASES: dict[str, tuple[tuple[tuple[float, str, int], ...], str]] = {
    "all is there": (WHOLE, ""),
    "a line is lost": ((WHOLE[0], *WHOLE[2:]), "lost: lines 1 of 3"),
    "a line is twice": ((WHOLE[0], *WHOLE), "twice: lines 0"),
    "a line is late": ((WHOLE[1], WHOLE[0], *WHOLE[2:]), "order: "),
    "no reply": (WHOLE[:3] + WHOLE[4:], "lost: the reply"),
    "no idle": (WHOLE[:4], "lost: the idle"),
    "two replies": ((*WHOLE, (4.0, REPLY, 0)), "twice: 2 replies"),
    "two idles": ((*WHOLE, (4.0, IDLE, 0)), "twice: 2 times idle"),
    "again after a kill": ((*WHOLE[:2], (2.1, END, 0), (4.0, LINE, 1), *WHOLE[2:]), ""),
    "too old after a kill": (
        (*WHOLE[:2], (6.0, LINE, 2), (6.1, END, 0), *((7.0, LINE, n) for n in (1, 2)), (7.1, REPLY, 0), (7.2, IDLE, 0)),
        "twice: shown up to 4.0 s",
    ),
    "a hole after a kill": ((WHOLE[0], (1.1, END, 0), *WHOLE[2:]), "lost: lines 1 of 3"),
    "twice after a kill": (
        (*WHOLE[:2], (2.1, END, 0), (4.0, LINE, 1), (4.1, LINE, 1), *WHOLE[2:]),
        "twice: lines 1",
    ),
    "the reply again after a kill": ((*WHOLE, (3.3, END, 0), (4.0, REPLY, 0)), ""),
    "the reply a third time": ((*WHOLE, (3.3, END, 0), (4.0, REPLY, 0), (4.1, REPLY, 0)), "twice: 3 replies"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tally_tells_what_is_wrong(name: str) -> None:
    steps, wrong = CASES[name]
    flaws = tally(*steps).flaws()
    assert [flaw.startswith(f"cell 7: {wrong}") for flaw in flaws] == ([True] if wrong else [])


def test_what_is_no_line_is_strange_and_the_bridges_own_words_are_not() -> None:
    one = tally(*WHOLE)
    one.take(4.0, "stream", {"name": "stderr", "text": "Docker-GPU (remote) on lab: waiting (3 s)"})
    assert one.flaws() == []
    one.take(4.0, "stream", {"name": "stdout", "text": "Traceback\n"})
    assert one.flaws() == ["cell 7: strange: ['Traceback']"]


def test_what_came_again_is_counted_by_what_had_happened() -> None:
    steps, _ = CASES["again after a kill"]
    assert counted([tally(*steps), tally(*WHOLE)]) == {
        "cells": 2,
        "lines": 6,
        "excused": 0,
        "came again after: killed": 1,
    }


def test_a_numbered_cell_runs_prints_its_lines_and_writes_down_that_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for number in (4, 5):
        exec(cell(number, 2, every_seconds=0.0), namespace)
    assert namespace["ran"] == [4, 5]
    one = Tally(request="r", number=4, wanted=2, began_at=0.0)
    one.take(1.0, "stream", {"name": "stdout", "text": capsys.readouterr().out[:14]})
    assert one.numbers == [0, 1]


def test_a_seed_tells_what_happens_and_each_kind_comes_before_one_comes_again() -> None:
    first, second = (list(islice(made(5), 3 * len(KINDS))) for _ in range(2))
    assert first == second
    assert first != list(islice(made(6), 3 * len(KINDS)))
    assert {one.kind for one in first[: len(KINDS)]} == set(KINDS)
    assert all(KINDS[one.kind][1] <= one.seconds <= KINDS[one.kind][2] for one in first)
    assert [one.kind for one in islice(made(5, scale=0.1), 30)] == [one.kind for one in first[:30]]


def test_a_card_that_two_have_at_one_time_is_told() -> None:
    held = [Hold(card="a", user=f"user {n}", began_at=n, ended_at=n + 0.9) for n in range(3)]
    assert doubles([*held, Hold(card="b", user="another", began_at=0.5, ended_at=2.5)]) == []
    (told,) = doubles([*held, Hold(card="a", user="another", began_at=2.5, ended_at=2.8)])
    assert told == "a: user 2 until 2.9, another from 2.5"


def watched(per_minute: float, minutes: int = 30) -> Watch:
    watch = Watch()
    for at in range(0, 60 * minutes + 1, 10):
        grown = per_minute * at / 60
        sample = Sample(at=float(at), memory_mb=50 + grown, threads=5, descriptors=20)
        watch.seen["relay", 1].append(sample)
        if at > 60 * (minutes - 2):
            watch.seen["attach", 2].append(sample)
    return watch


@pytest.mark.parametrize(("per_minute", "is_flat"), [(0.0, True), (0.3, True), (0.6, False)])
def test_what_grows_by_more_than_its_bound_is_not_flat(per_minute: float, is_flat: bool) -> None:
    growths = watched(per_minute).growths(0.0, 1800.0)
    judged = {one.figure: one for one in growths if one.role == "relay"}
    assert judged["memory (MB)"].is_flat is is_flat
    assert judged["memory (MB)"].per_minute == pytest.approx(per_minute)
    assert judged["threads"].is_flat and judged["descriptors"].is_flat
    # One that was there for two minutes tells nothing.
    assert {one.is_judged for one in growths if one.role == "attach"} == {False}
    assert set(judged) == set(BOUNDS)


def test_a_line_of_one_point_has_no_slope() -> None:
    assert slope([(1.0, 2.0)]) == 0.0


@pytest.mark.parametrize(("each_mb", "told"), [(0.02, False), (0.2, True)])
def test_what_grows_with_each_start_is_told(each_mb: float, told: bool) -> None:
    grown = {("server", "memory (MB)"): (80.0, 80.0 + 300 * each_mb, each_mb)}
    outcome = StartsOutcome(starts=300, grown=grown)
    assert (bool(outcome.not_flat), outcome.holds) == (told, not told)
