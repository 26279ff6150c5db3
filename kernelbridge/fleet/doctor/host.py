"""Look at each link of the way from here to a kernel on a host, in order: what is there, what is broken, what to do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kernelbridge.config.schema import Host
from kernelbridge.errors import EngineTooOld, ForwardingForbidden, GpuToolkitMissing, GpuWayMissing
from kernelbridge.fleet.doctor.environment import EnvironmentExaminer
from kernelbridge.fleet.doctor.finding import LINK_SECONDS, Examiner, Finding, LinkName, Said, Tell
from kernelbridge.fleet.doctor.trials import Trials
from kernelbridge.fleet.doctor.way import WayExaminer
from kernelbridge.fleet.gpu_listing import no_answer
from kernelbridge.hosts.docker.gpu_access import CDI_BY_UUID, GpuWay, cdi_devices, lists_cdi
from kernelbridge.hosts.docker.responses import OLDEST_API
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts, Inventory
from kernelbridge.hosts.pool import BackendPool
from kernelbridge.hosts.transport.stream import AnyLink, Collector
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.start.launch import PythonFinder

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.slurm.cluster import Cluster

_SLOW_SHELL_SECONDS: Final = 1.0
_CLOCK_SECONDS: Final = 60
# Below that few images fit.
LITTLE_ROOM_BYTES: Final = 20 * 1000**3
# What NVIDIA's toolkit installs; the first is what a Docker without its runtime takes it from.
_TOOLKIT_SCRIPT: Final = "command -v nvidia-container-runtime-hook || command -v nvidia-container-toolkit"
_CDI_SCRIPT: Final = 'for folder do grep -ls "nvidia.com/gpu" "$folder"/*; done; true'
_CDI_FOLDERS: Final = ("/etc/cdi", "/var/run/cdi")
_OF_ENGINE: Final = (LinkName.ENGINE, LinkName.API, LinkName.LIVE_RESTORE, LinkName.STORAGE)
_GPU_LINKS: Final = (LinkName.DRIVER, LinkName.TOOLKIT, LinkName.CDI)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """An engine that answers, and what it says of itself."""

    engine: Engine
    info: dict[str, Any]


class HostDoctor:
    """The links of one host, and of what environments need of it."""

    def __init__(
        self,
        host: Host,
        requests: Sequence[LaunchRequest],
        backends: BackendPool,
        *,
        find_python: PythonFinder,
        trials: Trials | None,
        tell: Tell,
    ) -> None:
        """`requests` are what starts of its environments would ask for; `tell` gets each finding as soon as it is.

        Without `trials` nothing is started there.
        """
        self._host = host
        self._requests = tuple(requests)
        self._backends = backends
        self._find_python = find_python
        self._trials = trials
        self._examiner = Examiner(tell, host=host.name)

    def __repr__(self) -> str:
        return f"<HostDoctor of {self._host.name}>"

    async def examine(self) -> None:
        """Look at all links. Broken ones are told, not raised."""
        way = WayExaminer(
            self._host,
            self._examiner,
            link=self._backends.link,
            watch_login=self._backends.watch_login,
            limited=self._backends.limited,
        )
        link, broken = await way.log_in()
        if link is None:
            rest = [name for name in self._behind_login if name is not broken]
            self._examiner.skip(broken, *rest)
            self._skip_environments(broken)
            return
        await self._examiner.look(LinkName.SHELL, partial(_shell, link))
        if not self._host.is_local:
            await self._examiner.look(LinkName.CLOCK, partial(_clock, link))
        await (self._engine_links(link) if self._host.scheduler is None else self._cluster_links(link))

    @property
    def _behind_login(self) -> list[LinkName]:
        clock = [LinkName.CLOCK] if not self._host.is_local else []
        if self._host.scheduler is not None:
            return [LinkName.SHELL, *clock, LinkName.SCHEDULER]
        forwarding = [LinkName.FORWARDING] if not self._host.is_local else []
        return [LinkName.SHELL, *clock, *forwarding, *_OF_ENGINE, *_GPU_LINKS]

    def _skip_environments(self, broken: LinkName) -> None:
        for request in self._requests:
            self._of(request).skip(broken)

    def _of(self, request: LaunchRequest) -> EnvironmentExaminer:
        return EnvironmentExaminer(
            request,
            self._host,
            self._examiner.of_environment(request.environment.name),
            find_python=self._find_python,
            trials=self._trials,
        )

    # -- an engine

    async def _engine_links(self, link: AnyLink) -> None:
        if not self._host.is_local:
            forwarding = await self._examiner.look(LinkName.FORWARDING, lambda: self._forwarding(link))
            if forwarding is None:
                self._examiner.skip(LinkName.FORWARDING, *_OF_ENGINE, *_GPU_LINKS)
                self._skip_environments(LinkName.FORWARDING)
                return
        opened, broken = await self._open_engine()
        if opened is not None:
            folder = str(opened.info.get("DockerRootDir") or "")
            await self._examiner.look(LinkName.STORAGE, lambda: _storage(link, folder))
        facts = await self._examiner.look(LinkName.DRIVER, lambda: self._driver(link))
        if opened is None:
            self._examiner.skip(broken, LinkName.TOOLKIT, LinkName.CDI)
            self._skip_environments(broken)
            return
        if facts is None:
            self._examiner.skip(LinkName.DRIVER, LinkName.TOOLKIT, LinkName.CDI)
            broken_for_gpus: LinkName | None = LinkName.DRIVER
        else:
            broken_for_gpus = await self._toolkit_links(link, opened, facts)
        for request in self._requests:
            await self._of(request).examine(opened.engine, facts, broken=broken_for_gpus)

    async def _forwarding(self, link: AnyLink) -> tuple[bool, Said]:
        """See whether sshd lets an engine's socket through."""
        sockets = [one for one in link.facts.sockets if one.exists]
        path = self._host.socket or next((one.path for one in sockets if one.is_writable), "")
        path = path or next((one.path for one in sockets), "")
        if not path:
            return True, Finding.not_tried(LinkName.FORWARDING, "there is no socket of an engine")
        try:
            (await link.open_socket(path, Collector())).close()
        except ForwardingForbidden:
            if not link.facts.has_docker_command:
                raise
            return True, Finding.warning(
                LinkName.FORWARDING,
                "its sshd forbids it: the engine is reached by `docker system dial-stdio`, which is slower",
                "Ask for `AllowStreamLocalForwarding yes` in its sshd_config.",
            )
        except OSError:
            # Who may connect, and whether somebody listens, is the next link's.
            return True, "not forbidden"
        return True, f"allowed ({path})"

    async def _open_engine(self) -> tuple[_Opened | None, LinkName]:
        """Look at an engine and its own links; where one is broken, return its name."""
        too_old: list[EngineTooOld] = []

        async def opens() -> tuple[_Opened | bool, Said]:
            try:
                engine = await self._backends.engine(self._host)
            except EngineTooOld as error:
                too_old.append(error)
                return True, "answers"
            return _Opened(engine=engine, info=dict(await engine.info())), f"{engine.about} by {engine.about.transport}"

        async def speaks() -> tuple[bool, Said]:
            if too_old:
                raise too_old[0]
            assert isinstance(opened, _Opened)
            return True, f"{opened.engine.api_version}; {OLDEST_API} is enough"

        opened = await self._examiner.look(LinkName.ENGINE, opens)
        if opened is None:
            self._examiner.skip(LinkName.ENGINE, LinkName.API, LinkName.LIVE_RESTORE, LinkName.STORAGE)
            return None, LinkName.ENGINE
        if await self._examiner.look(LinkName.API, speaks) is None or not isinstance(opened, _Opened):
            self._examiner.skip(LinkName.API, LinkName.LIVE_RESTORE, LinkName.STORAGE)
            return None, LinkName.API
        self._examiner.tell(_live_restore(opened, self._host.name))
        return opened, LinkName.ENGINE

    async def _driver(self, link: AnyLink) -> tuple[GpuFacts, str]:
        facts = await Inventory(link).look(max_age_seconds=0.0)
        if facts.trouble:
            raise no_answer(self._host.name, facts.trouble)
        if not facts.gpus:
            return facts, "no GPU, and no nvidia-smi"
        cards = [gpu.name for gpu in facts.gpus if not gpu.parent]
        shown = ", ".join(f"{cards.count(name)} x {name}" for name in dict.fromkeys(cards))
        return facts, f"{shown}; driver {facts.driver}" + (f", CUDA {facts.cuda}" if facts.cuda else "")

    # -- how containers get GPUs

    async def _toolkit_links(self, link: AnyLink, opened: _Opened, facts: GpuFacts) -> LinkName | None:
        """Look at the toolkit and at CDI; return which of them is broken, if one is."""
        if not facts.gpus:
            for name in (LinkName.TOOLKIT, LinkName.CDI):
                self._examiner.tell(Finding(link=name, found="not needed: no GPU"))
            return None
        wants_cdi = self._host.gpu_access == "cdi" or opened.engine.about.is_podman
        way: list[GpuWay] = []

        async def toolkit() -> tuple[bool, Said]:
            if wants_cdi:
                return True, "not needed: GPUs go by CDI"
            way.append(await opened.engine.gpu_way(self._host.gpu_access))
            return True, await self._toolkit(link, opened, way[0])

        async def cdi() -> tuple[bool, Said]:
            if wants_cdi:
                way.append(await opened.engine.gpu_way(self._host.gpu_access))
            if way[0] != "cdi":
                return True, f"not used: GPUs go by `{way[0]}`"
            return True, await self._cdi(link, opened)

        if await self._examiner.look(LinkName.TOOLKIT, toolkit) is None:
            self._examiner.skip(LinkName.TOOLKIT, LinkName.CDI)
            return LinkName.TOOLKIT
        return None if await self._examiner.look(LinkName.CDI, cdi) else LinkName.CDI

    async def _toolkit(self, link: AnyLink, opened: _Opened, way: GpuWay) -> Said:
        """See whether the engine can hand out GPUs as it is asked to. Raises GpuToolkitMissing."""
        if way == "cdi":
            return "not needed: GPUs go by CDI"
        if "nvidia" in (opened.info.get("Runtimes") or {}):
            return f"its engine has the runtime `nvidia`; GPUs go by `{way}`"
        answer = await link.run(["sh", "-c", _TOOLKIT_SCRIPT, "toolkit"], seconds=LINK_SECONDS)
        found = answer.stdout.decode("utf-8", "replace").strip()
        if found:
            return f"{found.splitlines()[0]}; GPUs go by `{way}`"
        reason = "neither a runtime `nvidia` nor nvidia-container-runtime-hook was found"
        missing = GpuToolkitMissing(host=self._host.name, reason=reason)
        if any(request.environment.gpus != 0 for request in self._requests):
            raise missing
        return Finding.warning(LinkName.TOOLKIT, missing.sentence, missing.remedy)

    async def _cdi(self, link: AnyLink, opened: _Opened) -> Said:
        """See whether there are CDI devices to ask for. Raises GpuWayMissing."""
        folders = [str(folder) for folder in opened.info.get("CDISpecDirs") or _CDI_FOLDERS]
        devices = cdi_devices(opened.info)
        if devices:
            return f"{len(devices)} devices of {' and '.join(folders)}"
        if not lists_cdi(opened.engine.about.version):
            answer = await link.run(["sh", "-c", _CDI_SCRIPT, "cdi", *folders], seconds=LINK_SECONDS)
            if files := answer.stdout.decode("utf-8", "replace").split():
                return f"described in {files[0]}"
        raise GpuWayMissing(
            host=self._host.name,
            reason=f"no CDI device of NVIDIA is described in {' or '.join(folders)}",
            remedy=CDI_BY_UUID.replace("HOST", self._host.name),
        )

    # -- a cluster

    async def _cluster_links(self, link: AnyLink) -> None:
        cluster = await self._examiner.look(LinkName.SCHEDULER, self._scheduler)
        if cluster is None:
            self._skip_environments(LinkName.SCHEDULER)
            return
        for request in self._requests:
            await self._of(request).examine_job(cluster, link)

    async def _scheduler(self) -> tuple[Cluster, str]:
        cluster = await self._backends.cluster(self._host)
        nodes = await cluster.nodes()
        gpus = sum(sum(node.gpus_total.values()) for node in nodes)
        return cluster, f"Slurm, {len(nodes)} nodes with {gpus} GPUs"


async def _shell(link: AnyLink) -> tuple[bool, Said]:
    """See what start-up files do before a command: take their time, print."""
    await link.run(["true"], seconds=LINK_SECONDS)
    seconds, noise = link.shell_seconds, link.entry.noise
    if noise:
        return True, Finding.warning(
            LinkName.SHELL,
            f'its start-up files print "{noise[:80]}" before each command: rsync and SFTP stumble over it',
            "Let ~/.bashrc (or ~/.cshrc ...) print in terminals only: `[ -t 1 ] || return` at its top.",
        )
    if seconds >= _SLOW_SHELL_SECONDS:
        return True, Finding.warning(
            LinkName.SHELL,
            f"takes {seconds:.1f} s to start, each time",
            "Let start-up files (~/.bashrc, ~/.cshrc ...) return at once where there is no terminal.",
        )
    return True, "runs commands, and prints nothing of its own"


async def _clock(link: AnyLink) -> tuple[bool, Said]:
    before = time.time()
    answer = await link.run(["date", "+%s"], seconds=LINK_SECONDS)
    # Half of the way and of the shell's start are the answer's.
    off = round(int(answer.stdout.split()[-1]) - (before + time.time()) / 2)
    if abs(off) < _CLOCK_SECONDS:
        return True, "right"
    return True, Finding.warning(
        LinkName.CLOCK,
        f"{abs(off)} s {'ahead' if off > 0 else 'behind'}",
        "Have the host's clock set by NTP (`timedatectl set-ntp true` there).",
    )


def _live_restore(opened: _Opened, host: str) -> Finding:
    """See what becomes of kernels when the engine is restarted."""
    if opened.engine.about.is_podman:
        return Finding(link=LinkName.LIVE_RESTORE, found="Podman's containers run on by themselves")
    if opened.info.get("LiveRestoreEnabled"):
        return Finding(link=LinkName.LIVE_RESTORE, found="on: kernels outlive a restart of Docker")
    return Finding.warning(
        LinkName.LIVE_RESTORE,
        "off: a restart or update of Docker ends all kernels",
        f'Set `"live-restore": true` in /etc/docker/daemon.json on {host}, then `systemctl reload docker`.',
    )


async def _storage(link: AnyLink, folder: str) -> tuple[bool, Said]:
    """Look how much room there is for images."""
    answer = await link.run(["df", "-Pk", "--", folder], seconds=LINK_SECONDS)
    free = free_bytes(answer.stdout)
    if free is None:
        return True, f"not to be seen by this login ({folder})"
    found = f"{free / 1000**3:,.0f} GB free in {folder}"
    if free >= LITTLE_ROOM_BYTES:
        return True, found
    remedy = f"`docker system prune` on {link.name} removes what nobody uses; `kernelbridge images` lists ours."
    return True, Finding.warning(LinkName.STORAGE, found, remedy)


def free_bytes(answer: bytes) -> int | None:
    """Return what `df -Pk` says is free; None if it says nothing."""
    lines = answer.decode("utf-8", "replace").splitlines()
    words = lines[-1].split() if len(lines) > 1 else []
    return int(words[3]) * 1024 if len(words) > 3 and words[3].isdigit() else None
