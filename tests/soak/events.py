"""Make the schedule's events happen. Each returns when its fault is over; what it comes to is for others to count."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from tests.rig.daemon import SLOW
from tests.soak.scene import Scene
from tests.soak.schedule import Event
from tests.soak.seats import LauncherSeat, stopped

_Picked = TypeVar("_Picked")
SLOW_ROUND_TRIP_SECONDS = 0.3


class Skipped(Exception):
    """Nobody was there to whom it could happen, or not at this moment; the text says why."""


def apply(scene: Scene, event: Event) -> str:
    """Have it happen, and be over; return to whom it did. Raises Skipped."""
    if (line := _LINE.get(event.kind)) is not None:
        with line(scene):
            time.sleep(event.seconds)
        return ""
    return _OTHERS[event.kind](scene, event)


def _picked(event: Event, among: Sequence[_Picked]) -> _Picked:
    if not among:
        raise Skipped("nobody is there for it")
    return among[min(int(event.pick * len(among)), len(among) - 1)]


# -- the line


@contextmanager
def _reset(scene: Scene) -> Iterator[None]:
    scene.rig.proxy.reset()
    yield


@contextmanager
def _dockerd_stands(scene: Scene) -> Iterator[None]:
    """Connections to it are accepted, what is written to it is taken by nobody."""
    pid = scene.rig.engine.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


_LINE: dict[str, Callable[[Scene], AbstractContextManager[None]]] = {
    "cut": lambda scene: scene.rig.proxy.cut(),
    "stall": lambda scene: scene.rig.proxy.blackhole(),
    "swallow": lambda scene: scene.rig.proxy.blackhole_then_reset(),
    "half-open": lambda scene: scene.rig.proxy.accept_then_close(),
    "reset": _reset,
    "cable out": lambda scene: scene.rig.lab.unplugged(),
    "slow line": lambda scene: scene.rig.proxy.delay(SLOW_ROUND_TRIP_SECONDS),
    "sshd away": lambda scene: scene.rig.sshd.stopped(),
    "dockerd stands": _dockerd_stands,
}


# -- the host


def _sshd_killed(scene: Scene, event: Event) -> str:
    scene.rig.sshd.kill_connections()
    return ""


def _bridges_killed(scene: Scene, event: Event) -> str:
    # Those who wait for GPUs have none, nor who is reached the short way.
    if not scene.rig.engine.bridges():
        return "there was none"
    scene.rig.engine.kill_bridges()
    return ""


def _dockerd_restarted(scene: Scene, event: Event) -> str:
    scene.desk.restarts.append(time.monotonic())
    scene.rig.engine.restart_alive()
    scene.desk.restarts.append(time.monotonic())
    return ""


def _relay_stands(scene: Scene, event: Event) -> str:
    relay = _picked(event, sorted(scene.relays(), key=lambda one: one.pid))
    go_on = stopped([relay])
    try:
        time.sleep(event.seconds)
    finally:
        go_on()
    return f"relay {relay.pid}"


def _controller_away(scene: Scene, event: Event) -> str:
    if scene.slurm is None:
        raise Skipped("no Slurm takes part")
    with scene.slurm.controller_stopped():
        time.sleep(event.seconds)
    return ""


# -- the laptop


def _laptop_sleeps(scene: Scene, event: Event) -> str:
    """Its processes and its line stand still at one moment. While it slept, the other end may have given up."""
    is_reset = event.pick < 0.5
    with scene.rig.proxy.blackhole():
        go_on = stopped(scene.ours_here())
        try:
            time.sleep(event.seconds)
            if is_reset:
                scene.rig.proxy.reset()
        finally:
            go_on()
    return "its connections are gone when it wakes" if is_reset else ""


def _launcher_sleeps(scene: Scene, event: Event) -> str:
    seat = _picked(event, [*scene.launchers, *scene.roaming])
    go_on = stopped(seat.processes())
    try:
        time.sleep(event.seconds)
    finally:
        go_on()
    return seat.name


# -- owners


def _page_reloaded(scene: Scene, event: Event) -> str:
    page = _picked(event, scene.pages)
    page.reload()
    return page.name


def _kernel_restarted(scene: Scene, event: Event) -> str:
    page = _picked(event, scene.pages)
    with page.paused(seconds=90 * SLOW) as is_quiet:
        if not is_quiet:
            raise Skipped(f"{page.name} is busy")
        page.restart()
    return page.name


def _server_ends(scene: Scene, event: Event) -> str:
    """The server's process ends, is away for a while, and comes again; its pages are opened again."""
    how = event.kind
    with ExitStack() as asking:
        if how == "server killed":
            # A server that is seconds behind with a flood loses what it has not handed on (docs/reference/limits.md).
            for page in scene.pages:
                if not asking.enter_context(page.steady(seconds=90 * SLOW)):
                    raise Skipped(f"{page.name} prints as fast as it can")
        for page in scene.pages:
            asking.enter_context(page.asking)
        for page in scene.pages:
            # What nobody has heard of may be in the server's queues still, and may die with it.
            if not page.await_heard():
                raise Skipped(f"nothing was heard of the cell of {page.name}")
        if how == "server killed":
            scene.server.kill()
        else:
            scene.server.process.terminate()
            scene.server.process.wait(60 * SLOW)
        ended_at = time.monotonic()
        time.sleep(event.seconds)
        for page in scene.pages:
            page.page.part(is_server_gone=True)
            page.handed_over(how, ended_at)
        scene.server.again()
        for page in scene.pages:
            page.page.join()
    return ""


def _roaming(scene: Scene, event: Event) -> LauncherSeat:
    return _picked(event, scene.roaming)


def _owner_killed(scene: Scene, event: Event) -> str:
    seat = _roaming(scene, event)
    with seat.asking:
        _await_heard(seat)
        seat.kill_owner(event.seconds)
    return seat.name


def _owner_leaves(scene: Scene, event: Event) -> str:
    seat = _roaming(scene, event)
    with seat.asking:
        _await_heard(seat)
        seat.leave(event.seconds)
    return seat.name


def _taken(scene: Scene, event: Event) -> str:
    seat = _roaming(scene, event)
    with seat.asking:
        _await_heard(seat)
        seat.take()
    return f"{seat.name}, by the {'second' if seat.laptop is scene.laptops[1] else 'first'} laptop"


def _await_heard(seat: LauncherSeat) -> None:
    if not seat.await_heard():
        raise Skipped(f"nothing was heard of the cell of {seat.name}")


def _gpu_holder_killed(scene: Scene, event: Event) -> str:
    user = _picked(event, [one for one in scene.gpu_users if one.seat is not None])
    user.kill_next.set()
    return f"{user.name}, at the end of its turn"


_OTHERS: dict[str, Callable[[Scene, Event], str]] = {
    "sshd killed": _sshd_killed,
    "bridges killed": _bridges_killed,
    "dockerd restarted": _dockerd_restarted,
    "relay stands": _relay_stands,
    "Slurm's controller away": _controller_away,
    "laptop sleeps": _laptop_sleeps,
    "launcher sleeps": _launcher_sleeps,
    "page reloaded": _page_reloaded,
    "kernel restarted": _kernel_restarted,
    "server stopped": _server_ends,
    "server killed": _server_ends,
    "owner killed": _owner_killed,
    "owner leaves": _owner_leaves,
    "taken": _taken,
    "GPU holder killed": _gpu_holder_killed,
}
