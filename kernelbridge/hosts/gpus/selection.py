"""Choose the GPUs that a start may take, or say who has them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from kernelbridge.config import fields
from kernelbridge.config.schema import Environment
from kernelbridge.errors import GpusBusy, GpuUnavailable
from kernelbridge.hosts.gpus.holders import Holding, plain_name, stranger
from kernelbridge.hosts.gpus.nvidia_smi import Gpu, GpuFacts, counted, shown

_MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """The GPUs that a start needs: how many, all, or which; and what each must have."""

    number: int | Literal["all"] | tuple[str, ...]
    # How many are enough where a host has fewer than `number`; None: that many.
    least: int | None = None
    memory_bytes: int | None = None
    model: str | None = None
    # Whether a GPU on which somebody computes outside of kernelbridge is left alone.
    avoids_busy: bool = True

    @classmethod
    def of_environment(cls, environment: Environment) -> GpuRequest:
        """Read the environment's keys."""
        asked = environment.gpus
        return cls(
            number=asked.wanted if isinstance(asked, fields.GpuRange) else asked,
            least=asked.min if isinstance(asked, fields.GpuRange) else None,
            memory_bytes=environment.gpu_memory,
            model=environment.gpu_model,
            avoids_busy=environment.busy_gpus == "avoid",
        )

    @classmethod
    def of_text(cls, text: str) -> GpuRequest | None:
        """Read to_text() back; None for what it never writes: anybody may label a container."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(told, dict) or not told.keys() <= {"number", "memory", "model", "busy"}:
            return None
        memory, model, busy = told.get("memory"), told.get("model"), told.get("busy", False)
        if (
            isinstance(memory, bool)
            or not isinstance(memory, int | None)
            or (memory is not None and not 0 < memory <= fields.MOST_BYTES)
        ):
            return None
        if not isinstance(model, str | None) or model == "" or not isinstance(busy, bool):
            return None
        try:
            number = fields.parse_gpus(told.get("number"))
        except ValueError:
            return None
        if isinstance(number, fields.GpuRange):
            return None
        return cls(number=number, memory_bytes=memory, model=model, avoids_busy=not busy)

    def to_text(self) -> str:
        """Write one short line for a label; what is not asked for is left out."""
        told = {"number": self.number, "memory": self.memory_bytes, "model": self.model, "busy": not self.avoids_busy}
        said = {key: one for key, one in told.items() if one is not None and one is not False}
        return json.dumps(said, separators=(",", ":"))

    def __str__(self) -> str:
        """Write it as it goes before "requested": "2 GPUs", "GPU 0, GPU 3", "1 GPU of H200 with 20g free"."""
        if isinstance(self.number, tuple):
            text = ", ".join(f"GPU {name}" for name in self.number)
        else:
            text = "all GPUs" if self.number == "all" else counted(self.number)
        text += f" of {self.model}" if self.model else ""
        return text + (f" with {fields.size_text(self.memory_bytes)} free" if self.memory_bytes else "")


@dataclass(frozen=True, kw_only=True)
class Others:
    """The GPUs that others on a host have, wait for, and are about to take."""

    held: Sequence[Holding] = ()
    # The requests of those who came before us, first come first: nothing that they could use is given away.
    ahead: Sequence[GpuRequest] = ()
    # UUIDs that starts under way are about to take: they come last.
    claimed: Collection[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Board:
    """The host's GPUs and, by UUID, who has them."""

    gpus: tuple[Gpu, ...]
    # Of a card itself and its MIG devices, of a MIG device itself and its card.
    families: Mapping[str, frozenset[str]]
    # Those held by a container of ours, and their families; in words.
    held: Mapping[str, str]
    claimed: frozenset[str]


def pick(
    facts: GpuFacts, request: GpuRequest, others: Others, *, host: str, waited: str = "", now: datetime | None = None
) -> tuple[str, ...]:
    """Choose the UUIDs to take: those asked for in their order, else by index. `now` shortens the error's times.

    Raises: GpuUnavailable (the host can never give it), GpusBusy (others have it now).
    """
    board = _board(facts, others, now)
    asked, request = request, _fitted(board, request)
    if request.number == 0:
        # Cards whose driver fails are no missing ones: without them nobody would be told.
        if asked.number and facts.trouble:
            raise GpuUnavailable(host=host, wanted=str(asked), found=shown(facts.gpus, trouble=facts.trouble))
        return ()
    suiting = _suiting(board, request, host=host, trouble=facts.trouble or ("" if facts.driver else not_found(host)))
    unfit = {gpu.uuid: _unfit(board, request, gpu) for gpu in suiting}
    kept, waiting = _kept_for(board, others.ahead)
    words = "a waiting kernel" if waiting == 1 else f"{waiting} waiting kernels"
    unfit |= {uuid: f"reserved for {words}" for uuid in kept if unfit.get(uuid) == ""}
    chosen = _chosen(board, request, [gpu for gpu in suiting if not unfit[gpu.uuid]])
    if len(chosen) < _needed(request, suiting):
        holders = [f"GPU {gpu.index}: {unfit[gpu.uuid]}" for gpu in suiting if unfit[gpu.uuid]]
        raise GpusBusy(host=host, wanted=str(request), holders=holders, waited=waited)
    return tuple(gpu.uuid for gpu in chosen)


def _fitted(board: _Board, request: GpuRequest) -> GpuRequest:
    """Return the request with as many cards as a host has that suit, where it has fewer than are wanted."""
    if request.least is None or not isinstance(request.number, int):
        return request
    suiting = [gpu for gpu in board.gpus if not _note(board, request, gpu)]
    return replace(request, number=max(request.least, min(request.number, len(suiting))))


def not_found(host: str) -> str:
    """Say of an nvidia-smi that a host does not have where it was looked for."""
    places = "neither on the PATH nor on a login shell's, nor in a usual place such as /usr/local/nvidia/bin"
    return f"{places}; if it is elsewhere, name its folder in `path` of [hosts.{host}]"


def _board(facts: GpuFacts, others: Others, now: datetime | None) -> _Board:
    families: dict[str, frozenset[str]] = {}
    for gpu in facts.gpus:
        devices = {other.uuid for other in facts.gpus if gpu.uuid == other.parent}
        families[gpu.uuid] = frozenset({gpu.uuid, *devices} | ({gpu.parent} if gpu.parent else set()))
    held: dict[str, str] = {}
    for holding in others.held:
        # What a label names and the host has no more is nobody's.
        for uuid in _with_families(families, holding.gpus):
            held.setdefault(uuid, _holder(holding, now))
    return _Board(gpus=facts.gpus, families=families, held=held, claimed=_with_families(families, others.claimed))


def _with_families(families: Mapping[str, frozenset[str]], uuids: Iterable[str]) -> frozenset[str]:
    """Return all that nobody else can have once these are taken."""
    return frozenset().union(*(families.get(uuid, frozenset()) for uuid in uuids))


def _needed(request: GpuRequest, suiting: Sequence[Gpu]) -> int:
    return request.number if isinstance(request.number, int) else len(suiting)


def _suiting(board: _Board, request: GpuRequest, *, host: str, trouble: str) -> list[Gpu]:
    """Return the GPUs that the request could have if all were free. Raises GpuUnavailable if they are too few."""
    notes = {gpu.uuid: note for gpu in board.gpus if (note := _note(board, request, gpu))}
    if isinstance(request.number, tuple):
        named = _named(board, request.number, host=host, trouble=trouble)
        if wrong := [gpu for gpu in named if gpu.uuid in notes]:
            raise GpuUnavailable(host=host, wanted=str(request), found=shown(wrong, notes=notes))
        return named
    suiting = [gpu for gpu in board.gpus if gpu.uuid not in notes]
    if len(suiting) < (request.number if isinstance(request.number, int) else 1):
        found = [gpu for gpu in board.gpus if not gpu.parent or _may_be_part(request)]
        raise GpuUnavailable(host=host, wanted=str(request), found=shown(found, notes=notes, trouble=trouble))
    return suiting


def _named(board: _Board, names: tuple[str, ...], *, host: str, trouble: str) -> list[Gpu]:
    """Find the GPUs of these indexes and UUIDs, once each; a UUID may be shortened as long as only one fits."""
    found: dict[str, Gpu] = {}
    for name in names:
        fitting = [gpu for gpu in board.gpus if name in (gpu.index, gpu.uuid)] or [
            gpu for gpu in board.gpus if re.match("(GPU|MIG)-", name) and gpu.uuid.startswith(name)
        ]
        if len(fitting) != 1:
            all_of_them = shown(board.gpus, trouble=trouble)
            raise GpuUnavailable(host=host, wanted=f"GPU {name}", found=all_of_them)
        found[fitting[0].uuid] = fitting[0]
    return list(found.values())


def _note(board: _Board, request: GpuRequest, gpu: Gpu) -> str:
    """Say why this GPU can never serve the request; empty if it can."""
    if gpu.is_split:
        devices = [one.uuid for one in board.gpus if one.parent == gpu.uuid]
        return f"in MIG mode: name one of {', '.join(devices)}" if devices else "in MIG mode without a MIG device"
    if gpu.parent and not isinstance(request.number, tuple) and not _may_be_part(request):
        return "a MIG device: request it by its id"
    if request.model and request.model.lower() not in gpu.name.lower():
        return f"not {request.model}"
    if request.memory_bytes and gpu.usable_mib * _MIB < request.memory_bytes:
        return f"{_gib(gpu.usable_mib)} usable" if gpu.memory_mib else "so `gpu_memory` cannot be checked"
    return ""


def _may_be_part(request: GpuRequest) -> bool:
    """Whether a MIG device can serve a request that names none: only one, and only where it says what it must have."""
    return request.number == 1 and bool(request.memory_bytes or request.model)


def _unfit(board: _Board, request: GpuRequest, gpu: Gpu) -> str:
    """Say why this GPU cannot serve the request now; empty if it can."""
    if gpu.uuid in board.held:
        return board.held[gpu.uuid]
    computing = [process for process in gpu.processes if process.computes]
    if computing and request.avoids_busy:
        return stranger(computing)
    if request.memory_bytes and gpu.free_mib * _MIB < request.memory_bytes:
        return f"{_gib(gpu.free_mib)} of {_gib(gpu.usable_mib)} free"
    return ""


def _chosen(board: _Board, request: GpuRequest, free: Sequence[Gpu]) -> list[Gpu]:
    """Choose from free and suiting GPUs: as many as wanted or as there are, in the order they are given in."""
    if not isinstance(request.number, int):
        return list(free)
    order = {gpu.uuid: number for number, gpu in enumerate(free)}
    best = sorted(free, key=lambda gpu: (gpu.uuid in board.claimed, -gpu.free_mib, order[gpu.uuid]))
    return sorted(best[: request.number], key=lambda gpu: order[gpu.uuid])


def _kept_for(board: _Board, ahead: Sequence[GpuRequest]) -> tuple[frozenset[str], int]:
    """Find what those who wait before us could use of what is free now, and count them.

    Each gets its share in turn. One who cannot have all of it yet keeps what there is of it: else small requests would
    overtake it for ever.
    """
    kept: frozenset[str] = frozenset()
    waiting = 0
    for request in ahead:
        try:
            suiting = _suiting(board, request, host="", trouble="")
        except GpuUnavailable:
            continue  # It will be told so itself, and leave.
        free = [gpu for gpu in suiting if gpu.uuid not in kept and not _unfit(board, request, gpu)]
        share = _chosen(board, request, free)
        kept |= _with_families(board.families, (gpu.uuid for gpu in share))
        waiting += bool(share)
    return kept, waiting


def _holder(holding: Holding, now: datetime | None) -> str:
    since = holding.since.astimezone()
    is_today = now is not None and since.date() == now.astimezone().date()
    moment = f"{since:%H:%M}" if is_today else f"{since:%d %b %H:%M}"
    return f"{plain_name(holding.environment)} of {plain_name(holding.who) or 'another'} since {moment}"


def _gib(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB"
