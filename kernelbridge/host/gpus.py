"""Which GPUs a host has, and which of them to use. Whether they are free: the lease, a later issue."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kernelbridge.host.stream import AnyLink
from kernelbridge.kernel_errors import GpuUnavailable

QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
# Without persistence mode the first nvidia-smi wakes every card up.
QUERY_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card."""

    index: int
    uuid: str
    name: str
    memory_mib: int

    def __str__(self) -> str:
        return f"{self.index} ({self.name}, {self.memory_mib / 1024:.0f} GiB)"


def parse(answer: str) -> list[Gpu]:
    """Read the answer to QUERY. Lines that are no card (nvidia-smi's own warnings) are left out."""
    gpus = []
    for row in csv.reader(answer.splitlines(), skipinitialspace=True):
        if len(row) == 4 and row[0].strip().isdigit():
            index, uuid, name, memory = (cell.strip() for cell in row)
            # Cards that share their memory with the machine (GB10) say [N/A].
            gpus.append(Gpu(index=int(index), uuid=uuid, name=name, memory_mib=int(memory) if memory.isdigit() else 0))
    return gpus


def pick(gpus: Sequence[Gpu], wanted: int | Literal["all"] | Sequence[str], *, host: str) -> tuple[str, ...]:
    """The UUIDs of the cards to use: the first `wanted` of them, all, or those named by index or UUID.

    A UUID may be shortened, as nvidia-smi allows, as long as only one card fits.

    Raises: GpuUnavailable.
    """
    found = _shown(gpus)
    if wanted == "all":
        if not gpus:
            raise GpuUnavailable(host=host, wanted="all GPUs", found=found)
        return tuple(gpu.uuid for gpu in gpus)
    if isinstance(wanted, int):
        if wanted > len(gpus):
            raise GpuUnavailable(host=host, wanted=_counted(wanted), found=found)
        return tuple(gpu.uuid for gpu in gpus[:wanted])
    uuids = []
    for name in wanted:
        fitting = [
            gpu.uuid
            for gpu in gpus
            if str(gpu.index) == name or (name[:1] not in "0123456789" and gpu.uuid.startswith(name))
        ]
        if len(fitting) != 1:
            raise GpuUnavailable(host=host, wanted=f"GPU {name}", found=found)
        uuids += fitting
    # Once each: an index and a UUID may name the same card.
    return tuple(dict.fromkeys(uuids))


def _counted(number: int) -> str:
    return f"{number} GPU" if number == 1 else f"{number} GPUs"


def _shown(gpus: Sequence[Gpu]) -> str:
    return f"{_counted(len(gpus))}: {', '.join(str(gpu) for gpu in gpus)}" if gpus else "no GPU"


async def inventory(link: AnyLink) -> list[Gpu]:
    """The cards of the host; none where there is no nvidia-smi, or where it does not work.

    Raises: LinkLost, SshFailed, StartTimeout.
    """
    answer = await link.run(QUERY, seconds=QUERY_SECONDS)
    return parse(answer.stdout.decode("utf-8", "replace")) if answer.exit_code == 0 else []
