"""Look at each link of the way from here to a kernel on a host, in order: what is there, what is broken, what to do."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import GpusBusy, KernelBridgeError, StartTimeout, unexpected_answer
from kernelbridge.fleet.gpu_listing import no_answer
from kernelbridge.hosts.gpus import selection
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts, Inventory
from kernelbridge.hosts.gpus.selection import GpuRequest, Others
from kernelbridge.hosts.pool import BackendPool
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.start import slurm_job
from kernelbridge.kernel.start.preflight import check_image, check_mounts, resolve_mounts

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.slurm.cluster import Cluster

# A login has limits of its own, longer ones where its user is asked.
MOST_LOGIN_SECONDS: Final = 180.0
LINK_SECONDS: Final = 60.0
_SLOW_SHELL_SECONDS: Final = 1.0
_CLOCK_SECONDS: Final = 60
# Below that few images fit.
_LITTLE_ROOM_BYTES: Final = 20 * 1000**3


class LinkState(StrEnum):
    """What is known of one link of the way."""

    OK = "ok"
    # It works, and something about it will be in the way one day.
    WARNING = "warning"
    BROKEN = "broken"
    # A link before it is broken.
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of one link."""

    # The host's name in the config; empty: this machine's own.
    host: str = ""
    # What it is called: "login", "engine", "torch: image".
    link: str
    state: LinkState = LinkState.OK
    found: str
    # What to do; empty where nothing is to be done.
    remedy: str = ""
    # Of the error that says so; 0 without one.
    exit_code: int = 0
    seconds: float = 0.0

    @classmethod
    def of_error(cls, link: str, error: KernelBridgeError) -> Finding:
        """Return what an error says of a link that it broke."""
        return cls(
            link=link,
            state=LinkState.BROKEN,
            found=error.sentence,
            remedy=error.remedy,
            exit_code=error.exit_code,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as `doctor --json` has it."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


Tell = Callable[[Finding], None]


class HostDoctor:
    """The links of one host, and of what environments need of it."""

    def __init__(self, host: Host, requests: Sequence[LaunchRequest], backends: BackendPool, *, tell: Tell) -> None:
        """`requests` are what starts of its environments would ask for; `tell` gets each finding as soon as it is."""
        self._host = host
        self._requests = tuple(requests)
        self._backends = backends
        self._tell_finding = tell

    def __repr__(self) -> str:
        return f"<HostDoctor of {self._host.name}>"

    async def examine(self) -> None:
        """Look at all links. Broken ones are told, not raised."""
        link = await self._look("login", self._login, seconds=MOST_LOGIN_SECONDS)
        if link is None:
            self._skip("login", "shell", "clock", *self._behind_login)
            return
        await self._look("shell", lambda: _shell(link))
        if not self._host.is_local:
            await self._look("clock", lambda: self._clock(link))
        await (self._engine_links(link) if self._host.scheduler is None else self._cluster_links(link))

    @property
    def _behind_login(self) -> list[str]:
        if self._host.scheduler is not None:
            return ["scheduler"]
        return ["engine", "storage", "GPUs"]

    async def _look(
        self, name: str, step: Callable[[], Awaitable[tuple[Any, Finding | str]]], *, seconds: float = LINK_SECONDS
    ) -> Any:
        """Carry out a step and tell what it found; return what it brings for the next ones, None if it is broken."""
        began = time.monotonic()
        brought = None
        try:
            async with self._backends.limited(seconds):
                brought, said = await step()
            finding = said if isinstance(said, Finding) else Finding(link=name, found=said)
        except TimeoutError:
            late = StartTimeout(host=self._host.name, what=name, seconds=seconds, remedy="Try again.")
            finding = Finding.of_error(name, late)
        except KernelBridgeError as error:
            finding = Finding.of_error(name, error)
        except Exception as exc:
            # Whatever a host answers: the other links are looked at still.
            finding = Finding.of_error(name, unexpected_answer(self._host.name, exc))
        self._tell(replace(finding, seconds=time.monotonic() - began))
        return brought

    def _tell(self, finding: Finding) -> None:
        self._tell_finding(replace(finding, host=self._host.name))

    def _skip(self, broken: str, *names: str) -> None:
        for name in names:
            self._tell(Finding(link=name, state=LinkState.SKIPPED, found=f"behind {broken}"))

    # -- the way there

    async def _login(self) -> tuple[AnyLink, str]:
        link = await self._backends.link(self._host)
        return link, "this machine" if self._host.is_local else f"{link.facts.user} at {self._host.ssh}"

    async def _clock(self, link: AnyLink) -> tuple[None, Finding | str]:
        before = time.time()
        answer = await link.run(["date", "+%s"], seconds=LINK_SECONDS)
        # Half of the way and of the shell's start are the answer's.
        off = round(int(answer.stdout.split()[-1]) - (before + time.time()) / 2)
        if abs(off) < _CLOCK_SECONDS:
            return None, "right"
        found = f"{abs(off)} s {'ahead' if off > 0 else 'behind'}"
        remedy = "Have the host's clock set by NTP (`timedatectl set-ntp true` there)."
        return None, Finding(link="clock", state=LinkState.WARNING, found=found, remedy=remedy)

    # -- an engine

    async def _engine_links(self, link: AnyLink) -> None:
        opened = await self._look("engine", self._engine)
        engine: Engine | None = None
        if opened is None:
            self._skip("engine", "storage")
        else:
            engine, folder = opened
            await self._look("storage", lambda: _storage(link, folder))
        facts = await self._look("GPUs", lambda: self._gpus(link))
        if engine is None:
            self._skip("engine", *(self._of(request, "image") for request in self._requests))
            return
        if facts is not None and facts.gpus:
            await self._look("GPUs in containers", partial(self._gpu_way, engine))
        for request in self._requests:
            await self._environment_links(request, engine, facts)

    async def _engine(self) -> tuple[tuple[Engine, str], str]:
        """Open the engine; return it with the folder of its images."""
        engine = await self._backends.engine(self._host)
        info = await engine.info()
        ends = "" if info.get("LiveRestoreEnabled") else "; its restart ends kernels, for `live-restore` is off"
        folder = str(info.get("DockerRootDir") or "")
        return (engine, folder), f"{engine.about} by {engine.about.transport}{ends}"

    async def _gpus(self, link: AnyLink) -> tuple[GpuFacts, str]:
        facts = await Inventory(link).look(max_age_seconds=0.0)
        if facts.trouble:
            raise no_answer(self._host.name, facts.trouble)
        if not facts.gpus:
            return facts, "none, and no nvidia-smi"
        cards = [gpu.name for gpu in facts.gpus if not gpu.parent]
        shown = ", ".join(f"{cards.count(name)} x {name}" for name in dict.fromkeys(cards))
        return facts, f"{shown}; driver {facts.driver}" + (f", CUDA {facts.cuda}" if facts.cuda else "")

    async def _gpu_way(self, engine: Engine) -> tuple[None, str]:
        return None, f"by {await engine.gpu_way(self._host.gpu_access)}"

    # -- what an environment needs

    @staticmethod
    def _of(request: LaunchRequest, what: str) -> str:
        return f"{request.environment.name}: {what}"

    async def _environment_links(self, request: LaunchRequest, engine: Engine, facts: GpuFacts | None) -> None:
        environment = request.environment
        if environment.gpus != 0:
            name = self._of(request, "GPUs")
            if facts is None:
                self._skip("GPUs", name)
            else:
                await self._look(name, lambda: self._enough_gpus(name, environment, facts))
        await self._look(self._of(request, "image"), lambda: self._image(environment, engine))
        if environment.host_mounts:
            await self._look(self._of(request, "mounts"), lambda: self._mounts(environment, engine))

    async def _enough_gpus(self, name: str, environment: Environment, facts: GpuFacts) -> tuple[None, Finding | str]:
        """See whether the host could have what is asked for, whoever has it now."""
        asked = GpuRequest.of_environment(environment)
        try:
            selection.pick(facts, asked, Others(), host=self._host.name)
        except GpusBusy as busy:
            remedy = "Wait for them, or ask for less: `kernelbridge gpus` shows who has them."
            return None, Finding(link=name, state=LinkState.WARNING, found=busy.sentence, remedy=remedy)
        return None, f"{asked} can be had"

    async def _image(self, environment: Environment, engine: Engine) -> tuple[None, str]:
        if environment.build is not None:
            return None, "is built by the first start"
        there = await check_image(environment, self._host, engine)
        return None, f"{environment.image} is there" if there else f"{environment.image} is pulled by the first start"

    async def _mounts(self, environment: Environment, engine: Engine) -> tuple[None, str]:
        return None, f"{len(await resolve_mounts(environment, engine))} found"

    # -- a cluster

    async def _cluster_links(self, link: AnyLink) -> None:
        cluster = await self._look("scheduler", self._scheduler)
        if cluster is None:
            self._skip("scheduler", *(self._of(request, "job") for request in self._requests))
            return
        for request in self._requests:
            await self._look(self._of(request, "job"), partial(self._job, request, cluster))
            if request.environment.host_mounts:
                await self._look(self._of(request, "mounts"), partial(self._cluster_mounts, request, link))

    async def _scheduler(self) -> tuple[Cluster, str]:
        cluster = await self._backends.cluster(self._host)
        nodes = await cluster.nodes()
        gpus = sum(sum(node.gpus_total.values()) for node in nodes)
        return cluster, f"Slurm, {len(nodes)} nodes with {gpus} GPUs"

    async def _job(self, request: LaunchRequest, cluster: Cluster) -> tuple[None, str]:
        await cluster.check(slurm_job.job_request(request, self._host))
        return None, "Slurm would take it"

    async def _cluster_mounts(self, request: LaunchRequest, link: AnyLink) -> tuple[None, str]:
        await check_mounts(request.environment, link)
        return None, "found on the login node"


async def _shell(link: AnyLink) -> tuple[None, Finding | str]:
    """Look how long its start-up files take."""
    await link.run(["true"], seconds=LINK_SECONDS)
    seconds = link.shell_seconds
    if seconds < _SLOW_SHELL_SECONDS:
        return None, "runs commands"
    remedy = "Let start-up files (~/.bashrc, ~/.cshrc ...) return at once where there is no terminal."
    found = f"takes {seconds:.1f} s to start, each time"
    return None, Finding(link="shell", state=LinkState.WARNING, found=found, remedy=remedy)


async def _storage(link: AnyLink, folder: str) -> tuple[None, Finding | str]:
    """Look how much room there is for images."""
    answer = await link.run(["df", "-Pk", "--", folder], seconds=LINK_SECONDS)
    free = _free_bytes(answer.stdout)
    if free is None:
        return None, f"not to be seen by this login ({folder})"
    found = f"{free / 1000**3:,.0f} GB free in {folder}"
    if free >= _LITTLE_ROOM_BYTES:
        return None, found
    remedy = f"`docker system prune` on {link.name} removes what nobody uses; `kernelbridge images` lists ours."
    return None, Finding(link="storage", state=LinkState.WARNING, found=found, remedy=remedy)


def _free_bytes(answer: bytes) -> int | None:
    """Return what `df -Pk` says is free; None if it says nothing."""
    lines = answer.decode("utf-8", "replace").splitlines()
    words = lines[-1].split() if len(lines) > 1 else []
    return int(words[3]) * 1024 if len(words) > 3 and words[3].isdigit() else None
