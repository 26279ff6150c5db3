"""The decisions of host/: what is read, chosen, taken apart and told, without a host."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import pytest

from kernelbridge import errors
from kernelbridge.config import Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.host import pool
from kernelbridge.host.address import Address, parse_address
from kernelbridge.host.facts import HostFacts, SocketFacts, parse_facts, parse_socket
from kernelbridge.host.ssh import is_transient
from kernelbridge.host.stream import AnyLink, Completed, Receiver, Stream

# -- address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lab", Address(name="lab")),
        ("ada@lab", Address(name="lab", user="ada")),
        ("ada@lab.example:2222", Address(name="lab.example", user="ada", port=2222)),
        ("lab:22", Address(name="lab", port=22)),
        ("ada@realm@lab", Address(name="lab", user="ada@realm")),
        ("[::1]:2222", Address(name="::1", port=2222)),
        ("ada@[fe80::1]", Address(name="fe80::1", user="ada")),
        ("fe80::1", Address(name="fe80::1")),
    ],
)
def test_an_address_is_read_as_ssh_writes_it(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "ada@", "lab:ssh", "lab:0", "lab:70000", "[::1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="port"):
        parse_address(text)


# -- facts

FACTS = """Welcome to the lab!
kernelbridge facts 1
system Linux
machine x86_64
uid 1001
gid 100
user ada
home /home/ada lovelace
socket yes no /var/run/docker.sock
socket yes yes /run/user/1001/docker.sock
socket no no /run/user/1001/docker.sock
docker yes
end
"""


def host_facts(*sockets: SocketFacts, docker: bool = False, sudo: bool = False) -> HostFacts:
    return HostFacts(
        system="Linux",
        machine="x86_64",
        user="ada",
        uid=1001,
        gid=100,
        home="/home/ada",
        sockets=sockets,
        has_docker_command=docker,
        may_sudo_docker=sudo,
    )


def test_facts_are_read_behind_what_the_logins_shell_printed() -> None:
    facts = parse_facts(FACTS)
    assert (facts.user, facts.uid, facts.gid, facts.home) == ("ada", 1001, 100, "/home/ada lovelace")
    assert (facts.has_docker_command, facts.may_sudo_docker) == (True, False)
    assert [socket.path for socket in facts.sockets] == ["/var/run/docker.sock", "/run/user/1001/docker.sock"]
    assert [socket.path for socket in facts.usable_sockets] == ["/run/user/1001/docker.sock"]


@pytest.mark.parametrize("answer", ["", "'sh' is not recognized", FACTS.replace("uid 1001\n", ""), FACTS[:-4]])
def test_facts_that_are_cut_or_from_no_posix_shell_are_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"POSIX|lacks"):
        parse_facts(answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("kernelbridge socket yes yes yes\n", SocketFacts(path="/s", exists=True, is_writable=True, is_listening=True)),
        ("hi\nkernelbridge socket yes no unknown\n", SocketFacts(path="/s", exists=True, is_writable=False)),
        ("", SocketFacts(path="/s", exists=False, is_writable=False)),
    ],
)
def test_a_socket_is_what_the_host_says_of_it(answer: str, expected: SocketFacts) -> None:
    assert parse_socket("/s", answer) == expected


# -- a link that is not there


class FakeLink:
    """A link whose commands have one answer, and that is lost when the test says so."""

    name = "lab"

    def __init__(self, answer: Completed | None = None) -> None:
        self.facts = host_facts()
        self._answer = answer or Completed(exit_code=0, stdout=b"", stderr=b"")
        self.lost = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return not self.lost.is_set()

    async def look_again(self) -> HostFacts:
        return self.facts

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        return self._answer

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        raise FileNotFoundError(path)

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        raise FileNotFoundError(argv[0])

    async def jump(self, name: str, *, seconds: float) -> AnyLink:
        raise NotImplementedError

    async def wait_lost(self) -> None:
        await self.lost.wait()

    async def aclose(self) -> None:
        self.lost.set()


# -- which errors are worth another try

TRANSIENT = {
    errors.HostRefused(host="lab", address="lab:22"): True,
    errors.HostUnreachable(host="lab", address="lab:22", reason="no route"): True,
    errors.HostNameUnknown(host="lab", address="lab"): True,
    errors.LinkLost(host="lab"): True,
    errors.EngineDown(host="lab", socket="/s"): True,
    errors.LoginRefused(host="lab", user="ada"): False,
    errors.HostKeyUnknown(host="lab", algorithm="ssh-ed25519", fingerprint="SHA256:x"): False,
    errors.SshConfigInvalid(host="lab", reason="x"): False,
    errors.ForwardingForbidden(host="lab"): False,
    errors.EngineDenied(host="lab", user="ada", socket="/s"): False,
    ValueError("x"): False,
}


@pytest.mark.parametrize(("exc", "expected"), TRANSIENT.items(), ids=lambda value: type(value).__name__)
def test_only_what_time_may_mend_is_tried_again(exc: Exception, expected: bool) -> None:
    assert is_transient(exc) is expected


# -- delays and the pool


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_delays_stay_below_two_seconds_at_first_and_below_ten_later() -> None:
    clock = Clock()
    delays = pool.delays(clock=clock, random=lambda: 1.0)
    first = list(itertools.islice(delays, 8))
    assert first == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]
    clock.now += 300
    assert list(itertools.islice(delays, 4)) == [4.0, 8.0, 10.0, 10.0]


def test_delays_are_short_again_while_a_request_waits() -> None:
    clock, waiting = Clock(), False
    delays = pool.delays(clock=clock, random=lambda: 1.0, is_waited_for=lambda: waiting)
    next(delays)
    clock.now += 301
    list(itertools.islice(delays, 10))
    assert next(delays) == 10.0
    waiting = True
    assert next(delays) == 2.0


def test_delays_of_two_processes_differ_and_keep_the_cap() -> None:
    one = list(itertools.islice(pool.delays(clock=Clock(), random=random.Random(1).random), 50))
    other = list(itertools.islice(pool.delays(clock=Clock(), random=random.Random(2).random), 50))
    assert one != other
    assert all(0.1 <= delay <= 2.0 for delay in one + other)


@pytest.mark.parametrize(
    ("wall", "monotonic", "expected"),
    [
        (1.0, 1.0, False),
        (3600.0, 1.0, True),
        (5.9, 1.0, False),
        (6.1, 1.0, True),
        (-3600.0, 1.0, False),
        (40, 40, True),
    ],
)
def test_a_sleep_is_told_by_the_clocks_drifting_apart(wall: float, monotonic: float, expected: bool) -> None:
    assert pool.is_resume(wall_seconds=wall, monotonic_seconds=monotonic) is expected


class Logins:
    """Stands where open_link stands: counts logins, fails or waits as told."""

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.failure: KernelBridgeError | None = None
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def __call__(self, host: Host) -> FakeLink:
        await self.may_finish.wait()
        if self.failure is not None:
            raise self.failure
        self.links.append(FakeLink())
        return self.links[-1]


LAB = Host(name="lab", ssh="lab")


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_all_who_ask_share_one_login() -> None:
    logins = Logins()
    async with pool.Pool(opener=logins) as links:
        assert links.state("lab") == pool.NeverOpened()
        assert len({id(link) for link in await asyncio.gather(*(links.link(LAB) for _ in range(5)))}) == 1
        assert len(logins.links) == 1
        assert links.state("lab") == pool.Open()
        assert repr(links) == "<Pool lab open>"


async def test_a_failed_login_is_told_to_all_and_tried_anew_by_the_next() -> None:
    logins = Logins()
    logins.failure = errors.LoginRefused(host="lab", user="ada")
    async with pool.Pool(opener=logins) as links:
        told = await asyncio.gather(*(links.link(LAB) for _ in range(3)), return_exceptions=True)
        assert told == [logins.failure] * 3
        assert links.state("lab") == pool.NeverOpened()
        logins.failure = None
        assert (await links.link(LAB)).is_open


async def test_one_who_gives_up_does_not_end_the_login_of_the_others() -> None:
    logins = Logins()
    logins.may_finish.clear()
    async with pool.Pool(opener=logins) as links:
        hasty, patient = asyncio.create_task(links.link(LAB)), asyncio.create_task(links.link(LAB))
        await turns()
        hasty.cancel()
        logins.may_finish.set()
        assert (await patient).is_open
        assert hasty.cancelled()


async def test_a_lost_link_is_opened_anew_when_asked_for() -> None:
    logins, wall = Logins(), Clock()
    async with pool.Pool(opener=logins, wall=wall) as links:
        first = await links.link(LAB)
        logins.links[0].lost.set()
        await turns()
        assert links.state("lab") == pool.Lost(since=1000.0)
        assert await links.link(LAB) is not first


async def test_a_sleep_drops_the_links_and_ends_every_rest() -> None:
    logins, wall, monotonic = Logins(), Clock(), Clock()
    async with pool.Pool(opener=logins, wall=wall, monotonic=monotonic, tick_seconds=0) as links:
        await links.link(LAB)
        resting = asyncio.create_task(links.rest(3600))
        await turns()
        assert links.state("lab") == pool.Open()
        wall.now += 1800
        monotonic.now += 1
        await asyncio.wait_for(resting, 5)
        await turns()
        assert not logins.links[0].is_open
        assert (await links.link(LAB)).is_open


async def test_a_login_from_before_a_sleep_is_told_as_lost() -> None:
    logins = Logins()
    logins.may_finish.clear()
    async with pool.Pool(opener=logins) as links:
        waiting = asyncio.create_task(links.link(LAB))
        await turns()
        await links.drop_all()
        with pytest.raises(errors.LinkLost):
            await waiting


async def test_a_changed_host_gets_a_link_of_its_own() -> None:
    logins = Logins()
    async with pool.Pool(opener=logins) as links:
        old = await links.link(LAB)
        new = await links.link(Host(name="lab", ssh="ada@elsewhere"))
        assert new is not old
        assert old.is_open, "what runs over the old link goes on"
    assert not old.is_open
    assert not new.is_open


async def test_a_closed_pool_opens_nothing() -> None:
    links = pool.Pool(opener=Logins())
    await links.aclose()
    await links.aclose()
    with pytest.raises(errors.LinkLost):
        await links.link(LAB)
