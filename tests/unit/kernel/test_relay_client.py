"""kernel/relay_client.py: joined to a relay, kept over drops, numbered both ways, and left in good order.

The relay is made up (tests/made_relay_end.py), and so is the clock. Over real links: tests/real/test_cuts*.py.
Over 600 lines because it is one thing: each test is a script for the same client and the same made-up relay.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from kernelbridge.errors import (
    ContainerFailed,
    EngineFailed,
    GpuTaken,
    HostRefused,
    HostUnreachable,
    ImageUnusable,
    JobEnded,
    KernelBridgeError,
    KernelHeld,
    KernelOfOtherVersion,
    LinkLost,
    LoginRefused,
)
from kernelbridge.hosts.backend import ContainerState, Created, Exited, Missing, Over, Running
from kernelbridge.hosts.relay_query import HELLO_SECONDS, RelayAddress
from kernelbridge.kernel.relay_client import (
    DOUBT_SECONDS,
    GOODBYE_ACK_SECONDS,
    LET_GO_SECONDS,
    PING_SECONDS,
    SILENT_RELAY_SECONDS,
    UNHOPEFUL_SECONDS,
    LockMissing,
    PackagesMissing,
    RelayClient,
    RelayListener,
    check_running,
)
from kernelbridge.protocol import exit_codes, frames, session
from kernelbridge.protocol.frames import ORDERED, QUICK, SHELL, STDIN
from kernelbridge.protocol.handshake import Busy, Goodbye, Owner, Welcome
from kernelbridge.protocol.session import SILENCE_SECONDS
from tests import made_events
from tests.made_clock import MadeClock
from tests.made_events import exited, status
from tests.made_relay_end import Line, RelayEnd, output, refusing

KERNEL = "aaaa1111-0000-4000-8000-000000000001"
ADA = Owner(mark="m:1@1.00:x", who="ada@laptop")
REFUSED = HostRefused(host="lab", address="lab:22")
LOGIN_REFUSED = LoginRefused(host="lab", user="ada")
NOT_RUNNING = EngineFailed(host="lab", action="exec", reason="the container is not running")
JOB_OVER = JobEnded(environment="torch", host="hpc", job="7", how="reached its time limit")


def ended(code: int, error: str = "") -> Exited:
    return Exited(code=code, oom_killed=False, error=error, finished_at="")


def says(*words: bytes) -> Any:
    """An answer: these bytes, then an end."""

    def answer(line: Line) -> None:
        line.say(*words)
        line.cut()

    return answer


class Scene:
    """A client, the relay that it is for, and all that the client told its listener, in order."""

    def __init__(self, clock: MadeClock, **wish: Any) -> None:
        self.clock = clock
        self.relay = RelayEnd()
        # Why the host cannot be reached; and when it was asked for.
        self.away: KernelBridgeError | None = None
        self.reached_at: list[float] = []
        self.told: list[Any] = []
        # Of the joins that failed: whether that may pass by itself.
        self.may_pass: list[bool] = []
        self.acknowledged_lanes: Sequence[int] = frames.LANES
        listener = RelayListener(
            delivered=self._delivered,
            event_received=self.told.append,
            joined=lambda welcome: self.told.append("joined"),
            lost=self.told.append,
            ended=self.told.append,
            join_failed=self._join_failed,
            paused=lambda is_paused: self.told.append("paused" if is_paused else "goes on"),
            taken=self.told.append,
            acknowledges=lambda: self.acknowledged_lanes,
        )
        self.address = RelayAddress(
            kernel=KERNEL, host="lab", image="torch:2", python="python3", workload=self._workload, rest=asyncio.sleep
        )
        self.client = RelayClient(self.address, listener, owner=ADA, **wish)

    async def _workload(self) -> Any:
        self.reached_at.append(self.clock.now)
        if self.away is not None:
            raise self.away
        return self.relay

    def _join_failed(self, error: KernelBridgeError, may_pass: bool) -> None:
        self.told.append(error)
        self.may_pass.append(may_pass)

    def _delivered(self, packed: list[frames.Buffer]) -> None:
        self.told += [bytes(frames.unpack(one).parts[0]).decode() for one in packed]

    def ask(self, *texts: str, channel: int = SHELL) -> None:
        self.client.send([(frames.LANE_OF[channel], output(text, channel=channel)) for text in texts])

    @property
    def kinds(self) -> list[str]:
        """What was told, in short."""
        return [one if isinstance(one, str) else type(one).__name__ for one in self.told]


@pytest.fixture
async def scene(clock: MadeClock) -> AsyncIterator[Scene]:
    made = Scene(clock)
    yield made
    await made.client.aclose()


@pytest.fixture
async def joined(scene: Scene) -> Scene:
    """A client that has joined, and forgot that."""
    await scene.client.join()
    scene.told.clear()
    return scene


async def turns(count: int = 20) -> None:
    """Let happen what waits for nothing."""
    for _ in range(count):
        await asyncio.sleep(0)


async def wait_for(scene: Scene, kind: str, seconds: float = 60.0) -> None:
    """Until the listener was told of it."""
    end = scene.clock.now + seconds
    while kind not in scene.kinds:
        assert scene.clock.now < end, f"waited for {kind}: {scene.told}"
        await asyncio.sleep(0.05)


# -- joining


async def test_a_client_joins_says_who_it_is_and_asks_for_the_kernel_once(clock: MadeClock) -> None:
    scene = Scene(clock, takes=True, claim="mine")
    assert not scene.client.is_joined
    await scene.client.join()
    assert scene.client.is_joined
    assert scene.told == ["joined"]
    (hello,) = scene.relay.hellos
    assert (hello.kernel, hello.owner, hello.who, hello.ask) == (KERNEL, ADA.mark, ADA.who, None)
    assert (hello.take, hello.claim, list(hello.received)) == (True, "mine", [0, 0])
    scene.relay.line.cut()
    await turns()
    await wait_for(scene, "joined")
    await asyncio.sleep(5)
    first, second = scene.relay.hellos
    assert (second.take, second.claim) == (None, None), "what was taken once is not taken again from somebody else"
    assert second.stream == first.stream
    await scene.client.aclose()


async def test_a_client_of_a_relay_that_is_there_already_joins_as_soon_as_its_host_is_back(scene: Scene) -> None:
    scene.away = REFUSED
    scene.client.keep_joining()
    await asyncio.sleep(10)
    assert set(scene.kinds) == {"HostRefused"}
    scene.away = None
    await asyncio.sleep(3)
    assert scene.kinds[-1] == "joined"
    assert scene.client.is_joined


async def test_who_closes_a_client_twice_has_closed_its_line_once(joined: Scene) -> None:
    await joined.client.aclose()
    await joined.client.aclose()
    assert joined.relay.line.is_closed
    assert not joined.client.is_joined
    assert joined.told == [], "who leaves is not told that the line is lost"
    joined.ask("late")
    await asyncio.sleep(20)
    assert len(joined.relay.lines) == 1


async def test_a_client_says_in_a_log_whether_it_is_joined(joined: Scene) -> None:
    assert repr(joined.client).startswith("<RelayClient aaaa1111 joined ")
    await joined.client.aclose()
    assert repr(joined.client).startswith("<RelayClient aaaa1111 apart ")


async def test_a_relay_that_another_holds_is_refused_with_who_holds_it(scene: Scene) -> None:
    scene.relay.answers = [refusing("held", who="bob@desk", held_seconds=60.0)]
    with pytest.raises(KernelHeld, match="aaaa1111-000 on lab has been held by bob@desk since"):
        await scene.client.join()
    assert scene.relay.line.is_closed
    assert not scene.client.is_joined
    assert scene.told == []


async def test_a_relay_that_refuses_for_another_reason_fails_the_start_with_that_reason(scene: Scene) -> None:
    scene.relay.answers = [refusing("another kernel's relay")]
    with pytest.raises(ContainerFailed, match="its relay refused: another kernel's relay"):
        await scene.client.join()


async def test_an_engine_that_refuses_an_exec_is_asked_again_while_the_container_runs(scene: Scene) -> None:
    scene.relay.attach_failures = [NOT_RUNNING, NOT_RUNNING]
    began = scene.clock.now
    await scene.client.join()
    assert scene.clock.now - began == pytest.approx(0.6)
    assert len(scene.relay.lines) == 1


async def test_an_engine_that_refuses_each_exec_fails_the_start_with_its_own_words(scene: Scene) -> None:
    scene.relay.attach_failures = [NOT_RUNNING] * 10
    with pytest.raises(EngineFailed, match="the container is not running"):
        await scene.client.join()
    assert len(scene.relay.attach_failures) == 4


async def test_a_link_that_fails_while_joining_is_not_tried_again_by_a_first_join(scene: Scene) -> None:
    scene.relay.attach_failures = [LinkLost(host="lab")]
    with pytest.raises(LinkLost):
        await scene.client.join()
    assert scene.relay.lines == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(says(), id="nothing"),
        pytest.param(says(b"OCI runtime exec failed: exec failed"), id="the engine's words"),
    ],
)
async def test_a_bridge_that_ends_without_a_welcome_is_started_again(scene: Scene, answer: Any) -> None:
    scene.relay.answers = [answer] * 3
    await scene.client.join()
    assert [line.is_closed for line in scene.relay.lines] == [True, True, True, False]


async def test_a_relay_that_never_answers_fails_the_start_after_some_tries(scene: Scene) -> None:
    scene.relay.answers = [lambda line: None] * 10
    began = scene.clock.now
    with pytest.raises(ContainerFailed, match="the relay does not answer"):
        await scene.client.join()
    assert len(scene.relay.hellos) == 6
    assert scene.clock.now - began == pytest.approx(6 * HELLO_SECONDS + 5 * 0.3)
    assert all(line.is_closed for line in scene.relay.lines)


ENDS: list[Any] = [
    pytest.param(ended(exit_codes.EXIT_TAKEN), GpuTaken, "lab", id="75: another kernel has the GPU"),
    pytest.param(ended(exit_codes.EXIT_NO_LOCK), LockMissing, None, id="76: there is no lock"),
    pytest.param(ended(exit_codes.EXIT_LACKS), PackagesMissing, None, id="79: it lacks packages"),
    pytest.param(ended(126), ImageUnusable, "torch:2 has no `python3`", id="126: may not be run"),
    pytest.param(ended(127), ImageUnusable, "torch:2 has no `python3`", id="127: is not there"),
    pytest.param(ended(78), ImageUnusable, "torch:2 has Python", id="78: Python is too old"),
    pytest.param(ended(1), ContainerFailed, r"\(exit code 1: ModuleNotFoundError\)", id="with a log"),
    pytest.param(ended(137, "OOM"), ContainerFailed, r"\(exit code 137, OOM: Module", id="with the engine's word"),
    pytest.param(Missing(), ContainerFailed, "did not start", id="gone"),
    pytest.param(Over(explain=lambda image: JOB_OVER), JobEnded, "time limit", id="its job is over"),
]


@pytest.mark.parametrize(("state", "error", "words"), ENDS)
async def test_a_container_that_has_ended_says_why_when_its_bridge_gives_no_welcome(
    scene: Scene, state: ContainerState, error: type[Exception], words: str | None
) -> None:
    scene.relay.container, scene.relay.log_text = state, "Traceback\nModuleNotFoundError\n"
    scene.relay.answers = [says()]
    with pytest.raises(error, match=words):
        await scene.client.join()
    assert len(scene.relay.lines) == 1, "nothing is tried with what has ended"


@pytest.mark.parametrize(("state", "error", "words"), ENDS)
async def test_a_container_that_has_ended_says_why_when_the_engine_refuses_the_exec(
    scene: Scene, state: ContainerState, error: type[Exception], words: str | None
) -> None:
    scene.relay.container, scene.relay.log_text = state, "Traceback\nModuleNotFoundError\n"
    scene.relay.attach_failures = [NOT_RUNNING]
    with pytest.raises(error, match=words):
        await scene.client.join()


@pytest.mark.parametrize("state", [Running(), Created(error="")])
async def test_a_container_that_has_not_ended_is_no_failure(scene: Scene, state: ContainerState) -> None:
    scene.relay.container = state
    runtime: Any = scene.relay
    await check_running(runtime, scene.address)


async def test_the_last_words_of_a_container_are_cut_and_may_be_missing(scene: Scene) -> None:
    runtime: Any = scene.relay
    scene.relay.container, scene.relay.log_text = ended(1), "first\n" + 500 * "x"
    with pytest.raises(ContainerFailed, match=r"\(exit code 1: x{200}\)"):
        await check_running(runtime, scene.address)

    async def no_log(tail: int) -> str:
        raise NOT_RUNNING

    scene.relay.logs = no_log  # type: ignore[method-assign]
    with pytest.raises(ContainerFailed, match=r"\(it ended with exit code 1\)"):
        await check_running(runtime, scene.address)


# -- what comes and goes


async def test_events_come_in_order_with_the_output_around_them(joined: Scene) -> None:
    joined.relay.say("a", "b", exited(3), "c")
    await turns()
    assert joined.told == ["a", "b", exited(3), "c"]


async def test_an_event_of_a_newer_version_is_passed_over(joined: Scene) -> None:
    packed = frames.pack(frames.Message(frames.EVENT, 1, [b'{"event": "of tomorrow", "launch": 1}']))
    joined.relay.session.add(ORDERED, packed)
    joined.relay.say("after")
    await turns()
    assert joined.told == ["after"]


async def test_a_message_in_pieces_is_handed_on_whole(joined: Scene) -> None:
    long = "x" * (3 * frames.FRAME_BYTES)
    joined.relay.say(long, "short")
    await asyncio.sleep(1)
    assert joined.told == [long, "short"]


async def test_requests_and_orders_arrive_each_in_its_lane(joined: Scene) -> None:
    joined.ask("1", "2")
    joined.ask("input", channel=STDIN)
    joined.client.command({"do": "signal", "number": 2, "launch": 4})
    await turns()
    assert joined.relay.requests == ["1", "2", "input"]
    assert joined.relay.orders == [{"do": "signal", "number": 2, "launch": 4}]
    assert joined.relay.session.received == [2, 2]
    assert frames.LANE_OF[STDIN] == QUICK


async def test_what_came_is_acknowledged_soon_after(joined: Scene) -> None:
    joined.relay.say("a", "b")
    await asyncio.sleep(0.2)
    assert joined.relay.acknowledged == [], "not each message by itself"
    await asyncio.sleep(0.1)
    assert joined.relay.acknowledged == [(0, 2)]
    assert joined.relay.session.is_delivered
    await asyncio.sleep(2.0 - 0.3)
    assert joined.relay.acknowledged == [(0, 2)] * 2, "a sign of life: what it keeps, it may forget"
    await asyncio.sleep(60)
    assert joined.relay.acknowledged == [(0, 2)] * 2, "nothing is said of it a third time"


async def test_while_clients_take_nothing_output_is_not_acknowledged_and_what_is_quick_is(joined: Scene) -> None:
    joined.acknowledged_lanes = (frames.QUICK,)
    joined.relay.say("a", "b")
    joined.relay.say("an input request", channel=STDIN)
    # Between two pings: what answers them wakes the client too.
    await asyncio.sleep(11)
    assert joined.told == ["a", "b", "an input request"], "clients are asked to wait elsewhere: proxy.py"
    assert {ordered for _, ordered in joined.relay.acknowledged} == {0}
    assert joined.relay.acknowledged[-1] == (1, 0)
    said = len(joined.relay.acknowledged)
    joined.acknowledged_lanes = frames.LANES
    await asyncio.sleep(0.6)
    assert joined.relay.acknowledged[said:] == [(1, 2)]


async def test_requests_go_out_while_clients_take_nothing(joined: Scene) -> None:
    joined.acknowledged_lanes = (frames.QUICK,)
    joined.ask("interrupt me")
    await turns()
    assert joined.relay.requests == ["interrupt me"]


# -- staying joined


async def test_after_a_cut_all_that_was_lost_goes_out_again_and_arrives_once(joined: Scene) -> None:
    joined.ask("1")
    joined.relay.say("a")
    await turns()
    joined.relay.is_deaf = True
    joined.ask("2")
    joined.relay.say("b")
    joined.away = LOGIN_REFUSED
    joined.relay.line.cut()
    await turns()
    assert joined.kinds == ["a", "LinkLost", "LoginRefused"]
    joined.away, joined.relay.is_deaf = None, False
    joined.ask("3")
    joined.relay.say("c")
    await asyncio.sleep(5)
    assert [one for one in joined.told[3:] if one != "joined"] == ["b", "c"]
    assert joined.client.is_joined
    assert joined.relay.requests == ["1", "2", "3"]
    assert list(joined.relay.hellos[-1].received) == [0, 1]


async def test_an_acknowledgement_that_a_cut_took_is_said_again(joined: Scene) -> None:
    joined.relay.say("a")
    await turns()
    joined.relay.is_deaf = True
    await asyncio.sleep(1)
    assert joined.relay.acknowledged == []
    joined.relay.is_deaf = False
    joined.relay.line.cut()
    await asyncio.sleep(5)
    assert set(joined.relay.acknowledged) == {(0, 1)}


async def test_requests_for_a_kernel_process_that_is_no_more_are_forgotten_while_apart(joined: Scene) -> None:
    joined.away = REFUSED
    joined.relay.line.cut()
    await turns()
    joined.ask("of the old one")
    joined.client.drop_waiting()
    joined.ask("of the new one")
    joined.away = None
    await asyncio.sleep(5)
    assert joined.relay.requests == ["of the new one"]


async def test_a_line_is_pinged_at_moments_that_all_lines_share(scene: Scene) -> None:
    scene.clock.skip(2)
    await scene.client.join()
    await asyncio.sleep(60)
    assert len(scene.relay.pinged_at) == 60 / PING_SECONDS
    assert [at % PING_SECONDS for at in scene.relay.pinged_at] == pytest.approx([0.0] * 12, abs=0.01)
    assert scene.told == ["joined"]


async def test_a_line_without_a_word_for_so_long_is_given_up_and_joined_again(joined: Scene) -> None:
    began = joined.clock.now
    joined.relay.is_deaf = True
    await wait_for(joined, "LinkLost")
    assert joined.clock.now - began == pytest.approx(SILENCE_SECONDS, abs=0.1)
    assert joined.relay.lines[0].is_closed
    joined.relay.is_deaf = False
    await wait_for(joined, "joined")
    assert joined.relay.pinged_at == []


async def test_a_paused_container_is_told_within_seconds_and_again_and_its_line_is_kept(joined: Scene) -> None:
    began = joined.clock.now
    joined.relay.is_deaf, joined.relay.container = True, Running(is_paused=True)
    await wait_for(joined, "paused")
    assert joined.clock.now - began <= PING_SECONDS + DOUBT_SECONDS + 0.1
    await asyncio.sleep(60)
    assert set(joined.told) == {"paused"}
    assert joined.told.count("paused") == pytest.approx(60 / PING_SECONDS, abs=2)
    joined.relay.is_deaf, joined.relay.container = False, Running()
    await wait_for(joined, "goes on")
    await asyncio.sleep(60)
    assert (joined.told[-1], len(joined.relay.lines)) == ("goes on", 1)


async def test_a_container_that_is_found_paused_is_not_joined_until_it_goes_on(joined: Scene) -> None:
    joined.relay.container = Running(is_paused=True)
    joined.relay.line.cut()
    await asyncio.sleep(10)
    assert len(joined.relay.lines) == 1
    assert joined.kinds[:2] == ["LinkLost", "paused"]
    joined.relay.container = Running()
    await wait_for(joined, "joined")


async def test_a_silent_host_is_asked_whether_the_container_is_paused_and_not_waited_for(joined: Scene) -> None:
    asked: list[float] = []

    async def never() -> ContainerState:
        asked.append(joined.clock.now)
        await asyncio.sleep(3600 if len(asked) == 1 else 0)
        return Running()

    joined.relay.is_deaf = True
    joined.relay.state = never  # type: ignore[method-assign]
    began = joined.clock.now
    await wait_for(joined, "LinkLost")
    assert joined.clock.now - began == pytest.approx(SILENCE_SECONDS, abs=0.1)
    assert asked[0] - began <= PING_SECONDS + DOUBT_SECONDS


async def test_a_machine_that_slept_gives_its_line_up_as_soon_as_it_wakes(joined: Scene) -> None:
    joined.clock.skip(3600)
    await asyncio.sleep(1)
    assert joined.kinds == ["LinkLost", "joined"]


@pytest.mark.parametrize(
    "state", [ended(0), Missing(), Over(explain=lambda image: JOB_OVER)], ids=lambda state: type(state).__name__
)
async def test_a_container_that_has_ended_is_told_once_and_nothing_is_tried_any_more(
    joined: Scene, state: ContainerState
) -> None:
    joined.relay.container = state
    joined.relay.line.cut()
    await asyncio.sleep(60)
    assert joined.told[1:] == [state]
    assert len(joined.relay.lines) == 1


async def test_a_host_that_cannot_be_reached_is_tried_often_and_its_failure_told_each_time(joined: Scene) -> None:
    joined.away = REFUSED
    joined.reached_at.clear()
    joined.relay.line.cut()
    await asyncio.sleep(60)
    assert joined.kinds == ["LinkLost", *["HostRefused"] * len(joined.reached_at)]
    assert set(joined.may_pass) == {True}
    assert len(joined.reached_at) >= 30


async def test_a_refused_login_is_tried_rarely_and_at_once_when_somebody_waits(joined: Scene) -> None:
    joined.away = LOGIN_REFUSED
    joined.reached_at.clear()
    joined.relay.line.cut()
    await asyncio.sleep(2.5 * UNHOPEFUL_SECONDS)
    assert len(joined.reached_at) == 3
    assert set(joined.may_pass) == {False}, "somebody has to do something"
    joined.away = None
    joined.ask("is anybody there")
    await asyncio.sleep(0.1)
    assert joined.client.is_joined
    assert joined.relay.requests == ["is anybody there"]


async def test_who_calls_while_a_try_is_under_way_has_another_at_once(joined: Scene) -> None:
    joined.away = LOGIN_REFUSED
    joined.relay.line.cut()
    await asyncio.sleep(1)
    joined.reached_at.clear()
    # The listener is called within a try.
    failed = joined.kinds.count("LoginRefused")
    joined.client.hurry()
    await asyncio.sleep(1)
    assert joined.kinds.count("LoginRefused") == failed + 1
    joined.away = None
    joined.client.hurry()
    await asyncio.sleep(1)
    assert joined.client.is_joined


async def test_a_relay_that_was_taken_over_is_left_and_nothing_is_tried_any_more(joined: Scene) -> None:
    joined.relay.line.say(Busy("taken", who="bob@desk", held_seconds=0.0).frame())
    joined.relay.line.cut()
    await asyncio.sleep(60)
    assert joined.kinds == ["KernelHeld"]
    assert joined.told[0].who == "bob@desk"
    assert len(joined.relay.lines) == 1
    assert not joined.client.is_joined


async def test_a_relay_that_another_took_while_the_link_was_lost_is_left_to_it(joined: Scene) -> None:
    joined.relay.answers = [refusing("held", who="bob@desk", held_seconds=3.0)]
    joined.relay.line.cut()
    await asyncio.sleep(60)
    assert joined.kinds == ["LinkLost", "KernelHeld"]
    assert len(joined.relay.hellos) == 2


async def test_a_relay_that_was_taken_over_while_the_link_was_lost_says_so_and_is_left_at_once(joined: Scene) -> None:
    joined.relay.answers = [refusing("taken", who="bob@desk")] * 2
    joined.relay.line.cut()
    await asyncio.sleep(60)
    assert joined.kinds == ["LinkLost", "KernelHeld"]
    assert joined.told[-1].who == "bob@desk"
    assert len(joined.relay.hellos) == 2


# Of a process of this machine that has ended, and of another machine's.
ENDED, ELSEWHERE = "m:1@0.00:x", "m:1@0.00:x~a.b.c.d.1"


async def test_a_relay_that_has_not_noticed_yet_that_its_owner_has_ended_is_waited_for(scene: Scene) -> None:
    scene.relay.answers = [refusing("held", who="ada@laptop", owner=ENDED, held_seconds=3.0)] * 4
    scene.client.keep_joining()
    await asyncio.sleep(SILENCE_SECONDS)
    assert scene.kinds == ["joined"]
    assert len(scene.relay.hellos) == 5
    # It never takes it: nobody knows better than the relay whom it hears.
    assert not any(hello.take for hello in scene.relay.hellos)


async def test_a_relay_that_says_for_long_that_it_is_held_is_believed(scene: Scene) -> None:
    scene.relay.answers = [refusing("held", who="ada@laptop", owner=ENDED, held_seconds=3.0)] * 1000
    scene.client.keep_joining()
    await asyncio.sleep(LET_GO_SECONDS / 2)
    assert scene.kinds == []
    await asyncio.sleep(LET_GO_SECONDS)
    assert scene.kinds == ["KernelHeld"]


async def test_a_relay_that_another_machine_holds_is_left_to_it_at_once(scene: Scene) -> None:
    scene.relay.answers = [refusing("held", who="ada@desk", owner=ELSEWHERE, held_seconds=3.0)] * 1000
    scene.client.keep_joining()
    await asyncio.sleep(2)
    assert scene.kinds == ["KernelHeld"]
    assert len(scene.relay.hellos) == 1


def answering(**facts: Any) -> Any:
    """What a relay says of itself to whoever asks."""
    return lambda line: line.say(frames.frame(frames.ANSWER, json.dumps(status(**facts).to_dict()).encode()))


OTHER = "other kernel or version"


@pytest.mark.parametrize(
    ("version", "answers", "sentence", "remedy"),
    [
        # The first release's says no version when it refuses, and no release when it is asked.
        pytest.param(3, [refusing(OTHER), answering(version=2)], "kernelbridge 0.1.0;", "install kernelbridge==0.1.0`"),
        pytest.param(
            2, [refusing(OTHER), answering(version=3, release="0.9")], "a newer kernelbridge;", "install --upgrade"
        ),
        pytest.param(
            2, [refusing(OTHER, version=3, release="0.9.1")], "kernelbridge 0.9.1;", "install kernelbridge==0.9.1`"
        ),
        pytest.param(2, [refusing(OTHER, version=3)], "a newer kernelbridge;", "install --upgrade kernelbridge`"),
        pytest.param(2, [refusing(OTHER, version=1)], "an older kernelbridge;", "install --upgrade kernelbridge`"),
    ],
)
async def test_a_relay_of_another_version_is_left_at_once_with_the_version_that_joins_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, version: int, answers: list[Any], sentence: str, remedy: str
) -> None:
    monkeypatch.setattr(frames, "VERSION", version)
    scene.relay.answers = answers
    scene.client.keep_joining()
    await asyncio.sleep(60)
    (error,) = scene.told
    assert isinstance(error, KernelOfOtherVersion)
    assert f"was made by {sentence}" in error.sentence
    assert remedy in error.remedy
    assert not answers


@pytest.mark.parametrize("answer", [answering(version=2), says(frames.frame(frames.ANSWER, b"{}"))])
async def test_a_relay_that_refuses_and_is_not_known_to_be_of_another_version_is_asked_again(
    scene: Scene, answer: Any
) -> None:
    scene.relay.answers = [refusing(OTHER), answer]
    scene.client.keep_joining()
    await asyncio.sleep(5)
    assert scene.kinds == ["ContainerFailed", "joined"]


async def test_a_relay_that_refuses_for_another_reason_is_asked_again(joined: Scene) -> None:
    joined.relay.answers = [refusing("version 3")]
    joined.relay.line.cut()
    await asyncio.sleep(10)
    assert joined.kinds == ["LinkLost", "ContainerFailed", "joined"]


async def test_a_relay_that_began_anew_for_another_process_is_that_ones(joined: Scene) -> None:
    joined.ask("1")
    joined.relay.session.acknowledge_at = 0.0
    joined.relay.flush()
    await turns()
    # As one of release 0.1.0 does it: it lets in who comes back, and its numbers are new.
    joined.relay.session.hand_over()
    joined.relay.line.cut()
    await asyncio.sleep(5)
    assert joined.kinds == ["LinkLost", "KernelHeld"]
    assert joined.relay.lines[-1].is_closed
    await asyncio.sleep(60)
    assert len(joined.relay.hellos) == 2


async def test_another_relay_under_the_same_name_is_refused(joined: Scene) -> None:
    joined.relay.epoch = "epoch 2"
    joined.relay.line.cut()
    await asyncio.sleep(10)
    assert set(joined.kinds) == {"LinkLost", "ContainerFailed"}
    assert "another relay runs in it now" in str(joined.told[1])
    assert all(line.is_closed for line in joined.relay.lines)
    assert not joined.client.is_joined


# -- leaving


async def test_a_goodbye_that_is_heard_ends_the_line_with_all_acknowledged(joined: Scene) -> None:
    joined.relay.say("a")
    await turns()
    assert await joined.client.goodbye(end=True, claim="later")
    assert joined.relay.goodbyes == [Goodbye(end=True, claim="later")]
    assert joined.relay.acknowledged == [(0, 1)]
    assert joined.relay.line.is_closed
    assert not joined.client.is_joined


async def test_what_was_not_handed_on_is_not_acknowledged_by_a_goodbye(joined: Scene) -> None:
    joined.relay.say("a")
    await turns()
    assert await joined.client.goodbye(end=False, acknowledge=False)
    assert joined.relay.goodbyes == [Goodbye(end=False, lacks=True)]
    assert {ordered for _, ordered in joined.relay.acknowledged} <= {0}


async def test_who_has_said_goodbye_does_not_come_back_where_its_line_ends(joined: Scene) -> None:
    joined.relay.is_rude = True
    leaving = asyncio.create_task(joined.client.goodbye(end=False))
    await turns()
    joined.relay.line.cut()
    await asyncio.sleep(GOODBYE_ACK_SECONDS / 2)
    assert not await leaving
    assert len(joined.relay.hellos) == 1


async def test_a_goodbye_sends_what_waits_before_it(joined: Scene) -> None:
    joined.ask("last")
    await joined.client.goodbye(end=False)
    assert joined.relay.requests == ["last"]
    kinds = joined.relay.line.kinds
    assert kinds.index(frames.DATA) < kinds.index(frames.GOODBYE)


async def test_a_goodbye_that_is_not_heard_is_given_up_soon(joined: Scene) -> None:
    joined.relay.is_rude = True
    began = joined.clock.now
    assert not await joined.client.goodbye(end=True)
    assert joined.clock.now - began == pytest.approx(GOODBYE_ACK_SECONDS)
    assert joined.relay.line.is_closed


async def test_a_goodbye_without_a_line_is_not_heard_and_ends_the_tries(joined: Scene) -> None:
    joined.away = REFUSED
    joined.relay.line.cut()
    await asyncio.sleep(3)
    assert not await joined.client.goodbye(end=True)
    tries = len(joined.reached_at)
    await asyncio.sleep(60)
    assert len(joined.reached_at) == tries
    assert joined.relay.goodbyes == []


async def test_who_takes_no_more_leaves_all_that_comes_to_the_next_one(joined: Scene) -> None:
    joined.relay.say("a")
    await turns()
    joined.client.stop_receiving()
    joined.relay.say("b", exited(3))
    await asyncio.sleep(5)
    assert joined.told == ["a"]
    assert set(joined.relay.acknowledged) == {(0, 1)}


# -- relays that say what cannot be understood


def welcome(**changed: Any) -> Any:
    """An answer: a WELCOME with these values in place of its own; one that is None is left out."""

    def answer(line: Line) -> None:
        said = {**Welcome(made_events.status(), [0, 0], "epoch 1").to_dict(), **changed}
        said = {key: value for key, value in said.items() if value != "left out"}
        line.say(frames.frame(frames.WELCOME, json.dumps(said).encode()))

    return answer


MALFORMED = [
    pytest.param(lambda line: line.say(frames.frame(frames.WELCOME, b"[1]")), id="a list"),
    pytest.param(lambda line: line.say(frames.frame(frames.WELCOME, b"{")), id="no JSON"),
    pytest.param(lambda line: line.say(frames.frame(frames.WELCOME, b"[" * 100_000)), id="too deep"),
    pytest.param(lambda line: line.say(frames.frame(frames.WELCOME)), id="nothing"),
    pytest.param(welcome(received="left out"), id="received is missing"),
    pytest.param(welcome(received="12"), id="received is text"),
    pytest.param(welcome(received=[1]), id="received is short"),
    pytest.param(welcome(gpus=None, launch=None), id="launch is none"),
    pytest.param(welcome(gpus={"ids": None}), id="gpus are none"),
    pytest.param(welcome(epoch=5), id="epoch is a number"),
    pytest.param(welcome(deadline={"seconds": "x"}), id="deadline is text"),
]


@pytest.mark.parametrize("answer", MALFORMED)
async def test_a_malformed_welcome_fails_a_start_with_a_sentence(scene: Scene, answer: Any) -> None:
    scene.relay.answers = [answer]
    with pytest.raises(ContainerFailed, match="what its relay says cannot be understood"):
        await scene.client.join()
    assert scene.relay.line.is_closed
    assert not scene.client.is_joined


@pytest.mark.parametrize("answer", MALFORMED)
async def test_a_malformed_welcome_is_told_and_joined_again_and_closing_does_not_raise(
    joined: Scene, answer: Any
) -> None:
    joined.relay.answers = [answer]
    joined.relay.line.cut()
    await asyncio.sleep(10)
    assert joined.kinds == ["LinkLost", "ContainerFailed", "joined"]
    await joined.client.aclose()


async def test_an_answer_that_is_no_refusal_is_as_good_as_none(scene: Scene) -> None:
    scene.relay.answers = [lambda line: line.say(frames.frame(frames.BUSY, b"[]"))]
    await scene.client.join()
    assert scene.client.is_joined


@pytest.mark.parametrize(
    "said",
    [b"", b"x", b"[]", b'{"event": 5}', b'{"event": "ready"}', b'{"event": "exited", "launch": "1"}', b"[" * 100_000],
)
async def test_an_event_that_cannot_be_understood_costs_itself_alone(joined: Scene, said: bytes) -> None:
    for parts in ([said], []):
        joined.relay.session.add(ORDERED, frames.pack(frames.Message(frames.EVENT, 1, parts)))
    joined.relay.session.add(ORDERED, bytes([frames.EVENT]))
    joined.relay.say("after")
    await turns()
    assert joined.told == ["after"]


async def test_a_hole_in_the_numbers_gives_the_line_up_and_hands_on_what_came_before_it(joined: Scene) -> None:
    joined.relay.say("a")
    await turns()
    packed = output("c")
    joined.relay.line.say(
        frames.head(frames.DATA, len(output("b")), ORDERED, 2) + output("b"),
        frames.head(frames.DATA, len(packed), ORDERED, 9) + packed,
    )
    await turns()
    assert joined.kinds[:3] == ["a", "b", "LinkLost"]
    assert joined.relay.lines[0].is_closed


async def test_output_in_one_piece_with_the_welcome_comes_after_it(joined: Scene) -> None:
    def at_once(line: Line) -> None:
        packed = output("b")
        line.say(
            Welcome(made_events.status(), [0, 0], "epoch 1").frame(),
            frames.head(frames.DATA, len(packed), ORDERED, 1) + packed,
        )

    joined.relay.answers = [at_once]
    joined.relay.line.cut()
    await asyncio.sleep(5)
    assert joined.kinds == ["LinkLost", "joined", "b"]


async def test_nothing_counts_that_a_refused_relay_says_with_its_welcome(joined: Scene) -> None:
    def of_another(line: Line) -> None:
        packed = output("b")
        line.say(
            Welcome(made_events.status(), [0, 0], "epoch 2").frame(),
            frames.head(frames.DATA, len(packed), ORDERED, 1) + packed,
            frames.acknowledgement(7, 7),
        )

    joined.relay.answers = [of_another] * 1000
    joined.relay.line.cut()
    turned_at = time.process_time()
    await asyncio.sleep(60)
    assert set(joined.kinds) == {"LinkLost", "ContainerFailed"}
    assert list(joined.relay.hellos[-1].received) == [0, 0]
    assert time.process_time() - turned_at < 10, "no timer spins"


async def test_data_before_a_welcome_is_not_taken(scene: Scene) -> None:
    def early(line: Line) -> None:
        packed = output("early")
        line.say(frames.head(frames.DATA, len(packed), ORDERED, 1) + packed)
        scene.relay.welcome(line)

    scene.relay.answers = [early]
    await scene.client.join()
    await turns()
    assert scene.told == ["joined"]


async def test_a_relay_that_is_welcomed_and_says_nonsense_is_joined_less_and_less_often(joined: Scene) -> None:
    def nonsense(line: Line) -> None:
        joined.relay.welcome(line)
        line.say(frames.frame(frames.ACK, b"short"))

    joined.relay.answers = [nonsense] * 1000
    joined.relay.line.cut()
    await asyncio.sleep(12)
    assert 3 <= len(joined.relay.lines) <= 20
    joined.relay.answers = []
    await asyncio.sleep(60)
    seen = len(joined.relay.lines)
    joined.relay.line.cut()
    await asyncio.sleep(1)
    assert len(joined.relay.lines) == seen + 1, "a line that lasted is joined again at once"


async def test_a_bug_of_ours_ends_the_stream_with_a_sentence_and_closing_does_not_raise(joined: Scene) -> None:
    async def broken() -> ContainerState:
        raise RuntimeError("of a test")

    joined.relay.state = broken  # type: ignore[method-assign]
    joined.relay.line.cut()
    await asyncio.sleep(5)
    over = joined.told[-1]
    assert isinstance(over, Over)
    assert "kernelbridge has a bug here: RuntimeError: of a test" in str(over)
    await joined.client.aclose()


async def test_a_message_without_end_ends_the_stream_with_a_sentence(
    joined: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PACKED_BYTES", 100_000)
    joined.relay.say("x" * 200_000, "after")
    await asyncio.sleep(5)
    assert "what its relay sends has no end" in str(joined.told[-1])
    assert len(joined.relay.lines) == 1


@pytest.mark.parametrize("kind", [frames.PONG, frames.ACK, frames.PING, 77])
async def test_a_flood_of_frames_without_a_message_costs_the_line(joined: Scene, kind: int) -> None:
    flood = (frames.acknowledgement(0, 0) if kind == frames.ACK else frames.frame(kind)) * 5000
    joined.relay.line.say(flood)
    await turns()
    assert joined.kinds[0] == "LinkLost"
    assert joined.relay.lines[0].is_closed


async def test_a_flood_of_events_costs_the_line(joined: Scene) -> None:
    event = frames.pack(frames.Message(frames.EVENT, 1, [b"{}"]))
    joined.relay.line.say(*(frames.head(frames.DATA, len(event), ORDERED, number) + event for number in range(1, 5000)))
    await turns()
    assert joined.kinds[0] == "LinkLost"
    assert joined.relay.lines[0].is_closed


async def test_a_flood_beyond_any_window_costs_the_line_until_clients_take_something(joined: Scene) -> None:
    joined.acknowledged_lanes = (QUICK,)
    text = output("x" * 60_000)
    joined.relay.line.say(*(frames.head(frames.DATA, len(text), ORDERED, n) + text for n in range(1, 1000)))
    await turns()
    assert "LinkLost" in joined.kinds
    assert joined.relay.lines[0].is_closed
    taken = joined.told.count("x" * 60_000)
    assert 32 < taken * 60_000 / (1 << 20) < 33
    joined.acknowledged_lanes = frames.LANES
    await asyncio.sleep(60)
    assert joined.relay.acknowledged[-1] == (0, taken)


async def test_signs_of_life_at_their_pace_cost_nothing(joined: Scene) -> None:
    for _ in range(30):
        joined.relay.line.say(frames.acknowledgement(0, 0) * 200)
        await asyncio.sleep(1)
    assert joined.told == []


async def test_a_relay_that_is_stopped_is_told_with_what_to_do_and_asked_rarely(joined: Scene) -> None:
    joined.relay.answers = [lambda line: None] * 1000
    joined.relay.line.cut()
    await asyncio.sleep(6 * HELLO_SECONDS + 10)
    told = joined.told[-1]
    assert "the container runs, but its relay does not answer" in str(told)
    assert "`kernelbridge stop aaaa1111-000`" in str(told)
    assert joined.client.is_silent
    joined.away = HostUnreachable(host="lab", address="lab:22", reason="no route")
    await asyncio.sleep(6 * HELLO_SECONDS + UNHOPEFUL_SECONDS)
    assert not joined.client.is_silent, "nobody knows what its container does"
    joined.away = None
    await asyncio.sleep(6 * HELLO_SECONDS + UNHOPEFUL_SECONDS)
    assert joined.client.is_silent
    seen = len(joined.relay.lines)
    await asyncio.sleep(240)
    assert len(joined.relay.lines) - seen <= 240 / HELLO_SECONDS
    joined.relay.answers = []
    await asyncio.sleep(6 * HELLO_SECONDS + UNHOPEFUL_SECONDS)
    assert joined.client.is_joined
    assert not joined.client.is_silent


async def test_a_job_that_slurm_shows_for_a_while_after_its_end_is_no_stopped_relay(joined: Scene) -> None:
    """Its bridges end without a word, and for seconds nobody knows why."""
    joined.relay.answers = [lambda line: line.cut()] * 1000
    joined.relay.line.cut()
    await asyncio.sleep(SILENT_RELAY_SECONDS - 3)
    assert "ContainerFailed" in joined.kinds
    assert set(joined.may_pass) == {True}
    joined.relay.container = Over(explain=lambda image: JOB_OVER)
    await asyncio.sleep(3)
    assert isinstance(joined.told[-1], Over)


async def test_a_relay_that_never_let_us_in_may_be_anothers(scene: Scene) -> None:
    scene.relay.answers = [lambda line: None] * 1000
    scene.client.keep_joining()
    await asyncio.sleep(7 * HELLO_SECONDS)
    assert "its relay does not answer" in str(scene.told[-1])
    assert not scene.client.is_silent
