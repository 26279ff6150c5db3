"""Reach the nodes of jobs from a login node: by ProxyJump on the link, by the login node's own ssh, or by a step."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence

from kernelbridge.config import fields
from kernelbridge.config.schema import Host
from kernelbridge.errors import KernelBridgeError, LinkLost, SshFailed, StartTimeout
from kernelbridge.hosts.slurm.commands import node_argv, step_argv
from kernelbridge.hosts.transport import shell
from kernelbridge.hosts.transport.shell import FramedStream
from kernelbridge.hosts.transport.stream import AnyLink, Receiver, Stream

_LOG = logging.getLogger(__name__)

# A node that does not let logins in mostly says so at once; the login node's ssh gives up after 10 s.
NODE_SECONDS = 10.0
# How long the start-up files of a node may take.
NODE_SHELL_SECONDS = 60.0


class NodeLogin:
    """Reaches each node of a cluster over one link, by a way found out once. Everything runs on the link's loop."""

    def __init__(self, link: AnyLink, host: Host) -> None:
        self._link = link
        self._host = host
        # Links that run through the link, by node; None: not this way. Set by _jump().
        self._jumps: dict[str, AnyLink | None] = {}
        # Whether a node lets this login in from the login node. Set by _lets_in().
        self._ssh_lets_in: dict[str, bool] = {}
        # All kernels of a node wait for the one who asks.
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __repr__(self) -> str:
        jumps = [node for node, link in self._jumps.items() if link is not None]
        by_ssh = [node for node, lets_in in self._ssh_lets_in.items() if lets_in]
        return f"<NodeLogin {self._host.name}, jumps {jumps}, ssh {by_ssh}>"

    async def open_command(self, node: str, command: Sequence[str], receiver: Receiver, *, job: str) -> Stream:
        """Run a command on a job's node, joined to its stdin and stdout.

        Raises: LinkLost, SshFailed; where `node_login` is "jump" every 2x error, with the node as its host.
        """
        if not fields.is_ssh_name(node):
            raise SshFailed(host=self._host.name, reason=f"Slurm says that the job's node is {node[:80]!r}")
        way = self._host.node_login
        if way in ("auto", "jump") and (jump := await self._jump(node)) is not None:
            try:
                return await jump.open_command(command, receiver)
            except SshFailed as exc:
                if way == "jump":
                    raise
                _LOG.info("[%s] node %s: %s", self._host.name, node, exc.sentence)
        if way == "ssh" or (way == "auto" and await self._lets_in(node)):
            return await self._open_by_ssh(node, command, receiver)
        return await self._link.open_command(step_argv(job, command), receiver)

    async def _open_by_ssh(self, node: str, command: Sequence[str], receiver: Receiver) -> Stream:
        """Run a command by the node's login shell, which may print as much as the login node's."""

        def refusal(words: str) -> SshFailed:
            return SshFailed.no_command(host=node, user=self._link.facts.user, words=words)

        mark = shell.new_mark()
        text = shell.script(command, mark=mark, stdin=None, settings=shell.settings(self._host.path))
        framed = FramedStream(receiver, command=command[0], mark=mark, refusal=refusal, has_stderr=False)
        stream = await self._link.open_command(node_argv(node, shell.SHELL_COMMANDS[0].split()), framed)
        framed.attach(stream)
        stream.write(shell.for_stdin(text))
        try:
            async with asyncio.timeout(self._host.login_seconds or NODE_SHELL_SECONDS):
                await framed.wait_begun()
        except TimeoutError as exc:
            raise SshFailed(host=node, reason="its login shell was not ready in time") from exc
        finally:
            if not framed.has_begun:
                framed.close()
        return framed

    async def _jump(self, node: str) -> AnyLink | None:
        """Return the link to a node, where it has one."""
        async with self._asking[node]:
            known = self._jumps.get(node)
            if node in self._jumps and (known is None or known.is_open):
                return known
            try:
                self._jumps[node] = await self._link.jump(node, seconds=NODE_SECONDS)
            except KernelBridgeError as exc:
                if not self._link.is_open:
                    raise LinkLost(host=self._host.name) from exc
                if self._host.node_login == "jump":
                    raise
                _LOG.info("[%s] no ProxyJump to its node %s: %s", self._host.name, node, exc.sentence)
                self._jumps[node] = None
            return self._jumps[node]

    async def _lets_in(self, node: str) -> bool:
        """Whether a node can be reached over ssh from the login node."""
        async with self._asking[node]:
            if node not in self._ssh_lets_in:
                try:
                    answer = await self._link.run(node_argv(node, ["true"]), seconds=NODE_SECONDS)
                    self._ssh_lets_in[node] = answer.exit_code == 0
                except StartTimeout:
                    self._ssh_lets_in[node] = False
            return self._ssh_lets_in[node]
