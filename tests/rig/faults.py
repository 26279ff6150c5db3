"""Each way in which a line is lost, by name: for how long, what happens, and whether it can be felt as a silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.rig.whole import Rig

CUT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens on entering `strike`, and ends with it; `seconds` is how long a test holds it."""

    strike: Callable[[Rig], AbstractContextManager[object]]
    seconds: float = CUT_SECONDS

    @property
    def is_at_once_over(self) -> bool:
        """Whether everything can be joined again at the moment when it was lost."""
        return self.seconds == 0


@contextmanager
def _at_once(act: Callable[[], None]) -> Iterator[None]:
    act()
    yield


FAULTS: dict[str, Fault] = {
    "sshd's process killed": Fault(strike=lambda rig: _at_once(rig.sshd.kill_connections), seconds=0),
    "bridge killed": Fault(strike=lambda rig: _at_once(rig.engine.kill_bridges), seconds=0),
    "connection reset": Fault(strike=lambda rig: _at_once(rig.proxy.reset), seconds=0),
    "cable out": Fault(strike=lambda rig: rig.lab.unplugged()),
    "listener closed": Fault(strike=lambda rig: rig.proxy.cut()),
    "packets lost": Fault(strike=lambda rig: rig.proxy.blackhole()),
    "packets lost, then a reset": Fault(strike=lambda rig: rig.proxy.blackhole_then_reset()),
    "accepted, then closed": Fault(strike=lambda rig: rig.proxy.accept_then_close()),
    "dockerd restarted": Fault(strike=lambda rig: _at_once(rig.engine.restart_alive), seconds=0),
}
