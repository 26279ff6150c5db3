"""`kernelbridge gpus` and its REST against a real host with STAND-IN cards: see tests/rig/standin_gpu.py.

Who waits in a real queue, and what else happens in one, is not shown here: tests/unit/test_inventory.py.
"""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from kernelbridge import errors
from tests.clients.notebook import notebook
from tests.clients.server import JupyterServer
from tests.clients.terminal import Ended, begin, kernelbridge
from tests.printed import lines_of
from tests.rig.laptop import Laptop
from tests.rig.slurm import SlurmRig
from tests.rig.standin_gpu import UUIDS
from tests.rig.whole import Rig


@pytest.fixture
def occupied(rig: Rig, bridge_env: Laptop) -> Iterator[str]:
    """The UUID of the third card, on which somebody else computes until the end of the test."""
    rig.engine.gpus.occupy(UUIDS[2])
    yield UUIDS[2]
    rig.engine.gpus.occupy()


def expect_good(ended: Ended) -> Ended:
    assert (ended.code, ended.err) == (0, "")
    return ended


def test_gpus_tells_free_leased_and_busy_standin_cards(rig: Rig, bridge_env: Laptop, occupied: str) -> None:
    bridge_env.write_environment(rig.image, gpus=["1"])
    with notebook(bridge_env) as kernel:
        kernel.run("'it is there'")
        whole = expect_good(kernelbridge(bridge_env, "gpus", "--json")).json
        assert [(row["index"], row["uuid"], row["state"]) for row in whole["gpus"]] == [
            ("0", UUIDS[0], "free"),
            ("1", UUIDS[1], "leased"),
            ("2", occupied, "busy"),
            ("3", UUIDS[3], "free"),
        ]
        assert {(row["host"], row["driver"], row["cuda"]) for row in whole["gpus"]} == {("lab", "550.00.00", "12.4")}
        assert (whole["nodes"], whole["waiting"], whole["bare"], whole["problems"]) == ([], [], [], [])
        lease = whole["gpus"][1]
        (container,) = rig.engine.kernels()
        assert (lease["kernel_id"], lease["environment"]) == (container.labels["kernelbridge.kernel"], "test")
        assert lease["owner"] == container.labels["kernelbridge.user"]
        assert abs((datetime.now(UTC) - datetime.fromisoformat(lease["since"])).total_seconds()) < 600
        assert whole["gpus"][2]["processes"][0]["name"] == "stand-in"
        shown = expect_good(kernelbridge(bridge_env, "gpus")).out.splitlines()
        assert shown[0].split()[:3] == ["HOST", "GPU", "NAME"]
        assert f"test of {lease['owner']} ({lease['kernel_id'][:12]})" in shown[2]
        assert "process 4242 (stand-in)" in shown[3]
        assert [" free " in line for line in shown[1:]] == [True, False, False, True]
    after = expect_good(kernelbridge(bridge_env, "gpus", "--json")).json
    assert [row["state"] for row in after["gpus"]] == ["free", "free", "busy", "free"]


def test_gpus_watch_ends_with_ctrl_c_and_without_a_word(rig: Rig, bridge_env: Laptop) -> None:
    with begin(bridge_env, "gpus", "--watch", "0.5", "--json") as command:
        assert command.process.stdout is not None
        lines = [command.process.stdout.readline() for _ in range(3)]
        command.process.send_signal(signal.SIGINT)
        ended = command.finish()
    assert [len(json.loads(line)["gpus"]) for line in lines] == [4, 4, 4]
    assert (ended.code, ended.err) == (0, "")


def test_gpus_shows_a_host_that_is_away_and_one_without_cards(rig: Rig, bridge_env: Laptop) -> None:
    text = bridge_env.config.read_text()
    bridge_env.write_config(f'{text}\n[hosts.away]\nssh = "kbtest@127.0.0.1:9"\n')
    away = errors.HostRefused(host="away", address="127.0.0.1:9")
    whole = kernelbridge(bridge_env, "gpus", "--json")
    assert (whole.code, len(whole.json["gpus"])) == (0, 4)
    assert [one["sentence"] for one in whole.json["problems"]] == [away.sentence]
    with rig.engine.without_gpus():
        shown = kernelbridge(bridge_env, "gpus")
        assert (shown.code, shown.out) == (0, "No GPU: lab.\n")
        assert shown.err.splitlines() == lines_of(away)
    bridge_env.write_config('[hosts.away]\nssh = "kbtest@127.0.0.1:9"\n')
    assert kernelbridge(bridge_env, "gpus").code == away.exit_code


def test_gpus_shows_the_nodes_of_a_cluster(rig: Rig, slurm: SlurmRig, bridge_env: Laptop) -> None:
    bridge_env.write_environment(rig.image, host={"scheduler": "slurm"})
    whole = expect_good(kernelbridge(bridge_env, "gpus", "--json")).json
    (node,) = whole["nodes"]
    assert (node["host"], node["state"], node["gpus_total"], node["gpus_used"]) == ("lab", "idle", {"": 4}, {"": 0})
    assert (whole["gpus"], whole["waiting"], whole["problems"]) == ([], [], [])
    assert "0 of 4" in expect_good(kernelbridge(bridge_env, "gpus")).out


def test_a_jupyter_server_says_the_same_over_rest(rig: Rig, bridge_env: Laptop, occupied: str) -> None:
    with JupyterServer(bridge_env.home / "server", lab=False, env=bridge_env.variables) as server:
        told = server.get("kernelbridge/gpus")
        assert told == expect_good(kernelbridge(bridge_env, "gpus", "--json")).json
        assert [row["state"] for row in told["gpus"]] == ["free", "free", "busy", "free"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(server.url + "kernelbridge/gpus", timeout=10)
        assert refused.value.code == 403
        refused.value.close()
