"""Is anything lost on the far machine itself, where all its processors are busy and the relay gets no turn for a while?

Seen under sixty thousand displays on a loaded machine; here the relay is stopped, so that it happens each time. What
is lost on the line: test_cuts.py.
"""

from __future__ import annotations

from contextlib import suppress

import psutil
import pytest

from tests.clients.blocking import started
from tests.clients.notebook import fleet_closed_after, write_specs
from tests.clients.numbered import displaying, printing
from tests.clients.watched import watch
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)

MANY = 10_000


def relay(rig: Rig) -> psutil.Process:
    """The relay's process: the container's main one, under its init."""
    found = []
    for process in rig.lab.processes():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "-c" in words[1:2] and "kernelbridge_relay" in words[2]:
                found.append(process)
    (one,) = found
    return one


def test_displays_wait_for_a_relay_that_gets_no_turn(rig: Rig, module_env: Laptop) -> None:
    module_env.write_environment(rig.image)
    write_specs(module_env)
    code = f"{displaying(MANY)}\nimport pathlib; pathlib.Path('/tmp/displayed').touch()"
    with fleet_closed_after(module_env), started() as (_, client):
        assert watch(client, printing(1), lines=1, seconds=60).finish().lost == []
        (container,) = rig.engine.kernels()
        displayed = rig.engine.root_of(container) / "tmp/displayed"
        cell = watch(client, code, lines=MANY, seconds=60)
        wait_until(lambda: cell.shown > 100, "the displays to begin", 20)
        starved = relay(rig)
        starved.suspend()
        try:
            wait_until(lambda: displayed.exists(), "the last", 30)
        finally:
            starved.resume()
        assert cell.finish().flaws == []
