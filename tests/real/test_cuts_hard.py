"""Is anything lost where much is under way, or where the line is lost again and again?

Each fault by itself: test_cuts.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.clients import gate
from tests.clients.blocking import started
from tests.clients.driver import NodeClient
from tests.clients.goodbyes import expect_gone
from tests.clients.notebook import NAME, fleet_closed_after
from tests.clients.numbered import displaying, printing
from tests.clients.rest import started_by
from tests.clients.scene import CONFIG, ENVIRONMENTS, IN_THE_GAP
from tests.clients.server import JupyterServer
from tests.clients.specs import Spec, installed_spec
from tests.clients.tunnel import tunnelled
from tests.clients.watched import AnyClient, WatchedCell, watch
from tests.rig.daemon import SLOW, wait_until
from tests.rig.faults import FAULTS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(400)

MANY = 60_000
STALL_SECONDS = 16.0
BURST, BURST_PER_SECOND, BURST_STALL_SECONDS = 6_000, 600, 8.0
CUTS, RANDOM_LINES, RANDOM_EVERY_SECONDS = 20, 900, 0.05 * SLOW
SEED = 20


@pytest.fixture(scope="module")
def spec(rig: Rig, module_env: Laptop) -> Iterator[Spec]:
    """A user whose kernels are behind the proxy."""
    module_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    with fleet_closed_after(module_env):
        yield installed_spec(module_env)
    expect_gone(rig, module_env)


def test_sixty_thousand_displays_all_come_in_order_though_the_line_stalls_among_them(rig: Rig, spec: Spec) -> None:
    with started() as (_, client):
        assert watch(client, printing(1), lines=1, seconds=60).finish().lost == []
        cell = watch(client, displaying(MANY), lines=MANY, seconds=120)
        wait_until(lambda: cell.shown > 1000, "the displays to begin", 20)
        with rig.proxy.blackhole():
            time.sleep(STALL_SECONDS * SLOW)
        count = cell.finish()
    assert count.flaws == []
    # What was under way is read on for a while.
    assert count.silence_seconds > STALL_SECONDS / 2


def test_a_tunnel_by_hand_silently_drops_what_does_not_fit_into_its_queues(
    rig: Rig, spec: Spec, module_env: Laptop
) -> None:
    code = f"{displaying(MANY)}\nimport pathlib; pathlib.Path('/tmp/displayed').touch()"
    with tunnelled(rig, module_env, kernels=1) as (by_hand,), rig.engine.client() as engine:
        (container,) = engine.containers.list()
        displayed = rig.engine.root_of(container) / "tmp/displayed"
        cell = WatchedCell(by_hand, code, lines=MANY, seconds=120)
        wait_until(lambda: cell.shown > 1000, "the displays to begin", 20)
        with rig.proxy.blackhole():
            wait_until(lambda: displayed.exists(), "the last", 60)
        wait_until(lambda: cell.is_answered, "the reply", 20)
        cell.give_up()
        # Once a later cell is through, nothing of this one comes any more: its idle was dropped with the displays. The
        # first such cell's own output may still find the queues full.
        wait_until(lambda: cell.result_after("6 * 7") == "42", "a later cell", 60)
        count = cell.finish()
    assert len(count.lost) > 1000
    assert (count.replies, count.idles, count.twice) == (("ok",), 0, [])


def test_a_burst_after_a_stall_comes_through_a_jupyter_server_whole(rig: Rig, spec: Spec, module_env: Laptop) -> None:
    server = JupyterServer(module_env.home / "server-burst", lab=False, env=module_env.variables)
    with server, started_by(server, NAME) as kernel:
        assert watch(kernel, printing(1), lines=1, seconds=60).finish().lost == []
        first, every = BURST_PER_SECOND, 1 / BURST_PER_SECOND
        rest = printing(BURST - first, first=first, every_seconds=every)
        cell = watch(kernel, gate.held(printing(first, every_seconds=every), rest), lines=BURST, seconds=90)
        wait_until(lambda: cell.shown == first, "the cell to print for a second", 20)
        gates = gate.gates(rig)
        with rig.proxy.blackhole():
            gate.open_gates(rig, gates)
            time.sleep(BURST_STALL_SECONDS * SLOW)
        count = cell.finish()
        log = server.log
    assert count.silence_seconds > BURST_STALL_SECONDS - 1
    assert count.flaws == []
    # Its limiter drops output, and says so nowhere but here.
    assert "rate exceeded" not in log


def test_twenty_mixed_cuts_at_random_times_lose_nothing(rig: Rig, spec: Spec, module_env: Laptop) -> None:
    chance = random.Random(SEED)
    faults = chance.sample([*FAULTS] * 3, CUTS)
    # VS Code's kernel is reached through the engine, the others the short way.
    module_env.write_config(CONFIG.format(image=rig.image))
    through_engine = installed_spec(module_env, ENVIRONMENTS[IN_THE_GAP])
    server = JupyterServer(module_env.home / "server-random", lab=False, env=module_env.variables)
    code = NodeClient("vscode_raw.mjs", through_engine.settings(cwd=str(module_env.home)))
    with server, code, started_by(server, NAME) as kernel, started() as (_, client):
        code.ask("start")
        clients: dict[str, AnyClient] = {"blocking client": client, "jupyter_server": kernel, "VS Code": code}
        for one in clients.values():
            assert watch(one, printing(1), lines=1, seconds=60).finish().lost == []
        program = printing(RANDOM_LINES, every_seconds=RANDOM_EVERY_SECONDS)
        cells = {name: watch(one, program, lines=RANDOM_LINES, seconds=150) for name, one in clients.items()}
        for fault in faults:
            time.sleep(chance.uniform(0.1, 0.9))
            with FAULTS[fault].strike(rig):
                time.sleep(0 if FAULTS[fault].is_at_once_over else chance.uniform(0.1, 1.5))
        # None of the cells was over before the last cut.
        assert all(cell.shown < RANDOM_LINES for cell in cells.values())
        counts = {name: cell.finish() for name, cell in cells.items()}
    assert {name: count.flaws for name, count in counts.items()} == {name: [] for name in clients}
