"""One remote kernel, from the first check to the last trace removed: the only file that knows the order.

Channels answer the client meanwhile (channels/), the relay supervises over there (relay/), attachment.py joins the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from kernelbridge import creation, exits, opening, outcome
from kernelbridge.attachment import Attachment
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.sockets import Channels
from kernelbridge.channels.waiting import Wish
from kernelbridge.checks import Checks
from kernelbridge.config import Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.gpu_errors import GpuLost
from kernelbridge.handover import Handover
from kernelbridge.housing import Housing
from kernelbridge.joint import Joint
from kernelbridge.surroundings import KernelState, Surroundings
from kernelbridge.wanted import Wanted, deadline
from kernelbridge.whereabouts import Whereabouts

_LOG = logging.getLogger(__name__)

STOP_SECONDS = 30.0


class Kernel:
    """One kernel. Lives on the fleet's loop; `exit_code`, `is_final` and `failure` may be read from any thread."""

    def __init__(self, wanted: Wanted, endpoints: Endpoints, around: Surroundings) -> None:
        """Bind the endpoints and answer on them from now on. Raises OSError when they are taken."""
        self.wanted = wanted
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._session = wanted.session or uuid.uuid4().hex
        self.state = KernelState.STARTING
        self._exit = exits.ShownExit()
        # Why the kernel is not there; the sentence for people. Set when it fails or dies.
        self.failure: KernelBridgeError | None = None
        # Whether the container has lost them: a restart gets another one then.
        self._has_lost_gpus = False
        # The start or restart under way; None when there is none.
        self._starting: asyncio.Task[None] | None = None
        self._housing = Housing(wanted)
        # What a failed start leaves is being removed, or was; None unless the newest start has failed.
        self._removal: asyncio.Task[bool] | None = None
        self.where = Whereabouts(
            wanted, around, session=self._session, know=lambda info, widgets: self.channels.know(info, widgets)
        )
        self.channels = Channels(
            around.switchboard,
            endpoints,
            session=self._session,
            info=dict(self.where.image.record.kernel_info),
            owner=self,
            limits=around.limits,
        )
        self._joint = Joint(wanted, around, self.channels, self)
        self._handover = Handover(self._joint.send)

    def __repr__(self) -> str:
        return f"<Kernel {self.wanted.kernel_id[:8]} {self.state.value} on {self.host.name}>"

    @property
    def exit_code(self) -> int | None:
        """The exit code as clients may see it; None also while nobody knows."""
        return self._exit.code

    @property
    def host(self) -> Host:
        """Which host has it, or will."""
        return self.where.host

    @property
    def is_final(self) -> bool:
        """Whether nothing should restart this kernel by itself."""
        return self.state in (KernelState.FAILED, KernelState.STOPPED)

    @property
    def is_joined(self) -> bool:
        """Whether the kernel hears us at this moment, as far as we know."""
        return self._joint.is_joined

    # -- start

    async def check(self) -> None:
        """Fail fast; nothing was started yet. Raises KernelBridgeError."""
        self.where.found(await Checks(self.wanted, self._around.reach, self._around.cluster).find_hosts())

    def begin(self) -> None:
        """Start behind the waiting channels; the outcome is heard by whoever waits there."""
        self._removal = None
        self._joint.expect(1)
        self._starting = asyncio.create_task(self._begun(self._start()))

    def come_back(self, host: Host, *, takes: bool) -> None:
        """Join the relay of a kernel that runs already, behind the waiting channels, as soon as that can be."""
        self.where.host = host
        self.channels.hold()
        self._housing.is_there()
        self._joint.attachment(host, is_old=True, takes=takes).keep_joining()
        self._starting = asyncio.create_task(self._begun(self._find_again()))

    def begin_claimed(self, host: Host) -> None:
        """Start in the container that was left under our claim; where that fails, start afresh."""
        self.where.host = host
        self._starting = asyncio.create_task(self._begun(self._start_claimed()))

    async def _begun(self, start: Awaitable[None]) -> None:
        """Run a start or restart to its end and make its failure heard."""
        try:
            await start
        except BaseException as exc:
            # The edge of the task: our own bug must be heard too.
            if not isinstance(exc, KernelBridgeError | asyncio.CancelledError):
                _LOG.exception("kernel %s: the start failed", self.wanted.kernel_id[:8])
            is_wish = isinstance(exc, asyncio.CancelledError)
            self._fail(outcome.broken_start(self.wanted, self.host, exc), at_once=is_wish)
        finally:
            self._starting = None

    async def _start(self) -> None:
        began = time.monotonic()
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(self._undo_container)
            await opening.open_kernel(self, self.where, self._housing, self._around)
            self.say("starting the kernel")
            await self._opened("the start of the kernel")
            undo.pop_all()
        _LOG.info("[%s k=%s] started in %.1f s", self.host.name, self.wanted.kernel_id[:4], time.monotonic() - began)

    async def _find_again(self) -> None:
        self.say("joining the kernel again")
        if not self.where.is_held:
            self.where.remember()  # Otherwise who holds it would be forgotten if we are refused.
        assert self._joint.found is not None
        welcome = await self._joint.found
        self.where.remember()
        if self._joint.is_settled:
            return
        if welcome["outcome"] is not None:
            self._joint.ready.set_result({})
            self.died(welcome["outcome"])
            return
        self.say("starting the kernel")
        await self._opened("the start of the kernel")

    async def _start_claimed(self) -> None:
        joint = self._joint
        try:
            self.say("taking up the container again")
            attachment = joint.attachment(self.host, is_old=True, claim=self.wanted.claim)
            await attachment.join()
            self._housing.is_there()
            self.where.remember()
            joint.launch_again(joint.launch + 1, self.order(joint.launch + 1))
            await self._opened("the restart of the kernel")
        except KernelBridgeError as exc:
            _LOG.info("[%s k=%s] not taken up: %s", self.host.name, self.wanted.kernel_id[:4], exc)
            await joint.drop()
            if joint.launch:  # It was taken up and failed then: that is this kernel's failure.
                raise
            self._want(replace(self.wanted, kernel_id=str(uuid.uuid4())))
            await self.check()
            joint.expect(1)
            await self._start()

    async def _opened(self, what: str) -> None:
        async with deadline(self.wanted.environment.start_seconds, self.host.name, what):
            self._open(await self._joint.ready)

    # -- called by the opening

    def order(self, launch: int = 1) -> dict[str, Any]:
        """Return what the relay starts a launch with."""
        return creation.order(self.wanted, launch=launch, session=self._session)

    async def join(self) -> None:
        """Join the relay that was started."""
        await self._joint.drop()  # Of a container that came too late for its GPUs.
        await self._joint.attachment(self.host).join()

    def _undo_container(self) -> None:
        """Leave nothing behind of a start that failed or was cancelled; its user does not wait for that."""
        self.where.want_no_more()
        self._removal = asyncio.create_task(self._remove(self._joint.part()))

    def _open(self, info: dict[str, Any], *, busy: Mapping[str, Any] | None = None) -> None:
        self.state, self.failure = KernelState.RUNNING, None
        self.where.image.learn(info=info)
        refuse = outcome.debug_refusal(self.wanted.environment, self.host)
        self.channels.open(launch=self._joint.launch, info=info, refuse_debug=refuse, busy=busy)
        self._joint.activity.set("busy" if busy else "idle")
        self.tell(self._joint.activity.state)

    def tell(self, state: str, text: str = "") -> None:
        """For people: what has become of the kernel."""
        self._around.observe(self.wanted.kernel_id, state, text)

    def say(self, text: str) -> None:
        """Progress: to the waiting cell, to those who watch the fleet, to the log."""
        self.channels.progress(f"{self.wanted.display_name} on {self.host.name}: {text}")
        self.tell(self.state.value, text)
        _LOG.debug("[%s k=%s] %s", self.host.name, self.wanted.kernel_id[:4], text)

    # -- what becomes of it

    async def relaunch(self, wanted: Callable[[], Wanted]) -> None:
        """Start the kernel process again in the same container; a start under way is joined.

        Where the container is no more another is made, of what is `wanted` by now. Raises KernelBridgeError then.
        """
        self._exit.cancel()
        if self._starting is not None:
            return
        self.state = KernelState.STARTING
        self.channels.wait("restarting the kernel")
        if self._has_lost_gpus or not self._joint.is_there:
            self._housing.is_there()  # One that has ended by itself is kept until now.
            await self._remove(self._joint.part())
            self._has_lost_gpus = False
            try:
                self._want(wanted())
                await self.check()
            except KernelBridgeError as exc:
                self._fail(exc)
                raise
            self.begin()
            return
        launch = self._joint.launch + 1
        self._joint.launch_again(launch, self.order(launch))
        self._starting = asyncio.create_task(self._begun(self._restarted()))

    def _want(self, wanted: Wanted) -> None:
        """Nothing is there of what was wanted before."""
        self.wanted = self._joint.wanted = wanted
        self.where.want(wanted)
        self._housing = Housing(wanted)

    async def _restarted(self) -> None:
        self.say("restarting the kernel" if self.is_joined else "waiting for the link")
        await self._opened("the restart of the kernel")

    def signal(self, number: int) -> None:
        """Send a signal to the kernel's process group; SIGTERM and SIGKILL end it."""
        if number != signal.SIGINT:
            self._exit.hasten()
        if self._starting is not None and number != signal.SIGINT:
            # Not there yet: for who asks it has ended; a relaunch joins the start, a stop ends it.
            self._exit.show(-number)
        elif self._joint.is_there:
            self._joint.command({"do": "signal", "number": number})
            if not self.is_joined and number != signal.SIGINT:
                self._exit.show(-number)

    async def stop(self) -> bool:
        """End the kernel, its endpoints and its container; whether that is gone. May be called again."""
        is_stopped = self.state is KernelState.STOPPED
        return await self._remove(None if is_stopped else await self._let_go(state="stopped"))

    async def leave(self, *, end: bool, claim: str = "") -> None:
        """End this process's part in the kernel: it runs on, or, with `end`, may be taken up for a moment."""
        joint = self._joint
        is_found = joint.found is not None and (joint.found.done() or not end)
        is_there = joint.is_there and (joint.is_settled or is_found)
        if not is_there and (self.state is not KernelState.FAILED or self._removal is not None):
            # It was only about to come, or what its failed start left is being removed.
            await self.stop()
            return
        if claim:  # At once: an editor's restart looks for it before we are through.
            self.where.leave(claim=claim)
        joint.take_no_more()
        has_handed_on = await asyncio.wrap_future(self.channels.settled())
        attachment = await self._let_go(state="detached")
        is_heard = attachment is None or await attachment.goodbye(end=end, claim=claim, acknowledge=has_handed_on)
        self._housing.leave()
        self.where.leave(claim=claim, process="", connection_file="", stop_wanted=end and not is_heard)

    async def _let_go(self, *, state: str) -> Attachment | None:
        """Close this end, for people `state`; return what is joined still."""
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting], timeout=STOP_SECONDS)
        self.state = KernelState.STOPPED
        self._exit.show(self.exit_code or 0)
        self._joint.activity.close()
        self.tell(state)
        self.channels.close()
        return self._joint.part()

    async def _remove(self, attachment: Attachment | None) -> bool:
        if attachment is not None:
            await attachment.aclose()
        is_gone = await self._housing.remove(self.host.name, partial(self._around.site, self.host))
        if is_gone:
            self.where.forget()
        else:
            self.where.want_no_more()
            self.tell("stopping", f"{self.host.name} cannot be reached")
        return is_gone

    def _fail(self, error: KernelBridgeError, *, at_once: bool = False) -> None:
        """It will not come, or has ended for good, `at_once` by its user's wish: tell all who wait, then be exited."""
        if self.state is KernelState.STOPPED:
            return
        level = logging.INFO if at_once else logging.WARNING
        _LOG.log(level, "[%s k=%s] %s", self.host.name, self.wanted.kernel_id[:4], error)
        self.state, self.failure = KernelState.FAILED, error
        self.channels.end(error)
        self.tell(self.state.value, str(error))
        self._exit.show(error.exit_code, after_seconds=0 if at_once else exits.SHOWN_AFTER_SECONDS)

    def died(self, event: Mapping[str, Any]) -> None:
        """The kernel process ended by itself; the container lives, and a restart is in place."""
        if self.state is KernelState.EXITED:
            return
        if event.get("why"):
            # By a limit that the user set: nothing restarts by itself.
            self._fail(outcome.death(self.wanted, self.host, event))
            return
        self.state = KernelState.EXITED
        code = int(event["code"])
        if code == 0 or event["wanted"] or self._joint.activity.is_ending:
            # Asked to end, it has answered all it was asked; `os._exit(0)` in a cell has not.
            told = None if event["wanted"] else outcome.death(self.wanted, self.host, event)
            self.channels.wait("the kernel has ended", told)
            self._exit.show(code)
            return
        self.failure = outcome.death(self.wanted, self.host, event)
        self.channels.end(self.failure)
        self.tell(self.state.value, str(self.failure))
        self._exit.show(code, after_seconds=exits.SHOWN_AFTER_SECONDS)

    # -- called by the joint, on the loop

    def runs(self, info: dict[str, Any], running: Mapping[str, Any] | None) -> None:
        """A kernel that was there before answers."""
        self._open(info, busy=running)

    def leased(self, gpu_ids: Sequence[str]) -> None:
        """The relay says which GPUs it has."""
        self.where.gpu_ids = tuple(gpu_ids)

    def lost_gpus(self, parent: Mapping[str, Any]) -> None:
        """The container cannot reach its GPUs any more."""
        self._has_lost_gpus = True
        lost = GpuLost(environment=self.wanted.display_name, host=self.host.name)
        self.channels.notice(parent, f"[kernelbridge: {lost}]\n")
        self.tell(self._joint.activity.state, str(lost))

    def tried(self, error: KernelBridgeError) -> None:
        """The stream could not be joined at this time: who waits for a kernel that runs somewhere hears why."""
        if self.state is KernelState.STARTING:
            self.say(error.sentence)

    def gone(self, error: KernelBridgeError, *, is_ours: bool) -> None:
        """The container has ended or is gone, or another has it."""
        if is_ours:
            self.where.forget(whoever_has_it=True)
        else:
            self._housing.leave()
        if self._starting is None:
            self._fail(error)

    # -- called by the channels, on the ZMQ thread

    def requests(self, packed: list[tuple[int, bytes]]) -> None:
        """Messages for the kernel."""
        self._handover.put(packed)

    def wished(self, wish: Wish) -> None:
        """A client wants something of the start."""
        self._loop.call_soon_threadsafe(self._grant, wish)

    def learned(self, widgets: str) -> None:
        """VS Code's probe has found the image's ipywidgets version."""
        self._loop.call_soon_threadsafe(lambda: self.where.image.learn(widgets=widgets))

    def _grant(self, wish: Wish) -> None:
        if wish is Wish.CANCEL and self._starting is not None:
            self._starting.cancel()
        else:
            self._exit.show(0)
