"""Two machines with one home: what one of them holds the other shows as held, and leaves alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.clients import gate, machines
from tests.clients.page import Page, ReturningServer, call
from tests.clients.server import JupyterServer
from tests.clients.terminal import kernelbridge
from tests.rig.daemon import wait_until
from tests.rig.laptop import Laptop
from tests.rig.whole import Rig

NAME = "kernelbridge-test"
# A server looks for kernels that were left every 2 s.
LOOK_SECONDS = 2.0

pytestmark = pytest.mark.timeout(240)


def listed(laptop: Laptop, machine: list[str]) -> dict[str, Any]:
    (row,) = kernelbridge(laptop, "ps", "--json", machine=machine).json["kernels"]
    return dict(row)


def expect_left_alone(laptop: Laptop, machine: list[str]) -> None:
    ended = kernelbridge(laptop, "clean", "--discard", machine=machine)
    assert (ended.code, ended.out, ended.err) == (0, "Nothing to remove.\n", "")


def test_a_kernel_of_one_machine_is_left_alone_by_the_others_until_its_own_takes_it_up(
    rig: Rig, bridge_env: Laptop, tmp_path: Path
) -> None:
    bridge_env.write_environment(rig.image)
    other = machines.machine("machine-b")
    with ReturningServer(bridge_env.home / "server", env=bridge_env.variables) as server:
        page = Page(server, NAME)
        page.run("kept = 41")
        request = page.send(gate.held("print('it runs', flush=True)", "print(kept + 1)"))
        wait_until(lambda: "it runs" in page.cell(request).text, "the cell to run", 30)
        assert f"busy, held by root@{os.uname().nodename}" in kernelbridge(bridge_env, "ps", machine=other).out
        expect_left_alone(bridge_env, other)
        row = listed(bridge_env, machines.container())
        assert (row["state"], row["link"], row["is_orphan"], row["is_elsewhere"]) == ("busy", "held", False, True)

        second = JupyterServer(
            bridge_env.home / "second", lab=False, env=bridge_env.variables, root=server.root, machine=other
        )
        with second:
            assert second.get("api/kernels") == []
            # Its machine holds it no more, as far as can be known there: nobody else may know whether it comes back.
            server.kill()
            wait_until(lambda: listed(bridge_env, other)["link"] == "link lost", "the relay to notice", 30)
            assert kernelbridge(bridge_env, "stop", "--all", machine=other).out == "No kernels.\n"
            expect_left_alone(bridge_env, other)
            time.sleep(LOOK_SECONDS)
            assert second.get("api/kernels") == []
            call(second, "POST", "api/shutdown")
            second.process.wait(60)

        # The first machine was started anew: nobody there holds it, and its server takes it up.
        rebooted = machines.after_a_restart(tmp_path)
        server.process.args = [*rebooted, *map(str, server.process.args)]  # type: ignore[arg-type]
        server.again()
        page.connect()
        gate.open_gates(rig)
        cell = page.finish(request)
        assert (cell.text.splitlines(), cell.reply["status"]) == (["it runs", "42"], "ok")

        # Its container is started anew: the same boot, other process numbers, and a lock that nobody holds any more.
        server.kill()
        server.again()
        page.connect()
        assert page.run("print(kept + 2)") == "43\n"
        call(server, "DELETE", f"api/kernels/{page.kernel_id}")
