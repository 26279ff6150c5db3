"""Run a user's command in a container or job of its own, and stay joined to it over cuts until it has ended.

It has what a kernel has: host, image, GPUs, queue, mounts, relay. Its output comes once and in order; it runs on when
this process goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from kernelbridge.config.schema import Host
from kernelbridge.errors import (
    CommandNotRun,
    GpuLost,
    KernelBridgeError,
    KernelHeld,
    KernelOfOtherVersion,
    LinkLost,
)
from kernelbridge.hosts.backend import Exited, Missing, Over
from kernelbridge.hosts.labels import short_id
from kernelbridge.hosts.progress import Say, WorkProgress
from kernelbridge.hosts.relay_query import RelayAddress, relay_address
from kernelbridge.hosts.transport.retry import is_transient
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel import failures
from kernelbridge.kernel.placement import Placement
from kernelbridge.kernel.relay_client import RelayClient, RelayListener
from kernelbridge.kernel.request import KernelServices, LaunchRequest, launch_order, secret_values
from kernelbridge.kernel.start import kept_logs
from kernelbridge.kernel.start.launch import Launcher, WorkloadHandle
from kernelbridge.kernel.start.preflight import Preflight
from kernelbridge.kernel.workspace import COPY_SECONDS, KernelWorkspace
from kernelbridge.protocol import frames, terminal
from kernelbridge.protocol.handshake import (
    DroppedEvent,
    ExitedEvent,
    FailedEvent,
    GpuLostEvent,
    InputEvent,
    LeftOutputEvent,
    NoticeEvent,
    ReadyEvent,
    RelayEvent,
    Welcome,
)
from kernelbridge.protocol.terminal import WindowSize

# Of a command's input that it has not taken.
MOST_INPUT_BYTES = 1 << 20
# How long the removal of a start that was given up may take.
UNDO_SECONDS = 60.0
_LAUNCH = 1
_KINDS = {b"stream.stdout": terminal.OUTPUT, b"stream.stderr": terminal.ERRORS}


@dataclass(frozen=True, kw_only=True)
class RunOutput:
    """Where what a command writes, and what is to be said of it, goes. Called on the loop; must not block."""

    # What it wrote: terminal.OUTPUT or ERRORS, and bytes.
    write: Callable[[int, bytes], None]
    # Whether what was written is still on its way: then no more is taken.
    is_congested: Callable[[], bool]
    # Progress of the start.
    progress: Say
    # A line that stays.
    tell: Callable[[str], None]


class CommandRun:
    """One command. Everything runs on the fleet's loop."""

    def __init__(self, request: LaunchRequest, services: KernelServices, output: RunOutput) -> None:
        """`request.command` says what is run; its environment should persist."""
        self.request = request
        self._services = services
        self._output = output
        session = uuid.uuid4().hex
        self._session = session
        self.placement = Placement(request, services, session=session, image_known=lambda info, widgets: None)
        self._workload = WorkloadHandle(request)
        self._client: RelayClient | None = None
        loop = asyncio.get_running_loop()
        # Done when the command runs, and when it has ended, with its exit code; or with why neither comes.
        self._began: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[int] = loop.create_future()
        # Of its input: sent, and taken by it; changed by send() and by the relay's word.
        self._sent_bytes = self._taken_bytes = 0
        # What another process had given it before, as far as is known.
        self._given_before_bytes = 0
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._is_lost = False
        # Why it cannot be joined, as it was told last.
        self._trouble = ""
        self._workspace = KernelWorkspace(
            data_folder=services.records.folder, link_of=self._link_of, say=self._say, tell=output.tell
        )

    async def _link_of(self, host: Host) -> AnyLink:
        return (await self._services.backend(host)).link

    def __repr__(self) -> str:
        return f"<CommandRun {self.request.kernel_id[:8]} on {self.host.name}>"

    @property
    def host(self) -> Host:
        """The host that has it, or will."""
        return self.placement.host

    @property
    def unfetched_text(self) -> str:
        """Where results are that have not come here."""
        return f"the others stay in the workspace's copy on {self.host.name}"

    @property
    def _what(self) -> str:
        return self.request.workload

    @property
    def _has_ended(self) -> bool:
        """Whether it has come to an end; nobody has taken it from us."""
        is_taken = self._ended.done() and isinstance(self._ended.exception(), KernelHeld | KernelOfOtherVersion)
        return self._ended.done() and not is_taken

    # -- asked by front-ends

    async def start(self) -> None:
        """Start it, and return when it runs; whatever was made for it is gone if this raises KernelBridgeError."""
        try:
            await self._start()
            await self._began
        except BaseException as exc:
            has_log = isinstance(exc, Exception) and await self._keep_log(exc)
            await asyncio.shield(self.remove())
            if isinstance(exc, Exception):
                error = failures.broken_start(self.request, self.host, exc, entrypoint=self.placement.entrypoint)
                if has_log:
                    failures.name_log(error, self.request)
                raise error from exc
            raise

    async def _keep_log(self, failure: Exception) -> bool:
        """Keep what a start that has failed wrote; whether that is anything."""
        if not self._workload.may_be_there or is_transient(failure):
            return False
        address = self._address()
        text = await kept_logs.fetched(address, address.workload)
        return self._services.kept_logs.keep(self.request.kernel_id, text, hidden=secret_values(self.request))

    async def _start(self) -> None:
        services, request = self._services, self.request
        preflight = Preflight(
            request,
            services.engine,
            services.cluster,
            config=Path(services.config),
            watch_login=services.watch_login,
            say=lambda host, text: self._say(text, host=host),
        )
        self.placement.set_candidates(await preflight.find_hosts())
        launcher = Launcher(
            placement=self.placement,
            workload=self._workload,
            services=services,
            order=launch_order(request, launch=_LAUNCH, session=self._session),
            say=self._say,
            tell=self._output.tell,
            join=self._join,
            bring=lambda host: self._workspace.bring(request.project, host),
        )
        await launcher.launch()
        await self._workspace.watch(request.project, self.host)

    def _say(self, news: str | WorkProgress, *, host: Host | None = None) -> None:
        name = (host or self.host).name
        self._output.progress(news.on(name) if isinstance(news, WorkProgress) else f"{name}: {news}")

    async def _join(self) -> None:
        if self._client is not None:  # Of a container that came too late for its GPUs.
            await self._client.aclose()
        self._client = self._make_client(takes=False)
        await self._client.join()

    def join_running(self, host: Host, *, takes: bool) -> None:
        """Join one that runs already, or has ended and left its output."""
        self.placement.host = host
        self._workload.adopt()
        self._client = self._make_client(takes=takes)
        self._client.keep_joining()
        # Whoever holds it would be forgotten if we are refused.
        if takes or not self.placement.is_held:
            self.placement.remember()

    async def wait(self) -> int:
        """Return the command's exit code once it has ended: 128 and the number of the signal that ended it.

        Raises why nobody will know it.
        """
        return await asyncio.shield(self._ended)

    async def began(self) -> None:
        """Return when one that was joined is known to run, or to have run; its workspace is kept in step from here on.

        Raises why it is not.
        """
        await asyncio.shield(self._began)
        await self._workspace.watch(self.request.project, self.host)

    async def send(self, data: bytes) -> None:
        """Give the command input; returns when it may be given more. Empty: its end."""
        if self._client is None or self._ended.done():
            return
        packed = frames.pack(frames.Message(frames.STDIN, _LAUNCH, [data]))
        self._client.send([(frames.LANE_OF[frames.STDIN], packed)])
        self._sent_bytes += len(data)
        if self._sent_bytes - self._taken_bytes > MOST_INPUT_BYTES:
            self._may_send.clear()
        await self._may_send.wait()

    def resize(self, window: WindowSize) -> None:
        """Tell the command how large its terminal is by now."""
        self._command({"do": "resize", "window": window.to_dict()})

    def signal(self, number: int) -> None:
        """Send a signal to the command and its process group."""
        self._command({"do": "signal", "number": number})

    def _command(self, order: dict[str, Any]) -> None:
        if self._client is not None:
            self._client.command(order)

    async def detach(self) -> None:
        """Leave it running: its output waits for whoever attaches."""
        await self._workspace.aclose()
        client = self._let_go()
        if client is not None:
            await client.goodbye(end=False, acknowledge=not self._output.is_congested())
        self._workload.forget()
        self.placement.record_detached(process="", connection_file="")

    async def finish(self) -> None:
        """Copy nothing more; of a command that has ended its last results come first, which may take hours."""
        try:
            async with asyncio.timeout(COPY_SECONDS):
                await self._workspace.aclose(finishes=self._has_ended)
        except TimeoutError:
            self._output.tell(f"Not all results came within {COPY_SECONDS / 3600:g} h: {self.unfetched_text}.")

    async def remove(self) -> bool:
        """Remove its container or job; whether that is gone. A host that does not do so in time does it later."""
        is_gone = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNDO_SECONDS):
                await self._workspace.aclose()
                client = self._let_go()
                if client is not None:
                    await client.aclose()
                is_gone = await self._workload.remove(self.host.name, partial(self._services.backend, self.host))
        if is_gone:
            self.placement.forget()
            return True
        self.placement.record_stop_wanted()
        why = self._workload.trouble or f"{self.host.name} did not answer within {UNDO_SECONDS:g} s"
        self._output.tell(
            f"The container of {short_id(self.request.kernel_id)} is not removed yet ({why}). kernelbridge removes it "
            f"when it is next in touch with {self.host.name}; `kernelbridge ps` shows whether it is still there."
        )
        return False

    def _let_go(self) -> RelayClient | None:
        """Have no client from now on, and return it, to be closed; nobody waits to send."""
        client, self._client = self._client, None
        self._may_send.set()
        return client

    # -- the stream

    def _make_client(self, *, takes: bool) -> RelayClient:
        return RelayClient(self._address(), self._listener(), owner=self._services.owner, takes=takes)

    def _address(self) -> RelayAddress:
        services = self._services
        backend = partial(services.backend, self.host)
        environment = self.placement.environment
        return relay_address(self.request.kernel_id, environment, self.host, backend=backend, rest=services.rest)

    def _listener(self) -> RelayListener:
        return RelayListener(
            delivered=self._delivered,
            event_received=self._event_received,
            joined=self._joined,
            lost=self._lost,
            ended=self._container_ended,
            join_failed=self._join_failed,
            paused=self._paused,
            taken=self._taken,
            acknowledges=lambda: (frames.QUICK,) if self._output.is_congested() else frames.LANES,
        )

    def _delivered(self, packed: list[frames.Buffer]) -> None:
        for one in packed:
            message = frames.unpack(one)
            kind = _KINDS.get(bytes(message.parts[0])) if message.channel == frames.IOPUB else None
            if kind is not None:
                self._output.write(kind, bytes(message.parts[-1]))

    def _event_received(self, event: RelayEvent) -> None:
        match event:
            case ReadyEvent(entrypoint=trouble):
                if trouble:
                    self._output.tell(failures.entrypoint_failure(self.placement.entrypoint, trouble, what=self._what))
                self._set_begun()
            case FailedEvent():
                self._fail(self._why_not_started(event))
            case ExitedEvent():
                self._set_ended(event)
            case GpuLostEvent():
                lost = GpuLost(environment=self.request.display_name, host=self.host.name, what=self._what)
                self._output.tell(str(lost))
            case DroppedEvent():
                self._output.tell(failures.dropped_words(event))
            case NoticeEvent():
                self._show_notice(event)
            case InputEvent(taken_bytes=taken):
                self._set_taken(taken)
            case LeftOutputEvent():
                pass  # A command has no cells.
            case _:
                assert_never(event)

    def _set_taken(self, taken_bytes: int) -> None:
        self._given_before_bytes = max(self._given_before_bytes, taken_bytes - self._sent_bytes)
        self._taken_bytes = taken_bytes - self._given_before_bytes
        if self._sent_bytes - self._taken_bytes <= MOST_INPUT_BYTES:
            self._may_send.set()

    def _show_notice(self, event: NoticeEvent) -> None:
        if setup := failures.setup_progress(event):
            self._say(setup)
        elif text := failures.notice_text(event, self.host, what=self._what):
            self._output.tell(text)

    def _why_not_started(self, event: FailedEvent) -> KernelBridgeError:
        if event.reason and not event.setup:
            name = self.request.environment.name
            return CommandNotRun.in_its_place(host=self.host.name, environment=name, reason=event.reason)
        return failures.failed_start(self.request, self.host, event, entrypoint=self.placement.entrypoint)

    def _set_begun(self) -> None:
        if not self._began.done():
            self._began.set_result(None)

    def _set_ended(self, event: ExitedEvent) -> None:
        self._set_begun()
        if self._ended.done():
            return
        if event.why:
            self._fail(failures.death(self.request, self.host, event))
            return
        if event.out_of_memory or event.full:
            self._output.tell(str(failures.death(self.request, self.host, event)))
        self._ended.set_result(terminal.ended(event.code).exit_code)
        self._may_send.set()

    def _fail(self, error: KernelBridgeError) -> None:
        for waited in (self._began, self._ended):
            if not waited.done():
                waited.set_exception(error)
                waited.exception()  # Whoever waits gets it; nobody may.
        self._may_send.set()

    def _joined(self, welcome: Welcome) -> None:
        status = welcome.status
        self.placement.gpu_ids = tuple(status.gpus.ids)
        self.placement.remember()
        if self._is_lost:
            self._is_lost = False
            self._output.tell(f"{self.host.name} can be reached again.")
        if status.ready:
            self._set_begun()
        # Whatever of its output nobody has taken comes before its own word of its end.
        if status.outcome is not None and not status.undelivered_bytes:
            self._set_ended(status.outcome)

    def _lost(self, error: LinkLost) -> None:
        if not self._is_lost and not self._ended.done():
            self._is_lost = True
            self._output.tell(f"{error.sentence} The command runs on; its output comes when the host can be reached.")

    def _join_failed(self, error: KernelBridgeError, may_pass: bool) -> None:
        if not may_pass and str(error) != self._trouble:
            self._trouble = str(error)
            self._output.tell(self._trouble)

    def _paused(self, is_paused: bool) -> None:
        if is_paused:
            self._output.tell(failures.pause_text(self.request.kernel_id, self.host, what=self._what))

    def _taken(self, error: KernelHeld | KernelOfOtherVersion) -> None:
        self._workload.forget()
        self._fail(error)

    def _container_ended(self, how: Exited | Missing | Over) -> None:
        self._fail(failures.container_end(self.request, self.host, how))
