"""hosts/slurm/node_access.py: which way leads to a job's node, and what is asked for it how often."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from kernelbridge.config.schema import Host
from kernelbridge.errors import HostUnreachable, LinkLost, LoginRefused, SshFailed, StartTimeout
from kernelbridge.hosts.slurm.node_access import NodeLogin
from kernelbridge.hosts.transport.stream import Collector, Completed, Receiver, Stream
from tests.unit.hosts.slurm.test_cluster import FakeLink, said

NO_KEY = SshFailed(host="n1", reason="its host key is not known here")
SILENT = StartTimeout(host="hpc", what="ssh", seconds=10)
COMMAND = ["docker", "exec", "it's"]


@dataclass
class Link(FakeLink):
    """A link that jumps to nodes, and runs `ssh` to them."""

    # What is there by ProxyJump; an error: nothing.
    beyond: Any = NO_KEY
    # What the login node's own ssh finds.
    lets_in: bool | StartTimeout = False
    # Why it opens no channel.
    refusal: SshFailed | None = None
    jumped_to: list[str] = field(default_factory=list)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float) -> Completed:
        self.asked.append(argv[0])
        await asyncio.sleep(0)
        if isinstance(self.lets_in, StartTimeout):
            raise self.lets_in
        return said(code=0 if self.lets_in else 255)

    async def jump(self, name: str, *, seconds: float) -> Link:
        self.jumped_to.append(name)
        await asyncio.sleep(0)
        if isinstance(self.beyond, Link):
            return self.beyond
        raise self.beyond

    async def open_command(self, argv: Sequence[str], receiver: Receiver) -> Stream:
        if self.refusal is not None:
            raise self.refusal
        return await super().open_command(argv, receiver)


def link(**facts: Any) -> Link:
    return Link(answer=lambda _: said(), **facts)


def cluster(node_login: Any, login_node: Link) -> NodeLogin:
    return NodeLogin(login_node, Host(name="hpc", ssh="hpc", scheduler="slurm", node_login=node_login))


async def reach(seen: NodeLogin, node: str = "n1") -> None:
    await seen.open_command(node, COMMAND, Collector(), job="7")


def way(login_node: Link) -> str:
    """By which way all streams of a link went."""
    names = {next(word for word in words if word in ("ssh", "srun")) for words in login_node.opened}
    if isinstance(login_node.beyond, Link) and login_node.beyond.opened:
        assert {tuple(words) for words in login_node.beyond.opened} == {tuple(COMMAND)}
        names.add("jump")
    (one,) = names
    return one


@pytest.mark.parametrize(
    ("node_login", "beyond", "lets_in", "expected"),
    [
        ("auto", "a node", True, "jump"),
        ("auto", NO_KEY, True, "ssh"),
        ("auto", LoginRefused(host="n1", user="ada"), True, "ssh"),
        ("auto", NO_KEY, False, "srun"),
        ("auto", NO_KEY, SILENT, "srun"),
        ("jump", "a node", False, "jump"),
        ("ssh", "a node", False, "ssh"),
        ("srun", "a node", True, "srun"),
    ],
)
async def test_the_first_way_that_is_open_and_allowed_is_taken_and_asked_for_once(
    node_login: str, beyond: Any, lets_in: Any, expected: str
) -> None:
    login_node = link(beyond=link() if beyond == "a node" else beyond, lets_in=lets_in)
    seen = cluster(node_login, login_node)
    await asyncio.gather(*(reach(seen) for _ in range(5)))
    assert way(login_node) == expected
    assert len(login_node.jumped_to) == (1 if node_login in ("auto", "jump") else 0)
    assert login_node.asked.count("ssh") == (1 if node_login == "auto" and expected != "jump" else 0)
    await reach(seen, "n2")
    assert sorted(set(login_node.jumped_to)) == (["n1", "n2"] if node_login in ("auto", "jump") else [])


async def test_a_node_that_was_lost_is_jumped_to_anew() -> None:
    first, second = link(), link()
    login_node = link(beyond=first)
    seen = cluster("auto", login_node)
    await reach(seen)
    first.is_open = False
    login_node.beyond = second
    await reach(seen)
    assert (len(first.opened), len(second.opened), login_node.opened) == (1, 1, [])
    second.is_open = False
    login_node.beyond = HostUnreachable(host="n1", address="n1:22", reason="no answer")
    await reach(seen)
    assert "srun" in login_node.opened[0]


async def test_a_node_that_opens_no_more_channels_is_reached_another_way() -> None:
    full = SshFailed(host="hpc", reason="no channel for `docker`: open failed")
    login_node = link(beyond=link(refusal=full))
    await reach(cluster("auto", login_node))
    assert way(login_node) == "srun"
    with pytest.raises(SshFailed, match="no channel"):
        await reach(cluster("jump", login_node))


async def test_a_node_that_only_a_jump_may_reach_says_why_it_cannot_and_is_tried_again() -> None:
    login_node = link(beyond=NO_KEY, lets_in=True)
    seen = cluster("jump", login_node)
    with pytest.raises(SshFailed, match=r"n1: .*its host key is not known here"):
        await reach(seen)
    assert (login_node.opened, login_node.asked) == ([], [])
    login_node.beyond = link()
    await reach(seen)
    assert way(login_node) == "jump"


async def test_a_link_that_goes_meanwhile_says_nothing_of_the_node() -> None:
    login_node = link(beyond=NO_KEY, is_open=False)
    seen = cluster("auto", login_node)
    with pytest.raises(LinkLost):
        await reach(seen)
    login_node.is_open, login_node.beyond = True, link()
    await reach(seen)
    assert way(login_node) == "jump"


@pytest.mark.parametrize("node", ["-oProxyCommand=x", "n1,*", "n$(id)", "n1 x", "n1\n", ""])
@pytest.mark.parametrize("way", ["auto", "jump", "ssh", "srun"])
async def test_a_node_whose_name_is_none_is_reached_by_no_way(way: str, node: str) -> None:
    login_node = link(beyond=link(), lets_in=True)
    with pytest.raises(SshFailed, match="Slurm says that the job's node is"):
        await cluster(way, login_node).open_command(node, COMMAND, Collector(), job="7")
    assert (login_node.asked, login_node.jumped_to) == ([], [])
