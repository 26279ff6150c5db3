"""`kernelbridge init` on a machine without a config, against a real host: from nothing to a cell."""

from __future__ import annotations

import sys

import pexpect
import pytest

from tests.clients.notebook import notebook
from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

pytestmark = pytest.mark.timeout(240)


def test_flags_write_a_config_whose_kernel_runs_cells(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.config.unlink(missing_ok=True)
    ended = kernelbridge(bridge_env, "init", "--yes", "--host", "lab", "--image", rig.image)
    assert (ended.code, ended.err) == (0, "")
    assert f"Wrote {bridge_env.config}: host lab, environment " in ended.out
    assert "Wrote kernelbridge-" in ended.out
    (name,) = [path.name.removeprefix("kernelbridge-") for path in (bridge_env.data_dir / "kernels").iterdir()]
    with notebook(bridge_env, name=f"kernelbridge-{name}") as kernel:
        assert kernel.value("1 + 1") == 2


def test_the_hosts_of_ssh_and_the_images_of_a_host_are_offered_and_ctrl_c_leaves_nothing(
    rig: Rig, bridge_env: Laptop
) -> None:
    bridge_env.config.unlink(missing_ok=True)

    def begin() -> pexpect.spawn[str]:
        words = ["-m", "kernelbridge", "init"]
        made = pexpect.spawn(sys.executable, words, env=bridge_env.variables, encoding="utf-8", timeout=60)
        made.expect("Which machine runs the containers\\?\r\n")
        made.expect("  1  lab\r\n")
        made.expect("Number, or an alias, or user@name:port \\[1\\]: ")
        return made

    left = begin()
    left.sendintr()
    left.expect(pexpect.EOF)
    left.close()
    assert left.exitstatus == 1
    assert not bridge_env.config.exists()
    asked = begin()
    asked.sendline("lab")
    asked.expect("ok +login +kbtest at lab")
    asked.expect("Which image do kernels run in\\?")
    asked.expect(rig.image)
    asked.expect("Number, or another name \\[1\\]: ")
    asked.sendline(rig.image)
    asked.expect("JupyterLab: reload the page")
    asked.expect(pexpect.EOF)
    asked.close()
    assert asked.exitstatus == 0
    assert f'image = "{rig.image}"' in bridge_env.config.read_text()
    assert "gpus = 1" in bridge_env.config.read_text()
