"""Carry out one remote kernel's life: feed what happens to its `Lifecycle`, and do what that decides.

The channels answer clients meanwhile, the relay supervises over there, `RelayClient` keeps the two joined. All that one
kernel does is here, in one place, because each part of it needs the others' state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar, assert_never

from kernelbridge.channels.cell_questions import CellQuestion
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.proxy import KernelProxy, ProxyOwner
from kernelbridge.channels.user_cells import CellAsked
from kernelbridge.channels.waiting import ShutdownIntent
from kernelbridge.config.schema import Forward, Host
from kernelbridge.errors import (
    GpuLost,
    KernelBridgeError,
    KernelHeld,
    KernelOfOtherVersion,
    KernelTaken,
    LoginRefused,
    StartCancelled,
    StartTimeout,
)
from kernelbridge.hosts.backend import Exited, Missing, Over, Workload
from kernelbridge.hosts.forwards.port_forwards import PortForwards
from kernelbridge.hosts.progress import WorkProgress
from kernelbridge.hosts.relay_query import RelayAddress, ask_status, relay_address
from kernelbridge.hosts.transport.login.questions import LoginQuestion
from kernelbridge.hosts.transport.login.stage import LoginStage
from kernelbridge.hosts.transport.retry import is_transient
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel import failures, lifecycle
from kernelbridge.kernel.lifecycle import (
    Checked,
    Event,
    ExecutionLasted,
    ExitDue,
    Launched,
    Lifecycle,
    Phase,
    ShutdownAsked,
    StartFailed,
)
from kernelbridge.kernel.placement import Placement
from kernelbridge.kernel.recipe import with_process_keys
from kernelbridge.kernel.relay_client import RelayClient, RelayListener
from kernelbridge.kernel.request import KernelServices, LaunchRequest, launch_order, secret_values
from kernelbridge.kernel.start import kept_logs
from kernelbridge.kernel.start.launch import Launcher, WorkloadHandle
from kernelbridge.kernel.start.preflight import Preflight
from kernelbridge.kernel.state import KernelState
from kernelbridge.kernel.workspace import KernelWorkspace, debug_paths
from kernelbridge.mailbox import LoopMailbox
from kernelbridge.plain_text import printable
from kernelbridge.protocol import frames
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

_LOG = logging.getLogger(__name__)

# How long a removal waits for the start that it undoes.
STOP_SECONDS = 30.0
# How long a relay that was never joined may take to say who holds it, before its container is removed.
OWNER_ASK_SECONDS = 5.0
# How long the last results of a workspace may take.
RESULTS_SECONDS = 30.0
# Of a line of progress; what is longer is cut.
PROGRESS_LENGTH = 1000

_T = TypeVar("_T")


class _Cells:
    """What is known of the cells that were run in one kernel."""

    def __init__(self) -> None:
        # Whether a user had run one before this process came; supposed of a kernel that was found, until it says so.
        self.was_used = False
        # What clients have said; and set with that, and by a user's cell that does not say its notebook.
        self.asked = CellAsked()
        self.is_heard = asyncio.Event()
        # Set when a user's cell comes that has to wait.
        self.is_waiting = asyncio.Event()


class _LoginAnswers:
    """Asks in the cells of one kernel that wait what logins to its hosts need of a person."""

    def __init__(self, services: KernelServices, channels: KernelProxy, hosts: Sequence[Host]) -> None:
        self._services = services
        self._channels = channels
        self._mailbox = LoopMailbox()
        self._hosts: set[Host] = set()
        self._registered = contextlib.ExitStack()
        # One question at a time.
        self._turn = asyncio.Lock()
        self._is_closed = False
        self.add(*hosts)

    def __repr__(self) -> str:
        return f"<_LoginAnswers {len(self._hosts)} hosts>"

    def add(self, *hosts: Host) -> None:
        """Ask for logins to these hosts too, from now on."""
        for host in set(hosts) - self._hosts:
            self._hosts.add(host)
            self._registered.enter_context(self._services.answer_logins(host, self._ask))

    def retry(self) -> None:
        """Have logins tried again that were refused: somebody wants it."""
        for host in self._hosts:
            self._services.retry_login(host)

    async def _ask(self, question: LoginQuestion) -> str | None:
        """Return what was typed in a cell; None where there is none that can ask, or it was put aside."""
        async with self._turn:
            if self._is_closed:
                return None
            answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
            asked = CellQuestion(
                prompt=question.prompt,
                notes=question.notes,
                echo=question.echo,
                answered=lambda text: self._mailbox.post(_settle, answer, text),
            )
            self._channels.ask(asked)
            try:
                return await answer
            except asyncio.CancelledError:
                self._channels.cancel_question()
                raise

    def close(self) -> None:
        """Ask nothing more."""
        self._is_closed = True
        self._registered.close()


def _settle(future: asyncio.Future[str | None], result: str | None) -> None:
    """Set the result of a future that somebody may wait for no more."""
    if not future.done():
        future.set_result(result)


class Kernel:
    """One kernel. Lives on the fleet's loop; `state`, `exit_code` and `failure` may be read from any thread."""

    def __init__(
        self,
        request: LaunchRequest,
        endpoints: Endpoints,
        services: KernelServices,
        *,
        proxy: Callable[..., KernelProxy] = KernelProxy,
        client: Callable[..., RelayClient] = RelayClient,
    ) -> None:
        """Bind the endpoints and answer on them from now on. Raises OSError when they are taken."""
        self.request = request
        self._services = services
        self._connect = client
        self._loop = asyncio.get_running_loop()
        self._session = request.session or uuid.uuid4().hex
        self._life, self._workload = Lifecycle(), WorkloadHandle(request)
        # The stream to the relay; None where there is no relay. Set by _make_client, cleared by _pop_client.
        self._client: RelayClient | None = None
        # The launch, claim or check under way; and those that were cancelled and have not ended yet.
        self._start: asyncio.Task[None] | None = None
        self._cancelled: set[asyncio.Task[None]] = set()
        # When the newest launch began, None once it answers; and whether only a record knows the container, so far.
        self._began_at: float | None = None
        # Whether a kernel process has answered here; else whether something was kept of what it wrote.
        self._is_only_remembered = self._has_answered = self._has_kept_log = False
        # The newest removal of the container. It, and all else that goes on when nobody waits for it.
        self._removal: asyncio.Task[bool] | None = None
        self._chores: set[asyncio.Task[Any]] = set()
        # Hears of logins while there is no link; and timers, by what they feed.
        self._logins = contextlib.ExitStack()
        self._timers: dict[type[Event], asyncio.TimerHandle] = {}
        # What a restart in a new container asks for, a kernel's claim as it is left, the way of the last WELCOME.
        self._renewed: Callable[[], LaunchRequest] = lambda: self.request
        self._claim = self._way = ""
        self._cells = _Cells()
        self.placement = Placement(request, services, session=self._session, image_known=self._image_known)
        self.channels = proxy(
            services.poller,
            endpoints,
            session=self._session,
            info=dict(self.placement.image.record.kernel_info),
            owner=self._owner(),
            limits=services.limits,
        )
        self.channels.guess_widgets(self.placement.image.record.widgets)
        # Fetches the last of the workspace; None as long as the kernel is held.
        self._parting: asyncio.Task[None] | None = None
        folder, tell = services.records.folder, self.channels.tell_next_cell
        self._workspace = KernelWorkspace(data_folder=folder, link_of=self._link_of, say=self._say, tell=tell)
        self._answers = _LoginAnswers(services, self.channels, request.hosts)

    def _image_known(self, info: dict[str, Any], widgets: str | None) -> None:
        self.channels.set_kernel_info(info, widgets)

    def _owner(self) -> ProxyOwner:
        return ProxyOwner(
            mailbox=LoopMailbox(),
            requested=self.requested,
            shutdown_requested=self.shutdown_requested,
            widgets_learned=self.widgets_learned,
            cell_asked=self.cell_asked,
            cell_waits=self.cell_waits,
            only_own=self.request.only_own,
            paths=debug_paths(self.request.project),
        )

    @cached_property
    def forwards(self) -> PortForwards:
        """The container's ports on this machine; they listen while there is a container, and it is ours."""
        return PortForwards(self.request.display_name, self._reach)

    async def _link_of(self, host: Host) -> AnyLink:
        return (await self._services.backend(host)).link

    def __repr__(self) -> str:
        return f"<Kernel {self.request.kernel_id[:8]} {self.state} on {self.host.name}>"

    @property
    def state(self) -> KernelState:
        """What people are told of the kernel."""
        return self._life.state

    @property
    def failure(self) -> KernelBridgeError | None:
        """Why the kernel is not there, as a sentence for people; None while it runs."""
        return self._life.failure

    @property
    def exit_code(self) -> int | None:
        """The exit code as clients may see it; None also while nobody knows."""
        return self._life.exit.code

    @property
    def host(self) -> Host:
        """The host that has it, or will."""
        return self.placement.host

    @property
    def is_final(self) -> bool:
        """Whether nothing should restart this kernel by itself."""
        return self.state in (KernelState.FAILED, KernelState.STOPPED)

    @property
    def is_used(self) -> bool:
        """Whether a user has run a cell in it: only then has it a state that somebody may want back."""
        return self._cells.was_used or self._cells.asked.is_users

    @property
    def way(self) -> str:
        """How its relay was joined last: see handshake.Status."""
        return self._way

    @property
    def is_joined(self) -> bool:
        """Whether the relay hears us at this moment, as far as we know."""
        return self._client is not None and self._client.is_joined

    # -- asked by front-ends

    async def check(self) -> None:
        """Fail fast; nothing was started yet. Raises KernelBridgeError."""
        self._answers.retry()
        await self._find_hosts()

    async def _find_hosts(self) -> None:
        services = self._services
        preflight = Preflight(
            self.request,
            services.engine,
            services.cluster,
            config=Path(services.config),
            watch_login=services.watch_login,
            say=lambda host, text: self._say(text, host=host),
        )
        self.placement.set_candidates(await preflight.find_hosts())

    async def asking(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Return what some work brings; where a login for it needs a person, once a cell has come that can ask one.

        Raises: as the work. LoginRefused where a cell has come that cannot ask anybody.
        """
        while True:
            try:
                return await work()
            except LoginRefused as exc:
                if not exc.needs_person or not await self._can_ask(exc):
                    raise
            self._answers.retry()

    async def _can_ask(self, refusal: LoginRefused) -> bool:
        """Wait for a user's cell; whether it can ask."""
        while True:
            self._cells.is_waiting.clear()
            can_ask = await asyncio.wrap_future(self.channels.can_ask())
            if can_ask is not None:
                return can_ask
            _LOG.info("%s waits for a cell to ask in: %s", self._log_prefix, refusal.sentence)
            self._say("the login needs you: run a cell, it asks there")
            await self._cells.is_waiting.wait()

    def retarget(self, request: LaunchRequest) -> None:
        """Stand for another kernel than it was bound for; nothing was started yet.

        Where that is not there any more, what it was bound for is started.
        """
        bound, notebook, title = self.request, self.request.notebook, self.request.title
        self._renewed = lambda: bound
        self.request = replace(request, notebook=notebook, title=title) if notebook else request
        self.placement.reset(self.request)
        self._workload = WorkloadHandle(self.request)

    async def notebook(self, seconds: float) -> str:
        """Return the notebook's path as soon as a client has told it; empty where none does, or takes longer.

        VS Code tells it in the second of its hidden cells: the first is answered from what is known of the image.
        """
        if self.request.notebook:
            return self.request.notebook
        known = self.placement.image.record
        if known.widgets is None:
            return ""
        self.channels.set_kernel_info(dict(known.kernel_info), known.widgets)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._cells.is_heard.wait()
        return self.request.notebook

    def begin(self) -> None:
        """Start behind the waiting channels; who waits there gets the outcome."""
        self._feed(lifecycle.Begin())

    def check_and_begin(self) -> None:
        """Check the hosts, and start, behind the waiting channels; who waits there gets the outcome of both."""
        self._feed(lifecycle.Check())

    def come_back(self, host: Host, *, takes: bool) -> None:
        """Join the relay of a kernel that runs already, behind the waiting channels, as soon as that can be."""
        self.placement.host = host
        self._answers.add(host)
        self._cells.was_used = self._is_only_remembered = True
        self.channels.expect_left_output()
        self._feed(lifecycle.ComeBack(takes=takes))

    def begin_claimed(self, host: Host) -> None:
        """Start in the container that was left under our claim; where that fails, start afresh."""
        self.placement.host = host
        self._answers.add(host)
        self._cells.was_used = True
        self.channels.expect_left_output()
        self._feed(lifecycle.Claim())

    def renew_process(self, request: LaunchRequest) -> None:
        """Take over what the next start of the kernel process reads anew, in whatever container."""
        environment = with_process_keys(self.request.environment, request.environment)
        self.request = replace(self.request, environment=environment, environ=request.environ)

    async def relaunch(self, renewed: Callable[[], LaunchRequest], *, is_outdated: bool = False) -> None:
        """Start the kernel process again in the same container; a start under way is joined.

        Where the container is no more, `is_outdated`, or our relay in it does not answer, another is made, of what
        `renewed` returns then. Raises KernelBridgeError where that fails; KernelTaken, KernelHeld or
        KernelOfOtherVersion where that is another's.
        """
        self._renewed = renewed
        self._answers.retry()
        is_silent = self._client is not None and self._client.is_silent
        self._feed(lifecycle.Relaunch(is_joined=self.is_joined, is_silent=is_silent, is_outdated=is_outdated))
        if self._is_in(Phase.CHECKING) and self._start is not None:
            await asyncio.wait([self._start])
        if self._life.phase in (Phase.UNDONE, Phase.TAKEN) and self.failure is not None:
            raise self.failure

    def signal(self, number: int) -> None:
        """Send a signal to the kernel's process group; SIGTERM and SIGKILL end it, SIGINT is for the running cell."""
        self._feed(lifecycle.Signal(number=number, is_joined=self.is_joined))

    def discard(self) -> None:
        """Remove the container of a kernel that failed; its endpoints go on to say why there is no kernel."""
        self._feed(lifecycle.Discard())

    async def stop(self) -> bool:
        """End the kernel, its endpoints and its container; whether that is gone. May be called again."""
        self._feed(lifecycle.Stop(cancelled=self._cancellation()))
        return await self._removed()

    @property
    def is_being_removed(self) -> bool:
        """Whether it was stopped, and its container may still be there."""
        return self._removal is not None and not self._removal.done()

    async def detach(self, *, end: bool, claim: str = "") -> None:
        """End this process's part in the kernel: it runs on, or, with `end`, may be taken up for a moment.

        One that was only about to come is stopped.
        """
        self._claim = claim
        self._feed(lifecycle.Detach(end=end, cancelled=self._cancellation()))
        if self._is_in(Phase.DETACHING):
            has_handed_on = await asyncio.wrap_future(self.channels.settled())
            if self._is_in(Phase.DETACHING):
                self._feed(lifecycle.OutputDelivered())
                await self._say_goodbye(end=end, claim=claim, acknowledge=has_handed_on)
                return
        if self._removal is not None:
            await self._removed()

    async def _say_goodbye(self, *, end: bool, claim: str, acknowledge: bool) -> None:
        await self._close_workspace()
        client = self._pop_client()
        is_heard = client is None or await client.goodbye(end=end, claim=claim, acknowledge=acknowledge)
        self._workload.forget()
        self.placement.record_detached(
            claim=claim, process="", connection_file="", is_ending=end, stop_wanted=end and not is_heard
        )

    async def _removed(self) -> bool:
        assert self._removal is not None
        return await asyncio.shield(self._removal)

    def _cancellation(self) -> KernelBridgeError:
        return StartCancelled(environment=self.request.display_name)

    # -- the life

    def _is_in(self, phase: Phase) -> bool:
        return self._life.phase is phase

    def _feed(self, event: Event) -> None:
        """Take in what happened, and do what follows from it."""
        for action in self._life.feed(event):
            if isinstance(action, lifecycle.ForPeople):
                self._tell_people(action)
            elif isinstance(action, lifecycle.ForClients):
                self._tell_clients(action)
            elif isinstance(action, lifecycle.ForTimers):
                self._set_timer(action)
            elif isinstance(action, lifecycle.ForStart):
                self._change_start(action)
            elif isinstance(action, lifecycle.ForHost):
                self._act_on_host(action)
            else:
                self._act_on_record(action)

    def _tell_people(self, action: lifecycle.ForPeople) -> None:
        """Carry out an action for who watches the kernel."""
        match action:
            case lifecycle.Report(state=state, text=text):
                self._services.observe(self.request.kernel_id, state, text)
            case lifecycle.Progress(text=text):
                self._say(text)
            case lifecycle.LogFailure(error=error, on_request=on_request):
                _LOG.log(logging.INFO if on_request else logging.WARNING, "%s %s", self._log_prefix, error.logged)
            case _:
                assert_never(action)

    def _tell_clients(self, action: lifecycle.ForClients) -> None:
        """Carry out an action for clients."""
        match action:
            case lifecycle.HoldOutput():
                self.channels.hold_output()
            case lifecycle.QueueRequests(why=why, error=error):
                self.channels.restarting(why, error)
            case lifecycle.OpenChannels(launch=number, info=info, busy=busy):
                self._open(number, info, busy)
            case lifecycle.FailWaiting(error=error):
                if self._life.phase in (Phase.GONE, Phase.TAKEN, Phase.UNDONE):
                    self.forwards.close()
                self.channels.fail(error)
            case lifecycle.SuspendChannels(error=error):
                self._watch_logins()
                self.channels.link_lost(error)
            case lifecycle.ResumeChannels():
                self._logins.close()
                self.channels.link_restored()
            case lifecycle.PrintNotice(parent=parent, text=text):
                self.channels.print_notice(parent, text)
            case lifecycle.ExplainWait(text=text):
                self.channels.explain_wait(text)
            case lifecycle.Interrupt():
                self.channels.interrupt()
            case lifecycle.CloseChannels():
                self.forwards.close()
                self._logins.close()
                self._answers.close()
                self.channels.close()
                self._parting = self._spawn(self._workspace.aclose(finishes=True))
            case _:
                assert_never(action)

    def _set_timer(self, action: lifecycle.ForTimers) -> None:
        """Carry out an action on a timer."""
        match action:
            case lifecycle.PublishExit(after_seconds=seconds):
                self._stop_timer(ExitDue)
                if seconds:
                    self._feed_later(seconds, ExitDue())
            case lifecycle.RetractExit():
                self._stop_timer(ExitDue)
            case lifecycle.WatchExecution():
                if ExecutionLasted not in self._timers:
                    self._feed_later(lifecycle.LASTING_SECONDS, ExecutionLasted())
            case lifecycle.UnwatchExecution():
                self._stop_timer(ExecutionLasted)
            case lifecycle.AwaitAnswer(what=what):
                seconds = self.request.environment.start_seconds
                error = StartTimeout(host=self.host.name, what=what, seconds=seconds)
                self._feed_later(seconds, StartFailed(error=error))
            case lifecycle.StopAwaitingAnswer():
                self._stop_timer(StartFailed)
            case _:
                assert_never(action)

    def _change_start(self, action: lifecycle.ForStart) -> None:
        """Carry out an action that begins or cancels a start."""
        match action:
            case lifecycle.Launch():
                self._begin(self._launch)
            case lifecycle.CheckHosts():
                self._begin(partial(self._check_again, self.request))
            case lifecycle.JoinClaimed():
                self._watch_logins()
                self._begin(partial(self.asking, self._make_client(claim=self.request.claim).join))
            case lifecycle.JoinRelay(takes=takes):
                self._watch_logins()
                self._make_client(takes=takes).keep_joining()
            case lifecycle.Replace():
                self._begin(partial(self._replace, self._pop_client()))
            case lifecycle.FallBack(error=error):
                self._begin(partial(self._fall_back, error))
            case lifecycle.CancelStart():
                self._cancel_start()
            case _:
                assert_never(action)

    def _act_on_host(self, action: lifecycle.ForHost) -> None:
        """Carry out an action on the relay or its container."""
        match action:
            case lifecycle.OrderLaunch(launch=number):
                self._order_launch(number)
            case lifecycle.SendSignal(number=number):
                if self._client is not None:
                    self._client.command({"do": "signal", "number": number})
            case lifecycle.StopReceiving():
                if self._client is not None:
                    self._client.stop_receiving()
            case lifecycle.Disconnect():
                self._disconnect()
            case lifecycle.Remove():
                self._removal = self._spawn(self._remove(self._pop_client()))
            case lifecycle.AdoptContainer():
                self._workload.adopt()
            case lifecycle.ForgetContainer():
                self._workload.forget()
            case _:
                assert_never(action)

    def _act_on_record(self, action: lifecycle.ForRecord) -> None:
        """Carry out an action on this machine's record."""
        match action:
            case lifecycle.SetGpus(gpu_ids=gpu_ids):
                self.placement.gpu_ids = gpu_ids
            case lifecycle.Remember(unless_held=unless_held):
                # Whoever holds it would be forgotten if we are refused.
                if not (unless_held and self.placement.is_held):
                    self.placement.remember()
            case lifecycle.RecordDetached():
                # At once: an editor that restarts looks for it before we are through.
                if self._claim:
                    self.placement.record_detached(claim=self._claim)
            case lifecycle.RecordStopWanted():
                self.placement.record_stop_wanted()
            case lifecycle.Forget(whoever_has_it=whoever_has_it):
                self.placement.forget(whoever_has_it=whoever_has_it)
            case _:
                assert_never(action)

    # -- what the actions come to

    def _watch_logins(self) -> None:
        """Hear of the logins to the host until the link is there."""
        self._logins.close()
        self._logins.enter_context(self._services.watch_login(self.host, self._login_reported))

    def _login_reported(self, stage: LoginStage) -> None:
        self._feed(lifecycle.LoginReported(text=stage.text, needs_user=stage.needs_user))

    @property
    def _log_prefix(self) -> str:
        return f"[{self.host.name} k={self.request.kernel_id[:4]}]"

    def _say(self, news: str | WorkProgress, *, host: Host | None = None) -> None:
        """Show progress: to the waiting cell, to those who watch the fleet, to the log.

        Part of it may be words of an image, a builder or a setup, which no log gets.
        """
        text = printable(str(news)[:PROGRESS_LENGTH])
        self.channels.progress(f"{self.request.display_name} on {(host or self.host).name}: {text}")
        if not self._is_in(Phase.BOUND):  # Until then whoever asked for it waits for the outcome.
            self._services.observe(self.request.kernel_id, self.state, news if isinstance(news, WorkProgress) else text)
        _LOG.debug("%s %s", self._log_prefix, news.logged if isinstance(news, WorkProgress) else text)

    async def _reach(self) -> Workload:
        return await self._address().workload()

    def _is_here(self, forward: Forward) -> bool:
        """Whether a port of the container is one of this machine already, whose network it has."""
        return self.host.is_local and self.request.environment.network == "host" and forward.here == forward.there

    def port_here(self, there: int) -> int | None:
        """Return the port of this machine at which one of the container's is, if `forwards` has it as HTTP."""
        pages = (one for one in self.request.environment.forwards if one.there == there and not one.is_raw)
        return there if any(self._is_here(one) for one in pages) else self.forwards.port_of(there)

    def _listen(self) -> None:
        """Bring the container's ports here; the user's next cell says what is not where it was asked for."""
        try:
            fresh = self.forwards.listen([one for one in self.request.environment.forwards if not self._is_here(one)])
        except OSError as exc:
            self.channels.tell_next_cell(f"no port of this machine can be had for `forwards` ({exc})")
            return
        for one in fresh:
            _LOG.info("%s port %d is at %s", self._log_prefix, one.asked.there, one.address)
            if one.is_elsewhere:
                text = f"port {one.asked.there} is at {one.address}, because {one.asked.here} is taken on this machine"
                self.channels.tell_next_cell(text)

    def _open(self, number: int, info: dict[str, Any], busy: Mapping[str, Any] | None) -> None:
        self._has_answered = True
        self._listen()
        self.placement.image.learn(info=info)
        refuse = failures.debug_refusal(self.request.environment, self.host)
        self.channels.open(launch=number, info=info, refuse_debug=refuse, busy=busy)
        self._spawn(self._workspace.watch(self.request.project, self.host))
        if self._began_at is not None:
            self._services.kept_logs.forget(self.request.kernel_id)
            _LOG.info("%s started in %.1f s", self._log_prefix, time.monotonic() - self._began_at)
            self._began_at = None

    def _feed_later(self, seconds: float, event: ExitDue | ExecutionLasted | StartFailed) -> None:
        """Feed an event then; one of its kind that was to come is not fed any more."""
        self._stop_timer(type(event))
        self._timers[type(event)] = self._loop.call_later(seconds, self._timer_fired, event)

    def _timer_fired(self, event: ExitDue | ExecutionLasted | StartFailed) -> None:
        del self._timers[type(event)]
        self._feed(event)

    def _stop_timer(self, kind: type[Event]) -> None:
        timer = self._timers.pop(kind, None)
        if timer is not None:
            timer.cancel()

    # -- starts

    def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        self._start = asyncio.create_task(self._run_start(work))

    async def _run_start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a launch, claim or check to its end, and feed its failure unless it was cancelled here."""
        task = asyncio.current_task()
        try:
            await work()
        except BaseException as exc:
            # The edge of the task: our own bug must be heard too.
            is_cancelled = isinstance(exc, asyncio.CancelledError)
            has_log = self._start is task and not is_cancelled and await self._keep_log(exc)
            if not is_cancelled and not isinstance(exc, KernelBridgeError):
                _LOG.exception("%s the start failed", self._log_prefix)
            if self._start is task:
                self._start = None
                error = failures.broken_start(self.request, self.host, exc, entrypoint=self.placement.entrypoint)
                if has_log:
                    failures.name_log(error, self.request)
                self._feed(StartFailed(error=error, on_request=is_cancelled))
        finally:
            if self._start is task:
                self._start = None

    async def _keep_log(self, failure: BaseException | None) -> bool:
        """Keep what a start that has failed wrote, as long as its container is there; whether that is anything."""
        is_over = isinstance(failure, StartCancelled) or (failure is not None and is_transient(failure))
        if self._has_answered or self._cells.was_used or is_over or failure is None or not self._workload.may_be_there:
            return False
        if not self._has_kept_log:
            text = await kept_logs.fetched(self._address(), self._reach)
            self._has_kept_log = self._services.kept_logs.keep(
                self.request.kernel_id, text, hidden=secret_values(self.request)
            )
        return self._has_kept_log

    def _cancel_start(self) -> None:
        self._stop_timer(StartFailed)
        task, self._start = self._start, None
        if task is not None:
            task.cancel()
            self._cancelled.add(task)
            task.add_done_callback(self._cancelled.discard)

    async def _launch(self) -> None:
        """Start the container or job, and join its relay. Raises KernelBridgeError."""
        self._began_at = time.monotonic()
        launcher = Launcher(
            placement=self.placement,
            workload=self._workload,
            services=self._services,
            order=launch_order(self.request, launch=self._life.launch, session=self._session),
            say=self._say,
            tell=self.channels.tell_next_cell,
            join=self._join,
            bring=lambda host: self._workspace.bring(self.request.project, host),
        )
        await launcher.launch()
        self._feed(Launched())

    async def _join(self) -> None:
        """Join the relay that was started. Raises KernelBridgeError."""
        before = self._pop_client()
        if before is not None:  # Of a container that came too late for its GPUs.
            await before.aclose()
        await self._make_client().join()

    async def _replace(self, client: RelayClient | None) -> None:
        """Remove the container, and check for what is wanted now. Raises KernelBridgeError."""
        self._workload.adopt()  # One that has ended by itself is kept until now.
        await self._remove(client)
        await self._check_again(self._renewed())

    async def _fall_back(self, error: KernelBridgeError) -> None:
        """Check for a start under an id of its own. Raises KernelBridgeError."""
        _LOG.info("%s not taken up: %s", self._log_prefix, error.logged)
        await self._check_again(replace(self._renewed(), kernel_id=str(uuid.uuid4())))

    async def _check_again(self, request: LaunchRequest) -> None:
        self.request, self._is_only_remembered, self._has_kept_log = request, False, False
        self.placement.reset(request)
        self._workload = WorkloadHandle(request)
        self._answers.add(*request.hosts)
        await self.asking(self._find_hosts)
        self._feed(Checked())

    def _order_launch(self, number: int) -> None:
        if self._client is not None:
            self._client.drop_waiting()
            self._client.command(launch_order(self.request, launch=number, session=self._session))

    # -- the stream, and what it leads to

    def _make_client(self, *, takes: bool = False, claim: str = "") -> RelayClient:
        """Make the client that joins the relay from now on."""
        self._client = self._connect(
            self._address(),
            self._listener(),
            owner=self._services.owner,
            takes=takes,
            claim=claim,
            only_own=self.request.only_own,
        )
        return self._client

    def _address(self) -> RelayAddress:
        request, host, services = self.request, self.host, self._services
        backend = partial(services.backend, host)
        environment = self.placement.environment
        return relay_address(request.kernel_id, environment, host, backend=backend, rest=services.rest)

    def _listener(self) -> RelayListener:
        return RelayListener(
            delivered=self._delivered,
            event_received=self._event_received,
            joined=self._joined,
            lost=lambda error: self._feed(lifecycle.LinkDown(error=error)),
            ended=self._container_ended,
            join_failed=lambda error, may_pass: self._feed(lifecycle.JoinFailed(error=error, may_pass=may_pass)),
            paused=self._paused,
            taken=self._taken,
            acknowledges=lambda: self.channels.acknowledged_lanes,
        )

    def _pop_client(self) -> RelayClient | None:
        """Let go of the client; return it, to be closed."""
        client, self._client = self._client, None
        return client

    def _disconnect(self) -> None:
        client = self._pop_client()
        if client is not None:
            self._spawn(client.aclose())

    async def _remove(self, client: RelayClient | None) -> bool:
        """Close the stream and remove the container; whether that is gone."""
        workload, host = self._workload, self.host
        if self._cancelled:
            await asyncio.wait(tuple(self._cancelled), timeout=STOP_SECONDS)
        if client is not None:
            await client.aclose()
        await self._close_workspace()
        if self._is_only_remembered and await self._is_anothers():
            workload.forget()
        await self._keep_log(self.failure)
        is_gone = await workload.remove(host.name, partial(self._services.backend, host))
        self._feed(lifecycle.Removed() if is_gone else lifecycle.NotRemoved(text=workload.trouble))
        return is_gone

    async def _close_workspace(self) -> None:
        """Wait for the last results of the workspace, but not for ever."""
        if self._parting is not None:
            await asyncio.wait([self._parting], timeout=RESULTS_SECONDS)

    async def _is_anothers(self) -> bool:
        """Whether the relay hears somebody else: nothing that is remembered here overrides that."""
        with contextlib.suppress(KernelBridgeError, TimeoutError):
            async with asyncio.timeout(OWNER_ASK_SECONDS):
                owner = (await ask_status(self._address())).owner
            return owner not in (None, "", self._services.owner.mark)
        return False

    def _spawn(self, chore: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Do something that goes on when nobody waits for it any more."""
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        return task

    # -- called by the stream, on the loop

    def _delivered(self, packed: list[frames.Buffer]) -> None:
        if self._client is not None:
            self.channels.deliver(packed)
            self._feed(lifecycle.Output(packed=packed))

    def _event_received(self, event: RelayEvent) -> None:
        match event:
            case ReadyEvent(launch=number, info=info, entrypoint=trouble):
                if trouble:
                    self.channels.tell_next_cell(failures.entrypoint_failure(self.placement.entrypoint, trouble))
                self._feed(lifecycle.Answered(launch=number, info=info))
            case FailedEvent():
                self._feed(self._refused(event))
            case ExitedEvent():
                self._feed(self._ended(event))
            case GpuLostEvent(launch=number, parent=parent):
                lost = GpuLost(environment=self.request.display_name, host=self.host.name)
                self._feed(lifecycle.GpusGone(launch=number, parent=parent or {}, error=lost))
            case LeftOutputEvent(cells=cells):
                self.channels.learn_titles(cells)
            case DroppedEvent(parent=parent):
                self.channels.print_notice(parent, failures.dropped_text(event))
            case NoticeEvent():
                if setup := failures.setup_progress(event):
                    self._say(setup)
                elif text := failures.notice_text(event, self.host):
                    self.channels.tell_next_cell(text)
            case InputEvent():
                pass  # A kernel's input is asked for.
            case _:
                assert_never(event)

    def _refused(self, event: FailedEvent) -> lifecycle.StartRefused:
        error = failures.failed_start(self.request, self.host, event, entrypoint=self.placement.entrypoint)
        if event.setup and event.reason:  # Its last words are in it.
            failures.name_log(error, self.request)
        return lifecycle.StartRefused(launch=event.launch, error=error)

    def _ended(self, event: ExitedEvent) -> lifecycle.ProcessEnded:
        error = failures.death(self.request, self.host, event)
        if not self._has_answered and not self._cells.was_used and event.last_words:
            failures.name_log(error, self.request)
        return lifecycle.ProcessEnded(
            launch=event.launch, code=event.code, why=event.why, on_request=event.wanted, error=error
        )

    def _joined(self, welcome: Welcome) -> None:
        status = welcome.status
        self._is_only_remembered, self._way = False, status.way
        outcome = status.outcome
        self._cells.was_used = status.used
        if status.session:
            self.channels.rename_session(status.session)
        self._feed(
            lifecycle.Joined(
                gpu_ids=tuple(status.gpus.ids),
                launch=outcome.launch if outcome else status.launch,
                info=status.info if status.ready else None,
                running=status.running,
                ended=self._ended(outcome) if outcome else None,
            )
        )

    def _paused(self, is_paused: bool) -> None:
        text = failures.pause_text(self.request.kernel_id, self.host) if is_paused else ""
        self._feed(lifecycle.Paused(text=text))

    def _taken(self, error: KernelHeld | KernelOfOtherVersion) -> None:
        if isinstance(error, KernelOfOtherVersion):
            self._feed(lifecycle.Taken(held=error, taken=error))
            return
        taken = KernelTaken(environment=self.request.display_name, host=self.host.name, who=error.who)
        self._feed(lifecycle.Taken(held=error, taken=taken))

    def _container_ended(self, how: Exited | Missing | Over) -> None:
        self._feed(lifecycle.ContainerGone(error=failures.container_end(self.request, self.host, how)))

    # -- called by the channels, on the loop, in the order in which clients asked

    def requested(self, packed: list[tuple[int, bytes]]) -> None:
        """Send messages of clients to the kernel."""
        if self._client is not None:
            self._client.send(packed)

    def shutdown_requested(self, intent: ShutdownIntent) -> None:
        """Take in that a client wants an end, or a restart, for which the kernel itself cannot be asked."""
        self._feed(ShutdownAsked(restart=intent is ShutdownIntent.RESTART, cancelled=self._cancellation()))

    def cell_asked(self, asked: CellAsked) -> None:
        """Take in what a client's cell says of its notebook and of its user."""
        self._cells.asked = asked
        # A server knows its notebooks better: what a client of it tells is a copy's name.
        if asked.notebook and asked.notebook != self.request.notebook and not self.request.server:
            title = PureWindowsPath(asked.notebook).name  # Takes both kinds of slashes.
            self.request = replace(self.request, title=title, notebook=asked.notebook)
            self.placement.request = self.request
            self.placement.record_notebook()
        self._cells.is_heard.set()

    def cell_waits(self) -> None:
        """Take in that a user's cell waits: whoever has run it can be asked, and wants the link."""
        self._cells.is_waiting.set()
        if self._client is not None and not self._client.is_joined:
            self._services.retry_login(self.host)
            self._client.hurry()

    def widgets_learned(self, widgets: str) -> None:
        """Remember the image's ipywidgets version, which VS Code's probe has found."""
        self.placement.image.learn(widgets=widgets)
