"""A link through a link, to a machine that only the host reaches, as ProxyJump; and the wide window of such a way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from kernelbridge import errors
from kernelbridge.config import Host
from kernelbridge.host.ssh import Link, open_link
from kernelbridge.host.stream import Collector
from tests.rig.daemon import SLOW
from tests.rig.laptop import Laptop
from tests.rig.sshd import make_key
from tests.rig.whole import Rig

# Each is a name of the made machine's own loopback address: nobody reaches it from here but through the machine.
BEHIND = ("  HostName 127.0.0.1", "  Port 2222", "  HostKeyAlias n1")


def append(laptop: Laptop, *lines: str) -> None:
    """Put lines in front of the user's ssh config: there the first value counts."""
    path = laptop.ssh_folder / "config"
    path.write_text("\n".join([*lines, "", path.read_text()]))


def know(laptop: Laptop, line: str) -> None:
    """Put a line into known_hosts."""
    path = laptop.ssh_folder / "known_hosts"
    path.write_text(path.read_text() + line + "\n")


@pytest.fixture
async def link(rig: Rig, bridge_env: Laptop) -> AsyncIterator[Link]:
    """A link as user kbtest, and a node behind it that known_hosts has."""
    append(bridge_env, "Host n1", *BEHIND)
    know(bridge_env, f"n1 {rig.sshd.host_key}")
    async with await open_link(Host(name="hpc", ssh="lab")) as opened:
        yield opened


async def test_a_node_is_logged_in_to_as_the_hosts_login_unless_the_config_names_another(
    rig: Rig, bridge_env: Laptop, link: Link
) -> None:
    node = await link.jump("n1")
    assert (node.facts.user, node.name) == ("kbtest", "hpc")
    # sshd tells who came from where: from the machine itself.
    assert (await node.run(["sh", "-c", "echo $SSH_CONNECTION"], seconds=10)).stdout.split()[0] == b"127.0.0.1"
    append(bridge_env, "Host n1", "  User kbother")
    assert (await link.jump("n1")).facts.user == "kbother"


async def test_bytes_pass_a_node_unchanged_both_ways(link: Link) -> None:
    collector, sent = Collector(), os.urandom(8_000_000)
    stream = await (await link.jump("n1")).open_command(["cat"], collector)
    stream.write(sent)
    stream.write_eof()
    async with asyncio.timeout(60 * SLOW):
        await collector.wait_ended()
    assert bytes(collector.received) == sent


async def test_a_node_whose_key_is_not_known_is_not_even_knocked_at(rig: Rig, bridge_env: Laptop, link: Link) -> None:
    append(bridge_env, "Host n2", "  HostName 127.0.0.1", "  Port 2222")
    before = rig.sshd.arrivals
    with pytest.raises(errors.SshFailed, match=r"n2: .*its host key is not known here as \[127\.0\.0\.1\]:2222"):
        await link.jump("n2")
    assert rig.sshd.arrivals == before
    assert (await link.run(["true"], seconds=10)).exit_code == 0


async def test_a_node_with_another_key_than_known_is_refused(rig: Rig, bridge_env: Laptop, link: Link) -> None:
    make_key(bridge_env.home / "other")
    known = bridge_env.ssh_folder / "known_hosts"
    other = (bridge_env.home / "other.pub").read_text()
    known.write_text(known.read_text().replace(f"n1 {rig.sshd.host_key}", f"n1 {other.strip()}"))
    with pytest.raises(errors.HostKeyChanged, match="n1"):
        await link.jump("n1")


async def test_a_node_that_refuses_or_is_not_there_is_named(bridge_env: Laptop, link: Link) -> None:
    append(bridge_env, "Host n1", "  User nobody")
    with pytest.raises(errors.LoginRefused, match=r"n1: .*nobody"):
        await link.jump("n1")
    append(bridge_env, "Host n1", "  Port 9")
    with pytest.raises(errors.HostUnreachable, match=r"n1: .*said by the jump host"):
        await link.jump("n1")


async def test_a_node_signed_by_an_authority_is_known(rig: Rig, bridge_env: Laptop, link: Link) -> None:
    authority = bridge_env.home / "authority"
    make_key(authority)
    append(bridge_env, "Host n2", "  HostName 127.0.0.1", "  Port 2222", "  HostKeyAlias n2.cluster")
    know(bridge_env, f"@cert-authority *.cluster {authority.with_suffix('.pub').read_text().strip()}")
    with rig.sshd.certified(authority, name="n2.cluster"):
        assert (await (await link.jump("n2")).run(["id", "-un"], seconds=10)).stdout == b"kbtest\n"


async def test_the_end_of_a_link_is_the_end_of_those_through_it(rig: Rig, link: Link) -> None:
    collector, node = Collector(), await link.jump("n1")
    await node.open_command(["sleep", "600"], collector)
    assert len(rig.lab.processes_named("sleep")) == 1
    await link.aclose()
    async with asyncio.timeout(10 * SLOW):
        await collector.wait_ended()
    assert isinstance(collector.failure, errors.LinkLost)
    assert not node.is_open
    with pytest.raises(errors.LinkLost, match="hpc"):
        await node.run(["true"], seconds=10)


async def test_a_lost_link_ends_those_through_it_with_link_lost(rig: Rig, link: Link) -> None:
    collector, node = Collector(), await link.jump("n1")
    await node.open_command(["sleep", "600"], collector)
    rig.sshd.kill_connections()
    async with asyncio.timeout(10 * SLOW):
        await collector.wait_ended()
        await node.wait_lost()
    assert isinstance(collector.failure, errors.LinkLost)
    assert (node.is_open, link.is_open) == (False, False)
