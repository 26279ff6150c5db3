"""Find the kernels on all hosts, whoever started them, by their labels; ask how they are, and stop them.

It is one thing: all of it finds containers by their labels, and asks the relays in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kernelbridge.errors import (
    EngineFailed,
    KernelBridgeError,
    KernelEnded,
    KernelNotFound,
    OutputUndelivered,
    unexpected_answer,
)
from kernelbridge.hosts import relay_query
from kernelbridge.hosts.backend import Backend, ContainerFacts, Exited, Missing, Over, Workload
from kernelbridge.hosts.labels import KERNEL_LABEL, Labels, container_name, parse_labels, short_id
from kernelbridge.hosts.relay_query import RelayAddress, ask_log, ask_output, ask_status
from kernelbridge.hosts.transport.retry import deadline, is_transient
from kernelbridge.hosts.transport.stream import BeyondLink
from kernelbridge.kernel.process_mark import Liveness, ProcessMark, liveness, owner_process
from kernelbridge.kernel.records import KernelRecord, Records
from kernelbridge.kernel.state import KernelState
from kernelbridge.plain_text import added, last_lines
from kernelbridge.protocol import exit_codes
from kernelbridge.protocol.handshake import Status

if TYPE_CHECKING:
    from kernelbridge.config.schema import Config, Host  # loads pydantic

_LOG = logging.getLogger(__name__)
# A relay that does not say so fast is shown as unknown.
STATUS_SECONDS = 8.0
# How many containers that have ended one engine is asked for at once: each question takes a thread of ours.
MOST_QUESTIONS = 16
# How long a kernel of another machine may wait for its container, with nothing but a record of it: beyond any queue.
FORGET_SECONDS = 30 * 86400.0
# The engine's words for a container, where they are not those for a kernel. What runs is for its relay to say.
_STATES = {
    "created": KernelState.STARTING,
    "running": KernelState.UNKNOWN,
    "removing": KernelState.STOPPING,
    "dead": KernelState.EXITED,
}
# What ends a kernel and is no key of its environment.
_NO_KEYS = {
    "goodbye": "its owner left",
    "delivered": "all its output was delivered",
    "unjoined": "nobody joined it",
    "unused": "nobody ran a cell in it",
}
_SIGKILL_EXIT = 137
# How often a log that is followed is read.
FOLLOW_SECONDS = 1.0
_WHOLE_LOG_LINES = 100_000
# What a container of ours ends with, besides the keys of its environment.
_CODES = {
    **{exit_codes.EXIT_CODES[why]: text for why, text in _NO_KEYS.items()},
    exit_codes.EXIT_TAKEN: "another kernel had its GPU",
    _SIGKILL_EXIT: "killed",
    exit_codes.EXIT_BY_SIGNAL: "stopped",
}


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One kernel on a host: as its container, its relay and this machine's records tell."""

    # As Jupyter's REST API names it.
    kernel_id: str
    # Its name in the config of whoever started it.
    environment: str
    # Its name in the config.
    host: str
    # As the environment writes it.
    image: str
    # starting, idle, busy, stopping, exited, or unknown where its relay does not answer.
    state: str
    # held, link lost or detached; empty where nobody knows.
    link: str = ""
    # Since when the link is as it is.
    since: datetime | None = None
    # Who made it: login@machine.
    owner: str
    # Who holds it now.
    held_by: str = ""
    # Whether this installation made it.
    is_ours: bool
    # Ours, and the process that held it is no more, and it is not to persist.
    is_orphan: bool
    # Ours, and held by another machine or container with this home, or so it was last: it is for that one to clean.
    is_elsewhere: bool = False
    # When its container was made.
    created: datetime
    # UUIDs joined by commas; in JSON a list.
    gpus: str
    # When it ends if nothing happens.
    deadline: datetime | None = None
    # The key of its environment that says so.
    deadline_key: str = ""
    # How much output waits for somebody to take it.
    undelivered_bytes: int = 0
    # Why it ended, or why nothing more is known of it: words that follow a colon.
    why: str = ""
    # What people call it: the notebook, where this machine knows it.
    title: str = ""
    # Which kernelbridge made it; empty where its host cannot be reached.
    version: str = ""
    # The engine's id of its container, or the cluster's of its job; empty where its host could not be asked.
    container: str = ""
    # Further names in the config of the same machine.
    also_on: tuple[str, ...] = ()
    # Whether it was started with `allow_unsafe`: nothing may keep it from the host.
    is_unsafe: bool = False
    # `run`, `up`, or empty for a kernel: see labels.Labels.
    kind: str = ""
    # How its holder reaches it: by a `socket` of its own, or by an `exec` of the engine's; empty where nobody holds it.
    way: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the kernel as REST and `kernelbridge ps --json` have it."""
        plain = {key: one.isoformat() if isinstance(one, datetime) else one for key, one in asdict(self).items()}
        return {**plain, "gpus": self.gpus.split(",") if self.gpus else [], "also_on": list(self.also_on)}


@dataclass(frozen=True, kw_only=True)
class KernelListing:
    """The kernels that were found, and the hosts that could not be asked."""

    kernels: tuple[KernelRow, ...]
    problems: tuple[KernelBridgeError, ...]
    # The containers that were removed because the making of an image in them was never finished.
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Inspected:
    """One container of ours and what was asked of it."""

    facts: ContainerFacts
    labels: Labels
    status: Status | None
    ended: Exited | None


def merge_hosts(rows: Iterable[KernelRow], recorded: Mapping[str, str]) -> list[KernelRow]:
    """Make one row of those that are one kernel's: several hosts of a config may be one machine.

    It is one kernel if the container is the same, or if one of the hosts could not be asked. `recorded` is the host by
    which this machine knows a kernel; it goes first, then the order of the rows.
    """
    merged: dict[tuple[str, str], KernelRow] = {}
    # The containers that are known of each kernel.
    containers: dict[str, list[str]] = {}
    # Those that were seen first: one that was not is then known to be the same.
    for row in sorted(rows, key=lambda row: not row.container):
        known = containers.setdefault(row.kernel_id, [])
        same = next((container for container in known if row.container in ("", container)), None)
        if same is None:
            known.append(row.container)
            merged[row.kernel_id, row.container] = row
            continue
        first, other = merged[row.kernel_id, same], row
        if row.container and row.host == recorded.get(row.kernel_id):
            first, other = row, first
        merged[row.kernel_id, same] = replace(first, also_on=(*first.also_on, other.host, *other.also_on))
    return list(merged.values())


class KernelFinder:
    """Look at hosts for one fleet. Its coroutines run on the fleet's loop."""

    def __init__(
        self,
        records: Records,
        backend_of: Callable[[Host], Awaitable[Backend]],
        rest: Callable[[float], Coroutine[Any, Any, None]],
    ) -> None:
        self._records = records
        self._backend_of = backend_of
        self._rest = rest
        self._machine = records.machine_id()

    def __repr__(self) -> str:
        return f"<KernelFinder of {self._machine}>"

    async def look(self, config: Config, names: Collection[str] = ()) -> KernelListing:
        """Find the kernels on all hosts, or on those of these names; those that are done with are swept away meanwhile.

        Raises UnknownHost.
        """
        return await self._look(config, self._rows, names)

    async def _look(
        self, config: Config, rows_of: Callable[[Config, Host], Awaitable[list[KernelRow]]], names: Collection[str] = ()
    ) -> KernelListing:
        hosts = config.hosts_named(names)
        answers = await asyncio.gather(*(rows_of(config, host) for host in hosts), return_exceptions=True)
        kernels: list[KernelRow] = []
        problems: list[KernelBridgeError] = []
        for host, answer in zip(hosts, answers, strict=True):
            if isinstance(answer, list):
                kernels += answer
                continue
            if not isinstance(answer, Exception) or isinstance(answer, BeyondLink):
                raise answer
            problem = answer if isinstance(answer, KernelBridgeError) else _unexpected(host, answer)
            problems.append(problem)
            kernels += [
                _unreachable_row(record, str(problem.sentence))
                for record in self._records.kernels()
                if record.host == host.name and record.config == str(config.path)
            ]
        kernels = merge_hosts(kernels, {record.kernel_id: record.host for record in self._records.kernels()})
        kernels.sort(key=lambda row: (row.host, row.created))
        return KernelListing(kernels=tuple(kernels), problems=tuple(problems))

    async def _rows(self, config: Config, host: Host) -> list[KernelRow]:
        backend = await self._backend_of(host)
        found = await backend.list(KERNEL_LABEL)
        self._forget_gone(config, host, {facts.name.removeprefix("/") for facts in found})
        turns = asyncio.Semaphore(MOST_QUESTIONS)
        seen = await asyncio.gather(*(self._inspect(config, host, facts, turns) for facts in found))
        return [self._row(host, one) for one in seen if one and not await self._is_swept(config, host, one)]

    async def _named_rows(self, config: Config, host: Host) -> list[KernelRow]:
        """Return the kernels of a host as their labels tell, without asking any of them.

        Of one that has ended the engine tells how: what is done with is no kernel any more.
        """
        found = await (await self._backend_of(host)).list(KERNEL_LABEL)
        turns = asyncio.Semaphore(MOST_QUESTIONS)
        seen = await asyncio.gather(*(self._inspect(config, host, facts, turns, asks_relay=False) for facts in found))
        return [
            self._row(host, one)
            for one in seen
            if one and not (one.ended is not None and await self._is_swept(config, host, one))
        ]

    async def _is_swept(self, config: Config, host: Host, one: _Inspected) -> bool:
        """Sweep a container away if it is done with; whether it is gone."""
        if not self._is_disposable(one):
            return False
        with contextlib.suppress(EngineFailed):  # It is tried again by the next look.
            await self._sweep(host, await self._address(config, host, one.labels).workload(), one.labels.kernel)
            return True
        return False

    def _forget_gone(self, config: Config, host: Host, names: Collection[str]) -> None:
        """Forget the kernels that nobody holds and whose container was removed by another program."""
        for record in self._records.kernels():
            is_here = record.host == host.name and record.config == str(config.path)
            if is_here and container_name(record.kernel_id) not in names and self._is_forgettable(record):
                self._records.forget(record.kernel_id)

    def _is_forgettable(self, record: KernelRecord) -> bool:
        """Whether no process can be about to make the container of a record."""
        holder = self._records.holder_liveness(record)
        is_old = time.time() - record.started > FORGET_SECONDS
        return holder is Liveness.ENDED or (holder is Liveness.UNKNOWN and is_old)

    async def _inspect(
        self, config: Config, host: Host, facts: ContainerFacts, turns: asyncio.Semaphore, *, asks_relay: bool = True
    ) -> _Inspected | None:
        labels = parse_labels(facts.name, facts.labels)
        if labels is None:
            return None
        status: Status | None = None
        ended: Exited | None = None
        try:
            if facts.state == "running" and asks_relay:
                async with asyncio.timeout(STATUS_SECONDS):
                    status = await ask_status(self._address(config, host, labels))
            elif facts.state != "running":
                async with turns:
                    state = await (await self._address(config, host, labels).workload()).state()
                ended = state if isinstance(state, Exited) else None
        except BeyondLink:
            raise
        except (KernelBridgeError, TimeoutError) as exc:
            _LOG.info("[%s k=%s] unknown: %s", host.name, labels.kernel[:4], exc)
        except Exception:
            # An edge: one kernel, of whomever, must not take the others from the listing.
            _LOG.exception("[%s k=%s] unknown", host.name, labels.kernel[:4])
        return _Inspected(facts=facts, labels=labels, status=status, ended=ended)

    def _address(self, config: Config, host: Host, labels: Labels) -> RelayAddress:
        # Ours may have been written anew since.
        record = self._records.kernel(labels.kernel)
        python = labels.python or (record.python if record else "")
        environment = config.environment_as(labels.environment, image=labels.image, python=python)
        return relay_query.relay_address(
            labels.kernel, environment, host, backend=lambda: self._backend_of(host), rest=self._rest
        )

    def _is_disposable(self, seen: _Inspected) -> bool:
        """Whether a container of ours that has ended need not be kept; one that the user stopped in the end."""
        if seen.labels.owner != self._machine:
            return False
        record = self._records.kernel(seen.labels.kernel)
        if record is not None and record.stop_wanted:
            return True  # Whoever holds it hears that it was removed.
        holder = self._holder_liveness(seen.labels, record)
        if holder is Liveness.ALIVE:
            return False  # Its process sees to it.
        if seen.ended is None or (holder is Liveness.UNKNOWN and seen.ended.code == 0):
            return False  # Another machine's process may be about to.
        return is_over(seen.ended, seen.labels, datetime.now(UTC))

    def _holder_liveness(self, labels: Labels, record: KernelRecord | None) -> Liveness:
        """Whether the process runs that holds a kernel, as far as records and labels tell."""
        if record is not None:
            return self._records.holder_liveness(record)
        return liveness(ProcessMark(labels.process, labels.birth))

    async def tidy(self, config: Config, host: Host) -> None:
        """Sweep away what is done with on one host; stops that could not be carried out are carried out."""
        for facts in await (await self._backend_of(host)).list(KERNEL_LABEL):
            labels = parse_labels(facts.name, facts.labels)
            if labels is None:
                continue
            workload = await self._address(config, host, labels).workload()
            state = await workload.state() if facts.state != "running" else None
            ended = state if isinstance(state, Exited) else None
            if self._is_disposable(_Inspected(facts=facts, labels=labels, status=None, ended=ended)):
                await self._sweep(host, workload, labels.kernel)

    async def _sweep(self, host: Host, workload: Workload, kernel_id: str) -> None:
        _LOG.info("[%s k=%s] the container is removed", host.name, kernel_id[:4])
        await workload.stop()
        self._records.forget(kernel_id)

    def _row(self, host: Host, seen: _Inspected) -> KernelRow:
        labels, record = seen.labels, self._records.kernel(seen.labels.kernel)
        is_ours = labels.owner == self._machine
        holder = self._holder_liveness(labels, record)
        row = KernelRow(
            kernel_id=labels.kernel,
            environment=labels.environment,
            host=host.name,
            image=labels.image,
            state=_STATES.get(seen.facts.state, seen.facts.state),
            owner=labels.user,
            is_ours=is_ours,
            is_orphan=is_ours and holder is Liveness.ENDED and not (record is not None and record.persist),
            is_elsewhere=is_ours and holder is Liveness.UNKNOWN,
            created=datetime.fromtimestamp(seen.facts.created, UTC),
            gpus=labels.gpus,
            why=why_container_ended(seen.ended) if seen.ended else "",
            title=record.title if record else "",
            version=labels.version,
            container=seen.facts.id,
            is_unsafe=bool(labels.unsafe),
            kind=labels.kind,
        )
        return row if seen.status is None else _with_status(row, seen.status, record)

    # -- one of them

    async def find(self, config: Config, prefix: str) -> KernelRow:
        """Return the one kernel whose id begins so, or that a notebook of this name has, as its labels tell.

        No kernel is asked how it is. Which notebook has which kernel is known of this machine's own. Raises
        KernelNotFound and others.
        """
        listing = await self._look(config, self._named_rows)
        found = meant(prefix, listing.kernels, self._records.kernels())
        if not found and listing.problems:
            # Not seen is not gone: it may be where nobody could be asked.
            raise listing.problems[0]
        if prefix and not found:
            await self._refuse_renamed(config, prefix)
        if len(found) != 1:
            raise KernelNotFound(kernel=prefix, hosts=list(config.hosts), found=list(map(known_as, found)))
        return found[0]

    async def _refuse_renamed(self, config: Config, prefix: str) -> None:
        """Raise KernelNotFound where labels name such a kernel of ours on a container of another name.

        It is not taken for ours: an image that was made of it has the same labels.
        """
        for host in config.hosts.values():
            for facts in await (await self._backend_of(host)).list(KERNEL_LABEL):
                name = container_name(facts.labels.get(KERNEL_LABEL, ""))
                labels = parse_labels(name, facts.labels) if facts.state != "exited" else None
                if labels and labels.owner == self._machine and labels.kernel.startswith(prefix):
                    renamed = name, facts.name.removeprefix("/")
                    raise KernelNotFound(kernel=prefix, hosts=[host.name], renamed=renamed)

    async def free_state(self, config: Config, record: KernelRecord) -> str:
        """Return the state of a kernel of ours that nobody holds, else `held`. Raises KernelBridgeError."""
        labels = Labels(kernel=record.kernel_id, environment=record.environment, owner="", image=record.image)
        async with deadline(STATUS_SECONDS, record.host, "the state of the notebook's kernel"):
            status = await ask_status(self._address(config, config.host(record.host), labels))
        is_held = bool(status.owner) and liveness(owner_process(status.owner or "")) is not Liveness.ENDED
        return KernelState.HELD if is_held else status.state

    async def stop(self, config: Config, prefix: str) -> KernelRow:
        """End a kernel and remove its container; where its host cannot be reached that is noted and done later."""
        row = await self.find(config, prefix)
        try:
            await self._remove(config, row)
        except KernelBridgeError as exc:
            if self._records.kernel(row.kernel_id) is not None:
                self._records.change(row.kernel_id, stop_wanted=True)
                exc.add_note(f"{row.kernel_id} will be stopped when {row.host} can be reached again.")
            raise
        return row

    async def _remove(self, config: Config, row: KernelRow) -> None:
        labels = Labels(kernel=row.kernel_id, environment=row.environment, owner="", image=row.image)
        await (await self._address(config, config.host(row.host), labels).workload()).stop()
        self._records.forget(row.kernel_id)

    async def remove_left(self, config: Config, record: KernelRecord) -> None:
        """Remove the container of a kernel of ours that nobody wants any more. Raises KernelBridgeError."""
        labels = Labels(kernel=record.kernel_id, environment=record.environment, owner="", image=record.image)
        await self._sweep(
            config.host(record.host),
            await self._address(config, config.host(record.host), labels).workload(),
            record.kernel_id,
        )

    async def logs(self, config: Config, prefix: str, *, tail_lines: int) -> str:
        """Return what a kernel's process wrote to its own stdout and stderr, last lines. Raises KernelNotFound."""
        address, is_running = await self._find_address(config, prefix)
        if not is_running:
            return await (await address.workload()).logs(tail_lines)
        return last_lines(await ask_log(address), tail_lines)

    async def follow_log(self, config: Config, prefix: str, heard: Callable[[str], None]) -> None:
        """Tell what a kernel's process writes to its stdout and stderr, until it has ended or is removed.

        All that is there comes first, in one piece. Raises KernelNotFound.
        """
        address, is_running = await self._find_address(config, prefix)
        if not is_running:
            heard(await (await address.workload()).logs(_WHOLE_LOG_LINES))
            return
        told, is_over, has_failed = "", False, False
        while not is_over:
            try:
                status = await ask_status(address)
                text = await ask_log(address)
            except KernelBridgeError as exc:
                if not is_transient(exc):
                    if await _has_ended(address):
                        return
                    # One that ends just now seems to run until the next look.
                    if has_failed:
                        raise
                    has_failed = True
                _LOG.info("[%s] %s", address.host, exc)
            else:
                heard(added(told, text))
                told, has_failed, is_over = text, False, status.state == KernelState.EXITED
            if not is_over:
                await self._rest(FOLLOW_SECONDS)

    async def left_output(self, config: Config, prefix: str) -> str:
        """Return the output of a kernel's cells that no client has shown yet; it stays. Raises KernelNotFound."""
        address, is_running = await self._find_address(config, prefix)
        kernel = short_id(address.kernel)
        if not is_running:
            sentence = (
                f"The container of {kernel} on {address.host} has ended, and what nobody had fetched went with it."
            )
            raise KernelBridgeError(sentence, f"`kernelbridge logs {kernel}` prints its log.")
        text = await ask_output(address)
        if text is None:
            sentence = f"{kernel} on {address.host} was started by an older kernelbridge, which tells no output."
            raise KernelBridgeError(sentence, f"`kernelbridge attach {kernel}` fetches it.")
        return text

    async def running(self, config: Config, prefix: str) -> RelayAddress:
        """Return the relay of the one kernel whose id begins so. Raises KernelNotFound; KernelEnded: it has ended."""
        address, is_running = await self._find_address(config, prefix)
        if not is_running:
            raise KernelEnded(
                environment=short_id(address.kernel),
                host=address.host,
                how="does not run",
                remedy="`kernelbridge ps` lists what runs.",
            )
        return address

    async def named(self, config: Config, name: str) -> RelayAddress:
        """Return the relay of a kernel whose id begins so, or of what runs of the environment of that name.

        One that waits for commands goes before a kernel. Raises KernelNotFound, and KernelBridgeError for several.
        """
        if name not in config.environments:
            return await self.running(config, name)
        listing = await self._look(config, self._named_rows)
        found = [
            row
            for row in listing.kernels
            if row.environment == name and row.is_ours and row.state not in (KernelState.EXITED, KernelState.STOPPING)
        ]
        chosen = [row for row in found if row.kind == "up"] or found
        if not chosen and listing.problems:
            raise listing.problems[0]
        if len(chosen) != 1:
            ids = ", ".join(short_id(row.kernel_id) for row in chosen)
            how_many = f"{len(chosen)} containers of {name} run: {ids}." if chosen else f"No container of {name} runs."
            remedy = "Name one by its id." if chosen else f"Start one: `kernelbridge up {name}`."
            raise KernelBridgeError(how_many, remedy)
        return await self.running(config, chosen[0].kernel_id)

    async def _find_address(self, config: Config, prefix: str) -> tuple[RelayAddress, bool]:
        """Return the relay of the one kernel whose id begins so, and whether its container runs."""
        row = await self.find(config, prefix)
        host = config.host(row.host)
        name = container_name(row.kernel_id)
        found = await (await self._backend_of(host)).list(KERNEL_LABEL)
        facts = next((facts for facts in found if facts.name == name), None)
        labels = parse_labels(facts.name, facts.labels) if facts else None
        if facts is None or labels is None:
            raise KernelNotFound(kernel=prefix, hosts=list(config.hosts))
        return self._address(config, host, labels), facts.state == "running"

    async def clean(
        self, config: Config, *, dry_run: bool, discard: bool, names: Collection[str] = (), only: Collection[str] = ()
    ) -> KernelListing:
        """Remove the kernels that this machine made and nobody holds; what has output left only by `discard`.

        Where hosts are named, only theirs; where `only` names environments, only those of these.
        """
        listing = await self.look(config, names)
        removed: list[KernelRow] = []
        problems = list(listing.problems)
        for row in listing.kernels:
            if not row.is_orphan or (only and row.environment not in only):
                continue
            if not discard and (kept := _why_kept(row)) is not None:
                problems.append(kept)
                continue
            try:
                if not dry_run:
                    await self._remove(config, row)
            except KernelBridgeError as exc:
                problems.append(exc)
            else:
                removed.append(row)
        return KernelListing(kernels=tuple(removed), problems=tuple(problems))


def meant(name: str, rows: Iterable[KernelRow], records: Iterable[KernelRecord]) -> list[KernelRow]:
    """Return the kernels whose id begins so, or that a notebook of this name has; none for an empty name."""
    have = {record.kernel_id for record in records if is_of_notebook(record, name)}
    return [row for row in rows if name and (row.kernel_id.startswith(name) or row.kernel_id in have)]


def known_as(row: KernelRow) -> str:
    """Return what tells a kernel from others: the beginning of its id, its notebook, its environment."""
    return f"{short_id(row.kernel_id)} ({', '.join(filter(None, [row.title, row.environment]))})"


def is_of_notebook(record: KernelRecord, name: str) -> bool:
    """Whether a kernel is that of a notebook: of this title, name, end of its path or whole path.

    The ending `.ipynb` may be left out, and either slash will do.
    """
    wanted = _path_words(name)
    paths = [record.notebook, *(session.path for session in record.sessions), record.title.removesuffix("/")]
    return bool(wanted) and any(_path_words(path)[-len(wanted) :] == wanted for path in paths if path)


def _path_words(path: str) -> list[str]:
    """Return the names in a path, without the notebook's ending; `.` and `..` of a shell's completion say nothing."""
    words = [word for word in path.replace("\\", "/").split("/") if word not in ("", ".", "..")]
    return [os.path.normcase(word) for word in [*words[:-1], *(word.removesuffix(".ipynb") for word in words[-1:])]]


def _unexpected(host: Host, exc: Exception) -> KernelBridgeError:
    _LOG.error("[%s] not listed", host.name, exc_info=exc)
    return unexpected_answer(host.name, exc)


async def _has_ended(address: RelayAddress) -> bool:
    """Whether a kernel's container or job is known to have ended."""
    with contextlib.suppress(KernelBridgeError):
        return isinstance(await (await address.workload()).state(), Missing | Exited | Over)
    return False


def _why_kept(row: KernelRow) -> KernelBridgeError | None:
    """Return why a kernel that nobody holds is not removed; None if nothing is lost with it."""
    kernel = short_id(row.kernel_id)
    if row.undelivered_bytes:
        return OutputUndelivered(kernel=kernel, host=row.host, megabytes=row.undelivered_bytes / 1e6)
    if row.state != KernelState.UNKNOWN:
        return None
    doubt = "does not say whether it has output that nobody has fetched yet, so it is kept"
    sentence = f"The kernel {kernel} on {row.host} {doubt}."
    return KernelBridgeError(sentence, "`kernelbridge clean --discard` removes it all the same.")


def is_over(ended: Exited, labels: Labels, now: datetime) -> bool:
    """Whether a container that has ended was ended by its user, or was kept for as long as it should be."""
    if ended.code == 0:
        return True
    try:
        # The engine writes nanoseconds.
        finished = datetime.fromisoformat(ended.finished_at[:19]).replace(tzinfo=UTC)
        kept_seconds = float(labels.keep_exited)
        return math.isfinite(kept_seconds) and (now - finished).total_seconds() > kept_seconds
    except ValueError:
        return False


def why_ended(status: Status) -> str:
    """Return how a relay's kernel process ended; empty where there is one."""
    if status.lacks:
        return f"the image has no {status.lacks}"
    event = status.outcome
    if event is None:
        return ""
    if event.why:
        return _NO_KEYS.get(event.why, f"ended by `{event.why}`")
    if event.wanted:
        return "ended on request"
    return "out of memory" if event.out_of_memory else exit_codes.how_ended(event.code)


def why_container_ended(ended: Exited) -> str:
    """Return how a container ended that is there still."""
    if ended.oom_killed:
        return "out of memory"
    key = exit_codes.key_of(ended.code)
    return f"ended by `{key}`" if key else _CODES.get(ended.code, str(ended))


def _with_status(row: KernelRow, status: Status, record: KernelRecord | None) -> KernelRow:
    """Return the row with what the relay says: whom it hears holds the kernel, whatever is known here."""
    now = datetime.now(UTC)
    owner, is_elsewhere = status.owner or "", row.is_elsewhere
    link, since_seconds = KernelState.HELD, status.held_seconds
    if owner:
        is_elsewhere = row.is_ours and liveness(owner_process(owner)) is Liveness.UNKNOWN
    else:
        has_left = status.claim or (record is not None and record.left is not None)
        link, since_seconds = KernelState.DETACHED if has_left else KernelState.LINK_LOST, status.alone_seconds or 0.0
    is_stopping = record is not None and record.stop_wanted
    deadline = status.deadline
    return replace(
        row,
        state=KernelState.STOPPING if is_stopping else status.state,
        link=link,
        since=now - timedelta(seconds=since_seconds),
        held_by=status.who if owner else "",
        is_orphan=row.is_orphan and not owner and not status.persist,
        is_elsewhere=is_elsewhere,
        # Which cards a job got is in no label.
        gpus=",".join(status.gpus.ids) or row.gpus,
        deadline=now + timedelta(seconds=deadline.seconds) if deadline else None,
        deadline_key=deadline.why if deadline else "",
        undelivered_bytes=status.undelivered_bytes,
        why=why_ended(status),
        way=status.way,
    )


def _unreachable_row(record: KernelRecord, why: str) -> KernelRow:
    """Return the row of a kernel whose host cannot be asked."""
    return KernelRow(
        kernel_id=record.kernel_id,
        environment=record.environment,
        host=record.host,
        image=record.image,
        state=KernelState.STOPPING if record.stop_wanted else KernelState.UNKNOWN,
        owner="",
        is_ours=True,
        is_orphan=False,
        created=datetime.fromtimestamp(record.started, UTC),
        gpus="",
        why=why,
        title=record.title,
        kind=record.kind,
    )
