"""What a lost line costs: lines that never come, how soon those printed meanwhile do, how fast a backlog does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from docker.models.containers import Container

from tests.bench import measures, ways
from tests.bench.ways import Place, Reached
from tests.clients.blocking import Client, Message
from tests.clients.numbered import Count, displaying, printing
from tests.clients.tunnel import tunnelled
from tests.clients.watched import WatchedCell
from tests.rig.daemon import wait_until

BACKLOG = 60_000
CUT_SECONDS = 5.0
# Lines of a cell that ends in the gap and of one that ends after it, and how many have come when the line is cut.
SHORT_LINES, LONG_LINES, CUT_AT = 20, 120, 10
LIMIT_SECONDS = 60.0
# Until the cell begins to display: the line is cut before.
_HEAD_START_SECONDS = 1.0


@dataclass(kw_only=True)
class Cut:
    """What came of one cut: lines lost of both cells together, replies that came of two; the first line after it."""

    lost: int
    lost_by_hand: int
    replies: int
    replies_by_hand: int
    first_seconds: float


@dataclass
class _Clocked:
    """A client that notes when anything came."""

    client: Client
    times: list[float] = field(default_factory=list)

    def send(self, code: str) -> str:
        return self.client.send(code)

    def listen(self, seconds: float) -> Message | None:
        message = self.client.listen(seconds)
        if message is not None:
            self.times.append(time.monotonic())
        return message


def cuts(place: Place, times: int) -> Iterator[Cut]:
    """Cut the line so often under two kernels of ours and two behind a tunnel made by hand."""
    with ExitStack() as undo:
        ours = [_Clocked(undo.enter_context(_launched(place))) for _ in range(2)]
        by_hand = [_Clocked(one) for one in undo.enter_context(tunnelled(place.rig, place.laptop, kernels=2))]
        for _ in range(times):
            yield _cut(place, ours, by_hand)


@contextmanager
def _launched(place: Place) -> Iterator[Client]:
    with ways.launcher(place) as reached:
        measures.settle(reached.client)
        yield Client(reached.client)


def _cut(place: Place, ours: list[_Clocked], by_hand: list[_Clocked]) -> Cut:
    lines = (SHORT_LINES, LONG_LINES)
    cells = [
        WatchedCell(client, printing(count), lines=count, seconds=LIMIT_SECONDS)
        for clients in (ours, by_hand)
        for client, count in zip(clients, lines, strict=True)
    ]
    wait_until(lambda: all(cell.shown >= CUT_AT for cell in cells), "all cells to print", 30)
    with place.rig.proxy.cut():
        time.sleep(CUT_SECONDS)
    whole_at = time.monotonic()
    counts: list[Count] = [cell.finish() for cell in (cells[0], cells[1], cells[3])]
    # What the short one has not brought by now, nor brings with the next cell, never comes.
    cells[2].give_up()
    cells[2].result_after("6 * 7")
    counts.insert(2, cells[2].finish())
    first = min(next(at for at in client.times if at > whole_at) for client in ours)
    for client in (*ours, *by_hand):
        client.times.clear()
    return Cut(
        lost=sum(len(count.lost) for count in counts[:2]),
        lost_by_hand=sum(len(count.lost) for count in counts[2:]),
        replies=sum(len(count.replies) for count in counts[:2]),
        replies_by_hand=sum(len(count.replies) for count in counts[2:]),
        first_seconds=first - whole_at,
    )


def backlog_seconds(place: Place) -> float:
    """From the end of a cut to the idle behind so many displays, all made while the line was cut."""
    with ways.provisioner(place) as reached:
        measures.settle(reached.client)
        # A launcher's kernel may be taken up again for a moment.
        wait_until(lambda: len(_running(place)) == 1, "the kernels before to end", 60)
        return _backlog(place, reached)


def _running(place: Place) -> list[Container]:
    return [container for container in place.rig.engine.kernels() if container.status == "running"]


def _backlog(place: Place, reached: Reached) -> float:
    (container,) = _running(place)
    head, tail = (
        f"import pathlib, time\ntime.sleep({_HEAD_START_SECONDS})\n",
        "\npathlib.Path('/tmp/displayed').touch()",
    )
    wanted = reached.client.execute(head + displaying(BACKLOG) + tail)
    time.sleep(_HEAD_START_SECONDS / 2)
    with place.rig.proxy.cut():
        wait_until(lambda: container.exec_run(["test", "-e", "/tmp/displayed"]).exit_code == 0, "the last display", 120)
    began = time.perf_counter()
    seen = measures.shown(reached.client, wanted)
    took = time.perf_counter() - began
    if seen != [f"L{number:05d}" for number in range(BACKLOG)]:
        raise AssertionError(f"{len(seen)} of {BACKLOG} displays came, or not in order")
    return took
