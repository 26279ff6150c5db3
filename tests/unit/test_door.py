"""relay/door.py: who may hold a kernel, what others hear, and what a new holder gets of what was said before."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.relay import shipping, wire
from kernelbridge.relay.door import SILENCE_SECONDS, Door
from kernelbridge.relay.journal import Journal
from kernelbridge.relay.replay import Peer
from kernelbridge.relay.spool import Spool


class Behind:
    """The relay behind the door, as far as the door knows it."""

    kernel = "k1"

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.claim = ""

    def obey(self, message: wire.Message) -> None:
        self.seen.append([bytes(part) for part in message.parts])

    def answer(self, ask: str) -> dict[str, Any]:
        return {"asked": ask}

    def joined(self) -> None:
        self.seen.append("joined")

    def left(self) -> None:
        self.seen.append("left")

    def goodbye(self, said: dict[str, Any]) -> None:
        self.seen.append(said)

    def may_claim(self, claim: str) -> bool:
        return bool(claim) and claim == self.claim


class Bridge:
    """A line as bridge.py brings it: the far ends of an exec's pipes."""

    def __init__(self, path: str) -> None:
        source, self.to_relay = os.pipe()
        self.from_relay, sink = os.pipe()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        for descriptor in (source, sink, self.from_relay):
            os.set_blocking(descriptor, False)
        self.sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [source, sink]))])
        os.close(source)
        os.close(sink)
        self._decoder = wire.Decoder()

    def say(self, *frames: bytes) -> None:
        os.write(self.to_relay, b"".join(frames))

    def heard(self) -> list[wire.Frame]:
        try:
            return self._decoder.feed(os.read(self.from_relay, 1 << 20))
        except BlockingIOError:
            return []

    def close(self) -> None:
        os.close(self.to_relay)
        os.close(self.from_relay)
        self.sock.close()


Knock = Callable[..., Bridge]


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def door(tmp_path: Path, behind: Behind) -> Iterator[Door]:
    made = Door(str(tmp_path / "relay.sock"), "epoch-1", Peer(Journal(Spool(None))), behind)
    yield made
    made.close()


def turn(door: Door, now: float = 0.0) -> None:
    """What the relay's loop does when everything is ready."""
    ready = {line.sock.fileno(): 1 for line in door.lines if not line.is_adopted}
    ready |= {line.source: 1 for line in door.lines if line.is_adopted}
    door.serve(ready, now)
    door.flush(now)


@pytest.fixture
def knock(door: Door, tmp_path: Path) -> Iterator[Knock]:
    """Lets a bridge come in and say HELLO."""
    made: list[Bridge] = []

    def let_in(owner: str = "me:1@2:a", *, stream: str = "s1", now: float = 0.0, **wish: Any) -> Bridge:
        bridge = Bridge(str(tmp_path / "relay.sock"))
        made.append(bridge)
        door.knock()
        turn(door, now)
        said = {"kernel": "k1", "owner": owner, "who": "ada@laptop", "stream": stream, "received": [0, 0], **wish}
        bridge.say(shipping.hello(**said))
        turn(door, now)
        return bridge

    yield let_in
    for bridge in made:
        bridge.close()


def said(frames: list[wire.Frame]) -> tuple[int, dict[str, Any]]:
    """The first frame: its kind and what it says."""
    return frames[0].kind, json.loads(bytes(frames[0].payload))


def delivered(frames: list[wire.Frame]) -> list[bytes]:
    return [bytes(frame.payload) for frame in frames if frame.kind == wire.DATA]


def test_the_first_who_comes_holds_the_kernel_and_gets_what_was_said(door: Door, behind: Behind, knock: Knock) -> None:
    door.peer.add(wire.ORDERED, b"early")
    frames = knock().heard()
    assert said(frames) == (wire.WELCOME, {"asked": "status", "received": [0, 0], "epoch": "epoch-1"})
    assert delivered(frames) == [b"early"]
    assert behind.seen == ["joined"]
    assert door.holder_facts(5.0) == {"owner": "me:1@2:a", "who": "ada@laptop", "held_seconds": 5.0}


def test_a_new_line_of_the_same_process_goes_on_where_the_old_one_ended(door: Door, knock: Knock) -> None:
    first = knock()
    first.heard()
    door.peer.add(wire.ORDERED, b"one")
    turn(door)
    assert delivered(first.heard()) == [b"one"]
    door.peer.add(wire.ORDERED, b"two")
    second = knock(received=[0, 1], now=7.0)
    assert delivered(second.heard()) == [b"two"]
    assert door.holder_facts(7.0)["held_seconds"] == 7.0  # It has been held all along.


def test_another_owner_hears_who_has_it_since_when_and_disturbs_nobody(door: Door, knock: Knock) -> None:
    first = knock()
    first.heard()
    kind, refusal = said(knock("other:9@9:b", stream="s2", now=60.0).heard())
    assert (kind, refusal["reason"], refusal["who"], refusal["held_seconds"]) == (wire.BUSY, "held", "ada@laptop", 60.0)
    door.peer.add(wire.ORDERED, b"mine")
    turn(door)
    assert delivered(first.heard()) == [b"mine"]


def test_who_takes_it_gets_all_again_that_was_not_acknowledged_and_the_loser_hears_who_it_was(
    door: Door, knock: Knock
) -> None:
    first = knock()
    first.heard()
    for word in (b"one", b"two"):
        door.peer.add(wire.ORDERED, word)
    turn(door)
    first.say(wire.acknowledgement(0, 1))
    turn(door, 10.0)
    first.say(wire.frame(wire.PING))  # A sign of life, later than what is kept for a process that was killed.
    turn(door, 13.0)
    assert len(delivered(first.heard())) == 2
    second = knock("other:9@9:b", stream="s2", now=14.0, take=True)
    assert delivered(second.heard()) == [b"two"]
    assert said(first.heard()) == (wire.BUSY, {"reason": "taken", "who": "ada@laptop"})


def test_a_process_that_was_killed_may_have_lost_what_it_acknowledged_last(door: Door, knock: Knock) -> None:
    first = knock()
    first.heard()
    door.peer.add(wire.ORDERED, b"one")
    turn(door)
    first.say(wire.acknowledgement(0, 1))
    turn(door, 10.0)
    assert delivered(knock("me:1@3:c", stream="s2", now=1000.0, take=True).heard()) == [b"one"]


def test_after_a_goodbye_nothing_comes_twice_and_the_holder_is_gone(door: Door, behind: Behind, knock: Knock) -> None:
    first = knock()
    first.heard()
    door.peer.add(wire.ORDERED, b"one")
    turn(door)
    first.heard()
    first.say(wire.acknowledgement(0, 1), shipping.goodbye(end=True, claim="c"))
    turn(door)
    assert [frame.kind for frame in first.heard()] == [wire.GOODBYE]
    assert behind.seen[1:] == [{"end": True, "claim": "c"}, "left"]
    assert door.holder_facts(1.0)["owner"] is None
    assert delivered(knock("other:9@9:b", stream="s2").heard()) == []


@pytest.mark.parametrize(("claim", "kind"), [("c", wire.WELCOME), ("d", wire.BUSY)])
def test_only_the_right_claim_takes_it_up(behind: Behind, knock: Knock, claim: str, kind: int) -> None:
    behind.claim = "c"
    assert knock("other:9@9:b", stream="s2", claim=claim).heard()[0].kind == kind


def test_a_question_is_answered_beside_the_holder(door: Door, behind: Behind, knock: Knock) -> None:
    first = knock()
    first.heard()
    assert said(knock("", stream="", ask="logs").heard()) == (wire.ANSWER, {"asked": "logs"})
    assert door.holder_facts(0.0)["owner"] == "me:1@2:a"
    assert behind.seen == ["joined"]


def test_who_means_another_kernel_is_refused(knock: Knock) -> None:
    assert said(knock(kernel="k2").heard()) == (wire.BUSY, {"reason": "other kernel or version"})


def test_messages_reach_the_kernel_once(door: Door, behind: Behind, knock: Knock) -> None:
    first = knock()
    packed = wire.pack(wire.Message(wire.SHELL, 1, [b"a", b"b"]))
    frame = wire.head(wire.DATA, len(packed), wire.ORDERED, 1) + packed
    first.say(frame, frame)
    turn(door)
    assert behind.seen == ["joined", [b"a", b"b"]]


def test_a_line_that_is_silent_or_talks_nonsense_is_given_up(door: Door, behind: Behind, knock: Knock) -> None:
    silent = knock()
    silent.heard()
    door.serve({}, SILENCE_SECONDS + 1)
    assert behind.seen == ["joined", "left"]
    strange = knock("other:9@9:b", stream="s2")
    strange.heard()
    strange.say(b"\xff" * 100)
    turn(door)
    assert door.lines == []
