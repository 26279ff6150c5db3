"""relay/server.py: who may hold a kernel, what others hear, and what a new holder gets of what was said before."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import Goodbye, HeldBy, Hello, Status
from kernelbridge.protocol.session import SILENCE_SECONDS, Session
from kernelbridge.relay import server as server_module
from kernelbridge.relay.journal import Journal
from kernelbridge.relay.server import Door, Server, ServerHolder, door_of
from kernelbridge.relay.spool import Spool
from tests.made_events import status


class Behind:
    """The relay behind the door, as far as the door knows it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.claim = ""
        # Of each process that had it after another: whether it shows only its own.
        self.handed_over_to: list[bool] = []

    def obey(self, message: frames.Message) -> None:
        self.seen.append([bytes(part) for part in message.parts])

    def status(self) -> Status:
        return status(release="0.2")

    def log_text(self) -> str:
        return "its last words"

    def output_text(self) -> str:
        return "its left output"

    def handed_over(self, only_own: bool) -> None:
        self.handed_over_to.append(only_own)

    def joined(self) -> None:
        self.seen.append("joined")

    def left(self) -> None:
        self.seen.append("left")

    def goodbye(self, said: Goodbye) -> None:
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
        self._decoder = frames.Decoder()

    def say(self, *words: bytes) -> None:
        os.write(self.to_relay, b"".join(words))

    def heard(self) -> list[frames.Frame]:
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


def holder_of(behind: Behind) -> ServerHolder:
    return ServerHolder(
        kernel="k1",
        obey=behind.obey,
        status=behind.status,
        log_text=behind.log_text,
        output_text=behind.output_text,
        joined=behind.joined,
        handed_over=behind.handed_over,
        left=behind.left,
        goodbye=behind.goodbye,
        may_claim=behind.may_claim,
    )


@pytest.fixture
def door(tmp_path: Path, behind: Behind) -> Iterator[Server]:
    made = Server(str(tmp_path / "relay.sock"), "epoch-1", Session(Journal(Spool(None))), holder_of(behind))
    yield made
    made.close()


def turn(door: Server, now: float = 0.0) -> None:
    """What the relay's loop does when everything is ready."""
    ready = {line.sock.fileno(): 1 for line in door.connections if not line.is_adopted}
    ready |= {line.source: 1 for line in door.connections if line.is_adopted}
    door.serve(ready, now)
    door.flush(now)


@pytest.fixture
def knock(door: Server, tmp_path: Path) -> Iterator[Knock]:
    """Lets a bridge come in and say HELLO."""
    made: list[Bridge] = []

    def let_in(owner: str = "me:1@2:a", *, stream: str = "s1", now: float = 0.0, **wish: Any) -> Bridge:
        bridge = Bridge(str(tmp_path / "relay.sock"))
        made.append(bridge)
        door.accept()
        turn(door, now)
        said = {"kernel": "k1", "owner": owner, "who": "ada@laptop", "stream": stream, "received": [0, 0], **wish}
        bridge.say(Hello(**said).frame())
        turn(door, now)
        return bridge

    yield let_in
    for bridge in made:
        bridge.close()


def said(heard: list[frames.Frame]) -> tuple[int, dict[str, Any]]:
    """The first frame: its kind and what it says."""
    return heard[0].kind, json.loads(bytes(heard[0].payload))


def delivered(heard: list[frames.Frame]) -> list[bytes]:
    return [bytes(frame.payload) for frame in heard if frame.kind == frames.DATA]


def test_the_first_who_comes_holds_the_kernel_and_gets_what_was_said(
    door: Server, behind: Behind, knock: Knock
) -> None:
    door.session.add(frames.ORDERED, b"early")
    heard = knock().heard()
    assert said(heard) == (
        frames.WELCOME,
        {**json.loads(json.dumps(status(release="0.2").to_dict())), "received": [0, 0], "epoch": "epoch-1"},
    )
    assert delivered(heard) == [b"early"]
    assert behind.seen == ["joined"]
    assert door.held_by(5.0) == HeldBy(owner="me:1@2:a", who="ada@laptop", held_seconds=5.0)


def test_a_new_line_of_the_same_process_goes_on_where_the_old_one_ended(door: Server, knock: Knock) -> None:
    first = knock()
    first.heard()
    door.session.add(frames.ORDERED, b"one")
    turn(door)
    assert delivered(first.heard()) == [b"one"]
    door.session.add(frames.ORDERED, b"two")
    second = knock(received=[0, 1], now=7.0)
    assert delivered(second.heard()) == [b"two"]
    assert door.held_by(7.0).held_seconds == 7.0  # It has been held all along.


def test_another_owner_hears_who_has_it_since_when_and_disturbs_nobody(door: Server, knock: Knock) -> None:
    first = knock()
    first.heard()
    kind, refusal = said(knock("other:9@9:b", stream="s2", now=60.0).heard())
    assert (kind, refusal["reason"], refusal["who"], refusal["held_seconds"]) == (
        frames.BUSY,
        "held",
        "ada@laptop",
        60.0,
    )
    door.session.add(frames.ORDERED, b"mine")
    turn(door)
    assert delivered(first.heard()) == [b"mine"]


def test_who_takes_it_gets_all_again_that_was_not_acknowledged_and_the_loser_hears_who_it_was(
    door: Server, knock: Knock
) -> None:
    first = knock()
    first.heard()
    for word in (b"one", b"two"):
        door.session.add(frames.ORDERED, word)
    turn(door)
    first.say(frames.acknowledgement(0, 1))
    turn(door, 10.0)
    first.say(frames.frame(frames.PING))  # A sign of life, later than what is kept for a process that was killed.
    turn(door, 13.0)
    assert len(delivered(first.heard())) == 2
    second = knock("other:9@9:b", stream="s2", now=14.0, take=True)
    assert delivered(second.heard()) == [b"two"]
    assert said(first.heard()) == (frames.BUSY, {"reason": "taken", "who": "ada@laptop"})


def test_who_did_not_hear_that_it_was_taken_over_is_told_when_it_comes_again(door: Server, knock: Knock) -> None:
    """A laptop that slept meanwhile: what it has received is of other numbers, and it would miss as many messages."""
    knock("me:1@2:a", stream="s1")
    knock("you:1@2:b", stream="s2", who="bob@desk", take=True)
    assert door.connection is not None
    door.disconnect(door.connection)
    door.session.add(frames.ORDERED, b"for bob")
    kind, busy = said(knock("me:1@2:a", stream="s1", received=[0, 9]).heard())
    assert (kind, busy["reason"], busy["who"]) == (frames.BUSY, "taken", "bob@desk")
    assert delivered(knock("you:1@2:b", stream="s2", who="bob@desk").heard()) == [b"for bob"]
    # As a process that begins anew it may have it.
    assert said(knock("me:1@2:a", stream="s3", take=True).heard())[0] == frames.WELCOME


def test_a_process_that_was_killed_may_have_lost_what_it_acknowledged_last(door: Server, knock: Knock) -> None:
    first = knock()
    first.heard()
    door.session.add(frames.ORDERED, b"one")
    turn(door)
    first.say(frames.acknowledgement(0, 1))
    turn(door, 10.0)
    assert delivered(knock("me:1@3:c", stream="s2", now=1000.0, take=True).heard()) == [b"one"]


def test_after_a_goodbye_nothing_comes_twice_and_the_holder_is_gone(door: Server, behind: Behind, knock: Knock) -> None:
    first = knock()
    first.heard()
    door.session.add(frames.ORDERED, b"one")
    turn(door)
    first.heard()
    first.say(frames.acknowledgement(0, 1), Goodbye(end=True, claim="c").frame())
    turn(door)
    assert [frame.kind for frame in first.heard()] == [frames.GOODBYE]
    assert behind.seen[1:] == [Goodbye(end=True, claim="c"), "left"]
    assert door.held_by(1.0).owner is None
    assert delivered(knock("other:9@9:b", stream="s2").heard()) == []


def test_a_goodbye_that_says_that_something_was_not_handed_on_forgets_nothing(door: Server, knock: Knock) -> None:
    first = knock()
    first.heard()
    door.session.add(frames.ORDERED, b"one")
    turn(door)
    first.say(frames.acknowledgement(0, 1), Goodbye(end=False, lacks=True).frame())
    turn(door)
    assert delivered(knock("other:9@9:b", stream="s2").heard()) == [b"one"]


def test_a_process_after_which_another_had_it_does_not_come_back_and_what_waits_stays(
    door: Server, behind: Behind, knock: Knock
) -> None:
    knock()
    door.session.add(frames.ORDERED, b"one")
    turn(door)
    assert door.connection is not None
    door.disconnect(door.connection)  # Its laptop sleeps.
    other = knock("other:9@9:b", stream="s2", who="bob@lab")
    assert delivered(other.heard()) == [b"one"]
    other.say(frames.acknowledgement(0, 1), Goodbye(end=False).frame())
    turn(door)
    door.session.add(frames.ORDERED, b"two")
    # It counts by numbers that are another's now: it would take "two" for what it has, and lose it.
    assert said(knock(received=[0, 1]).heard()) == (frames.BUSY, {"reason": "taken", "who": "bob@lab"})
    assert delivered(knock("me:1@2:a", stream="s3").heard()) == [b"two"]
    assert behind.seen.count("joined") == 3


@pytest.mark.parametrize(("claim", "kind"), [("c", frames.WELCOME), ("d", frames.BUSY)])
def test_only_the_right_claim_takes_it_up(behind: Behind, knock: Knock, claim: str, kind: int) -> None:
    behind.claim = "c"
    assert knock("other:9@9:b", stream="s2", claim=claim).heard()[0].kind == kind


def test_a_question_is_answered_beside_the_holder(door: Server, behind: Behind, knock: Knock) -> None:
    first = knock()
    first.heard()
    assert said(knock("", stream="", ask="logs").heard()) == (frames.ANSWER, {"text": "its last words"})
    assert said(knock("", stream="", ask="output").heard()) == (frames.ANSWER, {"text": "its left output"})
    assert door.held_by(0.0).owner == "me:1@2:a"
    assert behind.seen == ["joined"]


def test_the_relay_hears_who_has_it_now_and_what_that_one_can_show(behind: Behind, knock: Knock) -> None:
    knock(only_own=True)
    knock(only_own=True)  # A new line of the same process.
    knock(stream="s2")
    assert behind.handed_over_to == [True, False]


def test_who_means_another_kernel_is_refused(knock: Knock) -> None:
    assert said(knock(kernel="k2").heard()) == (frames.BUSY, {"reason": "other kernel or version"})


@pytest.mark.parametrize("version", [1, 3])
def test_who_speaks_another_version_is_told_ours_and_has_its_questions_answered(
    door: Server, behind: Behind, knock: Knock, version: int
) -> None:
    refusal = {"reason": "other kernel or version", "version": frames.VERSION, "release": "0.2"}
    assert said(knock(version=version).heard()) == (frames.BUSY, refusal)
    assert said(knock("", stream="", ask="logs", version=version).heard()) == (
        frames.ANSWER,
        {"text": "its last words"},
    )
    assert behind.seen == []


def test_messages_reach_the_kernel_once(door: Server, behind: Behind, knock: Knock) -> None:
    first = knock()
    packed = frames.pack(frames.Message(frames.SHELL, 1, [b"a", b"b"]))
    frame = frames.head(frames.DATA, len(packed), frames.ORDERED, 1) + packed
    first.say(frame, frame)
    turn(door)
    assert behind.seen == ["joined", [b"a", b"b"]]


def test_a_line_that_is_silent_or_talks_nonsense_is_given_up(door: Server, behind: Behind, knock: Knock) -> None:
    silent = knock()
    silent.heard()
    door.serve({}, SILENCE_SECONDS + 1)
    assert behind.seen == ["joined", "left"]
    strange = knock("other:9@9:b", stream="s2")
    strange.heard()
    strange.say(b"\xff" * 100)
    turn(door)
    assert door.connections == []


@pytest.mark.parametrize(
    "words",
    [
        frames.frame(frames.ACK, b"short"),
        frames.frame(frames.HELLO, b"[" * 50_000),
        frames.frame(frames.HELLO, b"[]"),
        frames.frame(frames.HELLO, b'{"kernel": [], "version": "2"}'),
        frames.frame(frames.GOODBYE, b"[1]"),
        frames.head(frames.DATA, 1, frames.ORDERED, 1) + b"x",
        frames.head(frames.DATA, 1, frames.ORDERED, 9) + b"x",
        frames.frame(77),
    ],
)
def test_nonsense_costs_the_line_that_said_it_and_nobody_else(
    door: Server, behind: Behind, knock: Knock, words: bytes
) -> None:
    bad = knock()
    bad.say(words)
    turn(door)
    assert door.connections == []
    assert said(knock("me:1@2:a", stream="s2").heard())[0] == frames.WELCOME


class Caller:
    """A line as sshd brings it to the relay's door: one socket for both ways."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(5)
        self.sock.connect(str(path))
        self._decoder = frames.Decoder()

    def heard(self) -> list[frames.Frame]:
        piece = self.sock.recv(1 << 20)
        return self._decoder.feed(piece)


@pytest.fixture
def called(
    tmp_path: Path, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Server, Caller]]]:
    """Makes a relay whose door is for the user of this number, and calls there, from outside its container or not."""
    made: list[Server] = []
    callers: list[Caller] = []

    def call(uid: int, *, from_outside: bool = True) -> tuple[Server, Caller]:
        # A process of its own container has a number here, as this one.
        monkeypatch.setattr(server_module, "_OUTSIDE", os.getpid() if from_outside else 0)
        holder = holder_of(behind)
        path = tmp_path / "door.sock"
        session = Session(Journal(Spool(None)))
        made.append(Server(str(tmp_path / "r.sock"), "e1", session, holder, door=Door(str(path), uid)))
        assert path.stat().st_mode & 0o777 == 0o666
        caller = Caller(path)
        callers.append(caller)
        made[-1].accept_by_door()
        return made[-1], caller

    yield call
    for one in made:
        one.close()
    for caller in callers:
        caller.sock.close()
    assert not (tmp_path / "door.sock").exists()


def test_the_one_whose_door_it_is_is_greeted_and_holds_the_kernel_by_one_socket(
    called: Callable[..., tuple[Server, Caller]],
) -> None:
    server, caller = called(os.getuid())
    assert [frame.kind for frame in caller.heard()] == [frames.PONG]
    assert server.way == ""
    caller.sock.sendall(Hello(kernel="k1", owner="me:1@2:a", who="me@desk", stream="s1", received=[0, 0]).frame())
    turn(server)
    assert server.way == "socket"
    assert [frame.kind for frame in caller.heard()] == [frames.WELCOME]
    caller.sock.sendall(frames.frame(frames.PING, b"x"))
    turn(server)
    assert [(frame.kind, bytes(frame.payload)) for frame in caller.heard()] == [(frames.PONG, b"x")]
    caller.sock.close()
    turn(server)
    assert (server.way, server.connections) == ("", [])


@pytest.mark.parametrize(("more", "from_outside"), [(1, True), (0, False)])
def test_anybody_else_hears_nothing_at_the_door_nor_who_is_in_the_container(
    called: Callable[..., tuple[Server, Caller]], more: int, from_outside: bool
) -> None:
    server, caller = called(os.getuid() + more, from_outside=from_outside)
    assert caller.heard() == []
    assert server.connections == []


def test_a_door_that_may_not_be_opened_is_no_failure(tmp_path: Path, behind: Behind, door: Server) -> None:
    holder = holder_of(behind)
    nowhere = Door(str(tmp_path / "none" / "door.sock"), 0)
    server = Server(str(tmp_path / "r.sock"), "e1", Session(Journal(Spool(None))), holder, door=nowhere)
    assert server.door is None
    assert len(server.listeners) == 1
    server.close()


def test_an_order_says_where_the_door_is() -> None:
    assert door_of({}) is None
    assert door_of({"door": {"path": "/d/relay.sock", "uid": 7}}) == Door("/d/relay.sock", 7)
