"""Which cards a kernel sees, with STAND-IN cards: no GPU is here, only what nvidia-smi and NVIDIA's hook would show.

What the engine is asked for and what the container sees is real; that CUDA then finds the card is not shown here.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.notebook import notebook
from tests.clients.terminal import kernelbridge
from tests.rig.laptop import Laptop
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig

FIRST, SECOND, *_ = UUIDS
# What the config says, and the cards that the kernel then has.
CHOICES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "one": (1, (FIRST,)),
    "two": (2, (FIRST, SECOND)),
    "all": ("all", UUIDS),
    "an index": (["1"], (SECOND,)),
    "a UUID": ([SECOND], (SECOND,)),
    "both, in an order of their own": (["1", FIRST], (SECOND, FIRST)),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_standin_cards_are_asked_of_the_engine_by_uuid_and_no_other_is_seen(
    rig: Rig, bridge_env: Laptop, choice: str
) -> None:
    wanted, uuids = CHOICES[choice]
    bridge_env.write_environment(rig.image, gpus=wanted)
    with notebook(bridge_env) as kernel:
        kernel.run("import os, subprocess")
        (container,) = rig.engine.kernels()
        (request,) = container.attrs["HostConfig"]["DeviceRequests"]
        assert (request["DeviceIDs"], request["Count"]) == (list(uuids), 0)
        assert request["Capabilities"] == [["gpu", "utility", "compute"]]
        assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']") == ",".join(uuids)
        assert kernel.value("'CUDA_VISIBLE_DEVICES' in os.environ") is False
        query = "['nvidia-smi', '--query-gpu=uuid', '--format=csv,noheader']"
        seen = kernel.value(f"subprocess.run({query}, capture_output=True, text=True, check=True).stdout")
        assert sorted(seen.split()) == sorted(uuids)
        (row,) = kernelbridge(bridge_env, "ps", "--json").json["kernels"]
        assert row["gpus"] == list(uuids)


def test_without_standin_cards_in_the_config_the_kernel_has_none(rig: Rig, bridge_env: Laptop) -> None:
    with notebook(bridge_env) as kernel:
        (container,) = rig.engine.kernels()
        assert not container.attrs["HostConfig"]["DeviceRequests"]
        kernel.run("import os, shutil")
        assert kernel.value("(os.environ['NVIDIA_VISIBLE_DEVICES'], shutil.which('nvidia-smi'))") == ("void", None)


def test_a_restart_keeps_its_standin_card(rig: Rig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, gpus=["1"])
    with notebook(bridge_env) as kernel:
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=30)
        kernel.run("import os")
        assert kernel.value("os.environ['NVIDIA_VISIBLE_DEVICES']") == SECOND
