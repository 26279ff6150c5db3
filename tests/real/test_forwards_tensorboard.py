"""TensorBoard in a container: what `%tensorboard` shows in a cell, and `kernelbridge tensorboard`."""

from __future__ import annotations

import contextlib
import signal
import urllib.request

import pytest

from tests.clients.notebook import notebook
from tests.clients.ports import free_port, is_free
from tests.clients.terminal import begin
from tests.rig.daemon import SLOW, wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(300)

PORT = 6006
TITLE = "<title>TensorBoard</title>"


def shown_at(address: str) -> str:
    """The page at an address; empty where there is none."""
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=30 * SLOW) as answer:
        text: str = answer.read().decode()
        return text
    return ""


# What the magic shows: a page of the address that it was told.
MAGIC = """
from IPython.utils.capture import capture_output
with capture_output() as shown:
    get_ipython().run_line_magic("tensorboard", "--logdir runs")
print([one.data.get("text/html") for one in shown.outputs])
"""


def test_tensorboard_shows_its_page(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, packages=["tensorboard"], forwards=[PORT])
    if not is_free(PORT):
        pytest.skip(f"port {PORT} is taken on this machine")
    with notebook(bridge_env) as kernel:
        kernel.run("%load_ext tensorboard")
        assert f"http://localhost:{PORT}/" in kernel.run(MAGIC)
        wait_until(lambda: TITLE in shown_at(f"http://localhost:{PORT}/"), "the board", 30)
        row = str(rig.engine.kernels()[0].name).removeprefix("kernelbridge-")[:8]
        with begin(bridge_env, "tensorboard", row, "runs", "--no-browser", "--port", str(free_port())) as command:
            assert command.process.stdout is not None
            address = command.process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), command.finish().err
            assert TITLE in shown_at(address)
            command.process.send_signal(signal.SIGINT)
            assert command.finish().code == 0
