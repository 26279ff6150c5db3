"""Keep one link per host: open it once for all who ask, drop it after a sleep of this machine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from kernelbridge.config.schema import Host
from kernelbridge.errors import KernelBridgeError, LinkLost, LoginRefused
from kernelbridge.hosts.transport.lazy import open_any
from kernelbridge.hosts.transport.login.questions import Ask, LoginQuestions
from kernelbridge.hosts.transport.login.stage import Hearer, LoginStages
from kernelbridge.hosts.transport.retry import JUMP_SECONDS, is_resume
from kernelbridge.hosts.transport.single_flight import SingleFlight
from kernelbridge.hosts.transport.stream import AnyLink

_LOG = logging.getLogger(__name__)

TICK_SECONDS = 1.0
# A host that has refused a login is asked again so much later, unless a person wants it sooner: hosts count refusals,
# and lock out who collects them.
REFUSED_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class NeverOpened:
    """No link to this host was asked for yet, or none has ever come about."""


@dataclass(frozen=True, kw_only=True)
class Open:
    """The link is open, as far as we know."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The link was open and is not now."""

    # Wall clock.
    since: float


LinkState = NeverOpened | Open | Lost


class _PooledLink:
    """The one link to one host: open, being opened, or gone."""

    def __init__(self, host: Host) -> None:
        self.host = host
        # The last link that came about; replaced by Pool._open().
        self.link: AnyLink | None = None
        # The login that all who ask now wait for.
        self.login: SingleFlight[AnyLink] = SingleFlight()
        self.stages = LoginStages()
        # Why the last login was refused, and until when (monotonic) that is answered without another; see Pool._open().
        self.refusal: LoginRefused | None = None
        self.refused_until = 0.0
        # When the link was seen lost; set by Pool._watch_loss().
        self.lost_at: float | None = None
        # Notes the loss of `link`; ended by Pool.aclose().
        self.watcher: asyncio.Task[None] | None = None


class Pool:
    """All links of this process. Everything runs on one loop."""

    def __init__(
        self,
        *,
        askers: Sequence[Ask] = (),
        opener: Callable[[Host], Awaitable[AnyLink]] = open_any,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        """`askers` ask a person what a login needs, where nobody who waits for it can be asked."""
        self._askers = tuple(askers)
        self._opener = opener
        self._monotonic = monotonic
        self._wall = wall
        self._tick_seconds = tick_seconds
        # By host name; added by link() and kept.
        self._pooled: dict[str, _PooledLink] = {}
        # By host name; added by questions() and kept.
        self._questions: dict[str, LoginQuestions] = {}
        # Those of hosts whose config was changed since; closed with the rest.
        self._retired: list[_PooledLink] = []
        # Watches the clocks; started by the first link().
        self._ticker: asyncio.Task[None] | None = None
        # Set and replaced after each sleep of this machine.
        self._resumed = asyncio.Event()
        self._is_closed = False
        # Logins that nobody has asked for yet; each is taken by the first link() to its host.
        self._begun: dict[str, asyncio.Task[AnyLink]] = {}

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {type(self.state(name)).__name__.lower()}" for name in self._pooled)
        return f"<Pool {states or 'empty'}>"

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def begin(self, host: Host) -> None:
        """Begin to log in to a host; how that ends, well or not, the first who asks for its link is told."""
        if host.name not in self._begun:
            self._begun[host.name] = asyncio.create_task(self._link(host))

    async def link(self, host: Host) -> AnyLink:
        """Return the open link to the host; log in where there is none. All who ask meanwhile share that one login.

        Raises: what open_any() raises, to all of them. No retry here: see delays(). LoginRefused also without another
        try, for a while, or until a person comes where it needs one: see retry_login().
        """
        begun = self._begun.pop(host.name, None)
        if begun is None or (begun.done() and self._pooled_link(host).link is not None):
            return await self._link(host)
        return await asyncio.shield(begun)

    async def _link(self, host: Host) -> AnyLink:
        if self._is_closed:
            raise LinkLost(host=host.name)
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._watch_clocks())
        pooled = self._pooled_link(host)
        if pooled.link is not None and pooled.link.is_open:
            return pooled.link
        if pooled.refusal is not None and self._monotonic() < pooled.refused_until:
            raise pooled.refusal.with_traceback(None)
        # The login itself is cancelled by drop_all() and aclose().
        return await pooled.login.join(lambda: self._open(pooled), cancelled=lambda: LinkLost(host=host.name))

    def watch_login(self, host: Host, hearer: Hearer) -> AbstractContextManager[None]:
        """Call `hearer` with what a login to the host is doing, now and while the block runs."""
        return self._pooled_link(host).stages.heard_by(hearer)

    def logins(self) -> dict[str, str]:
        """Return what the logins under way are doing, by host; may be called from any thread."""
        under_way = {name: pooled.stages.newest for name, pooled in list(self._pooled.items())}
        return {name: stage.text for name, stage in under_way.items() if stage is not None}

    def has_needed_user(self, host_name: str) -> bool:
        """Whether the last login to a host had to wait for the user: to unlock an agent, to touch a key."""
        return host_name in self._pooled and self._pooled[host_name].stages.has_needed_user

    def questions(self, host_name: str) -> LoginQuestions:
        """Return what the logins to a host ask, and whom."""
        return self._questions.setdefault(host_name, LoginQuestions(self._askers))

    @property
    def asked_seconds(self) -> float:
        """How long people were asked so far, all logins together."""
        return sum(questions.asked_seconds for questions in self._questions.values())

    def retry_login(self, host_name: str) -> None:
        """Try a login again that was refused, once somebody needs the link: a person wants it, or may be asked."""
        if host_name in self._pooled:
            self._pooled[host_name].refusal = None

    def _pooled_link(self, host: Host) -> _PooledLink:
        pooled = self._pooled.get(host.name)
        if pooled is not None and not _is_same_login(
            pooled.host, host
        ):  # The config was changed. What runs over the old link goes on.
            self._retired.append(pooled)
            pooled = None
        if pooled is None:
            pooled = self._pooled[host.name] = _PooledLink(host)
        return pooled

    async def _open(self, pooled: _PooledLink) -> AnyLink:
        pooled.refusal = None
        try:
            with pooled.stages.reported(), self.questions(pooled.host.name).for_login():
                link = await self._opener(pooled.host)
        except LoginRefused as exc:
            pooled.refusal = exc
            pooled.refused_until = math.inf if exc.needs_person else self._monotonic() + REFUSED_SECONDS
            raise
        pooled.link, pooled.lost_at = link, None
        pooled.watcher = asyncio.create_task(self._watch_loss(pooled, link))
        return link

    async def _watch_loss(self, pooled: _PooledLink, link: AnyLink) -> None:
        await link.wait_lost()
        pooled.lost_at = self._wall()
        if not self._is_closed:
            _LOG.info("[%s] link lost", pooled.host.name)

    def state(self, host_name: str) -> LinkState:
        """Return what is known of the link to this host at this moment."""
        pooled = self._pooled.get(host_name)
        if pooled is None or pooled.link is None:
            return NeverOpened()
        return Open() if pooled.link.is_open else Lost(since=pooled.lost_at or self._wall())

    async def rest(self, seconds: float) -> None:
        """Wait, but not beyond a sleep of this machine: after it everything is tried again at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._resumed.wait()
        except TimeoutError:
            return

    async def _watch_clocks(self) -> None:
        wall, monotonic = self._wall(), self._monotonic()
        while True:
            await asyncio.sleep(self._tick_seconds)
            wall_step, monotonic_step = self._wall() - wall, self._monotonic() - monotonic
            wall, monotonic = wall + wall_step, monotonic + monotonic_step
            if is_resume(wall_seconds=wall_step, monotonic_seconds=monotonic_step):
                _LOG.info("this machine slept for about %.0f s; the links are opened again", wall_step)
                await self.drop_all()

    async def drop_all(self) -> None:
        """Drop every link and end every rest(): whoever needs a link opens it again, at once."""
        resumed, self._resumed = self._resumed, asyncio.Event()
        resumed.set()
        for pooled in [*self._pooled.values(), *self._retired]:
            pooled.login.cancel()  # One from before the sleep only waits for its time limit.
            if pooled.refusal is not None and not pooled.refusal.needs_person:
                pooled.refusal = None  # Another network, maybe.
            if pooled.link is not None and not pooled.host.is_local:
                await _close(pooled.link)

    async def aclose(self) -> None:
        """Close all links and end all that waits for one. Safe to call twice."""
        self._is_closed = True
        all_pooled = [*self._pooled.values(), *self._retired]
        tasks = [self._ticker, *self._begun.values(), *(pooled.watcher for pooled in all_pooled)]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *(pooled.login.aclose() for pooled in all_pooled), return_exceptions=True)
        for pooled in all_pooled:
            if pooled.link is not None:
                await _close(pooled.link)


def _is_same_login(one: Host, other: Host) -> bool:
    """Whether a link to one is a link to the other: who looks whether a host has Slurm logs in once."""
    return one.model_copy(update={"scheduler": other.scheduler}) == other


async def _close(link: AnyLink) -> None:
    try:
        async with asyncio.timeout(JUMP_SECONDS):
            await link.aclose()
    except (TimeoutError, OSError, KernelBridgeError) as exc:
        _LOG.debug("[%s] the old link did not close: %s", link.name, exc)
