"""More than one connection: through a link to a machine that only the host reaches, and where one link is full."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress

import psutil
import pytest

from kernelbridge import errors
from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport.pool import Pool
from kernelbridge.hosts.transport.ssh import Link, open_link
from kernelbridge.hosts.transport.stream import Collector
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.sshd import make_key
from tests.rig.whole import Rig

# Each is a name of the made machine's own loopback address: nobody reaches it from here but through the machine.
BEHIND = ("  HostName 127.0.0.1", "  Port 2222", "  HostKeyAlias n1")


def know(laptop: Laptop, line: str) -> None:
    """Put a line into known_hosts."""
    path = laptop.ssh_folder / "known_hosts"
    path.write_text(path.read_text() + line + "\n")


@pytest.fixture
async def link(rig: Rig, bridge_env: Laptop) -> AsyncIterator[Link]:
    """A link as user kbtest, and a node behind it that known_hosts has."""
    bridge_env.configure_ssh("Host n1", *BEHIND)
    know(bridge_env, f"n1 {rig.sshd.host_key}")
    async with await open_link(Host(name="hpc", ssh="lab")) as opened:
        yield opened


async def test_a_node_is_logged_in_to_as_the_hosts_login_unless_the_config_names_another(
    rig: Rig, bridge_env: Laptop, link: Link
) -> None:
    node = await link.jump("n1", seconds=20)
    assert (node.facts.user, node.name) == ("kbtest", "hpc")
    # sshd tells who came from where: from the machine itself.
    assert (await node.run(["sh", "-c", "echo $SSH_CONNECTION"], seconds=10)).stdout.split()[0] == b"127.0.0.1"
    bridge_env.configure_ssh("Host n1", "  User kbother")
    assert (await link.jump("n1", seconds=20)).facts.user == "kbother"


async def test_bytes_pass_a_node_unchanged_both_ways(link: Link) -> None:
    collector, sent = Collector(), os.urandom(8_000_000)
    stream = await (await link.jump("n1", seconds=20)).open_command(["cat"], collector)
    stream.write(sent)
    stream.write_eof()
    async with asyncio.timeout(60 * SLOW):
        await collector.wait_ended()
    assert bytes(collector.received) == sent


async def test_a_node_whose_key_is_not_known_is_not_even_knocked_at(rig: Rig, bridge_env: Laptop, link: Link) -> None:
    bridge_env.configure_ssh("Host n2", "  HostName 127.0.0.1", "  Port 2222")
    before = rig.sshd.arrivals
    with pytest.raises(errors.SshFailed, match=r"n2: .*its host key is not known here as \[127\.0\.0\.1\]:2222"):
        await link.jump("n2", seconds=20)
    assert rig.sshd.arrivals == before
    assert (await link.run(["true"], seconds=10)).exit_code == 0


async def test_a_node_with_another_key_than_known_is_refused(rig: Rig, bridge_env: Laptop, link: Link) -> None:
    make_key(bridge_env.home / "other")
    known = bridge_env.ssh_folder / "known_hosts"
    other = (bridge_env.home / "other.pub").read_text()
    known.write_text(known.read_text().replace(f"n1 {rig.sshd.host_key}", f"n1 {other.strip()}"))
    with pytest.raises(errors.HostKeyChanged, match="n1"):
        await link.jump("n1", seconds=20)


async def test_a_node_that_refuses_or_is_not_there_is_named(bridge_env: Laptop, link: Link) -> None:
    bridge_env.configure_ssh("Host n1", "  User nobody")
    with pytest.raises(errors.LoginRefused, match=r"n1: .*nobody"):
        await link.jump("n1", seconds=20)
    bridge_env.configure_ssh("Host n1", "  Port 9")
    with pytest.raises(errors.HostUnreachable, match=r"n1: .*said by the jump host"):
        await link.jump("n1", seconds=20)


async def test_a_node_signed_by_an_authority_is_known(rig: Rig, bridge_env: Laptop, link: Link) -> None:
    authority = bridge_env.home / "authority"
    make_key(authority)
    bridge_env.configure_ssh("Host n2", "  HostName 127.0.0.1", "  Port 2222", "  HostKeyAlias n2.cluster")
    know(bridge_env, f"@cert-authority *.cluster {authority.with_suffix('.pub').read_text().strip()}")
    with rig.sshd.certified(authority, name="n2.cluster"):
        assert (await (await link.jump("n2", seconds=20)).run(["id", "-un"], seconds=10)).stdout == b"kbtest\n"
        # By no other: that is a key that nobody has vouched for.
        known = bridge_env.ssh_folder / "known_hosts"
        other = (bridge_env.ssh_folder / "id_ed25519.pub").read_text().strip()
        known.write_text(known.read_text().replace(authority.with_suffix(".pub").read_text().strip(), other))
        with pytest.raises(errors.HostKeyUnknown, match="n2"):
            await link.jump("n2", seconds=20)


async def test_the_end_of_a_link_is_the_end_of_those_through_it(rig: Rig, link: Link) -> None:
    collector, node = Collector(), await link.jump("n1", seconds=20)
    await node.open_command(["cat"], collector)
    wait_until(lambda: len(rig.lab.processes_named("cat")) == 1, "the command to run", 10)
    await link.aclose()
    async with asyncio.timeout(10 * SLOW):
        await collector.wait_ended()
    assert isinstance(collector.failure, errors.LinkLost)
    wait_until(lambda: not rig.lab.processes_named("cat"), "the command to end", 10)
    assert not node.is_open
    with pytest.raises(errors.LinkLost, match="hpc"):
        await node.run(["true"], seconds=10)


async def test_a_lost_link_ends_those_through_it_with_link_lost(rig: Rig, link: Link) -> None:
    collector, node = Collector(), await link.jump("n1", seconds=20)
    await node.open_command(["cat"], collector)
    rig.sshd.kill_connections()
    async with asyncio.timeout(10 * SLOW):
        await collector.wait_ended()
        await node.wait_lost()
    assert isinstance(collector.failure, errors.LinkLost)
    assert (node.is_open, link.is_open) == (False, False)


async def test_a_node_that_is_silent_is_given_up_and_the_link_lives(rig: Rig, bridge_env: Laptop, link: Link) -> None:
    bridge_env.configure_ssh("Host n1", "  Port 2299")
    rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", "2299", "-j", "DROP"]
    rig.lab.run(["iptables", "-I", *rule])
    try:
        with pytest.raises(errors.HostUnreachable, match=r"hpc: n1 cannot be reached \(no login in 1 s\)"):
            await link.jump("n1", seconds=1)
        assert (await link.run(["true"], seconds=10)).exit_code == 0
    finally:
        rig.lab.run(["iptables", "-D", *rule])


# -- more commands than sshd allows one connection


def logins(rig: Rig) -> list[psutil.Process]:
    """The process of each connection that is logged in, the oldest first."""
    found = []
    for process in rig.sshd.sessions():
        with suppress(psutil.Error):
            if "@notty" in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda one: one.pid)


@pytest.mark.parametrize("node", ["", "n1"])
async def test_a_full_connection_gets_a_spare_one(rig: Rig, bridge_env: Laptop, node: str) -> None:
    bridge_env.configure_ssh("Host n1", *BEHIND)
    know(bridge_env, f"n1 {rig.sshd.host_key}")
    with rig.sshd.configured("MaxSessions 2"):
        async with await open_link(Host(name="hpc", ssh="lab")) as first:
            link = await first.jump(node, seconds=20) if node else first
            others = 1 if node else 0
            collectors = [Collector() for _ in range(7)]
            streams = await asyncio.gather(*(link.open_command(["cat"], one) for one in collectors))
            assert len(logins(rig)) == 4 + others
            assert (await link.run(["echo", "room"], seconds=10)).stdout == b"room\n"
            for number, stream in enumerate(streams):
                stream.write(str(number).encode())
                stream.write_eof()
            async with asyncio.timeout(10 * SLOW):
                await asyncio.gather(*(one.wait_ended() for one in collectors))
            assert [bytes(one.received) for one in collectors] == [str(number).encode() for number in range(7)]
        wait_until(lambda: not logins(rig), "all of them to be closed", 10)


async def test_a_lost_connection_takes_its_spare_along(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.configured("MaxSessions 1"):
        async with Pool() as pool:
            link = await pool.link(Host(name="lab", ssh="lab-proxied"))
            ends = [Collector(), Collector()]
            for end in ends:
                await link.open_command(["cat"], end)
            assert len(logins(rig)) == 2
            logins(rig)[0].kill()
            async with asyncio.timeout(10 * SLOW):
                await asyncio.gather(*(end.wait_ended() for end in ends))
            assert [type(end.failure) for end in ends] == [errors.LinkLost] * 2
            wait_until(lambda: not logins(rig), "both to be gone", 10)


async def test_a_link_that_is_closed_while_a_spare_one_logs_in_leaves_none(rig: Rig, bridge_env: Laptop) -> None:
    with rig.sshd.configured("MaxSessions 1"):
        for pause in (0.06, 0.12, 0.25):
            link = await open_link(Host(name="lab", ssh="lab"))
            await link.open_command(["cat"], Collector())
            late = asyncio.create_task(link.open_command(["cat"], Collector()))
            await asyncio.sleep(pause)
            await link.aclose()
            with suppress(errors.LinkLost):
                (await late).close()
            wait_until(lambda: not logins(rig), "nobody to be logged in", 10)


async def test_a_host_that_opens_no_session_at_all_is_not_tried_again(rig: Rig, bridge_env: Laptop) -> None:
    log = rig.lab.log_folder / "sshd.log"
    before = log.read_text().count("Accepted ")
    with rig.sshd.configured("MaxSessions 0"), pytest.raises(errors.SshFailed, match="no channel for `id`"):
        await open_link(Host(name="lab", ssh="lab"))
    assert log.read_text().count("Accepted ") - before == 1
