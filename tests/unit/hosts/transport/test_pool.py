"""hosts/transport/pool.py: one link per host, shared by all who ask, dropped after a sleep, opened anew on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.hosts.transport import pool
from kernelbridge.hosts.transport.facts import HostFacts, SocketFacts
from kernelbridge.hosts.transport.login.questions import LoginQuestion, current_asking
from kernelbridge.hosts.transport.login.stage import report
from kernelbridge.hosts.transport.sftp import Sftp
from kernelbridge.hosts.transport.stream import AnyLink, Completed, LoginEntry, Receiver, Stream
from tests.made_clock import StillClock


def host_facts(*sockets: SocketFacts, docker: bool = False, sudo: bool = False) -> HostFacts:
    return HostFacts(
        user="ada",
        uid=1001,
        gid=100,
        home="/home/ada",
        sockets=sockets,
        has_docker_command=docker,
        may_sudo_docker=sudo,
    )


class FakeLink:
    """A link whose commands have one answer, and that is lost when the test says so."""

    name = "lab"
    shell_seconds = 0.0
    entry = LoginEntry()

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

    async def try_socket(self, path: str, receiver: Receiver) -> Stream | None:
        return None

    async def open_socket(self, path: str, receiver: Receiver) -> Stream:
        raise FileNotFoundError(path)

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        raise FileNotFoundError(argv[0])

    async def open_sftp(self) -> Sftp:
        raise NotImplementedError

    async def ask_login_shell(self) -> bool:
        return False

    async def jump(self, name: str, *, seconds: float) -> AnyLink:
        raise NotImplementedError

    async def wait_lost(self) -> None:
        await self.lost.wait()

    async def aclose(self) -> None:
        self.lost.set()


class Logins:
    """Stands where open_link stands: counts logins, fails or waits as told."""

    def __init__(self) -> None:
        self.links: list[FakeLink] = []
        self.failure: KernelBridgeError | None = None
        self.count = 0
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def __call__(self, host: Host) -> FakeLink:
        self.count += 1
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


def refused(*, needs_person: bool = False) -> errors.LoginRefused:
    attempt = errors.LoginAttempt(unanswered="(ada@lab) Code:" if needs_person else "")
    return errors.LoginRefused(host="lab", user="ada", attempt=attempt)


@pytest.mark.parametrize("needs_person", [True, False])
async def test_a_refused_login_is_not_tried_again_until_a_person_wants_it(needs_person: bool) -> None:
    logins, clock = Logins(), StillClock()
    logins.failure = refused(needs_person=needs_person)
    async with pool.Pool(opener=logins, monotonic=clock) as links:
        for _ in range(5):
            with pytest.raises(errors.LoginRefused):
                await links.link(LAB)
        assert logins.count == 1
        links.retry_login("lab")
        with pytest.raises(errors.LoginRefused):
            await links.link(LAB)
        assert logins.count == 2
        # Unless it needs a person, it may pass by itself.
        clock.now += pool.REFUSED_SECONDS + 1
        logins.failure = None
        if needs_person:
            with pytest.raises(errors.LoginRefused):
                await links.link(LAB)
            links.retry_login("lab")
        assert (await links.link(LAB)).is_open
        links.retry_login("unknown")


async def test_after_a_sleep_a_refused_login_is_tried_again_unless_it_needs_a_person() -> None:
    logins = Logins()
    async with pool.Pool(opener=logins) as links:
        for needs_person, count in ((False, 2), (True, 3)):
            logins.failure = refused(needs_person=needs_person)
            links.retry_login("lab")
            for _ in range(2):
                with pytest.raises(errors.LoginRefused):
                    await links.link(LAB)
                await links.drop_all()
            assert logins.count == count


async def test_a_login_asks_those_who_wait_and_the_time_for_that_is_counted() -> None:
    async def opener(host: Host) -> FakeLink:
        assert await current_asking().ask(LoginQuestion(prompt="Code: ")) == "sesame"
        return FakeLink()

    async def ask(question: LoginQuestion) -> str | None:
        await asyncio.sleep(0.02)
        return "sesame"

    async def nobody(question: LoginQuestion) -> str | None:
        raise AssertionError

    async with pool.Pool(opener=opener, askers=[nobody]) as links:
        with links.questions("lab").answered_by(ask):
            await links.link(LAB)
        assert links.asked_seconds > 0


async def test_a_failed_login_is_told_to_all_and_tried_anew_by_the_next() -> None:
    logins = Logins()
    logins.failure = errors.HostRefused(host="lab", address="lab:22")
    async with pool.Pool(opener=logins) as links:
        told = await asyncio.gather(*(links.link(LAB) for _ in range(3)), return_exceptions=True)
        assert told == [logins.failure] * 3
        assert links.state("lab") == pool.NeverOpened()
        logins.failure = None
        assert (await links.link(LAB)).is_open


async def test_a_login_that_was_begun_ends_well_or_not_for_the_first_who_asks() -> None:
    logins = Logins()
    logins.failure = errors.HostRefused(host="lab", address="lab:22")
    async with pool.Pool(opener=logins) as links:
        await links.begin(LAB)
        await turns()
        refusal, logins.failure = logins.failure, None
        with pytest.raises(errors.HostRefused) as told:
            await links.link(LAB)
        assert told.value is refusal
        assert (await links.link(LAB)).is_open
        await links.begin(LAB)
        await turns()
        logins.links[0].lost.set()
        await turns()
        assert (await links.link(LAB)).is_open
        assert len(logins.links) == 2


async def test_a_login_that_nobody_asked_for_ends_with_the_pool() -> None:
    logins = Logins()
    logins.may_finish.clear()
    async with pool.Pool(opener=logins) as links:
        await links.begin(LAB)
        await turns()
    assert logins.links == []


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
    logins, wall = Logins(), StillClock()
    async with pool.Pool(opener=logins, wall=wall) as links:
        first = await links.link(LAB)
        logins.links[0].lost.set()
        await turns()
        assert links.state("lab") == pool.Lost(since=1000.0)
        assert await links.link(LAB) is not first


async def test_a_sleep_drops_the_links_and_ends_every_rest() -> None:
    logins, wall, monotonic = Logins(), StillClock(), StillClock()
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


async def test_a_host_that_turns_out_to_have_slurm_keeps_its_link() -> None:
    async with pool.Pool(opener=Logins()) as links:
        assert await links.link(LAB) is await links.link(LAB.model_copy(update={"scheduler": "slurm"}))


async def test_a_closed_pool_opens_nothing() -> None:
    links = pool.Pool(opener=Logins())
    await links.aclose()
    await links.aclose()
    with pytest.raises(errors.LinkLost):
        await links.link(LAB)


async def test_all_who_wait_for_a_login_hear_how_far_it_is() -> None:
    goes_on = asyncio.Event()

    async def opener(host: Host) -> AnyLink:
        report("connecting")
        await goes_on.wait()
        report("logging in")
        return FakeLink()

    heard: list[str] = []
    host = Host(name="lab", ssh="lab")
    async with pool.Pool(opener=opener) as links:
        first = asyncio.create_task(links.link(host))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with links.watch_login(host, lambda stage: heard.append(stage.text)):
            assert links.logins() == {"lab": "connecting"}
            goes_on.set()
            await asyncio.gather(first, links.link(host))
        assert links.logins() == {}
    assert heard == ["connecting", "logging in"]
