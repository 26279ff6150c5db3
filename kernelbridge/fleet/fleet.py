"""Start, attach, detach and stop the kernels of this process, and list those of everybody.

The door for every front-end: Jupyter's provisioner, the launcher, the terminal. That makes it one thing, and long.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import platform
import time
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kernelbridge import __version__
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.rate_limit import Limits
from kernelbridge.config.load import display_names
from kernelbridge.config.schema import LOCAL, Config, Host
from kernelbridge.errors import KernelBridgeError, KernelNotFound, LoginRefused
from kernelbridge.files.git_checkout import paths_of
from kernelbridge.files.project import Checkout, Project, find_project
from kernelbridge.fleet import images, left_kernels, open_files
from kernelbridge.fleet.images import ImageListing
from kernelbridge.fleet.kernel_listing import KernelFinder, KernelListing, KernelRow
from kernelbridge.fleet.left_kernels import left_running, of_notebook
from kernelbridge.fleet.logins_ahead import CLOSE_SECONDS, LoginsAhead
from kernelbridge.fleet.loop import LOOP_NAME, LoopThread
from kernelbridge.hosts.docker.images import unfinished_image
from kernelbridge.hosts.docker.images.built_image import is_up_to_date
from kernelbridge.hosts.forwards.port_forwards import PortForwards
from kernelbridge.hosts.labels import Labels, config_mark, short_id
from kernelbridge.hosts.pool import BackendPool
from kernelbridge.hosts.progress import Say, WorkProgress
from kernelbridge.hosts.relay_query import RelayAddress
from kernelbridge.hosts.transport import host_keys
from kernelbridge.hosts.transport.host_keys import HostKey
from kernelbridge.hosts.transport.lazy import fetch_host_key
from kernelbridge.hosts.transport.login.questions import Ask
from kernelbridge.hosts.transport.retry import delays
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel.process_mark import own_mark, owner_has_ended, owner_text
from kernelbridge.kernel.records import KernelRecord, Records, default_folder
from kernelbridge.kernel.request import KernelServices, LaunchRequest, Observer
from kernelbridge.kernel.start import gpu_allocator
from kernelbridge.kernel.start.kept_logs import KEPT_LOGS_FOLDER, KeptLog, KeptLogs
from kernelbridge.kernel.state import KernelState
from kernelbridge.protocol.exit_codes import CLAIM_SECONDS
from kernelbridge.protocol.handshake import Owner

if TYPE_CHECKING:
    from kernelbridge.channels.poller import ZmqPoller  # loads pyzmq: see bind
    from kernelbridge.files.plan import Action
    from kernelbridge.files.sync import WorkspaceSync  # loads watchfiles
    from kernelbridge.fleet.doctor.finding import Tell
    from kernelbridge.fleet.doctor.trials import Talk
    from kernelbridge.fleet.gpu_listing import GpuListing  # loads what speaks to Slurm
    from kernelbridge.fleet.offers import ImageOffer
    from kernelbridge.hosts.docker.responses import EngineFacts
    from kernelbridge.hosts.slurm.commands import PartitionFacts
    from kernelbridge.kernel.command.run import CommandRun, RunOutput  # loads pyzmq
    from kernelbridge.kernel.command.terminal import CommandRequest, Terminal
    from kernelbridge.kernel.kernel import Kernel  # loads pyzmq

_LOG = logging.getLogger(__name__)

# When a new link is tidied up: after all that somebody waits for.
TIDY_SECONDS = 5.0
# How long an editor is waited for to say which notebook it is, where a kernel of the environment was left running.
NOTEBOOK_SECONDS = 10.0
# How long a restart waits for an engine to say which image has a name by now.
IMAGE_SECONDS = 5.0

_T = TypeVar("_T")


class Fleet:
    """Our kernels under one config. Its coroutines run on its own loop: use `submit` or `run` from elsewhere."""

    def __init__(
        self,
        config: Config,
        *,
        folder: Path | None = None,
        limits: Limits | None = None,
        logins: LoginsAhead | None = None,
        askers: Sequence[Ask] = (),
    ) -> None:
        """`folder` keeps this machine's records; it stands in Jupyter's data folder where none is named.

        `limits` is what Jupyter Server lets through to its pages. `logins` have begun already. `askers` ask a person
        what a login needs, where no cell waits that could.
        """
        self.records = Records(folder or default_folder())
        # What runs on this machine's own engine by `--host local` is to be found again.
        records = self.records.kernels()
        is_used = any(record.host == LOCAL and record.config == str(config.path) for record in records)
        self.config = config.with_local() if is_used else config
        self.limits = limits
        self._kernels: dict[str, Kernel] = {}
        self._observers: list[Observer] = []
        # Removals that wait for a host that cannot be reached, and hosts that are being tidied up.
        self._chores: set[asyncio.Task[None]] = set()
        self._mark = own_mark()
        mark = owner_text(self.records.machine_id(), self._mark, uuid.uuid4().hex[:8])
        self._owner = Owner(mark=mark, who=f"{_login()}@{platform.node()}")
        # Made for the first kernel; a fleet that only lists has none.
        self._poller: ZmqPoller | None = None
        # asyncssh needs a loop that never stands still; blocking clients stop theirs between calls (decisions.md, 1).
        self._loop = logins.loop if logins else LoopThread(LOOP_NAME)
        self._backends = logins.backends if logins else BackendPool(askers=askers)
        self._backends.opened = lambda host: self._spawn(self._tidy(host))
        self._finder = KernelFinder(self.records, self._backends.backend, self._backends.rest)

    def __repr__(self) -> str:
        return f"<Fleet {len(self._kernels)} kernels, {self._backends!r}>"

    # -- for callers on other threads

    def submit(self, coro: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a coroutine of this fleet on its loop."""
        return self._loop.submit(coro)

    def run(self, coro: Coroutine[Any, Any, _T], seconds: float | None = None) -> _T:
        """Run a coroutine of this fleet to its end; not to be called on its loop.

        Raises TimeoutError after so many seconds, beside those in which a person is asked for a login.
        """
        if seconds is None:
            return self._loop.run(coro)
        running = self.submit(coro)
        ends_at = time.monotonic() + seconds - self.asked_seconds
        while (left := ends_at + self.asked_seconds - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                return running.result(left)
            if running.done():
                break
        return running.result(0)

    @property
    def asked_seconds(self) -> float:
        """How long people were asked so far for what logins need: no time limit is for that."""
        return self._backends.asked_seconds

    def close(self) -> None:
        """Close links and channels and end the thread. Kernels that were not stopped live on. Safe to call twice."""
        if self._loop.is_running:
            with contextlib.suppress(TimeoutError):
                self.run(self._aclose(), CLOSE_SECONDS)
            self._loop.close()
        if self._poller is not None:
            self._poller.close()

    async def _aclose(self) -> None:
        for task in self._chores:
            task.cancel()
        await self._backends.aclose()

    def _spawn(self, chore: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that nobody waits for; the fleet's end cancels it. Called on the loop."""
        task = asyncio.get_running_loop().create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of all states and progress: (kernel id, state, news). Called on the loop's thread."""
        self._observers.append(observer)

    def logins(self) -> dict[str, str]:
        """Return what the logins under way are doing, by host; may be called from any thread."""
        return self._backends.logins()

    def _notify(self, kernel_id: str, state: KernelState, news: str | WorkProgress) -> None:
        for observer in self._observers:
            observer(kernel_id, state, news)

    # -- kernels of this process

    def launch_request(
        self, environment_name: str, *, kernel_id: str, environ: Mapping[str, str], folder: str = "", **more: Any
    ) -> LaunchRequest:
        """Return what a start asks for; `more` are further fields of LaunchRequest.

        `folder` is where it is started on this machine. Raises UnknownEnvironment, WorkspaceRefused.
        """
        environment = self.config.environment(environment_name)
        project = find_project(environment, Path(folder), machine_id=self.records.machine_id()) if folder else None
        return LaunchRequest(
            kernel_id=kernel_id,
            environment=environment,
            display_name=display_names(self.config)[environment_name],
            hosts=self.config.hosts_of(environment),
            environ=environ,
            folder=folder,
            project=project,
            **more,
        )

    async def bind(self, request: LaunchRequest, endpoints: Endpoints) -> Kernel:
        """Bind a new kernel's endpoints and answer on them; nothing is started.

        Raises OSError if they are taken; KernelBridgeError if this process may open too few files.
        """
        open_files.check()
        # Here and not above: it loads pyzmq, which a terminal that only lists kernels does without.
        from kernelbridge.kernel.kernel import Kernel

        kernel = Kernel(request, endpoints, self._services())
        self._kernels[request.kernel_id] = kernel
        return kernel

    def _services(self) -> KernelServices:
        from kernelbridge.channels.poller import ZmqPoller  # loads pyzmq

        if self._poller is None:
            self._poller = ZmqPoller()
        return KernelServices(
            poller=self._poller,
            records=self.records,
            owner=self._owner,
            mark=self._mark,
            config=str(self.config.path),
            limits=self.limits,
            labels=self._labels,
            engine=self._backends.engine,
            cluster=self._backends.cluster,
            backend=self._backends.backend,
            rest=self._backends.rest,
            watch_login=self._backends.watch_login,
            answer_logins=self._backends.answer_logins,
            retry_login=self._backends.retry_login,
            observe=self._notify,
        )

    async def make_run(self, request: LaunchRequest, output: RunOutput) -> CommandRun:
        """Return the run of a command in the place of a kernel; nothing is started, nor joined."""
        from kernelbridge.kernel.command.run import CommandRun  # loads pyzmq

        return CommandRun(request, self._services(), output)

    async def start(self, request: LaunchRequest, endpoints: Endpoints) -> Kernel:
        """Start a kernel: endpoints bound, checks made; the rest goes on behind them. Raises KernelBridgeError."""
        kernel = await self.bind(request, endpoints)
        try:
            await kernel.check()
        except LoginRefused as exc:
            if not exc.needs_person:
                await self._give_up(kernel, exc)
                raise
            # No cell is there yet that could ask: the first one will.
            kernel.check_and_begin()
        except BaseException as exc:
            await self._give_up(kernel, exc)
            raise
        else:
            kernel.begin()
        return kernel

    async def _give_up(self, kernel: Kernel, error: BaseException) -> None:
        if isinstance(error, KernelBridgeError):
            _LOG.warning("[%s k=%s] not started: %s", kernel.host.name, kernel.request.kernel_id[:4], error.logged)
        await self.stop(kernel)

    async def attach(
        self, request: LaunchRequest, endpoints: Endpoints, *, host: str = "", take: bool = False
    ) -> Kernel:
        """Hold a kernel that runs already: endpoints bound and answering at once, joined behind them.

        A host that cannot be reached is tried until it can. `take` takes it from another owner. Without `host` the
        records say where it is. Raises KernelNotFound when they do not.
        """
        record = self.records.kernel(request.kernel_id)
        host = host or (record.host if record else "")
        if host not in self.config.hosts:
            raise KernelNotFound(kernel=request.kernel_id, hosts=list(self.config.hosts))
        if record is not None:
            environment = left_kernels.as_made(record, request.environment)
            request = replace(request, session=record.session, environment=environment)
            request = self.with_project_of(request, record)
        kernel = await self.bind(request, endpoints)
        kernel.come_back(self.config.host(host), takes=take)
        return kernel

    def with_project_of(self, request: LaunchRequest, record: KernelRecord) -> LaunchRequest:
        """Return a request with the workspace that a kernel was started with; without one where that is gone."""
        project = None
        if record.folder:
            try:
                folder, machine_id = Path(record.folder), self.records.machine_id()
                project = find_project(request.environment, folder, machine_id=machine_id)
                if project is not None and record.commit:
                    paths = paths_of(project.local_root, record.commit)
                    project = project.with_checkout(Checkout(commit=record.commit, paths=paths))
            except KernelBridgeError as exc:
                _LOG.info("[%s k=%s] without its workspace: %s", record.host, record.kernel_id[:4], exc)
                project = None
        return replace(request, folder=record.folder, project=project)

    async def start_or_take_up(self, kernel: Kernel, left: KernelRecord | None) -> None:
        """Start a kernel that was bound, or take up one that runs for its notebook, or that was `left` for a restart.

        A restart keeps the container, unless the config asks for another one by now. What fails is told in the cell.
        """
        if left is not None and await self._is_of_this(kernel, left):
            if await self._restart_left(kernel, left):
                return
        elif await self._take_up_notebook(kernel):
            return
        kernel.check_and_begin()

    async def _is_of_this(self, kernel: Kernel, left: KernelRecord) -> bool:
        """Whether a kernel was left by the notebook that starts now: another one may have the same folder."""
        if left.host not in self.config.hosts:
            return False
        if not (left.persist and left.notebook):
            return True  # Its process has ended: there is nothing to lose.
        notebook = await kernel.notebook(NOTEBOOK_SECONDS)
        return not notebook or bool(of_notebook([left], left.environment, notebook))

    async def _restart_left(self, kernel: Kernel, left: KernelRecord) -> bool:
        """Start a kernel process in the container that was left; False if another container is to be made."""
        if await self._is_outdated(kernel, left):
            # Its GPUs are free again then. Where it cannot be reached it ends by itself.
            with contextlib.suppress(KernelBridgeError):
                await self._finder.remove_left(self.config, left)
            return False
        self._retarget(kernel, left)
        kernel.begin_claimed(self.config.host(left.host))
        return True

    async def relaunch(self, kernel: Kernel, renewed: Callable[[], LaunchRequest]) -> None:
        """Start the kernel process of a kernel of this process again, with what the config says of it by now.

        It keeps the container, unless the config asks for another one. Raises: as Kernel.relaunch().
        """
        config, record = self.config, self.records.kernel(kernel.request.kernel_id)
        is_outdated = False
        if (
            record is not None
            and record.config == str(config.path)
            and record.environment in config.environments
            and record.host in config.hosts
        ):
            # A container that cannot be reached at this moment cannot be replaced; a start under way is joined.
            may_be_replaced = kernel.is_joined and kernel.state is not KernelState.STARTING
            is_outdated = may_be_replaced and await self._is_outdated(kernel, record)
            kernel.renew_process(renewed())
        await kernel.relaunch(renewed, is_outdated=is_outdated)

    async def _is_outdated(self, kernel: Kernel, record: KernelRecord) -> bool:
        """Whether the config asks for another container than a kernel has; its next cell says so, or that it stays."""
        keys = left_kernels.changes(record, self.config, with_process=False)
        image = "" if keys else await self._newer_image(kernel, record)
        if not keys and not image:
            return False
        text = left_kernels.old_text if record.persist else left_kernels.new_text
        kernel.channels.tell_next_cell(text(record, keys, image=image))
        return not record.persist

    async def _newer_image(self, kernel: Kernel, left: KernelRecord) -> str:
        """Return the image's name if its host has another one of that name by now, or would build one; else empty."""
        host, environment = self.config.host(left.host), kernel.request.environment
        image = environment.image
        if not left.image_id or host.scheduler is not None:
            return ""
        with contextlib.suppress(KernelBridgeError, TimeoutError):
            engine = await self._backends.engine(host)
            async with asyncio.timeout(IMAGE_SECONDS):
                found = await engine.image(image)
                is_as_wanted = found is not None and await is_up_to_date(engine, environment, found)
            return image if found is not None and (found.id != left.image_id or not is_as_wanted) else ""
        return ""

    async def _take_up_notebook(self, kernel: Kernel) -> bool:
        """Join the one kernel that was left running for this notebook, if there is one that nobody holds."""
        name = kernel.request.environment.name
        free, _ = left_running(self.records.kernels(), self.config, self.records.holder_liveness)
        candidates = [record for record in free if record.notebook and record.environment == name]
        if not candidates:
            return False
        found = of_notebook(candidates, name, await kernel.notebook(NOTEBOOK_SECONDS))
        if len(found) > 1:
            kernel.channels.tell_next_cell(left_kernels.several_text(found))
        if len(found) != 1:
            return False
        (record,) = found
        try:
            state = await kernel.asking(lambda: self._finder.free_state(self.config, record))
        except KernelBridgeError as exc:
            # It is gone, or its host is out of reach: a start will tell.
            _LOG.info("[%s k=%s] not taken up: %s", record.host, record.kernel_id[:4], exc)
            return False
        if state == KernelState.EXITED:
            kernel.channels.tell_next_cell(left_kernels.ended_text(record))
        if state in (KernelState.EXITED, KernelState.HELD):
            return False
        self._retarget(kernel, record)
        kernel.channels.tell_next_cell(left_kernels.joined_text(record))
        keys = left_kernels.changes(record, self.config, with_process=True)
        if keys:
            kernel.channels.tell_next_cell(left_kernels.old_text(record, keys))
        kernel.come_back(self.config.host(record.host), takes=False)
        return True

    def _retarget(self, kernel: Kernel, record: KernelRecord) -> None:
        self._kernels.pop(kernel.request.kernel_id, None)
        environment = left_kernels.as_made(record, kernel.request.environment)
        kernel.retarget(
            replace(kernel.request, kernel_id=record.kernel_id, environment=environment, title=record.title)
        )
        self._kernels[record.kernel_id] = kernel

    async def detach(self, kernel: Kernel, *, end: bool = False, claim: str = "") -> None:
        """Detach a kernel of this process and forget it here: it runs on, for whoever attaches next.

        With `end` its process ends now, and its container soon after, unless somebody takes it up under the claim.
        """
        self._kernels.pop(kernel.request.kernel_id, None)
        await kernel.detach(end=end, claim=claim)

    def claimable(self, claim: str) -> KernelRecord | None:
        """Return the one kernel that was left under this claim a moment ago; None if there is none, or are several."""
        now = time.time()
        found = [
            record
            for record in self.records.kernels()
            if record.claim == claim and record.left is not None and 0 <= now - record.left < CLAIM_SECONDS
        ]
        return found[0] if len(found) == 1 else None

    async def stop(self, kernel: Kernel) -> None:
        """Stop a kernel of this process, remove its container and forget it.

        Where the host cannot be reached the removal is tried again, as long as this process lives.
        """
        try:
            is_gone = await kernel.stop()
        finally:
            self._kernels.pop(kernel.request.kernel_id, None)
        if not is_gone:
            self._spawn(self._remove_later(kernel))

    async def finish_stops(self) -> None:
        """Wait for the removals that are under way: of a kernel whose host is just being reached nobody waits."""
        stops = [kernel.stop() for kernel in self._kernels.values() if kernel.is_being_removed]
        await asyncio.gather(*stops, return_exceptions=True)

    async def stop_failed(self, kernel: Kernel, after_seconds: float) -> None:
        """Stop a kernel that failed, unless it was started again meanwhile: nobody calls for the end of a dead one."""
        await asyncio.sleep(after_seconds)
        if kernel.is_final and kernel.is_joined:
            await self.stop(kernel)
        elif kernel.is_final:
            # A container that ended by itself is kept for a while: see KernelFinder.
            await self.detach(kernel)

    async def _remove_later(self, kernel: Kernel) -> None:
        for delay in delays():
            await asyncio.sleep(delay)
            if await kernel.stop():
                return

    def detach_or_stop_all(self, seconds: float) -> None:
        """Detach the kernels that are to persist and stop the others, as far as time allows: a program ends."""
        with contextlib.suppress(TimeoutError):
            self.run(self._detach_or_stop_all(), seconds)

    async def _detach_or_stop_all(self) -> None:
        kernels = list(self._kernels.values())
        ends = (self.detach(kernel) if kernel.request.environment.persist else self.stop(kernel) for kernel in kernels)
        await asyncio.gather(*ends, return_exceptions=True)

    def _labels(self, request: LaunchRequest, gpu_ids: tuple[str, ...]) -> Labels:
        return Labels(
            kernel=request.kernel_id,
            environment=request.environment.name,
            owner=self.records.machine_id(),
            process=self._mark.process,
            birth=self._mark.birth,
            user=self._owner.who,
            image=request.environment.image,
            version=__version__,
            config=config_mark(self.config.path),
            gpus=",".join(gpu_ids),
            keep_exited=f"{request.environment.keep_exited:g}",
            unsafe="true" if request.environment.allow_unsafe else "",
            kind=request.command.kind if request.command else "",
        )

    # -- hosts

    async def list_gpus(self, hosts: Collection[str] = ()) -> GpuListing:
        """Find the GPUs of all hosts, or of those of these names, and who has them."""
        from kernelbridge.fleet import gpu_listing  # loads what speaks to Slurm

        return await gpu_listing.look(self.config, self._backends.backend, hosts)

    async def pull(self, environment_name: str, host_name: str, say: Say) -> str:
        """Have an environment's image on a host, with what is added to it; return what its containers are made of."""
        from kernelbridge.kernel.start import launch  # loads pyzmq

        engine = await self._backends.engine(self.config.host(host_name))
        environment = self.config.environment(environment_name)
        return await launch.pull_ahead(engine, environment, self.records, self.config.path, say)

    async def unasked_engines(self) -> dict[str, EngineFacts]:
        """Return the engines whose sockets are forwarded, of the hosts that let us in without asking anybody."""
        found: dict[str, EngineFacts] = {}
        for host in self.config.hosts.values():
            if host.scheduler is None and not host.is_local:
                engine = await self._backends.engine(host)
                was_asked = engine.link.entry.was_asked or self._backends.has_needed_user(host)
                if engine.is_forwarded and not was_asked:
                    found[host.name] = engine.about
        return found

    async def _tidy(self, host: Host) -> None:
        await asyncio.sleep(TIDY_SECONDS)
        try:
            await self._finder.tidy(self.config, host)
            if host.scheduler is None:
                engine = await self._backends.engine(host)
                await gpu_allocator.tidy(engine)
                await unfinished_image.sweep(engine, owner_has_ended)
        except KernelBridgeError as exc:
            _LOG.info("[%s] not tidied up: %s", host.name, exc)

    async def examine(
        self,
        host: Host,
        environment_names: Sequence[str],
        *,
        environ: Mapping[str, str],
        tell: Tell,
        talk: Talk | None = None,
    ) -> None:
        """Look at each link to a host, and at what these environments need of it; `tell` gets what is found.

        With `talk`, which talks to a kernel, a container and a kernel of each environment are tried.
        """
        # Here and not above: they load asyncssh, pyzmq, and what speaks to Slurm.
        from kernelbridge.fleet.doctor.host import HostDoctor
        from kernelbridge.fleet.doctor.trials import Trials
        from kernelbridge.kernel.start.launch import python_finder

        requests = [self.launch_request(name, kernel_id="doctor", environ=environ) for name in environment_names]
        trials = talk and Trials(
            start=self.start,
            stop=self.stop,
            make_run=self.make_run,
            talk=talk,
            runtime_folder=environ.get("XDG_RUNTIME_DIR"),
        )
        find_python = python_finder(self.records, self.config.path)
        doctor = HostDoctor(host, requests, self._backends, find_python=find_python, trials=trials, tell=tell)
        await doctor.examine()

    async def host_key(self, host_name: str) -> HostKey:
        """Return the key that a host shows, and what known_hosts says of it. Raises KernelBridgeError."""
        host = self.config.host(host_name)
        with self._backends.for_login(host):
            return await fetch_host_key(host)

    async def trust(self, host_name: str, key: HostKey) -> str:
        """Write a host's key to known_hosts, and return the line."""
        return host_keys.remember(self.config.host(host_name), key)

    # -- kernels of everybody

    async def list_kernels(self, hosts: Collection[str] = ()) -> KernelListing:
        """Find our containers on all hosts, or on those of these names, and ask their relays."""
        return await self._finder.look(self.config, hosts)

    async def find(self, prefix: str) -> KernelRow:
        """Return the one kernel whose id begins so. Raises KernelNotFound and others."""
        return await self._finder.find(self.config, prefix)

    async def stop_by_id(self, prefix: str) -> KernelRow:
        """Stop a kernel and remove its container, by the first letters of its id. Raises KernelNotFound and others."""
        return await self._finder.stop(self.config, prefix)

    def kept_log(self, prefix: str) -> KeptLog | None:
        """Return the last lines of a kernel or run whose start failed here, and which is gone; None of any other."""
        found = KeptLogs(self.records.folder / KEPT_LOGS_FOLDER).find(prefix)
        return found if found is not None and self.records.kernel(found.kernel_id) is None else None

    async def logs(self, prefix: str, *, tail_lines: int) -> str:
        """Return what a kernel's process wrote to its own stdout and stderr, last lines. Raises KernelNotFound."""
        return await self._finder.logs(self.config, prefix, tail_lines=tail_lines)

    async def follow_log(self, prefix: str, heard: Callable[[str], None]) -> None:
        """Tell what a kernel's process writes to its stdout and stderr, until it has ended; called on the loop.

        Raises KernelNotFound.
        """
        await self._finder.follow_log(self.config, prefix, heard)

    async def left_output(self, prefix: str) -> str:
        """Return the output of a kernel's cells that no client has shown yet; it stays. Raises KernelNotFound."""
        return await self._finder.left_output(self.config, prefix)

    async def open_terminal(self, name: str, request: CommandRequest, output: Callable[[int, bytes], None]) -> Terminal:
        """Run a command in a kernel's container, beside it; `output` is called on the loop. Raises as address_of()."""
        from kernelbridge.kernel.command.terminal import open_terminal

        address = await self.address_of(name)
        return await open_terminal(await address.workload(), request, host=address.host, output=output)

    async def forwards(self, name: str) -> PortForwards:
        """Return what brings ports of a kernel here, whoever holds it; nothing listens yet. Raises as address_of()."""
        address = await self.address_of(name)
        return PortForwards(f"{short_id(address.kernel)} on {address.host}", address.workload)

    async def board(self, name: str, folder: str, *, port: int, ready: Callable[[str], None]) -> None:
        """Run TensorBoard beside a kernel until cancelled; see Board.run(). Raises BoardFailed; as address_of()."""
        from kernelbridge.fleet.boards import Board

        address = await self.address_of(name)
        await Board(await self.forwards(address.kernel), address, folder=folder).run(port, ready)

    async def sync_workspace(self, project: Project, host: Host, *, say: Say, tell: Callable[[str], None]) -> bool:
        """Have a workspace's copy on a host in step; False where a kernel's process of this machine does that already.

        Raises KernelBridgeError.
        """
        async with self._workspace_sync(project, host, say=say, tell=tell) as sync:
            await sync.bring()
            return sync.is_holder

    async def workspace_status(self, project: Project, host: Host, *, say: Say) -> list[Action]:
        """Return what a pass over a workspace would do. Raises KernelBridgeError."""
        async with self._workspace_sync(project, host, say=say, tell=lambda text: None) as sync:
            return await sync.pending()

    def _workspace_sync(self, project: Project, host: Host, *, say: Say, tell: Callable[[str], None]) -> WorkspaceSync:
        # Here and not above: few commands need them, and they load watchfiles and pathspec.
        from kernelbridge.files.one_pass import WorkspaceVoice
        from kernelbridge.files.sync import WorkspaceSync

        async def link() -> AnyLink:
            return (await self._backends.backend(host)).link

        return WorkspaceSync(
            project, host, data_folder=self.records.folder, link=link, voice=WorkspaceVoice(say=say, tell=tell)
        )

    async def address_of(self, name: str) -> RelayAddress:
        """Return where a kernel's relay is, by the beginning of its id, or by its environment's name.

        Raises KernelNotFound and others.
        """
        return await self._finder.named(self.config, name)

    async def snapshot(self, prefix: str, name: str) -> KernelRow:
        """Make an image of a kernel's container, and return the kernel. Raises KernelNotFound and others."""
        row = await self.find(prefix)
        machine = self.records.machine_id()
        await images.snapshot(self.config, self._backends.engine, machine, kernel=row, name=name)
        return row

    async def list_images(self, hosts: Collection[str] = ()) -> ImageListing:
        """Find the images that kernelbridge made on all hosts, or on those of these names."""
        return await images.look(self.config, self._backends.engine, self.records.machine_id(), hosts)

    async def offered_images(self, host: Host, *, most: int) -> ImageOffer:
        """Find the newest images of a host that are somebody's and not ours. Raises KernelBridgeError."""
        from kernelbridge.fleet import offers  # loads what speaks to Slurm

        return await offers.images(await self._backends.engine(host), most=most)

    async def partitions(self, host: Host) -> tuple[PartitionFacts, ...]:
        """Return the partitions of a host with Slurm and without an engine; else none. Raises KernelBridgeError."""
        from kernelbridge.fleet import offers  # loads what speaks to Slurm

        return await offers.partitions(await self._backends.link(host), host)

    async def clean_images(self, *, dry_run: bool, discard: bool, hosts: Collection[str] = ()) -> ImageListing:
        """Remove the images that no environment needs; snapshots of this machine only by `discard`."""
        machine = self.records.machine_id()
        how = {"dry_run": dry_run, "discard": discard}
        return await images.clean(self.config, self._backends.engine, machine, names=hosts, **how)

    async def clean(
        self, *, dry_run: bool, discard: bool, hosts: Collection[str] = (), environments: Collection[str] = ()
    ) -> KernelListing:
        """Remove what this machine made and nobody holds any more; return it, and what went wrong.

        A kernel with output that nobody has fetched yet is kept, unless `discard`. Only on these hosts and of these
        environments, where they are named: then images that were never finished are left alone, which are of none.
        """
        swept_hosts = [] if environments else images.engines_of(self.config, hosts)
        sweeps = asyncio.gather(*(self._sweep(host, dry_run=dry_run) for host in swept_hosts))
        cleaning = self._finder.clean(self.config, dry_run=dry_run, discard=discard, names=hosts, only=environments)
        listing, swept = await asyncio.gather(cleaning, sweeps)
        return replace(listing, unfinished=tuple(name for names in swept for name in names))

    async def _sweep(self, host: Host, *, dry_run: bool) -> list[str]:
        """Remove what is left of images that were never finished. A host that cannot be asked is told by clean()."""
        try:
            engine = await self._backends.engine(host)
            names = await unfinished_image.sweep(engine, owner_has_ended, dry_run=dry_run)
            return [f"{name} on {host.name}" for name in names]
        except KernelBridgeError as exc:
            _LOG.info("[%s] not swept: %s", host.name, exc)
            return []


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
