"""channels/handout.py, hold.py, absent.py: what waits, why, how long, and in which order it goes.

How fast it goes under jupyter_server: test_pacing.py. With real sockets: test_channel_reattach.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from kernelbridge.channels.absent import KEPT_SECONDS, RETRY_SECONDS, Absent, Whither
from kernelbridge.channels.handout import BACKLOG_BYTES, BACKLOG_SECONDS, STILL_STUCK_SECONDS, STUCK_SECONDS, Handout
from kernelbridge.channels.hold import SETTLE_SECONDS, Hold
from kernelbridge.relay.wire import CONTROL, IOPUB, SHELL, Buffer
from tests.made_clients import MadeClients, put, reply, status, stream


@pytest.fixture
def clients() -> MadeClients:
    return MadeClients()


@pytest.fixture
def handout(clients: MadeClients) -> Handout:
    return Handout(clients, clock=clients.clock)


# -- order


def test_with_nothing_in_the_way_all_goes_at_once_and_nothing_wakes_the_thread(
    clients: MadeClients, handout: Handout
) -> None:
    put(handout, status("busy"), stream("out"), reply(), status("idle"))
    assert clients.heard == ["busy", "out", "execute_reply", "idle"]
    assert (handout.due_at, handout.is_congested) == (None, False)
    assert repr(handout) == "<Handout 0 waiting, 0 bytes, <Hold off>>"


def test_a_reply_does_not_overtake_output_that_a_subscriber_has_no_room_for(
    clients: MadeClients, handout: Handout
) -> None:
    clients.is_full = True
    put(handout, stream("one"), stream("two"), reply(), status("idle"))
    clients.live(handout, 0.1)
    assert clients.heard == []
    clients.is_full = False
    clients.live(handout, 0.1)
    assert clients.heard == ["one", "two", "execute_reply", "idle"]
    assert (handout.bytes, handout.due_at) == (0, None)


def test_without_limits_nothing_is_merged(clients: MadeClients, handout: Handout) -> None:
    clients.is_full = True
    put(handout, *(stream(f"{number}") for number in range(100)))
    clients.is_full = False
    clients.live(handout, 0.1)
    assert clients.heard == [f"{number}" for number in range(100)]


def test_what_overtakes_goes_before_all_that_waits_and_waits_itself_only_for_room(
    clients: MadeClients, handout: Handout
) -> None:
    handout.hold.begin()
    put(handout, stream("held"))
    handout.overtake(SHELL, reply())
    handout.overtake(IOPUB, status("idle"))
    assert clients.heard == ["execute_reply", "idle"]
    clients.is_full = True
    handout.overtake(IOPUB, status("busy"))
    clients.is_full = False
    handout.hold.subscribed(clients.now)
    handout.hold.asked((b"page",), clients.now)
    clients.live(handout, 1)
    assert clients.heard[2:] == ["held", "busy"]


# -- congestion


def test_too_much_that_waits_is_congestion(clients: MadeClients, handout: Handout) -> None:
    clients.is_full = True
    put(handout, stream("x" * (BACKLOG_BYTES - 1000)))
    assert not handout.is_congested
    put(handout, stream("x" * 1000))
    assert handout.is_congested
    clients.is_full = False
    clients.live(handout, 0.1)
    assert not handout.is_congested


def test_waiting_for_too_long_is_congestion(clients: MadeClients, handout: Handout) -> None:
    clients.is_full = True
    put(handout, stream("old"))
    clients.live(handout, BACKLOG_SECONDS)
    assert not handout.is_congested
    clients.live(handout, 0.01)
    assert handout.is_congested
    clients.is_full = False
    clients.live(handout, 0.1)
    assert not handout.is_congested


# -- a subscriber that is stuck


def test_a_stuck_client_holds_up_the_others_for_a_minute_and_then_misses_output_until_the_queue_is_empty(
    clients: MadeClients, handout: Handout, caplog: pytest.LogCaptureFixture
) -> None:
    clients.is_full = True
    put(handout, *(stream(f"{number}") for number in range(250)))
    clients.live(handout, STUCK_SECONDS)
    assert (clients.taken, clients.may_lose) == ([], False)
    with caplog.at_level(logging.WARNING):
        clients.live(handout, 0.02)
    assert "a client has read nothing for 60 s" in caplog.text
    assert 0 < len(clients.taken) < 250  # In turns: the others may need a moment.
    assert clients.may_lose
    clients.live(handout, 0.1)
    assert (len(clients.taken), clients.may_lose) == (250, False)
    # Still stuck: the next ones wait a second only, until it was seen to read.
    put(handout, stream("next"))
    clients.live(handout, STILL_STUCK_SECONDS + 0.1)
    assert (clients.heard[250:], clients.may_lose) == (["next"], False)
    clients.is_full = False
    put(handout, stream("read"), stream("read"))
    clients.is_full = True
    put(handout, stream("full"), stream("again"))
    clients.is_full = False
    clients.live(handout, 0.1)
    clients.is_full = True
    put(handout, stream("slow"))
    clients.live(handout, STUCK_SECONDS - 1)
    assert clients.heard[-1] == "again"


def test_a_slow_client_is_not_stuck(clients: MadeClients, handout: Handout) -> None:
    clients.is_full = True
    put(handout, *(stream("x") for _ in range(3)))
    for _ in range(3):
        clients.live(handout, STUCK_SECONDS - 1)
        clients.is_full = False
        # It takes one.
        room_for_one(clients, handout)
    assert not clients.may_lose


def room_for_one(clients: MadeClients, handout: Handout) -> None:
    before = len(clients.taken)
    send = clients.send

    def once(channel: int, parts: list[Buffer]) -> bool:
        clients.is_full = len(clients.taken) > before
        return send(channel, parts)

    clients.send = once  # type: ignore[method-assign]
    clients.live(handout, 0.1)
    clients.send = send  # type: ignore[method-assign]
    clients.is_full = True


def test_holding_for_hours_is_not_being_stuck(clients: MadeClients, handout: Handout) -> None:
    handout.hold.begin()
    put(handout, stream("one"))
    clients.live(handout, 10_000)
    assert (clients.taken, clients.wakes, handout.is_congested) == ([], 0, True)
    clients.is_full = True
    handout.hold.subscribed(clients.now)
    handout.hold.asked((b"page",), clients.now)
    clients.live(handout, STUCK_SECONDS - 1)
    assert not clients.may_lose


# -- hold.py


@pytest.mark.parametrize(
    ("acts", "ends_at"),
    [
        (["asked page 1"], None),
        (["subscribed 1"], None),
        (["subscribed 1", "asked page 2"], 2),
        (["asked page 2", "subscribed 3"], 3),
        (["subscribed 1", "asked page 2", "asked page 5"], 2),
        (["subscribed 1", "asked anonymous 2"], None),
        (["subscribed 1", "asked nobody 2"], None),
        (["asked page 1", "subscribed 1", "begin", "subscribed 4"], None),
        (["subscribed 1", "begin", "asked page 2"], 2),
        (["subscribed 1", "asked page 2", "end"], None),
    ],
)
def test_a_hold_ends_a_moment_after_a_client_of_its_own_name_has_asked_and_somebody_has_subscribed(
    acts: list[str], ends_at: float | None
) -> None:
    hold = Hold()
    hold.begin()
    who = {"page": (b"page",), "anonymous": (b"\0\1\2\3\4",), "nobody": ()}
    for act in acts:
        match act.split():
            case ["subscribed", at]:
                hold.subscribed(float(at))
            case ["asked", name, at]:
                hold.asked(who[name], float(at))
            case [other]:
                getattr(hold, other)()
    assert hold.ends_at == (None if ends_at is None else ends_at + SETTLE_SECONDS)


def test_what_was_held_goes_in_order_when_the_hold_ends(clients: MadeClients, handout: Handout) -> None:
    handout.hold.begin()
    put(handout, stream("one"), reply(), stream("two"))
    handout.hold.subscribed(clients.now)
    handout.hold.asked((b"\0anonymous",), clients.now)
    clients.live(handout, 1)
    handout.hold.asked((b"page",), clients.now)
    assert repr(handout.hold) == "<Hold on, asked>"
    clients.live(handout, SETTLE_SECONDS - 0.01)
    assert (clients.taken, handout.is_congested) == ([], True)
    clients.live(handout, 0.02)
    assert clients.heard == ["one", "execute_reply", "two"]
    assert (handout.is_congested, handout.due_at) == (False, None)


def test_a_hold_with_nothing_held_ends_too(clients: MadeClients, handout: Handout) -> None:
    handout.hold.begin()
    handout.hold.subscribed(clients.now)
    handout.hold.asked((b"page",), clients.now)
    clients.live(handout, 1)
    assert (handout.is_congested, handout.due_at) == (False, None)
    put(handout, stream("now"))
    assert clients.heard == ["now"]


# -- absent.py


PAGE, OTHER = (SHELL, b"page"), (CONTROL, b"other")


class Present:
    """Who is there."""

    def __init__(self, *present: Whither) -> None:
        self.present = present
        self.got: list[tuple[Whither, bytes]] = []

    def send(self, whither: Whither, parts: Sequence[Buffer]) -> bool:
        if whither in self.present:
            self.got.append((whither, bytes(parts[-1])))
        return whither in self.present


def test_replies_wait_for_their_client_in_order_and_do_not_hinder_others() -> None:
    absent = Absent()
    for number, whither in enumerate([PAGE, OTHER, PAGE]):
        assert absent.keep(whither, [whither[1], memoryview(b"%d" % number)], 100.0) == 0
    assert repr(absent) == "<Absent 2 clients, 16 bytes>"
    there = Present(OTHER)
    assert absent.retry(100.0 + RETRY_SECONDS - 0.1, there.send) == 0
    assert there.got == []
    assert absent.retry(100.0 + RETRY_SECONDS, there.send) == 0
    assert there.got == [(OTHER, b"1")]
    assert (PAGE in absent, OTHER in absent) == (True, False)
    there.present = (PAGE,)
    absent.offer(PAGE, lambda parts: there.send(PAGE, parts))
    assert there.got[1:] == [(PAGE, b"0"), (PAGE, b"2")]
    assert (bool(absent), absent.bytes) == (False, 0)


def test_replies_to_who_does_not_come_back_are_forgotten_after_a_while() -> None:
    absent = Absent()
    absent.keep(PAGE, [b"old"], 0.0)
    absent.keep(PAGE, [b"new"], 5.0)
    assert absent.retry(KEPT_SECONDS + 1, Present().send) == 1
    assert absent.bytes == 3
    assert absent.retry(KEPT_SECONDS + 10, Present().send) == 1
    assert not absent


def test_over_the_bound_the_oldest_replies_go_whoever_they_are_for() -> None:
    absent = Absent(limit_bytes=10)
    for at, whither in enumerate([PAGE, OTHER, PAGE]):
        assert absent.keep(whither, [b"four"], float(at)) == (1 if at == 2 else 0)
    there = Present(PAGE, OTHER)
    absent.retry(100.0, there.send)
    assert sorted(whither for whither, _ in there.got) == [PAGE, OTHER]
