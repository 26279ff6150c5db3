"""Keep track of where one kernel is, or will be (host, GPUs or job, image), and write its record on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kernelbridge.config.schema import Environment, Host
from kernelbridge.hosts.docker.images.prepared_image import PreparedImage
from kernelbridge.hosts.docker.responses import ImageFacts
from kernelbridge.kernel.process_mark import Liveness
from kernelbridge.kernel.recipe import recipe
from kernelbridge.kernel.records import ImageInfo, KernelRecord
from kernelbridge.kernel.request import KernelServices, LaunchRequest
from kernelbridge.kernel.start.preflight import Candidates


class Placement:
    """The whereabouts of one kernel."""

    def __init__(
        self,
        request: LaunchRequest,
        services: KernelServices,
        *,
        session: str,
        image_known: Callable[[dict[str, Any], str | None], None],
    ) -> None:
        """`image_known` gets the image's kernel_info and ipywidgets version, as soon as they are known."""
        self.request = request
        self._services = services
        self._session = session
        self._image_known = image_known
        self.image = ImageInfo(services.records, request.environment)
        # The image on the host, and what its container is made of; None while they are not known. Set by set_image and
        # set_prepared.
        self.base: ImageFacts | None = None
        self.prepared: PreparedImage | None = None
        # Which host took it; the first that can give the GPUs. Set by set_candidates and settle.
        self.host: Host = request.hosts[0]
        # Those that may, as the check found them.
        self.hosts: tuple[Host, ...] = request.hosts
        # Its GPUs, by UUID; set by settle, and by what the relay says.
        self.gpu_ids: tuple[str, ...] = ()
        # What its image would run first, and does not here; set by set_image.
        self.entrypoint: tuple[str, ...] = ()
        # The id of its job, where a cluster runs it; empty elsewhere.
        self.job = ""

    def __repr__(self) -> str:
        return f"<Placement {self.host.name}, {len(self.gpu_ids)} GPUs>"

    def reset(self, request: LaunchRequest) -> None:
        """Start over for another request, of which nothing is there yet."""
        self.request = request
        self.image = ImageInfo(self._services.records, request.environment)
        self.host, self.hosts, self.gpu_ids, self.job = request.hosts[0], request.hosts, (), ""
        self.base = self.prepared = None

    def set_candidates(self, candidates: Candidates) -> None:
        """Take the hosts, and the image of the first, from what the check found."""
        self.host, self.hosts = candidates.hosts[0], candidates.hosts
        self.set_image(candidates.image)

    def set_image(self, image: ImageFacts | None) -> None:
        """Note the image on the host; None: it is not there yet."""
        self.entrypoint = image.entrypoint if image else ()
        self.base, self.prepared = image, None
        image_id = image.id if image else ""
        self._services.records.change(self.request.kernel_id, of=self._services.mark, image_id=image_id)
        record = self.image.set_id(image_id)
        if record is not None:
            self._image_known(dict(record.kernel_info), record.widgets)

    def set_prepared(self, prepared: PreparedImage) -> None:
        """Note what its container is made of."""
        self.prepared = prepared
        self.remember()

    @property
    def environment(self) -> Environment:
        """What was asked for, with the Python that runs in its container."""
        asked = self.request.environment
        return asked if self.prepared is None else asked.model_copy(update={"python": self.prepared.python})

    def settle(self, host: Host, gpu_ids: Sequence[str], *, job: str = "") -> None:
        """Record the host, and the GPUs or the job there; may be called again where that comes to nothing."""
        if host != self.host:
            self.set_image(None)
        self.host, self.gpu_ids, self.job = host, tuple(gpu_ids), job
        self.remember()

    # -- the record

    @property
    def is_held(self) -> bool:
        """Whether a process that may live, here or on another machine, has written down that it has the kernel."""
        records = self._services.records
        known = records.kernel(self.request.kernel_id)
        return known is not None and records.holder_liveness(known) is not Liveness.ENDED

    def remember(self) -> None:
        """Write down that this process has the kernel, so that another may find it."""
        known = self._services.records.kernel(self.request.kernel_id)
        made = record(self.request, self.host, self._services, known, session=self._session, gpus=self.gpu_ids)
        image_id = self.base.id if self.base else (known.image_id if known else "")
        self._services.records.keep(replace(made, image_id=image_id, python=self.environment.python))

    def record_notebook(self) -> None:
        """Write down which notebook it is, if this process has written down that it has it."""
        request, services = self.request, self._services
        services.records.change(request.kernel_id, of=services.mark, title=request.title, notebook=request.notebook)

    def record_detached(self, **changed: Any) -> None:
        """Write down that this process has let it go, with other changes, unless another has written that it has it."""
        records = self._services.records
        records.change(self.request.kernel_id, of=self._services.mark, left=time.time(), **changed)

    def record_stop_wanted(self) -> None:
        """Write down that whoever reaches its host should remove it; nobody is to take it up."""
        self._services.records.change(self.request.kernel_id, stop_wanted=True, left=time.time(), claim="")

    def forget(self, *, whoever_has_it: bool = False) -> None:
        """Forget its record where this process wrote it, or whoever did."""
        self._services.records.forget(self.request.kernel_id, of=None if whoever_has_it else self._services.mark)


def record(
    request: LaunchRequest,
    host: Host,
    services: KernelServices,
    known: KernelRecord | None,
    *,
    session: str,
    gpus: tuple[str, ...] = (),
) -> KernelRecord:
    """Return what is to be remembered of a kernel that this process has; `known` is what was."""
    # A container is made once; on another host it is another one.
    is_same = known is not None and known.host == host.name
    made_of = known.recipe if known is not None and is_same else recipe(request.environment, host)
    return KernelRecord(
        kernel_id=request.kernel_id,
        environment=request.environment.name,
        config=services.config,
        host=host.name,
        image=request.environment.image,
        python=request.environment.python,
        session=session,
        started=known.started if known else time.time(),
        process=services.mark.process,
        birth=services.mark.birth,
        who=services.owner.who,
        server=request.server,
        sessions=known.sessions if known else (),
        title=request.title or (known.title if known else ""),
        notebook=request.notebook or (known.notebook if known else ""),
        persist=request.environment.persist,
        claim=request.claim,
        connection_file=request.connection_file,
        gpus=gpus or (known.gpus if known else ()),
        recipe=made_of,
        kind=request.command.kind if request.command else "",
        folder=request.folder or (known.folder if known else ""),
        commit=_commit(request) or (known.commit if known else ""),
    )


def _commit(request: LaunchRequest) -> str:
    checkout = request.project.checkout if request.project is not None else None
    return checkout.commit if checkout is not None else ""
