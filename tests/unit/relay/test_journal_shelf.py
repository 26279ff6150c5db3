"""relay/journal.py: what whoever is joined cannot show is kept on the shelf, in order, until it can, and once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

import pytest

from kernelbridge.protocol import frames
from kernelbridge.protocol.flow_control import MIB
from kernelbridge.protocol.frames import DELIMITER, ORDERED
from kernelbridge.protocol.session import Queue, SendLane
from kernelbridge.relay.journal import Journal, Shelf
from tests.outputs import MemorySpool


def parts_of(session: str | None, *, topic: str = "stream") -> list[bytes]:
    parent = {} if session is None else {"msg_id": "m", "session": session}
    return [f"kernel.{topic}".encode(), DELIMITER, b"", b"{}", json.dumps(parent).encode(), b"{}", b"{}"]


class Scene:
    """A lane out, and the shelf beside it."""

    def __init__(self) -> None:
        self.made: list[Journal] = []
        self.lane = SendLane(ORDERED, self.journal(), keeps=True)
        self.shelf = Shelf(self.lane, self.journal)

    def journal(self) -> Journal:
        # Small blocks, so that there are several.
        self.made.append(Journal(cast(Any, MemorySpool()), limit_bytes=1 << 20, memory_bytes=64))
        return self.made[-1]

    def said(self, *words: str, session: str | None = "before") -> None:
        """The kernel says words about a request of a client."""
        for word in words:
            if self.shelf.takes(parts_of(session)):
                self.shelf.add(word.encode())
            else:
                self.lane.waiting.add(word.encode())

    def sent(self) -> list[str]:
        """What goes out now, and is acknowledged."""
        taken = self.lane.take(10 * MIB, 0.0, 0)
        self.lane.acknowledge(self.lane.newest, 0.0)
        self.lane.forget_kept()
        return texts(sent.payload for sent in taken)

    def joined(self, *, only_own: bool, session: str = "new") -> None:
        self.lane.hand_over()
        self.shelf.hand_over(only_own=only_own)
        self.shelf.asked(session)


def texts(packed: Iterable[frames.Buffer]) -> list[str]:
    return [bytes(one).decode() for one in packed]


@pytest.fixture
def scene() -> Scene:
    """A kernel that a process had, which has left."""
    made = Scene()
    made.shelf.hand_over(only_own=False)
    return made


MANY = [f"word {number} of many" for number in range(100)]


def test_what_was_left_waits_while_what_the_new_client_asked_goes_out(scene: Scene) -> None:
    scene.said(*MANY)
    scene.joined(only_own=True)
    scene.said("later of before")
    scene.said("own", session="new")
    scene.said("of nobody", session=None)
    assert scene.sent() == ["own", "of nobody"]
    scene.shelf.open(lambda: b"titles")
    scene.said("own again", session="new")
    scene.said("of before, as it comes")
    assert scene.sent() == ["titles", *MANY, "later of before", "own again", "of before, as it comes"]
    assert scene.shelf.held_bytes == 0
    scene.shelf.close()
    scene.said("of a thread")
    assert scene.sent() == []
    # The titles were told.
    scene.shelf.open(lambda: b"titles")
    assert scene.sent() == ["titles", "of a thread"]
    scene.shelf.open(lambda: b"titles")
    assert scene.sent() == []


def test_a_status_is_for_everybody(scene: Scene) -> None:
    scene.joined(only_own=True)
    assert not scene.shelf.takes(parts_of("before", topic="status"))
    assert not scene.shelf.takes([b"no message"])


def test_nothing_is_kept_from_the_first_owner(scene: Scene) -> None:
    first = Scene()
    first.said("ready", session=None)
    first.shelf.hand_over(only_own=True)
    assert first.sent() == ["ready"]
    first.shelf.asked("me")
    first.said("out", session="me")
    assert first.sent() == ["out"]


def test_clients_that_show_nothing_leave_all_for_the_next(scene: Scene) -> None:
    scene.said("one", "two")
    scene.joined(only_own=True, session="a")
    scene.said("three")
    scene.said("of a, and not taken", session="a")
    scene.joined(only_own=True, session="b")
    scene.said("of a", session="a")
    assert scene.sent() == []
    scene.shelf.open(lambda: b"titles")
    assert scene.sent() == ["titles", "one", "two", "three", "of a, and not taken", "of a"]


def test_each_who_can_show_only_its_own_is_told_the_titles_also_of_nothing(scene: Scene) -> None:
    for titles in (b"titles", b"again"):
        scene.joined(only_own=True)
        scene.shelf.open(lambda: titles)  # noqa: B023
        assert scene.sent() == [titles.decode()]


def test_what_went_out_and_was_not_acknowledged_waits_for_the_next(scene: Scene) -> None:
    scene.said("one", "two")
    scene.joined(only_own=True)
    scene.shelf.open(lambda: b"titles")
    assert texts(sent.payload for sent in scene.lane.take(8, 0.0, 0)) == ["titles", "one"]
    scene.lane.acknowledge(1, 0.0)
    scene.lane.forget_kept()
    scene.joined(only_own=True)
    assert scene.sent() == []
    scene.shelf.open(lambda: b"again")
    assert scene.sent() == ["again", "one", "two"]


def test_who_can_show_all_gets_all_in_order(scene: Scene) -> None:
    scene.said(*MANY)
    scene.joined(only_own=True)
    scene.said("own, and not taken", session="new")
    scene.joined(only_own=False)
    scene.said("now")
    assert scene.sent() == [*MANY, "own, and not taken", "now"]
    assert scene.shelf.held_bytes == 0


def test_the_newest_can_be_looked_at_and_stay(scene: Scene) -> None:
    scene.said(*MANY)
    scene.joined(only_own=True)
    assert repr(scene.shelf) == f"<Shelf {scene.shelf.held_bytes} bytes>"
    assert texts(scene.shelf.peek(1 << 20)) == MANY
    newest = texts(scene.shelf.peek(200))
    assert 10 <= len(newest) < 30
    assert newest == MANY[-len(newest) :]
    scene.shelf.open(lambda: b"titles")
    assert scene.sent() == ["titles", *MANY]


def test_the_newest_of_a_lane_is_what_may_not_have_arrived() -> None:
    lane = SendLane(ORDERED, Queue())
    for word in (b"one", b"two", b"three"):
        lane.waiting.add(word)
    lane.take(1, 0.0, 0)
    assert lane.peek(100) == [b"one", b"two", b"three"]
    assert lane.peek(8) == [b"two", b"three"]
    lane.acknowledge(1, 0.0)
    assert lane.peek(100) == [b"two", b"three"]
