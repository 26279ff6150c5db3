"""hosts/docker/connect.py: in which order the ways to an engine are tried, and which failure is told."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Host
from kernelbridge.hosts.docker import connect
from kernelbridge.hosts.docker.connect import Candidate, Route, Transport
from kernelbridge.hosts.transport.facts import HostFacts, SocketFacts
from kernelbridge.hosts.transport.stream import CommandError, Receiver, Stream
from tests.unit.hosts.transport.test_pool import FakeLink, host_facts

HERE = SocketFacts(path="/var/run/docker.sock", exists=True, is_writable=True)
DENIED = SocketFacts(path="/var/run/docker.sock", exists=True, is_writable=False)
OWN = SocketFacts(path="/run/user/1001/docker.sock", exists=True, is_writable=True)


def test_a_named_socket_is_tried_alone_and_the_others_in_order() -> None:
    assert [one.socket for one in connect.socket_candidates(host_facts(HERE, OWN), None)] == [
        HERE.path,
        OWN.path,
    ]
    assert [one.socket for one in connect.socket_candidates(host_facts(DENIED, OWN), None)] == [OWN.path]
    assert [one.socket for one in connect.socket_candidates(host_facts(HERE), "/other")] == ["/other"]


class _AnsweringLink(FakeLink):
    """A link whose host says this of its sockets."""

    def __init__(self, *sockets: SocketFacts) -> None:
        super().__init__()
        self.facts = host_facts(*sockets)


@pytest.mark.parametrize(
    ("sockets", "named", "is_used"),
    [
        ((HERE, OWN), None, True),
        # The login's own comes first where it may not use the usual one.
        ((DENIED, OWN), None, False),
        ((HERE,), "/other", False),
    ],
)
async def test_what_was_asked_ahead_is_used_where_it_is_the_first_way_to_try(
    sockets: tuple[SocketFacts, ...], named: str | None, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask_version(route: Route, kept: object = None) -> dict[str, str]:
        return {"Version": "asked again"}

    monkeypatch.setattr(connect, "ask_version", ask_version)
    link, host = _AnsweringLink(*sockets), Host(name="lab", ssh="lab", socket=named)
    ahead = Route(link, Candidate(transport=Transport.SOCKET, socket=HERE.path)), {"Version": "ahead"}
    route, version = await connect.find_route(link, host, ahead)
    assert (route is ahead[0], version["Version"]) == (is_used, "ahead" if is_used else "asked again")


async def test_an_engine_that_is_not_at_the_usual_place_says_nothing_ahead() -> None:
    assert await connect.ask_ahead(_RefusingLink(), Host(name="lab", ssh="lab")) is None


class _RefusingLink(FakeLink):
    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        return None

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        raise ConnectionRefusedError(path)


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
def test_the_next_candidate_fits_the_failure(
    failure: Exception, docker: bool, sudo: bool, expected: Transport | None
) -> None:
    first = Candidate(transport=Transport.SOCKET, socket="/s")
    following = connect.after_refusal(host_facts(docker=docker), first, failure, may_sudo=sudo)
    assert (following and following.transport) == expected


def test_the_commands_name_the_socket_only_where_they_may() -> None:
    assert Candidate(transport=Transport.DOCKER, socket="/s").argv() == [
        "docker",
        "-H",
        "unix:///s",
        "system",
        "dial-stdio",
    ]
    bare = Candidate(transport=Transport.SUDO, socket="/s", names_socket=False)
    assert bare.argv() == ["sudo", "-n", "docker", "system", "dial-stdio"]


def test_the_failure_that_came_nearest_to_an_engine_is_told() -> None:
    candidate = Candidate(transport=Transport.SOCKET, socket="/s")
    failures: list[tuple[Candidate, Exception]] = [
        (candidate, FileNotFoundError("/a")),
        (candidate, ConnectionRefusedError("/b")),
    ]
    told = connect.worst(failures)
    assert told is not None
    assert isinstance(told[1], ConnectionRefusedError)
    assert connect.worst([]) is None


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
    assert type(connect.command_reason("lab", failure)) is kind


# -- where there is none


class Bare(FakeLink):
    """A host without an engine; a login shell may know of one."""

    def __init__(self, before: HostFacts, after: HostFacts | None = None) -> None:
        super().__init__()
        self.facts, self.after = before, after
        self.tried: list[str] = []

    async def ask_login_shell(self) -> bool:
        self.facts = self.after or self.facts
        return self.after is not None

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        self.tried.append(path)
        raise FileNotFoundError(path)


GONE = SocketFacts(path="/var/run/docker.sock", exists=False, is_writable=False)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (host_facts(GONE), errors.EngineMissing(host="lab", looked=[GONE.path])),
        (host_facts(GONE, docker=True), errors.EngineDown(host="lab", socket=GONE.path)),
        (
            replace(host_facts(GONE, docker=True), engine="unix:///opt/d.sock"),
            errors.EngineDown(host="lab", socket="/opt/d.sock"),
        ),
        (
            replace(host_facts(GONE, docker=True), engine="tcp://10.0.0.7:2375"),
            errors.EngineMissing(host="lab", looked=[GONE.path], elsewhere="tcp://10.0.0.7:2375"),
        ),
    ],
)
async def test_a_host_without_an_engine_is_told_where_it_was_looked_for(
    facts: HostFacts, expected: errors.KernelBridgeError
) -> None:
    with pytest.raises(type(expected), match=re.escape(str(expected))):
        await connect.find_route(Bare(facts), Host(name="lab", ssh="lab"))


async def test_an_engine_that_a_login_shell_alone_knows_is_tried() -> None:
    link = Bare(host_facts(GONE), host_facts(OWN))
    with pytest.raises(errors.EngineMissing):
        await connect.find_route(link, Host(name="lab", ssh="lab"))
    assert link.tried == [OWN.path]
