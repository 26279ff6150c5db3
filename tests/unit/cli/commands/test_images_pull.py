"""cli/commands/images.py: `kernelbridge pull`."""

from __future__ import annotations

from pathlib import Path

from kernelbridge.errors import PackagesFailed
from tests.fakes import FakeFleet
from tests.unit.cli.conftest import Call

CONFIG = """
[hosts.lab]
ssh = "lab"
[hosts.two]
ssh = "two"
[hosts.hpc]
ssh = "hpc"
scheduler = "slurm"
[environments.torch]
image = "torch:2"
"""


def test_each_host_of_the_environment_has_its_image_and_whose_fails_is_told(
    call: Call, fleet: FakeFleet, config_path: Path
) -> None:
    config_path.write_text(CONFIG)
    fleet.pulled = {"lab": "torch:2", "two": "kernelbridge/derived:1"}
    ended = call("pull", "torch")
    assert ended.out.splitlines() == ["lab has torch:2", "two has torch:2 as kernelbridge/derived:1"]
    assert ended.err.splitlines() == ["hpc: its jobs fetch the image themselves."]
    assert ended.code == 0
    fleet.pulled["lab"] = PackagesFailed(host="lab", image="torch:2", what="debugpy", reason="no index")
    ended = call("pull", "torch")
    assert ended.code == 91
    assert "two has torch:2" in ended.out
    assert "lab: debugpy could not be added to the image torch:2 (no index)." in ended.err


def test_an_environment_that_is_not_there_is_told(call: Call) -> None:
    assert call("pull", "nope").code == 12
