"""Open what runs kernels on a host when somebody asks for it, and keep it: Docker's engine, or a Slurm cluster.

docker-py is loaded with the first engine, while the login to its host is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from kernelbridge.config.schema import Host
from kernelbridge.hosts.transport.lazy import load_ssh, loaded
from kernelbridge.hosts.transport.login.questions import Ask
from kernelbridge.hosts.transport.login.stage import Hearer
from kernelbridge.hosts.transport.pool import Pool
from kernelbridge.hosts.transport.stream import AnyLink

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.slurm.cluster import Cluster

# How often a limit is looked at while it runs.
EXTEND_SECONDS = 1.0
OpenEngine = Callable[[AnyLink, Host], Awaitable["Engine"]]


def load_docker() -> OpenEngine:
    """Import what talks to an engine."""
    from kernelbridge.hosts.docker.engine import open_engine  # loads docker-py

    return open_engine


class BackendPool:
    """One backend for each host in this process; it lives as long as its link. Everything runs on one loop."""

    def __init__(
        self,
        *,
        opened: Callable[[Host], None],
        askers: Sequence[Ask] = (),
        links: Pool | None = None,
        load_engine: Callable[[], OpenEngine] = load_docker,
    ) -> None:
        """`opened` is called with each host whose backend is there, or there again over a new link.

        `askers` ask a person what a login needs, where nobody who waits for it can.
        """
        self._opened = opened
        self._links = links or Pool(askers=askers)
        self._load_engine = load_engine
        # By host name; replaced when the link is another one.
        self._engines: dict[str, Engine] = {}
        self._clusters: dict[str, Cluster] = {}
        # All who ask for the backend of a host wait for the one who opens it.
        self._opening: dict[str, asyncio.Lock] = {}

    def __repr__(self) -> str:
        return f"<BackendPool {len(self._engines)} engines, {len(self._clusters)} clusters, {self._links!r}>"

    async def link(self, host: Host) -> AnyLink:
        """Return the link to a host. Raises KernelBridgeError."""
        return await self._links.link(host)

    async def engine(self, host: Host) -> Engine:
        """Return the engine of a host, over the link of this process. Raises KernelBridgeError."""
        async with self._opening.setdefault(host.name, asyncio.Lock()):
            link, open_engine = await asyncio.gather(self._links.link(host), self._loaded(host))
            known = self._engines.get(host.name)
            if known is not None and known.link is link:
                return known
            if known is not None:
                await known.aclose()
            self._engines[host.name] = await open_engine(link, host)
            self._opened(host)
            return self._engines[host.name]

    async def _loaded(self, host: Host) -> OpenEngine:
        """Load docker-py behind asyncssh: while it loads, the login to the host goes on."""
        if not host.is_local:
            await loaded(load_ssh)
        return await loaded(self._load_engine)

    async def cluster(self, host: Host) -> Cluster:
        """Return the cluster of a login node, over the link of this process. Raises KernelBridgeError."""
        async with self._opening.setdefault(host.name, asyncio.Lock()):
            from kernelbridge.hosts.slurm.cluster import Cluster

            link = await self._links.link(host)
            known = self._clusters.get(host.name)
            if known is not None and known.link is link:
                return known
            self._clusters[host.name] = Cluster(link, host, before=known)
            self._opened(host)
            return self._clusters[host.name]

    async def backend(self, host: Host) -> Engine | Cluster:
        """Return what runs kernels on a host. Raises KernelBridgeError."""
        return await self.engine(host) if host.scheduler is None else await self.cluster(host)

    def watch_login(self, host: Host, hearer: Hearer) -> AbstractContextManager[None]:
        """Call `hearer` with what a login to the host is doing, now and while the block runs."""
        return self._links.watch_login(host, hearer)

    def answer_logins(self, host: Host, ask: Ask) -> AbstractContextManager[None]:
        """Ask there what a login to the host needs of a person, while the block runs."""
        return self._links.questions(host.name).answered_by(ask)

    def for_login(self, host: Host) -> AbstractContextManager[None]:
        """Have what logs in by itself in the block ask where other logins to the host do."""
        return self._links.questions(host.name).for_login()

    def retry_login(self, host: Host) -> None:
        """Try a login again that was refused, as soon as somebody needs the link."""
        self._links.retry_login(host.name)

    @property
    def asked_seconds(self) -> float:
        """How long people were asked so far for what logins need."""
        return self._links.asked_seconds

    @contextlib.asynccontextmanager
    async def limited(self, seconds: float) -> AsyncIterator[None]:
        """Give the block so many seconds, beside those in which a person is asked. Raises TimeoutError."""
        clock = asyncio.get_running_loop().time
        ends_at, asked_before = clock() + seconds, self.asked_seconds

        async def extend() -> None:
            while True:
                await asyncio.sleep(min(EXTEND_SECONDS, seconds / 4))
                if not timeout.expired():
                    timeout.reschedule(ends_at + self.asked_seconds - asked_before)

        async with asyncio.timeout_at(ends_at) as timeout:
            extending = asyncio.create_task(extend())
            try:
                yield
            finally:
                extending.cancel()

    async def rest(self, seconds: float) -> None:
        """Wait, but not beyond a sleep of this machine."""
        await self._links.rest(seconds)

    async def aclose(self) -> None:
        """Close all backends, then the links to their hosts."""
        for engine in self._engines.values():
            await engine.aclose()
        for cluster in self._clusters.values():
            await cluster.aclose()
        await self._links.aclose()
