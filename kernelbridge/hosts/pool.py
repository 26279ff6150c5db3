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
from kernelbridge.hosts.transport.lazy import load_ssh, loaded, open_any
from kernelbridge.hosts.transport.login.questions import Ask
from kernelbridge.hosts.transport.login.stage import Hearer
from kernelbridge.hosts.transport.pool import Pool
from kernelbridge.hosts.transport.stream import AnyLink

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.connect import Answered  # loads docker-py
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.slurm.cluster import Cluster

OpenEngine = Callable[[AnyLink, Host, "Answered | None"], Awaitable["Engine"]]
# Opens a link, and calls the second where its host has not told its facts yet: see open_any().
OpenAny = Callable[[Host, Callable[[AnyLink], None] | None], Awaitable[AnyLink]]
AskAhead = Callable[[AnyLink, Host], Awaitable["Answered | None"]]
# How often a limit is looked at while it runs.
EXTEND_SECONDS = 1.0


def load_docker() -> OpenEngine:
    """Import what talks to an engine."""
    from kernelbridge.hosts.docker.engine import open_engine  # loads docker-py

    return open_engine


def load_ask_ahead() -> AskAhead:
    """Import what asks an engine before its host has told its facts."""
    from kernelbridge.hosts.docker.connect import ask_ahead  # loads docker-py

    return ask_ahead


class BackendPool:
    """One backend for each host in this process; it lives as long as its link. Everything runs on one loop."""

    def __init__(
        self,
        *,
        opened: Callable[[Host], None] = lambda host: None,
        askers: Sequence[Ask] = (),
        links: Pool | None = None,
        open_link: OpenAny = open_any,
        load_engine: Callable[[], OpenEngine] = load_docker,
        load_ask_ahead: Callable[[], AskAhead] = load_ask_ahead,
    ) -> None:
        """`opened` is called with each host whose backend is there, or there again over a new link.

        `askers` ask a person what a login needs, where nobody who waits for it can.
        """
        # Replaced by whoever takes the pool over.
        self.opened = opened
        self._links = links or Pool(opener=self._log_in, askers=askers)
        self._open_link = open_link
        self._load_engine = load_engine
        self._load_ask_ahead = load_ask_ahead
        # What an engine says while its host is asked for its facts, by host name; taken by engine().
        self._ahead: dict[str, asyncio.Task[Answered | None]] = {}
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

    async def begin(self, host: Host) -> None:
        """Begin to log in to a host; how that ends is for the first who asks for it."""
        await self._links.begin(host)

    async def _log_in(self, host: Host) -> AnyLink:
        has_engine = host.scheduler is None
        return await self._open_link(host, (lambda link: self._ask_ahead(host, link)) if has_engine else None)

    def _ask_ahead(self, host: Host, link: AnyLink) -> None:
        async def ask() -> Answered | None:
            ask_ahead = await loaded(self._load_ask_ahead)
            return await ask_ahead(link, host)

        before = self._ahead.pop(host.name, None)
        if before is not None:
            before.cancel()
        self._ahead[host.name] = asyncio.create_task(ask())

    async def _answered(self, host: Host, link: AnyLink) -> Answered | None:
        """Return what the engine has said ahead over this link; None where it was not asked, or said nothing good."""
        task = self._ahead.pop(host.name, None)
        answered = await task if task is not None else None
        return answered if answered is not None and answered[0].link is link else None

    async def engine(self, host: Host) -> Engine:
        """Return the engine of a host, over the link of this process. Raises KernelBridgeError."""
        async with self._opening.setdefault(host.name, asyncio.Lock()):
            link, open_engine = await asyncio.gather(self._links.link(host), self._loaded(host))
            known = self._engines.get(host.name)
            if known is not None and known.link is link:
                return known
            if known is not None:
                await known.aclose()
            self._engines[host.name] = await open_engine(link, host, await self._answered(host, link))
            self.opened(host)
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
            self.opened(host)
            return self._clusters[host.name]

    async def backend(self, host: Host) -> Engine | Cluster:
        """Return what runs kernels on a host. Raises KernelBridgeError."""
        return await self.engine(host) if host.scheduler is None else await self.cluster(host)

    def watch_login(self, host: Host, hearer: Hearer) -> AbstractContextManager[None]:
        """Call `hearer` with what a login to the host is doing, now and while the block runs."""
        return self._links.watch_login(host, hearer)

    def logins(self) -> dict[str, str]:
        """Return what the logins under way are doing, by host; may be called from any thread."""
        return self._links.logins()

    def answer_logins(self, host: Host, ask: Ask) -> AbstractContextManager[None]:
        """Ask there what a login to the host needs of a person, while the block runs."""
        return self._links.questions(host.name).answered_by(ask)

    def for_login(self, host: Host) -> AbstractContextManager[None]:
        """Have what logs in by itself in the block ask where other logins to the host do."""
        return self._links.questions(host.name).for_login()

    def has_needed_user(self, host: Host) -> bool:
        """Whether the last login to a host had to wait for the user: to unlock an agent, to touch a key."""
        return self._links.has_needed_user(host.name)

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
        ahead = list(self._ahead.values())
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)
        for engine in self._engines.values():
            await engine.aclose()
        for cluster in self._clusters.values():
            await cluster.aclose()
        await self._links.aclose()
