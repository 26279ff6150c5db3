"""What is left of kernels whose editor has ended: they end by themselves soon, and the next look sweeps them."""

from __future__ import annotations

from kernelbridge import config as configs
from kernelbridge.fleet import Fleet
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig


def sweep_ended(rig: Rig, laptop: Laptop) -> None:
    """No container of ours is left; each has ended by itself. Raises RigError when one runs on."""
    running = {"created", "running"}
    wait_until(lambda: not running & {one.status for one in rig.engine.kernels()}, "all containers to end", 30)
    if not rig.engine.kernels():
        return
    fleet = Fleet(configs.load(laptop.config))
    try:
        fleet.run(fleet.list_kernels(), 60)
    finally:
        fleet.close()
    wait_until(lambda: not rig.engine.kernels(), "all containers to be swept", 10)
