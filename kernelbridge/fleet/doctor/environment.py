"""Look at what an environment needs of a host: GPUs, image, mounts, Python; with trials a container and a kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from kernelbridge.config.schema import Environment, Host
from kernelbridge.errors import GpusBusy, ImageUnusable
from kernelbridge.fleet.doctor.finding import Examiner, Finding, LinkName, Said
from kernelbridge.fleet.doctor.trials import TRIAL_SECONDS, Trials
from kernelbridge.hosts.docker.images.built_image import is_up_to_date
from kernelbridge.hosts.docker.images.derived_image import in_words, lacking
from kernelbridge.hosts.docker.images.python_probe import FoundPython
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.hosts.gpus import selection
from kernelbridge.hosts.gpus.nvidia_smi import GpuFacts
from kernelbridge.hosts.gpus.selection import GpuRequest, Others
from kernelbridge.hosts.transport.stream import AnyLink
from kernelbridge.kernel.request import LaunchRequest
from kernelbridge.kernel.start import slurm_job
from kernelbridge.kernel.start.launch import PythonFinder
from kernelbridge.kernel.start.preflight import check_image, check_mounts, resolve_mounts

if TYPE_CHECKING:
    from kernelbridge.hosts.docker.engine import Engine  # loads docker-py
    from kernelbridge.hosts.slurm.cluster import Cluster

# A look into an image runs a container of it, and may ask several Pythons.
_PYTHON_SECONDS: Final = 180.0
# Without it a kernel runs, and its breakpoints do not stop.
_DEBUGGER: Final = "debugpy"


class EnvironmentExaminer:
    """The links of one environment on one host."""

    def __init__(
        self,
        request: LaunchRequest,
        host: Host,
        examiner: Examiner,
        *,
        find_python: PythonFinder,
        trials: Trials | None,
    ) -> None:
        """Without `trials` nothing is started there."""
        self._request = request
        self._host = host
        self._examiner = examiner
        self._find_python = find_python
        self._trials = trials

    def __repr__(self) -> str:
        return f"<EnvironmentExaminer of {self._environment.name} on {self._host.name}>"

    @property
    def _environment(self) -> Environment:
        return self._request.environment

    def skip(self, broken: LinkName) -> None:
        """Tell that none of it was looked at."""
        self._examiner.skip(broken, *self._links())

    def _links(self) -> list[LinkName]:
        mounts = [LinkName.MOUNTS] if self._environment.host_mounts else []
        if self._host.scheduler is not None:
            return [LinkName.JOB, *mounts, LinkName.KERNEL]
        gpus = [LinkName.GPUS] if self._environment.gpus != 0 else []
        started = [LinkName.IMAGE_PYTHON, LinkName.CONTAINER, LinkName.KERNEL]
        return [*gpus, LinkName.IMAGE, *mounts, *started]

    async def examine(self, engine: Engine, facts: GpuFacts | None, *, broken: LinkName | None) -> None:
        """Look at all of it on an engine; `broken` is the link that keeps GPUs from containers there, if one does."""
        behind: LinkName | None = None
        is_busy = False
        if self._environment.gpus != 0:
            if facts is None or broken is not None:
                behind = broken or LinkName.DRIVER
                self._examiner.skip(behind, LinkName.GPUS)
            else:
                found = await self._examiner.look(LinkName.GPUS, lambda: self._enough_gpus(facts))
                behind, is_busy = (LinkName.GPUS if found is None else None), found is False
        image = await self._examiner.look(LinkName.IMAGE, lambda: self._image(engine))
        if image is None:
            self._examiner.skip(LinkName.IMAGE, *self._links()[self._links().index(LinkName.IMAGE) + 1 :])
            return
        if self._environment.host_mounts:
            mounts = await self._examiner.look(LinkName.MOUNTS, lambda: self._mounts(engine))
            behind = behind or (LinkName.MOUNTS if mounts is None else None)
        await self._started_links(engine, image if isinstance(image, ImageFacts) else None, behind, is_busy)

    async def _enough_gpus(self, facts: GpuFacts) -> tuple[bool, Said]:
        """See whether the host could have what is asked for, whoever has it now; whether it is free."""
        asked = GpuRequest.of_environment(self._environment)
        try:
            selection.pick(facts, asked, Others(), host=self._host.name)
        except GpusBusy as busy:
            remedy = "Wait for them, or ask for less: `kernelbridge gpus` shows who has them."
            return False, Finding.warning(LinkName.GPUS, busy.sentence, remedy)
        return True, f"{asked} can be had"

    async def _image(self, engine: Engine) -> tuple[ImageFacts | bool, str]:
        """See whether the image is there, or can be; return it where a start would take it as it is."""
        environment = self._environment
        if environment.build is not None:
            built = await engine.image(environment.image)
            if built is not None and await is_up_to_date(engine, environment, built):
                return built, "is built"
            return True, "is built by the first start"
        there = await check_image(environment, self._host, engine)
        size = f" ({there.size_bytes / 1000**3:,.1f} GB)" if there is not None and there.size_bytes > 10**8 else ""
        if there is None:
            return True, f"{environment.image} is pulled by the first start"
        return there, f"{environment.image} is there{size}"

    async def _mounts(self, engine: Engine) -> tuple[bool, str]:
        return True, f"{len(await resolve_mounts(self._environment, engine))} found"

    # -- what runs there

    async def _started_links(
        self, engine: Engine, image: ImageFacts | None, behind: LinkName | None, is_busy: bool
    ) -> None:
        links = (LinkName.IMAGE_PYTHON, LinkName.CONTAINER, LinkName.KERNEL)
        if image is None:
            name = self._environment.name
            self._leave(f"the image is not on {self._host.name} yet; `kernelbridge pull {name}` fetches it", *links)
            return
        python = await self._examiner.look(
            LinkName.IMAGE_PYTHON, lambda: self._python(engine, image), seconds=_PYTHON_SECONDS
        )
        if python is None:
            self._examiner.skip(LinkName.IMAGE_PYTHON, LinkName.CONTAINER, LinkName.KERNEL)
        elif self._trials is None:
            self._leave(f"`kernelbridge doctor {self._environment.name}` starts them", *links[1:])
        elif behind is not None:
            self._examiner.skip(behind, *links[1:])
        elif is_busy:
            self._leave("its GPUs are taken", *links[1:])
        else:
            await self._try(self._trials, debugs=_DEBUGGER not in self._missing(python))

    def _leave(self, why: str, *links: LinkName) -> None:
        for link in links:
            self._examiner.tell(Finding.not_tried(link, why))

    async def _python(self, engine: Engine, image: ImageFacts) -> tuple[FoundPython | bool, Said]:
        """Find the Python that a start would take, and what it has. Raises ImageUnusable."""
        environment = self._environment
        python = await self._find_python(engine, environment, image, self._trials is not None)
        if python is None:
            why = f"it is not known yet what {environment.image} has; `kernelbridge doctor {environment.name}` looks"
            return True, Finding.not_tried(LinkName.IMAGE_PYTHON, why)
        has = [f"{name} {python.packages[name]}" for name in ("ipykernel", _DEBUGGER) if name in python.packages]
        found = f"Python {python.version} ({', '.join([python.path, *has])})"
        missing = self._missing(python)
        if not missing:
            return python, found
        names = in_words(missing)
        if environment.add_ipykernel or environment.packages or environment.requirements:
            return python, f"{found}; a start adds {names}"
        if missing == [_DEBUGGER]:
            remedy = f"Add `RUN pip install {_DEBUGGER}` to the image, or leave `add_ipykernel` out."
            return python, Finding.warning(LinkName.IMAGE_PYTHON, f"{found}; no {_DEBUGGER}: no breakpoints", remedy)
        raise ImageUnusable(image=environment.image, lacks=names)

    @staticmethod
    def _missing(python: FoundPython | bool) -> list[str]:
        return lacking(python) if isinstance(python, FoundPython) else []

    async def _try(self, trials: Trials, *, debugs: bool) -> None:
        """Start a container and a kernel, each for a moment."""
        request = replace(self._request, hosts=(self._host,))
        container = partial(self._as_far_as_free, LinkName.CONTAINER, partial(trials.container, request))
        tried = await self._examiner.look(LinkName.CONTAINER, container, seconds=TRIAL_SECONDS)
        if tried is None:
            self._examiner.skip(LinkName.CONTAINER, LinkName.KERNEL)
            return
        debugs = debugs or self._environment.add_ipykernel
        kernel = partial(self._as_far_as_free, LinkName.KERNEL, partial(trials.kernel, request, debugs=debugs))
        await self._examiner.look(LinkName.KERNEL, kernel, seconds=TRIAL_SECONDS)

    @staticmethod
    async def _as_far_as_free(link: LinkName, trial: Callable[[], Awaitable[Said]]) -> tuple[bool, Said]:
        """Carry out a trial; that others have the GPUs is no fault of the link."""
        try:
            said = await trial()
        except GpusBusy:
            return True, Finding.not_tried(link, "its GPUs are taken")
        return True, said

    # -- a job

    async def examine_job(self, cluster: Cluster, link: AnyLink) -> None:
        """Look at all of it on a cluster. No job is submitted."""
        taken = await self._examiner.look(LinkName.JOB, lambda: self._job(cluster))
        mounts: bool | None = True
        if self._environment.host_mounts:
            mounts = await self._examiner.look(LinkName.MOUNTS, lambda: self._job_mounts(link))
        if taken is None or mounts is None:
            self._examiner.skip(LinkName.JOB if taken is None else LinkName.MOUNTS, LinkName.KERNEL)
            return
        name = self._environment.name
        self._leave(f"it would be a job; `kernelbridge run {name} -- true` submits one", LinkName.KERNEL)

    async def _job(self, cluster: Cluster) -> tuple[bool, str]:
        await cluster.check(slurm_job.job_request(self._request, self._host))
        return True, "Slurm would take it"

    async def _job_mounts(self, link: AnyLink) -> tuple[bool, str]:
        await check_mounts(self._environment, link)
        return True, "found on the login node"
