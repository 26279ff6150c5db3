"""Does anything get lost when a client, or all of this machine's side, stands still while a cell runs?

SIGSTOP is a laptop that sleeps, but for the clock. How long a kernel waits for one: its lifetimes, elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress

import psutil
import pytest

from tests.clients.driver import NodeClient
from tests.clients.goodbyes import expect_gone
from tests.clients.notebook import NAME
from tests.clients.numbered import Count, printing
from tests.clients.rest import started_by
from tests.clients.server import JupyterServer
from tests.clients.specs import installed_spec
from tests.clients.watched import AnyClient, watch
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)

# Longer than the relay waits for a sign of life (15 s).
STILL_SECONDS = 17.0
LINES, EVERY_SECONDS = 2_200, 0.01

WHO = ("VS Code without its launcher", "VS Code and its launcher", "jupyter_server")


@pytest.fixture(scope="module")
def counts(rig: Rig, module_env: Laptop) -> Iterator[Mapping[str, Count]]:
    """Each client's numbered cell, after its processes stood still in the midst of it, all at once."""
    module_env.write_environment(rig.image, host={"ssh": "lab-proxied"})
    spec = installed_spec(module_env)
    with ExitStack() as undo:
        undo.callback(expect_gone, rig, module_env)
        clients: dict[str, AnyClient] = {}
        stopped: list[psutil.Process] = []
        for name in WHO[:2]:
            code = undo.enter_context(NodeClient("vscode_raw.mjs", spec.settings(cwd=str(module_env.home))))
            code.ask("start")
            clients[name] = code
            editor = psutil.Process(code.process.pid)
            stopped += [editor, *(editor.children() if name == WHO[1] else [])]
        server = undo.enter_context(JupyterServer(module_env.home / "server", lab=False, env=module_env.variables))
        clients[WHO[2]] = undo.enter_context(started_by(server, NAME))
        stopped.append(psutil.Process(server.process.pid))
        for client in clients.values():
            assert watch(client, printing(1), lines=1, seconds=60).finish().lost == []
        code_of_cell = printing(LINES, every_seconds=EVERY_SECONDS)
        cells = {name: watch(client, code_of_cell, lines=LINES, seconds=90) for name, client in clients.items()}
        wait_until(lambda: all(cell.shown > 50 for cell in cells.values()), "all cells to print", 20)
        assert len(stopped) == 4
        undo.callback(resume, stopped)
        for process in stopped:
            process.suspend()
        time.sleep(STILL_SECONDS * SLOW)
        resume(stopped)
        yield {name: cell.finish() for name, cell in cells.items()}


def resume(stopped: list[psutil.Process]) -> None:
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@pytest.mark.parametrize("who", WHO)
def test_all_lines_come_after_standing_still(counts: Mapping[str, Count], who: str) -> None:
    assert counts[who].flaws == []
    assert counts[who].silence_seconds > STILL_SECONDS - 2
