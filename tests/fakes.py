"""Small real objects with the same methods as ours, for tests without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from kernelbridge.channels import endpoints
from kernelbridge.channels.endpoints import Endpoints
from kernelbridge.config.load import display_names
from kernelbridge.config.schema import Config, Host
from kernelbridge.errors import KernelBridgeError, KernelNotFound, OutputUndelivered
from kernelbridge.files.project import find_project
from kernelbridge.fleet.doctor.finding import Finding, LinkName, Tell
from kernelbridge.fleet.doctor.trials import Talk
from kernelbridge.fleet.gpu_listing import GpuListing
from kernelbridge.fleet.images import ImageListing, ImageRow
from kernelbridge.fleet.kernel_listing import KernelListing, KernelRow
from kernelbridge.fleet.offers import ImageOffer
from kernelbridge.hosts.docker.responses import ListedImage
from kernelbridge.hosts.slurm.commands import PartitionFacts
from kernelbridge.hosts.transport.host_keys import HostKey
from kernelbridge.kernel.records import Records, default_folder
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.start.kept_logs import KeptLog
from kernelbridge.kernel.state import KernelState
from kernelbridge.plain_text import last_lines

T = TypeVar("T")


def row(kernel_id: str, **facts: Any) -> KernelRow:
    """One kernel as a listing shows it; what the test does not care about is made up."""
    made_up: dict[str, Any] = {
        "environment": "pytorch",
        "host": "lab",
        "image": "pytorch/pytorch:2",
        "state": "idle",
        "owner": "ada@laptop",
        "is_ours": True,
        "is_orphan": False,
        "created": datetime(2026, 11, 20, 12, 0, tzinfo=UTC),
        "gpus": "",
    }
    return KernelRow(kernel_id=kernel_id, **{**made_up, **facts})


def host_key(**facts: Any) -> HostKey:
    """A host's key as the host shows it."""
    made_up: dict[str, Any] = {
        "name": "lab.example",
        "algorithm": "ssh-ed25519",
        "fingerprint": "SHA256:abc",
        "line": "lab.example ssh-ed25519 AAAA\n",
        "is_known": False,
        "is_changed": False,
        "known_hosts_path": Path("known_hosts"),
    }
    return HostKey(**{**made_up, **facts})


@dataclass(frozen=True)
class FakeChannels:
    """Endpoints that nobody answers on."""

    endpoints: Endpoints


@dataclass(kw_only=True)
class FakeKernel:
    """A kernel that is as a test says."""

    request: LaunchRequest
    channels: FakeChannels
    state: KernelState = KernelState.RUNNING
    failure: KernelBridgeError | None = None
    exit_code: int | None = None
    is_joined: bool = True
    signals: list[int] = field(default_factory=list)

    def signal(self, number: int) -> None:
        self.signals.append(number)


@dataclass(kw_only=True)
class FakeFleet:
    """A fleet whose kernels are a list in memory."""

    rows: list[KernelRow] = field(default_factory=list)
    problems: tuple[KernelBridgeError, ...] = ()
    # What it says of GPUs, time after time, the last for ever; an exception is raised.
    listings: list[GpuListing | BaseException] = field(default_factory=lambda: [GpuListing()])
    # What known_hosts does not have yet, in the order in which the way meets them.
    keys: list[HostKey] = field(default_factory=list)
    # What a container of any environment is made of there, by host; an error is raised.
    pulled: dict[str, str | KernelBridgeError] = field(default_factory=dict)
    # The images of every host that are not ours, with their size, the oldest first; and what is said of the others.
    others: dict[str, int] = field(default_factory=dict)
    too_new: dict[str, str] = field(default_factory=dict)
    # The partitions of every host; empty: it has no Slurm.
    slurm: tuple[PartitionFacts, ...] = ()
    # What is found of a host; of the others that all holds.
    findings: dict[str, Finding | Sequence[Finding]] = field(default_factory=dict)
    log_text: str = ""
    # What was kept of starts that failed.
    kept_logs: list[KeptLog] = field(default_factory=list)
    images: list[ImageRow] = field(default_factory=list)
    # The containers of images that were never finished.
    unfinished: tuple[str, ...] = ()
    # Which were made: kernel and name.
    snapshots: list[tuple[str, str]] = field(default_factory=list)
    left_text: str = ""
    # Faults: it never answers; it does not remember what it was told to trust.
    is_stuck: bool = False
    is_forgetful: bool = False
    stop_failure: KernelBridgeError | None = None
    # What happened to it, for assertions.
    trusted: list[tuple[str, HostKey]] = field(default_factory=list)
    is_closed: bool = False
    # The hosts that the last listing was narrowed to; empty for all.
    asked_hosts: tuple[str, ...] = ()
    # The kernel that `attach` gives: facts for FakeKernel; and what became of it.
    kernel_facts: dict[str, Any] = field(default_factory=dict)
    kernel: FakeKernel | None = None
    takes: bool = False
    # detached or stopped
    ended: str = ""
    # Set by open.
    _config: Config | None = None

    def open(self, config: Config, asked: Sequence[Host] = ()) -> FakeFleet:
        """Stands where Fleet's constructor stands."""
        self._config = config
        return self

    @property
    def config(self) -> Config:
        assert self._config is not None
        return self._config

    @property
    def records(self) -> Records:
        return Records(default_folder())

    def run(self, coro: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        assert seconds is not None and seconds > 0, "every wait has a limit"
        if self.is_stuck:
            coro.close()
            raise TimeoutError
        return asyncio.run(coro)

    def logins(self) -> dict[str, str]:
        return {}

    def submit(self, coro: Coroutine[Any, Any, T]) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(asyncio.run(coro))
        return done

    def close(self) -> None:
        self.is_closed = True

    async def pull(self, environment: str, host: str, say: Callable[[str], None]) -> str:
        say("pulling")
        found = self.pulled[host]
        if isinstance(found, KernelBridgeError):
            raise found
        return found

    async def list_gpus(self, hosts: Collection[str] = ()) -> GpuListing:
        self.asked_hosts = tuple(hosts)
        found, *later = self.listings
        if later:
            self.listings = later
        if isinstance(found, BaseException):
            raise found
        return found

    async def list_kernels(self, hosts: Collection[str] = ()) -> KernelListing:
        self.asked_hosts = tuple(hosts)
        return KernelListing(
            kernels=tuple(row for row in self.rows if not hosts or row.host in hosts), problems=self.problems
        )

    def _find(self, prefix: str) -> KernelRow:
        found = [row for row in self.rows if row.kernel_id.startswith(prefix)]
        if len(found) != 1:
            raise KernelNotFound(kernel=prefix, hosts=self._hosts(), found=[row.kernel_id[:12] for row in found])
        return found[0]

    def _hosts(self) -> Sequence[str]:
        return list(self.config.hosts)

    async def stop_by_id(self, prefix: str) -> KernelRow:
        found = self._find(prefix)
        if self.stop_failure is not None:
            raise self.stop_failure
        self.rows.remove(found)
        return found

    async def left_output(self, prefix: str) -> str:
        self._find(prefix)
        return self.left_text

    def kept_log(self, prefix: str) -> KeptLog | None:
        return next((log for log in self.kept_logs if log.kernel_id.startswith(prefix)), None)

    async def logs(self, prefix: str, *, tail_lines: int) -> str:
        self._find(prefix)
        return last_lines(self.log_text, tail_lines)

    async def clean(
        self, *, dry_run: bool, discard: bool, hosts: Collection[str] = (), environments: Collection[str] = ()
    ) -> KernelListing:
        rows = [row for row in self.rows if not hosts or row.host in hosts]
        rows = [row for row in rows if not environments or row.environment in environments]
        orphans = tuple(row for row in rows if row.is_ours and row.is_orphan)
        kept = tuple(row for row in orphans if row.undelivered_bytes and not discard)
        gone = tuple(row for row in orphans if row not in kept)
        if not dry_run:
            self.rows = [row for row in self.rows if row not in gone]
        problems = [OutputUndelivered(kernel=row.kernel_id[:12], host=row.host, megabytes=1.0) for row in kept]
        return KernelListing(kernels=gone, problems=(*self.problems, *problems), unfinished=self.unfinished)

    async def snapshot(self, prefix: str, name: str) -> KernelRow:
        found = self._find(prefix)
        self.snapshots.append((found.kernel_id, name))
        return found

    async def list_images(self, hosts: Collection[str] = ()) -> ImageListing:
        self.asked_hosts = tuple(hosts)
        return ImageListing(
            images=tuple(row for row in self.images if not hosts or row.host in hosts), problems=self.problems
        )

    async def clean_images(self, *, dry_run: bool, discard: bool, hosts: Collection[str] = ()) -> ImageListing:
        self.asked_hosts = tuple(hosts)
        kept = tuple(row for row in self.images if row.kind == "snapshot" and not discard)
        gone = tuple(row for row in self.images if row not in kept)
        if not dry_run:
            self.images = [row for row in self.images if row in kept]
        return ImageListing(images=gone, problems=self.problems, kept=kept)

    def launch_request(self, environment_name: str, *, kernel_id: str, folder: str = "", **more: Any) -> LaunchRequest:
        environment = self.config.environment(environment_name)
        shown = display_names(self.config)[environment_name]
        hosts = self.config.hosts_of(environment)
        project = find_project(environment, Path(folder), machine_id="m") if folder else None
        return LaunchRequest(
            kernel_id=kernel_id,
            environment=environment,
            display_name=shown,
            hosts=hosts,
            folder=folder,
            project=project,
            **more,
        )

    async def attach(self, request: LaunchRequest, given: Endpoints, *, host: str, take: bool) -> FakeKernel:
        self.takes = take
        bound = given if given.transport == "ipc" else given.bound(dict.fromkeys(endpoints.NAMES, 9999))
        self.kernel = FakeKernel(request=request, channels=FakeChannels(bound), **self.kernel_facts)
        return self.kernel

    async def detach(self, kernel: FakeKernel, *, end: bool) -> None:
        assert not end
        kernel.channels.endpoints.remove()
        self.ended = "detached"

    async def stop(self, kernel: FakeKernel) -> None:
        kernel.channels.endpoints.remove()
        self.ended = "stopped"

    async def offered_images(self, host: Host, *, most: int) -> ImageOffer:
        fitting = [
            ListedImage(id=name, names=(name,), labels={}, size_bytes=size, created=0.0)
            for name, size in reversed(list(self.others.items()))
        ]
        return ImageOffer(fitting=tuple(fitting[:most]), too_new=self.too_new)

    async def partitions(self, host: Host) -> tuple[PartitionFacts, ...]:
        return self.slurm

    async def examine(
        self,
        host: Host,
        names: Sequence[str],
        *,
        environ: Mapping[str, str],
        tell: Tell,
        talk: Talk | None = None,
    ) -> None:
        tried = " and tried" if talk is not None else ""
        found = self.findings.get(host.name) or Finding(
            link=LinkName.LOGIN, found=f"for {', '.join(names) or 'nobody'}{tried}", seconds=0.2
        )
        if host.scheduler is not None and self.slurm:
            found = Finding(link=LinkName.SCHEDULER, found="Slurm")
        for one in [found] if isinstance(found, Finding) else found:
            tell(replace(one, host=host.name))

    async def host_key(self, host_name: str) -> HostKey:
        return self.keys[0] if self.keys else host_key(is_known=True)

    async def trust(self, host_name: str, key: HostKey) -> str:
        self.trusted.append((host_name, key))
        if not self.is_forgetful:
            self.keys.remove(key)
        return key.line
