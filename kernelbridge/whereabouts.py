"""Where one kernel is, or will be: its host, its GPUs or its job, what is known of its image; and the record of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from kernelbridge import creation
from kernelbridge.checks import Found
from kernelbridge.config import Host
from kernelbridge.familiarity import Familiarity
from kernelbridge.processes import is_alive
from kernelbridge.surroundings import Surroundings
from kernelbridge.wanted import Wanted


class Whereabouts:
    """The whereabouts of one kernel."""

    def __init__(
        self, wanted: Wanted, around: Surroundings, *, session: str, know: Callable[[dict[str, Any], str | None], None]
    ) -> None:
        """`know` hears the image's kernel_info and ipywidgets version, as soon as they are known."""
        self.wanted = wanted
        self._around = around
        self._session = session
        self._know = know
        self.image = Familiarity(around.records, wanted.environment)
        # Which host took it; the first that can give the GPUs. Set by found and settle.
        self.host: Host = wanted.hosts[0]
        # Those that may, as the check found them.
        self.hosts: tuple[Host, ...] = wanted.hosts
        # Its GPUs, by UUID; set by settle, and by what the relay says.
        self.gpu_ids: tuple[str, ...] = ()
        # The id of its job, where a cluster runs it; empty elsewhere.
        self.job = ""

    def __repr__(self) -> str:
        return f"<Whereabouts {self.host.name}, {len(self.gpu_ids)} GPUs>"

    def want(self, wanted: Wanted) -> None:
        """Something else is wanted from now on; nothing is there yet."""
        self.wanted = wanted
        self.image = Familiarity(self._around.records, wanted.environment)
        self.host, self.hosts, self.gpu_ids, self.job = wanted.hosts[0], wanted.hosts, (), ""

    def found(self, found: Found) -> None:
        """The check is over."""
        self.host, self.hosts = found.hosts[0], found.hosts
        self.know_image(found.image_id)

    def know_image(self, image_id: str) -> None:
        """The image on the host has this id; empty: it is not there yet."""
        record = self.image.know(image_id)
        if record is not None:
            self._know(dict(record.kernel_info), record.widgets)

    def settle(self, host: Host, gpu_ids: Sequence[str], *, job: str = "") -> None:
        """This host will have it, with these GPUs, or in this job; another may follow where that comes to nothing."""
        if host != self.host:
            self.know_image("")
        self.host, self.gpu_ids, self.job = host, tuple(gpu_ids), job
        self.remember()

    # -- the record

    @property
    def is_held(self) -> bool:
        """Whether a process of this machine that lives has written down that it has the kernel."""
        known = self._around.records.kernel(self.wanted.kernel_id)
        return known is not None and is_alive(known.process)

    def remember(self) -> None:
        """Write down that this process has the kernel, so that another may find it."""
        known = self._around.records.kernel(self.wanted.kernel_id)
        self._around.records.keep(
            creation.record(self.wanted, self.host, self._around, known, session=self._session, gpus=self.gpu_ids)
        )

    def leave(self, **changed: Any) -> None:
        """This process leaves it now, and changes the record, unless another has written that it has it."""
        records = self._around.records
        records.change(self.wanted.kernel_id, of=self._around.process, left=time.time(), **changed)

    def want_no_more(self) -> None:
        """It is to be removed by whoever reaches its host."""
        self._around.records.change(self.wanted.kernel_id, stop_wanted=True, left=time.time())

    def forget(self, *, whoever_has_it: bool = False) -> None:
        """It is gone, or another's, who has written that down."""
        self._around.records.forget(self.wanted.kernel_id, of=None if whoever_has_it else self._around.process)
