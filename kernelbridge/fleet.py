"""The kernels of this process: start, attach, leave, stop. Owns links, engines, channels and the loop's thread.

The door for every front-end: Jupyter's provisioner, the launcher, the terminal. Kernels of everybody: census.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib
import logging
import platform
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from kernelbridge import container, inventory, leasing
from kernelbridge.attachment import Owner
from kernelbridge.census import Census, KernelRow, Listing
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.pacing import Limits
from kernelbridge.channels.switchboard import Switchboard
from kernelbridge.config import Config, Host, display_names
from kernelbridge.errors import KernelBridgeError
from kernelbridge.host import trust
from kernelbridge.host.pool import Pool, delays
from kernelbridge.host.slurm import Cluster
from kernelbridge.host.trust import HostKey
from kernelbridge.inventory import GpuListing
from kernelbridge.kernel import Kernel
from kernelbridge.kernel_errors import KernelNotFound
from kernelbridge.processes import is_alive, process_mark
from kernelbridge.records import KernelRecord, Records, default_folder
from kernelbridge.relay.lifetime import GOODBYE_SECONDS
from kernelbridge.surroundings import Surroundings
from kernelbridge.version import __version__
from kernelbridge.wanted import Wanted

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

_LOG = logging.getLogger(__name__)

# When a new link is tidied up: after all that somebody waits for.
TIDY_SECONDS = 5.0

_T = TypeVar("_T")
Observer = Callable[[str, str, str], None]


class Fleet:
    """Our kernels under one config. Its coroutines run on its own loop: use `submit` or `run` from elsewhere."""

    def __init__(self, config: Config, *, folder: Path | None = None, limits: Limits | None = None) -> None:
        """`folder` keeps this machine's records; it stands in Jupyter's data folder where none is named.

        `limits` is what Jupyter Server lets through to its pages.
        """
        self.config = config
        self.records = Records(folder or default_folder())
        self.limits = limits
        self._kernels: dict[str, Kernel] = {}
        # Engines by host name; one lives as long as its link.
        self._engines: dict[str, Engine] = {}
        self._clusters: dict[str, Cluster] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._observers: list[Observer] = []
        # Removals that wait for a host that cannot be reached, and hosts that are being tidied up.
        self._chores: set[asyncio.Task[None]] = set()
        mark = f"{self.records.machine_id()}:{process_mark()}:{uuid.uuid4().hex[:8]}"
        self._owner = Owner(mark=mark, who=f"{_login()}@{platform.node()}")
        self._switchboard: Switchboard | None = None
        self._engine_room: Future[ModuleType] = Future()
        threading.Thread(target=self._load_engine_room, name="kernelbridge-load", daemon=True).start()
        # asyncssh needs a loop that never stands still, and blocking clients stop theirs between calls (decision 1).
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kernelbridge-loop", daemon=True)
        self._thread.start()
        self._pool = self.run(self._make_pool())
        self._census = Census(self.records, self.site, self._pool.rest)

    def __repr__(self) -> str:
        return f"<Fleet {len(self._kernels)} kernels, {len(self._engines)} engines>"

    def _load_engine_room(self) -> None:
        """Load docker-py, which takes 0.1 s: time that passes anyhow while the first login waits for its host."""
        try:
            self._engine_room.set_result(importlib.import_module("kernelbridge.host.engine"))
        except BaseException as exc:
            self._engine_room.set_exception(exc)
            raise

    async def _make_pool(self) -> Pool:
        return Pool()

    # -- for callers on other threads

    def submit(self, coro: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a coroutine of this fleet on its loop."""
        return asyncio.run_coroutine_threadsafe(coro, self._loop)

    def run(self, coro: Coroutine[Any, Any, _T], seconds: float | None = None) -> _T:
        """Run a coroutine of this fleet to its end; not to be called on its loop."""
        return self.submit(coro).result(seconds)

    def close(self) -> None:
        """Close links and channels and end the thread. Kernels that were not stopped live on."""
        if self._thread.is_alive():
            with contextlib.suppress(TimeoutError):
                self.run(self._aclose(), 10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()
        if self._switchboard is not None:
            self._switchboard.close()

    async def _aclose(self) -> None:
        for task in self._chores:
            task.cancel()
        for engine in self._engines.values():
            await engine.aclose()
        for cluster in self._clusters.values():
            await cluster.aclose()
        await self._pool.aclose()
        # Without links nothing comes of what is under way still; whoever waits for it is told so.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=1)

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for; ended with the fleet."""
        task = self._loop.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of all states and progress: (kernel id, state, text). Called on the loop's thread."""
        self._observers.append(observer)

    def _tell(self, kernel_id: str, state: str, text: str) -> None:
        for observer in self._observers:
            observer(kernel_id, state, text)

    # -- kernels of this process

    def wanted(self, environment_name: str, *, kernel_id: str, environ: Mapping[str, str], **more: Any) -> Wanted:
        """Return what a start asks for; `more` are further fields of Wanted. Raises UnknownEnvironment."""
        environment = self.config.environment(environment_name)
        return Wanted(
            kernel_id=kernel_id,
            environment=environment,
            display_name=display_names(self.config)[environment_name],
            hosts=self.config.hosts_of(environment),
            environ=environ,
            **more,
        )

    async def bind(self, wanted: Wanted, endpoints: Endpoints) -> Kernel:
        """Bind a new kernel's endpoints and answer on them; nothing is started. Raises OSError if they are taken."""
        if self._switchboard is None:
            self._switchboard = Switchboard()
        around = Surroundings(
            switchboard=self._switchboard,
            records=self.records,
            owner=self._owner,
            process=process_mark(),
            config=str(self.config.path),
            limits=self.limits,
            labels=self._labels,
            reach=self.engine,
            cluster=self.cluster,
            site=self.site,
            rest=self._pool.rest,
            observe=self._tell,
        )
        kernel = Kernel(wanted, endpoints, around)
        self._kernels[wanted.kernel_id] = kernel
        return kernel

    async def start(self, wanted: Wanted, endpoints: Endpoints) -> Kernel:
        """Start a kernel: endpoints bound, checks made; the rest goes on behind them. Raises KernelBridgeError."""
        kernel = await self.bind(wanted, endpoints)
        try:
            await kernel.check()
        except BaseException:
            await self.drop(kernel)
            raise
        kernel.begin()
        return kernel

    async def attach(self, wanted: Wanted, endpoints: Endpoints, *, host: str = "", take: bool = False) -> Kernel:
        """Hold a kernel that runs already: endpoints bound and answering at once, joined behind them.

        A host that cannot be reached is tried until it can. `take` takes it from another owner; one whose process is
        no more on this machine loses it anyhow. Without `host` the records say where it is. Raises KernelNotFound
        when they do not.
        """
        record = self.records.kernel(wanted.kernel_id)
        host = host or (record.host if record else "")
        if host not in self.config.hosts:
            raise KernelNotFound(kernel=wanted.kernel_id, hosts=list(self.config.hosts))
        is_dead = record is not None and bool(record.process) and not is_alive(record.process)
        kernel = await self.bind(replace(wanted, session=record.session if record else ""), endpoints)
        kernel.come_back(self.config.host(host), takes=take or is_dead)
        return kernel

    async def detach(self, kernel: Kernel, *, end: bool = False, claim: str = "") -> None:
        """Leave a kernel of this process and forget it here: it runs on, for whoever attaches next.

        With `end` its process ends now, and its container soon after, unless somebody takes it up under the claim.
        """
        self._kernels.pop(kernel.wanted.kernel_id, None)
        await kernel.leave(end=end, claim=claim)

    def claimable(self, claim: str) -> KernelRecord | None:
        """Return the one kernel that was left under this claim a moment ago; None if there is none, or are several."""
        now = time.time()
        found = [
            record
            for record in self.records.kernels()
            if record.claim == claim and record.left is not None and 0 <= now - record.left < GOODBYE_SECONDS
        ]
        return found[0] if len(found) == 1 else None

    async def drop(self, kernel: Kernel) -> None:
        """Stop a kernel of this process, remove its container and forget it.

        Where the host cannot be reached the removal is tried again, as long as this process lives.
        """
        try:
            is_gone = await kernel.stop()
        finally:
            self._kernels.pop(kernel.wanted.kernel_id, None)
        if not is_gone:
            self._do(self._remove_later(kernel))

    async def drop_failed(self, kernel: Kernel, after_seconds: float) -> None:
        """Drop a kernel that failed, unless it was started again meanwhile: nobody calls for the end of a dead one."""
        await asyncio.sleep(after_seconds)
        if kernel.is_final and kernel.is_joined:
            await self.drop(kernel)
        elif kernel.is_final:
            await self.detach(kernel)  # A container that ended by itself is kept for a while: see census.is_over.

    async def _remove_later(self, kernel: Kernel) -> None:
        for delay in delays():
            await asyncio.sleep(delay)
            if await kernel.stop():
                return

    def leave_all(self, seconds: float) -> None:
        """For the end of a program: kernels that are to persist are left, the others stopped, as far as time allows."""
        with contextlib.suppress(TimeoutError):
            self.run(self._leave_all(), seconds)

    async def _leave_all(self) -> None:
        kernels = list(self._kernels.values())
        ends = (self.detach(kernel) if kernel.wanted.environment.persist else self.drop(kernel) for kernel in kernels)
        await asyncio.gather(*ends, return_exceptions=True)

    def _labels(self, wanted: Wanted, gpu_ids: tuple[str, ...]) -> container.Labels:
        return container.Labels(
            kernel=wanted.kernel_id,
            environment=wanted.environment.name,
            owner=self.records.machine_id(),
            process=process_mark(),
            user=f"{_login()}@{platform.node()}",
            image=wanted.environment.image,
            version=__version__,
            config=container.config_mark(self.config.path),
            gpus=",".join(gpu_ids),
            keep_exited=f"{wanted.environment.keep_exited:g}",
        )

    # -- hosts

    async def engine(self, host: Host) -> Engine:
        """Return the engine of a host, over the link of this process. Raises KernelBridgeError."""
        async with self._opening.setdefault(host.name, asyncio.Lock()):
            link = await self._pool.link(host)
            engine = self._engines.get(host.name)
            if engine is not None and engine.link is link:
                return engine
            if engine is not None:
                await engine.aclose()
            room = await asyncio.wrap_future(self._engine_room)
            self._engines[host.name] = await room.open_engine(link, host)
            self._do(self._tidy(host))
            return self._engines[host.name]

    async def cluster(self, host: Host) -> Cluster:
        """Return the cluster of a login node, over the link of this process. Raises KernelBridgeError."""
        async with self._opening.setdefault(host.name, asyncio.Lock()):
            link = await self._pool.link(host)
            known = self._clusters.get(host.name)
            if known is not None and known.link is link:
                return known
            self._clusters[host.name] = Cluster(link, host, before=known)
            self._do(self._tidy(host))
            return self._clusters[host.name]

    async def site(self, host: Host) -> Engine | Cluster:
        """Return what runs kernels on a host. Raises KernelBridgeError."""
        return await self.engine(host) if host.scheduler is None else await self.cluster(host)

    async def list_gpus(self) -> GpuListing:
        """Find the GPUs of all hosts, and who has them."""
        return await inventory.look(self.config, self.site)

    async def _tidy(self, host: Host) -> None:
        await asyncio.sleep(TIDY_SECONDS)
        try:
            await self._census.tidy(self.config, host)
            if host.scheduler is None:
                await leasing.tidy(await self.engine(host))
        except KernelBridgeError as exc:
            _LOG.info("[%s] not tidied up: %s", host.name, exc)

    async def host_key(self, host_name: str) -> HostKey:
        """Return the key that a host shows, and what known_hosts says of it. Raises KernelBridgeError."""
        return await trust.fetch_key(self.config.host(host_name))

    async def trust(self, host_name: str, key: HostKey) -> None:
        """Write a host's key to known_hosts."""
        trust.remember(self.config.host(host_name), key)

    # -- kernels of everybody

    async def list_kernels(self) -> Listing:
        """Find our containers on all hosts, and ask their relays."""
        return await self._census.look(self.config)

    async def find(self, prefix: str) -> KernelRow:
        """Return the one kernel whose id begins so. Raises KernelNotFound and others."""
        return await self._census.find(self.config, prefix)

    async def stop(self, prefix: str) -> KernelRow:
        """End a kernel and remove its container, by the first letters of its id. Raises KernelNotFound and others."""
        return await self._census.stop(self.config, prefix)

    async def logs(self, prefix: str, *, tail_lines: int) -> str:
        """Return what a kernel's process wrote to its own stdout and stderr, last lines. Raises KernelNotFound."""
        return await self._census.logs(self.config, prefix, tail_lines=tail_lines)

    async def clean(self, *, dry_run: bool, discard: bool) -> Listing:
        """Remove what this machine made and nobody holds any more; return it, and what went wrong.

        What has output that nobody took stays, unless `discard`.
        """
        return await self._census.clean(self.config, dry_run=dry_run, discard=discard)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
