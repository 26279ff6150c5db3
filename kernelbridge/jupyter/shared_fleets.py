"""Share one fleet for each config file in this process, and end its kernels with the process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from kernelbridge.channels.rate_limit import Limits
from kernelbridge.config import load as configs
from kernelbridge.fleet.fleet import Fleet
from kernelbridge.hosts.progress import WorkProgress
from kernelbridge.hosts.transport.login.questions import Ask
from kernelbridge.hosts.transport.openssh.askpass import Askpass
from kernelbridge.kernel.request import Observer
from kernelbridge.kernel.state import KernelState

# How long the end of the program may wait for its hosts.
EXIT_SECONDS = 10.0

_LOCK = threading.Lock()
_FLEETS: dict[Path, Fleet] = {}
# A forked process has its parent's fleets, but none of their threads. Kept, so that nothing of them is closed there:
# the parent's loop would lose what it waits for.
_OF_PARENT: list[Fleet] = []
# Told of every kernel of every fleet of this process, those to come too.
_OBSERVERS: list[Observer] = []
# Who asks a person what a login needs, where no cell can; empty: the program that SSH_ASKPASS names.
_ASKERS: list[Ask] = []
# What Jupyter Server lets through to its pages; empty in other programs.
_LIMITS: list[Limits] = []


def fleet_of(path: Path) -> Fleet:
    """Return this process's fleet under a config file, with the config as it is now. Raises ConfigInvalid."""
    config = configs.load(path)
    with _LOCK:
        fleet = _FLEETS.get(path)
        if fleet is None:
            if not _EXIT.is_alive():
                _EXIT.start()
            fleet = _FLEETS[path] = Fleet(config, askers=_ASKERS or [Askpass(os.environ).ask])
            fleet.observe(_tell)
        fleet.config = config
        fleet.limits = _LIMITS[0] if _LIMITS else None
        return fleet


def ask_by(askers: Sequence[Ask]) -> None:
    """Have the fleets to come ask so what logins need, where no cell can: a command has a terminal."""
    _ASKERS[:] = askers


def limit(limits: Limits) -> None:
    """Let the kernels to come say no more in a second than Jupyter Server lets through."""
    _LIMITS[:] = [limits]


async def finish_stops() -> None:
    """Wait for the removal of kernels that were stopped, as far as time allows.

    A program that ends does this first: once its main thread is over no host can be logged in to any more.
    """
    stops = [asyncio.wrap_future(fleet.submit(fleet.finish_stops())) for fleet in _FLEETS.values()]
    if stops:
        await asyncio.wait(stops, timeout=EXIT_SECONDS)


def _stop_at_exit() -> None:
    """Detach or stop the kernels that a program has still: `jupyter console` asks for their end and is gone at once.

    A thread that the interpreter waits for, not atexit: by then no thread can be started (Python 3.12), and to end a
    kernel takes some.
    """
    threading.main_thread().join()
    for fleet in list(_FLEETS.values()):
        fleet.detach_or_stop_all(EXIT_SECONDS)


def _exit_thread() -> threading.Thread:
    return threading.Thread(target=_stop_at_exit, name="kernelbridge-exit")


_EXIT = _exit_thread()


def _begin_anew() -> None:
    """Have a forked process make its own fleets: `ProcessPoolExecutor` forks programs that run notebooks."""
    global _LOCK, _EXIT
    _OF_PARENT.extend(_FLEETS.values())
    _FLEETS.clear()
    _LOCK, _EXIT = threading.Lock(), _exit_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def observe(observer: Observer) -> Callable[[], None]:
    """Tell `observer` (kernel id, state, news) of every kernel of this process; return what ends that."""
    _OBSERVERS.append(observer)
    return lambda: _OBSERVERS.remove(observer)


def _tell(kernel_id: str, state: KernelState, news: str | WorkProgress) -> None:
    for observer in list(_OBSERVERS):
        observer(kernel_id, state, news)
