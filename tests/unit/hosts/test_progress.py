"""How far a piece of work is: the speed by a clock that is given, the line for cells and for narrow terminals."""

from __future__ import annotations

import pytest

from kernelbridge.hosts import progress
from kernelbridge.hosts.progress import Meter, Rate, Unit, WorkProgress

PULL = WorkProgress(what="pulling torch:2", done=1.72e9, total=4e9, per_second=31e6)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (WorkProgress(what="pulling torch:2"), "pulling torch:2"),
        (PULL, "pulling torch:2: 43 %, 1.72 of 4.00 GB, 31 MB/s, about 1 min left"),
        (
            WorkProgress(what="pulling a", done=1e9, total=2e9, grows=True, per_second=2e6),
            "pulling a: 1.00 of at least 2.00 GB, 2.0 MB/s",
        ),
        (WorkProgress(what="sending", done=5e6, per_second=1e3), "sending: 5.0 MB, 1.0 kB/s"),
        # Nothing comes any more.
        (WorkProgress(what="copying", done=1e6, total=3e6, per_second=0.0), "copying: 33 %, 1.0 of 3.0 MB, 0 B/s"),
        (
            WorkProgress(what="building the image", done=3, total=9, unit=Unit.STEPS, detail="RUN pip"),
            "building the image: step 3 of 9, RUN pip",
        ),
        (WorkProgress(what="waiting, place 2", place=2, waited_seconds=59), "waiting, place 2"),
        (
            WorkProgress(what="waiting, place 2", place=2, waited_seconds=200, most_wait_seconds=1800),
            "waiting, place 2, waited 3 min of at most 30 min",
        ),
        # Not 100 % as long as a byte is missing.
        (WorkProgress(what="a", done=999_999, total=1_000_000), "a: 99 %, 1.0 of 1.0 MB"),
    ],
)
def test_it_is_one_line_of_what_is_known(made: WorkProgress, line: str) -> None:
    assert str(made) == line


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (80, "pulling torch:2: 43 %, 1.72 of 4.00 GB, 31 MB/s, about 1 min left"),
        (50, "pulling torch:2: 43 %, 1.72 of 4.00 GB, 31 MB/s"),
        (39, "pulling torch:2: 43 %, 1.72 of 4.00 GB"),
        (30, "pulling torch:2: 43 %"),
        (20, "43 % pulling torch:2"),
        (12, "43 % pullin…"),
        (1, "…"),
        (0, ""),
    ],
)
def test_a_narrow_line_keeps_the_percentage(columns: int, line: str) -> None:
    assert PULL.fitted(columns) == line


def test_what_is_not_ours_is_shown_and_not_logged() -> None:
    made = WorkProgress(what="building the image", detail="RUN echo sesame")
    assert "sesame" in str(made)
    assert made.logged == "building the image"


def test_programs_get_what_is_known_and_nothing_else() -> None:
    assert WorkProgress(what="pulling a").to_json() == {"what": "pulling a"}
    assert PULL.to_json() == {
        "what": "pulling torch:2",
        "done": 1.72e9,
        "total": 4e9,
        "unit": "bytes",
        "percent": 43,
        "per_second": 31e6,
        "seconds_left": 73.5,
    }
    growing = WorkProgress(what="a", done=1, total=2, grows=True).to_json()
    assert "total" not in growing
    assert "percent" not in growing


def test_the_speed_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    for second in range(11):
        rate.note(float(second), 10.0 * second)
    assert rate.per_second(10.0) == pytest.approx(10)
    for second in range(11, 17):
        rate.note(float(second), 100.0 + 50.0 * (second - 10))
    assert rate.per_second(16.0) == pytest.approx(50)


def test_a_speed_is_told_only_once_there_is_something_to_take_it_from() -> None:
    rate = Rate()
    assert rate.per_second(5.0) is None
    rate.note(0.0, 0)
    rate.note(0.5, 1e6)
    assert rate.per_second(0.5) is None
    assert rate.per_second(1.0) == pytest.approx(1e6)


def test_a_speed_falls_to_nothing_where_nothing_comes() -> None:
    rate = Rate()
    rate.note(0.0, 0)
    rate.note(1.0, 100)
    assert rate.per_second(2.0) == pytest.approx(50)
    assert rate.per_second(60.0) == 0


def test_what_begins_again_has_no_speed_below_nothing() -> None:
    rate = Rate()
    rate.note(0.0, 0)
    rate.note(2.0, 100)
    rate.note(3.0, 10)
    assert rate.per_second(3.0) is None
    rate.note(5.0, 20)
    assert rate.per_second(5.0) == pytest.approx(5)


def test_a_speed_needs_no_more_memory_the_longer_it_takes() -> None:
    rate = Rate()
    for step in range(100_000):
        rate.note(step / 1000, step)
    assert rate.per_second(100.0) == pytest.approx(1000, rel=0.05)
    assert len(rate._seen) < 60


def test_a_meter_counts_by_its_clock() -> None:
    clock = Clock()
    meter = Meter("copying", 100e6, clock=clock)
    clock.now += 2
    assert str(meter.at(20e6)) == "copying: 20 %, 20.0 of 100.0 MB, 10 MB/s, about 8 s left"
    clock.now += 60
    assert str(meter.progress) == "copying: 20 %, 20.0 of 100.0 MB, 0 B/s"


def test_another_piece_of_work_has_a_speed_of_its_own() -> None:
    clock = Clock()
    meter = Meter("pulling", 100, clock=clock)
    clock.now += 2
    meter.at(100)
    assert meter.at(10, what="unpacking").per_second is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (3.2, "4 s"), (42, "40 s"), (58, "1 min"), (150, "2 min"), (3600, "1 h"), (5000, "1 h 23 min")],
)
def test_a_time_is_as_exact_as_it_is_near(seconds: float, text: str) -> None:
    assert progress.duration_text(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999.7, "1.0 kB"), (31e6, "31 MB"), (4.2e9, "4.2 GB")])
def test_a_size_has_two_or_three_digits(size: float, text: str) -> None:
    assert progress.size_text(size) == text
