"""channels/output_queue.py: what waits, why, how long, and in which order it goes.

How fast it goes under jupyter_server: test_rate_limit.py. With real sockets: test_proxy_reattach.py.
"""

from __future__ import annotations

import logging

import pytest

from kernelbridge.channels.output_queue import (
    BACKLOG_BYTES,
    BACKLOG_SECONDS,
    SETTLE_SECONDS,
    STILL_STUCK_SECONDS,
    STUCK_SECONDS,
    OutputQueue,
    SubscriberGate,
)
from kernelbridge.channels.poller import TURN_SECONDS
from kernelbridge.protocol.frames import IOPUB, SHELL, Buffer
from tests.made_clients import MadeClients, put, reply, status, stream


@pytest.fixture
def clients() -> MadeClients:
    return MadeClients()


@pytest.fixture
def queue(clients: MadeClients) -> OutputQueue:
    return clients.queue()


# -- order


def test_with_nothing_in_the_way_all_goes_at_once_and_nothing_wakes_the_thread(
    clients: MadeClients, queue: OutputQueue
) -> None:
    put(queue, status("busy"), stream("out"), reply(), status("idle"))
    assert clients.heard == ["busy", "out", "execute_reply", "idle"]
    assert (queue.due_at, queue.is_congested) == (None, False)
    assert repr(queue) == "<OutputQueue 0 waiting, 0 bytes, <SubscriberGate open>>"


def test_a_reply_does_not_overtake_output_that_a_subscriber_has_no_room_for(
    clients: MadeClients, queue: OutputQueue
) -> None:
    clients.is_full = True
    put(queue, stream("one"), stream("two"), reply(), status("idle"))
    clients.live(queue, 0.1)
    assert clients.heard == []
    clients.is_full = False
    clients.live(queue, 0.1)
    assert clients.heard == ["one", "two", "execute_reply", "idle"]
    assert (queue.bytes, queue.due_at) == (0, None)


def test_much_that_waits_is_sent_in_turns(clients: MadeClients, queue: OutputQueue) -> None:
    clients.is_full = True
    put(queue, *(stream(f"{number}") for number in range(100)))
    clients.is_full = False

    def send(channel: int, parts: list[Buffer]) -> bool:
        clients.now += TURN_SECONDS / 10
        clients.taken.append((clients.now, channel, parts))
        return True

    clients.send = send  # type: ignore[method-assign]
    clients.now += 1
    queue.offer()
    assert 10 <= len(clients.heard) <= 11
    assert queue.due_at is not None
    assert queue.due_at <= clients.now
    clients.live(queue, 1)
    assert clients.heard == [f"{number}" for number in range(100)]


def test_without_limits_nothing_is_merged(clients: MadeClients, queue: OutputQueue) -> None:
    clients.is_full = True
    put(queue, *(stream(f"{number}") for number in range(100)))
    clients.is_full = False
    clients.live(queue, 0.1)
    assert clients.heard == [f"{number}" for number in range(100)]


def test_what_overtakes_goes_before_all_that_waits_and_waits_itself_only_for_room(
    clients: MadeClients, queue: OutputQueue
) -> None:
    queue.gate.close()
    put(queue, stream("held"))
    queue.overtake(SHELL, reply())
    queue.overtake(IOPUB, status("idle"))
    assert clients.heard == ["execute_reply", "idle"]
    clients.is_full = True
    queue.overtake(IOPUB, status("busy"))
    clients.is_full = False
    queue.gate.subscribed(clients.now)
    queue.gate.asked((b"page",), clients.now)
    clients.live(queue, 1)
    assert clients.heard[2:] == ["held", "busy"]


# -- congestion


def test_too_much_that_waits_is_congestion(clients: MadeClients, queue: OutputQueue) -> None:
    clients.is_full = True
    put(queue, stream("x" * (BACKLOG_BYTES - 1000)))
    assert not queue.is_congested
    put(queue, stream("x" * 1000))
    assert queue.is_congested
    clients.is_full = False
    clients.live(queue, 0.1)
    assert not queue.is_congested


def test_waiting_for_too_long_is_congestion(clients: MadeClients, queue: OutputQueue) -> None:
    clients.is_full = True
    put(queue, stream("old"))
    clients.live(queue, BACKLOG_SECONDS)
    assert not queue.is_congested
    clients.live(queue, 0.01)
    assert queue.is_congested
    clients.is_full = False
    clients.live(queue, 0.1)
    assert not queue.is_congested


# -- a subscriber that is stuck


def test_a_stuck_client_holds_up_the_others_for_a_minute_and_then_misses_output_until_the_queue_is_empty(
    clients: MadeClients, queue: OutputQueue, caplog: pytest.LogCaptureFixture
) -> None:
    clients.is_full = True
    put(queue, *(stream(f"{number}") for number in range(250)))
    clients.live(queue, STUCK_SECONDS)
    assert (clients.taken, clients.is_lossy) == ([], False)
    with caplog.at_level(logging.WARNING):
        clients.live(queue, 0.02)
    assert "a client has read nothing for 60 s" in caplog.text
    assert 0 < len(clients.taken) < 250  # In turns: the others may need a moment.
    assert clients.is_lossy
    clients.live(queue, 0.1)
    assert (len(clients.taken), clients.is_lossy) == (250, False)
    # Still stuck: the next ones wait a second only, until it was seen to read.
    put(queue, stream("next"))
    clients.live(queue, STILL_STUCK_SECONDS + 0.1)
    assert (clients.heard[250:], clients.is_lossy) == (["next"], False)
    clients.is_full = False
    put(queue, stream("read"), stream("read"))
    clients.is_full = True
    put(queue, stream("full"), stream("again"))
    clients.is_full = False
    clients.live(queue, 0.1)
    clients.is_full = True
    put(queue, stream("slow"))
    clients.live(queue, STUCK_SECONDS - 1)
    assert clients.heard[-1] == "again"


def test_a_slow_client_is_not_stuck(clients: MadeClients, queue: OutputQueue) -> None:
    clients.is_full = True
    put(queue, *(stream("x") for _ in range(3)))
    for _ in range(3):
        clients.live(queue, STUCK_SECONDS - 1)
        clients.is_full = False
        # It takes one.
        room_for_one(clients, queue)
    assert not clients.is_lossy


def room_for_one(clients: MadeClients, queue: OutputQueue) -> None:
    before = len(clients.taken)
    send = clients.send

    def once(channel: int, parts: list[Buffer]) -> bool:
        clients.is_full = len(clients.taken) > before
        return send(channel, parts)

    clients.send = once  # type: ignore[method-assign]
    clients.live(queue, 0.1)
    clients.send = send  # type: ignore[method-assign]
    clients.is_full = True


def test_holding_for_hours_is_not_being_stuck(clients: MadeClients, queue: OutputQueue) -> None:
    queue.gate.close()
    put(queue, stream("one"))
    clients.live(queue, 10_000)
    assert (clients.taken, clients.wakes, queue.is_congested) == ([], 0, True)
    clients.is_full = True
    queue.gate.subscribed(clients.now)
    queue.gate.asked((b"page",), clients.now)
    clients.live(queue, STUCK_SECONDS - 1)
    assert not clients.is_lossy


# -- SubscriberGate


@pytest.mark.parametrize(
    ("acts", "opens_at"),
    [
        (["asked page 1"], None),
        (["subscribed 1"], None),
        (["subscribed 1", "asked page 2"], 2),
        (["asked page 2", "subscribed 3"], 3),
        (["subscribed 1", "asked page 2", "asked page 5"], 2),
        (["subscribed 1", "asked anonymous 2"], None),
        (["subscribed 1", "asked nobody 2"], None),
        (["asked page 1", "subscribed 1", "close", "subscribed 4"], 4),
        (["subscribed 1", "close", "asked page 2"], 2),
        (["subscribed 1", "asked page 2", "open"], None),
    ],
)
def test_a_hold_ends_a_moment_after_a_client_of_its_own_name_has_asked_and_somebody_has_subscribed(
    acts: list[str], opens_at: float | None
) -> None:
    gate = SubscriberGate()
    if "close" not in acts:
        gate.close()
    who = {"page": (b"page",), "anonymous": (b"\0\1\2\3\4",), "nobody": ()}
    for act in acts:
        match act.split():
            case ["subscribed", at]:
                gate.subscribed(float(at))
            case ["asked", name, at]:
                gate.asked(who[name], float(at))
            case [other]:
                getattr(gate, other)()
    assert gate.opens_at == (None if opens_at is None else opens_at + SETTLE_SECONDS)


def test_what_was_held_goes_in_order_when_the_hold_ends(clients: MadeClients, queue: OutputQueue) -> None:
    queue.gate.close()
    put(queue, stream("one"), reply(), stream("two"))
    queue.gate.subscribed(clients.now)
    queue.gate.asked((b"\0anonymous",), clients.now)
    clients.live(queue, 1)
    queue.gate.asked((b"page",), clients.now)
    assert repr(queue.gate) == "<SubscriberGate closed, asked>"
    clients.live(queue, SETTLE_SECONDS - 0.01)
    assert (clients.taken, queue.is_congested) == ([], True)
    clients.live(queue, 0.02)
    assert clients.heard == ["one", "execute_reply", "two"]
    assert (queue.is_congested, queue.due_at) == (False, None)


def test_a_hold_with_nothing_held_ends_too(clients: MadeClients, queue: OutputQueue) -> None:
    queue.gate.close()
    queue.gate.subscribed(clients.now)
    queue.gate.asked((b"page",), clients.now)
    clients.live(queue, 1)
    assert (queue.is_congested, queue.due_at) == (False, None)
    put(queue, stream("now"))
    assert clients.heard == ["now"]
