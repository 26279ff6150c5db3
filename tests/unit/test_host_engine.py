"""The decisions of host/ about streams and the engine: ends, framing, answers, refusals, the ladder."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import pairwise
from typing import Any

import pytest

from kernelbridge import errors, kernel_errors
from kernelbridge.errors import KernelBridgeError
from kernelbridge.host import answers, refusals, route
from kernelbridge.host.facts import SocketFacts
from kernelbridge.host.route import Rung, Transport
from kernelbridge.host.stream import Collector, CommandError, Ending
from kernelbridge.host.upgrade import Demultiplexer, FramingError, HeadReader, UpgradeError, error_message, request
from tests.unit.test_host import host_facts, turns

# -- what a stream owes its receiver


class Broken:
    """A receiver with a bug."""

    def __init__(self) -> None:
        self.ends: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        raise RuntimeError("a bug")

    def closed(self, exc: Exception | None) -> None:
        self.ends.append(exc)


async def test_the_end_is_told_once_and_no_data_comes_after_it() -> None:
    collector = Collector()
    ending = Ending(collector)
    assert ending.hand_on(b"one")
    ending.end(None)
    ending.end(ValueError("late"))
    assert ending.hand_on(b"two")
    await collector.wait_ended()
    assert (bytes(collector.received), collector.failure) == (b"one", None)


async def test_a_receiver_with_a_bug_ends_its_own_stream_only() -> None:
    broken = Broken()
    ending = Ending(broken)
    assert not ending.hand_on(b"x")
    assert ending.has_ended
    await turns()
    assert [type(exc) for exc in broken.ends] == [RuntimeError]


async def test_who_waits_for_a_short_queue_is_let_go_at_the_end() -> None:
    ending = Ending(Collector())
    ending.pause_writing()
    waiting = asyncio.create_task(ending.wait_writable())
    await turns()
    assert not waiting.done()
    ending.end(None)
    await asyncio.wait_for(waiting, 5)


# -- the engine's framing


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def test_framing_is_taken_off_however_the_bytes_are_cut() -> None:
    dice = random.Random(7)
    payloads = [(dice.choice([1, 1, 1, 2]), dice.randbytes(dice.choice([0, 1, 7, 8, 9, 5000]))) for _ in range(60)]
    wire = b"".join(frame(kind, payload) for kind, payload in payloads)
    for _ in range(50):
        cuts = sorted(dice.sample(range(1, len(wire)), dice.randint(0, 200)))
        frames, out, err = Demultiplexer(), b"", b""
        for begin, end in pairwise([0, *cuts, len(wire)]):
            stdout, stderr = frames.feed(wire[begin:end])
            out, err = out + stdout, err + stderr
        assert out == b"".join(payload for kind, payload in payloads if kind == 1)
        assert err == b"".join(payload for kind, payload in payloads if kind == 2)


def test_a_chunk_inside_one_frame_is_not_copied() -> None:
    frames = Demultiplexer()
    frames.feed(frame(1, bytes(1 << 20))[: 1 << 10])
    chunk = bytes(1 << 16)
    assert frames.feed(chunk)[0] is chunk


def test_the_engines_own_words_are_not_taken_for_output() -> None:
    with pytest.raises(FramingError, match="exec failed"):
        Demultiplexer().feed(b"OCI runtime exec failed: ...")
    with pytest.raises(FramingError, match="no such file"):
        Demultiplexer().feed(frame(1, b"OCI runtime exec failed: no such file"))
    later = Demultiplexer()
    later.feed(frame(1, b"x"))
    assert later.feed(frame(1, b"OCI runtime exec failed"))[0] == b"OCI runtime exec failed"


def test_an_upgrade_is_read_in_any_pieces() -> None:
    answer = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nUpgrade: tcp\r\n\r\nrest"
    reader = HeadReader()
    heads = [head for head in (reader.feed(bytes([byte])) for byte in answer[:-4]) if head is not None]
    assert [(head.status, head.is_upgraded, head.rest) for head in heads] == [(101, True, b"")]
    whole = HeadReader().feed(answer)
    assert whole is not None
    assert whole.rest == b"rest"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"x" * 70_000])
def test_an_answer_that_is_no_http_is_refused(answer: bytes) -> None:
    with pytest.raises(UpgradeError, match="no HTTP"):
        HeadReader().feed(answer)


def test_an_error_answer_gives_its_sentence() -> None:
    assert error_message(b'{"message":"No such container: x"}\n') == "No such container: x"
    assert error_message(b'1f\r\n{"message":"is not running"}\r\n0\r\n\r\n') == "is not running"
    assert error_message(b"plain words") == "plain words"


def test_an_upgrade_asks_for_what_it_says() -> None:
    head, _, body = request("/v1.41/exec/abc/start", {"Tty": False}).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1.41/exec/abc/start HTTP/1.1\r\n")
    assert b"Upgrade: tcp" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"Tty": False}


# -- the engine's answers


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"Status": "created", "ExitCode": 127, "Error": "no"}, answers.Created(error="no")),
        ({"Status": "running", "StartedAt": "T"}, answers.Running(is_paused=False, started_at="T")),
        ({"Status": "paused", "Paused": True, "StartedAt": "T"}, answers.Running(is_paused=True, started_at="T")),
        (
            {"Status": "exited", "ExitCode": 137, "OOMKilled": True, "Error": "", "FinishedAt": "T"},
            answers.Exited(code=137, oom_killed=True, error="", finished_at="T"),
        ),
        ({"Status": "dead"}, answers.Exited(code=0, oom_killed=False, error="", finished_at="")),
    ],
)
def test_a_container_is_created_running_or_exited(state: dict[str, Any], expected: answers.ContainerState) -> None:
    assert answers.parse_state({"State": state}) == expected


def test_an_image_may_have_no_config_at_all() -> None:
    bare = answers.parse_image({"Id": "sha256:1", "Config": None})
    assert (bare.env, bare.user, bare.labels, bare.entrypoint) == ({}, "", {}, ())
    full = answers.parse_image({"Id": "sha256:2", "Config": {"Env": ["A=b=c", "EMPTY="], "Entrypoint": ["tini"]}})
    assert (full.env, full.entrypoint) == ({"A": "b=c", "EMPTY": ""}, ("tini",))


def test_a_listed_container_may_have_no_labels() -> None:
    row = answers.parse_container({"Id": "1", "Names": ["/kb-1"], "Labels": None, "State": "exited", "Created": 5})
    assert (row.name, row.labels, row.state, row.created) == ("kb-1", {}, "exited", 5.0)


def test_podman_is_known_by_its_components() -> None:
    assert answers.is_podman({"Components": [{"Name": "Podman Engine"}]})
    assert not answers.is_podman({"Components": [{"Name": "Engine"}]})
    assert not answers.is_podman({})


def test_api_versions_compare_as_numbers() -> None:
    assert answers.api_number("1.9") < answers.api_number("1.40") < answers.api_number("1.52")


def test_a_pull_adds_up_its_layers() -> None:
    tally = answers.PullTally(image="i")
    lines: list[dict[str, Any]] = [
        {"status": "Pulling from library/i", "id": "latest"},
        {"status": "Pulling fs layer", "id": "a", "progressDetail": {}},
        {"status": "Already exists", "id": "b"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 30, "total": 100}},
    ]
    for line in lines:
        now = tally.add(line)
    assert (now.done_layers, now.total_layers, now.done_bytes, now.total_bytes) == (1, 2, 30, 100)
    tally.add({"status": "Extracting", "id": "a", "progressDetail": {"current": 5, "total": 100}})
    now = tally.add({"status": "Pull complete", "id": "a"})
    assert (now.done_layers, now.done_bytes, now.total_bytes) == (2, 100, 100)
    assert tally.add({"status": "Status: Downloaded newer image"}).total_layers == 2


REFUSALS = {
    'could not select device driver "" with capabilities: [[gpu]]': kernel_errors.GpuToolkitMissing,
    "Unknown runtime specified nvidia": kernel_errors.GpuToolkitMissing,
    "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=0": kernel_errors.GpuToolkitMissing,
    "runc: error setting rlimit type 8: operation not permitted": kernel_errors.UlimitRefused,
    'invalid mount config for type "bind": bind source path does not exist: /data/a b': kernel_errors.MountMissing,
    'runc: exec: "python3": executable file not found in $PATH: unknown': kernel_errors.ImageUnusable,
    "No such image: nope:1": kernel_errors.ImageMissing,
    "no space left on device": kernel_errors.ContainerFailed,
}


@pytest.mark.parametrize(("message", "kind"), REFUSALS.items(), ids=lambda value: getattr(value, "__name__", "m"))
def test_the_engines_refusals_get_a_name(message: str, kind: type[KernelBridgeError]) -> None:
    error = refusals.container_error(host="lab", image="i", message=message)
    assert type(error) is kind
    if isinstance(error, kernel_errors.MountMissing):
        assert "/data/a b does not exist" in error.sentence
    if isinstance(error, kernel_errors.ImageUnusable):
        assert "`python3`" in error.sentence


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("manifest for nope:1 not found: manifest unknown: manifest unknown", kernel_errors.ImageMissing),
        ("pull access denied for x, repository does not exist", kernel_errors.ImageMissing),
        ("dial tcp: i/o timeout", kernel_errors.ImagePullFailed),
        ("write /var/lib/docker/tmp/x: no space left on device", kernel_errors.ImagePullFailed),
    ],
)
def test_a_pull_that_cannot_come_right_is_told_from_one_that_broke(message: str, kind: type[Exception]) -> None:
    assert type(refusals.pull_error(host="lab", image="i", message=message)) is kind


def test_long_words_of_the_engine_are_shortened_to_one_line() -> None:
    assert refusals.shortened("a\n  b") == "a b"
    assert len(refusals.shortened("x" * 5000)) == 300


# -- the ladder

HERE = SocketFacts(path="/var/run/docker.sock", exists=True, is_writable=True)
DENIED = SocketFacts(path="/var/run/docker.sock", exists=True, is_writable=False)
OWN = SocketFacts(path="/run/user/1001/docker.sock", exists=True, is_writable=True)


def test_a_named_socket_is_tried_alone_and_the_others_in_order() -> None:
    assert [rung.socket for rung in route.socket_rungs(host_facts(HERE, OWN), None)] == [HERE.path, OWN.path]
    assert [rung.socket for rung in route.socket_rungs(host_facts(DENIED, OWN), None)] == [OWN.path]
    assert [rung.socket for rung in route.socket_rungs(host_facts(HERE), "/other")] == ["/other"]


FORBIDDEN = errors.ForwardingForbidden(host="lab")


@pytest.mark.parametrize(
    ("failure", "docker", "sudo", "expected"),
    [
        (FORBIDDEN, True, False, Transport.DOCKER),
        (FORBIDDEN, False, True, None),
        (PermissionError("/s"), True, True, Transport.SUDO),
        (PermissionError("/s"), True, False, None),
        (ConnectionRefusedError("/s"), True, True, None),
        (FileNotFoundError("/s"), True, True, None),
    ],
)
def test_the_next_rung_fits_the_failure(
    failure: Exception, docker: bool, sudo: bool, expected: Transport | None
) -> None:
    first = Rung(transport=Transport.SOCKET, socket="/s")
    following = route.after_refusal(host_facts(docker=docker), first, failure, may_sudo=sudo)
    assert (following and following.transport) == expected


def test_the_commands_name_the_socket_only_where_they_may() -> None:
    assert Rung(transport=Transport.DOCKER, socket="/s").argv() == ["docker", "-H", "unix:///s", "system", "dial-stdio"]
    bare = Rung(transport=Transport.SUDO, socket="/s", names_socket=False)
    assert bare.argv() == ["sudo", "-n", "docker", "system", "dial-stdio"]


def test_the_failure_that_came_nearest_to_an_engine_is_told() -> None:
    rung = Rung(transport=Transport.SOCKET, socket="/s")
    failures: list[tuple[Rung, Exception]] = [(rung, FileNotFoundError("/a")), (rung, ConnectionRefusedError("/b"))]
    told = route.worst(failures)
    assert told is not None
    assert isinstance(told[1], ConnectionRefusedError)
    assert route.worst([]) is None


@pytest.mark.parametrize(
    ("stderr", "kind"),
    [
        ("permission denied while trying to connect to the Docker daemon socket", PermissionError),
        ("sudo: a password is required", PermissionError),
        ("Sorry, user ada is not allowed to execute '/usr/bin/docker' as root", PermissionError),
        ("Cannot connect to the Docker daemon at unix:///s. Is the docker daemon running?", ConnectionRefusedError),
        ("dial unix /s: connect: connection refused", ConnectionRefusedError),
        ("panic", errors.EngineFailed),
    ],
)
def test_the_words_of_a_failed_dial_say_why(stderr: str, kind: type[Exception]) -> None:
    failure = CommandError(command="docker", exit_code=1, stderr=stderr)
    assert type(route.command_reason("lab", failure)) is kind
