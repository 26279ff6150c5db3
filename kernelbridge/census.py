"""Which kernels there are on all hosts, whoever started them: found by their labels, asked for their state, ended.

Kernels of this process: fleet.py. What a container of ours looks like: container.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from kernelbridge import container, creation, outcome
from kernelbridge.config import Config, Environment, Host
from kernelbridge.errors import KernelBridgeError
from kernelbridge.host.answers import ContainerFacts, Exited
from kernelbridge.host.site import Runtime, Site
from kernelbridge.kernel_errors import KernelNotFound, OutputUndelivered
from kernelbridge.processes import is_alive
from kernelbridge.records import KernelRecord, Records
from kernelbridge.relay import lifetime
from kernelbridge.relays import Place, ask

_LOG = logging.getLogger(__name__)
# A relay that does not say so fast is shown as unknown.
ASK_SECONDS = 8.0
# The engine's words for a container, where they are not those for a kernel. What runs is for its relay to say.
_STATES = {"created": "starting", "running": "unknown", "removing": "stopping", "dead": "exited"}
# What a container of ours ends with: the codes of relay/__main__.py, and a SIGKILL.
_CODES = {
    0: "its owner left",
    75: "another kernel had its GPU",
    80: "all its output was delivered",
    85: "nobody joined it",
    137: "killed",
    143: "stopped",
}
# What ends a kernel and is no key of its environment.
_NO_KEYS = {"goodbye": "its owner left", "delivered": "all its output was delivered", "unjoined": "nobody joined it"}


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """One kernel on a host: what its container, its relay and this machine's memory tell."""

    kernel_id: str
    environment: str
    host: str
    image: str
    # starting, idle, busy, stopping, exited, unknown; and link: held, link lost, detached, or empty where nobody knows.
    state: str
    link: str = ""
    # Since when the link is as it is.
    since: datetime | None = None
    # Who made it, and who holds it now.
    owner: str
    held_by: str = ""
    # Whether this installation made it.
    is_ours: bool
    # Ours, and the process that held it is no more, and it is not to persist.
    is_orphan: bool
    created: datetime
    gpus: str
    # When it ends if nothing happens, and the key of its environment that says so.
    deadline: datetime | None = None
    deadline_key: str = ""
    undelivered_bytes: int = 0
    # Why it ended, or why nothing more is known of it: words that follow a colon.
    why: str = ""
    # What people call it: the notebook, where this machine knows it.
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What was found, and the hosts that could not be asked."""

    kernels: tuple[KernelRow, ...]
    problems: tuple[KernelBridgeError, ...]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One container of ours and what was asked of it."""

    facts: ContainerFacts
    labels: container.Labels
    status: Mapping[str, Any] | None
    ended: Exited | None


class Census:
    """Looks at hosts for one fleet; its coroutines run on the fleet's loop."""

    def __init__(
        self,
        records: Records,
        reach: Callable[[Host], Awaitable[Site]],
        rest: Callable[[float], Coroutine[Any, Any, None]],
    ) -> None:
        self._records = records
        self._reach = reach
        self._rest = rest
        self._machine = records.machine_id()

    def __repr__(self) -> str:
        return f"<Census of {self._machine}>"

    async def look(self, config: Config) -> Listing:
        """Find the kernels on all hosts; those of ours that are done with are swept away meanwhile."""
        hosts = list(config.hosts.values())
        answers = await asyncio.gather(*(self._rows(config, host) for host in hosts), return_exceptions=True)
        kernels: list[KernelRow] = []
        problems: list[KernelBridgeError] = []
        for host, answer in zip(hosts, answers, strict=True):
            if isinstance(answer, KernelBridgeError):
                problems.append(answer)
                kernels += [
                    _remembered(record, str(answer.sentence))
                    for record in self._records.kernels()
                    if record.host == host.name and record.config == str(config.path)
                ]
            elif isinstance(answer, BaseException):
                raise answer
            else:
                kernels += answer
        kernels.sort(key=lambda row: (row.host, row.created))
        return Listing(kernels=tuple(kernels), problems=tuple(problems))

    async def _rows(self, config: Config, host: Host) -> list[KernelRow]:
        site = await self._reach(host)
        found = await site.list(container.KERNEL_LABEL)
        self._forget_gone(config, host, {facts.name.removeprefix("/") for facts in found})
        seen = await asyncio.gather(*(self._see(config, host, facts) for facts in found))
        rows: list[KernelRow] = []
        for one in seen:
            if one is None:
                continue
            if self._is_done_with(one):
                await self._sweep(await self._place(config, host, one.labels).runtime(), one.labels.kernel)
            else:
                rows.append(self._row(host, one))
        return rows

    def _forget_gone(self, config: Config, host: Host, names: Collection[str]) -> None:
        """Remember no kernel that nobody holds and whose container was removed from elsewhere."""
        for record in self._records.kernels():
            is_here = record.host == host.name and record.config == str(config.path)
            if is_here and container.name(record.kernel_id) not in names and not is_alive(record.process):
                self._records.forget(record.kernel_id)

    async def _see(self, config: Config, host: Host, facts: ContainerFacts) -> _Seen | None:
        labels = container.parse(facts.name, facts.labels)
        if labels is None:
            return None
        status: Mapping[str, Any] | None = None
        ended: Exited | None = None
        with contextlib.suppress(KernelBridgeError, TimeoutError):
            if facts.state == "running":
                async with asyncio.timeout(ASK_SECONDS):
                    status = await ask(self._place(config, host, labels), "status")
            else:
                state = await (await self._place(config, host, labels).runtime()).state()
                ended = state if isinstance(state, Exited) else None
        return _Seen(facts=facts, labels=labels, status=status, ended=ended)

    def _place(self, config: Config, host: Host, labels: container.Labels) -> Place:
        # Another machine's may be unknown here, and ours may have been written anew since.
        environment = config.environments.get(labels.environment) or Environment.model_construct(
            name=labels.environment, image=labels.image
        )
        record = self._records.kernel(labels.kernel)
        python = record.python if record else environment.python
        environment = environment.model_copy(update={"image": labels.image, "python": python})
        return creation.place(labels.kernel, environment, host, reach=lambda: self._reach(host), rest=self._rest)

    def _is_done_with(self, seen: _Seen) -> bool:
        """Whether a container of ours that has ended need not be kept; one that the user stopped in the end."""
        if seen.labels.owner != self._machine:
            return False
        record = self._records.kernel(seen.labels.kernel)
        if record is not None and record.stop_wanted:
            return True  # Whoever holds it hears that it was removed.
        if record is not None and record.process and is_alive(record.process):
            return False  # Its process sees to it.
        return seen.ended is not None and is_over(seen.ended, seen.labels, datetime.now(UTC))

    async def tidy(self, config: Config, host: Host) -> None:
        """Sweep away what is done with on one host; stops that could not be carried out are carried out."""
        for facts in await (await self._reach(host)).list(container.KERNEL_LABEL):
            labels = container.parse(facts.name, facts.labels)
            if labels is None:
                continue
            runtime = await self._place(config, host, labels).runtime()
            state = await runtime.state() if facts.state != "running" else None
            ended = state if isinstance(state, Exited) else None
            if self._is_done_with(_Seen(facts=facts, labels=labels, status=None, ended=ended)):
                await self._sweep(runtime, labels.kernel)

    async def _sweep(self, runtime: Runtime, kernel_id: str) -> None:
        _LOG.info("kernel %s: its container is removed", kernel_id[:8])
        await runtime.end()
        self._records.forget(kernel_id)

    def _row(self, host: Host, seen: _Seen) -> KernelRow:
        labels, record = seen.labels, self._records.kernel(seen.labels.kernel)
        is_ours = labels.owner == self._machine
        holder = record.process if record else labels.process
        row = KernelRow(
            kernel_id=labels.kernel,
            environment=labels.environment,
            host=host.name,
            image=labels.image,
            state=_STATES.get(seen.facts.state, seen.facts.state),
            owner=labels.user,
            is_ours=is_ours,
            is_orphan=is_ours and not is_alive(holder) and not (record is not None and record.persist),
            created=datetime.fromtimestamp(seen.facts.created, UTC),
            gpus=labels.gpus,
            why=why_container_ended(seen.ended) if seen.ended else "",
            title=record.title if record else "",
        )
        return row if seen.status is None else _told(row, seen.status, record, self._machine)

    # -- one of them

    async def find(self, config: Config, prefix: str) -> KernelRow:
        """Return the one kernel whose id begins so. Raises KernelNotFound and others."""
        listing = await self.look(config)
        found = [row for row in listing.kernels if prefix and row.kernel_id.startswith(prefix)]
        if not found and listing.problems:
            # Not seen is not gone: it may be where nobody could be asked.
            raise listing.problems[0]
        if len(found) != 1:
            raise KernelNotFound(kernel=prefix, hosts=list(config.hosts), count=len(found))
        return found[0]

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
        labels = container.Labels(kernel=row.kernel_id, environment=row.environment, owner="", image=row.image)
        await (await self._place(config, config.host(row.host), labels).runtime()).end()
        self._records.forget(row.kernel_id)

    async def logs(self, config: Config, prefix: str, *, tail_lines: int) -> str:
        """Return what a kernel's process wrote to its own stdout and stderr, last lines. Raises KernelNotFound."""
        row = await self.find(config, prefix)
        host = config.host(row.host)
        name = container.name(row.kernel_id)
        found = await (await self._reach(host)).list(container.KERNEL_LABEL)
        facts = next((facts for facts in found if facts.name == name), None)
        labels = container.parse(facts.name, facts.labels) if facts else None
        if facts is None or labels is None:
            raise KernelNotFound(kernel=prefix, hosts=list(config.hosts))
        if facts.state != "running":
            return await (await self._place(config, host, labels).runtime()).logs(tail_lines)
        said = await ask(self._place(config, host, labels), "logs")
        return "\n".join(str(said["text"]).splitlines()[-tail_lines:])

    async def clean(self, config: Config, *, dry_run: bool, discard: bool) -> Listing:
        """Remove the kernels that this machine made and nobody holds; what has output left only by `discard`."""
        listing = await self.look(config)
        removed: list[KernelRow] = []
        problems = list(listing.problems)
        for row in listing.kernels:
            if not row.is_orphan:
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
        return Listing(kernels=tuple(removed), problems=tuple(problems))


def _why_kept(row: KernelRow) -> KernelBridgeError | None:
    """Return why a kernel that nobody holds is not removed; None if nothing is lost with it."""
    kernel = row.kernel_id[:12]
    if row.undelivered_bytes:
        return OutputUndelivered(kernel=kernel, host=row.host, megabytes=row.undelivered_bytes / 1e6)
    if row.state != "unknown":
        return None
    sentence = f"The kernel {kernel} on {row.host} does not say whether it has output that nobody took: it stays."
    return KernelBridgeError(sentence, "`kernelbridge clean --discard` removes it all the same.")


def is_over(ended: Exited, labels: container.Labels, now: datetime) -> bool:
    """Whether a container that has ended was ended by its user, or was kept for as long as it should be."""
    if ended.code == 0:
        return True
    try:
        # The engine writes nanoseconds.
        finished = datetime.fromisoformat(ended.finished_at[:19]).replace(tzinfo=UTC)
        return now - finished > timedelta(seconds=float(labels.keep_exited))
    except ValueError:
        return False


def why_ended(status: Mapping[str, Any]) -> str:
    """Return how a relay's kernel process ended; empty where there is one."""
    if status["lacks"]:
        return f"the image has no {status['lacks']}"
    event = status["outcome"]
    if not event:
        return ""
    if event.get("why"):
        return _NO_KEYS.get(str(event["why"]), f"ended by `{event['why']}`")
    if event["wanted"]:
        return "ended on request"
    return "out of memory" if event["out_of_memory"] else outcome.how_ended(int(event["code"]))


def why_container_ended(ended: Exited) -> str:
    """Return how a container ended that is there still."""
    if ended.oom_killed:
        return "out of memory"
    key = lifetime.key_of(ended.code)
    return f"ended by `{key}`" if key else _CODES.get(ended.code, str(ended))


def _told(row: KernelRow, status: Mapping[str, Any], record: KernelRecord | None, machine: str) -> KernelRow:
    """Return the row with what the relay says."""
    now = datetime.now(UTC)
    owner, deadline = str(status["owner"] or ""), status["deadline"]
    alone_seconds = status["alone_seconds"]
    owner_machine, _, rest = owner.partition(":")
    if owner_machine == machine and not is_alive(rest.rpartition(":")[0]):
        owner, alone_seconds = "", 0.0  # Killed a moment ago; the relay has not seen it yet.
    link, since_seconds = "held", float(status["held_seconds"])
    if not owner:
        has_left = status["claim"] or (record is not None and record.left is not None)
        link, since_seconds = "detached" if has_left else "link lost", float(alone_seconds or 0.0)
    is_stopping = record is not None and record.stop_wanted
    return replace(
        row,
        state="stopping" if is_stopping else str(status["state"]),
        link=link,
        since=now - timedelta(seconds=since_seconds),
        held_by=str(status["who"]) if owner else "",
        is_orphan=row.is_orphan and not owner and not status["persist"],
        # Which cards a job got is in no label.
        gpus=",".join(status.get("gpus", {}).get("ids", ())) or row.gpus,
        deadline=now + timedelta(seconds=float(deadline["seconds"])) if deadline else None,
        deadline_key=str(deadline["why"]) if deadline else "",
        undelivered_bytes=int(status["undelivered_bytes"]),
        why=why_ended(status),
    )


def _remembered(record: KernelRecord, why: str) -> KernelRow:
    """Return the row of a kernel whose host cannot be asked."""
    return KernelRow(
        kernel_id=record.kernel_id,
        environment=record.environment,
        host=record.host,
        image=record.image,
        state="stopping" if record.stop_wanted else "unknown",
        owner="",
        is_ours=True,
        is_orphan=False,
        created=datetime.fromtimestamp(record.started, UTC),
        gpus="",
        why=why,
        title=record.title,
    )
