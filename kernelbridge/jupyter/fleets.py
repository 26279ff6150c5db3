"""The fleets of this process, one for each config file. The launcher and the terminal have one of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from kernelbridge import config as configs
from kernelbridge.fleet import Fleet, Observer

_LOCK = threading.Lock()
_FLEETS: dict[Path, Fleet] = {}
# Told of every kernel of every fleet of this process, those to come too.
_OBSERVERS: list[Observer] = []


def fleet_of(path: Path) -> Fleet:
    """Return this process's fleet under a config file, with the config as it is now. Raises ConfigInvalid."""
    config = configs.load(path)
    with _LOCK:
        fleet = _FLEETS.get(path)
        if fleet is None:
            fleet = _FLEETS[path] = Fleet(config)
            fleet.observe(_tell)
        fleet.config = config
        return fleet


def observe(observer: Observer) -> Callable[[], None]:
    """Tell `observer` (kernel id, state, text) of every kernel of this process; return what ends that."""
    _OBSERVERS.append(observer)
    return lambda: _OBSERVERS.remove(observer)


def _tell(kernel_id: str, state: str, text: str) -> None:
    for observer in list(_OBSERVERS):
        observer(kernel_id, state, text)
