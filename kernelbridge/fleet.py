"""All our kernels on all hosts: start, list, find, stop, clean. Owns links, engines, channels and the loop's thread.

The door for every front-end: Jupyter's provisioner, the launcher, the terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib
import logging
import platform
import threading
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from kernelbridge import container
from kernelbridge.attachment import Place, ask_logs
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.channels.switchboard import Switchboard
from kernelbridge.checks import Wanted
from kernelbridge.config import Config, Host, display_names
from kernelbridge.errors import KernelBridgeError, KernelNotFound
from kernelbridge.host import trust
from kernelbridge.host.answers import ContainerFacts
from kernelbridge.host.pool import Pool, delays
from kernelbridge.host.trust import HostKey
from kernelbridge.kernel import Kernel, Surroundings
from kernelbridge.records import Records, default_folder
from kernelbridge.version import __version__

if TYPE_CHECKING:
    from kernelbridge.host.engine import Engine  # loads docker-py: see fleet.py

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
Observer = Callable[[str, str, str], None]


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One container of ours on a host, as its labels and its engine tell."""

    kernel_id: str
    environment: str
    host: str
    image: str
    state: str
    owner: str
    # Whether this installation made it.
    is_ours: bool
    # Ours, and the process that held it is no more.
    is_orphan: bool
    created: datetime
    gpus: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What was found, and the hosts that could not be asked."""

    kernels: tuple[KernelRow, ...]
    problems: tuple[KernelBridgeError, ...]


def process_mark(process: psutil.Process | None = None) -> str:
    """Return a name for a process that no later one has: its number and when it started."""
    process = process or psutil.Process()
    return f"{process.pid}@{process.create_time():.2f}"


def is_alive(mark: str) -> bool:
    """Whether the process of a mark still runs on this machine."""
    number, _, _ = mark.partition("@")
    try:
        return process_mark(psutil.Process(int(number))) == mark
    except (ValueError, psutil.Error):
        return False


class Fleet:
    """Our kernels under one config. Its coroutines run on its own loop: use `submit` or `run` from elsewhere."""

    def __init__(self, config: Config, *, folder: Path | None = None) -> None:
        """`folder` keeps this machine's records; it stands in Jupyter's data folder where none is named."""
        self.config = config
        self._records = Records(folder or default_folder())
        self._kernels: dict[str, Kernel] = {}
        # Engines by host name; one lives as long as its link.
        self._engines: dict[str, Engine] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._observers: list[Observer] = []
        # Removals that wait for a host that cannot be reached.
        self._removals: set[asyncio.Task[None]] = set()
        self._owner = f"{self._records.machine_id()}:{process_mark()}:{uuid.uuid4().hex[:8]}"
        self._switchboard: Switchboard | None = None
        self._engine_room: Future[ModuleType] = Future()
        threading.Thread(target=self._load_engine_room, name="kernelbridge-load", daemon=True).start()
        # asyncssh needs a loop that never stands still, and blocking clients stop theirs between calls (decision 1).
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kernelbridge-loop", daemon=True)
        self._thread.start()
        self._pool = self.run(self._make_pool())

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
        for task in self._removals:
            task.cancel()
        for engine in self._engines.values():
            await engine.aclose()
        await self._pool.aclose()

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of all states and progress: (kernel id, state, text). Called on the loop's thread."""
        self._observers.append(observer)

    def _tell(self, kernel_id: str, state: str, text: str) -> None:
        for observer in self._observers:
            observer(kernel_id, state, text)

    # -- kernels of this process

    def wanted(
        self, environment_name: str, *, kernel_id: str, environ: Mapping[str, str], arguments: Sequence[str] = ()
    ) -> Wanted:
        """Return what a start asks for. Raises UnknownEnvironment."""
        environment = self.config.environment(environment_name)
        return Wanted(
            kernel_id=kernel_id,
            environment=environment,
            display_name=display_names(self.config)[environment_name],
            hosts=self.config.hosts_of(environment),
            environ=environ,
            arguments=tuple(arguments),
        )

    async def bind(self, wanted: Wanted, endpoints: Endpoints) -> Kernel:
        """Bind a new kernel's endpoints and answer on them; nothing is started. Raises OSError if they are taken."""
        if self._switchboard is None:
            self._switchboard = Switchboard()
        around = Surroundings(
            switchboard=self._switchboard,
            records=self._records,
            owner=self._owner,
            labels=self._labels,
            reach=self.engine,
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

    async def drop(self, kernel: Kernel) -> None:
        """Stop a kernel of this process, remove its container and forget it.

        Where the host cannot be reached the removal is tried again, as long as this process lives.
        """
        try:
            is_gone = await kernel.stop()
        finally:
            self._kernels.pop(kernel.wanted.kernel_id, None)
        if not is_gone:
            task = self._loop.create_task(self._remove_later(kernel))
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)

    async def drop_failed(self, kernel: Kernel, after_seconds: float) -> None:
        """Drop a kernel that failed, unless it was started again meanwhile: nobody calls for the end of a dead one."""
        await asyncio.sleep(after_seconds)
        if kernel.is_final:
            await self.drop(kernel)

    async def _remove_later(self, kernel: Kernel) -> None:
        for delay in delays():
            await asyncio.sleep(delay)
            if await kernel.remove():
                return

    def stop_all(self, seconds: float) -> None:
        """Stop the kernels of this process, as far as that can be done in time."""
        with contextlib.suppress(TimeoutError):
            self.run(self._stop_all(), seconds)

    async def _stop_all(self) -> None:
        await asyncio.gather(*(self.drop(kernel) for kernel in list(self._kernels.values())), return_exceptions=True)

    def _labels(self, wanted: Wanted, gpu_ids: tuple[str, ...]) -> container.Labels:
        return container.Labels(
            kernel=wanted.kernel_id,
            environment=wanted.environment.name,
            owner=self._records.machine_id(),
            process=process_mark(),
            user=f"{_login()}@{platform.node()}",
            image=wanted.environment.image,
            version=__version__,
            config=container.config_mark(self.config.path),
            gpus=",".join(gpu_ids),
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
            return self._engines[host.name]

    async def host_key(self, host_name: str) -> HostKey:
        """Return the key that a host shows, and what known_hosts says of it. Raises KernelBridgeError."""
        return await trust.fetch_key(self.config.host(host_name))

    async def trust(self, host_name: str, key: HostKey) -> None:
        """Write a host's key to known_hosts."""
        trust.remember(self.config.host(host_name), key)

    # -- kernels of everybody

    async def list_kernels(self) -> Listing:
        """Find our containers on all hosts, by their labels."""
        hosts = list(self.config.hosts.values())
        answers = await asyncio.gather(*(self._rows(host) for host in hosts), return_exceptions=True)
        kernels: list[KernelRow] = []
        problems: list[KernelBridgeError] = []
        for answer in answers:
            if isinstance(answer, KernelBridgeError):
                problems.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                kernels += answer
        kernels.sort(key=lambda row: (row.host, row.created))
        return Listing(kernels=tuple(kernels), problems=tuple(problems))

    async def _rows(self, host: Host) -> list[KernelRow]:
        engine = await self.engine(host)
        found = await engine.list(container.KERNEL_LABEL)
        rows = [self._row(host, facts) for facts in found]
        return [row for row in rows if row is not None]

    def _row(self, host: Host, facts: ContainerFacts) -> KernelRow | None:
        labels = container.parse(facts.name, facts.labels)
        if labels is None:
            return None
        is_ours = labels.owner == self._records.machine_id()
        return KernelRow(
            kernel_id=labels.kernel,
            environment=labels.environment,
            host=host.name,
            image=labels.image,
            state=facts.state,
            owner=labels.user,
            is_ours=is_ours,
            is_orphan=is_ours and not is_alive(labels.process),
            created=datetime.fromtimestamp(facts.created, UTC),
            gpus=labels.gpus,
        )

    async def _find(self, prefix: str) -> KernelRow:
        listing = await self.list_kernels()
        found = [row for row in listing.kernels if prefix and row.kernel_id.startswith(prefix)]
        if not found and listing.problems:
            # Not seen is not gone: it may be where nobody could be asked.
            raise listing.problems[0]
        if len(found) != 1:
            raise KernelNotFound(kernel=prefix, hosts=list(self.config.hosts), count=len(found))
        return found[0]

    async def stop(self, prefix: str) -> KernelRow:
        """End a kernel and remove its container, by the first letters of its id. Raises KernelNotFound and others."""
        row = await self._find(prefix)
        await self._remove(row)
        return row

    async def _remove(self, row: KernelRow) -> None:
        engine = await self.engine(self.config.host(row.host))
        await engine.remove(container.name(row.kernel_id))

    async def logs(self, prefix: str, *, tail_lines: int) -> str:
        """Return what a kernel's process wrote to its own stdout and stderr, last lines. Raises KernelNotFound."""
        row = await self._find(prefix)
        engine = await self.engine(self.config.host(row.host))
        if row.state != "running":
            return await engine.logs(container.name(row.kernel_id), tail_lines)
        environment = self.config.environments.get(row.environment)
        python = environment.python if environment else "python3"
        place = Place(
            kernel=row.kernel_id,
            host=row.host,
            container=container.name(row.kernel_id),
            image=row.image,
            python=python,
            reach=lambda: self.engine(self.config.host(row.host)),
            rest=self._pool.rest,
        )
        text = await ask_logs(place)
        return "\n".join(text.splitlines()[-tail_lines:])

    async def clean(self, *, dry_run: bool) -> Listing:
        """Remove the containers that this machine made and nobody holds any more; return them, and what went wrong."""
        listing = await self.list_kernels()
        removed: list[KernelRow] = []
        problems = list(listing.problems)
        for row in listing.kernels:
            if not row.is_orphan:
                continue
            try:
                if not dry_run:
                    await self._remove(row)
            except KernelBridgeError as exc:
                problems.append(exc)
            else:
                removed.append(row)
        return Listing(kernels=tuple(removed), problems=tuple(problems))


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
