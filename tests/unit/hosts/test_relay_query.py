"""hosts/relay_query.py: one question to a relay, its answer or its silence, and a stream that is always closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from kernelbridge.config.schema import Environment
from kernelbridge.errors import ContainerFailed, EngineFailed
from kernelbridge.hosts.relay_query import HELLO_SECONDS, RelayAddress, ask_log, ask_status, relay_address
from kernelbridge.protocol import frames
from kernelbridge.protocol.handshake import Busy, GpuStatus, Hello
from tests.made_clock import MadeClock
from tests.made_engines import LAB, MINE
from tests.made_events import status

TORCH = Environment(name="torch", image="torch:2", python="/opt/python")
STATUS = status(state="busy", ready=True, gpus=GpuStatus(ids=["GPU-0"], seen=["GPU-0"]))


class Relay:
    """What a container runs; `answer` gets what is to be called with the bytes that it says, and how it ends."""

    def __init__(self, answer: Callable[[Any], None] = lambda heard: None) -> None:
        self._answer = answer
        self._heard: Any = None
        self._decoder = frames.Decoder()
        self.hellos: list[Hello] = []
        self.closed = 0
        self.failure: Exception | None = None

    async def attach(self, receiver: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        self._heard = receiver
        return self

    def write(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            assert frame.kind == frames.HELLO
            self.hellos.append(Hello.from_dict(json.loads(bytes(frame.payload))))
            self._answer(self._heard)

    def close(self) -> None:
        self.closed += 1
        self._heard.closed(None)

    @property
    def address(self) -> RelayAddress:
        async def workload() -> Any:
            return self

        return RelayAddress(
            kernel=MINE, host="lab", image="torch:2", python="python3", workload=workload, rest=asyncio.sleep
        )


def answer(said: Any) -> bytes:
    return frames.frame(frames.ANSWER, json.dumps(said).encode())


def saying(*pieces: bytes) -> Callable[[Any], None]:
    def say(heard: Any) -> None:
        for piece in pieces:
            heard.data_received(piece)

    return say


async def test_a_relay_says_how_it_and_its_kernel_do() -> None:
    relay = Relay(saying(answer(STATUS.to_dict())))
    assert await ask_status(relay.address) == STATUS
    (hello,) = relay.hellos
    assert (hello.kernel, hello.ask, hello.owner) == (MINE, "status", ""), "who asks is nobody's owner"
    assert hello.only_asks
    assert relay.closed == 1


async def test_a_relay_says_what_its_kernel_process_wrote() -> None:
    relay = Relay(saying(answer({"text": "Traceback\n"})))
    assert await ask_log(relay.address) == "Traceback\n"
    assert relay.hellos[0].ask == "logs"
    assert relay.closed == 1


async def test_an_answer_may_come_in_pieces_behind_what_is_not_asked_for_and_only_the_first_counts() -> None:
    first, second = answer({"text": "first"}), answer({"text": "second"})
    relay = Relay(saying(frames.frame(frames.PONG) + first[:5], first[5:] + second, second))
    assert await ask_log(relay.address) == "first"


async def test_a_relay_that_does_not_answer_is_given_up(clock: MadeClock) -> None:
    relay, began = Relay(), clock.now
    with pytest.raises(ContainerFailed, match=r"^lab: .*torch:2.*\(the relay does not answer\)"):
        await ask_status(relay.address)
    assert clock.now - began == pytest.approx(HELLO_SECONDS)
    assert relay.closed == 1


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda heard: heard.closed(None), id="its bridge ended"),
        pytest.param(lambda heard: heard.closed(OSError("cut")), id="the line broke"),
        pytest.param(saying(b"OCI runtime exec failed: exec failed"), id="the engine's words"),
        pytest.param(saying(b"OCI runtime exec failed", answer({"text": "late"})), id="more after the engine's words"),
    ],
)
async def test_a_bridge_that_ended_without_an_answer_is_given_up_at_once(
    clock: MadeClock, end: Callable[[Any], None]
) -> None:
    relay, began = Relay(end), clock.now
    with pytest.raises(ContainerFailed, match="the relay does not answer"):
        await ask_log(relay.address)
    assert clock.now == began
    assert relay.closed == 1


async def test_who_asks_and_is_cancelled_closes_the_stream_too() -> None:
    relay = Relay()
    asking = asyncio.create_task(ask_status(relay.address))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert relay.closed == 1


async def test_an_engine_that_refuses_the_exec_is_told_as_it_is() -> None:
    relay = Relay()
    relay.failure = EngineFailed(host="lab", action="exec", reason="it is paused")
    with pytest.raises(EngineFailed, match="it is paused"):
        await ask_status(relay.address)
    assert relay.closed == 0


async def test_the_address_of_a_relay_is_made_of_its_kernel_environment_and_host() -> None:
    asked: list[tuple[str, Environment]] = []

    class Site:
        def workload(self, name: str, environment: Environment) -> str:
            asked.append((name, environment))
            return "the workload"

    async def backend() -> Any:
        return Site()

    address = relay_address(MINE, TORCH, LAB, backend=backend, rest=asyncio.sleep)
    assert (address.kernel, address.host, address.image, address.python) == (MINE, "lab", "torch:2", "/opt/python")
    assert asked == [], "nothing is reached before it is needed"
    assert await address.workload() == "the workload"  # type: ignore[comparison-overlap]
    assert asked == [(f"kernelbridge-{MINE}", TORCH)]


@pytest.mark.parametrize(
    "said",
    [
        *([], {}, None, 7, "x", [1], {"text": 5}, {"state": "idle"}),
        {**STATUS.to_dict(), "deadline": [1]},
        {**STATUS.to_dict(), "undelivered_bytes": "x"},
        {**STATUS.to_dict(), "gpus": {"ids": [[]]}},
        {**STATUS.to_dict(), "outcome": {"code": 1}},
    ],
    ids=str,
)
async def test_an_answer_that_cannot_be_understood_is_the_relays_failure(said: Any) -> None:
    for ask in (ask_status, ask_log):
        with pytest.raises(ContainerFailed, match="what its relay says cannot be understood"):
            await ask(Relay(saying(answer(said))).address)


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 100_000, b'{"text": NaN}'])
async def test_an_answer_that_is_no_json_is_the_relays_failure(payload: bytes) -> None:
    with pytest.raises(ContainerFailed, match="what its relay says cannot be understood"):
        await ask_log(Relay(saying(frames.frame(frames.ANSWER, payload))).address)


async def test_a_question_is_asked_as_the_first_release_asked_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "VERSION", 3)
    relay = Relay(saying(answer(STATUS.to_dict())))
    await ask_status(relay.address)
    assert relay.hellos[0].version == 2


async def test_a_relay_that_does_not_answer_questions_is_not_waited_for() -> None:
    with pytest.raises(ContainerFailed, match="the relay does not answer"):
        await ask_status(Relay(saying(Busy("other kernel or version").frame())).address)
