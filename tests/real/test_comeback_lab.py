"""JupyterLab in headless Chromium with a notebook open while its server is stopped, or killed, and started again.

The same without a screen, and more of it: test_comeback.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.clients.lab import LabPage, lab_page
from tests.clients.page import ReturningServer, call
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

KERNEL = "Docker-GPU (remote)"
SECONDS = 0.2
COUNT = 100
LINES = f"""\
import time
for n in range({COUNT}):
    print(f"line {{n}}", flush=True)
    time.sleep({SECONDS})
print("the end")
"""
# See test_comeback.py.
TWICE_SECONDS = 2.0
# JupyterLab tries again after up to 1, 3, 7, 15 and 31 s.
RECONNECTED_SECONDS = 60

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def server(rig: Rig, bridge_env: Laptop) -> Iterator[ReturningServer]:
    """A Lab whose kernels persist. At the end they are shut down over REST, and no container is left."""
    bridge_env.write_environment(rig.image, persist=True)
    with ReturningServer(bridge_env.home / "server", env=bridge_env.variables, lab=True) as running:
        yield running
        if running.process.poll() is not None:
            running.again()
        for model in running.get("api/kernels"):
            call(running, "DELETE", f"api/kernels/{model['id']}")
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 20)


@pytest.fixture
def lab(server: ReturningServer, request: pytest.FixtureRequest) -> Iterator[LabPage]:
    with lab_page(server, request.node.name) as page:
        yield page


def shown(lab: LabPage) -> list[int]:
    """The numbered lines under the first cell, in order."""
    return [int(found) for found in re.findall(r"line (\d+)", lab.output(0).inner_text())]


def run_to_line(lab: LabPage, line: int) -> list[int]:
    """Start the cell and wait for one of its lines; return those that are there."""
    lab.choose_kernel(KERNEL)
    lab.write(0, LINES)
    lab.run(0)
    lab.expect_output(0, f"line {line}\n", seconds=60)
    return shown(lab)


def expect_page_goes_on(lab: LabPage) -> None:
    """The cell has ended on the page that was open all along, and the next one runs in the same kernel."""
    lab.expect_output(0, "the end", seconds=RECONNECTED_SECONDS + COUNT * SECONDS)
    lab.expect_done(0)
    lab.expect_status("Idle")
    # Lab has said meanwhile that it cannot reach its server.
    if lab.dialog.count():
        lab.dialog.locator(".jp-Dialog-button").first.click()
    lab.write(1, "print('last was', n)")
    lab.run(1)
    lab.expect_output(1, f"last was {COUNT - 1}")


def test_a_page_shows_the_whole_output_of_a_cell_although_its_server_was_killed(
    server: ReturningServer, lab: LabPage
) -> None:
    run_to_line(lab, 15)
    server.kill()
    time.sleep(1)
    before = shown(lab)
    server.again()
    expect_page_goes_on(lab)
    lines = shown(lab)
    after = lines[len(before) :]
    assert before == list(range(len(before)))
    assert after == list(range(after[0], COUNT))
    # Only what came in the last moments before the kill may be there twice.
    assert len(before) - TWICE_SECONDS / SECONDS - 2 <= after[0] <= len(before), f"{before[-1]}, then {after[0]}"


def test_a_page_shows_each_line_once_when_its_server_was_stopped_and_started(
    server: ReturningServer, lab: LabPage
) -> None:
    run_to_line(lab, 15)
    server.close()
    server.again()
    expect_page_goes_on(lab)
    assert shown(lab) == list(range(COUNT))
