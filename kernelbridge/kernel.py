"""One remote kernel, from the first check to the last trace removed: the only file that knows the order.

Channels answer the client meanwhile (channels/), the relay supervises over there (relay/), attachment.py joins the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import signal
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kernelbridge import checks, container, creation, exits, outcome
from kernelbridge.attachment import Attachment
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.sockets import Channels
from kernelbridge.channels.switchboard import Switchboard
from kernelbridge.channels.waiting import DEFAULT_INFO, Wish
from kernelbridge.checks import Wanted, deadline
from kernelbridge.config import Host
from kernelbridge.errors import ContainerFailed, KernelBridgeError, KernelEnded, LinkLost, StartCancelled
from kernelbridge.host.answers import Exited, Missing
from kernelbridge.housing import Housing
from kernelbridge.records import ImageRecord, Records
from kernelbridge.relay import wire

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

_LOG = logging.getLogger(__name__)

STOP_SECONDS = 30.0


class KernelState(enum.Enum):
    """What is known of the kernel process."""

    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"  # the process; a restart starts another in the same container
    FAILED = "failed"  # it will not come, and nothing should try by itself
    STOPPED = "stopped"  # container removed


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a kernel needs of its fleet."""

    switchboard: Switchboard
    records: Records
    owner: str
    labels: Callable[[Wanted, tuple[str, ...]], container.Labels]
    reach: Callable[[Host], Awaitable[Engine]]
    rest: Callable[[float], Coroutine[Any, Any, None]]
    # Told of every state and progress text: (kernel id, state, text).
    observe: Callable[[str, str, str], None]


class Kernel:
    """One kernel. Lives on the fleet's loop; `exit_code`, `is_final` and `failure` may be read from any thread."""

    def __init__(self, wanted: Wanted, endpoints: Endpoints, around: Surroundings) -> None:
        """Bind the endpoints and answer on them from now on. Raises OSError when they are taken."""
        self.wanted = wanted
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._session = uuid.uuid4().hex
        self.state = KernelState.STARTING
        self._exit = exits.ShownExit()
        # Why the kernel is not there; the sentence for people. Set when it fails or dies.
        self.failure: KernelBridgeError | None = None
        # Which host took it; the first that can give the GPUs. Set by check.
        self.host: Host = wanted.hosts[0]
        self._gpu_ids: tuple[str, ...] = ()
        self._launch = 0
        # The start or restart under way; None when there is none.
        self._starting: asyncio.Task[None] | None = None
        self._attachment: Attachment | None = None
        # Resolved by the relay's word on the newest launch: kernel_info content, or the error.
        self._ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._housing = Housing(wanted)
        # What a failed start leaves is being removed.
        self._removal: asyncio.Task[bool] | None = None
        # Messages from the ZMQ thread, not yet given to the attachment.
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._is_forwarding = False
        # What is known of the image under its Python; its id is known once a host was found.
        self._image_name = f"{wanted.environment.image} {wanted.environment.python}"
        self._image_id = ""
        self._record = around.records.image(self._image_name) or ImageRecord(kernel_info=DEFAULT_INFO)
        info = dict(self._record.kernel_info)
        self.channels = Channels(around.switchboard, endpoints, session=self._session, info=info, owner=self)

    def __repr__(self) -> str:
        return f"<Kernel {self.wanted.kernel_id[:8]} {self.state.value} on {self.host.name}, launch {self._launch}>"

    @property
    def exit_code(self) -> int | None:
        """The exit code as clients may see it; None also while nobody knows."""
        return self._exit.code

    @property
    def is_final(self) -> bool:
        """Whether nothing should restart this kernel by itself."""
        return self.state in (KernelState.FAILED, KernelState.STOPPED)

    @property
    def is_joined(self) -> bool:
        """Whether the kernel hears us at this moment, as far as we know."""
        return self._attachment is not None and self._attachment.is_joined

    # -- start

    async def check(self) -> None:
        """Fail fast; nothing was started yet. Raises KernelBridgeError."""
        found = await checks.find_host(self.wanted, self._around.reach)
        self.host, self._gpu_ids = found.host, found.gpu_ids
        self._know_image(found.image_id)

    def _know_image(self, image_id: str) -> None:
        self._image_id = f"{image_id} {self.wanted.environment.python}" if image_id else ""
        record = self._around.records.image(self._image_id) if image_id else None
        if record is not None:
            self.channels.know(dict(record.kernel_info), record.widgets)
        # The name may stand for another image than the last time: what that one had is no news of this one.
        self._record = record or replace(self._record, widgets=None)

    def begin(self) -> None:
        """Start behind the waiting channels; the outcome is heard by whoever waits there."""
        self._launch = 1
        self._starting = asyncio.create_task(self._begun(self._start()))

    async def _begun(self, start: Awaitable[None]) -> None:
        """Run a start or restart to its end and make its failure heard."""
        try:
            await start
        except LinkLost:
            how = "did not start: the link was lost meanwhile"
            self._fail(KernelEnded(environment=self.wanted.display_name, host=self.host.name, how=how))
        except KernelBridgeError as exc:
            self._fail(exc)
        except asyncio.CancelledError:
            self._fail(StartCancelled(environment=self.wanted.display_name), at_once=True)
        except Exception as exc:
            # The edge of the task: our own bug must be heard too.
            _LOG.exception("kernel %s: the start failed", self.wanted.kernel_id[:8])
            self._fail(ContainerFailed(host=self.host.name, image=self.wanted.environment.image, reason=repr(exc)))
        finally:
            self._starting = None

    async def _start(self) -> None:
        environment = self.wanted.environment
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as undo:
            engine = await self._around.reach(self.host)
            if not self._image_id or self.wanted.environment.pull == "always":
                self._know_image(await creation.pull(engine, environment.image, self._say))
            self._say("starting the container")
            undo.callback(self._undo_container)
            async with deadline(environment.start_seconds, self.host.name, "the start of the container"):
                labels = self._around.labels(self.wanted, self._gpu_ids)
                await self._housing.create(engine, labels=labels, gpu_ids=self._gpu_ids)
                await creation.start_container(engine, self.wanted, self._order())
                reach = partial(self._around.reach, self.host)
                place = creation.place(self.wanted, self.host, reach=reach, rest=self._around.rest)
                self._attachment = Attachment(place, self, owner=self._around.owner)
                await self._attachment.join()
                self._say("starting the kernel")
                info = await self._ready
            undo.pop_all()
        self._open(info)
        _LOG.info("[%s k=%s] started in %.1f s", self.host.name, self.wanted.kernel_id[:4], time.monotonic() - began)

    def _order(self) -> dict[str, Any]:
        return creation.order(self.wanted, launch=self._launch, session=self._session)

    def _undo_container(self) -> None:
        """Leave nothing behind of a start that failed or was cancelled; its user does not wait for that."""
        attachment, self._attachment = self._attachment, None
        self._removal = asyncio.create_task(self._remove(attachment))

    def _open(self, info: dict[str, Any]) -> None:
        self.state, self.failure = KernelState.RUNNING, None
        self._record = replace(self._record, kernel_info=info)
        self._remember_image()
        refuse = outcome.debug_refusal(self.wanted.environment)
        self.channels.open(launch=self._launch, info=info, refuse_debug=refuse)
        self._around.observe(self.wanted.kernel_id, self.state.value, "")

    def _remember_image(self) -> None:
        if self._image_id:
            self._around.records.remember(name=self._image_name, image_id=self._image_id, record=self._record)

    def _say(self, text: str) -> None:
        """Progress: to the waiting cell, to those who watch the fleet, to the log."""
        self.channels.progress(f"{self.wanted.display_name} on {self.host.name}: {text}")
        self._around.observe(self.wanted.kernel_id, self.state.value, text)
        _LOG.debug("[%s k=%s] %s", self.host.name, self.wanted.kernel_id[:4], text)

    # -- what becomes of it

    async def relaunch(self) -> None:
        """Start the kernel process again in the same container; a start under way is joined.

        Raises KernelBridgeError when the container is no more and another cannot be started.
        """
        self._exit.cancel()
        if self._starting is not None:
            return
        self.state = KernelState.STARTING
        self.channels.wait("restarting the kernel")
        if self._attachment is None:
            await self._remove(None)
            await self.check()
            self._ready = self._loop.create_future()
            self.begin()
            return
        self._launch += 1
        self._ready = self._loop.create_future()
        self._attachment.forget_waiting()
        self._attachment.command(self._order())
        self._starting = asyncio.create_task(self._begun(self._restarted()))

    async def _restarted(self) -> None:
        self._say("restarting the kernel" if self.is_joined else "waiting for the link")
        async with deadline(self.wanted.environment.start_seconds, self.host.name, "the restart of the kernel"):
            self._open(await self._ready)

    def signal(self, number: int) -> None:
        """Send a signal to the kernel's process group; SIGTERM and SIGKILL end it."""
        if number != signal.SIGINT:
            self._exit.hasten()
        if self._starting is not None and number != signal.SIGINT:
            # Not there yet: for who asks it has ended; a relaunch joins the start, a stop ends it.
            self._exit.show(-number)
        elif self._attachment is not None:
            self._attachment.command({"do": "signal", "number": number})
            if not self.is_joined and number != signal.SIGINT:
                self._exit.show(-number)

    async def stop(self) -> bool:
        """End the kernel, its endpoints and its container; whether the container is gone. Safe to call twice."""
        if self.state is KernelState.STOPPED:
            return await self._remove(None)
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting], timeout=STOP_SECONDS)
        attachment, self._attachment = self._attachment, None
        self.state = KernelState.STOPPED
        self._exit.show(self.exit_code or 0)
        self._around.observe(self.wanted.kernel_id, self.state.value, "")
        self.channels.close()
        return await self._remove(attachment)

    async def remove(self) -> bool:
        """Remove the container; whether it is gone. A host that cannot be reached keeps it, and `clean` finds it."""
        return await self._remove(None)

    async def _remove(self, attachment: Attachment | None) -> bool:
        if attachment is not None:
            await attachment.aclose()
        return await self._housing.remove(self.host.name, partial(self._around.reach, self.host))

    def _fail(self, error: KernelBridgeError, *, at_once: bool = False) -> None:
        """The kernel will not come, or has ended for good: tell all who wait, then be seen as exited."""
        if self.state is KernelState.STOPPED:
            return
        # At once: the user's own wish.
        level = logging.INFO if at_once else logging.WARNING
        _LOG.log(level, "[%s k=%s] %s", self.host.name, self.wanted.kernel_id[:4], error)
        self.state, self.failure = KernelState.FAILED, error
        self.channels.end(error)
        self._around.observe(self.wanted.kernel_id, self.state.value, str(error))
        self._exit.show(error.exit_code, after_seconds=0 if at_once else exits.SHOWN_AFTER_SECONDS)

    def _die(self, event: Mapping[str, Any]) -> None:
        """The kernel process ended by itself; the container lives, and a restart is in place."""
        self.state = KernelState.EXITED
        code = int(event["code"])
        if code == 0 or event["wanted"]:
            # Asked to end, it has answered all it was asked; `os._exit(0)` in a cell has not.
            told = None if event["wanted"] else outcome.death(self.wanted, self.host, event)
            self.channels.wait("the kernel has ended", told)
            self._exit.show(code)
            return
        self.failure = outcome.death(self.wanted, self.host, event)
        self.channels.end(self.failure)
        self._around.observe(self.wanted.kernel_id, self.state.value, str(self.failure))
        self._exit.show(code, after_seconds=exits.SHOWN_AFTER_SECONDS)

    # -- called by the attachment, on the loop

    @property
    def is_congested(self) -> bool:
        """Whether a slow client holds so much back that nothing more should be acknowledged."""
        return self.channels.is_congested

    def delivered(self, packed: list[wire.Buffer]) -> None:
        """Messages of the kernel."""
        self.channels.deliver(packed)

    def told(self, event: dict[str, Any]) -> None:
        """The relay's word on a launch; one on an older launch is no news."""
        if event["launch"] != self._launch:
            return
        waits = not self._ready.done()
        if event["event"] == "ready" and waits:
            self._ready.set_result(event["info"])
        elif event["event"] == "failed" and waits:
            self._ready.set_exception(outcome.failed_start(self.wanted, self.host, event))
        elif event["event"] == "exited" and waits:
            self._ready.set_exception(outcome.death(self.wanted, self.host, event))
        elif event["event"] == "exited":
            self._die(event)

    def joined(self) -> None:
        """The stream is there, or there again."""
        self.channels.find()
        if self.state is KernelState.RUNNING:
            self._around.observe(self.wanted.kernel_id, self.state.value, "")

    def lost(self, error: LinkLost) -> None:
        """The stream is not there at the moment; the kernel runs on."""
        self.channels.lose(error)
        self._around.observe(self.wanted.kernel_id, "link lost", str(error))

    def ended(self, how: Exited | Missing) -> None:
        """The container has ended, or is gone."""
        text = "was removed from elsewhere" if isinstance(how, Missing) else f"was ended ({how})"
        error = KernelEnded(environment=self.wanted.display_name, host=self.host.name, how=text)
        attachment, self._attachment = self._attachment, None
        if attachment is not None:
            attachment.forget()
        if not self._ready.done():
            self._ready.set_exception(error)
        else:
            self._fail(error)

    # -- called by the channels, on the ZMQ thread

    def requests(self, packed: list[tuple[int, bytes]]) -> None:
        """Messages for the kernel."""
        self._inbox.extend(packed)
        if not self._is_forwarding:
            self._is_forwarding = True
            self._loop.call_soon_threadsafe(self._forward)

    def _forward(self) -> None:
        self._is_forwarding = False
        packed: list[tuple[int, bytes]] = []
        with contextlib.suppress(IndexError):
            while True:
                packed.append(self._inbox.popleft())
        if packed and self._attachment is not None:
            self._attachment.send(packed)

    def wished(self, wish: Wish) -> None:
        """A client wants something of the start."""
        self._loop.call_soon_threadsafe(self._grant, wish)

    def learned(self, widgets: str) -> None:
        """VS Code's probe has found the image's ipywidgets version."""
        self._loop.call_soon_threadsafe(self._learn, widgets)

    def _learn(self, widgets: str) -> None:
        self._record = replace(self._record, widgets=widgets)
        self._remember_image()

    def _grant(self, wish: Wish) -> None:
        if wish is Wish.CANCEL and self._starting is not None:
            self._starting.cancel()
        else:
            self._exit.show(0)
