"""relay/lifetime.py: which moment ends a kernel that is left alone, and that none does while anything would be lost."""

from __future__ import annotations

import pytest

from kernelbridge.protocol.exit_codes import (
    CLAIM_SECONDS,
    UNJOINED_SECONDS,
    UNUSED_SECONDS,
    Terms,
)
from kernelbridge.relay.lifetime import LINGER_SECONDS, Deadline, Lifetime

GRACE = 1000.0


def lived(terms: Terms | None = None) -> Lifetime:
    """Started at 0, joined and used since then; a cell was run in it."""
    life = Lifetime(terms or Terms(lost_grace=GRACE), 0.0)
    life.joined()
    life.used()
    life.has_run_cell = True
    life.launched(0.0)
    return life


def looked(life: Lifetime, now: float, *, busy: bool = False, delivered: bool = True) -> Deadline | None:
    return life.look(now, is_busy=busy, is_delivered=delivered)


def test_nothing_ends_a_kernel_that_somebody_holds() -> None:
    life = lived()
    assert looked(life, 1e9) is None
    assert looked(life, 1e9, busy=True, delivered=False) is None


def test_a_kernel_that_is_alone_and_idle_ends_after_the_grace() -> None:
    life = lived()
    looked(life, 10.0)
    life.left(50.0)
    assert looked(life, 60.0) == Deadline(50.0 + GRACE, "lost_grace")
    life.left(70.0)  # A second end of the line is no news.
    assert looked(life, 80.0) == Deadline(50.0 + GRACE, "lost_grace")
    life.joined()
    assert looked(life, 90.0) is None


@pytest.mark.parametrize("still", [{"busy": True}, {"delivered": False}])
def test_no_grace_runs_while_a_cell_runs_or_output_waits_and_then_it_runs_anew(still: dict[str, bool]) -> None:
    life = lived()
    life.left(0.0)
    assert looked(life, 10 * GRACE, **still) is None
    # Counted from the last moment that was not both.
    assert looked(life, 10 * GRACE + 1) == Deadline(11 * GRACE + 1, "lost_grace")
    assert looked(life, 10 * GRACE + 5) == Deadline(11 * GRACE + 1, "lost_grace")


def test_a_kernel_that_is_to_persist_waits_for_ever_for_its_owner() -> None:
    life = lived(Terms(persist=True, lost_grace=GRACE))
    life.left(0.0)
    assert looked(life, 1e9) is None
    life.goodbye(1e9, ends=True)
    assert looked(life, 1e9 + 1) is None


def test_after_a_goodbye_there_is_a_moment_to_come_back() -> None:
    life = lived()
    life.goodbye(100.0, ends=True)
    assert looked(life, 100.0, busy=True, delivered=False) == Deadline(100.0 + CLAIM_SECONDS, "goodbye")
    life.joined()
    assert looked(life, 100.0) is None


def test_a_kernel_that_its_owner_ended_goes_by_the_goodbye_even_if_it_ended_a_moment_before() -> None:
    life = lived()
    life.ended(99.9)
    life.goodbye(100.0, ends=True)
    for delivered in (True, False):
        assert looked(life, 100.1, delivered=delivered) == Deadline(100.0 + CLAIM_SECONDS, "goodbye")


def test_who_leaves_and_wants_it_to_run_on_leaves_it_to_the_grace() -> None:
    life = lived()
    life.goodbye(100.0, ends=False)
    assert looked(life, 100.0) == Deadline(100.0 + GRACE, "lost_grace")


def test_idleness_is_counted_whether_somebody_holds_it_or_not() -> None:
    life = lived(Terms(idle_timeout=60.0, lost_grace=GRACE))
    assert looked(life, 5.0, busy=True) is None
    assert looked(life, 6.0) == Deadline(66.0, "idle_timeout")
    life.left(7.0)
    assert looked(life, 8.0) == Deadline(66.0, "idle_timeout")
    # The sooner one counts.
    assert looked(lived(Terms(idle_timeout=60.0, max_lifetime=30.0)), 1.0) == Deadline(30.0, "max_lifetime")


def test_the_longest_life_ends_a_busy_kernel_too() -> None:
    life = lived(Terms(max_lifetime=3600.0))
    assert looked(life, 10.0, busy=True, delivered=False) == Deadline(3600.0, "max_lifetime")


def test_a_relay_without_a_kernel_stays_for_what_it_has_to_deliver() -> None:
    life = lived(Terms(keep_exited=500.0))
    life.ended(10.0)
    assert looked(life, 20.0, delivered=False) is None  # Held: a restart may come.
    life.left(30.0)
    assert looked(life, 40.0, delivered=False) == Deadline(530.0, "keep_exited")
    assert looked(life, 50.0) == Deadline(50.0 + CLAIM_SECONDS, "delivered")


def test_a_kernel_ended_by_a_deadline_goes_as_soon_as_all_is_delivered_even_if_held() -> None:
    life = lived(Terms(max_lifetime=5.0))
    life.is_over = True
    life.ended(10.0)
    assert looked(life, 12.0, delivered=False) == Deadline(10.0 + life.terms.keep_exited, "keep_exited")
    assert looked(life, 15.0) == Deadline(15.0 + LINGER_SECONDS, "delivered")


def test_a_new_launch_starts_the_count_of_idleness_anew() -> None:
    life = lived(Terms(idle_timeout=60.0))
    looked(life, 50.0)
    life.ended(55.0)
    life.launched(58.0)
    assert looked(life, 59.0) == Deadline(118.0, "idle_timeout")


@pytest.mark.parametrize(
    ("terms", "still"),
    [
        (Terms(), {}),
        (Terms(persist=True), {}),
        (Terms(), {"busy": True, "delivered": False}),
        (Terms(idle_timeout=UNJOINED_SECONDS + 60, max_lifetime=UNJOINED_SECONDS + 50), {}),
    ],
)
def test_a_kernel_that_nobody_joins_ends_soon_whatever_its_terms_and_whatever_it_does(
    terms: Terms, still: dict[str, bool]
) -> None:
    life = Lifetime(terms, 100.0)
    assert looked(life, 101.0, **still) == Deadline(100.0 + UNJOINED_SECONDS, "unjoined")  # Before any launch, too.
    life.launched(130.0)
    life.left(140.0)  # Nobody was there to leave.
    assert looked(life, 150.0, **still) == Deadline(100.0 + UNJOINED_SECONDS, "unjoined")


def test_what_ends_it_sooner_still_does() -> None:
    life = Lifetime(Terms(max_lifetime=50.0), 0.0)
    life.launched(0.0)
    assert looked(life, 1.0) == Deadline(50.0, "max_lifetime")
    life.ended(2.0)
    assert looked(life, 3.0) == Deadline(2.0 + CLAIM_SECONDS, "delivered")


def test_once_it_was_asked_something_it_is_never_unjoined_again() -> None:
    life = Lifetime(Terms(persist=True), 0.0)
    life.launched(0.0)
    life.joined()
    assert looked(life, 2 * UNJOINED_SECONDS) is None
    life.left(200.0)  # Its owner died before it asked anything.
    assert looked(life, 201.0) == Deadline(200.0 + UNJOINED_SECONDS, "unjoined")
    life.joined()
    life.used()
    life.has_run_cell = True
    life.left(202.0)
    assert looked(life, 202.0 + 2 * UNJOINED_SECONDS) is None


def unused(terms: Terms) -> Lifetime:
    """One in which front-ends ran their own code, and nobody a cell."""
    life = Lifetime(terms, 0.0)
    life.launched(0.0)
    life.joined()
    life.used()
    return life


@pytest.mark.parametrize("terms", [Terms(persist=True), Terms(lost_grace=2 * UNUSED_SECONDS)])
def test_a_kernel_in_which_nobody_ran_a_cell_is_not_kept(terms: Terms) -> None:
    life = unused(terms)
    assert looked(life, 1e6) is None  # Somebody has it open.
    life.left(1e6)
    # Whatever it has printed is no work of anybody's.
    assert looked(life, 1e6 + 1, delivered=False) == Deadline(1e6 + UNUSED_SECONDS, "unused")
    assert looked(life, 1e6 + 2, busy=True) is None
    life = unused(terms)
    life.goodbye(5.0, ends=False)
    assert looked(life, 6.0) == Deadline(5.0 + UNUSED_SECONDS, "unused")


def test_its_goodbye_ends_a_kernel_that_persists_only_if_nobody_ran_a_cell() -> None:
    life = unused(Terms(persist=True))
    life.goodbye(5.0, ends=True)
    assert looked(life, 6.0) == Deadline(5.0 + CLAIM_SECONDS, "goodbye")
    life = lived(Terms(persist=True))
    life.goodbye(5.0, ends=True)
    assert looked(life, 6.0) is None


def test_one_that_was_left_in_good_order_is_not_unjoined() -> None:
    life = Lifetime(Terms(persist=True), 0.0)
    life.launched(0.0)
    life.joined()
    life.has_run_cell = True
    life.goodbye(5.0, ends=False)
    assert looked(life, 2 * UNJOINED_SECONDS) is None


def test_its_state_can_be_read() -> None:
    life = lived()
    assert repr(life) == "<Lifetime joined>"
    life.left(1.0)
    life.is_over = True
    assert repr(life) == "<Lifetime alone, over>"


def test_a_relay_has_its_limits_before_there_is_a_kernel_and_its_idleness_counts_from_the_start() -> None:
    life = Lifetime(Terms(max_lifetime=GRACE, idle_timeout=50.0), 0.0)
    life.joined()
    life.used()
    assert looked(life, 10.0) == Deadline(50.0, "idle_timeout")
    assert looked(life, 10.0, busy=True) == Deadline(GRACE, "max_lifetime")
