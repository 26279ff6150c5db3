"""All kinds of clients at once, two kernels each: one whose cell ends while the line is lost, one where it ends later.

The first is reached by an exec stream of the engine's, the second by the short way.

Each fault is applied once to all of them; what came of it is recorded. The faults: tests/rig/faults.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.clients import gate
from tests.clients.blocking import started
from tests.clients.driver import NodeClient
from tests.clients.goodbyes import expect_gone
from tests.clients.notebook import fleet_closed_after
from tests.clients.numbered import Count, printing
from tests.clients.rest import ServerKernel, started_by
from tests.clients.server import JupyterServer
from tests.clients.specs import installed_spec
from tests.clients.tunnel import tunnelled
from tests.clients.watched import AnyClient, WatchedCell, WatchedNodeCell, watch
from tests.rig.daemon import SLOW, wait_until
from tests.rig.faults import FAULTS
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

CLIENTS = ("blocking client", "jupyter_server", "VS Code")
TUNNEL = "ssh -L"
IN_THE_GAP, AFTER_THE_GAP = "in the gap", "after the gap"
ENDS = (IN_THE_GAP, AFTER_THE_GAP)
ENVIRONMENTS = {IN_THE_GAP: "engine", AFTER_THE_GAP: "test"}
CONFIG = """
[hosts.lab]
ssh = "lab-proxied"
[hosts.lab-engine]
ssh = "lab-proxied"
short_way = false
[environments.test]
image = "{image}"
hosts = ["lab"]
[environments.engine]
image = "{image}"
hosts = ["lab-engine"]
"""
# The fault strikes when each short cell has shown so many of its lines.
SHORT_LINES, STRUCK_AT = 14, 8
# The long cell goes on for so long after the line is whole again.
AFTER_SECONDS = 3.0 * SLOW
LIMIT_SECONDS = 40.0

# Which client, and when its cell ends.
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What came of one fault."""

    counts: Mapping[Key, Count]
    # What the next cell, `6 * 7`, gave.
    next_results: Mapping[Key, str]
    # What the Jupyter server's REST says of its kernels.
    states: Mapping[Key, str]
    # Process ids of the bridges: those before it, and those after it.
    bridges: tuple[set[int], set[int]]


@dataclass(kw_only=True)
class Scene:
    """The kernels and their clients."""

    rig: Rig
    clients: Mapping[Key, AnyClient]
    # What was recorded so far, by fault.
    _records: dict[str, Record] = field(default_factory=dict)

    def record(self, fault: str) -> Record:
        """What came of a fault; it is applied when it is asked for first."""
        if fault not in self._records:
            self._records[fault] = self._apply(fault)
        return self._records[fault]

    def _apply(self, name: str) -> Record:
        fault = FAULTS[name]
        long_lines = STRUCK_AT + int(10 * (fault.seconds * SLOW + AFTER_SECONDS))
        # The short ones end only once the line is broken, however fast they came so far.
        rest = printing(SHORT_LINES - STRUCK_AT, first=STRUCK_AT)
        codes = {
            IN_THE_GAP: (gate.held(printing(STRUCK_AT), rest), SHORT_LINES),
            AFTER_THE_GAP: (printing(long_lines), long_lines),
        }
        shut = gate.gates(self.rig)
        bridges = {bridge.pid for bridge in self.rig.engine.bridges()}
        cells: dict[Key, WatchedCell | WatchedNodeCell] = {}
        for key, client in self.clients.items():
            code, lines = codes[key[1]]
            cells[key] = watch(client, code, lines=lines, seconds=LIMIT_SECONDS)
        wait_until(lambda: all(cell.shown >= STRUCK_AT for cell in cells.values()), "all cells to print", 20)
        with fault.strike(self.rig):
            gate.open_gates(self.rig, shut)
            time.sleep(fault.seconds * SLOW)
        counts = {key: cell.finish() for key, cell in cells.items() if key[0] != TUNNEL}
        short, long = cells[TUNNEL, IN_THE_GAP], cells[TUNNEL, AFTER_THE_GAP]
        if isinstance(short, WatchedCell) and long.finish().replies:
            short.give_up()  # What it has not brought by now, nor brings with the next cell's reply, never comes.
        results = {key: cell.result_after("6 * 7") for key, cell in cells.items()}
        counts |= {key: cell.finish() for key, cell in cells.items() if key[0] == TUNNEL}
        states = {key: one.state for key, one in self.clients.items() if isinstance(one, ServerKernel)}
        after = {bridge.pid for bridge in self.rig.engine.bridges()}
        return Record(counts=counts, next_results=results, states=states, bridges=(bridges, after))


@contextmanager
def scene(rig: Rig, laptop: Laptop) -> Iterator[Scene]:
    """Everything is started, and goes through the proxy."""
    laptop.write_config(CONFIG.format(image=rig.image))
    specs = {ends: installed_spec(laptop, name) for ends, name in ENVIRONMENTS.items()}
    clients: dict[Key, AnyClient] = {}
    with ExitStack() as undo:
        undo.callback(expect_gone, rig, laptop)
        undo.enter_context(fleet_closed_after(laptop))
        folder = laptop.home / "server"
        server = undo.enter_context(JupyterServer(folder, lab=False, env=laptop.variables))
        for ends in ENDS:
            code = undo.enter_context(NodeClient("vscode_raw.mjs", specs[ends].settings(cwd=str(laptop.home))))
            code.ask("start")
            clients["VS Code", ends] = code
            _, clients["blocking client", ends] = undo.enter_context(started(specs[ends].name))
            clients["jupyter_server", ends] = undo.enter_context(started_by(server, specs[ends].name))
        tunnels = undo.enter_context(tunnelled(rig, laptop, kernels=len(ENDS)))
        clients |= {(TUNNEL, ends): client for ends, client in zip(ENDS, tunnels, strict=True)}
        for client in clients.values():
            assert watch(client, printing(1), lines=1, seconds=60).finish().lost == []
        yield Scene(rig=rig, clients=clients)
