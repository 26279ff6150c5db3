"""JupyterLab itself, in headless Chromium, with a kernel in a container: what a user does and sees, click by click.

The page is driven by tests/clients/lab.py. Pictures of it for the docs: docs/screenshots.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.clients.lab import CONNECTED, LabPage, lab_page
from tests.clients.server import JupyterServer
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

KERNEL = "Docker-GPU (remote)"
FUNCTION = "def twice(value):\n    result = value * 2\n    return result\n\nanswer = twice(21)\nprint(answer)"
WHERE = "import platform\nprint('in the container', platform.node())"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def lab(rig: Rig, bridge_env: Laptop, request: pytest.FixtureRequest) -> Iterator[LabPage]:
    """Lab at its launcher, a new user's. When its server has stopped, no container is left."""
    with (
        JupyterServer(bridge_env.home / "server", lab=True, env=bridge_env.variables) as server,
        lab_page(server, request.node.name) as page,
    ):
        yield page
    expect_no_container(rig)


def expect_no_container(rig: Rig) -> None:
    wait_until(lambda: not rig.engine.kernels(), "the container to be gone", 20)


def test_lab_runs_debugs_interrupts_restarts_and_shuts_down_a_kernel(
    rig: Rig, lab: LabPage, bridge_env: Laptop
) -> None:
    lab.choose_kernel(KERNEL)
    lab.write(0, WHERE)
    lab.run(0)
    lab.expect_output(0, "in the container", seconds=60)
    lab.expect_done(0)
    assert len(rig.engine.kernels()) == 1

    lab.write(1, FUNCTION)
    lab.debugger()
    lab.set_breakpoint(1, 5)
    lab.run(1)
    lab.expect_stopped("answer = twice(21)")
    lab.press("debugger:next")
    lab.expect_stopped("print(answer)")
    lab.expect_variable("answer", "42")
    lab.press("debugger:continue")
    lab.expect_output(1, "42")
    lab.expect_done(1)
    lab.expect_running()

    lab.write(2, "import time\nprint('asleep')\ntime.sleep(60)")
    lab.run(2)
    lab.expect_output(2, "asleep")
    began = time.monotonic()
    lab.interrupt()
    lab.expect_output(2, "KeyboardInterrupt", seconds=10)
    assert time.monotonic() - began < 5 * SLOW

    lab.restart()
    lab.run(1)
    lab.expect_stopped("answer = twice(21)", seconds=60)
    lab.press("debugger:continue")
    lab.expect_done(1)

    before = [one.id for one in rig.engine.kernels()]
    bridge_env.write_environment(rig.image, shm_size="2g")
    lab.restart()
    lab.run(0)
    lab.expect_output(0, "this is a new container, because `shm_size` changed in kernelbridge.toml", seconds=60)
    lab.expect_output(0, "in the container")
    assert len(rig.engine.kernels()) == 1
    assert [one.id for one in rig.engine.kernels()] != before

    lab.shut_down_kernel()
    assert lab.server.get("api/kernels") == []
    expect_no_container(rig)


def test_lab_shows_progress_in_a_cell_run_during_the_start_and_then_its_result(
    rig: Rig, lab: LabPage, bridge_env: Laptop
) -> None:
    with rig.slow_engine() as engine:
        bridge_env.write_environment(rig.image, host={"socket": str(engine.path)})
        with engine.delays(r"POST /containers/create", 60):
            lab.choose_kernel(KERNEL)
            lab.write(0, "print('the result')")
            lab.run(0)
            lab.expect_output(0, "lab", seconds=6)  # Every line of progress names the host.
            assert "the result" not in lab.output(0).inner_text()
        lab.expect_output(0, "the result", seconds=30)
        lab.expect_done(0)
        assert lab.output(0).inner_text().strip() == "the result"
        lab.shut_down_in_panel()
        assert lab.server.get("api/kernels") == []
        expect_no_container(rig)


def test_lab_shows_why_a_kernel_did_not_come_in_the_cell_that_waits_for_it(
    rig: Rig, lab: LabPage, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.bare_image, add_ipykernel=False)
    lab.choose_kernel(KERNEL)
    lab.write(0, "print('never')")
    lab.press_run(0)
    lab.expect_output(0, "ipykernel", seconds=60)
    lab.expect_output(0, "Add `RUN pip install ipykernel`")
    assert "never" not in lab.output(0).inner_text()
    expect_no_container(rig)
    # Some seconds later the kernel is seen as dead, and some more later as gone. Nothing starts it again by itself.
    lab.expect_status("Disconnected")
    lab.expect_kernel_name("No Kernel")
    assert not rig.engine.kernels()
    # Its user does, once the environment is mended.
    bridge_env.write_environment(rig.image)
    # Without a kernel Lab asks nothing; before it sees that, it asks, and restarts no dead one. It drops what is run
    # before it knows the new one.
    lab.press("notebook:restart-kernel")
    wait_until(lambda: bool(rig.engine.kernels()), "the mended one to start", 30)
    lab.expect_status(CONNECTED)
    lab.write(0, "print(6 * 7)")
    lab.run(0)
    lab.expect_output(0, "42", seconds=60)
    lab.shut_down_kernel()
    expect_no_container(rig)


def test_lab_shows_why_a_kernel_did_not_come_to_who_runs_a_cell_long_after_that(
    rig: Rig, lab: LabPage, bridge_env: Laptop
) -> None:
    bridge_env.write_environment(rig.bare_image, add_ipykernel=False)
    lab.choose_kernel(KERNEL)
    # The start fails within 2 s, and the server sees dead kernels within 6 s more.
    time.sleep(10)
    lab.write(0, "print('never')")
    lab.press_run(0)
    lab.expect_output(0, "Add `RUN pip install ipykernel`", seconds=60)
    assert "never" not in lab.output(0).inner_text()
    lab.expect_status("Disconnected")
    expect_no_container(rig)
