"""One link per host in this process: opened once for all who ask, dropped after a sleep, and when to try again."""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from kernelbridge.config import Host
from kernelbridge.errors import KernelBridgeError, LinkLost
from kernelbridge.host.local import open_local
from kernelbridge.host.ssh import open_link
from kernelbridge.host.stream import AnyLink

log = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.2
# For the first PATIENT_AFTER_SECONDS, and whenever a request waits.
EAGER_CAP_SECONDS = 2.0
PATIENT_CAP_SECONDS = 10.0
PATIENT_AFTER_SECONDS = 300.0
TICK_SECONDS = 1.0
JUMP_SECONDS = 5.0
# Windows counts sleep in its monotonic clock: there only a tick that took far too long tells.
STALL_SECONDS = 30.0


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


def delays(
    *,
    clock: Callable[[], float] = time.monotonic,
    random: Callable[[], float] = random_module.random,
    is_waited_for: Callable[[], bool] = lambda: False,
) -> Iterator[float]:
    """Seconds to wait before each further attempt, for ever: short at first, never above the cap of the moment.

    The jitter (half to all of the delay) keeps the many launchers of one laptop from knocking in step.
    """
    began_at = clock()
    delay = FIRST_DELAY_SECONDS
    while True:
        is_eager = clock() - began_at < PATIENT_AFTER_SECONDS or is_waited_for()
        delay = min(delay, EAGER_CAP_SECONDS if is_eager else PATIENT_CAP_SECONDS)
        yield delay * (0.5 + 0.5 * random())
        delay *= 2


def is_resume(*, wall_seconds: float, monotonic_seconds: float) -> bool:
    """Whether this machine slept between two ticks: its wall clock went on, its monotonic clock did not."""
    return wall_seconds - monotonic_seconds > JUMP_SECONDS or monotonic_seconds > STALL_SECONDS


class _Line:
    """The one link to one host: open, being opened, or gone."""

    def __init__(self, host: Host) -> None:
        self.host = host
        # The last link that came about; replaced by Pool._opened().
        self.link: AnyLink | None = None
        # The login that all who ask now wait for; set by Pool.link(), emptied by Pool._opened().
        self.opening: asyncio.Task[AnyLink] | None = None
        # When the link was seen lost; set by Pool._watch_line().
        self.lost_at: float | None = None
        # Notes the loss of `link`; ended by Pool.aclose().
        self.watcher: asyncio.Task[None] | None = None


async def open_any(host: Host) -> AnyLink:
    """A link of the right kind."""
    return await open_local(host.name) if host.is_local else await open_link(host)


class Pool:
    """All links of this process. Everything runs on one loop."""

    def __init__(
        self,
        *,
        opener: Callable[[Host], Awaitable[AnyLink]] = open_any,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._opener = opener
        self._monotonic = monotonic
        self._wall = wall
        self._tick_seconds = tick_seconds
        # By host name; lines are added by link() and stay.
        self._lines: dict[str, _Line] = {}
        # Lines of hosts whose config was changed since; closed with the rest.
        self._retired: list[_Line] = []
        # Watches the clocks; started by the first link().
        self._ticker: asyncio.Task[None] | None = None
        # Set and replaced after each sleep of this machine.
        self._resumed = asyncio.Event()
        self._is_closed = False

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {type(self.state(name)).__name__.lower()}" for name in self._lines)
        return f"<Pool {states or 'empty'}>"

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def link(self, host: Host) -> AnyLink:
        """The open link to the host; logs in where there is none. All who ask meanwhile share that one login.

        Raises: what open_link() raises, to all of them. No retry here: see delays().
        """
        if self._is_closed:
            raise LinkLost(host=host.name)
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._watch_clocks())
        line = self._line(host)
        if line.link is not None and line.link.is_open:
            return line.link
        if line.opening is None:
            line.opening = asyncio.create_task(self._open(line))
            line.opening.add_done_callback(_ask_for_exception)
        opening = line.opening
        try:
            # Shielded: one caller that gives up must not end the login of the others.
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not opening.cancelled() or caller is None or caller.cancelling():
                raise
            # Not the caller was cancelled, but the login: by drop_all() or aclose().
            raise LinkLost(host=host.name) from None

    def _line(self, host: Host) -> _Line:
        line = self._lines.get(host.name)
        if line is not None and line.host != host:  # The config was changed. What runs over the old link goes on.
            self._retired.append(line)
            line = None
        if line is None:
            line = self._lines[host.name] = _Line(host)
        return line

    async def _open(self, line: _Line) -> AnyLink:
        try:
            link = await self._opener(line.host)
            line.link, line.lost_at = link, None
            line.watcher = asyncio.create_task(self._watch_line(line, link))
            return link
        finally:
            line.opening = None

    async def _watch_line(self, line: _Line, link: AnyLink) -> None:
        await link.wait_lost()
        line.lost_at = self._wall()
        if not self._is_closed:
            log.info("[%s] link lost", line.host.name)

    def state(self, host_name: str) -> LinkState:
        """What is known of the link to this host at this moment."""
        line = self._lines.get(host_name)
        if line is None or line.link is None:
            return NeverOpened()
        return Open() if line.link.is_open else Lost(since=line.lost_at or self._wall())

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
                log.info("this machine slept for about %.0f s; the links are opened again", wall_step)
                await self.drop_all()

    async def drop_all(self) -> None:
        """Drop every link and end every rest(): whoever needs a link opens it again, at once."""
        resumed, self._resumed = self._resumed, asyncio.Event()
        resumed.set()
        for line in [*self._lines.values(), *self._retired]:
            if line.opening is not None:  # A login from before the sleep only waits for its time limit.
                line.opening.cancel()
            if line.link is not None and not line.host.is_local:
                await _close(line.link)

    async def aclose(self) -> None:
        """Close all links and end all that waits for one. Safe to call twice."""
        self._is_closed = True
        lines = [*self._lines.values(), *self._retired]
        tasks = [self._ticker, *(line.opening for line in lines), *(line.watcher for line in lines)]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for line in lines:
            if line.link is not None:
                await _close(line.link)


async def _close(link: AnyLink) -> None:
    try:
        async with asyncio.timeout(JUMP_SECONDS):
            await link.aclose()
    except (TimeoutError, OSError, KernelBridgeError) as exc:
        log.debug("[%s] the old link did not close: %s", link.name, exc)


def _ask_for_exception(task: asyncio.Task[AnyLink]) -> None:
    # So that asyncio does not complain when all who waited for the login have given up.
    if not task.cancelled():
        task.exception()
